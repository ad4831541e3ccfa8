"""Law 1 live: random models in PyTorch, saved, loaded here, and compared token by token."""

import importlib.util
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from instructjax.batching.packing import pack
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors import SafetensorsFolder
from instructjax.models.families import FAMILIES
from instructjax.models.model import load_model
from instructjax.prompts.request import Request
from instructjax.scoring.engine import score_requests
from instructjax.scoring.log_probs import token_log_probs

pytestmark = [
    pytest.mark.torch,
    # torch and transformers may deprecate what they like
    pytest.mark.filterwarnings("ignore"),
]

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama-tied"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "grouped, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "untied, biases": {"attention_bias": True, "mlp_bias": True},
    "one kv head, wide heads, llama3": {
        "num_key_value_heads": 1,
        "head_dim": 20,
        "rope_parameters": LLAMA3,
    },
    "linear, theta": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 3e5},
        "rms_norm_eps": 1e-3,
    },
}
LENGTHS = (2, 5, 31, 64, 100, 157)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Of so small models, PyTorch's threads wait for each other most of the time."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(CONFIGS), scope="module")
def pair(request, tmp_path_factory):
    """A random Llama in PyTorch, the same one here, and sequences of ids."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = CONFIGS[request.param]
    seed = list(CONFIGS).index(request.param)
    shape = {
        "vocab_size": 211,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(LlamaConfig(**{**shape, **fields})).eval().float()
    with torch.no_grad():
        for parameter in theirs.parameters():
            spread = 0.3 if parameter.dim() < 2 else parameter.shape[1] ** -0.5
            parameter.add_(spread * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURE / file, folder)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 211, length) for length in LENGTHS]
    return torch, theirs, load_model(folder), texts


def their_log_probs(torch, model, ids):
    ids = torch.tensor(np.asarray(ids)[None])
    logs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return logs.gather(1, ids[0, 1:, None])[:, 0]


def requests_of(texts):
    return [Request(ids=ids.astype(np.int32), spans=((1, len(ids)),), num_bytes=0) for ids in texts]


def test_law_1_log_probs_are_those_of_pytorch(pair, record_property):
    torch, theirs, ours, texts = pair
    largest = 0.0
    for ids, result in zip(texts, score_requests(ours, requests_of(texts)), strict=True):
        with torch.no_grad():
            expected = their_log_probs(torch, theirs, ids).numpy()
        assert expected.std() > 0.5 or len(ids) < 10
        np.testing.assert_allclose(result.token_log_probs, expected, rtol=0, atol=1e-4)
        largest = max(largest, float(np.abs(result.token_log_probs - expected).max()))
    record_property("log_prob_difference", largest)


def test_law_1_gradients_are_those_of_pytorch(pair, record_property):
    torch, theirs, ours, texts = pair
    count = sum(len(ids) - 1 for ids in texts)
    theirs.zero_grad()
    each = torch.cat([their_log_probs(torch, theirs, ids) for ids in texts])
    assert len(each) == count
    each.mean().backward()
    wanted = {name: value.grad.numpy() for name, value in theirs.named_parameters()}

    @jax.jit
    def gradient(params, batch):
        return jax.grad(lambda p: token_log_probs(ours.graphdef, p, batch).sum() / count)(params)

    parts = [gradient(ours.params, row.batch) for row in pack(requests_of(texts))]
    total = nnx.to_pure_dict(jax.tree.map(lambda *leaves: sum(leaves), *parts))
    found = {"model.embed_tokens.weight": total["embed"]["embedding"]}
    found["model.norm.weight"] = total["final_norm"]["scale"]
    if "lm_head" in total:
        found["lm_head.weight"] = total["lm_head"]["kernel"]
    layers = total["layers"]
    for i in range(2):
        at = f"model.layers.{i}."
        found[at + "input_layernorm.weight"] = layers["attention_norm"]["scale"][i]
        found[at + "post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
        for block, theirs_block, suffix, names in (
            ("attention", "self_attn", "_proj", "qkvo"),
            ("mlp", "mlp", "_proj", ("gate", "up", "down")),
        ):
            for name in names:
                where = f"{at}{theirs_block}.{name}{suffix}."
                found[where + "weight"] = layers[block][name]["kernel"][i].T
                if "bias" in layers[block][name]:
                    found[where + "bias"] = layers[block][name]["bias"][i]
    assert set(found) == set(wanted)
    steepest = 0.0
    for name, value in wanted.items():
        size = np.abs(value).max()
        if name.endswith("k_proj.bias") and size < 1e-6:
            size = 1  # it moves all keys alike, which softmax does not see: 0 without rotation
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * size, err_msg=name)
        steepest = max(steepest, float(np.abs(found[name] - value).max() / size))
    record_property("gradient_difference", steepest)


# What transformers calls each family, with the configuration that has the most parts.
KINDS = {
    "qwen2": "qwen2-window-yarn",
    "qwen3": "qwen3-bias-yarn",
    "mistral": "mistral-window",
    "ministral": "ministral-mixed",
    "smollm3": "smollm3-window-bias",
    "gemma": "gemma-one-kv-head",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2-tied-bias",
    "olmo3": "olmo3",
    "phi3": "phi3-longrope-partial",
    "granite": "granite",
    "gpt_neox": "gpt-neox",
    "gpt2": "gpt2",
    "stablelm": "stablelm-parallel",
    "cohere": "cohere-qk-norm",
    "cohere2": "cohere2",
    "mixtral": "mixtral-window",
    "qwen3_moe": "qwen3-moe",
    "olmoe": "olmoe",
    "gpt_oss": "gpt-oss",
    "deepseek_v3": "deepseek-v3",
}


def test_every_family_is_compared_live():
    assert {*KINDS, "llama"} == {family.model_type for family in FAMILIES}


OTHER = ", other head and biases"
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_qkv_bias")


@pytest.mark.parametrize("case", [*KINDS, *(kind + OTHER for kind in KINDS)])
def test_law_1_log_probs_and_gradients_of_every_family(case, tmp_path, record_property):
    model_type = case.removesuffix(OTHER)
    torch = pytest.importorskip("torch")
    file = Path(__file__).parents[1] / "make_family_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_family_fixtures", file)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    kind, changes = maker.ALL[KINDS[model_type]]
    seed = 100 + list(KINDS).index(model_type)
    theirs = maker.make_model(kind, changes, seed)
    if case.endswith(OTHER):
        now = {name: getattr(theirs.config, name, None) for name in FLAGS}
        changes = {**changes, **{name: not on for name, on in now.items() if on is not None}}
        theirs = maker.make_model(kind, changes, seed)
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURE / name, tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.family == model_type
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, maker.VOCAB, length) for length in (2, 31, 64, 111)]

    each = [maker.token_log_probs(theirs, torch.tensor(ids)) for ids in texts]
    count = sum(len(ids) - 1 for ids in texts)
    (row,) = pack(requests_of(texts))  # side by side: one program a family
    options = {"xla_backend_optimization_level": "0"}  # quicker; the first of a family is as users'

    @partial(jax.jit, compiler_options=options if case.endswith(OTHER) else None)
    def run(params):
        def mean(params):
            logs = token_log_probs(ours.graphdef, params, row.batch)
            return logs.sum() / count, logs

        return jax.grad(mean, has_aux=True)(params)

    grads, logs = run(ours.params)
    largest = steepest = 0.0
    assert len(row.members) == len(texts)
    for index, entries in row.members:
        expected, found = each[index].detach().numpy(), np.asarray(logs[0])[entries]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        largest = max(largest, float(np.abs(found - expected).max()))

    torch.cat(each).mean().backward()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
        for name, value in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                value.zero_()  # not trained, and saved in the place of a gradient
    theirs.save_pretrained(tmp_path / "gradients")
    (family,) = (family for family in FAMILIES if family.model_type == model_type)
    stored = SafetensorsFolder(tmp_path / "gradients", family.renames)
    wanted = load_params(family, ours.config, stored, np.float32)
    found = nnx.to_pure_dict(grads)
    for (path, value), theirs_too in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        size = np.abs(theirs_too).max()
        if name.endswith("['correction']") or (name.endswith("['k']['bias']") and size < 1e-6):
            size = 1  # not trained; as above
        np.testing.assert_allclose(value, theirs_too, rtol=0, atol=1e-4 * size, err_msg=name)
        steepest = max(steepest, float(np.abs(value - theirs_too).max() / size))
    record_property("log_prob_difference", largest)
    record_property("gradient_difference", steepest)

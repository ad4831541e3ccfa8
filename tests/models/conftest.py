"""Tiny random Llama checkpoints, written as Hugging Face folders and as GGUF files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from instructjax.batching.packing import pack
from instructjax.models.model import abstract_decoder
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCAB = 3, 4, 2, 8, 32, 64, 128

# Every tensor of a layer: Hugging Face's name, GGUF's, the path of the parameter, the shape in
# the file. Written out by hand, so that no table of the package is compared with itself.
LAYER_TENSORS = [
    ("input_layernorm.weight", "attn_norm.weight", "attention_norm.scale", (32,)),
    ("self_attn.q_proj.weight", "attn_q.weight", "attention.q.kernel", (32, 32)),
    ("self_attn.k_proj.weight", "attn_k.weight", "attention.k.kernel", (16, 32)),
    ("self_attn.v_proj.weight", "attn_v.weight", "attention.v.kernel", (16, 32)),
    ("self_attn.o_proj.weight", "attn_output.weight", "attention.o.kernel", (32, 32)),
    ("post_attention_layernorm.weight", "ffn_norm.weight", "mlp_norm.scale", (32,)),
    ("mlp.gate_proj.weight", "ffn_gate.weight", "mlp.gate.kernel", (64, 32)),
    ("mlp.up_proj.weight", "ffn_up.weight", "mlp.up.kernel", (64, 32)),
    ("mlp.down_proj.weight", "ffn_down.weight", "mlp.down.kernel", (32, 64)),
]
LAYER_BIASES = [
    ("self_attn.q_proj.bias", "attn_q.bias", "attention.q.bias", (32,)),
    ("self_attn.k_proj.bias", "attn_k.bias", "attention.k.bias", (16,)),
    ("self_attn.v_proj.bias", "attn_v.bias", "attention.v.bias", (16,)),
    ("self_attn.o_proj.bias", "attn_output.bias", "attention.o.bias", (32,)),
    ("mlp.gate_proj.bias", "ffn_gate.bias", "mlp.gate.bias", (64,)),
    ("mlp.up_proj.bias", "ffn_up.bias", "mlp.up.bias", (64,)),
    ("mlp.down_proj.bias", "ffn_down.bias", "mlp.down.bias", (32,)),
]
TOP_TENSORS = [
    ("model.embed_tokens.weight", "token_embd.weight", "embed.embedding", (128, 32)),
    ("model.norm.weight", "output_norm.weight", "final_norm.scale", (32,)),
    ("lm_head.weight", "output.weight", "lm_head.kernel", (128, 32)),
]


@dataclass
class Tiny:
    """One random checkpoint: Hugging Face's config and tensors, and how to write them."""

    tied: bool = False
    biased: bool = False
    seed: int = 0
    config: dict = field(init=False)
    tensors: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "attention_bias": self.biased,
            "mlp_bias": self.biased,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        rng = np.random.default_rng(self.seed)
        self.tensors = {
            hf: rng.standard_normal(shape, dtype=np.float32) for hf, _, _, shape in self.names()
        }

    def names(self) -> list[tuple[str, str, str, tuple[int, ...]]]:
        rows = [row for row in TOP_TENSORS if not (self.tied and row[0] == "lm_head.weight")]
        per_layer = LAYER_TENSORS + (LAYER_BIASES if self.biased else [])
        for layer in range(LAYERS):
            rows += [
                (f"model.layers.{layer}.{hf}", f"blk.{layer}.{gg}", f"{layer}.{param}", shape)
                for hf, gg, param, shape in per_layer
            ]
        return rows

    def expected(self) -> dict[str, np.ndarray]:
        """Each parameter by its path, from the Hugging Face tensors by the contract's rules."""
        out: dict[str, np.ndarray] = {}
        for hf, _, param, _ in self.names():
            value = self.tensors[hf]
            value = value.T if param.endswith(".kernel") and "lm_head" not in param else value
            layer, _, rest = param.partition(".")
            if layer.isdigit():
                out.setdefault(f"layers.{rest}", np.zeros((LAYERS, *value.shape), np.float32))
                out[f"layers.{rest}"][int(layer)] = value
            else:
                out[param] = value
        return out

    def write_hf(
        self, folder: Path, *, dtype=np.float32, shards: int = 1, tokenizer: bool = True
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        stored = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}
        if shards == 1:
            save_file(stored, folder / "model.safetensors")
        else:
            index = {}
            for k in range(shards):
                name = f"model-{k + 1:05}-of-{shards:05}.safetensors"
                part = {n: stored[n] for i, n in enumerate(stored) if i % shards == k}
                save_file(part, folder / name)
                index |= dict.fromkeys(part, name)
            text = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
            (folder / "model.safetensors.index.json").write_text(text)
        if tokenizer:
            write_tokenizer(folder)
        return folder

    def write_gguf(self, path: Path, kinds=gguf.GGMLQuantizationType.F32, edit=None) -> Path:
        """A GGUF file as llama.cpp's converter makes it; matrices as `kinds` (or by name)."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(LAYERS)
        writer.add_context_length(256)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_vocab_size(VOCAB)
        add_byte_level_tokenizer(writer)
        for hf, name, _, shape in self.names():
            tensor = self.tensors[hf]
            if ".attn_q." in name or ".attn_k." in name:
                tensor = interleave(tensor, HEADS if ".attn_q." in name else KV_HEADS)
            kind = kinds.get(name, "F32") if isinstance(kinds, dict) else kinds
            if len(shape) == 1 or kind == gguf.GGMLQuantizationType.F32:
                writer.add_tensor(name, tensor)
            else:
                data = gguf.quants.quantize(tensor, kind)
                writer.add_tensor(name, data, raw_dtype=kind)
        if edit is not None:
            edit(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def rewrite_gguf(path: Path, out: Path, metadata=None, tensors=None) -> Path:
    """A copy of a GGUF file with every tensor in float32.

    Args:
      path: the file.
      out: where the copy goes.
      metadata: values by key, in the place of those of the file; None takes a key out.
      tensors: given the tensors by name, gives those of the copy.
    """
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    metadata = metadata or {}
    for entry in reader.fields.values():
        if not entry.name.startswith("GGUF.") and entry.name != "general.architecture":
            value = metadata.get(entry.name, entry.contents())
            if value is not None:
                sub_type = entry.types[-1] if len(entry.types) > 1 else None
                writer.add_key_value(entry.name, value, entry.types[0], sub_type)
    there = {
        tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in reader.tensors
    }
    for name, tensor in (tensors(there) if tensors else there).items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k, row by row: halves of a head are interleaved."""
    out = np.empty_like(tensor)
    width = len(tensor) // heads
    for head in range(heads):
        for i in range(width // 2):
            for half in range(2):
                out[head * width + 2 * i + half] = tensor[head * width + half * (width // 2) + i]
    return out


def byte_alphabet() -> list[str]:
    """The 256 letters of byte-level BPE, in the order of GPT-2's vocabulary."""
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """<bos>, <eos>, ASCII letters, and a few merges: 128 tokens in all."""
    letters = [c for c in byte_alphabet() if ord(c) < 127 or c in "ĠĊ"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 9", "o r"]
    tokens = ["<bos>", "<eos>", "<user>", *letters, *(m.replace(" ", "") for m in merges)]
    return tokens + [f"[PAD{i}]" for i in range(VOCAB - len(tokens))], merges


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, pre: str = "smollm") -> None:
    tokens, merges = byte_level_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 4] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<eos>{% endfor %}")


def write_tokenizer(folder: Path) -> None:
    tokens, merges = byte_level_vocabulary()
    model = tokenizers.models.BPE(
        {t: i for i, t in enumerate(tokens)}, [tuple(m.split()) for m in merges]
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "chat_template": "{% for m in messages %}{{ m.content }}<eos>{% endfor %}",
            }
        )
    )


def flatten(params: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters by dotted path, as float32 numpy arrays."""
    out: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = np.asarray(value).astype(np.float32)
    return out


def assert_params_equal(params: dict, expected: dict[str, np.ndarray], dtype="float32") -> None:
    found = flatten(params)
    assert set(found) == set(expected)
    for path, value in expected.items():
        rounded = value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        np.testing.assert_array_equal(found[path], rounded.astype(np.float32), err_msg=path)


@pytest.fixture(scope="session")
def tiny_class():
    """`Tiny`, for fixtures of wider scope."""
    return Tiny


@pytest.fixture
def tiny():
    """`tiny(tied=..., biased=..., seed=...)` makes a `Tiny` checkpoint."""
    return Tiny


@pytest.fixture
def assert_params():
    """`assert_params(params, expected, dtype)` compares every parameter exactly."""
    return assert_params_equal


@pytest.fixture
def edit_gguf():
    return rewrite_gguf


SENTENCES = [
    "The capital of France is Paris. hello world peace, hello world.",
    "Jupiter is the largest planet in the Solar System. good morning, hello there",
    "Größe, naïve café; the theory of the thing  with  two spaces",
]


@pytest.fixture(scope="session")
def sentences():
    """What `sentencepiece_file` was trained on."""
    return SENTENCES


@pytest.fixture(scope="session")
def sentencepiece_file():
    """Bytes of a `tokenizer.model` that the library trained: BPE with byte fallback, 400 pieces."""
    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        user_defined_symbols=["<user>"],
        minloglevel=2,
    )
    return out.getvalue()


def gguf_of_sentencepiece(data: bytes, **changes) -> dict:
    """The metadata that llama.cpp's converter makes of `sentencepiece_file`; None: without it."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    size = range(model.get_piece_size())
    kinds = ((model.is_byte, 6), (model.is_unknown, 2), (model.is_control, 3))
    types = [next((kind for test, kind in kinds if test(i)), 1) for i in size]
    types[model.piece_to_id("<user>")] = 4
    values = {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in size],
        "scores": np.array([model.get_score(i) for i in size], np.float32),
        "token_type": np.array(types),
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


@pytest.fixture(scope="session")
def sentencepiece_metadata():
    return gguf_of_sentencepiece


@pytest.fixture(scope="session")
def by_llama_cpp():
    """log p [n - 1] of every token after the first, by llama.cpp; its cache in float32."""
    llama_cpp = pytest.importorskip("llama_cpp")

    def run(path, ids):
        llm = llama_cpp.Llama(
            str(path), n_ctx=128, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False
        )
        llm.reset()
        llm.eval(list(ids))
        logits = np.asarray(llm.scores[: len(ids) - 1], np.float64)
        top = logits.max(-1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        return np.take_along_axis(logs, np.asarray(ids)[1:, None], axis=1)[:, 0]

    return run


@pytest.fixture(scope="session")
def by_us():
    """log p [n - 1] of every token after the first, by a decoder of that configuration."""

    def run(config, params, ids):
        graphdef, _ = abstract_decoder(config, "float32")
        request = Request(ids=np.array(ids, np.int32), spans=((1, len(ids)),), num_bytes=0)
        (row,) = pack([request])
        quickly = {"xla_backend_optimization_level": "0"}  # the model is run once
        logs = jax.jit(
            lambda params: token_log_probs(graphdef, params, row.batch), compiler_options=quickly
        )
        return np.asarray(logs(params))[0, : len(ids) - 1]

    return run

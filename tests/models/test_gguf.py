"""GGUF weights: every quantized type, the order of rotary rows, and hostile files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.errors import InstructJaxError, ModelError
from instructjax.models.checkpoints.gguf import GgufWeights, dequantize_bytes
from instructjax.models.checkpoints.gguf_file import read_gguf_file
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf
from instructjax.models.checkpoints.params import load_params

CAN_QUANTIZE = [
    Kind.F32,
    Kind.F16,
    Kind.BF16,
    Kind.Q4_0,
    Kind.Q4_1,
    Kind.Q5_0,
    Kind.Q5_1,
    Kind.Q8_0,
]
K_QUANTS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ4_NL]


def load(path: Path, dtype: str = "float32"):
    weights = GgufWeights(path)
    return load_params(weights.family, weights.config, weights, np.dtype(dtype))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_every_parameter_is_in_its_place(tiny, assert_params, tmp_path, tied, biased):
    model = tiny(tied=tied, biased=biased)
    path = model.write_gguf(tmp_path / "m.gguf")
    weights = GgufWeights(path)
    assert weights.config.tie_embeddings is tied
    assert_params(load(path), model.expected())


@pytest.mark.parametrize("kind", CAN_QUANTIZE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_types(tiny, assert_params, tmp_path, kind, dtype):
    """Each matrix is what the gguf package makes of its rows, quantized and back."""
    model = tiny()
    params = load(model.write_gguf(tmp_path / "m.gguf", kind), dtype)
    for name, tensor in model.tensors.items():
        if tensor.ndim == 2:
            # rows are quantized one by one, so the order of q's and k's rows does not matter
            there = gguf.quants.quantize(tensor, kind)
            model.tensors[name] = gguf.quants.dequantize(there, kind).astype(np.float32)
    assert_params(params, model.expected(), dtype)


@pytest.mark.parametrize("kind", CAN_QUANTIZE + K_QUANTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num_blocks", [1, 7, 90, 1009])
def test_blocks_are_those_of_the_gguf_package(kind, num_blocks):
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(num_blocks)
    data = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = np.concatenate([gguf.quants.dequantize(row[None], kind)[0] for row in data])
    np.testing.assert_array_equal(dequantize_bytes(data.reshape(-1), kind), expected)


def test_q8_0_by_hand():
    """One block: a half-precision scale of 0.5, then 32 signed bytes."""
    data = np.frombuffer(struct.pack("<e32b", 0.5, *range(-16, 16)), np.uint8)
    assert dequantize_bytes(data, Kind.Q8_0).tolist() == [i / 2 for i in range(-16, 16)]


def test_rotary_rows_are_put_back_side_by_side(tiny, tmp_path):
    """Row 2i + h of a head in GGUF is row i + h D/2 of Hugging Face, here with D = 8."""
    model = tiny()
    path = tmp_path / "m.gguf"
    writer_rows = np.arange(32, dtype=np.float32)[:, None].repeat(32, 1)
    for layer in range(3):
        model.tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = writer_rows
    model.write_gguf(path)
    stored = {t.name: t.data for t in GGUFReader(path).tensors}["blk.0.attn_q.weight"]
    assert stored[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert np.asarray(load(path)["layers"]["attention"]["q"]["kernel"])[0, 0].tolist() == list(
        range(32)
    )


def test_a_tensor_read_in_many_blocks_is_the_same(tiny, assert_params, tmp_path, monkeypatch):
    model = tiny(biased=True)
    monkeypatch.setattr("instructjax.models.checkpoints.params._BLOCK_ELEMENTS", 100)
    assert_params(load(model.write_gguf(tmp_path / "m.gguf")), model.expected())


def test_metadata_and_directory_are_those_of_the_gguf_package(tiny, tmp_path):
    def more(writer):
        writer.add_array("x.floats", [0.5, -1.25])
        writer.add_array("x.words", ["", "é", "日本"])
        writer.add_array("x.flags", [True, False])
        writer.add_uint8("x.u8", 255)
        writer.add_int8("x.i8", -1)
        writer.add_uint64("x.u64", 2**63)
        writer.add_float64("x.f64", 0.1)
        writer.add_bool("x.yes", True)

    path = tiny().write_gguf(tmp_path / "m.gguf", Kind.Q8_0, more)
    ours, theirs = read_gguf_file(path), GGUFReader(path)
    keys = {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert set(ours.metadata) == keys
    for key in keys:
        found = ours.metadata[key]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        assert found == theirs.fields[key].contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        place = ours.tensors[tensor.name]
        assert place.shape == tuple(tensor.shape.tolist()[::-1])
        assert (place.offset, place.num_bytes) == (tensor.data_offset, tensor.n_bytes)


def test_the_scaling_of_llama_3_is_read_from_its_tensor(tiny, assert_params, tmp_path):
    # theta 1e4, 8 wide: wavelengths 6.3, 63, 628, 6283; the last lies between 2048 and 8192
    smooth = (8192 / (2 * np.pi * 1000) - 1) / 3
    factors = np.array([1, 1, 1, 1 / ((1 - smooth) / 8 + smooth)], np.float32)

    def add(writer):
        writer.add_tensor("rope_freqs.weight", factors)

    path = tiny().write_gguf(tmp_path / "m.gguf", edit=add)
    with pytest.raises(ModelError, match="rope_freqs"):
        GgufWeights(path)  # no factor reaches 8, so 8 cannot be told from it

    def slower(writer):
        writer.add_rope_freq_base(500000.0)

    turns = 8192 / (2 * np.pi * 500000.0**0.5)
    smooth = (turns - 1) / 3
    factors = np.array([1, 1, 1 / ((1 - smooth) / 8 + smooth), 8], np.float32)
    model = tiny()
    path = model.write_gguf(tmp_path / "n.gguf", edit=add_after(slower, factors))
    weights = GgufWeights(path)
    assert (weights.config.rope.kind, weights.config.rope.factor) == ("llama3", 8.0)
    assert_params(load(path), model.expected())


def add_after(first, factors):
    def edit(writer):
        # replaces the value written before
        for shard in writer.kv_data:
            shard.pop("llama.rope.freq_base", None)
        first(writer)
        writer.add_tensor("rope_freqs.weight", factors)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.add_tensor("blk.0.extra", np.ones(4, np.float32)), "surplus tensor blk.0.ex"),
        (lambda w: w.add_uint32("llama.expert_count", 8), "expert_used_count"),
        (lambda w: w.add_uint16("split.count", 2), "one of 2 parts"),
        (lambda w: w.add_tensor("ints", np.ones(4, np.int32)), "ints is stored as I32"),
        (lambda w: w.tensors[0].pop("blk.1.attn_q.weight"), "missing tensors: blk.1.attn_q.weight"),
    ],
)
def test_what_does_not_fit_is_named(tiny, tmp_path, edit, message):
    path = tiny().write_gguf(tmp_path / "m.gguf", edit=edit)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_tensor_of_another_shape(tiny, tmp_path):
    model = tiny()
    model.tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((64, 64), np.float32)
    with pytest.raises(ModelError, match=r"ffn_up.weight has shape \[64, 64\].*says \[64, 32\]"):
        load(model.write_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of gguf, while writing
def test_nan_is_found(tiny, tmp_path, kind, dtype):
    model = tiny()
    model.tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = np.nan
    path = model.write_gguf(tmp_path / "m.gguf", kind)
    with pytest.raises(ModelError, match=r"blk.2.ffn_up.weight holds NaN"):
        load(path, dtype)


def test_infinite_scales_are_found(tiny, tmp_path):
    model = tiny()
    path = model.write_gguf(tmp_path / "m.gguf", Kind.Q8_0)
    place = read_gguf_file(path).tensors["token_embd.weight"]
    data = bytearray(path.read_bytes())
    data[place.offset : place.offset + 2] = struct.pack("<e", float("inf"))
    path.write_bytes(data)
    with pytest.raises(ModelError, match="token_embd.weight holds NaN or infinity"):
        load(path)


def gguf_bytes(*, version=3, tensors=0, keys=0, body=b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    )


HUGE = 2**62
STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF"),
        (b"GGUF", "not a GGUF"),
        (b"GGML" + bytes(40), "not a GGUF"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<I", 3), "beyond the end"),
        (gguf_bytes(keys=HUGE), "beyond the end"),
        (gguf_bytes(tensors=HUGE), "beyond the end"),
        (gguf_bytes(tensors=2**64 - 1, keys=2**64 - 1), "beyond the end"),
        (gguf_bytes(keys=1, body=struct.pack("<Q", HUGE) + bytes(20)), "beyond the end"),
        (gguf_bytes(keys=1, body=key(b"a", 99, bytes(8))), "unknown type 99"),
        (gguf_bytes(keys=1, body=key(b"a", STRING, struct.pack("<Q", HUGE))), "beyond the end"),
        (
            gguf_bytes(keys=1, body=key(b"a", ARRAY, struct.pack("<IQ", STRING, HUGE))),
            "beyond the end",
        ),
        (
            gguf_bytes(keys=1, body=key(b"a", ARRAY, struct.pack("<IQQ", STRING, 1, HUGE))),
            "beyond the end",
        ),
        (gguf_bytes(keys=1, body=key(b"a", ARRAY, struct.pack("<IQ", 4, HUGE))), "beyond the end"),
        (gguf_bytes(keys=1, body=key(b"a", ARRAY, struct.pack("<IQ", 9, 0))), "array of arrays"),
        (gguf_bytes(keys=1, body=key(b"a", ARRAY, struct.pack("<IQ", 77, 0))), "unknown type 77"),
        (gguf_bytes(keys=1, body=key(b"\xff", 0, bytes(8))), "not UTF-8"),
        (gguf_bytes(keys=1, body=key(b"a", STRING, b"\1" + bytes(7) + b"\xff")), "a is not UTF-8"),
        (gguf_bytes(keys=2, body=key(b"a", 0, b"\0") * 2 + bytes(9)), "a is there twice"),
        (
            gguf_bytes(keys=1, body=key(b"general.alignment", 4, struct.pack("<I", 0))),
            "power of two",
        ),
        (
            gguf_bytes(keys=1, body=key(b"general.alignment", STRING, bytes(8))),
            "power of two",
        ),
        (gguf_bytes(tensors=1, body=tensor(b"t", (4,), 0, 0)), "t ends beyond"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (4,), 0, HUGE) + bytes(64)), "t ends beyond"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (4,), 0, 4) + bytes(99)), "t ends beyond"),
        (
            gguf_bytes(tensors=1, body=tensor(b"t", (2**40, 2**40, 8), 0, 0) + bytes(99)),
            "t ends beyond",
        ),
        (gguf_bytes(tensors=1, body=tensor(b"t", (4,), 99, 0) + bytes(99)), "unknown type 99"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (4,), 8, 0) + bytes(99)), "whole blocks of Q8_0"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (0,), 0, 0) + bytes(99)), r"shape \[0\]"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (), 0, 0) + bytes(99)), "0 dimensions"),
        (gguf_bytes(tensors=1, body=tensor(b"t", (1,) * 9, 0, 0) + bytes(99)), "9 dimensions"),
        (gguf_bytes(tensors=2, body=tensor(b"t", (1,), 0, 0) * 2 + bytes(99)), "t is there twice"),
        (
            gguf_bytes(
                tensors=2, body=tensor(b"t", (9,), 0, 0) + tensor(b"u", (1,), 0, 32) + bytes(99)
            ),
            "tensors t and u overlap",
        ),
    ],
)
def test_hostile_files(tmp_path, data, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_gguf_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"gone.gguf: cannot be read: No such file"):
        read_gguf_file(tmp_path / "gone.gguf")


def test_truncated_anywhere(tiny, tmp_path):
    """Every prefix of the header, and some of the weights: an error, never half a model."""
    path = tiny().write_gguf(tmp_path / "m.gguf", Kind.Q8_0)
    data = path.read_bytes()
    first = min(place.offset for place in read_gguf_file(path).tensors.values())
    for size in [*range(0, first, 97), first, (first + len(data)) // 2]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            load(path)


@pytest.fixture(scope="module")
def header_and_file(tiny_class, tmp_path_factory):
    """How many bytes come before the weights of a good file, and the file."""
    path = tiny_class().write_gguf(tmp_path_factory.mktemp("damaged") / "m.gguf", Kind.Q8_0)
    return min(place.offset for place in read_gguf_file(path).tensors.values()), path


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_an_error_or_a_model_never_a_crash(header_and_file, data):
    header, good = header_and_file
    damaged = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = good.with_name("damaged.gguf")
    path.write_bytes(damaged)
    try:
        weights = GgufWeights(path)
        tokenizer_from_gguf(weights.header.metadata, path)
        load_params(weights.family, weights.config, weights, np.dtype("float32"))
    except InstructJaxError:
        pass


def test_bfloat16_of_the_file_is_kept_exactly(tiny, tmp_path):
    model = tiny()
    name = "model.embed_tokens.weight"
    model.tensors[name] = model.tensors[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    params = load(model.write_gguf(tmp_path / "m.gguf", Kind.BF16), "bfloat16")
    found = np.asarray(params["embed"]["embedding"]).astype(np.float32)
    np.testing.assert_array_equal(found, model.tensors[name])


def test_the_type_of_the_weights_is_that_of_most_parameters(tiny, tmp_path):
    model = tiny()
    for kind in (Kind.Q4_1, Kind.Q8_0, Kind.F32):
        assert GgufWeights(model.write_gguf(tmp_path / "m.gguf", kind)).kind == kind.name
    # The many small tensors count less than the few large ones.
    names = [name for _, name, _, _ in model.names()]
    few = [name for name in names if ".ffn_" in name]
    kinds = {name: Kind.Q8_0 if name in few else Kind.F32 for name in names}
    found = GgufWeights(model.write_gguf(tmp_path / "m.gguf", kinds))
    large = sum(int(np.prod(found.shapes[name])) for name in few)
    assert 2 * len(few) < len(found.shapes)
    assert 2 * large > sum(int(np.prod(shape)) for shape in found.shapes.values())
    assert found.kind == "Q8_0"

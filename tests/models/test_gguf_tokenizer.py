"""Tokenizers rebuilt from GGUF metadata, against literals and against other implementations."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from instructjax.errors import ModelError
from instructjax.models.checkpoints.gguf_file import read_gguf_file
from instructjax.models.checkpoints.gguf_pretokenizers import PRE_TOKENIZERS, pretokenizer_for
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf

FILE = Path("model.gguf")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def byte_level(**changes) -> dict:
    """Metadata of a small byte-level tokenizer: three added tokens, all bytes, some merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 9", "o r", "c a", "f Ã", "fÃ ©", "ca fÃ©"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<bos>", "<eos>", "<user>", *letters, *(m.replace(" ", "") for m in merges)]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": np.array([CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 3)),
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    values |= changes
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


def pieces(metadata: dict, text: str) -> list[str]:
    tokenizer = tokenizer_from_gguf(metadata, FILE)
    return tokenizer.pieces(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        # digits one by one, and the white space before them on its own
        ("smollm", "in 1984\n\n5", ["in", "Ġ", "1", "9", "8", "4", "ĊĊ", "5"]),
        ("smollm", "hello world's", ["hello", "Ġworld", "'s"]),
        ("gpt-2", "in 1984\n\n5", ["in", "Ġ1984", "Ċ", "Ċ", "5"]),
        ("gpt-2", "you're  IT'S", ["you", "'re", "Ġ", "ĠIT", "'", "S"]),
        # numbers in threes, contractions in either case, a mark before a word
        ("llama-bpe", "in 1984\n\n5", ["in", "Ġ", "198", "4", "ĊĊ", "5"]),
        ("llama-bpe", "IT'S (ok)!\n", ["IT", "'S", "Ġ(", "ok", ")!Ċ"]),
        ("qwen2", "in 1984", ["in", "Ġ", "1", "9", "8", "4"]),
        ("default", "a+1234.", ["a", "+", "123", "4", "."]),
    ],
)
def test_how_text_is_cut(pre, text, cut):
    parts = pretokenizer_for(pre, FILE).build().pre_tokenize_str(text)
    assert [part for part, _ in parts] == cut


@settings(deadline=None)
@given(st.text(max_size=40))
def test_gpt2_is_cut_as_the_tokenizers_library_does(text):
    ours = PRE_TOKENIZERS["gpt-2"].build().pre_tokenize_str(text)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert [part for part, _ in ours] == [part for part, _ in theirs]


@settings(deadline=None)
@given(st.text(alphabet="a1٣Ⅷ² \n.é", max_size=12))
def test_smollm_is_cut_as_its_tokenizer_json_says(text):
    """Digits one by one, then byte level."""
    published = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ours = PRE_TOKENIZERS["smollm"].build().pre_tokenize_str(text)
    assert [p for p, _ in ours] == [p for p, _ in published.pre_tokenize_str(text)]


def test_merges_and_added_tokens():
    assert pieces(byte_level(), "hello world") == ["hello", " w", "or", "l", "d"]
    assert pieces(byte_level(), "he<eos>19<user>") == ["he", "<eos>", "1", "9", "<user>"]
    assert pieces(byte_level(pre="gpt-2"), "19") == ["19"]
    tokenizer = tokenizer_from_gguf(byte_level(), FILE)
    assert tokenizer.special_ids == {0, 1}  # <user> is cut out whole, but is no control token
    assert tokenizer.encode("<user>").tolist() == [2]


def test_ignore_merges_takes_a_piece_that_is_a_token_whole():
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "xyz"]
    types = np.array([CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 3))
    changes = {"tokens": tokens, "token_type": types}
    assert pieces(byte_level(pre="smollm", **changes), "xyz") == ["x", "y", "z"]
    assert pieces(byte_level(pre="llama-bpe", **changes), "xyz") == ["xyz"]


def test_qwen2_composes_characters_first():
    assert pieces(byte_level(pre="qwen2"), "cafe\u0301") == ["café"]
    assert pieces(byte_level(pre="gpt-2"), "cafe\u0301") != ["café"]


@pytest.mark.parametrize(
    ("changes", "adds_bos"),
    [
        ({"pre": "smollm"}, False),
        ({"pre": "smollm", "add_bos_token": True}, True),
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"pre": "llama-bpe", "bos_token_id": None}, False),
    ],
)
def test_bos_rule(changes, adds_bos):
    assert tokenizer_from_gguf(byte_level(**changes), FILE).adds_bos is adds_bos


def test_every_id_that_ends_a_response_and_the_template():
    metadata = byte_level(eot_token_id=2, eom_token_id=1, unknown_token_id=0, padding_token_id=1)
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    tokenizer = tokenizer_from_gguf(metadata, FILE)
    assert tokenizer.eos_ids == (1, 2)
    assert tokenizer.bos_id == 0
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.name == "model.gguf"
    assert dict(tokenizer.special_tokens or {}) == {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<bos>",
        "pad_token": "<eos>",
    }
    assert tokenizer_from_gguf(byte_level(), FILE).chat_template is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "klingon"}, "pre-tokenizer 'klingon' is not supported"),
        ({"pre": None}, "does not name its pre-tokenizer"),
        ({"model": "t5"}, "'t5' is not supported"),
        ({"model": None}, "None is not supported"),
        ({"tokens": None}, "tokens` is missing"),
        ({"tokens": np.array([1, 2])}, "tokens` is not of type list"),
        ({"tokens": ["a", "a"]}, "'a' has two ids"),
        ({"token_type": np.array([1])}, "differ in length"),
        ({"merges": None}, "merges` is missing"),
        ({"merges": ["a b c"]}, "merge 'a b c'"),
        ({"merges": ["not there"]}, "do not fit the vocabulary"),
        ({"eos_token_id": 10**6}, "1000000 is no id"),
        ({"bos_token_id": -1}, "-1 is no id"),
        ({"bos_token_id": "0"}, "bos_token_id` is not of type int"),
        ({"add_space_prefix": True}, "add_space_prefix"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(changes, message):
    with pytest.raises(ModelError, match=message) as caught:
        tokenizer_from_gguf(byte_level(**changes), FILE)
    assert caught.value.file == "model.gguf"
    assert caught.value.remedy


def test_from_a_file(tiny, tmp_path):
    path = tiny().write_gguf(tmp_path / "m.gguf")
    tokenizer = tokenizer_from_gguf(read_gguf_file(path).metadata, path)
    assert tokenizer.pieces(tokenizer.encode("hello 19<eos>")) == ["hello", " ", "1", "9", "<eos>"]
    assert tokenizer.chat_template == "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1,))


def test_a_token_of_a_megabyte_takes_no_minutes():
    values = {
        "model": "llama",
        "tokens": ["<unk>", "a", "▁", "a" * 1_000_000],
        "scores": np.zeros(4, np.float32),
        "token_type": np.array([UNKNOWN, NORMAL, NORMAL, NORMAL]),
    }
    start = time.perf_counter()
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{k}": v for k, v in values.items()}, FILE)
    assert tokenizer.encode("aaa").tolist() == [2, 1, 1, 1]
    assert time.perf_counter() - start < 20


# SentencePiece BPE, against its definition and against the library of that name.

VOCABULARY = {"a": -9.0, "b": -8.0, "c": -7.0, "▁": -6.0, "ab": -3.0, "bc": -2.0, "abc": -5.0}
VOCABULARY |= {"▁a": -1.0, "ca": -2.5, "▁ab": -4.0, "aa": -2.0, "cab": -1.5}


def merge_greedily(text: str) -> list[str]:
    """The definition: join the neighbours whose union scores highest, the leftmost first."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [
            (VOCABULARY.get(a + b), i)
            for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
        ]
        scored = [(score, -i) for score, i in unions if score is not None]
        if not scored:
            return symbols
        i = -max(scored)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@settings(deadline=None)
@given(st.text(alphabet="abc ", min_size=1, max_size=12))
def test_sentencepiece_merges_by_score(text):
    tokens = ["<unk>", *VOCABULARY]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0, *VOCABULARY.values()], np.float32),
        "tokenizer.ggml.token_type": np.array([UNKNOWN] + [NORMAL] * len(VOCABULARY)),
    }
    ids = tokenizer_from_gguf(metadata, FILE).encode(text)
    assert [tokens[i] for i in ids] == merge_greedily(text)


@pytest.fixture(scope="module")
def pieces_of(sentencepiece_file):
    """The library's own tokenizer."""
    spm = pytest.importorskip("sentencepiece")
    return spm.SentencePieceProcessor(model_proto=sentencepiece_file)


@pytest.fixture(scope="module")
def from_pieces(sentencepiece_file, sentencepiece_metadata):
    """Makes our tokenizer of the metadata that llama.cpp's converter makes of that."""
    return lambda **changes: tokenizer_from_gguf(
        sentencepiece_metadata(sentencepiece_file, **changes), FILE
    )


WORDS = "The theory of the thing  with  two spaces; capital of Größe, naïve café hello there."


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(WORDS.split()), max_size=8).map(" ".join),
        st.text(alphabet="the lo wr▁\n日", max_size=30),
    ).filter(lambda text: "\0" not in text)
)
def test_sentencepiece_ids_are_those_of_its_library(pieces_of, from_pieces, text):
    tokenizer = from_pieces()
    if any(special in text for special in ("<s>", "</s>", "<unk>", "<user>")):
        return  # control tokens written in a text become ids here, as in a chat template
    # sentencepiece gives nothing for nothing; a prefix space alone is no text
    expected = pieces_of.encode(text) if text else tokenizer.encode("").tolist()
    assert tokenizer.encode(text).tolist() == expected


def test_sentencepiece_without_a_prefix_space(pieces_of, from_pieces):
    tokenizer = from_pieces(add_space_prefix=False)
    with_prefix = pieces_of.encode_as_pieces("hello hello")
    assert with_prefix[0].startswith("▁")
    assert not tokenizer.pieces(tokenizer.encode("hello hello"))[0].startswith(" ")
    assert tokenizer.decode(tokenizer.encode("hello hello")) == "hello hello"


def test_sentencepiece_control_tokens_and_bos(pieces_of, from_pieces):
    tokenizer = from_pieces()
    assert tokenizer.adds_bos
    assert tokenizer.encode("</s>").tolist() == [pieces_of.eos_id()]
    assert tokenizer.token_bytes(pieces_of.piece_to_id("<0x0A>")) == b"\n"
    assert not from_pieces(add_bos_token=False).adds_bos


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "scores` is missing"),
        ({"scores": np.zeros(3, np.float32)}, "scores` are not one finite number a token"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    ],
)
def test_sentencepiece_metadata_that_cannot_be_used(from_pieces, changes, message):
    with pytest.raises(ModelError, match=message):
        from_pieces(**changes)


def test_backend_is_that_of_a_tokenizer_json_with_the_same_parts():
    """The whole of it once, against a tokenizer put together by hand."""
    metadata = byte_level()
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split()) for m in metadata["tokenizer.ggml.merges"]]
    by_hand = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    by_hand.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    by_hand.add_special_tokens(["<bos>", "<eos>"])
    by_hand.add_tokens(["<user>"])
    ours = tokenizer_from_gguf(metadata, FILE)
    for text in ("hello wor 19\n\n7", "<bos>café<user> hell<eos>\n", "日本 he", ""):
        assert ours.encode(text).tolist() == by_hand.encode(text).ids

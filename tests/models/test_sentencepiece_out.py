"""`tokenizer.model` out, against the library that reads it; what llama.cpp's converter asks for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from instructjax.models.checkpoints.gguf_pretokenizers import pretokenizer_for
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf
from instructjax.models.checkpoints.hf_tokenizer import tokenizer_from_folder
from instructjax.models.checkpoints.hf_tokenizer_out import write_tokenizer
from instructjax.models.checkpoints.sentencepiece_out import fits, sentencepiece_model
from instructjax.prompts.tokenizer import Tokenizer

spm = pytest.importorskip("sentencepiece")

TEXTS = [" hello  world ", "日本 Größe\n\nthe", "aaaa aaa", "▁the", "x"]


@pytest.fixture
def from_gguf(sentencepiece_metadata):
    """Makes our tokenizer of the metadata that llama.cpp's converter makes of a model."""
    return lambda data, **changes: tokenizer_from_gguf(
        sentencepiece_metadata(data, **changes), Path("m")
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_the_library_gives_a_text_our_ids(sentencepiece_file, sentences, from_gguf, prefix):
    original = sentencepiece_file
    tokenizer = from_gguf(original, add_space_prefix=prefix)
    data = sentencepiece_model(tokenizer)
    assert data is not None and fits(data, tokenizer.backend)
    again, before = (spm.SentencePieceProcessor(model_proto=d) for d in (data, original))
    for text in [*sentences, *TEXTS]:
        assert again.encode(text) == tokenizer.encode(text).tolist()
        assert again.encode(text) == before.encode(text) or not prefix
    for what in ("bos_id", "eos_id", "unk_id", "get_piece_size"):
        assert getattr(again, what)() == getattr(before, what)()
    for i in range(before.get_piece_size()):
        assert again.id_to_piece(i) == before.id_to_piece(i)
        for what in ("is_byte", "is_unknown", "is_control"):
            assert getattr(again, what)(i) == getattr(before, what)(i)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_a_folder_keeps_the_file_it_came_with(sentencepiece_file, from_gguf, family, tmp_path):
    original = sentencepiece_file
    built, tokenizer = tmp_path / "built", from_gguf(original, add_space_prefix=family == "llama")
    for folder in (built, tmp_path / "copied", tmp_path / "other"):
        folder.mkdir()
    write_tokenizer(tokenizer, built, max_positions=64, family=family)
    assert json.loads((built / "tokenizer_config.json").read_text())["add_prefix_space"] is (
        family == "llama"
    )
    (built / "tokenizer.model").write_bytes(original)
    again = tokenizer_from_folder(built, {"eos_token_id": 2}, name="again")
    for text in TEXTS:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    write_tokenizer(again, tmp_path / "copied", max_positions=64, family=family)
    assert (tmp_path / "copied" / "tokenizer.model").read_bytes() == original
    # of another vocabulary
    wrong = original.replace("▁the".encode(), "▁thE".encode())
    assert wrong != original and len(wrong) == len(original)
    for damaged in (wrong, b"IQ== 0\nIg== 1\n", original[:-3], b"", b"\xff" * 40):
        (built / "tokenizer.model").write_bytes(damaged)
        read = tokenizer_from_folder(built, {"eos_token_id": 2}, name="again")
        assert read.sentencepiece is None, damaged[:20]


def byte_level():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<eos>", *letters, "19", "Ġa"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("1", "9"), ("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(backend, eos_ids=(0,))


def test_runs_of_spaces_that_the_user_defined_are_whole(sentencepiece_metadata, sentencepiece_file):
    """As Gemma has them; GGUF files have their spaces as they are in texts."""
    metadata = sentencepiece_metadata(sentencepiece_file, add_space_prefix=False)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("<user>")] = "   "
    tokenizer = tokenizer_from_gguf(metadata, Path("m"))
    library = spm.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer))
    for text in ("the   thing", "   a", "a  b    c"):
        assert library.encode(text) == tokenizer.encode(text).tolist()
        assert (tokens.index("   ") in library.encode(text)) or "   " not in text


def test_a_foreign_vocabulary_of_qwen2_is_read_as_written(tmp_path):
    tokenizer = byte_level()
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    assert tokenizer.pieces(tokenizer.encode("19")) == ["19"]  # Qwen2's digits stay apart
    with pytest.warns(UserWarning, match="transformers 5 cuts texts as Qwen2 does"):
        write_tokenizer(tokenizer, tmp_path, max_positions=64, family="qwen2")
    again = tokenizer_from_folder(tmp_path, {"model_type": "qwen2"}, name="again")
    for text in ("a 19 a", " 1999", "é日 a"):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_qwen2s_own_cuts_are_written_without_a_word(tmp_path, recwarn):
    tokenizer = byte_level()
    tokenizer.backend.pre_tokenizer = pretokenizer_for("qwen2", tmp_path).build()
    write_tokenizer(tokenizer, tmp_path, max_positions=64, family="qwen2")
    assert not recwarn.list


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_byte_level_has_no_such_file_and_the_class_the_converter_asks_for(family, tmp_path):
    tokenizer = byte_level()
    write_tokenizer(tokenizer, tmp_path, max_positions=64, family=family)
    assert not (tmp_path / "tokenizer.model").exists()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"] == "GPT2Tokenizer") == (family == "phi3")
    assert "add_prefix_space" not in config
    again = tokenizer_from_folder(tmp_path, {"model_type": family}, name="again")
    for text in ("a 19 a", " 1999", "é日"):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_what_sentencepiece_would_cut_otherwise_is_not_written(sentencepiece_file, from_gguf):
    tokenizer = from_gguf(sentencepiece_file)
    whole = json.loads(tokenizer.backend.to_str())
    fewer = {**whole, "model": {**whole["model"], "merges": whole["model"]["merges"][1:]}}
    lower = tokenizers.Tokenizer.from_str(json.dumps(whole))
    lower.normalizer = normalizers.Lowercase()
    cut = tokenizers.Tokenizer.from_str(json.dumps(whole))
    cut.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    for backend in (tokenizers.Tokenizer.from_str(json.dumps(fewer)), lower, cut):
        assert sentencepiece_model(dataclasses.replace(tokenizer, backend=backend)) is None
    assert sentencepiece_model(tokenizer) is not None

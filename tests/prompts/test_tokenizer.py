"""The tokenizer wrapper: ids as the backend gives them, bytes as the text has them."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instructjax.errors import ModelError, PromptError, UsageError
from instructjax.prompts.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


def test_ids_are_the_backends_without_what_a_post_processor_adds(byte_level, make_tokenizer):
    backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    assert backend.encode("hello").ids[0] == 0
    tokenizer = Tokenizer(backend, bos_id=0, eos_ids=(2,))
    ids = tokenizer.encode("hello<|im_end|>")
    assert ids.dtype == np.int32
    assert ids[0] != 0 and ids[-1] == 2 and (ids == 2).sum() == 1


def test_truncation_and_padding_of_the_backend_are_ignored_and_left_alone(byte_level):
    backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("hello world peace")) == "hello world peace"
    assert len(backend.encode("hello world peace").ids) == 50


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_bytes_of_byte_level_tokens_are_the_text(byte_level, text):
    tokenizer = Tokenizer(byte_level)
    for ids in (tokenizer.encode(text), tokenizer.encode_continuation(text)):
        assert b"".join(tokenizer.token_bytes(int(i)) for i in ids) == text.encode()
        assert tokenizer.decode(ids) == text


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_a_continuation_has_no_space_of_the_tokenizers_own(make_spaced_tokenizer, text):
    tokenizer = make_spaced_tokenizer()
    assert tokenizer.has_prefix_space
    assert tokenizer.decode(tokenizer.encode_continuation(text)) == text
    if "<" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) in (text, " " + text)


def test_the_prefix_space_of_a_byte_level_tokenizer_is_dropped_too(spaced_byte_level):
    tokenizer = Tokenizer(spaced_byte_level)
    assert tokenizer.decode(tokenizer.encode("hello")) == " hello"
    assert tokenizer.decode(tokenizer.encode_continuation("hello")) == "hello"


def test_without_a_prefix_space_there_is_one_backend(make_tokenizer):
    assert not make_tokenizer().has_prefix_space


def test_bytes_of_hand_made_tokens():
    vocab = {"▁the": 0, "<0xE2>": 1, "a<0x41>": 2, "<unk>": 3, "</s>": 4}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>", "<｜end▁of▁text｜>"])
    tokenizer = Tokenizer(backend, eos_ids=(4,))
    given = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    # An added token is its own text: its "▁" is no space.
    special = "<｜end▁of▁text｜>".encode()
    assert given == [b" the", b"\xe2", b"a<0x41>", b"<unk>", b"</s>", special]


def test_an_added_token_outside_the_byte_alphabet_is_its_own_text(byte_level):
    backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
    backend.add_tokens(["é", "  "])
    tokenizer = Tokenizer(backend)
    (e,) = tokenizer.encode("é")
    assert tokenizer.token_bytes(e) == "é".encode()
    assert tokenizer.decode(tokenizer.encode("é  é")) == "é  é"


def test_pieces_show_bytes_of_a_divided_character():
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "Ã": 1, "©": 2}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("aé")
    assert tokenizer.pieces(ids) == ["a", "\\xc3", "\\xa9"]
    assert tokenizer.decode(ids[:2]) == "a\ufffd"


def test_ids_out_of_range_are_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match="no id of a vocabulary"):
            tokenizer.decode([wrong])
    with pytest.raises(ModelError, match="names no token"):
        make_tokenizer(eos_ids=(10_000,))


def test_a_lone_surrogate_is_a_prompt_error(make_tokenizer):
    with pytest.raises(PromptError, match="surrogate"):
        make_tokenizer().encode("a\ud800")


def test_dropout_is_refused():
    with pytest.raises(ModelError, match="dropout"):
        Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)))


def test_fingerprints_tell_tokenizers_apart(byte_level, make_tokenizer):
    first = make_tokenizer()
    assert first.fingerprint == make_tokenizer().fingerprint
    assert len(first.fingerprint) == 64
    other = tokenizers.Tokenizer.from_str(byte_level.to_str())
    other.add_tokens(["Jupiter"])
    different = [
        make_tokenizer(eos_ids=(0,)),
        make_tokenizer(adds_bos=True),
        Tokenizer(other, bos_id=0, eos_ids=(2,)),
    ]
    assert len({first.fingerprint, *(t.fingerprint for t in different)}) == 4
    assert first.template_fingerprint != make_tokenizer("trims").template_fingerprint
    assert make_tokenizer(None).template_fingerprint is None


class TestFromTransformers:
    def wrap(self, backend, **settings) -> PreTrainedTokenizerFast:
        copy = tokenizers.Tokenizer.from_str(backend.to_str())
        return PreTrainedTokenizerFast(tokenizer_object=copy, **settings)

    def test_ids_and_rules(self, byte_level):
        reference = self.wrap(
            byte_level, bos_token="<|endoftext|>", eos_token="<|im_end|>", chat_template="x"
        )
        tokenizer = Tokenizer.from_transformers(reference, eos_ids=[0, 2], name="m")
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (0, (2, 0), False)
        assert (tokenizer.chat_template, tokenizer.name) == ("x", "m")
        text = "Jupiter is<|im_end|> the largest"
        assert tokenizer.encode(text).tolist() == reference(text)["input_ids"]

    def test_bos_added_by_a_post_processor(self, byte_level):
        backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        reference = self.wrap(backend, bos_token="<|endoftext|>", eos_token="<|im_end|>")
        assert Tokenizer.from_transformers(reference).adds_bos

    def test_later_changes_to_the_original_do_not_reach_the_wrapper(self, byte_level):
        reference = self.wrap(byte_level, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer = Tokenizer.from_transformers(reference)
        before = tokenizer.encode("hello world peace").tolist()
        reference(["hello world peace"], truncation=True, max_length=1)
        reference.add_tokens(["world"])
        assert tokenizer.encode("hello world peace").tolist() == before

    def test_slow_tokenizers_are_refused_by_name(self):
        class SlowTokenizer:
            chat_template = None

        with pytest.raises(ModelError, match="SlowTokenizer"):
            Tokenizer.from_transformers(SlowTokenizer())

    def test_of_several_templates_the_default_is_taken(self, byte_level):
        reference = self.wrap(byte_level, eos_token="<|im_end|>")
        reference.chat_template = {"default": "d", "tool_use": "t"}
        assert Tokenizer.from_transformers(reference).chat_template == "d"
        reference.chat_template = {"rag": "r", "tool_use": "t"}
        with pytest.warns(UserWarning, match="rag, tool_use, and none is called `default`"):
            assert Tokenizer.from_transformers(reference).chat_template is None

"""Ids are the text, and y's span is y's: exact, joint, and what cannot be kept."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions, Tokenizer
from instructjax.prompts.boundary import Segment, encode_exact, encode_joint, locate_tokens

WORDS = [
    "hello wor",
    "ld peace",
    "http:",
    "//x.org",
    "Größe",
    " ",
    "\n\n",
    "日本",
    "語の",
    "é",
    "'s",
]
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=5).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<▁"), max_size=15),
)


def encode(tokenizer, c, z, y, boundary, include_eos=True):
    options = PromptOptions(layout="raw", boundary=boundary, include_eos=include_eos)
    example = Example(instruction=c, input=z, output=y)
    return PromptEncoder(tokenizer, options).encode(example, row=0)[0]


@given(c=TEXT, z=TEXT, y=TEXT.filter(bool), include_eos=st.booleans())
@settings(max_examples=150, deadline=None)
def test_law_5_exact_is_faithful_and_never_straddles(make_tokenizer, c, z, y, include_eos):
    tokenizer = make_tokenizer()
    request = encode(tokenizer, c, z, y, "exact", include_eos)
    ((start, stop),) = request.spans
    assert stop == len(request.ids)
    assert tokenizer.decode(request.ids[:start]) == ((c + z) or "<|endoftext|>")
    assert tokenizer.decode(request.ids[start:]) == y + ("<|im_end|>" if include_eos else "")
    assert not any(flag.startswith("spans") for flag in request.flags)
    assert request.num_bytes == len(y.encode())


@given(c=TEXT.filter(bool), y=TEXT.filter(bool))
@settings(max_examples=200, deadline=None)
def test_law_5_joint_is_flagged_if_and_only_if_a_token_straddles(byte_level, make_tokenizer, c, y):
    # The twin: a byte-level token has one character a byte, so its length is its size in bytes.
    ids = byte_level.encode(c + y, add_special_tokens=False).ids
    ends = np.cumsum([len(byte_level.id_to_token(i)) for i in ids]).tolist()
    size = len(c.encode())
    straddles = size not in ends
    first = next(k for k, end in enumerate(ends) if end > size)
    try:
        request = encode(make_tokenizer(), c, "", y, "joint")
    except PromptError as error:
        assert first == 0 and "no prompt token is left" in str(error)
        return
    assert request.ids.tolist() == [*ids, 2]
    assert request.spans == ((first, len(ids) + 1),)
    assert ("spans_join" in request.flags) == straddles


@given(c=TEXT, z=TEXT, y=TEXT.filter(bool))
@settings(max_examples=100, deadline=None)
def test_law_5_spaced_tokenizers_keep_text_and_y(make_spaced_tokenizer, c, z, y):
    tokenizer = make_spaced_tokenizer()
    request = encode(tokenizer, c, z, y, "exact")
    ((start, _),) = request.spans
    assert tokenizer.decode(request.ids[start:]) == y + "</s>"
    prompt = tokenizer.decode(request.ids[:start])
    assert prompt in ("<s>" + c + z, "<s> " + c + z)
    joint = encode(tokenizer, c, z, y, "joint")
    assert tokenizer.decode(joint.ids) in (f"<s>{c}{z}{y}</s>", f"<s> {c}{z}{y}</s>")


def test_joint_of_a_spaced_tokenizer_has_the_references_ids(sentencepiece_prepend):
    tokenizer = Tokenizer(sentencepiece_prepend, bos_id=1, eos_ids=(2,), adds_bos=True)
    request = encode(tokenizer, "The capital of France", "", " is Paris", "joint")
    reference = sentencepiece_prepend.encode("The capital of France is Paris").ids
    assert request.ids.tolist() == [1, *reference, 2]
    assert tokenizer.decode(request.target_ids) == " is Paris</s>"
    assert request.flags == ()


@pytest.mark.parametrize(
    ("c", "y", "where"),
    [
        ("cafe\u0301", "y", r"prompt: from character 3 on"),
        ("c", "a nai\u0308ve", r"response: from character 4 on"),
    ],
)
def test_text_that_a_normalizer_changes_is_refused_with_its_place(nfc_backend, c, y, where):
    tokenizer = Tokenizer(nfc_backend, bos_id=0, eos_ids=(2,))
    with pytest.raises(PromptError, match=f"does not keep the {where}.*NFC"):
        encode(tokenizer, c, "", y, "exact")
    assert encode(tokenizer, "café", "", "naïve", "exact").num_bytes == 6


def test_text_that_becomes_unknown_is_refused():
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({"a": 0, "<unk>": 1, "$": 2}, [], unk_token="<unk>")
    )
    tokenizer = Tokenizer(backend, eos_ids=(2,))
    with pytest.raises(PromptError, match="response: from character 1 on, 'b' becomes '<unk>'"):
        encode(tokenizer, "a", "", "ab", "exact")


def test_text_without_any_tokens_is_refused():
    # This tokenizer has no unknown token and drops what it does not know.
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "$": 1}, []))
    with pytest.raises(PromptError, match="response: from character 0 on, 'b' becomes ''"):
        encode(Tokenizer(backend, eos_ids=(1,)), "a", "", "b", "exact")


def test_the_space_sign_of_sentencepiece_is_refused(make_spaced_tokenizer):
    with pytest.raises(PromptError, match="'▁b' becomes ' b'"):
        encode(make_spaced_tokenizer(), "a", "", "a▁b", "exact")


class TestAddedTokensThatStrip:
    """Phi-3's <|end|> takes in the white space behind it."""

    def tokenizer(self, byte_level) -> Tokenizer:
        backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
        backend.add_special_tokens(
            [
                tokenizers.AddedToken("<|end|>", rstrip=True, special=True),
                tokenizers.AddedToken("<|mask|>", lstrip=True, special=True),
            ]
        )
        return Tokenizer(backend, bos_id=0, eos_ids=(2,))

    def test_in_a_prompt_it_is_the_references_way(self, byte_level):
        tokenizer = self.tokenizer(byte_level)
        text = "hi<|end|> \n yes \u2003<|mask|>no<|end|>\n"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == "hi<|end|>yes<|mask|>no<|end|>"
        starts = locate_tokens(tokenizer, ids, text, what="prompt", at_start=True)
        (end,), (mask,) = tokenizer.encode("<|end|>"), tokenizer.encode("<|mask|>")
        data = text.encode()
        pieces = {
            int(i): data[a:b].decode() for i, a, b in zip(ids, starts[:-1], starts[1:], strict=True)
        }
        assert pieces[mask] == " \u2003<|mask|>"
        assert starts[0] == 0 and starts[-1] == len(data)
        assert data[starts[-2] :] == b"<|end|>\n" and ids[-1] == end

    def test_in_a_response_it_would_lose_text(self, byte_level):
        options = PromptOptions(layout="raw", include_eos=False)
        encoder = PromptEncoder(self.tokenizer(byte_level), options)
        (kept,) = encoder.encode(Example(instruction="a", output="b<|end|>c"), row=0)
        assert kept.flags == ("special_in_text",)


def test_text_between_turns_is_encoded_as_in_the_middle_of_a_string(make_spaced_tokenizer):
    tokenizer = make_spaced_tokenizer()
    segments = [
        Segment(text="hello"),
        Segment(text=" world", scored=True),
        Segment(text=" peace</s>Paris"),
        Segment(text="yes", scored=True, eos_id=2),
    ]
    made = encode_exact(tokenizer, segments)
    reference = tokenizer.encode("hello world peace</s>Paris")
    assert tokenizer.decode(made.ids) == tokenizer.decode(reference) + "yes</s>"
    assert [tokenizer.decode(made.ids[a:b]) for a, b in made.spans] == [" world", "yes</s>"]
    assert made.data == b"hello world peace</s>Parisyes</s>"
    assert made.starts[made.spans[0][0]] == len("hello")


def test_a_token_over_the_end_of_an_earlier_turn_is_flagged(make_tokenizer):
    tokenizer = make_tokenizer()
    before, after = Segment(text="hello "), Segment(text="ld peace")
    middle, last = Segment(text="wor", scored=True), Segment(text="!", scored=True)
    made = encode_joint(tokenizer, [before, middle, after, last])
    assert tokenizer.pieces(made.ids[slice(*made.spans[0])]) == [" world"]
    assert made.spans_join
    clean = encode_joint(tokenizer, [before, Segment(text="<|im_end|>", scored=True), after, last])
    assert not clean.spans_join


def test_a_token_over_only_the_end_of_an_earlier_turn_is_flagged(make_tokenizer):
    tokenizer = make_tokenizer()
    made = encode_joint(
        tokenizer,
        [
            Segment(text="hello"),
            Segment(text=" wor", scored=True),
            Segment(text="ld"),
            Segment(text=" peace", scored=True),
        ],
    )
    assert tokenizer.pieces(made.ids[slice(*made.spans[0])]) == [" world"]
    assert tokenizer.pieces(made.ids[slice(*made.spans[1])]) == [" peace"]
    assert made.spans_join


def test_text_behind_an_end_of_turn_has_the_references_ids(make_spaced_tokenizer):
    """Where the tokenizer puts its space after every added token, it does so between turns too."""
    tokenizer = make_spaced_tokenizer()
    segments = [
        Segment(text="hello"),
        Segment(text=" world", scored=True, eos_id=2),
        Segment(text="Paris</s>Jupiter"),
        Segment(text="yes", scored=True),
    ]
    made = encode_exact(tokenizer, segments)
    reference = tokenizer.encode("hello world</s>Paris</s>Jupiter").tolist()
    between = made.ids[made.spans[0][1] : made.spans[1][0]].tolist()
    assert between == reference[reference.index(2) + 1 :]


def test_a_space_of_the_tokenizers_own_is_allowed_at_the_start_only(sentencepiece_prepend):
    tokenizer = Tokenizer(sentencepiece_prepend)
    ids = tokenizer.encode("hello")
    assert tokenizer.decode(ids) == " hello"
    starts = locate_tokens(tokenizer, ids, "hello", what="prompt", at_start=True)
    assert starts[0] == 0 and starts[-1] == 5
    with pytest.raises(PromptError, match="from character 0 on, 'hello' becomes ' hello"):
        locate_tokens(tokenizer, ids, "hello", what="response", at_start=False)

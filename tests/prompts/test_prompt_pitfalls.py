"""Mistakes that tools for this job are known to have made, each with a test that would show it."""

from __future__ import annotations

import pytest
import tokenizers

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions, Tokenizer


def encode(tokenizer, example, **options):
    return PromptEncoder(tokenizer, PromptOptions(**options)).encode(example, row=0)[0]


@pytest.mark.parametrize(
    ("c", "y"), [("http:", "//x.org"), ("hello wor", "ld peace"), ("The capital of", " France is")]
)
@pytest.mark.parametrize("boundary", ["exact", "joint"])
def test_pitfall_boundary_merge(make_tokenizer, c, y, boundary):
    """Gluing encode(c) and a slice of encode(c + y) scores a text that nobody wrote."""
    tokenizer = make_tokenizer()
    request = encode(tokenizer, Example(instruction=c, output=y), layout="raw", boundary=boundary)
    assert tokenizer.decode(request.ids) == c + y + "<|im_end|>"
    if boundary == "exact":
        assert tokenizer.decode(request.target_ids) == y + "<|im_end|>"


def test_pitfall_boundary_merge_is_reported(make_tokenizer):
    tokenizer = make_tokenizer()
    assert " world" in tokenizer.pieces(tokenizer.encode("hello world peace"))
    request = encode(
        tokenizer,
        Example(instruction="hello wor", output="ld peace"),
        layout="raw",
        boundary="joint",
    )
    assert request.flags == ("spans_join",)
    assert tokenizer.decode(request.target_ids) == " world peace<|im_end|>"


def test_pitfall_template_white_space_scored_as_y(make_tokenizer):
    """The newline of "<|im_start|>assistant\\n" is the template's, never y's."""
    tokenizer = make_tokenizer()
    for boundary in ("exact", "joint"):
        request = encode(tokenizer, Example(instruction="c", output="yes"), boundary=boundary)
        assert tokenizer.decode(request.target_ids) == "yes<|im_end|>"
        assert tokenizer.decode(request.ids[: request.spans[0][0]]).endswith("assistant\n")


def test_pitfall_leading_space_of_y_kept(make_tokenizer):
    tokenizer = make_tokenizer()
    with_space, without = PromptEncoder(tokenizer, PromptOptions(layout="raw")).encode(
        Example(instruction="Answer:", output=[" yes", "yes"]), row=0
    )
    assert tokenizer.decode(with_space.target_ids) == " yes<|im_end|>"
    assert tokenizer.decode(without.target_ids) == "yes<|im_end|>"
    assert with_space.num_bytes == without.num_bytes + 1
    doubled = encode(tokenizer, Example(instruction="Answer: ", output=" yes"), layout="raw")
    assert doubled.flags == ("double_space",)


@pytest.mark.parametrize("layout", ["user", "plain", "raw", "alpaca"])
def test_pitfall_bos_missing(make_tokenizer, layout):
    tokenizer = make_tokenizer("trims", adds_bos=True)
    request = encode(tokenizer, Example(instruction="c", output="y"), layout=layout)
    assert request.ids[0] == 0 and request.ids[1] != 0


def test_pitfall_double_bos(make_tokenizer):
    """The template writes BOS; the tokenizer, which would add one too, must not."""
    request = encode(make_tokenizer("trims", adds_bos=True), Example(instruction="c", output="y"))
    assert (request.ids == 0).sum() == 1
    with pytest.raises(PromptError, match=r"row 1: the prompt begins with two <\|endoftext\|>"):
        encode(make_tokenizer("two_bos"), Example(instruction="c", output="y"))
    example = Example(instruction="<|endoftext|><|endoftext|>c", output="y")
    with pytest.raises(PromptError, match="begins with two"):
        encode(make_tokenizer(adds_bos=True), example, layout="raw")


def test_pitfall_delimiter_between_template_and_y(make_tokenizer):
    tokenizer = make_tokenizer()
    request = encode(tokenizer, Example(instruction="c", output="yes"))
    assert tokenizer.decode(request.ids).endswith("<|im_start|>assistant\nyes<|im_end|>")


def test_pitfall_newline_after_the_end_of_turn(make_tokenizer):
    """ChatML writes "<|im_end|>\\n"; the newline is never generated, so never scored."""
    request = encode(make_tokenizer(), Example(instruction="c", output="yes"))
    assert request.ids[-1] == 2 and (request.target_ids == 2).sum() == 1


def test_pitfall_eos_is_explicit(make_tokenizer):
    example = Example(instruction="c", output="yes")
    with_eos, without = (
        encode(make_tokenizer(), example, include_eos=choice) for choice in (True, False)
    )
    assert with_eos.ids.tolist() == [*without.ids.tolist(), 2]
    assert with_eos.num_bytes == without.num_bytes == 3


def test_pitfall_eos_lost_to_truncation(make_tokenizer):
    example = Example(instruction="words " * 20, output="yes")
    whole = encode(make_tokenizer(), example)
    for side in ("left", "middle"):
        request = encode(make_tokenizer(), example, truncation=side, max_length=len(whole.ids) - 10)
        assert request.ids[-1] == 2 and request.num_tokens == whole.num_tokens


def test_pitfall_empty_assistant_mask(make_tokenizer):
    """No template here has generation tags; spans come from rendering, and none is empty."""
    history = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    for name in ("chatml", "trims", "no_system", "thinking"):
        example = Example(instruction="c", output="y", history=history)
        request = encode(make_tokenizer(name), example, turns="all")
        assert len(request.spans) == 2
        assert all(1 <= start < stop for start, stop in request.spans)


def test_pitfall_pad_is_eos(make_tokenizer):
    """Turns of the prompt end with the token that is EOS and pad; the span is still y alone."""
    tokenizer = make_tokenizer(special_tokens={"pad_token": "<|im_end|>"})
    history = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    request = encode(tokenizer, Example(instruction="c", output="yes", history=history))
    assert (request.ids == 2).sum() == 5
    assert tokenizer.decode(request.target_ids) == "yes<|im_end|>"
    assert request.spans == ((len(request.ids) - request.num_tokens, len(request.ids)),)


@pytest.mark.parametrize("side", ["left", "middle"])
def test_pitfall_truncation_drops_bos_or_header(make_tokenizer, side):
    tokenizer = make_tokenizer("trims")
    example = Example(instruction="words " * 20, output="yes")
    whole = encode(tokenizer, example)
    request = encode(tokenizer, example, truncation=side, max_length=len(whole.ids) - 10)
    text = tokenizer.decode(request.ids)
    assert text.startswith("<|endoftext|><|im_start|>user\n\n")
    assert text.endswith("<|im_end|><|im_start|>assistant\n\nyes<|im_end|>")
    assert request.flags == ("truncated=10",)


def test_pitfall_padding_in_the_ids(byte_level, make_tokenizer):
    """A tokenizer left with padding and truncation switched on changes nothing."""
    backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
    backend.enable_padding(direction="left", length=99, pad_id=2)
    backend.enable_truncation(3)
    settings = {"chat_template": make_tokenizer().chat_template, "bos_id": 0, "eos_ids": (2,)}
    example = Example(instruction="c", input="hello world peace", output="yes")
    padded = encode(Tokenizer(backend, **settings), example)
    assert padded.ids.tolist() == encode(make_tokenizer(), example).ids.tolist()

"""Token ids given instead of text are used as they are, or refused with the row's name."""

from __future__ import annotations

import numpy as np
import pytest

from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions


def test_ids_are_used_verbatim(make_tokenizer):
    # No template is needed, two BOS are the caller's business, and no EOS is appended.
    encoder = PromptEncoder(make_tokenizer(None))
    example = Example(prompt_ids=[0, 0, 40], output_ids=[[41, 42], [43]])
    first, second = encoder.encode(example, row=5)
    assert first.ids.tolist() == [0, 0, 40, 41, 42] and first.ids.dtype == np.int32
    assert (first.spans, second.spans) == (((3, 5),), ((3, 4),))
    assert (second.row, second.candidate) == (5, 1)


def test_bytes_are_counted_without_a_last_eos(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("Größe").tolist()
    for output in (ids, [*ids, 2]):
        (request,) = PromptEncoder(tokenizer).encode(
            Example(prompt_ids=[0], output_ids=output), row=0
        )
        assert request.num_bytes == 7


def test_ids_that_only_the_model_knows_are_allowed(make_tokenizer):
    tokenizer = make_tokenizer()
    example = Example(prompt_ids=[0], output_ids=[tokenizer.vocab_size])
    (request,) = PromptEncoder(tokenizer, vocab_size=tokenizer.vocab_size + 1).encode(
        example, row=0
    )
    assert request.num_bytes == 0
    with pytest.raises(PromptError, match=f"row 1: output_ids hold {tokenizer.vocab_size}"):
        PromptEncoder(tokenizer).encode(example, row=0)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"prompt_ids": [0, -1], "output_ids": [1]}, "prompt_ids hold -1"),
        ({"prompt_ids": [0], "output_ids": [2**40]}, "output_ids hold 1099511627776"),
        ({"prompt_ids": [], "output_ids": [1]}, "prompt_ids are empty; give at least BOS"),
        ({"prompt_ids": [0], "output_ids": []}, "the response is empty"),
        ({"prompt_ids": [0], "output_ids": [[1], []]}, "the response is empty"),
        ({"prompt_ids": [0]}, "only one of prompt and response"),
        ({"output_ids": [0], "instruction": "c"}, "only one of prompt and response"),
        ({"prompt_ids": [0], "output": "y"}, "only one of prompt and response"),
        ({"prompt_ids": [0] * 9, "output_ids": [1] * 9}, "18 tokens, more than 12"),
    ],
)
def test_wrong_ids_name_the_row(make_tokenizer, example, reason):
    encoder = PromptEncoder(make_tokenizer(), PromptOptions(max_length=12, truncation="left"))
    with pytest.raises(PromptError, match=f"mine: .*{reason}"):
        encoder.encode(Example(id="mine", **example), row=0)


def test_floats_are_no_ids(make_tokenizer):
    example = Example(prompt_ids=[0], output_ids=[1])
    object.__setattr__(example, "prompt_ids", [0.5, 1.0])
    with pytest.raises(PromptError, match="no list of whole numbers"):
        PromptEncoder(make_tokenizer()).encode(example, row=0)


@pytest.mark.parametrize("context", ["c", "z", "none"])
def test_ids_have_no_c_or_z_to_drop(make_tokenizer, context):
    with pytest.raises(PromptError, match="token ids show neither"):
        PromptEncoder(make_tokenizer()).encode(
            Example(prompt_ids=[0], output_ids=[1]), row=0, context=context
        )

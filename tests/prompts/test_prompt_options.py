"""Options are checked when they are made."""

from __future__ import annotations

import pytest

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.prompts import PromptEncoder, PromptOptions


@pytest.mark.parametrize(
    ("options", "listed"),
    [
        ({"layout": "chat"}, "user, system, plain, alpaca, raw"),
        ({"max_length": 1}, "at least 2"),
        ({"turns": "all", "layout": "plain"}, "user or system"),
    ],
)
def test_wrong_values_list_the_right_ones(options, listed):
    with pytest.raises(UsageError, match=listed) as caught:
        PromptOptions(**options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("option", "listed"),
    [("boundary", "exact, joint"), ("truncation", "error, left, middle"), ("turns", "last, all")],
)
def test_wrong_choices_list_the_right_ones(option, listed):
    # Set from outside, for a type checker would already refuse the call.
    options = PromptOptions()
    object.__setattr__(options, option, "other")
    with pytest.raises(UsageError, match=listed):
        options.__post_init__()


def test_an_unknown_context_lists_the_known(make_tokenizer):
    encoder = PromptEncoder(make_tokenizer())
    with pytest.raises(UsageError, match="cz, c, z, none"):
        encoder.encode(Example(instruction="c", output="y"), row=0, context="zc")

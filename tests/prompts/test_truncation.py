"""What is too long is refused, or cut where a person wrote it and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
CONTENT = st.text("ab cé日語\n", min_size=1, max_size=60)


def encode(tokenizer, example, **options):
    return PromptEncoder(tokenizer, PromptOptions(**options)).encode(example, row=0)


@pytest.mark.parametrize(
    "example",
    [
        Example(instruction="c", input="z " * 50, output="y"),
        Example(prompt_ids=[1] * 30, output_ids=[2] * 30),
    ],
)
@pytest.mark.parametrize("truncation", ["error", "left"])
def test_the_limit_of_the_model_is_not_to_be_raised(make_tokenizer, example, truncation):
    # Under "left" the response alone is too long.
    if truncation == "left" and example.output is not None:
        example = Example(instruction="c", output="y " * 50)
    options = PromptOptions(max_length=40, truncation=truncation)
    remedies = []
    for longest in (None, 41, 40):
        encoder = PromptEncoder(make_tokenizer(), options, max_positions=longest)
        with pytest.raises(PromptError) as caught:
            encoder.encode(example, row=0)
        remedies.append(caught.value.remedy)
    assert remedies[0] == remedies[1] == f"raise max_length, or {remedies[2]}"
    assert "max_length" not in remedies[2]


def test_too_long_is_an_error_by_default(make_tokenizer):
    example = Example(id="r3", instruction="c", input="z " * 50, output="y")
    (whole,) = encode(make_tokenizer(), example)
    length = len(whole.ids)
    with pytest.raises(PromptError, match=f"r3: .* {length} tokens, more than {length - 1}"):
        encode(make_tokenizer(), example, max_length=length - 1)
    (fits,) = encode(make_tokenizer(), example, max_length=length, truncation="left")
    assert fits.ids.tolist() == whole.ids.tolist() and fits.flags == whole.flags


@pytest.mark.parametrize("boundary", ["exact", "joint"])
@pytest.mark.parametrize("side", ["left", "middle"])
@given(content=CONTENT, y=CONTENT, excess=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_law_5_frame_bos_and_y_stay(make_tokenizer, side, boundary, content, y, excess):
    tokenizer = make_tokenizer()
    example = Example(instruction=content, output=y)
    (whole,) = encode(tokenizer, example, boundary=boundary)
    limit = len(whole.ids) - excess
    assume(limit >= 2)
    num_content = len(tokenizer.encode(content))
    options = {"truncation": side, "max_length": limit, "boundary": boundary}
    try:
        (request,) = encode(tokenizer, example, **options)
    except PromptError as error:
        # In joint encoding, a token may hold a part of the frame too, and then stays.
        assert "do not fit" in str(error) and (excess > num_content - 3 or boundary == "joint")
        return
    assert len(request.ids) <= limit
    (flag,) = [flag for flag in request.flags if flag.startswith("truncated=")]
    assert int(flag.removeprefix("truncated=")) == len(whole.ids) - len(request.ids)
    # strict decoding: no character is left half
    text = b"".join(map(tokenizer.token_bytes, request.ids.tolist())).decode()
    assert text.startswith(HEAD) and text.endswith(TAIL + y + "<|im_end|>")
    rest = text[len(HEAD) : len(text) - len(TAIL + y + "<|im_end|>")]
    if side == "left":
        assert content.endswith(rest)
    else:
        assert any(rest == content[:k] + content[len(content) - len(rest) + k :]
                   for k in range(len(rest) + 1))  # fmt: skip
    assert tokenizer.decode(request.target_ids) == y + "<|im_end|>"


def test_left_takes_the_oldest_and_middle_the_centre(make_tokenizer):
    # Single letters with spaces: one token each, so that the expected cut is counted by hand.
    example = Example(instruction="", input=" q q q q w w w w", output="y")
    kept = {}
    for side in ("left", "middle"):
        tokenizer = make_tokenizer()
        assert len(tokenizer.encode(example.input)) == 8 * len(tokenizer.encode(" q"))
        (whole,) = encode(tokenizer, example, layout="raw")
        (request,) = encode(
            tokenizer, example, layout="raw", truncation=side, max_length=len(whole.ids) - 4
        )
        kept[side] = tokenizer.decode(request.ids[: request.spans[0][0]])
    unit = len(make_tokenizer().encode(" q"))
    assert unit in (1, 2)
    if unit == 1:
        assert kept == {"left": " w w w w", "middle": " q q w w"}
    else:
        assert kept == {"left": " q q w w w w", "middle": " q q q w w w"}


def test_history_goes_before_c_and_z_and_system_stays(make_tokenizer):
    tokenizer = make_tokenizer()
    example = Example(
        instruction="question",
        output="y",
        system="system words stay here",
        history=(
            Message(role="user", content="earliest words of all"),
            Message(role="assistant", content="earlier words"),
        ),
    )
    (whole,) = encode(tokenizer, example)
    cut = len(tokenizer.encode("earliest words of all"))
    (request,) = encode(tokenizer, example, truncation="left", max_length=len(whole.ids) - cut)
    assert request.flags == (f"truncated={cut}",)
    text = tokenizer.decode(request.ids)
    assert text == tokenizer.decode(whole.ids).replace("earliest words of all", "")


def test_scored_turns_are_never_cut(make_tokenizer):
    tokenizer = make_tokenizer()
    history = (
        Message(role="user", content="user words " * 5),
        Message(role="assistant", content="answer words " * 5),
    )
    example = Example(instruction="last words " * 5, output="y", history=history)
    (whole,) = encode(tokenizer, example, turns="all")
    (request,) = encode(
        tokenizer, example, turns="all", truncation="left", max_length=len(whole.ids) - 20
    )
    spans = [tokenizer.decode(request.ids[a:b]) for a, b in request.spans]
    assert spans == ["answer words " * 5 + "<|im_end|>", "y<|im_end|>"]
    assert request.flags == ("truncated=20",)
    user_tokens = len(tokenizer.encode("user words " * 5)) + len(
        tokenizer.encode("last words " * 5)
    )
    with pytest.raises(PromptError, match="do not fit"):
        limit = len(whole.ids) - user_tokens - 1
        encode(tokenizer, example, turns="all", truncation="left", max_length=limit)


def test_all_candidates_get_the_same_prompt(make_tokenizer):
    tokenizer = make_tokenizer()
    example = Example(instruction="words " * 30, output=["yes", "no, by no means at all"])
    longest = encode(tokenizer, example)[1]
    first, second = encode(tokenizer, example, truncation="middle", max_length=len(longest.ids) - 9)
    assert len(second.ids) == len(longest.ids) - 9
    start = second.spans[0][0]
    assert first.ids[:start].tolist() == second.ids[:start].tolist()
    assert first.spans[0][0] == start and first.flags == second.flags == ("truncated=9",)


def test_y_that_does_not_fit_is_an_error_that_says_so(make_tokenizer):
    example = Example(instruction="c", output="words " * 40)
    with pytest.raises(PromptError, match="the frame and the response alone do not fit"):
        encode(make_tokenizer(), example, truncation="left", max_length=40)


def test_words_of_the_frame_in_the_content_do_not_mislead(make_tokenizer):
    tokenizer = make_tokenizer("trims")
    example = Example(instruction=" assistant", input="user\n\n\n\nassistant ", output="y")
    (whole,) = encode(tokenizer, example)
    content = "assistant\n\nuser\n\n\n\nassistant"
    (request,) = encode(tokenizer, example, truncation="left", max_length=len(whole.ids) - 1)
    before = "<|endoftext|><|im_start|>user\n\n"
    after = "<|im_end|><|im_start|>assistant\n\ny<|im_end|>"
    text = tokenizer.decode(request.ids)
    assert text.startswith(before) and text.endswith(after)
    assert 0 < len(content) - (len(text) - len(before) - len(after)) <= len("assistant")


def test_a_layout_that_changes_with_its_contents_is_not_cut(make_tokenizer, tmp_path):
    path = tmp_path / "changing.jinja"
    path.write_text("{{ instruction | length }} characters: {{ instruction }}")
    example = Example(instruction="words " * 10, output="y")
    with pytest.raises(PromptError, match="does not show which part of it may be cut"):
        encode(make_tokenizer(), example, layout=path, truncation="left", max_length=10)


def test_a_prompt_without_frame_keeps_a_token_before_y(make_tokenizer):
    tokenizer = make_tokenizer()
    example = Example(instruction="words", output="yes")
    y = len(tokenizer.encode("yes")) + 1
    with pytest.raises(PromptError, match="no prompt token is left"):
        encode(tokenizer, example, layout="raw", truncation="left", max_length=y)

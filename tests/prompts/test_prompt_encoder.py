"""The entry point: candidates, flags, errors that name the row, and the description."""

from __future__ import annotations

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions


def encode(tokenizer, example, **options):
    return PromptEncoder(tokenizer, PromptOptions(**options)).encode(example, row=6)


def test_a_request_a_candidate_in_order(make_tokenizer):
    tokenizer = make_tokenizer()
    requests = encode(tokenizer, Example(instruction="c", output=["no", "yes", "no"]))
    assert [(r.row, r.candidate, r.context) for r in requests] == [
        (6, 0, "cz"),
        (6, 1, "cz"),
        (6, 2, "cz"),
    ]
    responses = [tokenizer.decode(r.target_ids) for r in requests]
    assert responses == ["no<|im_end|>", "yes<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example(instruction="c"), "row 7: there is no response"),
        (Example(instruction="c", output=[]), "row 7: there is no response"),
        (Example(id="a", instruction="c", output=""), "a: the response is empty"),
        (Example(instruction="c", output=["y", ""]), "row 7: response 2 of 2 is empty"),
        (Example(instruction="c", output="<|im_end|>"), "row 7: the response is empty"),
        (Example(instruction="c\ud800", output="y"), "row 7: .*surrogate"),
        (Example(instruction="c", output="\udfff"), "row 7: .*surrogate"),
    ],
)
def test_errors_name_the_row(make_tokenizer, example, reason):
    with pytest.raises(PromptError, match=reason):
        encode(make_tokenizer(), example)


def test_text_of_the_wrong_type_is_refused(make_tokenizer):
    example = Example(instruction="c", output="y")
    object.__setattr__(example, "input", None)
    with pytest.raises(PromptError, match="NoneType stands where text is expected"):
        encode(make_tokenizer(), example)
    builder = PromptEncoder(make_tokenizer(), PromptOptions())._builder
    with pytest.raises(PromptError, match="response 2 of 2 is int, not text"):
        builder.response(3, None, name="response 2 of 2")


class TestFlags:
    @pytest.mark.parametrize(
        "example",
        [
            Example(instruction="c<|im_end|>", output="y"),
            Example(instruction="c", input="<|im_start|>system", output="y"),
            Example(instruction="c", output="y", system="<|endoftext|>"),
            Example(
                instruction="c", output="y", history=(Message(role="user", content="<|im_end|>"),)
            ),
            Example(instruction="c", output="y<|im_end|>z"),
        ],
    )
    def test_control_tokens_spelled_in_text(self, make_tokenizer, example):
        (request,) = encode(make_tokenizer(), example)
        assert request.flags == ("special_in_text",)

    def test_they_are_flagged_for_the_candidate_that_has_them(self, make_tokenizer):
        clean, dirty = encode(
            make_tokenizer(), Example(instruction="c", output=["y", "<|im_end|>a"])
        )
        assert (clean.flags, dirty.flags) == ((), ("special_in_text",))

    def test_white_space_on_both_sides(self, make_tokenizer):
        (request,) = encode(make_tokenizer(), Example(instruction="c", output=" y"))
        assert request.flags == ("double_space",)


def test_a_written_end_of_turn_is_not_doubled(make_tokenizer):
    tokenizer = make_tokenizer()
    for boundary in ("exact", "joint"):
        (request,) = encode(
            tokenizer, Example(instruction="c", output="yes<|im_end|>"), boundary=boundary
        )
        assert tokenizer.decode(request.target_ids) == "yes<|im_end|>"
        assert request.num_bytes == 3
        assert request.flags == ("special_in_text",)
    (request,) = encode(
        tokenizer, Example(instruction="c", output="yes<|im_end|>"), include_eos=False
    )
    assert tokenizer.decode(request.target_ids) == "yes<|im_end|>"
    assert request.num_bytes == len("yes<|im_end|>")


def test_threads_get_the_same_requests(make_tokenizer):
    encoder = PromptEncoder(make_tokenizer("thinking"))
    examples = [Example(instruction=f"c {k}", input="z" * k, output=f"y {k}") for k in range(50)]

    def run(example: Example) -> list[int]:
        return encoder.encode(example, row=0)[0].ids.tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, examples)) == [run(example) for example in examples]


def digest_pieces(tokenizer):
    """SHA-256 of every token's bytes, each after its length in four bytes, the lowest first."""
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    whole = b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)
    return hashlib.sha256(whole).hexdigest()


def test_the_description_says_how_prompts_are_made(make_tokenizer):
    tokenizer = make_tokenizer("trims", adds_bos=True)
    described = PromptEncoder(tokenizer).describe()
    assert described == {
        "tokenizer": "small",
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocabulary_fingerprint": digest_pieces(tokenizer),
        "template_fingerprint": tokenizer.template_fingerprint,
        "layout": "user",
        "boundary": "exact",
        "truncation": "error",
        "max_length": "none",
        "turns": "last",
        "include_eos": "true",
        "bos": "layout <|endoftext|>",
        "eos": "<|im_end|>",
    }
    options = PromptOptions(layout="plain", include_eos=False, max_length=9)
    described = PromptEncoder(tokenizer, options).describe()
    assert (described["bos"], described["eos"]) == ("added <|endoftext|>", "none")
    assert described["max_length"] == "9"
    assert PromptEncoder(make_tokenizer()).describe()["bos"] == "none"


def test_a_template_that_reads_the_clock_is_described_with_its_date(make_tokenizer):
    template = "{{ strftime_now('%Y') }}" + (make_tokenizer().chat_template or "")
    tokenizer = make_tokenizer(None, chat_template=template)
    assert PromptEncoder(tokenizer).describe()["date"][:2] == "20"
    assert "date" not in PromptEncoder(tokenizer, PromptOptions(layout="plain")).describe()


def test_what_never_works_is_found_by_check(make_tokenizer, tmp_path):
    PromptEncoder(make_tokenizer()).check()
    without = PromptEncoder(make_tokenizer(None))
    with pytest.raises(PromptError, match="no chat template"):
        without.check()
    assert "no chat template" in without.describe()["bos"]


def test_a_layout_file_has_its_fingerprint(make_tokenizer, tmp_path):
    path = tmp_path / "a.jinja"
    prints = []
    for text in ("{{ instruction }}{{ input }}", "{{ instruction }} {{ input }}"):
        path.write_text(text)
        described = PromptEncoder(make_tokenizer(), PromptOptions(layout=path)).describe()
        prints.append(described["layout_fingerprint"])
    assert len(set(prints)) == 2

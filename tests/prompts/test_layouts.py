"""Layouts without a chat template, layout files, and BOS."""

from __future__ import annotations

import pytest

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError, UsageError
from instructjax.prompts import PromptEncoder, PromptOptions


def prompt_of(tokenizer, example, context="cz", **options):
    (request,) = PromptEncoder(tokenizer, PromptOptions(**options)).encode(
        example, row=0, context=context
    )
    return tokenizer.decode(request.ids[: request.spans[0][0]])


ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "Add {input}.\n\n### Input:\n1 {instruction}\n\n### Response:"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd {input}.\n\n### Response:"
)


@pytest.mark.parametrize(
    ("layout", "context", "expected"),
    [
        ("plain", "cz", "Add {input}.\n\n1 {instruction}\n\n"),
        ("plain", "c", "Add {input}.\n\n"),
        ("plain", "z", "1 {instruction}\n\n"),
        ("plain", "none", "<|endoftext|>"),
        ("raw", "cz", "Add {input}.1 {instruction}"),
        ("raw", "none", "<|endoftext|>"),
        ("alpaca", "cz", ALPACA),
        ("alpaca", "c", ALPACA_NO_INPUT),
        ("alpaca", "z", ALPACA.replace("Add {input}.", "")),
        ("alpaca", "none", ALPACA_NO_INPUT.replace("Add {input}.", "")),
    ],
)
def test_exact_forms(make_tokenizer, layout, context, expected):
    example = Example(instruction="Add {input}.", input="1 {instruction}", output="2")
    assert prompt_of(make_tokenizer(), example, context, layout=layout) == expected


def test_an_empty_prompt_is_eos_for_a_model_without_bos(make_tokenizer):
    example = Example(instruction="c", output="y")
    tokenizer = make_tokenizer(bos_id=None)
    assert prompt_of(tokenizer, example, "none", layout="raw") == "<|im_end|>"
    with pytest.raises(PromptError, match="neither BOS nor EOS"):
        prompt_of(
            make_tokenizer(bos_id=None, eos_ids=()),
            example,
            "none",
            layout="raw",
            include_eos=False,
        )


def test_plain_writes_system_and_history_as_paragraphs(make_tokenizer):
    history = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    example = Example(instruction="c", input="z", output="y", system="s", history=history)
    assert prompt_of(make_tokenizer(), example, layout="plain") == "s\n\nq\n\na\n\nc\n\nz\n\n"


@pytest.mark.parametrize("layout", ["alpaca", "raw"])
@pytest.mark.parametrize(
    "more", [{"system": "s"}, {"history": (Message(role="user", content="q"),)}]
)
def test_layouts_without_place_for_a_conversation_refuse_it(make_tokenizer, layout, more):
    with pytest.raises(PromptError, match="no place for a system turn or a history"):
        prompt_of(make_tokenizer(), Example(instruction="c", output="y", **more), layout=layout)


@pytest.mark.parametrize("layout", ["plain", "alpaca", "raw"])
def test_bos_is_added_once_where_the_tokenizer_adds_it(make_tokenizer, layout):
    example = Example(instruction="c", input="z", output="y")
    bare = prompt_of(make_tokenizer(), example, layout=layout)
    added = prompt_of(make_tokenizer(adds_bos=True), example, layout=layout)
    assert added == "<|endoftext|>" + bare


def test_bos_written_in_the_text_is_not_doubled(make_tokenizer):
    example = Example(instruction="<|endoftext|>c", output="y")
    assert prompt_of(make_tokenizer(adds_bos=True), example, layout="raw") == "<|endoftext|>c"


def test_no_eos_in_the_tokenizer_wants_include_eos_false(make_tokenizer):
    tokenizer = make_tokenizer(eos_ids=())
    with pytest.raises(PromptError, match="include_eos=False"):
        prompt_of(tokenizer, Example(instruction="c", output="y"), layout="plain")


class TestLayoutFile:
    def write(self, folder, text: str | bytes) -> str:
        path = folder / "mine.jinja"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def test_every_variable(self, make_tokenizer, tmp_path):
        text = (
            "{{ bos_token }}|{{ system }}|{% for t in history %}{{ t.role }}={{ t.content }}"
            "{% endfor %}|{{ instruction }}|{{ input }}|{{ messages | length }}|"
            "{{ messages[-1].content }}|{{ add_generation_prompt }}|{{ eos_token }}\n"
        )
        example = Example(
            instruction="c",
            input="z",
            output="y",
            system="s",
            history=(Message(role="user", content="q"),),
        )
        prompt = prompt_of(make_tokenizer(), example, layout=self.write(tmp_path, text))
        assert prompt == "<|endoftext|>|s|user=q|c|z|3|c\n\nz|True|<|im_end|>"

    def test_bos_is_added_if_the_file_writes_none(self, make_tokenizer, tmp_path):
        path = self.write(tmp_path, "Q: {{ instruction }} A:")
        example = Example(instruction="c", output="y")
        tokenizer = make_tokenizer(adds_bos=True)
        assert prompt_of(tokenizer, example, layout=path) == "<|endoftext|>Q: c A:"

    def test_a_file_that_leaves_z_out_is_refused(self, make_tokenizer, tmp_path):
        path = self.write(tmp_path, "Q: {{ instruction }} A:")
        with pytest.raises(PromptError, match="leaves out or rewrites the input"):
            prompt_of(
                make_tokenizer(), Example(instruction="c", input="zzz", output="y"), layout=path
            )

    @pytest.mark.parametrize(
        ("more", "name"),
        [
            ({"system": "Speak French."}, "system turn"),
            ({"history": (Message(role="user", content="q"),)}, "history"),
            ({"history": (Message(role="system", content="s"),)}, "history"),
        ],
    )
    def test_a_file_without_place_for_a_conversation_refuses_it(
        self, make_tokenizer, tmp_path, more, name
    ):
        path = self.write(tmp_path, "Quick Instructions: {{ instruction }}\n\n")
        encoder = PromptEncoder(make_tokenizer(), PromptOptions(layout=path))
        encoder.encode(Example(instruction="c", output="y"), row=0)
        with pytest.raises(PromptError, match=f"leaves out or rewrites the {name}"):
            encoder.encode(Example(instruction="c", output="y", **more), row=1)

    def test_a_file_that_drops_turns_of_one_role_refuses_them(self, make_tokenizer, tmp_path):
        text = "{% for t in history if t.role == 'user' %}a{{ t.content }}{% endfor %}"
        path = self.write(tmp_path, text + "{{ instruction }}")
        encoder = PromptEncoder(make_tokenizer(), PromptOptions(layout=path))
        user, assistant = (Message(role=r, content="a") for r in ("user", "assistant"))
        encoder.encode(Example(instruction="c", output="y", history=(user,)), row=0)
        with pytest.raises(PromptError, match="leaves out or rewrites the history"):
            encoder.encode(Example(instruction="c", output="y", history=(assistant, user)), row=1)
        with pytest.raises(PromptError, match="leaves out or rewrites the history"):
            encoder.encode(Example(instruction="a", output="y", history=(assistant,)), row=2)

    def test_only_the_last_turn_of_a_history_is_not_all_of_it(self, make_tokenizer, tmp_path):
        path = self.write(tmp_path, "{{ history[-1].content }} {{ instruction }}")
        turns = (Message(role="user", content="a"), Message(role="assistant", content="ba"))
        with pytest.raises(PromptError, match="leaves out or rewrites the history"):
            prompt_of(
                make_tokenizer(),
                Example(instruction="c", output="y", history=turns),
                layout=path,
            )

    @pytest.mark.parametrize("text", ["Answer: ", "Answer: {{ input }} {# {{ instruction }} #}"])
    def test_a_text_that_the_frame_holds_by_accident_is_left_out(
        self, make_tokenizer, tmp_path, text
    ):
        example = Example(instruction="A", input="z", output="y")
        with pytest.raises(PromptError, match="leaves out or rewrites the in"):
            prompt_of(make_tokenizer(), example, layout=self.write(tmp_path, text))

    def test_a_text_that_the_file_drops_for_its_words_is_left_out(self, make_tokenizer, tmp_path):
        text = "{{ instruction }}{% if 'skip' not in input %} {{ input }}{% endif %}"
        encoder = PromptEncoder(make_tokenizer(), PromptOptions(layout=self.write(tmp_path, text)))
        encoder.encode(Example(instruction="c", input="keep", output="y"), row=0)
        with pytest.raises(PromptError, match="leaves out or rewrites the input"):
            encoder.encode(Example(instruction="c", input="skip", output="y"), row=1)

    def test_a_file_may_trim_and_use_messages(self, make_tokenizer, tmp_path):
        text = "{% for m in messages %}[{{ m.role }} {{ m.content | trim }}]{% endfor %}"
        example = Example(
            instruction=" c ",
            input="z ",
            output="y",
            system=" s",
            history=(Message(role="assistant", content="a\n"),),
        )
        prompt = prompt_of(make_tokenizer(), example, layout=self.write(tmp_path, text))
        assert prompt == "[system s][assistant a][user c \n\nz]"

    def test_the_sandbox_holds(self, make_tokenizer, tmp_path):
        path = self.write(tmp_path, "{{ instruction.__class__.__mro__ }}")
        with pytest.raises(PromptError, match="mine.jinja fails"):
            prompt_of(make_tokenizer(), Example(instruction="c", output="y"), layout=path)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"{{ instruction }", "line 1: the layout file is no valid Jinja"),
            (b"ok\n{{ instruction | nofilter }}", "line 2: the layout file is no valid Jinja"),
            (b"caf\xe9 {{ instruction }}", "not UTF-8"),
        ],
    )
    def test_files_that_are_no_template(self, make_tokenizer, tmp_path, content, reason):
        with pytest.raises(UsageError, match=f"mine.jinja.*{reason}"):
            PromptEncoder(make_tokenizer(), PromptOptions(layout=self.write(tmp_path, content)))

    def test_a_missing_file_and_a_folder(self, make_tokenizer, tmp_path):
        (tmp_path / "folder.jinja").mkdir()
        for name in ("none.jinja", "folder.jinja"):
            with pytest.raises(UsageError, match="cannot be read"):
                PromptEncoder(make_tokenizer(), PromptOptions(layout=tmp_path / name))

"""Chat layouts: the prompt is transformers' string, and y's surroundings are found or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, PromptOptions

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="session")
def reference(byte_level, templates):
    """transformers' own rendering, by template name."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )

    def render(name: str, messages: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(
            messages, chat_template=templates[name], add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str)
        return text

    return render


def encode(tokenizer, example, context="cz", **options):
    (request,) = PromptEncoder(tokenizer, PromptOptions(**options)).encode(
        example, row=0, context=context
    )
    (start, stop) = request.spans[-1]
    assert stop == len(request.ids)
    return request, tokenizer.decode(request.ids[:start]), tokenizer.decode(request.ids[start:])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("name", ["chatml", "trims", "no_system"])
@given(c=TEXT, z=TEXT, y=TEXT.filter(bool))
@settings(max_examples=60, deadline=None)
def test_the_prompt_is_transformers_string(make_tokenizer, reference, name, c, z, y):
    request, prompt, response = encode(
        make_tokenizer(name), Example(instruction=c, input=z, output=y)
    )
    content = f"{c}\n\n{z}" if c and z else c + z
    assert prompt == reference(name, [user(content)])
    assert response == y + "<|im_end|>"
    assert request.num_bytes == len(y.encode())


def test_system_and_history_go_before_the_user_turn(make_tokenizer, reference):
    example = Example(
        instruction="c",
        input="z",
        output="y",
        system="s",
        history=(Message(role="user", content="a"), Message(role="assistant", content="b")),
    )
    _, prompt, _ = encode(make_tokenizer(), example)
    turns = [user("a"), {"role": "assistant", "content": "b"}, user("c\n\nz")]
    assert prompt == reference("chatml", [{"role": "system", "content": "s"}, *turns])


@pytest.mark.parametrize(
    ("context", "system", "content"),
    [("cz", "s\n\nc", "z"), ("c", "s\n\nc", ""), ("z", "s", "z"), ("none", "s", "")],
)
def test_layout_system_puts_c_under_the_system_text(
    make_tokenizer, reference, context, system, content
):
    example = Example(instruction="c", input="z", output="y", system="s")
    _, prompt, _ = encode(make_tokenizer(), example, context=context, layout="system")
    assert prompt == reference("chatml", [{"role": "system", "content": system}, user(content)])


def test_layout_system_joins_a_system_turn_of_the_history(make_tokenizer, reference):
    history = (Message(role="system", content="h"),)
    example = Example(instruction="c", input="z", output="y", history=history)
    _, prompt, _ = encode(make_tokenizer(), example, layout="system")
    assert prompt == reference("chatml", [{"role": "system", "content": "h\n\nc"}, user("z")])


@pytest.mark.parametrize(
    ("context", "content"), [("cz", "c\n\nz"), ("c", "c"), ("z", "z"), ("none", "")]
)
def test_contexts_drop_c_and_z_and_nothing_else(make_tokenizer, reference, context, content):
    example = Example(instruction="c", input="z", output="y", system="s")
    request, prompt, _ = encode(make_tokenizer(), example, context=context)
    assert request.context == context
    assert prompt == reference("chatml", [{"role": "system", "content": "s"}, user(content)])


def test_a_template_without_system_role_is_refused_by_its_own_words(make_tokenizer):
    example = Example(id="r7", instruction="c", output="y", system="s")
    with pytest.raises(PromptError, match=r"r7: .*System role not supported.*layout"):
        encode(make_tokenizer("no_system"), example)
    with pytest.raises(PromptError, match="System role not supported"):
        encode(make_tokenizer("no_system"), Example(instruction="c", output="y"), layout="system")


@pytest.mark.parametrize(
    ("name", "reason"), [("endless", "Range"), ("escapes", "unsafe|Security"), ("broken", "endfor")]
)
def test_templates_that_fail_are_prompt_errors(make_tokenizer, name, reason):
    with pytest.raises(PromptError, match=f"the chat template fails.*({reason})"):
        encode(make_tokenizer(name), Example(instruction="c", output="y"))


def test_a_model_without_template_is_told_of_the_plain_layout(make_tokenizer):
    with pytest.raises(PromptError, match="--layout plain"):
        encode(make_tokenizer(None), Example(instruction="c", output="y"))


def test_thinking_that_the_template_injects_is_prompt(make_tokenizer, reference):
    _, prompt, response = encode(make_tokenizer("thinking"), Example(instruction="c", output="y"))
    assert prompt == reference("thinking", [user("c")]) + "<think>\n\n</think>\n\n"
    assert response == "y<|im_end|>"


def test_thinking_that_only_the_generation_prompt_opens_is_refused(make_tokenizer):
    with pytest.raises(PromptError, match=r"opens '<think>\\n'.*layout file"):
        encode(make_tokenizer("opens_thinking"), Example(instruction="c", output="y"))


def test_white_space_around_the_response_is_the_templates(make_tokenizer, reference):
    _, prompt, response = encode(make_tokenizer("spaces"), Example(instruction="c", output="y"))
    assert prompt == reference("spaces", [user("c")]) + " "
    assert response == "y<|im_end|>"


def test_thinking_dropped_from_the_history_is_flagged(make_tokenizer):
    history = (
        Message(role="user", content="q"),
        Message(role="assistant", content="<think>hm</think>a"),
    )
    example = Example(instruction="c", output="y", history=history)
    request, prompt, _ = encode(make_tokenizer("thinking"), example)
    assert request.flags == ("history_rewritten",)
    assert "hm" not in prompt


@pytest.mark.parametrize("name", ["drops_user", "last_only"])
def test_lost_turns_are_refused(make_tokenizer, name):
    history = (Message(role="user", content="earlier"), Message(role="assistant", content="b"))
    example = Example(instruction="later", output="y", history=history)
    with pytest.raises(PromptError, match=r"chat template.*(drops|differently)"):
        encode(make_tokenizer(name), example)


def test_a_lost_turn_is_missed_though_a_later_one_says_the_same(make_tokenizer):
    last_user = (
        "{% set turns = messages | selectattr('role', 'eq', 'user') | list %}"
        "{{ '<|im_start|>user\n' + turns[-1].content }}"
        "{{ '<|im_end|><|im_start|>assistant\n' }}"
        "{% if not add_generation_prompt %}{{ messages[-1].content + '<|im_end|>' }}{% endif %}"
    )
    history = (Message(role="user", content="same"), Message(role="assistant", content="b"))
    example = Example(instruction="same", output="y", history=history)
    with pytest.raises(PromptError, match="drops or rewrites a user turn: 'same'"):
        encode(make_tokenizer(None, chat_template=last_user), example)


def test_a_template_without_end_of_turn_wants_include_eos_false(make_tokenizer):
    example = Example(instruction="c", output="y")
    with pytest.raises(PromptError, match="include_eos=False"):
        encode(make_tokenizer("no_end"), example)
    _, prompt, response = encode(make_tokenizer("no_end"), example, include_eos=False)
    assert (prompt, response) == ("user: c\nassistant: ", "y")


def test_the_end_of_turn_is_what_the_template_writes_not_the_primary_eos(make_tokenizer):
    tokenizer = make_tokenizer(bos_id=None, eos_ids=(0, 2))
    request, _, _ = encode(tokenizer, Example(instruction="c", output="y"))
    assert request.ids[-1] == 2
    request, _, _ = encode(tokenizer, Example(instruction="c", output="y"), layout="plain")
    assert request.ids[-1] == 0


class TestAllTurns:
    HISTORY = (
        Message(role="user", content="q one"),
        Message(role="assistant", content=" answer one "),
        Message(role="user", content="q two"),
        Message(role="assistant", content="Größe"),
    )

    @pytest.mark.parametrize("boundary", ["exact", "joint"])
    @pytest.mark.parametrize("include_eos", [True, False])
    def test_every_assistant_turn_is_a_span(self, make_tokenizer, boundary, include_eos):
        tokenizer = make_tokenizer()
        encoder = PromptEncoder(
            tokenizer, PromptOptions(turns="all", boundary=boundary, include_eos=include_eos)
        )
        example = Example(instruction="c", output=["y", "no"], history=self.HISTORY)
        first, second = encoder.encode(example, row=0)
        end = "<|im_end|>" if include_eos else ""
        spans = [tokenizer.decode(first.ids[a:b]) for a, b in first.spans]
        assert spans == [f" answer one {end}", f"Größe{end}", f"y{end}"]
        assert tokenizer.decode(first.ids) == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nq one<|im_end|>\n<|im_start|>assistant\n answer one <|im_end|>\n"
            "<|im_start|>user\nq two<|im_end|>\n<|im_start|>assistant\nGröße<|im_end|>\n"
            f"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ny{end}"
        )
        assert first.num_bytes == len(" answer one Größey".encode())
        assert tokenizer.decode(second.ids[slice(*second.spans[-1])]) == f"no{end}"

    def test_thinking_is_frame_in_every_turn(self, make_tokenizer):
        tokenizer = make_tokenizer("thinking")
        encoder = PromptEncoder(tokenizer, PromptOptions(turns="all"))
        history = (
            Message(role="user", content="q"),
            Message(role="assistant", content="<think>hm</think>a"),
        )
        (request,) = encoder.encode(Example(instruction="c", output="y", history=history), row=0)
        spans = [tokenizer.decode(request.ids[a:b]) for a, b in request.spans]
        assert spans == ["<think>hm</think>a<|im_end|>", "y<|im_end|>"]

    def test_templates_that_drop_earlier_turns_are_refused(self, make_tokenizer, templates):
        only_last = (
            "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}"
            "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        encoder = PromptEncoder(
            make_tokenizer(None, chat_template=only_last), PromptOptions(turns="all")
        )
        with pytest.raises(PromptError, match=r"earlier assistant turns.*turns='last'"):
            encoder.encode(Example(instruction="c", output="y", history=self.HISTORY), row=0)

    def test_an_empty_earlier_turn_is_refused(self, make_tokenizer):
        encoder = PromptEncoder(make_tokenizer(), PromptOptions(turns="all"))
        history = (Message(role="user", content="q"), Message(role="assistant", content=""))
        with pytest.raises(PromptError, match="an earlier assistant turn is empty"):
            encoder.encode(Example(instruction="c", output="y", history=history), row=0)

    def test_spaced_tokenizers_keep_every_byte(self, make_spaced_tokenizer):
        tokenizer = make_spaced_tokenizer()
        encoder = PromptEncoder(tokenizer, PromptOptions(turns="all"))
        history = (Message(role="user", content="q"), Message(role="assistant", content="Hello"))
        (request,) = encoder.encode(
            Example(instruction="c", output="Paris", history=history), row=0
        )
        spans = [tokenizer.decode(request.ids[a:b]) for a, b in request.spans]
        assert spans == ["Hello</s>", "Paris</s>"]
        # What the tokenizer itself puts before a part of the text is the only addition.
        bare = tokenizer.decode(request.ids).replace("<s> ", "<s>")
        assert bare == "<s>[INST] q [/INST] Hello</s><s>[INST] c [/INST] Paris</s>"

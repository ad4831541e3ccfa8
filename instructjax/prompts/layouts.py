"""Where c and z go: the layouts by name, and layout files."""

from __future__ import annotations

from instructjax.data.example import Message
from instructjax.errors import PromptError
from instructjax.prompts.chat import ChatLayout
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.parts import Parts, Stands, join_paragraphs
from instructjax.prompts.templates import read_layout_file, render_template
from instructjax.prompts.tokenizer import Tokenizer

# Stanford Alpaca's prompts, word for word; the response follows the colon directly.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)

# How a layout file writes each text of a row.
_PLACES = {
    "system turn": "{{ system }}",
    "history": "{% for turn in history %}{{ turn.content }}{% endfor %}",
    "instruction": "{{ instruction }}",
    "input": "{{ input }}",
}


class PlainLayout:
    """A layout without a chat template: `plain`, `alpaca` or `raw`."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        self._render = _PLAIN_LAYOUTS[name]

    def frames(self, parts: Parts) -> tuple[str, ...]:
        """The text before y."""
        return (self._render(parts),)

    def end_of_turn(self, parts: Parts) -> int:
        """The primary EOS."""
        return _primary_eos(self._tokenizer)


class FileLayout:
    """A person's own Jinja file.

    It gets the variables `instruction`, `input`, `system`, `history` (role and content of each
    turn), `messages` (what the layout `user` would render), `add_generation_prompt` (true) and
    the tokenizer's special tokens by name (`bos_token`, `eos_token`). y follows the rendered text
    directly; as everywhere in Jinja, one newline at the end of the file is not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, path: str) -> None:
        self._tokenizer = tokenizer
        self._path = path
        self.template = read_layout_file(path)
        self._checked: set[tuple[tuple[str, bool], ...]] = set()

    def frames(self, parts: Parts) -> tuple[str, ...]:
        """The text before y.

        Raises:
          PromptError: the file fails on these parts, or leaves out c, z, the system turn or a turn
            of the history.
        """
        self._check_places(parts)
        text = self._render(parts)
        # A file may do with some words what it does not do with the stand-ins of the check above.
        for name, content in _name_texts(parts):
            if content.strip() not in text:
                raise self._leaves_out(name)
        return (text,)

    def end_of_turn(self, parts: Parts) -> int:
        """The primary EOS."""
        return _primary_eos(self._tokenizer)

    def _check_places(self, parts: Parts) -> None:
        """Renders stand-ins, since a short text may be found in the frame by accident."""
        roles = ("system", *(turn.role for turn in parts.history), "instruction", "input")
        shape = tuple(zip(roles, map(bool, parts.texts), strict=True))
        if shape in self._checked:
            return
        texts = parts.texts
        stands = Stands([self.template, *texts])
        marks = [stands[k] if text else "" for k, text in enumerate(texts)]
        system, *turns, instruction, user = marks
        history = tuple(
            Message(role=turn.role, content=mark)
            for turn, mark in zip(parts.history, turns, strict=True)
        )
        marked = Parts(instruction=instruction, input=user, system=system, history=history)
        text = self._render(marked)
        for name, mark in _name_texts(marked):
            if mark not in text:
                raise self._leaves_out(name)
        self._checked.add(shape)

    def _leaves_out(self, name: str) -> PromptError:
        return PromptError(
            f"the layout file {self._path} leaves out or rewrites the {name}",
            remedy=f"write {_PLACES[name]} in it, or score rows without it",
        )

    def _render(self, parts: Parts) -> str:
        history = [{"role": turn.role, "content": turn.content} for turn in parts.history]
        user = {"role": "user", "content": join_paragraphs(parts.instruction, parts.input)}
        system = [{"role": "system", "content": parts.system}] if parts.system else []
        return render_template(
            self.template,
            [*system, *history, user],
            add_generation_prompt=True,
            variables={
                **(self._tokenizer.special_tokens or {}),
                "instruction": parts.instruction,
                "input": parts.input,
                "system": parts.system,
                "history": history,
            },
            name=f"the layout file {self._path}",
            remedy="correct the file",
        )


# Each has frames(parts), the text before each scored turn (one text where only y is scored), and
# end_of_turn(parts), the id of the token that ends y.
Layout = ChatLayout | PlainLayout | FileLayout


def make_layout(tokenizer: Tokenizer, options: PromptOptions) -> Layout:
    """The layout that the options name.

    Raises:
      UsageError: a layout file that cannot be read.
    """
    name = str(options.layout)
    if options.uses_chat_template:
        return ChatLayout(
            tokenizer,
            instruction_in_system=name == "system",
            turns=options.turns,
            include_eos=options.include_eos,
        )
    if name in _PLAIN_LAYOUTS:
        return PlainLayout(tokenizer, name)
    return FileLayout(tokenizer, name)


def render_plain(parts: Parts) -> str:
    """System, every earlier turn, c and z as paragraphs, and a blank line before y.

    >>> render_plain(Parts(instruction="Add.", input="1 + 1"))
    'Add.\\n\\n1 + 1\\n\\n'
    >>> render_plain(Parts(instruction="", input=""))
    ''
    """
    turns = (turn.content for turn in parts.history)
    text = join_paragraphs(parts.system, *turns, parts.instruction, parts.input)
    return text and text + "\n\n"


def render_alpaca(parts: Parts) -> str:
    """The prompt of Stanford Alpaca, with its "### Input:" part only where z is not empty."""
    _refuse_conversation(parts, "alpaca")
    text = _ALPACA_WITH_INPUT if parts.input else _ALPACA_WITHOUT_INPUT
    # Not str.format, which would read braces of c and z.
    before, _, after = text.partition("{instruction}")
    return before + parts.instruction + after.replace("{input}", parts.input)


def render_raw(parts: Parts) -> str:
    """c and z one after the other, nothing between them and nothing after."""
    _refuse_conversation(parts, "raw")
    return parts.instruction + parts.input


_PLAIN_LAYOUTS = {"plain": render_plain, "alpaca": render_alpaca, "raw": render_raw}


def _name_texts(parts: Parts) -> list[tuple[str, str]]:
    turns = (("history", turn.content) for turn in parts.history)
    ends = (("instruction", parts.instruction), ("input", parts.input))
    return [("system turn", parts.system), *turns, *ends]


def _refuse_conversation(parts: Parts, name: str) -> None:
    if parts.system or parts.history:
        raise PromptError(
            f"the layout {name} has no place for a system turn or a history",
            remedy="use the layout user or plain, or a layout file of your own",
        )


def _primary_eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise PromptError(
            f"{tokenizer.name} has no end-of-sequence token",
            remedy="score without it (include_eos=False)",
        )
    return tokenizer.eos_id

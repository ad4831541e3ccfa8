"""Where c and z go: the layouts by name, and layout files."""

from __future__ import annotations

from instructjax.errors import PromptError
from instructjax.prompts.chat import ChatLayout
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.parts import Parts, join_paragraphs
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

    def frames(self, parts: Parts) -> tuple[str, ...]:
        """The text before y.

        Raises:
          PromptError: the file fails on these parts, or leaves out c or z.
        """
        history = [{"role": turn.role, "content": turn.content} for turn in parts.history]
        user = {"role": "user", "content": join_paragraphs(parts.instruction, parts.input)}
        system = [{"role": "system", "content": parts.system}] if parts.system else []
        text = render_template(
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
        for name, content in (("instruction", parts.instruction), ("input", parts.input)):
            if content.strip() not in text:
                raise PromptError(
                    f"the layout file {self._path} leaves out or rewrites the {name}",
                    remedy=f"write {{{{ {name} }}}} in it, or ask for a context without it",
                )
        return (text,)

    def end_of_turn(self, parts: Parts) -> int:
        """The primary EOS."""
        return _primary_eos(self._tokenizer)


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

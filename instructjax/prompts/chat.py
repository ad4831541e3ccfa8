"""Layouts that a model's own chat template renders, and what the template does to a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instructjax.errors import PromptError
from instructjax.prompts.parts import Parts, Stands, join_paragraphs
from instructjax.prompts.templates import ChatMessage, render_template
from instructjax.prompts.tokenizer import Tokenizer

_OWN_LAYOUT = "write a layout file of your own (layout=PATH.jinja), or use the layout plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class AssistantTurn:
    """What a template writes around the response, found with a stand-in for the response.

    Attributes:
      injected: text between the generation prompt and the response, such as an empty thinking
        block. It belongs to the prompt.
      closing: text after the response up to and with the end-of-turn token, "" if there is none.
      eos_id: the end-of-turn token, or None.
    """

    injected: str
    closing: str
    eos_id: int | None


class ChatLayout:
    """c and z as turns of a conversation, written by the chat template.

    The prompt is the string that transformers' `apply_chat_template` gives with
    `add_generation_prompt=True`, followed by whatever the template would write before a response.

    Args:
      tokenizer: of the model; its chat template is used.
      instruction_in_system: c goes to the system turn, under the example's own system text and
        a blank line, and z is the user turn. Otherwise c, a blank line and z are the user turn.
      turns: "last" gives one prompt; "all" gives the text before each assistant turn.
      include_eos: whether assistant turns end with the end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        instruction_in_system: bool,
        turns: Literal["last", "all"],
        include_eos: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._instruction_in_system = instruction_in_system
        self._turns = turns
        self._include_eos = include_eos
        self._turn_by_shape: dict[tuple[tuple[str, bool], ...], AssistantTurn] = {}

    def frames(self, parts: Parts) -> tuple[str, ...]:
        """The text before each assistant turn that is scored, the last one's being the last.

        Texts after the first begin behind the end-of-turn token, if that is scored.

        Raises:
          PromptError: the template cannot render the conversation, leaves out c or z, or writes
            something before or after a response that a prompt cannot hold.
        """
        messages = self._messages(parts)
        turn = self.assistant_turn(parts)
        if self._turns == "last":
            frames = (self._render(messages, True) + turn.injected,)
        else:
            frames = self._frames_between_turns(messages, parts, turn)
        _check_held("".join(frames), messages)
        return frames

    def end_of_turn(self, parts: Parts) -> int:
        """The id of the token that the template writes after an assistant turn.

        Raises:
          PromptError: it writes none.
        """
        eos_id = self.assistant_turn(parts).eos_id
        if eos_id is None:
            raise PromptError(
                "the chat template writes no end-of-turn token after a response",
                remedy="score without it (include_eos=False), or use the layout plain",
            )
        return eos_id

    def assistant_turn(self, parts: Parts) -> AssistantTurn:
        """What the template writes around a response in a conversation of this shape."""
        messages = self._messages(parts)
        shape = tuple((message["role"], bool(message["content"])) for message in messages)
        turn = self._turn_by_shape.get(shape)
        if turn is None:
            turn = self._turn_by_shape[shape] = self._inspect_turn(shape)
        return turn

    def _messages(self, parts: Parts) -> list[ChatMessage]:
        history = [{"role": turn.role, "content": turn.content} for turn in parts.history]
        system, user = parts.system, join_paragraphs(parts.instruction, parts.input)
        if self._instruction_in_system:
            if history and history[0]["role"] == "system":
                system = join_paragraphs(system, history.pop(0)["content"])
            system, user = join_paragraphs(system, parts.instruction), parts.input
        first = [{"role": "system", "content": system}] if system else []
        return [*first, *history, {"role": "user", "content": user}]

    def _render(self, messages: list[ChatMessage], add_generation_prompt: bool) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            raise PromptError(
                f"{self._tokenizer.name} has no chat template, which this layout needs",
                remedy="use the layout plain (--layout plain)",
            )
        return render_template(
            template,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables=self._tokenizer.special_tokens or {},
        )

    def _inspect_turn(self, shape: tuple[tuple[str, bool], ...]) -> AssistantTurn:
        stands = Stands([self._tokenizer.chat_template or ""])
        conversation = [
            {"role": role, "content": stands[k] if filled else ""}
            for k, (role, filled) in enumerate(shape)
        ]
        response = {"role": "assistant", "content": stands[len(shape)]}
        prompt = self._render(conversation, True)
        whole = self._render([*conversation, response], False)
        if whole.count(response["content"]) != 1:
            raise PromptError(
                "the chat template leaves out, repeats or rewrites a response", remedy=_OWN_LAYOUT
            )
        before, after = whole.split(response["content"])
        if not before.startswith(prompt):
            opened = prompt[len(before) :]
            if prompt.startswith(before) and not stands.split(opened)[1]:
                problem = (
                    f"the chat template opens {opened!r} where a response is to be generated, but "
                    "writes a finished response without it"
                )
            else:
                shown = [_tail("...".join(stands.split(text)[0])) for text in (before, prompt)]
                problem = (
                    "the chat template writes a conversation differently with a response "
                    f"({shown[0]!r}) and before one ({shown[1]!r})"
                )
            raise PromptError(f"{problem}, so y has no one prompt", remedy=_OWN_LAYOUT)
        closing, eos_id = self._end_of_turn_in(after)
        return AssistantTurn(injected=before[len(prompt) :], closing=closing, eos_id=eos_id)

    def _end_of_turn_in(self, after: str) -> tuple[str, int | None]:
        # White space before the token (Llama 2 writes " </s>") is the template's, not y's.
        bare = after.lstrip()
        tokenizer = self._tokenizer
        ends = {
            text: i
            for i in sorted({*(tokenizer.special_ids or ()), *tokenizer.eos_ids}, reverse=True)
            if (text := tokenizer.token_text(i)) and bare.startswith(text)
        }
        if not ends:
            return "", None
        text = max(ends, key=len)
        return after[: len(after) - len(bare)] + text, ends[text]

    def _frames_between_turns(
        self, messages: list[ChatMessage], parts: Parts, turn: AssistantTurn
    ) -> tuple[str, ...]:
        stands = Stands([self._tokenizer.chat_template or "", *parts.texts])
        conversation, count = [], 0
        for message in [*messages, {"role": "assistant", "content": ""}]:
            if message["role"] == "assistant":
                message, count = {**message, "content": stands[count]}, count + 1
            conversation.append(message)
        frames, order = stands.split(self._render(conversation, False))
        if order != list(range(count)):
            raise PromptError(
                "the chat template leaves out, repeats or rewrites earlier assistant turns, so "
                "they cannot be scored",
                remedy="score the last turn only (turns='last')",
            )
        closing = turn.closing if self._include_eos else ""
        for frame in frames[1:]:
            if not frame.startswith(closing):
                raise PromptError(
                    f"the chat template does not write {closing!r} after every assistant turn",
                    remedy="score the last turn only (turns='last'), or set include_eos=False",
                )
        return (frames[0], *(frame[len(closing) :] for frame in frames[1:-1]))


def _check_held(text: str, messages: list[ChatMessage]) -> None:
    """Templates may trim what a user says (Llama 3 does), but not lose it."""
    place = 0
    for message in messages:
        role, bare = message["role"], message["content"].strip()
        if role == "assistant":
            continue
        # Some templates move the system text behind other turns, so it may be anywhere.
        found = text.find(bare, place if role == "user" else 0)
        if found < 0:
            raise PromptError(
                f"the chat template drops or rewrites a {role} turn: {_tail(bare)!r} is not in the "
                "rendered prompt",
                remedy=_OWN_LAYOUT,
            )
        if role == "user":
            place = found + len(bare)


def _tail(text: str) -> str:
    return text if len(text) <= 40 else "..." + text[-40:]

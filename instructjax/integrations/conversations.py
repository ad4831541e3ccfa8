"""Conversations as lm-evaluation-harness hands them over, and strings that hold one."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from instructjax.data.example import Message
from instructjax.errors import PromptError
from instructjax.prompts.chat import ChatLayout
from instructjax.prompts.parts import Parts, Stands
from instructjax.prompts.templates import ChatMessage, render_template
from instructjax.prompts.tokenizer import Tokenizer


def render_conversation(
    tokenizer: Tokenizer, history: Sequence[ChatMessage], *, add_generation_prompt: bool = True
) -> str:
    """The prompt that the model's chat template makes of a conversation.

    Args:
      tokenizer: of the model.
      history: dicts with `role` and `content`, the last of the user, or of the assistant if it is
        to be continued.
      add_generation_prompt: end with what comes before a response, as the layout `user` does; or
        else right after the last message, with nothing that would close it.

    Raises:
      PromptError: there is no chat template, or it drops or rewrites a turn.
    """
    if tokenizer.chat_template is None:
        raise PromptError(
            f"{tokenizer.name} has no chat template",
            remedy="leave the chat template out (no --apply-chat-template)",
        )
    if add_generation_prompt and history and history[-1]["role"] == "user":
        first, *rest = history
        system = first["content"] if first["role"] == "system" else ""
        turns = [Message(**turn) for turn in (rest[:-1] if system else history[:-1])]  # type: ignore[arg-type]
        parts = Parts(
            instruction=history[-1]["content"], input="", system=system, history=tuple(turns)
        )
        return _layout(tokenizer).frames(parts)[0]
    return render_template(
        tokenizer.chat_template,
        history,
        add_generation_prompt=add_generation_prompt,
        variables={
            **(tokenizer.special_tokens or {}),
            "continue_final_message": not add_generation_prompt,
        },
    )


@functools.lru_cache(maxsize=4)
def _layout(tokenizer: Tokenizer) -> ChatLayout:
    # It remembers what the template writes around a response, for each shape of conversation.
    return ChatLayout(tokenizer, instruction_in_system=False, turns="last", include_eos=False)


def find_openings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """How strings begin that the chat template rendered: what it writes before the first turn.

    It is told from the string alone, so that a request means the same whoever made it. Empty
    without a chat template, or where conversations begin with the first turn's own text.
    """
    if tokenizer.chat_template is None:
        return ()
    stands = Stands([tokenizer.chat_template])
    user: ChatMessage = {"role": "user", "content": stands[0]}
    system: ChatMessage = {"role": "system", "content": stands[0]}
    openings = []
    for history in ([user], [system, {**user, "content": stands[1]}]):
        try:
            text = render_template(
                tokenizer.chat_template,
                history,
                add_generation_prompt=False,
                variables=tokenizer.special_tokens or {},
            )
        except PromptError:
            # Templates may refuse a system turn; then no string begins with one.
            continue
        openings.append(stands.split(text)[0][0])
    return tuple(dict.fromkeys(filter(None, openings)))

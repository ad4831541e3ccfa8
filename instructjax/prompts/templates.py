"""Jinja templates, rendered by transformers' own sandbox, with errors a person can act on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import PromptError, UsageError

ChatMessage = dict[str, str]
_SILENCE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@functools.cache
def _renderer() -> Callable[..., Any]:
    # Imported at the first use, for it takes most of a second; and quietly, for transformers
    # advises at import to install torch, which is not needed here.
    before = os.environ.get(_SILENCE)
    os.environ[_SILENCE] = "1"
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    finally:
        if before is None:
            del os.environ[_SILENCE]
        else:
            os.environ[_SILENCE] = before
    return render_jinja_template


def render_template(
    template: str,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    name: str = "the chat template",
    remedy: str = "use the layout user or plain, or a layout file of your own",
) -> str:
    """Renders a template as transformers' `apply_chat_template` does.

    Args:
      template: Jinja text. It runs in a sandbox: no attributes beginning with an underscore, no
        changes to its arguments, no long ranges.
      messages: dicts with `role` and `content`.
      add_generation_prompt: whether to end with what opens an assistant turn.
      variables: further names the template may use, such as `bos_token`.
      name: what to call the template in a message.
      remedy: what to advise if it fails.

    Raises:
      PromptError: the template cannot be rendered, or refuses the conversation.

    >>> render_template("{{ messages[0].content }}{{ eos_token }}",
    ...     [{"role": "user", "content": "Hi"}], add_generation_prompt=False,
    ...     variables={"eos_token": "</s>"})
    'Hi</s>'
    """
    try:
        rendered, _ = _renderer()(
            conversations=[list(messages)],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except Exception as error:  # a template may fail in any way Python can
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise PromptError(
            f"{name} fails: {type(error).__name__}: {reason}", remedy=remedy
        ) from error
    return rendered[0]


def read_layout_file(path: str | Path) -> str:
    """Reads a layout file and checks its syntax.

    Raises:
      UsageError: the file cannot be read, is not UTF-8, or is not a Jinja template.
    """
    try:
        template = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"the layout file cannot be read ({error.strerror})",
            file=path,
            remedy="give the path of a Jinja file",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the layout file is not UTF-8 (byte {error.start})",
            file=path,
            remedy="save it as UTF-8",
        ) from error
    import jinja2  # as late as its only use, like transformers

    try:
        render_template(template, [], add_generation_prompt=True, variables={})
    except PromptError as error:
        # Any other failure comes of the empty conversation, and is no fault of the file.
        if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
            raise UsageError(
                f"the layout file is no valid Jinja: {error.__cause__.message}",
                file=path,
                row=f"line {error.__cause__.lineno}",
                remedy="correct the template",
            ) from error
    return template

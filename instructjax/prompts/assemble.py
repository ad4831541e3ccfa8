"""Prompt and candidates as ids: encoded, made to fit, with spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from instructjax.errors import PromptError
from instructjax.prompts.boundary import Encoded, Segment, Span, encode_exact, encode_joint
from instructjax.prompts.layouts import Layout
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.prepare import Prompt
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.prompts.truncation import TooLong, cut_prompt, find_contents


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One candidate with its prompt: ids, scored spans, flags."""

    ids: Int32[np.ndarray, " n"]
    spans: tuple[Span, ...]
    flags: tuple[str, ...]


def assemble_rows(
    tokenizer: Tokenizer,
    layout: Layout,
    options: PromptOptions,
    prompt: Prompt,
    responses: Sequence[Segment],
) -> list[Row]:
    """Encodes a prompt with each of its candidates and cuts what is too long.

    With the boundary `exact`, all candidates get the very same prompt: if it must be cut, it is
    cut to fit the longest of them.

    Raises:
      PromptError: not faithful, too long, or with two BOS.
    """
    if options.boundary == "exact":
        head = encode_exact(tokenizer, prompt.segments)
        encoded = [_append(head, encode_exact(tokenizer, [response])) for response in responses]
    else:
        encoded = [encode_joint(tokenizer, [*prompt.segments, y]) for y in responses]
    prefix = [] if prompt.prefix_id is None else [prompt.prefix_id]
    lengths = [len(prefix) + len(one.ids) for one in encoded]
    if options.boundary == "exact":
        lengths = [max(lengths)] * len(lengths)
    limit = options.max_length
    cuttable: list[Span] | None = None
    rows = []
    for one, length in zip(encoded, lengths, strict=True):
        flags = ["spans_join"] if one.spans_join else []
        ids, spans = one.ids, one.spans
        if limit is not None and length > limit:
            if options.truncation == "error":
                response = sum(stop - start for start, stop in spans)
                raise TooLong(
                    f"prompt and response are {length} tokens, more than {limit}",
                    remedy="shorten the response"
                    if response >= limit
                    else "set truncation to left or middle",
                )
            if cuttable is None:
                cuttable = _cuttable_bytes(tokenizer, layout, prompt)
            keep, count = cut_prompt(one, cuttable, length - limit, options.truncation)
            kept = np.concatenate([[0], np.cumsum(keep)])
            ids = ids[keep]
            spans = tuple((int(kept[start]), int(kept[stop])) for start, stop in spans)
            flags.append(f"truncated={count}")
        ids = np.concatenate([np.asarray(prefix, np.int32), ids])
        spans = tuple((start + len(prefix), stop + len(prefix)) for start, stop in spans)
        _check(tokenizer, ids, spans)
        rows.append(Row(ids=ids, spans=spans, flags=tuple(flags)))
    return rows


def _append(head: Encoded, tail: Encoded) -> Encoded:
    length = len(head.ids)
    return Encoded(
        ids=np.concatenate([head.ids, tail.ids]),
        spans=(*head.spans, *((a + length, b + length) for a, b in tail.spans)),
        starts=np.concatenate([head.starts[:-1], tail.starts + len(head.data)]),
        data=head.data + tail.data,
    )


def _cuttable_bytes(tokenizer: Tokenizer, layout: Layout, prompt: Prompt) -> list[Span]:
    """Where the history, c and z are in the encoded data."""
    by_frame = iter(find_contents(layout, prompt.parts, prompt.frames))
    spans: list[Span] = []
    place = 0
    for segment in prompt.segments:
        if not segment.scored:
            for start, stop in next(by_frame):
                before, content = segment.text[:start], segment.text[start:stop]
                begin = place + len(before.encode())
                spans.append((begin, begin + len(content.encode())))
        place += len(segment.text.encode())
        if segment.eos_id is not None:
            place += len(tokenizer.token_bytes(segment.eos_id))
    return spans


def _check(tokenizer: Tokenizer, ids: Int32[np.ndarray, " n"], spans: tuple[Span, ...]) -> None:
    if spans[0][0] < 1:
        raise PromptError(
            "no prompt token is left before the response, so nothing conditions its first token",
            remedy="use the boundary exact, or a prompt that ends apart from the response",
        )
    bos_id = tokenizer.bos_id
    if bos_id is not None and len(ids) > 1 and ids[0] == bos_id and ids[1] == bos_id:
        raise PromptError(
            f"the prompt begins with two {tokenizer.token_text(bos_id)}",
            remedy="write BOS once: in the layout or text, or leave it to the tokenizer",
        )

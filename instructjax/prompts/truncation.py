"""Shortening a prompt that is too long: only what a person wrote is cut, never the frame or y."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from instructjax.errors import PromptError
from instructjax.prompts.boundary import Encoded, Span
from instructjax.prompts.layouts import Layout
from instructjax.prompts.parts import Parts, Stands, stand_for_contents


class TooLong(PromptError):
    """More tokens than the limit; the remedy is what else to do than to raise the limit."""


def find_contents(
    layout: Layout, parts: Parts, frames: Sequence[str]
) -> tuple[tuple[Span, ...], ...]:
    """Where the history, c and z are in the rendered frames.

    The layout is rendered once more with stand-ins for them, and the text between the stand-ins,
    which is the frame, is looked for in the real one. Scored turns are in no frame.

    Returns:
      For each frame the (start, stop) of its contents, in characters.

    Raises:
      TooLong: the layout does not simply put the contents into a frame (it changes with them).
    """
    stands = Stands([*parts.texts, *frames])
    marked, contents = stand_for_contents(parts, stands)
    marked_frames = layout.frames(marked)
    spans = [
        _match(frame, *stands.split(marked_frame), contents)
        for frame, marked_frame in zip(frames, marked_frames, strict=True)
    ]
    return tuple(spans)


def _match(
    frame: str, pieces: list[str], order: list[int], contents: Sequence[str]
) -> tuple[Span, ...]:
    spans: list[Span] = []
    place = len(pieces[0]) if frame.startswith(pieces[0]) else -1
    for piece, index in zip(pieces[1:], order, strict=True):
        text = contents[index]
        last = len(spans) == len(order) - 1
        for variant in (text, text.lstrip(), text.rstrip(), text.strip()):
            end = place + len(variant)
            fits = frame[end:] == piece if last else frame.startswith(piece, end)
            if place >= 0 and frame.startswith(variant, place) and fits:
                spans.append((place, end))
                place = end + len(piece)
                break
        else:
            place = -1
    if place != len(frame):
        raise TooLong(
            "the prompt is too long, and the layout does not show which part of it may be cut",
            remedy="shorten the row, or use the layout plain",
        )
    return tuple(spans)


def cut_prompt(
    encoded: Encoded,
    cuttable: Sequence[Span],
    excess: int,
    side: Literal["left", "middle"],
) -> tuple[np.ndarray, int]:
    """Chooses which prompt tokens to keep.

    Args:
      encoded: the prompt, with earlier scored turns if there are any.
      cuttable: (start, stop) in bytes of what may be cut.
      excess: how many tokens must go, at least 1.
      side: "left" takes them from the beginning of what may be cut, "middle" from its centre.
        A few more go if the cut would divide a character.

    Returns:
      bool [n], true for tokens that stay; and how many do not.

    Raises:
      TooLong: there is not so much that may be cut.
    """
    begins, ends = encoded.starts[:-1], encoded.starts[1:]
    may_go = np.zeros(len(encoded.ids), bool)
    for start, stop in cuttable:
        may_go |= (begins >= start) & (ends <= stop) & (ends > begins)
    order = np.flatnonzero(may_go)
    first = 0 if side == "left" else max(0, (len(order) - excess + 1) // 2)
    stop = first + excess
    while stop < len(order) and _is_inside_character(encoded, order[stop]):
        stop += 1
    while 0 < first < len(order) and _is_inside_character(encoded, order[first]):
        first -= 1
    if stop > len(order):
        raise TooLong(
            f"{excess} tokens too long, and only {len(order)} of the prompt's tokens may be cut: "
            "the frame and the response alone do not fit",
            remedy="shorten the response",
        )
    keep = np.ones(len(encoded.ids), bool)
    keep[order[first:stop]] = False
    return keep, stop - first


def _is_inside_character(encoded: Encoded, token: np.intp) -> bool:
    return encoded.data[encoded.starts[token]] & 0b1100_0000 == 0b1000_0000

"""A text that a model wrote, and what a reader of numbers about it must know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instructjax.sampling.rows import SampledRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A text that a model wrote.

    Attributes:
      text: y.
      flags: of its prompt, such as "truncated=37"; "cut_off" where a limit of tokens ended it;
        "not_finite" where the model gave no number for one of its tokens.
    """

    text: str
    flags: tuple[str, ...] = ()


def to_written(row: SampledRow) -> Written:
    """A sample's text with its flags."""
    return Written(text=row.text, flags=list_flags(row.status, row.finish_reason))


def list_flags(status: object, finish_reason: object) -> tuple[str, ...]:
    """The flags of a row of the table of samples.

    >>> list_flags("truncated=3", "length"), list_flags("ok", "stop_token")
    (('truncated=3', 'cut_off'), ())
    """
    flags = [flag for flag in str(status or "").split(",") if flag not in ("", "ok")]
    return (*flags, *(["cut_off"] if finish_reason == "length" else []))


def join_flags(written: Iterable[Written]) -> tuple[str, ...]:
    """The flags of several texts, those of single texts with how many of them have it.

    >>> one, two = Written(text="a", flags=("truncated=3", "cut_off")), Written(text="b")
    >>> join_flags([one]), join_flags([one, one, two])
    (('truncated=3', 'cut_off'), ('truncated=3', 'cut_off=2'))
    """
    written = list(written)
    counts = Counter(flag for one in written for flag in one.flags)
    return tuple(
        f"{flag}={count}" if len(written) > 1 and "=" not in flag else flag
        for flag, count in counts.items()
    )

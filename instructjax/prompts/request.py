"""What scoring receives: token ids and the spans of them that are y."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from instructjax.errors import PromptError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """One sequence of ids with the half-open spans of it that are scored.

    Attributes:
      ids: int32 [n], prompt and response together.
      spans: (start, stop) of each scored span, in order, not overlapping, start >= 1. For a
        single response there is one span and it ends at n. With several assistant turns there
        is one a turn.
      num_bytes: UTF-8 bytes of y's text over all spans, end-of-turn token not counted.
      row: index of the example in the input.
      candidate: index of y among the example's outputs.
      context: which of "cz", "c", "z", "none" the prompt holds.
      flags: what a reader of the number must know, such as "truncated=37" (prompt tokens cut)
        or "spans_join" (a token holds the prompt's last and the response's first characters).

    Raises:
      PromptError: a span is empty, out of order or out of range, or there is none.
    """

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    num_bytes: int
    row: int = 0
    candidate: int = 0
    context: str = "cz"
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = 1
        for start, stop in self.spans:
            if not place <= start < stop <= len(self.ids):
                raise PromptError(
                    f"scored spans {self.spans} do not fit {len(self.ids)} ids",
                    row=f"row {self.row + 1}",
                    remedy="give spans in order, none empty, the first after at least one token",
                )
            place = stop
        if not self.spans:
            raise PromptError("nothing is scored", row=f"row {self.row + 1}", remedy="give a span")

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process.

        >>> request = Request(ids=np.array([5, 6], np.int32), spans=((1, 2),), num_bytes=1)
        >>> again = Request.from_json(request.to_json())
        >>> again.ids.tolist(), again.spans
        ([5, 6], ((1, 2),))
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "ids": self.ids.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """The request that `to_json` wrote."""
        ids = np.array(values["ids"], np.int32)
        spans, flags = tuple(map(tuple, values["spans"])), tuple(values["flags"])
        return cls(**{**values, "ids": ids, "spans": spans, "flags": flags})

    @property
    def num_tokens(self) -> int:
        """Scored tokens, the end-of-turn token included where it is scored."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def target_ids(self) -> np.ndarray:
        """int32 [num_tokens], the scored ids in order."""
        return np.concatenate([self.ids[start:stop] for start, stop in self.spans])

"""What `kl_divergence` returns: a number at every position of every y, and means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DivergedRow:
    """Two next-token distributions at every position of one y.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      candidate: index of y among the example's outputs.
      token_ids: y's tokens; position t is before token t.
      kl: KL(p || q) at each position, nats.
      js: Jensen-Shannon divergence at each position, nats.
      flags: what a reader must know of the two prompts; see `PromptEncoder.encode`.
    """

    id: str
    candidate: int
    token_ids: Int32[np.ndarray, " n"]
    kl: Float32[np.ndarray, " n"]
    js: Float32[np.ndarray, " n"]
    flags: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "ok", or the flags, and "not_finite" where there is no number, joined by commas."""
        finite = np.isfinite(self.kl).all() and np.isfinite(self.js).all()
        return ",".join((*self.flags, *(() if finite else ("not_finite",)))) or "ok"

    @property
    def mean_kl(self) -> float:
        """Over the positions of y, nats a token."""
        return float(self.kl.mean(dtype=np.float64))

    @property
    def mean_js(self) -> float:
        """Over the positions of y, nats a token."""
        return float(self.js.mean(dtype=np.float64))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Divergences:
    """Rows in the order of the input: by example, within it by candidate."""

    rows: tuple[DivergedRow, ...]

    @property
    def kl(self) -> list[Float32[np.ndarray, " n"]]:
        """KL(p || q) at each position of each y, nats."""
        return [row.kl for row in self.rows]

    @property
    def js(self) -> list[Float32[np.ndarray, " n"]]:
        """Jensen-Shannon divergence at each position of each y, nats."""
        return [row.js for row in self.rows]

    @property
    def status(self) -> list[str]:
        """ "ok", or flags joined by commas; see `DivergedRow.status`."""
        return [row.status for row in self.rows]

    @property
    def num_tokens(self) -> int:
        """Positions in all."""
        return sum(len(row.kl) for row in self.rows)

    @property
    def mean_kl(self) -> float:
        """Over all positions of all y, nats a token; NaN without rows."""
        return self._mean("kl")

    @property
    def mean_js(self) -> float:
        """Over all positions of all y, nats a token; NaN without rows."""
        return self._mean("js")

    def _mean(self, name: str) -> float:
        total = math.fsum(float(getattr(row, name).sum(dtype=np.float64)) for row in self.rows)
        return total / self.num_tokens if self.rows else math.nan

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[DivergedRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> DivergedRow:
        return self.rows[index]

    def __repr__(self) -> str:
        return (
            f"Divergences({len(self)} responses, {self.num_tokens} tokens, "
            f"KL {self.mean_kl:.4f} and JS {self.mean_js:.4f} nats a token)"
        )

"""Held-out log Pr(y | c, z) during training, by cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from instructjax.batching.packing import tile_for
from instructjax.finetuning.batch import lay_out
from instructjax.finetuning.config import DataOptions
from instructjax.finetuning.packing import Packing, RowPlans
from instructjax.finetuning.sequences import Sequences
from instructjax.models.spmd import over_rows
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding.processes import tick
from instructjax.sharding.rules import ShardingRules


@dataclass(frozen=True, kw_only=True)
class CellScore:
    """Of the rows of a cell, log Pr(y | c, z).

    Attributes:
      log_prob: their sum, in nats.
      num_tokens: of all y.
      num_rows: how many there are.
    """

    log_prob: float
    num_tokens: int
    num_rows: int

    @property
    def per_token(self) -> float:
        """Nats a token, each token counting the same."""
        return self.log_prob / self.num_tokens


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a look at the held-out data finds.

    Attributes:
      cells: by (data set, cell), in the order of the rows.
    """

    cells: Mapping[tuple[str, str], CellScore]

    def total(self, name: str | None = None) -> CellScore:
        """Over the cells of a data set, or over all."""
        parts = [score for (own, _), score in self.cells.items() if name in (None, own)]
        return CellScore(
            log_prob=math.fsum(part.log_prob for part in parts),
            num_tokens=sum(part.num_tokens for part in parts),
            num_rows=sum(part.num_rows for part in parts),
        )

    @property
    def names(self) -> list[str]:
        """Of the data sets."""
        return list(dict.fromkeys(name for name, _ in self.cells))

    def to_json(self) -> dict[str, Any]:
        """Nats a token: over all rows, by data set, and by cell."""
        return {
            "log_prob_per_token": self.total().per_token,
            "by_set": {name: self.total(name).per_token for name in self.names},
            "by_cell": {
                name: {
                    cell: score.per_token
                    for (own, cell), score in self.cells.items()
                    if own == name and cell
                }
                for name in self.names
            },
        }


Params = nnx.State


def make_evaluator(
    graphdef: nnx.GraphDef,
    sets: Mapping[str, Sequences],
    options: DataOptions,
    *,
    share: bool = False,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Callable[[Params], HeldOut]:
    """A function from parameters to `HeldOut`. It compiles one program, at its first call.

    Args:
      graphdef: the model.
      sets: held-out data by name.
      options: the shape of a batch is that of a micro-batch of training.
      share: whether what sequences of a row begin with in common is computed once.
      mesh, rules: of the devices that parameters and rows are split over.
    """
    packing = Packing(length=options.row_length, rows=options.rows_or_default, share=share)
    log_probs = jax.jit(over_rows(token_log_probs, graphdef, mesh=mesh, rules=rules))
    plans = {name: list(_plan(sequences, packing)) for name, sequences in sets.items()}
    length, tile = packing.length, tile_for(max(int(part.sizes.max()) for part in sets.values()))

    def evaluate(params: Params) -> HeldOut:
        sums: dict[tuple[str, str], list[float]] = {}
        counts: dict[tuple[str, str], list[int]] = {}
        for name, sequences in sets.items():
            # Sequences keep their place in the file's order, so that cells do too.
            found = np.zeros(len(sequences))
            for plan in plans[name]:
                rows = [[sequences[index] for index in row] for row in plan]
                batch, entries = lay_out(rows, length, length, share=share, tile=tile)
                values = np.asarray(log_probs(params, batch.batch), np.float64)
                tick()
                for members, places, line in zip(plan, entries, values, strict=True):
                    for index, scored in zip(members, places, strict=True):
                        found[index] = line[scored].sum()
            for index, value in enumerate(found):
                key = name, sequences.cells[index]
                sums.setdefault(key, []).append(float(value))
                counts.setdefault(key, []).append(sequences[index].nonzero)
        return HeldOut(
            cells={
                key: CellScore(
                    log_prob=math.fsum(values),
                    num_tokens=sum(counts[key]),
                    num_rows=len(values),
                )
                for key, values in sums.items()
            }
        )

    return evaluate


def _plan(sequences: Sequences, packing: Packing) -> grain.IterDataset:
    indices = grain.MapDataset.range(len(sequences)).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    return RowPlans(indices, sequences, packing)

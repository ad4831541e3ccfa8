"""Batches of a run, made in the background while a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from instructjax.batching.packing import tile_for
from instructjax.finetuning.batch import SftBatch, make_sft_batch, stack_batches
from instructjax.finetuning.config import DataOptions
from instructjax.finetuning.order import order_indices
from instructjax.finetuning.packing import Packing, Plan, RowPlans, count_plans
from instructjax.finetuning.sequences import Sequences

# Steps made ahead.
AHEAD = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    """What one step computes.

    Attributes:
      batch: numpy arrays with a leading axis of micro-batches.
      plan: indices of the sequences in each row.
      num_tokens: positions that hold a token.
      num_response_tokens: tokens that are learned.
    """

    batch: SftBatch
    plan: Plan
    num_tokens: int
    num_response_tokens: int


class Batches:
    """The batches of a run over some sequences.

    Args:
      sequences: of all data sets.
      counts: how many of them each data set has.
      options: order, mixture and shape.
      epochs: how often to go through the data; None for endlessly.
      process, num_processes: see `order_indices`.
    """

    def __init__(
        self,
        sequences: Sequences,
        counts: Sequence[int],
        options: DataOptions,
        *,
        epochs: int | float | None,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self._sequences, self._micro_batches = sequences, options.micro_batches
        self._tile = tile_for(int(sequences.sizes.max()))
        self.packing = Packing(
            length=options.row_length,
            rows=options.rows * options.micro_batches,
            several=options.packing,
        )

        def order(number: int) -> grain.IterDataset:
            return order_indices(
                counts,
                weights=options.data_weights,
                seed=options.seed,
                epochs=epochs,
                process=number,
                num_processes=num_processes,
            )

        self._sizes = sequences.sizes
        self.total: int | None = None
        if epochs is not None:
            # Processes step together, so the one with the most to do says how often.
            numbers = range(num_processes)
            self.total = max(count_plans(order(n), self._sizes, self.packing) for n in numbers)
        self._indices = order(process)

    def place(self, index: int) -> str:
        """File and row of a sequence."""
        return self._sequences.places[index]

    def plans(self) -> grain.IterDataset:
        """The plan of each step, without its arrays."""
        return RowPlans(self._indices, self._sizes, self.packing, self.total)

    def open(self) -> grain.DatasetIterator:
        """An iterator over `StepBatch`; a thread of it stays `AHEAD` steps ahead.

        Its state is a JSON value, and says where the last batch taken from it was.
        """
        made = self.plans().map(self._make)
        return iter(ThreadPrefetchIterDataset(made, prefetch_buffer_size=AHEAD))

    def _make(self, plan: Plan) -> StepBatch:
        rows = [[self._sequences[index] for index in row] for row in plan]
        each = len(rows) // self._micro_batches
        parts = [rows[start : start + each] for start in range(0, len(rows), each)]
        batch = stack_batches(
            [make_sft_batch(part, length=self.packing.length, tile=self._tile) for part in parts]
        )
        return StepBatch(
            batch=batch,
            plan=plan,
            num_tokens=int((np.asarray(batch.batch.ends) > 0).sum()),
            num_response_tokens=int(np.asarray(batch.batch.num_scored).sum()),
        )

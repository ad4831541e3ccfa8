"""Batches of a run, made in the background while a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jax.sharding import Mesh, NamedSharding

from instructjax.batching.packing import tile_for
from instructjax.finetuning.batch import SftBatch, make_sft_batch, stack_batches
from instructjax.finetuning.config import DataOptions
from instructjax.finetuning.order import order_indices
from instructjax.finetuning.packing import Packing, Plan, RowPlans, count_plans, count_positions
from instructjax.finetuning.sequences import Sequences
from instructjax.sharding.processes import put
from instructjax.sharding.rules import ShardingRules

# Steps made ahead.
AHEAD = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    """What one step computes.

    Attributes:
      batch: arrays with a leading axis of micro-batches: numpy, or, on a mesh of several processes,
        jax arrays of which each process has made its own rows.
      plan: indices of the sequences in each row.
      num_sequences: that the rows hold.
      num_tokens: of its sequences.
      num_computed: positions that hold a token; what sequences share is computed once.
      num_response_tokens: tokens that are learned as a response.
    """

    batch: SftBatch
    plan: Plan
    num_sequences: int
    num_tokens: int
    num_computed: int
    num_response_tokens: int


class Batches:
    """The batches of a run over some sequences.

    Args:
      sequences: of all data sets.
      counts: how many of them each data set has.
      options: order, mixture and shape.
      epochs: how often to go through the data; None for endlessly.
      mesh, rules: of the devices that rows are split over.
    """

    def __init__(
        self,
        sequences: Sequences,
        counts: Sequence[int],
        options: DataOptions,
        *,
        epochs: int | float | None,
        mesh: Mesh | None = None,
        rules: ShardingRules | None = None,
    ) -> None:
        self._sequences, self._micro_batches = sequences, options.micro_batches
        self._tile = tile_for(int(sequences.sizes.max()))
        self.packing = Packing(
            length=options.row_length,
            rows=options.rows_or_default * options.micro_batches,
            several=options.packing,
            share=options.share_prefixes,
        )
        self._indices = order_indices(
            counts, weights=options.data_weights, seed=options.seed, epochs=epochs
        )
        self.total: int | None = None
        if epochs is not None:
            self.total = count_plans(self._indices, sequences, self.packing)
        self._places: NamedSharding | None = None
        if mesh is not None and mesh.is_multi_process:
            spec = (rules or ShardingRules()).spec((None, "batch"), mesh)
            self._places = NamedSharding(mesh, spec)

    def place(self, index: int) -> str:
        """File and row of a sequence."""
        return self._sequences.places[index]

    def plans(self) -> grain.IterDataset:
        """The plan of each step, without its arrays."""
        return RowPlans(self._indices, self._sequences, self.packing, self.total)

    def open(self) -> grain.DatasetIterator:
        """An iterator over `StepBatch`; a thread of it stays `AHEAD` steps ahead.

        Its state is a JSON value, and says where the last batch taken from it was.
        """
        made = self.plans().map(self._make)
        return iter(ThreadPrefetchIterDataset(made, prefetch_buffer_size=AHEAD))

    def build(self, plan: Plan) -> SftBatch:
        """The arrays of a plan, with a leading axis of micro-batches."""
        rows = [[self._sequences[index] for index in row] for row in plan]
        each = len(rows) // self._micro_batches
        parts = [rows[start : start + each] for start in range(0, len(rows), each)]
        shape = {"length": self.packing.length, "share": self.packing.share, "tile": self._tile}
        return stack_batches([make_sft_batch(part, **shape) for part in parts])

    def _make(self, plan: Plan) -> StepBatch:
        members = [index for row in plan for index in row]
        return StepBatch(
            batch=self._own(plan),
            plan=plan,
            num_sequences=len(members),
            num_tokens=int(self._sequences.sizes[members].sum()),
            num_computed=count_positions(plan, self._sequences, self.packing),
            num_response_tokens=int(self._sequences.responses[members].sum()),
        )

    def _own(self, plan: Plan) -> SftBatch:
        """All rows; on a mesh of several processes, those of this one, each where it belongs."""
        places = self._places
        if places is None:
            return self.build(plan)
        each = len(plan) // self._micro_batches
        shape = self._micro_batches, each
        held = np.zeros(shape, bool)
        for at in places.addressable_devices_indices_map(shape).values():
            held[at] = True
        own = tuple(row if here else () for row, here in zip(plan, held.flat, strict=True))
        made = self.build(own)
        return jax.tree.map(lambda x: put(x, places), made)

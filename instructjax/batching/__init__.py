"""Token ids to arrays of few fixed shapes."""

from instructjax.batching.batch import Batch, batch_from_lengths
from instructjax.batching.packing import ROW_LENGTHS, PackedRow, pack, row_length_for

__all__ = ["ROW_LENGTHS", "Batch", "PackedRow", "batch_from_lengths", "pack", "row_length_for"]

"""What is planned: a task, a batch and how it lies on a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jax.sharding import AbstractMesh, AxisType

from instructjax.batching.packing import LARGE_TILE, SMALL_TILE, tile_for
from instructjax.errors import UsageError
from instructjax.finetuning.optimizers import OptimizerConfig
from instructjax.models.attention_split import AttentionSplit
from instructjax.models.config import DecoderConfig
from instructjax.models.lora import LoraConfig
from instructjax.models.sharded import check_mesh
from instructjax.sharding.rules import ShardingRules

Task = Literal["finetune", "score"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to do a task.

    Attributes:
      task: an optimizer step, or the scores of a batch.
      mesh: sizes of its axes, in order.
      batch: rows of a step, all micro-batches together; of scoring, rows in all.
      length: tokens a row.
      micro_batches: of a step.
      remat: what the backward pass computes again.
      dtype: of the forward and backward pass.
      lora: low-rank matrices are trained and nothing else; None: all parameters.
      optimizer: how.
      rules: what is split over which axis.
    """

    task: Task = "finetune"
    mesh: Mapping[str, int]
    batch: int
    length: int
    micro_batches: int = 1
    remat: str = "dots"
    dtype: str = "bfloat16"
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rules: ShardingRules = field(default_factory=ShardingRules)

    @cached_property
    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without devices: enough to tell what is split how."""
        names = tuple(self.mesh)
        return AbstractMesh(
            tuple(self.mesh.values()), names, axis_types=(AxisType.Auto,) * len(names)
        )

    def parts(self, name: str) -> int:
        """In how many parts an axis of arrays of that name is split."""
        return self.rules.parts(name, self.abstract_mesh)

    @property
    def tile(self) -> int:
        """Tokens that attention takes together, as `finetune` and `score` choose them."""
        return tile_for(self.length)

    @property
    def row_parts(self) -> int:
        """In how many parts tokens of a row are split: one where it is too short."""
        parts = self.parts("sequence")
        return AttentionSplit(parts=parts).for_rows(self.length, self.tile).parts

    @property
    def copies(self) -> int:
        """Devices that compute the same, as rows are too short to be split over them."""
        return self.parts("sequence") // self.row_parts

    @property
    def rows(self) -> int:
        """Rows that a device computes at a time."""
        if self.task == "score":
            return 1
        return self.batch // self.micro_batches // self.parts("batch")

    @property
    def programs(self) -> int:
        """How often the program runs for the batch: scoring sends each device a row at a time."""
        return -(-self.batch // self.parts("batch")) if self.task == "score" else 1

    def describe(self) -> str:
        """The mesh, and what else there is to choose.

        >>> Setting(mesh={"fsdp": 4}, batch=8, length=16, micro_batches=2).describe()
        'fsdp=4, 2 micro-batches, remat dots'
        """
        words = ",".join(f"{name}={size}" for name, size in self.mesh.items())
        if self.task == "score":
            return words
        many = f", {self.micro_batches} micro-batches" if self.micro_batches > 1 else ""
        return f"{words}{many}, remat {self.remat}"


def least_length(parts: int, length: int = 1) -> int:
    """The shortest row of `length` tokens or more that is split in so many parts.

    Longer rows are taken by larger tiles, so it is not the case that all that are longer are split.

    >>> least_length(4), least_length(4, 1025)
    (505, 2041)
    """
    split = AttentionSplit(parts=parts)
    fitting = (max(length, split.least_length(tile)) for tile in (SMALL_TILE, LARGE_TILE))
    return next(n for n in fitting if split.for_rows(n, tile_for(n)).parts == parts)


def check_model(config: DecoderConfig, setting: Setting) -> None:
    """Sees that the model fits the mesh, and takes rows of that length.

    Raises:
      UsageError: it does not; the message has numbers that would do.
    """
    check_mesh(config, setting.abstract_mesh, setting.rules)
    if setting.length > config.max_positions:
        raise UsageError(
            f"rows of {setting.length:,} tokens, the model takes {config.max_positions:,}",
            remedy="give a smaller --length",
        )


def check_setting(config: DecoderConfig, setting: Setting) -> None:
    """Sees that the model and the batch fit the mesh.

    Raises:
      UsageError: they do not; the message has numbers that do.
    """
    check_model(config, setting)
    if setting.task == "score":
        return
    parts = setting.parts("batch")
    together = parts * setting.micro_batches
    if setting.batch % together:
        axes = ",".join(
            f"{axis}={setting.mesh[axis]}"
            for axis in setting.rules.mesh_axes("batch", setting.abstract_mesh)
        )
        many = f" and {setting.micro_batches} micro-batches" if setting.micro_batches > 1 else ""
        near = max(setting.batch // together, 1) * together
        raise UsageError(
            f"{setting.batch} rows do not divide over {axes}{many}",
            remedy=f"a --batch of {near} or {near + together}, or another mesh",
        )

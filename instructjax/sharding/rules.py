"""Rules from what an axis of an array is to the axes of the mesh it is split over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

Axes = str | tuple[str, ...] | None
# With devices or, to tell how arrays would lie, without.
AnyMesh = Mesh | AbstractMesh


@dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Over which axes of a mesh each kind of axis is split; None for none.

    An axis that the mesh does not have splits nothing, so the same rules serve every mesh. By
    default each device of `fsdp` holds its part of the parameters and of the batch, and each of
    `expert` its part of the experts and of the batch; heads, MLPs and the vocabulary are split over
    `tensor`, tokens of a row over `context`; `data` holds copies.

    Attributes:
      batch, sequence: rows of tokens, and tokens of a row.
      embed: the hidden state's features, in parameters.
      heads, kv_heads: features of queries and of keys and values, by head.
      mlp: features within an MLP or an expert.
      experts, vocab, layers: their numbers.
    """

    batch: Axes = ("data", "fsdp", "expert")
    sequence: Axes = "context"
    embed: Axes = "fsdp"
    heads: Axes = "tensor"
    kv_heads: Axes = "tensor"
    mlp: Axes = "tensor"
    experts: Axes = "expert"
    vocab: Axes = "tensor"
    layers: Axes = None

    def mesh_axes(self, name: str | None, mesh: AnyMesh) -> tuple[str, ...]:
        """The axes of this mesh that an axis called `name` is split over."""
        axes = None if name is None else getattr(self, name)
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return tuple(axis for axis in axes if axis in mesh.shape)

    def parts(self, name: str | None, mesh: AnyMesh) -> int:
        """In how many parts an axis called `name` is split."""
        return math.prod(mesh.shape[axis] for axis in self.mesh_axes(name, mesh))

    def spec(self, names: tuple[str | None, ...], mesh: AnyMesh) -> PartitionSpec:
        """How an array is split whose axes have these names.

        An axis of the mesh splits but one axis of an array: the first that asks for it.

        >>> from instructjax.sharding.mesh import make_mesh
        >>> import jax
        >>> mesh = make_mesh("fsdp=1,tensor=1", jax.devices()[:1])
        >>> tuple(ShardingRules().spec(("layers", "embed", "heads"), mesh))
        (None, 'fsdp', 'tensor')
        """
        taken: set[str] = set()
        parts: list[Axes] = []
        for name in names:
            axes = tuple(axis for axis in self.mesh_axes(name, mesh) if axis not in taken)
            taken |= set(axes)
            parts.append(axes[0] if len(axes) == 1 else axes or None)
        return PartitionSpec(*parts)

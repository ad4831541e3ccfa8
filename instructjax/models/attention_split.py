"""How attention is split over devices: heads, and queries with the tokens of their rows.

A row of T tokens over n devices is cut into 2 n pieces, of which device i has number i and number
2 n - 1 - i. A causal query sees what stands before it, so an early piece and a late one are as much
work as any other two: n contiguous parts would leave the last device 2 - 1 / n times the mean. Each
device computes what its own queries see, among keys and values of the whole row, which are gathered
layer by layer; their gradients are added up and scattered back.

Tokens lie by device, then row: [n, B, T / n], flat. Positions and `ends` of whole rows, which say
who sees whom, are small, and every device has them in the order of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from instructjax.models.varying import vary_alike


class AttentionSplit(NamedTuple):
    """How attention is split over axes that the compiler sees to.

    Attributes:
      heads: axes of the mesh; none if every device has all heads.
      queries: axes of the mesh; none if every device has all tokens of its rows.
      parts: in how many parts tokens of a row are split.
      auto: all axes of the mesh that the compiler sees to.
      mesh: of these axes, None within a shard_map.
    """

    heads: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    parts: int = 1
    auto: frozenset[str] = frozenset()
    mesh: Mesh | None = None

    def for_rows(self, length: int, tile: int) -> AttentionSplit:
        """The same; tokens are not split of rows so short that a piece is less than a tile."""
        return self if length >= self.least_length(tile) else self.whole()

    def least_length(self, tile: int) -> int:
        """Tokens of the shortest row that is split.

        >>> AttentionSplit(parts=4).least_length(64)
        505
        """
        return 1 if self.parts == 1 else 2 * self.parts * (tile - 1) + 1

    def whole(self) -> AttentionSplit:
        """Heads are split, tokens not."""
        return self._replace(queries=(), parts=1)

    def pad(self, x: Int[Array, "B T"]) -> Int[Array, "B U"]:
        """With zeros up to a length that divides into pieces."""
        more = 0 if self.parts == 1 else -x.shape[1] % (2 * self.parts)
        return jnp.pad(x, ((0, 0), (0, more))) if more else x

    def piece(self, length: int) -> int:
        """Tokens that stand together of a row of so many."""
        return length if self.parts == 1 else length // (2 * self.parts)

    def spread(self, x: Int[Array, "B T"]) -> Int[Array, " N"]:
        """A number a token, laid out by device."""
        if self.parts == 1:
            return x.reshape(-1)
        return self.constrain(to_devices(x, self.parts).reshape(-1), self.queries)

    def collect(self, x: Float[Array, "N E"], rows: int) -> Float[Array, "B T E"]:
        """Of tokens laid out by device, whole rows on every one."""
        if self.parts == 1:
            return x.reshape(rows, -1, x.shape[-1])
        x = self.constrain(x)
        return to_rows(x.reshape(self.parts * rows, -1, x.shape[-1]), self.parts)

    def gather(self, x: Array, axis: int = 2) -> Array:
        """Keys or values of whole rows on every device, of its own heads.

        Args:
          x: [n B, K, T / n, D], or [n B, T / n, K, D] with an `axis` of 1.
          axis: which counts tokens.
        """
        if self.parts == 1:
            return x
        names = (None, self.heads) if axis == 2 else (None, None, self.heads)
        return to_rows(self.constrain(x, *names), self.parts, axis)

    def scatter(self, x: Array, axis: int = 2) -> Array:
        """Within `map_devices`: the sum over devices, of which each is given its own tokens.

        Args:
          x: [B, K, T, D], or [B, T, K, D] with an `axis` of 1.
          axis: which counts tokens.
        """
        if self.parts == 1:
            return x
        wide = to_devices(x.astype(jnp.float32), self.parts, axis)
        own = lax.psum_scatter(wide, self.queries, scatter_dimension=0, tiled=True)
        return own.astype(x.dtype)

    def constrain(self, x: Array, *parts: Any) -> Array:
        """The array split over these axes, and no others."""
        spec = PartitionSpec(*(part or None for part in parts))
        sharding = spec if self.mesh is None else NamedSharding(self.mesh, spec)
        return lax.with_sharding_constraint(x, sharding)

    def map_devices(
        self, call: Callable[..., Any], in_specs: Any, out_specs: Any
    ) -> Callable[..., Any]:
        """Each device calls it on its part, since a compiler cannot split a kernel or its loops.

        What comes out is not to be differentiated.
        """
        if not self.auto:
            return call

        def local(*arguments):
            leaves, tree = jax.tree.flatten(arguments)
            return call(*jax.tree.unflatten(tree, vary_alike(*leaves)))

        options = {"in_specs": in_specs, "out_specs": out_specs, "axis_names": self.auto}
        return as_one(jax.shard_map(local, mesh=self.mesh, **options))


UNSPLIT = AttentionSplit()


def as_one(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same as one operation, to those who sort what a backward pass keeps from the rest.

    An inner shard_map cannot hand over a part of what lies within: neither what is known before the
    layers run (a checkpoint keeps nothing), nor what layers are to keep (whoever sorts that does
    not look into a custom_vjp).
    """
    whole = jax.custom_vjp(jax.checkpoint(call, prevent_cse=False))
    whole.defvjp(_differentiate, _differentiate)
    return whole


def _differentiate(*_):
    raise NotImplementedError("attention's gradient is computed by its own backward pass")


def to_devices(x: Array, parts: int, axis: int = 1) -> Array:
    """[B, ..., T, ...], tokens on `axis`, to [parts B, ..., T / parts, ...], rows by device.

    >>> to_devices(jnp.arange(8)[None], 2).tolist()
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    early, late = jnp.split(x, 2, axis)

    def by_device(half):
        shape = (*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(half.reshape(shape), axis, 0)

    both = jnp.concatenate([by_device(early), by_device(late)[::-1]], axis + 1)
    return both.reshape(parts * x.shape[0], *both.shape[2:])


def to_rows(x: Array, parts: int, axis: int = 1) -> Array:
    """The inverse of `to_devices`.

    >>> to_rows(jnp.array([[0, 1, 6, 7], [2, 3, 4, 5]]), 2).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7]]
    """
    x = x.reshape(parts, -1, *x.shape[1:])
    early, late = jnp.split(x, 2, axis + 1)

    def by_row(half):
        half = jnp.moveaxis(half, 0, axis)
        return half.reshape(*half.shape[:axis], -1, *half.shape[axis + 2 :])

    return jnp.concatenate([by_row(early), by_row(late[::-1])], axis)

"""How attention is split over devices: heads, and queries with the tokens of their rows.

A row of T tokens over n devices is cut into 2 n pieces, of which device i has number i and number
2 n - 1 - i. A causal query sees what stands before it, so an early piece and a late one are as much
work as any other two: n contiguous parts would leave the last device 2 - 1 / n times the mean. Each
device computes what its own queries see, among keys and values of the whole row, which are gathered
layer by layer; their gradients are added up and scattered back.

A device has its tokens by row, [B, T / n], flat. Positions and `ends` of whole rows, which say who
sees whom, are small, and every device has them in the order of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from instructjax.models.varying import gather_alike, vary, vary_alike


class AttentionSplit(NamedTuple):
    """How attention is split over axes of a mesh.

    Attributes:
      heads: axes that the compiler sees to; none if every device has all heads.
      queries: axes of an enclosing shard_map; none if every device has all tokens of its rows.
      parts: in how many parts tokens of a row are split.
      auto: all axes of the mesh that the compiler sees to.
      mesh: of these axes, None within a shard_map.
      alike: what is collected counts as the same on all devices; False: as of each, so that
        gradients of what all compute alike are added up as often as there are parts.
    """

    heads: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    parts: int = 1
    auto: frozenset[str] = frozenset()
    mesh: Mesh | None = None
    alike: bool = True

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
        """A number a token: those of the device's own tokens."""
        if self.parts == 1:
            return x.reshape(-1)
        return self.own(vary(x, self.queries)).reshape(-1)

    def own(self, x: Array, axis: int = 1) -> Array:
        """Of whole rows, the device's own tokens, which stand on that axis."""
        by_device = to_devices(x, self.parts, axis).reshape(
            self.parts, len(x), *x.shape[1:axis], -1, *x.shape[axis + 1 :]
        )
        at = lax.axis_index(self.queries)
        return lax.dynamic_index_in_dim(by_device, at, keepdims=False)

    def collect(self, x: Float[Array, "N E"], rows: int) -> Float[Array, "B T E"]:
        """Of each device's own tokens, whole rows on every one."""
        x = x.reshape(rows, -1, x.shape[-1])
        if self.parts == 1:
            return x
        if self.alike:
            return to_rows(gather_alike(x, self.queries), self.parts)
        return _collect(x, self)

    def gather(self, x: Array, axis: int = 2) -> Array:
        """Within `map_devices`: keys or values of whole rows.

        Args:
          x: [B, K, T / n, D], or [B, T / n, K, D] with an `axis` of 1.
          axis: which counts tokens.
        """
        if self.parts == 1:
            return x
        return to_rows(lax.all_gather(x, self.queries, tiled=True), self.parts, axis)

    def scatter(self, x: Array, axis: int = 2) -> Array:
        """The sum over devices, of which each is given its own tokens.

        Args:
          x: [B, K, T, D], or [B, T, K, D] with an `axis` of 1.
          axis: which counts tokens.
        """
        if self.parts == 1:
            return x
        wide = to_devices(x.astype(jnp.float32), self.parts, axis)
        own = lax.psum_scatter(wide, self.queries, scatter_dimension=0, tiled=True)
        return own.astype(x.dtype)

    def map_devices(
        self, call: Callable[..., Any], in_specs: Any, out_specs: Any
    ) -> Callable[..., Any]:
        """Each device calls it on its part, since a compiler cannot split a kernel or its loops.

        What comes out is not to be differentiated.
        """

        def local(*arguments):
            leaves, tree = jax.tree.flatten(arguments)
            return call(*jax.tree.unflatten(tree, vary_alike(*leaves)))

        if not self.auto:
            return local
        options = {"in_specs": in_specs, "out_specs": out_specs, "axis_names": self.auto}
        return as_one(jax.shard_map(local, mesh=self.mesh, **options))


UNSPLIT = AttentionSplit()


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _collect(x: Array, split: AttentionSplit) -> Array:
    """All compute the same of whole rows, so each has all of their gradient: the sum over devices
    is known to it."""
    return to_rows(lax.all_gather(x, split.queries, tiled=True), split.parts)


def _collect_fwd(x: Array, split: AttentionSplit) -> tuple[Array, None]:
    return _collect(x, split), None


def _collect_bwd(split: AttentionSplit, _: None, slope: Array) -> tuple[Array]:
    return (split.own(slope) * split.parts,)


_collect.defvjp(_collect_fwd, _collect_bwd)


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

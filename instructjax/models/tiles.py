"""A flat batch cut into tiles by depth, and the lanes of its arrays read and added to.

Each sequence is cut into tiles: tokens 0 to `tile` - 1 of it, then the next `tile`, and so on,
wherever they stand in the row. A branch of a tree that leaves its prefix within a tile gets a tile
of its own, which takes the lanes before the branch from the tile that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


class Tiles(NamedTuple):
    """How a flat batch is cut into tiles; lane i of a tile holds depth i of its `tile` depths.

    Attributes:
      count: how many tiles there are; entries of the next four past it mean nothing.
      first: where lane 0 of each tile would stand if all its lanes stood together.
      own: the first lane that holds a token of the tile itself.
      base: the tile that has the lanes before `own`, -1 if there are none.
      before: the tile of the `tile` depths before these, -1 at the root.
      owner: the tile that each token belongs to, -1 for padding.
      groups: how many groups there are: tiles side by side, of one block of depths after the same
        tile, that have no more tokens than a tile together; as many entries of `lead` mean
        something, and one more.
      lead: the first tile of each group, and behind the last the number of tiles.
    """

    count: Int[Array, ""]
    first: Int[Array, " N"]
    own: Int[Array, " N"]
    base: Int[Array, " N"]
    before: Int[Array, " N"]
    owner: Int[Array, " N"]
    groups: Int[Array, ""]
    lead: Int[Array, " M"]


def find_tiles(positions: Int[Array, "B T"], ends: Int[Array, "B T"], tile: int) -> Tiles:
    """Tiles of rows that are laid out depth first, as `attention` describes.

    The last example is a prefix of three tokens and two branches of two: the second branch begins
    a tile, whose first lane is the third token of the prefix.

    >>> positions, ends = jnp.array([[0, 1, 2, 3, 4, 3, 4]]), jnp.array([[7, 7, 7, 5, 5, 7, 7]])
    >>> tiles = find_tiles(positions, ends, 2)
    >>> tiles.owner.tolist(), tiles.own[: tiles.count].tolist()
    ([0, 0, 1, 1, 2, 3, 4], [0, 0, 0, 1, 0])
    >>> tiles.base[: tiles.count].tolist(), tiles.before[: tiles.count].tolist()
    ([-1, -1, -1, 1, -1], [-1, 0, 1, 0, 3])
    """
    rows, length = ends.shape
    index = jnp.arange(ends.size)
    row_start = jnp.arange(rows)[:, None] * length
    stops = (ends + row_start).reshape(-1)
    depth = positions.reshape(-1)
    used = stops > index
    follows = (depth == jnp.roll(depth, 1) + 1) & (jnp.roll(stops, 1) > index)
    begins = used & ((depth % tile == 0) | ~follows)
    (starts,) = jnp.nonzero(begins, size=ends.size, fill_value=0)
    count = begins.sum()
    block, own = depth[starts] // tile, depth[starts] % tile

    owner = jnp.where(used, jnp.cumsum(begins) - 1, -1)
    sizes = jnp.zeros_like(starts).at[owner].add(used)

    def link(i, carry):
        # Depth first, so the latest tile of each block of depths is the one on the current path.
        latest, base, before, groups, lead = carry
        base = base.at[i].set(jnp.where(own[i] > 0, latest[block[i]], -1))
        before = before.at[i].set(jnp.where(block[i] > 0, latest[block[i] - 1], -1))
        # Where nothing comes before, nothing is saved.
        joins = (before[i] >= 0) & (before[i] == before[i - 1])
        joins &= starts[i] == starts[i - 1] + sizes[i - 1]
        joins &= starts[i] + sizes[i] - starts[lead[groups - 1]] <= tile
        joins &= i > 0
        groups += ~joins
        lead = lead.at[groups - 1].set(jnp.where(joins, lead[groups - 1], i))
        return latest.at[block[i]].set(i), base, before, groups, lead

    nothing = jnp.full_like(starts, -1)
    latest = nothing[: -(-length // tile)]
    start = (latest, nothing, nothing, count * 0, jnp.zeros_like(starts, shape=len(starts) + 1))
    _, base, before, groups, lead = lax.fori_loop(0, count, link, start)
    return Tiles(count, starts - own, own, base, before, owner, groups, lead.at[groups].set(count))


def pad(x, tile):
    return jnp.pad(x, ((tile, tile),) + ((0, 0),) * (x.ndim - 1))


def lanes_of(x, start, tile):
    """The lanes from `start` of an array with `tile` rows of padding before and after."""
    return lax.dynamic_slice_in_dim(x, start + tile, tile)


def put(x, start, part):
    tile = part.shape[0]
    return lax.dynamic_update_slice_in_dim(x, part, start + tile, 0)


def wide(lanes, x):
    return lanes.reshape(-1, *(1,) * (x.ndim - 1))


def _up_the_bases(i, stop, tiles, tile, step, carry):
    """step(carry, i, lanes) for tile i and those it builds on; each gives its own lanes < stop."""
    lane = jnp.arange(tile)

    def one(state):
        i, stop, carry = state
        carry = step(carry, i, (tiles.own[i] <= lane) & (lane < stop))
        return tiles.base[i], jnp.minimum(stop, tiles.own[i]), carry

    return lax.while_loop(lambda state: state[0] >= 0, one, (i, stop, carry))[2]


def gather(i, tiles, tile, *arrays):
    """All lanes of tile i, its own and those of its bases."""

    def step(parts, i, own):
        lanes = (lanes_of(x, tiles.first[i], tile) for x in arrays)
        return tuple(
            jnp.where(wide(own, new), new, old) for new, old in zip(lanes, parts, strict=True)
        )

    parts = tuple(lanes_of(x, tiles.first[i], tile) for x in arrays)
    return _up_the_bases(tiles.base[i], tiles.own[i], tiles, tile, step, parts)


def scatter_add(totals, parts, i, tiles, tile):
    """The transpose of `gather`: adds each lane where its token stands."""

    def step(totals, i, own):
        first = tiles.first[i]
        return tuple(
            put(total, first, lanes_of(total, first, tile) + jnp.where(wide(own, part), part, 0))
            for total, part in zip(totals, parts, strict=True)
        )

    every = jnp.full_like(tiles.count, tile)
    return _up_the_bases(i, every, tiles, tile, step, totals)

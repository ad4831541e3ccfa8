"""A flat batch cut into tiles by depth.

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
      lanes: where in the batch the token of each lane stands, of those of its bases too.
      order: tiles with more before them first.
      groups: how many groups there are: tiles side by side, of one block of depths after the same
        tile, that have no more tokens than a tile together; as many entries of `lead` mean
        something, and one more.
      lead: the first tile of each group, and behind the last the number of tiles.
      group_order: as `order`, of groups.
    """

    count: Int[Array, ""]
    first: Int[Array, " N"]
    own: Int[Array, " N"]
    base: Int[Array, " N"]
    before: Int[Array, " N"]
    owner: Int[Array, " N"]
    lanes: Int[Array, "N tile"]
    order: Int[Array, " N"]
    groups: Int[Array, ""]
    lead: Int[Array, " M"]
    group_order: Int[Array, " N"]


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
    index, lane = jnp.arange(ends.size), jnp.arange(tile)
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
        latest, base, before, lanes, groups, lead = carry
        base = base.at[i].set(jnp.where(own[i] > 0, latest[block[i]], -1))
        before = before.at[i].set(jnp.where(block[i] > 0, latest[block[i] - 1], -1))
        lanes = lanes.at[i].set(jnp.where(lane < own[i], lanes[base[i]], lanes[i]))
        # Where nothing comes before, nothing is saved.
        joins = (before[i] >= 0) & (before[i] == before[i - 1])
        joins &= starts[i] == starts[i - 1] + sizes[i - 1]
        joins &= starts[i] + sizes[i] - starts[lead[groups - 1]] <= tile
        joins &= i > 0
        groups += ~joins
        lead = lead.at[groups - 1].set(jnp.where(joins, lead[groups - 1], i))
        return latest.at[block[i]].set(i), base, before, lanes, groups, lead

    nothing = jnp.full_like(starts, -1)
    latest = nothing[: -(-length // tile)]
    lanes = jnp.clip((starts - own)[:, None] + lane, 0, ends.size - 1)
    lead = jnp.zeros_like(starts, shape=len(starts) + 1)
    start = (latest, nothing, nothing, lanes, count * 0, lead)
    _, base, before, lanes, groups, lead = lax.fori_loop(0, count, link, start)

    def deepest_first(block, count):
        return jnp.argsort(jnp.where(jnp.arange(len(block)) < count, -block, 1), stable=True)

    return Tiles(
        count,
        starts - own,
        own,
        base,
        before,
        owner,
        lanes,
        deepest_first(block, count),
        groups,
        lead.at[groups].set(count),
        deepest_first(block[lead[:-1]], groups),
    )

"""Parameters onto devices piece by piece, so that the host never holds a whole stack of layers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Shaped

Piece = tuple[tuple[int, ...], Shaped[np.ndarray, "*piece"]]


def assemble(
    shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding, pieces: Iterable[Piece]
) -> Shaped[Array, "*shape"]:
    """A parameter from the tensors that it is a stack of, each let go before the next is made.

    Each device of this process is given its share of each piece, and nothing is sent between
    devices or processes; all processes of a mesh come with the same pieces in the same order.

    Args:
      shape, dtype: of the parameter.
      sharding: where it goes.
      pieces: (i, j, ...) and what goes to [i, j, ...]; of a parameter that is no stack, () and all.

    >>> one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> pieces = (((i,), np.full(2, i, np.float32)) for i in range(3))
    >>> assemble((3, 2), np.dtype("float32"), one, pieces).tolist()
    [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    """
    whole: Array | None = None
    write = jax.jit(_write, donate_argnums=0, out_shardings=sharding)
    for index, piece in pieces:
        part = _put(piece, _of_piece(sharding, len(index)))
        del piece
        if not index:
            return jax.block_until_ready(part)
        if whole is None:
            whole = jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
        # Waited for: what is on its way to a device is still held here.
        whole = jax.block_until_ready(write(whole, part, np.array(index, np.int32)))
        part.delete()
    assert whole is not None  # there is no parameter without a tensor
    return whole


def _put(piece: Shaped[np.ndarray, "*piece"], sharding: Sharding) -> Shaped[Array, "*piece"]:
    return jax.make_array_from_callback(piece.shape, sharding, lambda at: piece[at])


def _write(whole, part, index):
    part = part.reshape((1,) * len(index) + part.shape)
    at = (*index, *(0,) * (whole.ndim - len(index)))
    return lax.dynamic_update_slice(whole, part, at)


def _of_piece(sharding: Sharding, leading: int) -> Sharding:
    """The sharding of what is found behind the first axes of a parameter."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[leading:]))

r"""The head for training: log-probabilities and nothing else.

The same numbers as `score_positions` gives, in less time: no entropy, no rank, no greedy match.
`log_prob_positions` keeps one log-normalizer a scored token, and its backward pass, the head's own,
computes logits again. Where a sum is wanted whose weights are known, as of a batch in fine-tuning,
`weighted_log_prob` has gradient and value of logits that are computed once, as in Hsu et al. 2024.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from instructjax.models.varying import WHOLE_TABLE, TableSplit, vary_alike
from instructjax.scoring import head

# A tile of logits. More rows read the table, and add to its gradient, fewer times, but waste more
# of the last chunk; fewer columns leave more of the table's tile in the cache for its second use.
# `weighted_log_prob` takes all columns at once.
ROWS, COLUMNS = 256, 4096


def log_prob_positions(
    hidden: Float[Array, "N E"],
    table: Float[Array, "V E"],
    sources: Int[Array, " M"],
    targets: Int[Array, " M"],
    count: Int[Array, ""],
    *,
    softcap: float | None = None,
    split: TableSplit = WHOLE_TABLE,
) -> Float[Array, " M"]:
    """log p of `targets[i]` given hidden state `sources[i]`, for i < count; zeros after.

    With `split`, each device multiplies with the rows of the table that it has, and what they find
    is put together (Shoeybi et al. 2019); the gradients of rows stay where the rows are.

    >>> h, w = jnp.eye(2), jnp.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    >>> logs = log_prob_positions(h, w, jnp.array([0, 1]), jnp.array([1, 0]), jnp.array(1))
    >>> [round(float(x), 4) for x in logs]  # uniform over three, and one that does not count
    [-1.0986, 0.0]
    """
    arrays = vary_alike(hidden, table, sources, targets, count)
    return _log_prob(*arrays, softcap, split)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _log_prob(hidden, table, sources, targets, count, softcap, split):
    return _log_prob_fwd(hidden, table, sources, targets, count, softcap, split)[0]


def _on_parts(function, split, out_specs):
    """The function of arrays, the second of which is split: on each device with its part."""
    if not split.axes:
        return function
    of_table = PartitionSpec(split.axes)

    def call(*arrays):
        return jax.shard_map(
            function,
            mesh=split.mesh,
            in_specs=tuple(of_table if i == 1 else PartitionSpec() for i in range(len(arrays))),
            out_specs=out_specs,
            axis_names=frozenset(split.axes),
        )(*arrays)

    return call


def _forward(hidden, table, sources, targets, count, softcap, axes):
    positions = sources.shape[0]
    first = head.first_row(table, axes)
    size, sources, targets = head.cut_rows(sources, targets, ROWS)
    tile, num_tiles = head.cut_columns(table, COLUMNS)

    def chunk(i, results):
        at, target = (lax.dynamic_slice_in_dim(x, i * size, size) for x in (sources, targets))
        target -= first
        h = hidden[at]

        def one_tile(j, running):
            top, total, logit = running
            weights, ids, fresh, _ = tile(j)
            x = head.cap_logits(head.compute_logits(h, weights), softcap)
            x = jnp.where(fresh, x, -jnp.inf)
            new_top = jnp.maximum(top, x.max(-1))
            total = total * jnp.exp(top - new_top) + jnp.exp(x - new_top[:, None]).sum(-1)
            column = jnp.clip(target - ids[0], 0, ids.shape[0] - 1)
            is_here = (ids[column] == target) & fresh[column]
            own = jnp.take_along_axis(x, column[:, None], 1)[:, 0]
            return new_top, total, jnp.where(is_here, own, logit)

        zero, _ = vary_alike(jnp.zeros_like(h, jnp.float32, shape=size), table)
        top, total, logit = lax.fori_loop(0, num_tiles, one_tile, (zero - jnp.inf, zero, zero))
        if axes:
            own, top = top, lax.pmax(top, axes)
            total, logit = lax.psum((total * jnp.exp(own - top), logit), axes)
        log_norm = top + jnp.log(total)
        live = i * size + jnp.arange(size) < count
        values = (jnp.where(live, logit - log_norm, 0), log_norm)
        return tuple(
            lax.dynamic_update_slice_in_dim(r, x, i * size, 0)
            for r, x in zip(results, values, strict=True)
        )

    zeros = jnp.zeros_like(hidden, jnp.float32, shape=sources.shape)
    results = lax.fori_loop(0, -(-count // size), chunk, (zeros, zeros))
    return tuple(r[:positions] for r in results)


def _log_prob_fwd(hidden, table, sources, targets, count, softcap, split):
    forward = partial(_forward, softcap=softcap, axes=split.axes)
    shared = PartitionSpec()
    arrays = (hidden, table, sources, targets, count)
    logs, log_norm = _on_parts(forward, split, (shared, shared))(*arrays)
    return logs, (hidden, table, sources, targets, count, log_norm)


def _log_prob_bwd(softcap, split, saved, d_log_prob):
    backward = partial(
        head.differentiate, softcap=softcap, rows=ROWS, columns=COLUMNS, axes=split.axes
    )
    specs = (PartitionSpec(), PartitionSpec(split.axes))
    parts: Any = _on_parts(backward, split, specs)
    grads = parts(*saved, d_log_prob)
    return *grads, None, None, None


_log_prob.defvjp(_log_prob_fwd, _log_prob_bwd)


def weighted_log_prob(
    hidden: Float[Array, "N E"],
    table: Float[Array, "V E"],
    sources: Int[Array, " M"],
    targets: Int[Array, " M"],
    weights: Float[Array, " M"],
    count: Int[Array, ""],
    *,
    softcap: float | None = None,
    split: TableSplit = WHOLE_TABLE,
) -> Float[Array, ""]:
    r"""\(\sum_{i < count} w_i \log p_i\), p as of `log_prob_positions`.

    Differentiated, it multiplies with the table three times, not four: the forward pass makes the
    gradient of the sum while it has the logits of `ROWS` positions, and keeps that.

    >>> h, w = jnp.eye(2), jnp.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    >>> def total(h, weights):
    ...     return weighted_log_prob(h, w, jnp.array([0]), jnp.array([0]), weights, jnp.array(1))
    >>> value, (d_hidden, d_weights) = jax.value_and_grad(total, (0, 1))(h, jnp.array([3.0]))
    >>> round(float(value), 4), d_hidden.round(4).tolist(), round(float(d_weights[0]), 4)
    (-3.2958, [[0.0, 2.0], [0.0, 0.0]], -1.0986)
    """
    weights = jnp.where(jnp.arange(len(weights)) < count, weights, 0)
    arrays = vary_alike(hidden, table, sources, targets, weights, count)
    return _weighted(*arrays, softcap, split)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _weighted(hidden, table, sources, targets, weights, count, softcap, split):
    return jnp.sum(weights * _log_prob(hidden, table, sources, targets, count, softcap, split))


def _with_gradient(hidden, table, sources, targets, weights, count, softcap, axes, learns_table):
    positions = sources.shape[0]
    first = head.first_row(table, axes)
    size, sources, targets = head.cut_rows(sources, targets, ROWS)
    weights = jnp.pad(weights, (0, sources.shape[0] - positions))
    columns = jnp.arange(table.shape[0])

    def chunk(i, carry):
        logs, d_hidden, d_table = carry
        at, target, weight = (
            lax.dynamic_slice_in_dim(x, i * size, size) for x in (sources, targets, weights)
        )
        target -= first
        live = i * size + jnp.arange(size) < count
        h = jnp.where(live[:, None], hidden[at], 0)  # what nobody scores may be no number
        logits = head.cap_logits(head.compute_logits(h, table), softcap)
        hit = target[:, None] == columns
        top = logits.max(-1)
        top = lax.pmax(top, axes) if axes else top
        below = logits - top[:, None]
        sums = jnp.exp(below).sum(-1), jnp.where(hit, below, 0).sum(-1)
        total, own = lax.psum(sums, axes) if axes else sums
        d_logits = weight[:, None] * (hit - jnp.exp(below) / total[:, None])
        d_h, part = head.pull_back(d_logits, logits, h, table, softcap, learns_table=learns_table)
        own = jnp.where(live, own - jnp.log(total), 0)
        logs = lax.dynamic_update_slice_in_dim(logs, own, i * size, 0)
        return logs, d_hidden.at[at].add(d_h), d_table + part if learns_table else None

    logs = jnp.zeros_like(hidden, jnp.float32, shape=sources.shape)
    d_hidden, d_table = vary_alike(*(jnp.zeros_like(x, jnp.float32) for x in (hidden, table)))
    d_table = d_table if learns_table else None
    logs, d_hidden, d_table = lax.fori_loop(0, -(-count // size), chunk, (logs, d_hidden, d_table))
    d_hidden = lax.psum(d_hidden, axes) if axes else d_hidden
    d_table = d_table.astype(table.dtype) if learns_table else None
    return logs[:positions], d_hidden.astype(hidden.dtype), d_table


def _weighted_fwd(hidden, table, sources, targets, weights, count, softcap, split):
    learns_table = table.perturbed  # not with LoRA, nor where it is frozen
    both = partial(_with_gradient, softcap=softcap, axes=split.axes, learns_table=learns_table)
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(split.axes))
    arrays = [x.value for x in (hidden, table, sources, targets, weights, count)]
    logs, d_hidden, d_table = _on_parts(both, split, specs)(*arrays)
    return jnp.sum(weights.value * logs), (logs, weights.value, d_hidden, d_table)


def _weighted_bwd(softcap, split, saved, d_sum):
    logs, weights, *grads = saved
    if isinstance(d_sum, SymbolicZero):
        return (None,) * 6
    d_hidden, d_table = (None if x is None else (d_sum * x).astype(x.dtype) for x in grads)
    return d_hidden, d_table, None, None, (d_sum * logs).astype(weights.dtype), None


_weighted.defvjp(fwd=_weighted_fwd, bwd=_weighted_bwd, symbolic_zeros=True)

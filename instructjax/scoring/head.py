r"""From hidden states to log-probabilities without ever holding [tokens, vocabulary] logits.

For a hidden state h and the output table W, \(\log p(v \mid h) = w_v \cdot h - \log \sum_u
\exp(w_u \cdot h)\). Scored positions are taken in chunks of `ROWS`, the vocabulary in tiles of
`COLUMNS`; sums of exponentials run online in float32. Chunks past the last scored position are
skipped. The backward pass keeps one log-normalizer a scored token and recomputes the rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from instructjax.models.linear import precision_of
from instructjax.models.varying import WHOLE_TABLE, TableSplit, vary_alike

ROWS = 128
COLUMNS = 8192


class TokenScores(struct.PyTreeNode):
    """What the model says of each scored token. Only `log_prob` carries gradients.

    Attributes:
      log_prob: log p(token | everything before it), in nats.
      greedy: the token is the one greedy decoding takes (of equal logits, the lowest id).
      entropy: of the whole next-token distribution, in nats.
      rank: 1 + how many tokens the model likes better.
      top_ids, top_log_probs: the k best alternatives, best first.
    """

    log_prob: Float[Array | np.ndarray, "*M"]
    greedy: Bool[Array | np.ndarray, "*M"]
    entropy: Float[Array | np.ndarray, "*M"]
    rank: Int[Array | np.ndarray, "*M"]
    top_ids: Int[Array | np.ndarray, "*M k"]
    top_log_probs: Float[Array | np.ndarray, "*M k"]


def score_positions(
    hidden: Float[Array, "N E"],
    table: Float[Array, "V E"],
    sources: Int[Array, " M"],
    targets: Int[Array, " M"],
    count: Int[Array, ""],
    *,
    top_k: int = 0,
    softcap: float | None = None,
    split: TableSplit = WHOLE_TABLE,
) -> TokenScores:
    """Scores of `targets[i]` given hidden state `sources[i]`, for i < count; zeros after.

    With `softcap` c, logits are c tanh(logit / c). With `split`, the table is put together once,
    and devices that have a part of it share the scored positions.

    Raises:
      TypeError: if something other than `log_prob` is differentiated.

    >>> h, w = jnp.eye(2), jnp.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    >>> s = score_positions(h, w, jnp.array([0]), jnp.array([1]), jnp.array(1))
    >>> round(float(s.log_prob[0]), 4), int(s.rank[0])  # uniform over three
    (-1.0986, 2)
    """
    if split.axes:
        return _share_positions(hidden, table, sources, targets, count, top_k, softcap, split)
    hidden, table, sources, targets, count = vary_alike(hidden, table, sources, targets, count)
    scores: Any = _score(hidden, table, sources, targets, count, top_k, softcap)
    return TokenScores(*scores)


def _share_positions(hidden, table, sources, targets, count, top_k, softcap, split):
    """Each device of the split takes every `parts`-th position."""
    positions, parts = sources.shape[0], split.parts

    def deal(x):
        return jnp.pad(x, (0, -positions % parts)).reshape(-1, parts).T.reshape(-1)

    def own(hidden, table, sources, targets, count):
        mine = (count - lax.axis_index(split.axes) + parts - 1) // parts
        return score_positions(hidden, table, sources, targets, mine, top_k=top_k, softcap=softcap)

    whole, dealt = PartitionSpec(), PartitionSpec(split.axes)
    scores = jax.shard_map(
        own,
        mesh=split.mesh,
        in_specs=(whole, whole, dealt, dealt, whole),
        out_specs=dealt,
        axis_names=frozenset(split.axes),
    )(hidden, table, deal(sources), deal(targets), count)

    def collect(x):
        size, *rest = x.shape
        return x.reshape(parts, size // parts, *rest).swapaxes(0, 1).reshape(size, *rest)

    return jax.tree.map(lambda x: collect(x)[:positions], scores)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _score(hidden, table, sources, targets, count, top_k, softcap):
    return _forward(hidden, table, sources, targets, count, top_k, softcap)[0]


def cut_columns(table, most=None):
    """Tiles of the vocabulary: the last one is moved back to fit, its repeated ids masked."""
    vocab = table.shape[0]
    width = min(most or COLUMNS, vocab)
    count = -(-vocab // width)

    def tile(j):
        start = jnp.minimum(j * width, vocab - width)
        ids = start + jnp.arange(width)
        return lax.dynamic_slice_in_dim(table, start, width), ids, ids >= j * width, start

    return tile, count


def first_row(table: Float[Array, "V E"], axes: tuple[str, ...]) -> Int[Array, ""] | int:
    """The id of row 0 of a device's part of a table that is split over these axes."""
    return lax.axis_index(axes) * table.shape[0] if axes else 0


def cut_rows(sources, targets, most=None):
    """Chunks of scored positions, padded so that the last chunk is whole."""
    size = min(most or ROWS, sources.shape[0])
    short = -sources.shape[0] % size
    sources, targets = jnp.pad(sources, (0, short)), jnp.pad(targets, (0, short))
    return size, sources, targets


def compute_logits(
    hidden: Float[Array, "*rows E"], table: Float[Array, "V E"]
) -> Float[Array, "*rows V"]:
    """Logits of hidden states over the rows of a table, in float32 whatever they are in."""
    return jnp.einsum(
        "...e,ve->...v",
        hidden,
        table,
        precision=precision_of(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


def cap_logits(
    logits: Float[Array, "*shape"], softcap: Float[Array, ""] | float | None
) -> Float[Array, "*shape"]:
    """c tanh(logit / c) (Gemma 2), or the logits as they are where there is no cap.

    >>> cap_logits(jnp.array([0.0, 1e9]), 30.0).tolist()
    [0.0, 30.0]
    """
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _forward(hidden, table, sources, targets, count, top_k, softcap):
    positions = sources.shape[0]
    size, sources, targets = cut_rows(sources, targets)
    tile, num_tiles = cut_columns(table)

    def chunk(i, results):
        at = lax.dynamic_slice_in_dim(sources, i * size, size)
        target = lax.dynamic_slice_in_dim(targets, i * size, size)
        h = hidden[at]
        guess = jnp.sum(h.astype(jnp.float32) * table[target].astype(jnp.float32), axis=-1)
        guess = cap_logits(guess, softcap)

        def one_tile(j, running):
            top, total, weighted, best, logit, above, k_logits, k_ids = running
            weights, ids, fresh, _ = tile(j)
            x = jnp.where(fresh, cap_logits(compute_logits(h, weights), softcap), -jnp.inf)
            new_top = jnp.maximum(top, x.max(-1))
            keep = jnp.exp(top - new_top)
            e = jnp.exp(x - new_top[:, None])
            best_here = ids[jnp.argmax(x, -1)]
            best = jnp.where(x.max(-1) > top, best_here, best)
            is_target = fresh & (ids == target[:, None])
            better = (x > guess[:, None]) & ~is_target
            if top_k:
                k_logits, order = lax.top_k(jnp.concatenate([k_logits, x], -1), top_k)
                all_ids = jnp.concatenate([k_ids, jnp.broadcast_to(ids, x.shape)], -1)
                k_ids = jnp.take_along_axis(all_ids, order, -1)
            return (
                new_top,
                total * keep + e.sum(-1),
                weighted * keep + jnp.where(fresh, e * x, 0).sum(-1),
                best,
                logit + jnp.where(is_target, x, 0).sum(-1),
                above + better.sum(-1, dtype=jnp.int32),
                k_logits,
                k_ids,
            )

        zero = jnp.zeros_like(guess)
        k_zero = jnp.broadcast_to(zero[:, None], (size, top_k))
        start = (zero - jnp.inf, zero, zero, jnp.zeros_like(target), zero)
        start += (jnp.zeros_like(target), k_zero - jnp.inf, k_zero.astype(jnp.int32))
        top, total, weighted, best, logit, above, k_logits, k_ids = lax.fori_loop(
            0, num_tiles, one_tile, start
        )
        log_norm = top + jnp.log(total)
        greedy = best == target
        # The count of better tokens compares with a logit summed in another order, so it may be
        # off by one among equals; greedy is exact and settles rank 1.
        rank = jnp.where(greedy, 1, jnp.maximum(above + 1, 2))
        values = (logit - log_norm, greedy, log_norm - weighted / total, rank, k_ids)
        values += (k_logits - log_norm[:, None], log_norm)
        live = i * size + jnp.arange(size) < count
        values = (jnp.where(live.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in values)
        return tuple(
            lax.dynamic_update_slice_in_dim(r, x.astype(r.dtype), i * size, 0)
            for r, x in zip(results, values, strict=True)
        )

    floats = jnp.zeros_like(hidden, jnp.float32, shape=sources.shape)
    ints = jnp.zeros_like(sources)
    k_floats = jnp.broadcast_to(floats[:, None], (*sources.shape, top_k))
    results = (
        floats,
        ints.astype(bool),
        floats,
        ints,
        k_floats.astype(jnp.int32),
        k_floats,
        floats,
    )
    results = lax.fori_loop(0, -(-count // size), chunk, results)
    *scores, log_norm = (r[:positions] for r in results)
    return tuple(scores), log_norm


def _score_fwd(hidden, table, sources, targets, count, top_k, softcap):
    hidden, table, sources, targets, count = (
        x.value for x in (hidden, table, sources, targets, count)
    )
    scores, log_norm = _forward(hidden, table, sources, targets, count, top_k, softcap)
    return scores, (hidden, table, sources, targets, count, log_norm)


def _score_bwd(top_k, softcap, saved, cotangents):
    hidden, table, sources, targets, count, log_norm = saved
    d_log_prob, *others = cotangents
    if not all(isinstance(x, SymbolicZero) for x in others):
        raise TypeError("only log_prob can be differentiated: entropy and top-k scores cannot")
    if isinstance(d_log_prob, SymbolicZero):
        return jnp.zeros_like(hidden), jnp.zeros_like(table), None, None, None
    grads = differentiate(hidden, table, sources, targets, count, log_norm, d_log_prob, softcap)
    return *grads, None, None, None


def differentiate(
    hidden,
    table,
    sources,
    targets,
    count,
    log_norm,
    d_log_prob,
    softcap,
    *,
    rows=None,
    columns=None,
    axes=(),
) -> tuple[Float[Array, "N E"], Float[Array, "V E"]]:
    """Gradients of hidden states and table from those of the log-probabilities.

    Args:
      hidden, table, sources, targets, count, softcap: as for `score_positions`.
      log_norm: [M], of each scored token, kept by the forward pass.
      d_log_prob: [M], gradient of each scored token's log-probability.
      rows, columns: of a tile of logits; `ROWS` and `COLUMNS` by default.
      axes: of an enclosing shard_map, that the table's rows are split over.
    """
    size, sources, targets = cut_rows(sources, targets, rows)
    short = sources.shape[0] - log_norm.shape[0]
    live = jnp.arange(log_norm.shape[0]) < count
    d_log_prob = jnp.pad(jnp.where(live, d_log_prob, 0), (0, short))
    # A row that does not count has no normalizer: with 0 its exponentials could overflow.
    log_norm = jnp.pad(jnp.where(live, log_norm, jnp.inf), (0, short), constant_values=jnp.inf)
    tile, num_tiles = cut_columns(table, columns)
    first = first_row(table, axes)

    def chunk(i, grads):
        at, target, g, norm = (
            lax.dynamic_slice_in_dim(x, i * size, size)
            for x in (sources, targets, d_log_prob, log_norm)
        )
        target -= first
        h = hidden[at]

        def one_tile(j, carry):
            d_h, d_table = carry
            weights, ids, fresh, start = tile(j)
            logits = cap_logits(compute_logits(h, weights), softcap)
            p = jnp.where(fresh, jnp.exp(logits - norm[:, None]), 0)
            hit = fresh & (ids == target[:, None])
            more, part = pull_back(g[:, None] * (hit - p), logits, h, weights, softcap)
            rows = lax.dynamic_slice_in_dim(d_table, start, part.shape[0])
            return d_h + more, lax.dynamic_update_slice_in_dim(d_table, rows + part, start, 0)

        d_hidden, d_table = grads
        zero, _ = vary_alike(jnp.zeros_like(h, jnp.float32), table)
        d_h, d_table = lax.fori_loop(0, num_tiles, one_tile, (zero, d_table))
        return d_hidden.at[at].add(d_h), d_table

    zeros = vary_alike(*(jnp.zeros_like(x, jnp.float32) for x in (hidden, table)))
    d_hidden, d_table = lax.fori_loop(0, -(-count // size), chunk, tuple(zeros))
    d_hidden = lax.psum(d_hidden, axes) if axes else d_hidden
    return d_hidden.astype(hidden.dtype), d_table.astype(table.dtype)


def pull_back(d_logits, logits, hidden, table, softcap, *, learns_table=True) -> tuple[Any, Any]:
    """Gradients of hidden states and of the table's rows, in float32, from those of logits.

    Args:
      d_logits: [rows, V], of the logits as they are after the cap.
      logits: [rows, V], after the cap.
      hidden, table: [rows, E] and [V, E], whose product they are.
      softcap: the cap.
      learns_table: whether the second is wanted; else it is None.
    """
    if softcap is not None:
        d_logits *= 1 - (logits / softcap) ** 2
    d_logits, precision = d_logits.astype(hidden.dtype), precision_of(hidden.dtype)
    d_hidden = jnp.matmul(d_logits, table, precision=precision).astype(jnp.float32)
    if not learns_table:
        return d_hidden, None
    d_table = jnp.einsum(
        "rv,re->ve", d_logits, hidden, precision=precision, preferred_element_type=jnp.float32
    )
    return d_hidden, d_table


_score.defvjp(fwd=_score_fwd, bwd=_score_bwd, symbolic_zeros=True)

r"""Was y in the training data? Min-K% (Shi et al. 2023, arXiv 2310.16789) and Min-K%++.

Min-K%: the mean log-probability of the K% least likely tokens; higher means likelier seen. Min-K%++
(Zhang et al. 2024, arXiv 2404.02936) standardizes each token first by the mean and the standard
deviation of log p over the whole next-token distribution, \(\mu_t = \sum_v p_v \log p_v\) (minus
the entropy) and \(\sigma_t^2 = \sum_v p_v \log^2 p_v - \mu_t^2\).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from instructjax.batching.batch import Batch
from instructjax.generalization.arrays import AnyArray
from instructjax.scoring.log_probs import next_token_log_probs


def min_k_log_prob(
    token_log_prob: Float[AnyArray, "B T"], mask: Bool[AnyArray, "B T"], k: float = 0.2
) -> Float[Array, " B"]:
    """Mean log p of the least likely share k of each response's tokens, nats; at least one token.

    -inf where one of these is impossible, NaN where there is no token.

    Args:
      token_log_prob: of y, nats.
      mask: tokens of y.
      k: share, above 0 and at most 1; k x length is rounded down.

    >>> scores = jnp.array([[-1.0, -9.0, -2.0, -4.0, -99.0]])
    >>> mask = jnp.array([[True, True, True, True, False]])
    >>> min_k_log_prob(scores, mask, 0.5).tolist()
    [-6.5]
    """
    return _mean_of_least(jnp.asarray(token_log_prob), jnp.asarray(mask), k)


def min_k_pp(
    token_log_prob: Float[AnyArray, "B T"],
    mu: Float[AnyArray, "B T"],
    sigma: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    k: float = 0.2,
) -> Float[Array, " B"]:
    """Min-K%++: mean over the least share k of (log p - mu) / sigma; no unit.

    Args:
      token_log_prob, mask, k: as in `min_k_log_prob`.
      mu, sigma: from `next_token_moments`. Where sigma is 0 (a uniform distribution, or a certain
        token) log p is mu, and the token counts 0.

    >>> scores, mask = jnp.array([[-1.0, -3.0]]), jnp.array([[True, True]])
    >>> min_k_pp(scores, jnp.array([[-2.0, -2.0]]), jnp.array([[1.0, 2.0]]), mask, 0.5).tolist()
    [-0.5]
    """
    sigma = jnp.asarray(sigma)
    standard = (jnp.asarray(token_log_prob) - mu) / jnp.where(sigma > 0, sigma, 1)
    return _mean_of_least(jnp.where(sigma > 0, standard, 0), jnp.asarray(mask), k)


def _mean_of_least(values: Array, mask: Array, k: float) -> Array:
    tokens = mask.sum(-1)
    count = jnp.maximum(jnp.floor(k * tokens + 1e-6), 1)
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=-1)
    least = jnp.arange(values.shape[-1]) < count[:, None]
    return jnp.where(tokens > 0, jnp.where(least, ordered, 0).sum(-1) / count, jnp.nan)


def log_prob_moments(
    log_probs: Float[AnyArray, "*shape V"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """mu and sigma of log p under p itself, nats, of whole next-token distributions.

    >>> mu, sigma = log_prob_moments(jnp.log(jnp.array([0.5, 0.25, 0.25])))
    >>> round(float(mu / jnp.log(2.0)), 4), round(float(sigma / jnp.log(2.0)), 4)
    (-1.5, 0.5)
    """
    logs = jnp.asarray(log_probs)
    p = jnp.exp(logs)
    finite = jnp.where(p > 0, logs, 0)
    mu = (p * finite).sum(-1)
    # Around the mean: the difference of squares would lose its digits where sigma is small.
    return mu, jnp.sqrt((p * (finite - mu[..., None]) ** 2).sum(-1))


def next_token_moments(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch, *, chunk: int = 16
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
    """mu and sigma at every scored position of a batch, nats; 0 past `batch.num_scored`.

    The model runs once a row and chunk: only chunk x vocabulary numbers exist at a time.

    Args:
      graphdef, params: the halves of a model.
      batch: what is scored.
      chunk: positions a row at a time.
    """
    rows, width = batch.sources.shape
    short = -width % chunk
    sources = jnp.pad(batch.sources, ((0, 0), (0, short))).reshape(rows, -1, chunk)

    def one(args):
        row, at = args
        single = jax.tree.map(lambda x: x[row][None], batch)
        return log_prob_moments(next_token_log_probs(graphdef, params, single, at)[0])

    def one_chunk(at):
        return jax.lax.map(one, (jnp.arange(rows), at))

    mu, sigma = jax.lax.map(one_chunk, sources.swapaxes(0, 1))
    live = jnp.arange(width) < batch.num_scored[:, None]

    def unroll(x):
        return jnp.where(live, x.swapaxes(0, 1).reshape(rows, -1)[:, :width], 0)

    return unroll(mu), unroll(sigma)

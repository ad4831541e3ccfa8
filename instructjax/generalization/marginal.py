r"""The true marginal over a pool of instructions, and what y tells about c.

With a prior Pr(c) over a pool, \(\bar P(y|z) = \sum_c \Pr(c) \Pr(y|c,z)\) is a distribution over
y, and Pr(c | y, z) is proportional to Pr(c) Pr(y | c, z). log Pr(y|c,z) - log P(y|z) is the
pointwise mutual information of y and c at z; its mean over c ~ Pr(c) and y ~ Pr(y|c,z) is
I(C; Y | z), between 0 and the entropy of the pool: how much wording or task matters, with no
reference answers (Cover and Thomas 2006, chapter 2).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from instructjax.generalization.arrays import AnyArray


class MarginalAttribution(NamedTuple):
    """What a pool of instructions gives.

    Attributes:
      log_marginal: log P(y | z) of each response, [C', Z], nats.
      pmi: log Pr(y | c, z) - log P(y | z), [C, C', Z], nats.
      log_posterior: log Pr(c | y, z), [C, C', Z], nats.
      information: I(C; Y | z), estimated from the responses, one by each c, [Z], nats. Only where
        y of row c' was drawn from Pr(y | c', z): with references it means nothing.
      identified: share of responses whose own c is the likeliest, [Z].
    """

    log_marginal: Array
    pmi: Array
    log_posterior: Array
    information: Array
    identified: Array


def marginal_attribution(
    log_prob: Float[AnyArray, "C D Z"],
    log_prior: Float[AnyArray, " C"] | None = None,
    mask: Bool[AnyArray, "D Z"] | None = None,
) -> MarginalAttribution:
    """Marginal, PMI and posterior over a pool of C instructions, of D responses to each input.

    Args:
      log_prob: [c, d, z] is log Pr(y_dz | c, z), nats: D = C where y_dz was drawn under d, the
        matrix that `posix` takes too; D = 1 for references, and then information and identified
        are those of a single response and mean nothing.
      log_prior: of the pool, nats; default: uniform.
      mask: responses that are there; default: all. Not those that are not: 0.

    >>> log_prob = jnp.log(jnp.array([[0.8, 0.1], [0.2, 0.9]]))[..., None]
    >>> found = marginal_attribution(log_prob)
    >>> jnp.exp(found.log_marginal[:, 0]).round(3)
    Array([0.5, 0.5], dtype=float32)
    >>> jnp.exp(found.log_posterior[:, 0, 0]).round(3), float(found.identified[0])
    (Array([0.8, 0.2], dtype=float32), 1.0)
    """
    log_prob = jnp.asarray(log_prob)
    c, d, z = log_prob.shape
    prior = jnp.full(c, -jnp.log(float(c))) if log_prior is None else jnp.asarray(log_prior)
    prior = prior - logsumexp(prior)
    there = jnp.ones((d, z), bool) if mask is None else jnp.asarray(mask)
    joint = jnp.where(there, log_prob, 0) + prior[:, None, None]
    marginal = logsumexp(joint, axis=0)
    pmi = jnp.where(there, log_prob - marginal, 0)
    posterior = jnp.where(there, joint - marginal, 0)
    weight = jnp.where(there, jnp.exp(prior[:d, None]) if d == c else 1.0 / d, 0)
    weight /= jnp.maximum(weight.sum(0), jnp.finfo(weight.dtype).tiny)
    own = jnp.diagonal(pmi, axis1=0, axis2=1).T if d == c else pmi[0]
    best = jnp.argmax(posterior, axis=0) == jnp.arange(d)[:, None]
    return MarginalAttribution(
        jnp.where(there, marginal, 0),
        pmi,
        posterior,
        (weight * own).sum(0),
        (weight * best).sum(0),
    )


def marginal_token_log_probs(
    token_log_prob: Float[AnyArray, "C N T"],
    mask: Bool[AnyArray, "N T"],
    log_prior: Float[AnyArray, " C"] | None = None,
) -> tuple[Float[Array, "N T"], Float[Array, "C N T"]]:
    r"""The marginal token by token, and the posterior over instructions after each token.

    \(\bar P(y_t | y_{<t}, z) = \sum_c \Pr(c | y_{<t}, z) \Pr(y_t | y_{<t}, c, z)\): the mixture
    with the posterior so far; the sum of its logs over t is log P(y|z).

    Args:
      token_log_prob: of the same y under each c, nats.
      mask: tokens of y.
      log_prior: of the pool, nats; default: uniform.

    Returns:
      log P(y_t | y_<t, z), 0 where masked; log Pr(c | y_<=t, z), nats.

    >>> under = jnp.log(jnp.array([[[0.5, 0.5]], [[0.5, 0.1]]]))
    >>> tokens, posterior = marginal_token_log_probs(under, jnp.array([[True, True]]))
    >>> jnp.exp(tokens).round(3), jnp.exp(posterior[0, 0]).round(2)
    (Array([[0.5, 0.3]], dtype=float32), Array([0.5 , 0.83], dtype=float32))
    """
    values = jnp.where(mask, jnp.asarray(token_log_prob), 0)
    c = values.shape[0]
    prior = jnp.full(c, -jnp.log(float(c))) if log_prior is None else jnp.asarray(log_prior)
    prior = jax.nn.log_softmax(prior)
    joint = jnp.cumsum(values, axis=-1) + prior[:, None, None]
    after = logsumexp(joint, axis=0)
    before = jnp.concatenate([jnp.zeros_like(after[:, :1]), after[:, :-1]], axis=1)
    return jnp.where(mask, after - before, 0), joint - after

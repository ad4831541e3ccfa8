r"""How far apart two next-token distributions are, exactly, at every position of y.

\(KL(p \| q) = \sum_v p_v (\log p_v - \log q_v)\), summed here as
\(\sum_v p_v (d_v + e^{-d_v} - 1)\) with \(d = \log p - \log q\). The two are equal because p and q
sum to 1; of the second no term is negative, and rounding of the normalizers cancels to first
order, so that small divergences are exact and that of p from itself is 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from instructjax.scoring.hidden import log_softmax_of, map_chunks


def next_token_kl(
    logits_p: Float[Array, "*M V"], logits_q: Float[Array, "*M V"]
) -> Float[Array, "*M"]:
    r"""\(KL(p \| q)\), nats, of the distributions that two arrays of logits give.

    Logits or log-probabilities: a constant added to a row changes nothing.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> round(float(next_token_kl(p, q)), 4)  # 0.5 log 2 + 0.5 log (2 / 3)
    0.1438
    >>> float(next_token_kl(p, p + 3.0))
    0.0
    """
    return _kl(jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q))


def next_token_js(
    logits_p: Float[Array, "*M V"], logits_q: Float[Array, "*M V"]
) -> Float[Array, "*M"]:
    r"""Jensen-Shannon divergence, nats: the mean KL of p and of q from their mean; 0 to log 2.

    >>> logits = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> round(float(next_token_js(logits[0], logits[1])), 4)
    0.6931
    """
    return _js(jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q))


def hidden_divergences(
    hidden_p: Float[Array, "M E"],
    table_p: Float[Array, "V E"],
    hidden_q: Float[Array, "M F"],
    table_q: Float[Array, "V F"],
    softcap_p: float | None = None,
    softcap_q: float | None = None,
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """KL(p || q) and Jensen-Shannon divergence, nats, from hidden states and output tables.

    The widths E and F of two models may differ, their vocabularies may not. Logits exist for a
    chunk of positions at a time, and are capped where a model caps them.
    """

    def divide(p, q):
        log_p = log_softmax_of(p, table_p, softcap_p)
        log_q = log_softmax_of(q, table_q, softcap_q)
        return jnp.stack([_kl(log_p, log_q), _js(log_p, log_q)], axis=-1)

    both = map_chunks(divide, hidden_p, hidden_q)
    return both[:, 0], both[:, 1]


def _kl(log_p, log_q):
    p = jnp.exp(log_p)
    d = jnp.where(p > 0, log_p - log_q, 0.0)
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0.0)
    terms = jnp.where(near, p * (small + jnp.expm1(-small)), p * d + jnp.exp(log_q) - p)
    return jnp.where(p > 0, terms, jnp.exp(log_q)).sum(-1)


def _js(log_p, log_q):
    log_mean = jnp.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_mean) + _kl(log_q, log_mean)) / 2

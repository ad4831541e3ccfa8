r"""How far apart two next-token distributions are, exactly, at every position of y.

\(KL(p \| q) = \sum_v p_v (\log p_v - \log q_v)\) (Kullback and Leibler 1951), summed here as
\(\sum_v p_v (d_v + e^{-d_v} - 1)\) with \(d = \log p - \log q\). The two are equal because p and q
sum to 1; of the second no term is negative, and rounding of the normalizers changes it only in
proportion, so that small divergences keep their digits and that of p from itself is 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from instructjax.scoring.vocabulary import (
    ROWS,
    Softcap,
    add_log_sum,
    finish_log_sum,
    fold_vocabulary,
    start_log_sum,
)


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
    return _kl_terms(jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)).sum(-1)


def next_token_js(
    logits_p: Float[Array, "*M V"], logits_q: Float[Array, "*M V"]
) -> Float[Array, "*M"]:
    r"""Jensen-Shannon divergence, nats: the mean KL of p and of q from their mean; 0 to log 2.

    (Lin 1991, "Divergence Measures Based on the Shannon Entropy".)

    >>> logits = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> round(float(next_token_js(logits[0], logits[1])), 4)
    0.6931
    """
    return _js_terms(jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)).sum(-1)


def hidden_divergences(
    hidden_p: Float[Array, "M E"],
    table_p: Float[Array, "V E"],
    hidden_q: Float[Array, "M F"],
    table_q: Float[Array, "V F"],
    softcap_p: Softcap = None,
    softcap_q: Softcap = None,
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """KL(p || q) and Jensen-Shannon divergence, nats, from hidden states and output tables.

    The widths E and F of two models may differ, their vocabularies may not. Logits exist for a
    tile of positions and vocabulary at a time, capped where a model caps them, and are computed
    twice: for the normalizers, then for the sums.

    >>> table = jnp.log(jnp.array([[0.25], [0.75]]))
    >>> kl, js = hidden_divergences(jnp.zeros((1, 1)), table, jnp.ones((1, 1)), table)
    >>> round(float(kl[0]), 4)  # 0.5 log 2 + 0.5 log (2 / 3)
    0.1438
    """

    def divide(states: tuple[Array, Array]) -> tuple[Array, Array]:
        heads = ((states[0], table_p, softcap_p), (states[1], table_q, softcap_q))
        sums = fold_vocabulary(
            lambda sums, _, logits: tuple(map(add_log_sum, sums, logits)),
            (start_log_sum(), start_log_sum()),
            *heads,
        )
        norms = tuple(map(finish_log_sum, sums))

        def add(totals, _, logits):
            log_p, log_q = (x - norm for x, norm in zip(logits, norms, strict=True))
            kl, js = totals
            return kl + _kl_terms(log_p, log_q).sum(-1), js + _js_terms(log_p, log_q).sum(-1)

        return fold_vocabulary(add, (jnp.zeros(()), jnp.zeros(())), *heads)

    return lax.map(divide, (hidden_p, hidden_q), batch_size=ROWS)


def _kl_terms(log_p, log_q):
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    d = jnp.where(p > 0, log_p - log_q, 0.0)
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0.0)
    terms = jnp.where(near, p * (small + jnp.expm1(-small)), p * d + q - p)
    return jnp.where(p > 0, terms, q)


def _js_terms(log_p, log_q):
    log_mean = jnp.logaddexp(log_p, log_q) - math.log(2)
    return (_kl_terms(log_p, log_mean) + _kl_terms(log_q, log_mean)) / 2

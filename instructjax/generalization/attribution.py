r"""What c and z contribute to log Pr(y | c, z), from y's scores in four contexts.

With s_cz = log Pr(y|c,z), s_c = log Pr(y|c), s_z = log Pr(y|z), s_0 = log Pr(y), nats:

- pointwise mutual information pmi(y; c | z) = s_cz - s_z, pmi(y; z | c) = s_cz - s_c (Church and
  Hanks 1990; conditional: Holtzman et al. 2021), without the other: s_c - s_0, s_z - s_0;
- interaction information ii = s_cz - s_c - s_z + s_0, above 0 where c and z say more together than
  the sum of what each says (McGill 1954, pointwise), so pmi(y;c|z) = pmi(y;c) + ii;
- Shapley values phi_c = ((s_cz - s_z) + (s_c - s_0)) / 2, phi_z likewise, phi_c + phi_z = s_cz -
  s_0 (Shapley 1953).

Leaving a part of the prompt away is an ablation, not a marginal: the four numbers need not come
from one joint distribution. `marginal` has the true marginal over a pool of instructions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from instructjax.generalization.arrays import AnyArray

Scores = Float[AnyArray, "*shape"]


class Attribution(NamedTuple):
    """Attributes, nats each; they add over tokens.

    instruction_given_input: pmi(y; c | z). input_given_instruction: pmi(y; z | c).
    instruction_alone: pmi(y; c). input_alone: pmi(y; z). total: s_cz - s_0.
    interaction: ii. shapley_instruction, shapley_input: phi_c, phi_z.
    """

    instruction_given_input: Array
    input_given_instruction: Array
    instruction_alone: Array
    input_alone: Array
    total: Array
    interaction: Array
    shapley_instruction: Array
    shapley_input: Array


class FollowingDifficulty(NamedTuple):
    """Instruction-following difficulty; see `following_difficulty`."""

    nll: Array
    perplexity: Array
    instruction_nll: Array
    instruction_perplexity: Array


def conditional_attribution(
    s_cz: Scores,
    s_c: Scores,
    s_z: Scores,
    s_0: Scores,
    mask: Bool[AnyArray, "*shape"] | None = None,
) -> Attribution:
    """PMIs, interaction information and Shapley values, of responses or of their tokens.

    Args:
      s_cz, s_c, s_z, s_0: of the same y in the contexts cz, c, z, none, nats; [N], or [N, T] with
        a number a token, whose sums over T are those of the responses.
      mask: what is there (tokens of y); elsewhere all numbers are 0.

    >>> found = conditional_attribution(*(jnp.array(x) for x in (-2.0, -5.0, -6.0, -8.0)))
    >>> found.instruction_given_input.item(), found.input_given_instruction.item()
    (4.0, 3.0)
    >>> found.interaction.item(), found.shapley_instruction.item(), found.shapley_input.item()
    (1.0, 3.5, 2.5)
    """
    both, c, z, none = (
        jnp.asarray(s) if mask is None else jnp.where(mask, s, 0) for s in (s_cz, s_c, s_z, s_0)
    )
    return Attribution(
        instruction_given_input=both - z,
        input_given_instruction=both - c,
        instruction_alone=c - none,
        input_alone=z - none,
        total=both - none,
        interaction=both - c - z + none,
        shapley_instruction=((both - z) + (c - none)) / 2,
        shapley_input=((both - c) + (z - none)) / 2,
    )


def following_difficulty(
    s_cz: Scores, s_z: Scores, s_0: Scores, length: Integer[AnyArray, "*shape"]
) -> FollowingDifficulty:
    r"""IFD: how little the prompt helps; 1 and above where it does not.

    nll: ratio of mean negative log-likelihoods, s_cz / s_0 (Li et al. 2023, arXiv 2308.12032, as
    its code has it). perplexity: exp((s_0 - s_cz) / L) (Li et al. 2024, Superfiltering). Both leave
    c and z away in the denominator; instruction_nll and instruction_perplexity only c (s_z for
    s_0). A ratio to a likelihood of 1 is infinite.

    Args:
      s_cz, s_z, s_0: of responses, nats.
      length: tokens of y, L.

    >>> found = following_difficulty(*(jnp.array(x) for x in (-2.0, -4.0, -8.0)), jnp.array(2))
    >>> [round(float(x), 4) for x in found]  # 2/8, exp(-6/2), 2/4, exp(-2/2)
    [0.25, 0.0498, 0.5, 0.3679]
    """
    full, z, none = jnp.asarray(s_cz), jnp.asarray(s_z), jnp.asarray(s_0)

    def ratio(below):
        return jnp.where(below < 0, full / jnp.where(below < 0, below, -1), jnp.inf)

    return FollowingDifficulty(
        nll=ratio(none),
        perplexity=jnp.exp((none - full) / length),
        instruction_nll=ratio(z),
        instruction_perplexity=jnp.exp((z - full) / length),
    )


def pointwise_v_information(log_prob: Scores, null_log_prob: Scores) -> Float[Array, "*shape"]:
    r"""PVI(x -> y) = log2 g'[x](y) - log2 g[null](y), bits (Ethayarajh et al. 2022).

    As defined (arXiv 2110.08420), g is a model fine-tuned on empty inputs and g' one fine-tuned on
    x: give the scores of these two. With one model and its context `none`, it is an approximation,
    `conditional_attribution(...).total` in bits. Below 0, a response is likely mislabelled.

    Args:
      log_prob: log Pr(y | x) under g', nats.
      null_log_prob: log Pr(y) under g, nats.

    >>> pointwise_v_information(jnp.log(jnp.array(0.5)), jnp.log(jnp.array(0.25))).item()
    1.0
    """
    return (jnp.asarray(log_prob) - jnp.asarray(null_log_prob)) / jnp.log(2.0)


def v_information(
    log_prob: Float[AnyArray, " N"],
    null_log_prob: Float[AnyArray, " N"],
    mask: Bool[AnyArray, " N"] | None = None,
) -> Float[Array, ""]:
    """I_V(X -> Y), bits: the mean PVI over held-out (x, y).

    >>> v_information(jnp.log(jnp.array([0.5, 1.0])), jnp.log(jnp.array([0.25, 0.25]))).item()
    1.5
    """
    pvi = pointwise_v_information(log_prob, null_log_prob)
    there = jnp.ones(pvi.shape, bool) if mask is None else jnp.asarray(mask)
    return jnp.where(there, pvi, 0).sum() / jnp.maximum(there.sum(), 1)

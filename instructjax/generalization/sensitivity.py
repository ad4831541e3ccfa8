r"""How much the wording of an instruction matters.

Over the C instructions of a task, with accuracies a_i (Mizrahi et al. 2024, arXiv 2401.00595):
MaxP = max a_i, AvgP = mean a_i, Sat = 1 - (MaxP - AvgP), CPS = Sat x MaxP. Median and interquartile
range as in T0 (Sanh et al. 2021). Spread = MaxP - MinP (Sclar et al. 2024, arXiv 2310.11324).
Maxima and spreads of noisy accuracies are too large: `spread_noise` says how large they would be
if wording did not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray, is_known_true


class PromptSummary(NamedTuple):
    """Attributes: of the accuracies over instructions, in their units; see the module."""

    max_p: Array
    min_p: Array
    avg_p: Array
    median: Array
    iqr: Array
    spread: Array
    sat: Array
    cps: Array


class SpreadNoise(NamedTuple):
    """Attributes: observed spread; mean under permutation; the excess; p-value of the observed."""

    spread: Array
    expected: Array
    excess: Array
    p_value: Array


def multi_prompt_summary(
    accuracy: Float[AnyArray, "*models C"], mask: Bool[AnyArray, "*models C"] | None = None
) -> PromptSummary:
    """MaxP, MinP, AvgP, median, IQR, spread, Sat and CPS over instructions.

    Args:
      accuracy: of each instruction, 0 to 1; before, any number of models or tasks.
      mask: instructions that count (correct paraphrases, say); default: all.

    Raises:
      UsageError: a model or task has no instruction that counts; under `jax.jit`, where values
        cannot be seen, its numbers are NaN.

    >>> found = multi_prompt_summary(jnp.array([0.5, 1.0, 0.75, 0.75]))
    >>> [float(x) for x in found]
    [1.0, 0.5, 0.75, 0.75, 0.125, 0.5, 0.75, 0.75]
    """
    a = jnp.asarray(accuracy)
    there = (
        jnp.ones(a.shape, bool) if mask is None else jnp.broadcast_to(jnp.asarray(mask), a.shape)
    )
    if is_known_true(~there.any(-1)):
        raise UsageError(
            "no instruction counts",
            remedy="leave out the models or tasks whose instructions are all masked",
        )
    there, known = there | ~there.any(-1, keepdims=True), there.any(-1)
    a = jnp.where(known[..., None], a, jnp.nan)
    count = there.sum(-1)
    high = jnp.where(there, a, -jnp.inf).max(-1)
    low = jnp.where(there, a, jnp.inf).min(-1)
    mean = jnp.where(there, a, 0).sum(-1) / count
    ordered = jnp.sort(jnp.where(there, a, jnp.inf), axis=-1)
    quarter, middle, upper = (_quantile(ordered, count, q) for q in (0.25, 0.5, 0.75))
    sat = 1 - (high - mean)
    return PromptSummary(high, low, mean, middle, upper - quarter, high - low, sat, sat * high)


def _quantile(ordered: Array, count: Array, q: float) -> Array:
    """Between the two nearest of the first `count`, as numpy's default."""
    place = q * (count - 1)
    below = jnp.floor(place).astype(int)
    above = jnp.minimum(below + 1, count - 1)
    low, high = (jnp.take_along_axis(ordered, i[..., None], -1)[..., 0] for i in (below, above))
    return low + (place - below) * (high - low)


def spread_noise(
    key: Array,
    score: Float[AnyArray, "C Z"],
    mask: Bool[AnyArray, "C Z"] | None = None,
    *,
    permutations: int = 1000,
) -> SpreadNoise:
    r"""Spread of the instructions' means, and what it would be if c made no difference.

    Under that hypothesis the scores of an input could be those of any instruction: they are
    permuted among instructions, input by input, which keeps how hard inputs are. p-value
    (1 + #{permuted >= observed}) / (1 + permutations).

    Args:
      key: random key.
      score: instructions by inputs.
      mask: scores that are there; permuted among themselves. Each instruction needs one.

    >>> found = spread_noise(jax.random.key(0), jnp.array([[1.0] * 30, [0.0] * 30]))
    >>> float(found.spread), bool(found.expected < 0.5), bool(found.p_value < 0.01)
    (1.0, True, True)
    """
    score = jnp.asarray(score)
    there = jnp.ones(score.shape, bool) if mask is None else jnp.asarray(mask)
    values, count = jnp.where(there, score, 0), there.sum(1)

    def spread(grid):
        means = grid.sum(1) / jnp.maximum(count, 1)
        top = jnp.where(count > 0, means, -jnp.inf).max()
        return top - jnp.where(count > 0, means, jnp.inf).min()

    # Of those that are there, in each column: which one it is.
    rank = jnp.where(there, jnp.cumsum(there, axis=0) - 1, 0)

    def permute(key):
        noise = jnp.where(there, jax.random.uniform(key, score.shape), 2.0)
        shuffled = jax.lax.sort((noise, values), dimension=0, num_keys=1)[1]
        return spread(jnp.where(there, jnp.take_along_axis(shuffled, rank, 0), 0))

    observed = spread(values)
    permuted = jax.lax.map(permute, jax.random.split(key, permutations))
    p = (1 + (permuted >= observed - 1e-6).sum()) / (1 + permutations)
    return SpreadNoise(observed, permuted.mean(), observed - permuted.mean(), p)


def performance_drop_rate(
    clean: Float[AnyArray, "*shape N"], perturbed: Float[AnyArray, "*shape N"]
) -> Float[Array, "*shape"]:
    r"""PDR = 1 - sum of perturbed / sum of clean scores (PromptBench, Zhu et al. 2023).

    A share of what was scored, so of scores that are 0 or more and better where higher, such as
    accuracies; of log-probabilities or errors it means nothing. Negative where perturbing helped;
    0 where no clean score is above 0.

    Args:
      clean, perturbed: scores of the same cases without and with the perturbation.

    Raises:
      UsageError: a score is below 0; under `jax.jit`, where values cannot be seen, the rate is NaN.

    >>> float(performance_drop_rate(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.5])))
    0.25
    """
    before, after = jnp.asarray(clean), jnp.asarray(perturbed)
    negative = (before < 0).any(-1) | (after < 0).any(-1)
    if is_known_true(negative):
        raise UsageError(
            "a share of negative scores means nothing",
            remedy="give scores of 0 or more, such as accuracies or probabilities",
        )
    below = before.sum(-1)
    rate = jnp.where(below == 0, 0.0, 1 - after.sum(-1) / jnp.where(below == 0, 1, below))
    return jnp.where(negative, jnp.nan, rate)


def consistency_rate(
    prediction: Int[AnyArray, "C Z"], mask: Bool[AnyArray, "C Z"] | None = None
) -> tuple[Float[Array, ""], Float[Array, " Z"]]:
    """How often two instructions give the same answer to an input: the mean, and of each input.

    Over the pairs of instructions of each input (as `consistency_rate` in lm-evaluation-harness's
    SCORE; Nalbandyan et al. 2025); inputs with one answer count in no mean and are 0.

    Args:
      prediction: ids of answers.
      mask: answers that are there; default: all.

    >>> mean, each = consistency_rate(jnp.array([[1, 1], [1, 2], [1, 1]]))
    >>> [round(float(x), 3) for x in each], round(float(mean), 3)
    ([1.0, 0.333], 0.667)
    """
    answers = jnp.asarray(prediction)
    there = jnp.ones(answers.shape, bool) if mask is None else jnp.asarray(mask)
    count = there.sum(0)

    def agree(row):
        answer, is_there = row
        return (jnp.where(is_there & there, answers == answer, False)).sum(0)

    same = jax.lax.map(agree, (answers, there)).sum(0) - count
    pairs = count * (count - 1)
    each = jnp.where(pairs > 0, same / jnp.maximum(pairs, 1), 0)
    return each.sum() / jnp.maximum((pairs > 0).sum(), 1), each

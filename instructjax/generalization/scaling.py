r"""How scores grow with the number of instructions or inputs, and what more would bring.

Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705) found performance about linear in the
logarithm of the number of training tasks, and hardly growing with instances a task. Two fits, with
intervals: log-linear, \(s = a + b \log n\), and a power law with a ceiling, \(s = s_\infty - A
n^{-\alpha}\) (Hestness et al. 2017).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray, is_known_true
from instructjax.generalization.power_curves import Curves, least_alpha, profile_ends, spread_of
from instructjax.generalization.quantiles import student_t_quantile

STEPS = 200


class Fit(NamedTuple):
    """Parameters with standard errors and interval ends, [P] each, and the residual variance.

    For `fit_log_linear`: a, b. For `fit_power_law`: s_inf, A, alpha.
    """

    parameters: Array
    se: Array
    low: Array
    high: Array
    residual_variance: Array


def fit_log_linear(
    number: Float[AnyArray, " K"],
    score: Float[AnyArray, " K"],
    weight: Float[AnyArray, " K"] | None = None,
    *,
    level: float = 0.95,
) -> Fit:
    r"""a and b of s = a + b log n by weighted least squares; b is the gain from n to e n.

    Args:
      number: n, of instructions or of inputs, above 0; two or more different ones. Of two points
        the line is exact, and its interval infinite.
      score: at each.
      weight: 1 / variance of each, up to a factor; 0 for points that are missing. Default: equal.
      level: of the intervals, Student's t with K - 2 degrees of freedom.

    Raises:
      UsageError: fewer than two different numbers, or one that is not above 0. Under `jax.jit`
        numbers cannot be seen: too few give NaN.

    >>> n = jnp.array([1.0, 10.0, 100.0, 1000.0])
    >>> fit = fit_log_linear(n, 0.2 + 0.1 * jnp.log(n))
    >>> [round(float(x), 4) for x in fit.parameters]
    [0.2, 0.1]
    """
    x, y, w = _read_points(number, score, weight, 2)
    used = (w > 0).sum()
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    s_xx = (w * (x - mean_x) ** 2).sum()
    b = (w * (x - mean_x) * (y - mean_y)).sum() / s_xx
    a = mean_y - b * mean_x
    df = (used - 2).astype(y.dtype)
    variance = (w * (y - a - b * x) ** 2).sum() / jnp.maximum(df, 1)
    se = jnp.sqrt(variance * jnp.stack([1 / total + mean_x**2 / s_xx, 1 / s_xx]))
    return _with_intervals(jnp.stack([a, b]), se, df, level, variance)


def fit_power_law(
    number: Float[AnyArray, " K"],
    score: Float[AnyArray, " K"],
    weight: Float[AnyArray, " K"] | None = None,
    *,
    level: float = 0.95,
) -> Fit:
    r"""s_inf, A and alpha of \(s = s_\infty - A n^{-\alpha}\) by weighted least squares.

    For every alpha from 0.02 to 5 the other two are linear; the best of a grid is refined by golden
    section. Standard errors from the Jacobian at the optimum, infinite where alpha is at an end of
    the search or the curve is flat: such points say nothing of where the curve goes. Intervals by
    the profile t (Bates and Watts 1988, chapter 6): all that some alpha of the search makes fit
    within t^2 residual variances of the best, and without an end where the ends of the search do.

    Args:
      number, score, weight, level: as in `fit_log_linear`, but three or more different numbers;
        of three points the curve is exact, and its interval infinite.

    Raises:
      UsageError: as `fit_log_linear`, with three numbers for two.

    >>> n = jnp.array([1.0, 4.0, 16.0, 64.0, 256.0])
    >>> fit = fit_power_law(n, 0.8 - 0.5 * n**-0.5)
    >>> [round(float(x), 2) for x in fit.parameters]
    [0.8, 0.5, 0.5]
    """
    x, y, w = _read_points(number, score, weight, 3)
    curves = Curves.of(x, y, w)
    grid = jnp.linspace(jnp.log(0.02), jnp.log(5.0), STEPS, dtype=y.dtype)
    best = least_alpha(curves, grid)
    fit = curves.at(best)
    df = ((w > 0).sum() - 3).astype(y.dtype)
    variance = fit.square / jnp.maximum(df, 1)
    known = (best > grid[0]) & (best < grid[-1]) & ~fit.is_flat
    se = jnp.where(known, jnp.sqrt(variance) * spread_of(fit.gradient, fit.jacobian), jnp.inf)
    limit = fit.square + variance * student_t_quantile((1 + level) / 2, df) ** 2
    low, high = profile_ends(curves, grid, best, limit)
    bounded = (df >= 1) & ~fit.is_flat
    low, high = jnp.where(bounded, low, -jnp.inf), jnp.where(bounded, high, jnp.inf)
    found = Fit(fit.parameters, se, low, high, variance)
    return jax.tree.map(lambda x: jnp.where(jnp.isnan(fit.square), jnp.nan, x), found)


def _read_points(number, score, weight, least: int) -> tuple[Array, Array, Array]:
    """log n, scores and weights; complains of too few different n where they can be seen."""
    n, y = jnp.asarray(number), jnp.asarray(score)
    w = jnp.ones_like(y) if weight is None else jnp.asarray(weight)
    if is_known_true(jnp.where(w > 0, n <= 0, False)):
        raise UsageError("a number of instructions or inputs is not above 0", remedy="leave it out")
    ordered = jnp.sort(jnp.where(w > 0, n, jnp.inf))
    different = (jnp.diff(ordered, prepend=-1) > 0) & jnp.isfinite(ordered)
    if is_known_true(different.sum() < least):
        raise UsageError(
            f"a curve with {least} parameters through fewer than {least} different numbers",
            remedy=f"measure at {least + 1} numbers of instructions or inputs or more",
        )
    # Where this is traced and cannot be refused, no number is made up.
    return jnp.log(n), jnp.where(different.sum() < least, jnp.nan, y), w


def _with_intervals(parameters: Array, se: Array, df: Array, level: float, variance: Array) -> Fit:
    # A line through as many points as it has parameters fits, and tells nothing of its error.
    half = jnp.where(df >= 1, student_t_quantile((1 + level) / 2, df) * se, jnp.inf)
    return Fit(parameters, se, parameters - half, parameters + half, variance)


def scaling_curve(
    key: Array,
    score: Float[AnyArray, "U M"],
    numbers: Integer[AnyArray, " K"],
    *,
    subsets: int = 200,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Mean of the best of n instructions: what trying n wordings and keeping the best one brings.

    For each n, subsets of n of the U units are drawn without replacement; on each the unit with
    the best mean over one half of the M columns is taken, and the other half says how good it is:
    luck is not counted as quality.

    Args:
      key: random key.
      score: units (instructions) by columns (inputs).
      numbers: n, from 1 to U.
      subsets: drawn for each n, 1 or more.

    Returns:
      Mean over subsets, and its standard deviation over them, at each n, in units of the score.

    Raises:
      UsageError: fewer than two columns or one subset, or a number that is not from 1 to U. Under
        `jax.jit` numbers cannot be seen: those give NaN.

    >>> score = jnp.array([[0.0] * 8, [1.0] * 8])
    >>> mean, _ = scaling_curve(jax.random.key(0), score, jnp.array([1, 2]))
    >>> bool(abs(mean[0] - 0.5) < 0.15), float(mean[1])
    (True, 1.0)
    """
    score = jnp.asarray(score)
    units, columns = score.shape
    numbers = jnp.asarray(numbers)
    wrong = (numbers < 1) | (numbers > units)
    if is_known_true(wrong):
        raise UsageError(
            f"a number of instructions is not from 1 to {units}, as many as there are",
            remedy="leave it out",
        )
    if columns < 2 or subsets < 1:
        few = f"{columns} inputs" if columns < 2 else f"{subsets} subsets"
        raise UsageError(f"{few} are too few", remedy="give 2 inputs and 1 subset or more")
    half = columns // 2

    def one(key):
        of_units, of_columns = jax.random.split(key)
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(of_units, (units,))))
        shuffled = score[:, jax.random.permutation(of_columns, columns)]
        chosen_by, told = shuffled[:, :half].mean(1), shuffled[:, half:].mean(1)
        taken = rank < numbers[:, None]
        return told[jnp.argmax(jnp.where(taken, chosen_by, -jnp.inf), axis=1)]

    values = lax.map(one, jax.random.split(key, subsets))
    values = jnp.where(wrong, jnp.nan, values)
    return values.mean(0), values.std(0)

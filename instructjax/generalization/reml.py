r"""Variance components of grids with holes and uneven repeats, by restricted maximum likelihood.

The model of `components`, \(s_{czr} = \mu + c_c + z_z + (cz)_{cz} + e_{czr}\), with normal
effects. REML maximizes the likelihood of what is left when the mean is swept out (Patterson and
Thompson 1971); on a complete grid it gives the ANOVA estimates wherever those are not negative, on
others it weighs scores by what they tell, and no variance is negative.

Scores enter as means of cells with variance \(d = \sigma^2_{cz} + \sigma^2_e / n\), plus the sum of
squares in cells. With W = 1/d (0 where there is none), the mixed model equations (Henderson 1953)
have one unknown an instruction, one an input and the mean; the block of inputs is diagonal and is
eliminated, so an evaluation costs C^2 Z.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import satterthwaite
from instructjax.generalization.components import Components
from instructjax.generalization.reml_search import maximize, standardize


class RemlFit(NamedTuple):
    """What `fit_reml` found.

    Attributes:
      components: variances.
      mean, se: and its standard error given the components.
      df: degrees of freedom of the standard error by Satterthwaite (1946), as of a complete grid
        with as many scores (`decision_study.mean_se`); at least min(C, Z) - 1.
      log_likelihood: restricted.
    """

    components: Components
    mean: Array
    se: Array
    df: Array
    log_likelihood: Array


class GridTerms(NamedTuple):
    """What a grid brings to a restricted likelihood, given its covariance V.

    Attributes:
      ones: 1' V^-1 1. linear: 1' V^-1 y. square: y' V^-1 y. log_det: log |V|. count: scores.
    """

    ones: Array
    linear: Array
    square: Array
    log_det: Array
    count: Array


def grid_terms(
    sd: Float[Array, " 4"],
    grid: Float[Array, "C Z"],
    count: Float[Array, "C Z"],
    within: Float[Array, ""],
) -> GridTerms:
    """Solves the mixed model equations of one grid; a grid without scores brings zeros.

    Arguments as for `reml_log_likelihood`. For digits, give means that are centred.

    >>> sd, grid = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([[1.0, 3.0]])
    >>> [float(x) for x in grid_terms(sd, grid, jnp.ones((1, 2)), jnp.array(0.0))]
    [2.0, 4.0, 10.0, 0.0, 2.0]
    """
    of_c, of_z, of_cz, of_e = sd
    there = count > 0
    variance = of_cz**2 + of_e**2 / jnp.where(there, count, 1)
    weight = jnp.where(there, 1 / variance, 0)
    y = jnp.where(there, grid, 0)
    scaled = weight * y
    # Unknowns: scaled effects of c; those of z are eliminated. Right-hand sides: the grid, and 1.
    diagonal = 1 + of_z**2 * weight.sum(0)
    links = of_c * of_z * weight
    right_z = of_z * jnp.stack([scaled.sum(0), weight.sum(0)])
    right = of_c * jnp.stack([scaled.sum(1), weight.sum(1)])
    normal = jnp.diag(1 + of_c**2 * weight.sum(1)) - (links / diagonal) @ links.T
    factor = jnp.linalg.cholesky(normal)
    half = jax.scipy.linalg.solve_triangular(
        factor, right.T - links @ (right_z / diagonal).T, lower=True
    )
    fitted = half.T @ half + (right_z / diagonal) @ right_z.T
    log_det = 2 * jnp.log(jnp.diag(factor)).sum() + jnp.log(diagonal).sum()
    log_det += jnp.where(there, jnp.log(variance), 0).sum()
    log_det_within, square_within = repeats_terms(of_e, count, within)
    log_det += log_det_within
    return GridTerms(
        weight.sum() - fitted[1, 1],
        scaled.sum() - fitted[0, 1],
        (scaled * y).sum() - fitted[0, 0] + square_within,
        log_det,
        jnp.where(there, count, 0).sum(),
    )


def repeats_terms(
    of_e: Float[Array, ""], count: Float[AnyArray, "C Z"], within: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What scores beyond the first of a cell bring to `log_det` and `square`.

    It is their density around the cell's mean: their own variance, and the change to means.
    """
    there = count > 0
    extra = jnp.where(there, count - 1, 0).sum()
    error = jnp.where(extra > 0, of_e**2, 1.0)
    to_means = jnp.where(there, jnp.log(jnp.maximum(count, 1)), 0).sum()
    return extra * jnp.log(error) + to_means, within / error


def join_terms(terms: GridTerms) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Restricted log-likelihood of independent grids with one mean, and that mean and its variance.

    Args:
      terms: of each grid, summed over the grids.
    """
    mean = terms.linear / terms.ones
    square = terms.square - terms.linear * mean
    log_det = terms.log_det + jnp.log(terms.ones)
    value = -0.5 * ((terms.count - 1) * jnp.log(2 * jnp.pi) + log_det + square)
    return value, (mean, 1 / terms.ones)


def reml_log_likelihood(
    sd: Float[Array, " 4"],
    grid: Float[Array, "C Z"],
    count: Float[Array, "C Z"],
    within: Float[Array, ""],
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Restricted log-likelihood, and the mean with its variance.

    Args:
      sd: standard deviations of c, z, cz, e.
      grid: means of cells; any value where count is 0.
      count: scores in each cell.
      within: sum of squares of scores around the means of their cells.

    >>> sd, grid = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([[1.0, 3.0]])
    >>> value, (mean, variance) = reml_log_likelihood(sd, grid, jnp.ones((1, 2)), jnp.array(0.0))
    >>> round(float(value), 4)  # -(log 2 pi + log 2 + 2) / 2
    -2.2655
    >>> float(mean), round(float(variance), 4)
    (2.0, 0.5)
    """
    centre = (count * jnp.where(count > 0, grid, 0)).sum() / jnp.maximum(count.sum(), 1)
    value, (mean, variance) = join_terms(grid_terms(sd, grid - centre, count, within))
    return value, (mean + centre, variance)


def fit_reml(
    score: Float[AnyArray, "C Z ..."], mask: Bool[AnyArray, "C Z ..."] | None = None
) -> RemlFit:
    """Components of a crossed grid with any cells missing, with or without repeated responses.

    In float32 about three digits; for more, call it under `jax.enable_x64(True)` with float64.
    Components of scores that do not vary are 0. With one instruction all that varies is `input`,
    and so it is where no input has two instructions.

    Args:
      score: instructions by inputs; a third axis for sampled responses.
      mask: scores that are there; default: all. Without a cell of two, cz and e cannot be told
        apart: their sum is `interaction`, `residual` is 0.

    >>> grid = jnp.array([[1.0, 3.0, 2.5], [2.0, 4.0, 3.1], [1.2, 3.9, 2.6]])
    >>> fit = fit_reml(grid)
    >>> [round(float(x), 3) for x in fit.components]  # what ANOVA gives on a complete grid
    [0.168, 1.242, 0.061, 0.0]
    >>> round(float(fit.mean), 4)
    2.5889
    """
    score = jnp.asarray(score)
    values = score[..., None] if score.ndim == 2 else score
    grid, count, within, unit = standardize(values, mask)
    there = count > 0
    # A source shows only where something else varies in it; alone in a row or column it is z's.
    rows, columns = (there.sum(axis) for axis in (1, 0))
    free_c = (there.any(1).sum() > 1) & (rows > 1).any()
    free_z = (there.any(0).sum() > 1) & (columns > 1).any()
    free = jnp.stack([free_c, free_z, jnp.array(True), (count > 1).any()]) & unit.varies

    def likelihood(sd):
        return reml_log_likelihood(sd, grid, count, within)

    sd, value, mean, variance = maximize(likelihood, free, 2)
    c, z, cz, e = (sd * unit.scale) ** 2
    lone_z = ~free_z & (there.any(0).sum() > 1)
    lone_c = ~free_c & ~lone_z & (there.any(1).sum() > 1)
    components = Components(
        jnp.where(lone_c, cz, c), jnp.where(lone_z, cz, z), jnp.where(lone_c | lone_z, 0, cz), e
    )
    value, mean, variance = unit.restore(value, mean, variance)
    df = _satterthwaite(components, count, variance)
    return RemlFit(components, mean, jnp.sqrt(variance), df, value)


def _satterthwaite(components, count, variance):
    scores, cells = count.sum(), (count > 0).sum()
    c, z = ((count.sum(axis) > 0).sum() for axis in (1, 0))
    rest = components.interaction / jnp.maximum(cells, 1) + components.residual / scores
    of_c, of_z = components.instruction / c + rest, components.input / z + rest
    free_c, free_z = jnp.maximum(c - 1, 1), jnp.maximum(z - 1, 1)
    parts, df = jnp.stack([of_c, of_z, rest]), jnp.stack([c - 1, z - 1, free_c * free_z])
    return jnp.minimum(satterthwaite(variance, parts, df), jnp.maximum(scores - 1, 0))

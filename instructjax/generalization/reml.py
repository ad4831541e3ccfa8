r"""Variance components of grids with holes and uneven repeats, by restricted maximum likelihood.

The model of `components`, \(s_{czr} = \mu + c_c + z_z + (cz)_{cz} + e_{czr}\), with normal
effects. REML maximizes the likelihood of what is left when the mean is swept out (Patterson and
Thompson 1971); on a complete grid it gives the ANOVA estimates wherever those are not negative, on
others it weighs scores by what they tell, and no variance is negative.

Scores enter as means of cells with variance \(d = \sigma^2_{cz} + \sigma^2_e / n\), plus the sum of
squares in cells. With W = 1/d (0 where there is none), the mixed model equations (Henderson 1953)
have one unknown an instruction, one an input and the mean; the block of inputs is diagonal and is
eliminated, so an evaluation costs C^2 Z. Standard deviations are the parameters: the likelihood is
an even, smooth function of them, so that 0 is no boundary. Damped Newton steps on the Hessian.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import satterthwaite
from instructjax.generalization.components import Components

STEPS = 100


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


def reml_log_likelihood(
    sd: Float[Array, " 4"],
    grid: Float[Array, "C Z"],
    count: Float[Array, "C Z"],
    within: Float[Array, ""],
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
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
    of_c, of_z, of_cz, of_e = sd
    there = count > 0
    variance = of_cz**2 + of_e**2 / jnp.where(there, count, 1)
    weight = jnp.where(there, 1 / variance, 0)
    mean = (weight * grid).sum() / weight.sum()
    y = jnp.where(there, grid - mean, 0)  # centred, for few digits are lost then
    scaled = weight * y
    # Unknowns: scaled effects of c, then the mean; those of z are eliminated.
    diagonal = 1 + of_z**2 * weight.sum(0)
    links = jnp.concatenate([of_c * weight, weight.sum(0)[None]]) * of_z
    right_z = of_z * scaled.sum(0)
    rows = weight.sum(1)
    top = jnp.diag(1 + of_c**2 * rows)
    side = of_c * rows
    normal = jnp.block([[top, side[:, None]], [side[None], weight.sum()[None, None]]])
    right = jnp.append(of_c * scaled.sum(1), scaled.sum())
    normal -= (links / diagonal) @ links.T
    right -= links @ (right_z / diagonal)
    factor = jnp.linalg.cholesky(normal)
    half = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    fitted = (half**2).sum() + (right_z**2 / diagonal).sum()
    log_det = 2 * jnp.log(jnp.diag(factor)).sum() + jnp.log(diagonal).sum()
    log_det += jnp.where(there, jnp.log(variance), 0).sum()
    extra = jnp.where(there, count - 1, 0).sum()  # scores beyond the first of a cell
    # Of those, the density around the cell's mean: their own variance, and the change to means.
    error = jnp.where(extra > 0, of_e**2, 1.0)
    log_det += extra * jnp.log(error) + jnp.where(there, jnp.log(jnp.maximum(count, 1)), 0).sum()
    square = (scaled * y).sum() - fitted + within / error
    number = jnp.where(there, count, 0).sum() - 1
    last = jax.scipy.linalg.cho_solve((factor, True), jnp.zeros_like(right).at[-1].set(1))
    shift = jax.scipy.linalg.cho_solve((factor, True), right)[-1]
    value = -0.5 * (number * jnp.log(2 * jnp.pi) + log_det + square)
    return value, (mean + shift, last[-1])


def fit_reml(
    score: Float[AnyArray, "C Z ..."], mask: Bool[AnyArray, "C Z ..."] | None = None
) -> RemlFit:
    """Components of a crossed grid with any cells missing, with or without repeated responses.

    In float32 about three digits; for more, call it under `jax.enable_x64(True)` with float64.

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
    there = jnp.ones(values.shape, bool)
    if mask is not None:
        there = jnp.asarray(mask).reshape(values.shape)
    values = jnp.where(there, values, 0)
    count = there.sum(2).astype(score.dtype)
    grid = values.sum(2) / jnp.maximum(count, 1)
    within = jnp.where(there, (values - grid[..., None]) ** 2, 0).sum()
    repeated = (count > 1).any()
    # In units of the standard deviation, so that steps and tolerances fit any score.
    total = jnp.maximum(count.sum(), 1)
    centre = values.sum() / total
    scale = jnp.sqrt(jnp.where(there, (values - centre) ** 2, 0).sum() / jnp.maximum(total - 1, 1))
    scale = jnp.where(scale > 0, scale, 1)
    free = jnp.array([True, True, True, False]) | repeated

    def loss(sd):
        used = jnp.where(free, sd, 0)
        return -reml_log_likelihood(used, (grid - centre) / scale, count, within / scale**2)[0]

    start = jnp.where(free, 0.5, 0.0).astype(score.dtype)
    sd = jnp.where(free, _minimize(loss, start), 0)
    value, (mean, variance) = reml_log_likelihood(
        sd, (grid - centre) / scale, count, within / scale**2
    )
    components = Components(*((sd * scale) ** 2))
    value -= (total - 1) * jnp.log(scale)
    variance *= scale**2
    df = _satterthwaite(components, count, variance)
    return RemlFit(components, mean * scale + centre, jnp.sqrt(variance), df, value)


def _satterthwaite(components, count, variance):
    scores, cells = count.sum(), (count > 0).sum()
    c, z = ((count.sum(axis) > 0).sum() for axis in (1, 0))
    rest = components.interaction / jnp.maximum(cells, 1) + components.residual / scores
    of_c, of_z = components.instruction / c + rest, components.input / z + rest
    free_c, free_z = jnp.maximum(c - 1, 1), jnp.maximum(z - 1, 1)
    parts, df = jnp.stack([of_c, of_z, rest]), jnp.stack([c - 1, z - 1, free_c * free_z])
    return jnp.minimum(satterthwaite(variance, parts, df), jnp.maximum(scores - 1, 0))


def _minimize(loss, start):
    """Newton's steps with Levenberg's damping: shorter where the loss would not fall."""
    gradient, hessian = jax.grad(loss), jax.hessian(loss)
    eye = jnp.eye(len(start), dtype=start.dtype)

    def step(state):
        count, x, value, damping, _ = state
        g, h = gradient(x), hessian(x)
        values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(h), h, 0) + 1e-9 * eye)
        curvature = jnp.abs(values) + damping
        move = vectors @ ((vectors.T @ g) / curvature)
        move *= jnp.minimum(1, 0.5 / jnp.maximum(jnp.abs(move).max(), 1e-9))
        # At 0 an even function has no slope: where it bends down, 0 is a ridge to step off.
        ridge = (jnp.abs(x) < 1e-2) & (jnp.diag(h) < 0)
        move = jnp.where(ridge, -0.1 / (1 + damping), move)
        new = loss(x - move)
        good = jnp.isfinite(new) & (new <= value)
        still = good & (jnp.abs(move).max() < 10 * jnp.finfo(x.dtype).eps)  # none on a ridge
        return (
            count + 1,
            jnp.where(good, x - move, x),
            jnp.where(good, new, value),
            jnp.clip(jnp.where(good, damping / 4, damping * 8), 1e-8, 1e12),
            still,
        )

    def go_on(state):
        count, _, _, damping, still = state
        return (count < STEPS) & (damping < 1e10) & ~still

    first = (jnp.array(0), start, loss(start), jnp.array(1e-2, start.dtype), jnp.array(False))
    return lax.while_loop(go_on, step, first)[1]

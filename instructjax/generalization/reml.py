r"""Variance components of grids with holes and uneven repeats, by restricted maximum likelihood.

The model of `components`, \(s_{czr} = \mu_g + c_c + z_z + (cz)_{cz} + e_{czr}\), with normal
effects; the mean is one, or one of each group of (c, z), as of seen and unseen ones. REML maximizes
the likelihood of what is left when the means are swept out (Patterson and Thompson 1971), so that
the degrees of freedom they take are counted: with X their indicators and P what X leaves,

\(-2 l = (N - p) \log 2\pi + \log |V| + \log |X' V^{-1} X| + y' P y\) (Harville 1977).

On a complete grid with one mean it gives the ANOVA estimates wherever those are not negative, on
others it weighs scores by what they tell, and no variance is negative.

Scores enter as means of cells with variance \(d = \sigma^2_{cz} + \sigma^2_e / n\), plus the sum of
squares in cells. With W = 1/d (0 where there is none), the mixed model equations (Henderson 1953)
have one unknown an instruction, one an input and the means; the block of inputs is diagonal and is
eliminated, so an evaluation costs C^2 Z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cells import CELLS
from instructjax.generalization.cluster_se import satterthwaite
from instructjax.generalization.components import Components
from instructjax.generalization.reml_search import maximize, standardize


class RemlFit(NamedTuple):
    """What `fit_reml` found.

    Attributes:
      components: variances.
      mean, se: and its standard error given the components; with groups, of each, [4], and 0 of
        those without scores.
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
      products: B' V^-1 B with B the scores and the K indicators of groups, [1 + K, 1 + K].
      log_det: log |V|. count: scores.
    """

    products: Array
    log_det: Array
    count: Array


def make_design(groups: Int[AnyArray, ...] | None, like: Float[Array, ...]) -> Float[Array, ...]:
    """Indicators of the groups of (c, z), 0 to 3; of one group without any.

    >>> make_design(jnp.array([[0, 2]]), jnp.ones((1, 2)))[:, 0].tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    if groups is None:
        return jnp.ones_like(like)[None]
    return jax.nn.one_hot(jnp.asarray(groups), CELLS, axis=0, dtype=like.dtype)


def grid_terms(
    sd: Float[Array, " 4"],
    grid: Float[Array, "C Z"],
    count: Float[Array, "C Z"],
    within: Float[Array, ""],
    design: Float[Array, "K C Z"],
) -> GridTerms:
    """Solves the mixed model equations of one grid; a grid without scores brings zeros.

    Arguments as for `reml_log_likelihood`. For digits, give means that are centred.

    >>> sd, grid = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([[1.0, 3.0]])
    >>> terms = grid_terms(sd, grid, jnp.ones((1, 2)), jnp.array(0.0), jnp.ones((1, 1, 2)))
    >>> terms.products.tolist(), float(terms.log_det)
    ([[10.0, 4.0], [4.0, 2.0]], 0.0)
    """
    of_c, of_z, of_cz, of_e = sd
    there = count > 0
    variance = of_cz**2 + of_e**2 / jnp.where(there, count, 1)
    weight = jnp.where(there, 1 / variance, 0)
    columns = jnp.concatenate([grid[None], design]) * there  # [1 + K, C, Z]
    scaled = weight * columns
    # Unknowns: scaled effects of c; those of z are eliminated.
    diagonal = 1 + of_z**2 * weight.sum(0)
    links = of_c * of_z * weight
    right_z = of_z * scaled.sum(1)
    right_c = of_c * scaled.sum(2)
    normal = jnp.diag(1 + of_c**2 * weight.sum(1)) - (links / diagonal) @ links.T
    factor = jnp.linalg.cholesky(normal)
    half = jax.scipy.linalg.solve_triangular(
        factor, right_c.T - links @ (right_z / diagonal).T, lower=True
    )
    products = jnp.einsum("icz,jcz->ij", scaled, columns)
    products -= half.T @ half + (right_z / diagonal) @ right_z.T
    log_det = 2 * jnp.log(jnp.diag(factor)).sum() + jnp.log(diagonal).sum()
    log_det += jnp.where(there, jnp.log(variance), 0).sum()
    log_det_within, square_within = repeats_terms(of_e, count, within)
    return GridTerms(
        products.at[0, 0].add(square_within),
        log_det + log_det_within,
        jnp.where(there, count, 0).sum(),
    )


def repeats_terms(
    of_e: Float[Array, ""], count: Float[AnyArray, "C Z"], within: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What scores beyond the first of a cell bring to `log_det` and the scores' square.

    It is their density around the cell's mean: their own variance, and the change to means.
    """
    there = count > 0
    extra = jnp.where(there, count - 1, 0).sum()
    error = jnp.where(extra > 0, of_e**2, 1.0)
    to_means = jnp.where(there, jnp.log(jnp.maximum(count, 1)), 0).sum()
    return extra * jnp.log(error) + to_means, within / error


def join_terms(terms: GridTerms) -> tuple[Float[Array, ""], tuple[Float[Array, " K"], ...]]:
    """Restricted log-likelihood of independent grids, and the means of groups and their variances.

    Args:
      terms: of each grid, summed over the grids.
    """
    linear, information = terms.products[0, 1:], terms.products[1:, 1:]
    used = jnp.diag(information) > 0  # the others have no scores
    information += jnp.diag(jnp.where(used, 0, 1))
    inverse = jnp.linalg.inv(information)
    mean = inverse @ linear
    square = terms.products[0, 0] - linear @ mean
    log_det = terms.log_det + jnp.linalg.slogdet(information)[1]
    value = -0.5 * ((terms.count - used.sum()) * jnp.log(2 * jnp.pi) + log_det + square)
    return value, (mean, jnp.where(used, jnp.diag(inverse), 0))


def join_centred(
    terms: Callable[[Array, Array], GridTerms],
    grid: Float[AnyArray, "... C Z"],
    count: Float[Array, "... C Z"],
    groups: Int[AnyArray, "... C Z"] | None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "*_"], ...]]:
    """What `join_terms` gives, for digits of scores without their mean, which is put back.

    Args:
      terms: of such scores and a design, summed over the grids.
      grid, count, groups: as for `reml_log_likelihood`.
    """
    centre = (count * jnp.where(count > 0, grid, 0)).sum() / jnp.maximum(count.sum(), 1)
    apart = jnp.where(count > 0, grid - centre, 0)
    value, found = join_terms(terms(apart, make_design(groups, apart)))
    mean, variance = found if groups is not None else (x[0] for x in found)
    return value, (mean + centre, variance)


def reml_log_likelihood(
    sd: Float[AnyArray, " 4"],
    grid: Float[AnyArray, "C Z"],
    count: Float[AnyArray, "C Z"],
    within: Float[AnyArray, ""],
    groups: Int[AnyArray, "C Z"] | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "*_"], ...]]:
    """Restricted log-likelihood, and the mean with its variance, or those of each group.

    Args:
      sd: standard deviations of c, z, cz, e.
      grid: means of cells; any value where count is 0.
      count: scores in each cell.
      within: sum of squares of scores around the means of their cells.
      groups: of each (c, z), 0 to 3: each has a mean of its own, [4]. Default: one mean.

    >>> sd, grid = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([[1.0, 3.0]])
    >>> value, (mean, variance) = reml_log_likelihood(sd, grid, jnp.ones((1, 2)), jnp.array(0.0))
    >>> round(float(value), 4)  # -(log 2 pi + log 2 + 2) / 2
    -2.2655
    >>> float(mean), round(float(variance), 4)
    (2.0, 0.5)
    """
    sd, count, within = jnp.asarray(sd), jnp.asarray(count), jnp.asarray(within)
    return join_centred(
        lambda apart, design: grid_terms(sd, apart, count, within, design), grid, count, groups
    )


@jax.jit  # the search would be compiled anew in every call
def fit_reml(
    score: Float[AnyArray, "C Z ..."],
    mask: Bool[AnyArray, "C Z ..."] | None = None,
    groups: Int[AnyArray, "C Z"] | None = None,
) -> RemlFit:
    """Components of a crossed grid with any cells missing, with or without repeated responses.

    In float32 about three digits; for more, call it under `jax.enable_x64(True)` with float64.
    Components of scores that do not vary are 0. With one instruction all that varies is `input`,
    and so it is where no input has two instructions. Where no group has two instructions (inputs),
    their means take up what instructions (inputs) differ by, and its component is 0.

    Args:
      score: instructions by inputs; a third axis for sampled responses.
      mask: scores that are there; default: all. Without a cell of two, cz and e cannot be told
        apart: their sum is `interaction`, `residual` is 0.
      groups: of each (c, z), 0 to 3, such as the cells of seen and unseen c and z: what their means
        differ by is no variance of instructions or inputs. Default: one mean.

    >>> grid = jnp.array([[1.0, 3.0, 2.5], [2.0, 4.0, 3.1], [1.2, 3.9, 2.6]])
    >>> fit = fit_reml(grid)
    >>> [round(float(x), 3) for x in fit.components]  # what ANOVA gives on a complete grid
    [0.168, 1.242, 0.061, 0.0]
    >>> round(float(fit.mean), 4)
    2.5889
    >>> of_group = fit_reml(grid, groups=jnp.array([[0, 1, 1]] * 3)).mean
    >>> [round(float(x), 2) for x in of_group]
    [1.4, 3.18, 0.0, 0.0]
    """
    score = jnp.asarray(score)
    values = score[..., None] if score.ndim == 2 else score
    design = make_design(groups, values[..., 0])
    grid, count, within, unit = standardize(values, mask, design)
    there = count > 0
    in_groups = design * there > 0  # [K, C, Z]
    # A source shows only where something else varies in it; alone in a row or column it is z's.
    rows, columns = (there.sum(axis) for axis in (1, 0))
    shows_c = (there.any(1).sum() > 1) & (rows > 1).any()
    shows_z = (there.any(0).sum() > 1) & (columns > 1).any()
    free_c = shows_c & (in_groups.any(2).sum(1) > 1).any()
    free_z = shows_z & (in_groups.any(1).sum(1) > 1).any()
    free = jnp.stack([free_c, free_z, jnp.array(True), (count > 1).any()]) & unit.varies

    def likelihood(sd):
        return join_terms(grid_terms(sd, grid, count, within, design))

    sd, value, mean, variance = maximize(likelihood, free, 2)
    c, z, cz, e = (sd * unit.scale) ** 2
    lone_z = ~shows_z & (there.any(0).sum() > 1)
    lone_c = ~shows_c & ~lone_z & (there.any(1).sum() > 1)
    components = Components(
        jnp.where(lone_c, cz, c), jnp.where(lone_z, cz, z), jnp.where(lone_c | lone_z, 0, cz), e
    )
    value, mean, variance = unit.restore(value, mean, variance)
    df = jax.vmap(_satterthwaite, (None, 0, 0))(components, count * design, variance)
    if groups is None:
        mean, variance, df = mean[0], variance[0], df[0]
    return RemlFit(components, mean, jnp.sqrt(variance), df, value)


def _satterthwaite(components, count, variance):
    scores, cells = jnp.maximum(count.sum(), 1), (count > 0).sum()
    c, z = (jnp.maximum((count.sum(axis) > 0).sum(), 1) for axis in (1, 0))
    rest = components.interaction / jnp.maximum(cells, 1) + components.residual / scores
    of_c, of_z = components.instruction / c + rest, components.input / z + rest
    free_c, free_z = jnp.maximum(c - 1, 1), jnp.maximum(z - 1, 1)
    parts, df = jnp.stack([of_c, of_z, rest]), jnp.stack([c - 1, z - 1, free_c * free_z])
    return jnp.minimum(satterthwaite(variance, parts, df), scores - 1)

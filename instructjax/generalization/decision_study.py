r"""How sure a design would be, and how best to spend a budget: more instructions or more inputs?

Generalizability theory (Cronbach et al. 1972; Brennan 2001): what a grid of n_c instructions, n_z
inputs and n_r responses to each would give, from variance components of another grid,

\(SE^2 = \sigma^2_c / n_c + \sigma^2_z / n_z + \sigma^2_{cz} / (n_c n_z) + \sigma^2_e /
(n_c n_z n_r)\).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import ClusterSE, satterthwaite
from instructjax.generalization.components import Components, variance_components

Count = Num[AnyArray, "*shape"] | int | float


class Allocation(NamedTuple):
    """Attributes: instructions and inputs to take, and the standard error they give."""

    instructions: Array
    inputs: Array
    se: Array


def d_study(
    components: Components, instructions: Count, inputs: Count, responses: Count = 1
) -> Float[Array, "*_"]:
    """Standard error of a mean over a crossed design, in units of the score.

    >>> parts = Components(*jnp.array([0.01, 0.04, 0.16, 0.0]))
    >>> round(float(d_study(parts, 4, 16)), 4)  # sqrt(0.0025 + 0.0025 + 0.0025)
    0.0866
    """
    c, z, cz, e = (jnp.maximum(x, 0) for x in components)
    n_c, n_z, n_r = (jnp.asarray(n, c.dtype) for n in (instructions, inputs, responses))
    return jnp.sqrt(c / n_c + z / n_z + cz / (n_c * n_z) + e / (n_c * n_z * n_r))


def mean_se(score: Float[AnyArray, "C Z"]) -> ClusterSE:
    r"""Standard error of the mean of a complete grid, unbiased in its square, by its components.

    \(SE^2 = (MS_c + MS_z - MS_{cz}) / (C Z)\), degrees of freedom by Satterthwaite (1946), no more
    than of a grid with nothing but noise, no fewer than min(C, Z) - 1.

    >>> se, df = mean_se(jnp.array([[1.0, 3.0], [2.0, 4.0]]))
    >>> round(float(se), 4), round(float(df), 2)  # sqrt(0.5 / 2 + 2 / 2)
    (1.118, 1.47)
    """
    c, z = score.shape
    parts = variance_components(score)
    ms_cz = parts.interaction
    ms_c, ms_z = ms_cz + z * parts.instruction, ms_cz + c * parts.input
    total = jnp.maximum(ms_c + ms_z - ms_cz, jnp.maximum(ms_c, ms_z))
    parts = jnp.stack([ms_c, ms_z, ms_cz])
    df = satterthwaite(total, parts, jnp.array([c - 1.0, z - 1.0, (c - 1.0) * (z - 1.0)]))
    return ClusterSE(jnp.sqrt(total / (c * z)), jnp.minimum(df, c * z - 1))


def g_coefficients(
    between_models: Float[AnyArray, ""],
    relative_variance: Float[AnyArray, ""],
    absolute_variance: Float[AnyArray, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""How reliably a design tells models apart, 0 to 1: in their ranks, and in their values.

    \(E\rho^2 = \sigma^2_m / (\sigma^2_m + \sigma^2_\delta)\) with the error of differences between
    models (`model_components`), \(\Phi\) the same with the error of each model's own mean.

    >>> g, phi = g_coefficients(jnp.array(0.03), jnp.array(0.01), jnp.array(0.03))
    >>> round(float(g), 2), round(float(phi), 2)
    (0.75, 0.5)
    """
    m = jnp.maximum(between_models, 0)

    def share(error):
        total = m + error
        return jnp.where(total > 0, m / jnp.where(total > 0, total, 1), 0.0)

    return share(jnp.asarray(relative_variance)), share(jnp.asarray(absolute_variance))


def optimal_allocation(
    components: Components,
    budget: Float[AnyArray, ""] | float,
    *,
    instruction_cost: float = 0.0,
    input_cost: float = 0.0,
    most_instructions: int = 1000,
    most_inputs: int = 1_000_000,
) -> Allocation:
    """The crossed design with the smallest standard error that a budget pays for.

    A design costs one for each response, C x Z in all, plus what an instruction and an input cost
    by themselves (to write, to label), in responses. All numbers of instructions are tried, each
    with as many inputs as can be paid.

    Args:
      components: of a grid like the one to be made.
      budget: what may be spent, in responses.
      instruction_cost, input_cost: of one more.
      most_instructions, most_inputs: how many there are at most.

    >>> parts = Components(*jnp.array([0.01, 0.04, 0.16, 0.0]))
    >>> best = optimal_allocation(parts, 400.0)
    >>> int(best.instructions), int(best.inputs)  # about sqrt(400 x 0.01 / 0.04) = 10
    (10, 40)
    """
    n_c = jnp.arange(1, most_instructions + 1)
    n_z = (budget - n_c * instruction_cost) / (n_c + input_cost)
    n_z = jnp.clip(jnp.floor(n_z + 1e-5), 0, most_inputs)
    se = jnp.where(n_z >= 1, d_study(components, n_c, jnp.maximum(n_z, 1)), jnp.inf)
    best = jnp.argmin(se)
    return Allocation(n_c[best], n_z[best].astype(int), se[best])


def model_components(score: Float[AnyArray, "M C Z"]) -> dict[str, Float[Array, ""]]:
    r"""Components of models crossed with instructions and inputs: m, c, z, mc, mz, cz, mcz.

    By the mean squares of the complete three-way grid (Brennan 2001, appendix B). With n_c and n_z:
    error of differences mc / n_c + mz / n_z + mcz / (n_c n_z), of values moreover c / n_c + z / n_z
    + cz / (n_c n_z), for `g_coefficients`.

    >>> grid = jnp.arange(2.0)[:, None, None] + jnp.zeros((2, 3, 4))
    >>> {name: float(x) for name, x in model_components(grid).items() if x}
    {'m': 0.5}
    """
    score = jnp.asarray(score)
    m, c, z = score.shape
    axes = {"m": 0, "c": 1, "z": 2}
    sizes = {"m": m, "c": c, "z": z}

    def mean_of(name):
        drop = tuple(axis for key, axis in axes.items() if key not in name)
        return score.mean(drop, keepdims=True)

    ms = {}
    for name in ("m", "c", "z", "mc", "mz", "cz", "mcz"):
        some = [
            "".join(k for k, b in zip(name, bits, strict=True) if b) for bits in _bits(len(name))
        ]
        terms = [(-1) ** (len(name) - len(part)) * mean_of(part) for part in some]
        effect = jnp.asarray(sum(terms))
        repeated = jnp.prod(jnp.array([sizes[k] for k in "mcz" if k not in name] or [1]))
        freedom = jnp.prod(jnp.array([sizes[k] - 1 for k in name]))
        ms[name] = (effect**2).sum() * repeated / freedom
    parts = {"mcz": ms["mcz"]}
    for name, other in (("mc", z), ("mz", c), ("cz", m)):
        parts[name] = (ms[name] - ms["mcz"]) / other
    for name, one, two, size in (
        ("m", "mc", "mz", c * z),
        ("c", "mc", "cz", m * z),
        ("z", "mz", "cz", m * c),
    ):
        parts[name] = (ms[name] - ms[one] - ms[two] + ms["mcz"]) / size
    return {name: parts[name] for name in ("m", "c", "z", "mc", "mz", "cz", "mcz")}


def _bits(count: int) -> list[tuple[bool, ...]]:
    return [tuple(bool(i >> k & 1) for k in range(count)) for i in range(2**count)]

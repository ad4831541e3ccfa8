"""Do the intervals hold what they promise? Coverage by simulation with known truth.

    python experiments/coverage.py --runs 2000 --out experiments/results

Scores are drawn from mu + c + z + rest with standard deviations 0.05, 0.25 and 0.35 (what grids of
0/1 scores look like), again and again; where instructions and inputs belong to tasks, those too
have effects (`coverage_in_tasks.py`). An interval of nominal 95% should hold the truth in 93 to
97% of the runs. Writes coverage.md and coverage.json. With 2,000 runs the standard error of a share
is 0.5 points.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from coverage_in_tasks import (
    DRAWS,
    Run,
    Sizes,
    difference_in_tasks,
    gaps_by_task,
    gaps_by_wording,
    mean_of_tasks,
    mean_of_uneven_tasks,
)
from scipy.special import stdtrit

from instructjax.generalization import (
    attribution,
    bootstrap,
    cells,
    cluster_se,
    contrasts,
    decision_study,
    paired,
    reml,
    scaling,
)

SD_C, SD_Z, SD_REST = 0.05, 0.25, 0.35
EQUAL, UNEVEN, VERY_UNEVEN = get_args(Sizes)
BATCH = 50
# Rows that are there for comparison, and are not the ones to use.
NOT_ADVISED = (
    "naive",
    "instructions only",
    "inputs only",
    "normal quantiles",
    "percentile, nested",
    "percentile bootstrap",
    "without tasks",
)


def draw_grid(key: jax.Array, c: int, z: int, sd_c: float = SD_C) -> jax.Array:
    one, two, three = jax.random.split(key, 3)
    grid = sd_c * jax.random.normal(one, (c, 1)) + SD_Z * jax.random.normal(two, (1, z))
    return grid + SD_REST * jax.random.normal(three, (c, z))


def mean_of_grid(c: int, z: int) -> Run:
    """Intervals of the mean of a crossed grid; the truth is 0."""
    of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((c, z)))

    def run(key):
        data, one, two = jax.random.split(key, 3)
        grid = draw_grid(data, c, z)
        flat = grid.ravel()
        mean, e = flat.mean(), cluster_se.mean_influence(flat)
        both = cluster_se.multiway_cluster_se(e, (of_c, of_z))
        parts = decision_study.mean_se(grid)
        found = {
            "naive": _around(mean, jnp.sqrt((e**2).sum()), jnp.array(float(c * z - 1))),
            "clusters: instructions only": _clustered(mean, e, of_c),
            "clusters: inputs only": _clustered(mean, e, of_z),
            "two-way clusters, normal quantiles": _around(mean, both.se, jnp.array(1e9)),
            "two-way clusters, t (default)": _around(mean, *both),
            "variance components, t": _around(mean, *parts),
        }
        for kind, key in zip(get_args(bootstrap.Kind), (one, two), strict=True):
            drawn = bootstrap.crossed_bootstrap(key, grid, draws=DRAWS, kind=kind)
            found[f"crossed bootstrap, {kind}"] = bootstrap.percentile_interval(drawn)
        return found

    return run


def mean_of_sparse_grid(c: int, z: int) -> Run:
    """The same where three cells in ten are missing."""
    of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((c, z)))

    def run(key):
        data, holes, one = jax.random.split(key, 3)
        grid = draw_grid(data, c, z)
        there = jax.random.uniform(holes, (c, z)) > 0.3
        e = cluster_se.mean_influence(grid.ravel(), there.ravel())
        mean = jnp.where(there, grid, 0).sum() / there.sum()
        both = cluster_se.multiway_cluster_se(e, (of_c, of_z), there.ravel())
        fit = reml.fit_reml(grid, there)
        drawn = bootstrap.crossed_bootstrap(one, grid, there, draws=DRAWS)
        return {
            "two-way clusters, t (default)": _around(mean, *both),
            "REML, t": _around(fit.mean, fit.se, fit.df),
            "crossed bootstrap, exponential": bootstrap.percentile_interval(drawn),
        }

    return run


def gaps_of_cells(seen_c: int, unseen_c: int, seen_z: int, unseen_z: int) -> Run:
    """The four gaps; effects of instructions, inputs and their combination in all cells, no gap."""
    c, z = seen_c + unseen_c, seen_z + unseen_z
    of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((c, z)))
    cell = 2 * (of_c >= seen_c) + (of_z >= seen_z)
    share = cells.cell_weights(cell)
    matrix = jnp.array(cells.CONTRASTS, float)
    seen = jnp.array([[True, True, False, False], [True, False, True, False]])

    def run(key):
        data, boot = jax.random.split(key)
        flat = draw_grid(data, c, z, sd_c=0.1).ravel()
        influence = cells.cell_influence(flat, share)
        covariance = contrasts.cell_covariance(influence, share, (of_c, of_z))
        se, df = contrasts.contrast_se(covariance, matrix, seen)
        gaps = matrix @ (share.T @ flat)
        drawn = bootstrap.bootstrap_records(
            boot, flat, (of_c, of_z), share, lambda m: matrix @ m, num_clusters=(c, z), draws=DRAWS
        )
        plain = bootstrap.percentile_interval(drawn)
        rescaled = bootstrap.rescaled_interval(gaps, drawn, se, df)
        found = {}
        for i, name in enumerate(cells.Gaps._fields):
            found[f"{name} gap, t (default)"] = _around(gaps[i], se[i], df[i])
            found[f"{name} gap, rescaled bootstrap"] = tuple(end[i] for end in rescaled)
            found[f"{name} gap, percentile bootstrap"] = tuple(end[i] for end in plain)
        return found

    return run


def difference_of_models(c: int, z: int) -> Run:
    """Two models on the same grid: what is hard is hard for both."""
    of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((c, z)))

    def run(key):
        shared, a, b, boot = jax.random.split(key, 4)
        common = draw_grid(shared, c, z)
        one, two = (common + 0.4 * draw_grid(k, c, z) for k in (a, b))
        found = paired.compare_paired(one.ravel(), two.ravel(), (of_c, of_z))
        drawn = bootstrap.crossed_bootstrap(
            boot, jnp.stack([one, two]), statistic=lambda m: m[0] - m[1], draws=DRAWS
        )
        unpaired = jnp.sqrt((one.var() + two.var()) / (c * z))
        return {
            "naive, not paired": _around(found.difference, unpaired, jnp.array(2.0 * c * z)),
            "paired, two-way clusters, t (default)": (found.difference, found.se, found.df),
            "paired, crossed bootstrap, exponential": bootstrap.percentile_interval(drawn),
        }

    return run


def contributions(c: int, z: int) -> Run:
    """What an instruction adds to log Pr, nats a response: scores in four contexts; minus truth."""
    of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((c, z)))

    def run(key):
        full, without = jax.random.split(key)
        s_cz, s_z = 4 * draw_grid(full, c, z).ravel(), jnp.tile(jax.random.normal(without, (z,)), c)
        zero = jnp.zeros_like(s_cz)
        added = attribution.conditional_attribution(s_cz, zero, s_z, zero).instruction_given_input
        e = cluster_se.mean_influence(added)
        return {
            "clusters: instructions only": _clustered(added.mean(), e, of_c),
            "report's contribution of c, t (default)": _around(
                added.mean(), *cluster_se.multiway_cluster_se(e, (of_c, of_z))
            ),
        }

    return run


def slope_of_curve(points: int) -> Run:
    """b of s = a + b log n, floor and alpha of the power law, from noisy points; minus truth."""
    n = 2.0 ** jnp.arange(points)

    def run(key):
        noise = 0.01 * jax.random.normal(key, (points,))
        line = scaling.fit_log_linear(n, 0.3 + 0.05 * jnp.log(n) + noise)
        power = scaling.fit_power_law(n, 0.8 - 0.6 * n**-0.6 + noise)
        return {
            "log-linear fit, b": (line.low[1] - 0.05, line.high[1] - 0.05),
            "power law, floor": (power.low[0] - 0.8, power.high[0] - 0.8),
            "power law, alpha": (power.low[2] - 0.6, power.high[2] - 0.6),
        }

    return run


def slow_curve(points: int, size: float, alpha: float) -> Run:
    """The power law where the points hardly show its bend; minus the truth.

    A flat curve (size 0) has no alpha; its floor and its size are known.
    """
    n = 2.0 ** jnp.arange(points)
    truth = {"floor": (0, 0.8), "size": (1, size), "alpha": (2, alpha)}
    told = ("floor", "size") if size == 0 else ("floor", "alpha")

    def run(key):
        noise = 0.01 * jax.random.normal(key, (points,))
        power = scaling.fit_power_law(n, 0.8 - size * n**-alpha + noise)
        return {
            f"power law, {name}": tuple(end[i] - value for end in (power.low, power.high))
            for name, (i, value) in truth.items()
            if name in told
        }

    return run


def _around(mean, se, df):
    return mean, se, df


def _clustered(mean, e, way):
    return _around(mean, *cluster_se.multiway_cluster_se(e, (way,)))


def count_covered(run: Run, key: jax.Array, runs: int) -> dict[str, dict[str, float]]:
    """Share of runs whose interval holds 0, mean width of the finite ones, share of the others."""

    @jax.jit
    def all_runs(keys):
        return jax.lax.map(run, keys, batch_size=BATCH)

    results = {}
    for name, found in all_runs(jax.random.split(key, runs)).items():
        if len(found) == 3:  # estimate, standard error, degrees of freedom
            mean, se, df = (np.asarray(x, np.float64) for x in found)
            half = stdtrit(df, 0.975) * se
            low, high = mean - half, mean + half
        else:
            low, high = map(np.asarray, found)
        held = (low <= 0) & (high >= 0)
        wide = np.isinf(high - low)
        results[name] = {"coverage": float(held.mean()), "width": _mean_of((high - low)[~wide])}
        if wide.any():
            results[name]["infinite"] = float(wide.mean())
    return results


def _mean_of(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


STUDIES: dict[str, Callable[[], Run]] = {
    **{
        f"mean, {c} instructions x {z} inputs": lambda c=c, z=z: mean_of_grid(c, z)
        for c, z in ((8, 100), (20, 100), (60, 50))
    },
    **{
        f"mean, {c} x {z}, 30% missing": lambda c=c, z=z: mean_of_sparse_grid(c, z)
        for c, z in ((8, 100), (20, 100))
    },
    **{
        f"gaps, {c}+{u} instructions x {z}+{v} inputs": lambda s=(c, u, z, v): gaps_of_cells(*s)
        for c, u, z, v in ((8, 8, 50, 50), (20, 8, 50, 50), (30, 30, 25, 25))
    },
    **{
        f"difference of two models, {c} x {z}": lambda c=c, z=z: difference_of_models(c, z)
        for c, z in ((8, 100), (20, 100), (60, 50))
    },
    **{
        f"mean, {t} tasks x {i} own inputs": lambda t=t, i=i: mean_of_tasks(t, i)
        for t, i in ((8, 100), (20, 100), (60, 50))
    },
    **{
        f"difference of two models, {t} tasks of {c} x {z}": lambda s=(t, c, z): (
            difference_in_tasks(*s)
        )
        for t, c, z in ((8, 3, 20), (20, 3, 20))
    },
    **{
        f"contributions, {c} x {z}": lambda c=c, z=z: contributions(c, z)
        for c, z in ((8, 100), (20, 100), (60, 50))
    },
    "mean, 20 uneven tasks of 3 x 20": lambda: mean_of_uneven_tasks(20, 3, 20),
    "scaling curve, 8 points": lambda: slope_of_curve(8),
    **{
        f"gaps, {t}+{u} {sizes} tasks of {c} x 40": lambda s=(t, u, c, 40, sizes): gaps_by_task(*s)
        for t, u in ((8, 8), (20, 8))
        for c, sizes in ((1, EQUAL), (1, UNEVEN), (1, VERY_UNEVEN), (3, VERY_UNEVEN))
    },
    **{
        f"gaps, wordings of {t} {sizes} tasks of 4 x 40": lambda s=(t, 4, 40, sizes): (
            gaps_by_wording(*s)
        )
        for t, sizes in ((8, EQUAL), (8, VERY_UNEVEN), (20, VERY_UNEVEN))
    },
    **{
        f"scaling curve, {name}, 8 points": lambda size=size, alpha=alpha: slow_curve(
            8, size, alpha
        )
        for name, size, alpha in (
            ("alpha 0.1", 0.6, 0.1),
            ("alpha 0.05", 0.6, 0.05),
            ("flat", 0.0, 0.0),
        )
    },
}


def study(
    runs: int,
    seed: int = 0,
    names: tuple[str, ...] | None = None,
    *,
    known: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Coverage of every interval in every design; those known are not computed again."""
    results = dict(known or {})
    for i, (name, make) in enumerate(STUDIES.items()):
        if name in results or (names is not None and not any(map(name.startswith, names))):
            continue
        start = time.perf_counter()
        results[name] = count_covered(make(), jax.random.key(seed + i), runs)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        for interval, found in results[name].items():
            print(f"    {interval}: {100 * found['coverage']:.1f}%", file=sys.stderr)
        save(results)
    return results


def is_advised(interval: str) -> bool:
    return not any(word in interval for word in NOT_ADVISED)


def write_table(results: dict[str, Any], runs: int) -> str:
    lines = [
        f"Coverage of nominal 95% intervals, {runs:,} runs a design (`experiments/coverage.py`).",
        "In brackets: for comparison, not to be used.",
        "",
        "| design | interval | coverage, % | mean width |",
        "| --- | --- | ---: | ---: |",
    ]
    for design, intervals in results.items():
        for interval, found in intervals.items():
            share = f"{100 * found['coverage']:.1f}"
            name = interval if is_advised(interval) else f"({interval})"
            width = f"{found['width']:.3f}"
            if infinite := found.get("infinite"):
                width += f" ({100 * infinite:.1f}% infinite)"
            lines.append(f"| {design} | {name} | {share} | {width} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", help="designs, by the start of their names")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "coverage.json"
    about: dict[str, Any] = {"runs": args.runs, "seed": args.seed, "draws": DRAWS}
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(name) == value for name, value in about.items())

    def save(results: dict[str, Any]) -> None:
        ordered = {name: results[name] for name in STUDIES if name in results}
        path.write_text(json.dumps({**about, "designs": ordered}, indent=1) + "\n")
        (args.out / "coverage.md").write_text(write_table(ordered, args.runs))

    names = tuple(args.only) if args.only else None
    known = before["designs"] if same else None
    results = study(args.runs, args.seed, names, known=known, save=save)
    print(write_table(results, args.runs))
    wrong = [
        (design, name)
        for design, intervals in results.items()
        for name, found in intervals.items()
        if is_advised(name) and not 0.93 <= found["coverage"] <= 0.97
    ]
    for design, name in wrong:
        print(f"outside 93 to 97%: {design}: {name}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

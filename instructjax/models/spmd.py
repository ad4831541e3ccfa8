"""A pure function on a mesh: each device computes rows of its own, with one whole layer at a time.

The axes that rows are split over are manual (`jax.shard_map`), so a row is computed by the same
operations as on one device, wherever it lies. Parameters split over these axes are gathered when
they are needed, those of a layer within the scan, and their gradients are scattered back the same
way (Rajbhandari et al. 2020). The other axes of the mesh are the compiler's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructjax.models.remat import GATHERED
from instructjax.models.sharded import STACKS, param_spec, path_of
from instructjax.sharding.rules import ShardingRules


@dataclass(frozen=True)
class Gather:
    """Makes parameters whole that are split over the axes of rows.

    Attributes:
      places: of each such parameter, its dotted path within a layer (or the decoder), the axis that
        is split there, and the axes of the mesh.
    """

    places: tuple[tuple[str, int, tuple[str, ...]], ...]

    def __call__(self, params: nnx.State) -> nnx.State:
        """The same tree with whole arrays."""
        found = {path: (axis, names) for path, axis, names in self.places}

        def whole(path: Any, x: jax.Array) -> jax.Array:
            if path_of(path) not in found:
                return x
            axis, names = found[path_of(path)]
            return checkpoint_name(lax.all_gather(x, names, axis=axis, tiled=True), GATHERED)

        return jax.tree.map_with_path(whole, params)


def over_rows(
    function: Callable[..., Any],
    graphdef: nnx.GraphDef,
    *,
    mesh: Mesh | None,
    rules: ShardingRules | None = None,
    batch_axis: int = 0,
    total: bool = False,
) -> Callable[[nnx.State, Any], Any]:
    """The function (params, batch) -> function(graphdef, params, batch), on a mesh if there is one.

    On a mesh of several processes each gets all results.

    Args:
      function: pure; gives arrays whose first axis is that of the batch's rows.
      graphdef: of the decoder.
      mesh, rules: `rules.batch` says which axes of the mesh rows are split over; their number must
        divide by the product.
      batch_axis: which axis of the batch's arrays counts rows.
      total: the function gives sums over rows; they are added up over the devices.
    """
    rules = rules or ShardingRules()
    rows = () if mesh is None else rules.mesh_axes("batch", mesh)
    if mesh is None or not rows:
        return lambda params, batch: function(graphdef, params, batch)

    def call(params: nnx.State, batch: Any) -> Any:
        specs = jax.tree.map_with_path(
            lambda path, x: _only(param_spec(path_of(path), x.shape, mesh, rules), rows), params
        )
        outer, inner = _find_splits(specs)

        def local(params: nnx.State, batch: Any) -> Any:
            module = nnx.merge(graphdef, outer(params))
            module.gather = inner
            result = function(*nnx.split(module), batch)
            return lax.psum(result, rows) if total else result

        of_batch = PartitionSpec(*(None,) * batch_axis, rows)
        result = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, of_batch),
            out_specs=PartitionSpec() if total else PartitionSpec(rows),
            axis_names=frozenset(rows),
        )(params, batch)
        if mesh.is_multi_process and not total:
            whole = NamedSharding(mesh, PartitionSpec())
            result = jax.tree.map(lambda x: lax.with_sharding_constraint(x, whole), result)
        return result

    return call


def _only(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """The part of a spec that names these axes.

    >>> tuple(_only(PartitionSpec(None, ("fsdp", "tensor"), "data"), ("data", "fsdp")))
    (None, 'fsdp', 'data')
    """
    parts = []
    for part in spec:
        names = part if isinstance(part, tuple) else () if part is None else (part,)
        kept = tuple(name for name in names if name in axes)
        parts.append(kept[0] if len(kept) == 1 else kept or None)
    return PartitionSpec(*parts)


def _find_splits(specs: nnx.State) -> tuple[Gather, Gather]:
    """What is to be gathered before the function begins, and what within each layer."""
    outer, inner = [], {}
    for keys, spec in jax.tree.leaves_with_path(
        specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    ):
        path = path_of(keys)
        stack, _, below = path.partition(".")
        for axis, part in enumerate(spec):
            names = part if isinstance(part, tuple) else (part,)
            if part is None:
                continue
            if stack in STACKS:
                inner[below] = (below, axis - 1, names)
            else:
                outer.append((path, axis, names))
    return Gather(tuple(outer)), Gather(tuple(inner.values()))

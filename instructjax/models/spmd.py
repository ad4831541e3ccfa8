"""A pure function on a mesh: each device computes rows of its own, with one whole layer at a time.

The axes that rows are split over are manual (`jax.shard_map`), so a row is computed by the same
operations as on one device, wherever it lies. Parameters split over these axes are gathered when
they are needed, those of a layer within the scan, and their gradients are scattered back the same
way (Rajbhandari et al. 2020). The other axes of the mesh are the compiler's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructjax.models.attention_split import AttentionSplit
from instructjax.models.remat import GATHERED
from instructjax.models.sharded import STACKS, param_spec, path_of
from instructjax.models.varying import TableSplit
from instructjax.sharding.rules import ShardingRules


@dataclass(frozen=True)
class Gather:
    """Makes parameters whole that are split over the axes of rows.

    Attributes:
      splits: of each such parameter, its dotted path within a layer (or the decoder), the axis that
        is split there, the axes of the mesh, and how it is split over axes that rows are not.
      rows: the axes that rows are split over.
    """

    splits: tuple[tuple[str, int, tuple[str, ...], PartitionSpec], ...]
    rows: tuple[str, ...]

    def __call__(self, params: nnx.State) -> nnx.State:
        """The same tree with whole arrays."""
        found = {path: (axis, names, others) for path, axis, names, others in self.splits}

        def whole(path: Any, x: jax.Array) -> jax.Array:
            if path_of(path) not in found:
                return x
            axis, names, others = found[path_of(path)]

            def gather(x: jax.Array) -> jax.Array:
                # Varying over all axes of rows before it is gathered, so that gradients are
                # scattered first, and only the part that is left is added up over the others.
                missing = tuple(name for name in self.rows if name not in names)
                x = lax.pcast(x, missing, to="varying") if missing else x
                return lax.all_gather(x, names, axis=axis, tiled=True)

            if inner := [name for part in others for name in _names(part)]:
                # The compiler knows of no all-gather of what is split over its own axes: it would
                # make the array whole over these as well.
                gather = jax.shard_map(
                    gather, in_specs=others, out_specs=others, axis_names=frozenset(inner)
                )
            return checkpoint_name(gather(x), GATHERED)

        return jax.tree.map_with_path(whole, params)


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return part if isinstance(part, tuple) else () if part is None else (part,)


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
    if mesh is None:
        return lambda params, batch: function(graphdef, params, batch)

    def whole(params: nnx.State, batch: Any) -> Any:
        module = nnx.merge(graphdef, params)
        full = _find_specs(params, mesh, rules)
        module.table_split = _find_table_split(full, mesh, rows)._replace(mesh=mesh)
        module.attention_split = _find_attention_split(mesh, rules, rows, mesh)
        return function(*nnx.split(module), batch)

    if not rows:
        return whole

    def call(params: nnx.State, batch: Any) -> Any:
        full = _find_specs(params, mesh, rules)
        specs = jax.tree.map(partial(_only, axes=rows), full, is_leaf=_is_spec)
        outer, inner = _find_splits(full, rows)

        def local(params: nnx.State, batch: Any) -> Any:
            module = nnx.merge(graphdef, outer(params))
            module.gather = inner
            module.table_split = _find_table_split(full, mesh, rows)
            module.attention_split = _find_attention_split(mesh, rules, rows)
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
        kept = tuple(name for name in _names(part) if name in axes)
        parts.append(kept[0] if len(kept) == 1 else kept or None)
    return PartitionSpec(*parts)


def _find_specs(params: nnx.State, mesh: Mesh, rules: ShardingRules) -> nnx.State:
    return jax.tree.map_with_path(
        lambda path, x: param_spec(path_of(path), x.shape, mesh, rules), params
    )


def _find_table_split(specs: nnx.State, mesh: Mesh, rows: tuple[str, ...]) -> TableSplit:
    """How the output table is split over axes that rows of tokens are not."""
    by_path = {
        path_of(keys): spec for keys, spec in jax.tree.leaves_with_path(specs, is_leaf=_is_spec)
    }
    spec = by_path.get("lm_head.kernel", by_path["embed.embedding"])
    axes = tuple(name for name in _names(spec[0]) if name not in rows)
    return TableSplit(axes, math.prod(mesh.shape[axis] for axis in axes))


def _find_attention_split(
    mesh: Mesh, rules: ShardingRules, rows: tuple[str, ...], of: Mesh | None = None
) -> AttentionSplit:
    heads, queries = (
        tuple(name for name in rules.mesh_axes(kind, mesh) if name not in rows)
        for kind in ("heads", "sequence")
    )
    parts = math.prod(mesh.shape[axis] for axis in queries)
    auto = frozenset(mesh.shape) - set(rows)
    return AttentionSplit(heads, queries if parts > 1 else (), parts, auto, of)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _find_splits(specs: nnx.State, rows: tuple[str, ...]) -> tuple[Gather, Gather]:
    """What is to be gathered before the function begins, and what within each layer."""
    outer, inner = [], []
    for keys, spec in jax.tree.leaves_with_path(specs, is_leaf=_is_spec):
        path = path_of(keys)
        stack, _, below = path.partition(".")
        if stack in STACKS:
            path, spec = below, PartitionSpec(*spec[1:])
        others = PartitionSpec(
            *(tuple(n for n in _names(part) if n not in rows) or None for part in spec)
        )
        for axis, part in enumerate(_only(spec, rows)):
            if part is not None:
                (inner if stack in STACKS else outer).append((path, axis, _names(part), others))
    return Gather(tuple(outer), rows), Gather(tuple(inner), rows)

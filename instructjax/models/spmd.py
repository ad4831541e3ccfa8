"""A pure function on a mesh: each device computes rows of its own, with one whole layer at a time.

The axes that rows and their tokens are split over are manual (`jax.shard_map`), so a row is
computed by the same operations as on one device, wherever it lies. Parameters split over these axes
are gathered when they are needed, those of a layer within the scan, and their gradients are
scattered back the same way (Rajbhandari et al. 2020). The other axes of the mesh are the
compiler's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from instructjax.models.attention_split import AttentionSplit
from instructjax.models.remat import GATHERED
from instructjax.models.sharded import STACKS, param_spec, path_of
from instructjax.models.varying import TableSplit, vary
from instructjax.sharding.rules import AnyMesh, ShardingRules

# As compiled programs call what devices add up at the end.
SUM = "sum_over_rows"


@dataclass(frozen=True)
class Gather:
    """Makes parameters whole that are split over the axes of rows.

    Attributes:
      splits: of each such parameter, its dotted path within a layer (or the decoder), an axis that
        is split there, the axes of the mesh, and how it is split over axes that rows are not. The
        last axes of the mesh lie nearest and come last, when there is most to gather.
      rows: the axes that rows are split over.
    """

    splits: tuple[tuple[str, int, tuple[str, ...], PartitionSpec], ...]
    rows: tuple[str, ...]

    def __call__(self, params: nnx.State) -> nnx.State:
        """The same tree with whole arrays."""
        found: dict[str, dict[int, tuple[tuple[str, ...], PartitionSpec]]] = {}
        for path, axis, names, others in self.splits:
            found.setdefault(path, {})[axis] = names, others

        def whole(path: Any, x: jax.Array) -> jax.Array:
            if path_of(path) not in found:
                return x
            splits = found[path_of(path)]
            others = next(iter(splits.values()))[1]

            def gather(x: jax.Array) -> jax.Array:
                # Varying over all axes of rows before it is gathered, so that gradients are
                # scattered first, and only the part that is left is added up over the others.
                x = vary(x, self.rows)
                for axis, (names, _) in splits.items():
                    x = lax.all_gather(x, names, axis=axis, tiled=True)
                return x

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


Prepare = Callable[[nnx.State, Any], tuple[nnx.GraphDef, nnx.State, Any]]


def over_rows(
    function: Callable[..., Any],
    graphdef: nnx.GraphDef,
    *,
    mesh: Mesh | None,
    rules: ShardingRules | None = None,
) -> Callable[[nnx.State, Any], Any]:
    """The function (params, batch) -> function(graphdef, params, batch), on a mesh if there is one.

    On a mesh of several processes each gets all results.

    Args:
      function: pure; gives arrays whose first axis is that of the batch's rows.
      graphdef: of the decoder.
      mesh, rules: `rules.batch` says which axes of the mesh rows are split over; their number must
        divide by the product.
    """
    rules = rules or ShardingRules()
    rows, manual = _manual_axes(mesh, rules)

    def call(params: nnx.State, batch: Any) -> Any:
        if mesh is None:
            return function(graphdef, params, batch)
        full = _find_specs(params, mesh, rules)
        prepare = _make_prepare(graphdef, full, mesh, rules)
        if not manual:
            return function(*prepare(params, batch))

        result = jax.shard_map(
            lambda params, batch: function(*prepare(params, batch)),
            mesh=mesh,
            in_specs=(_along(full, manual), PartitionSpec(rows)),
            out_specs=PartitionSpec(rows),
            axis_names=frozenset(manual),
        )(params, batch)
        if mesh.is_multi_process:
            whole = NamedSharding(mesh, PartitionSpec())
            result = jax.tree.map(lambda x: lax.with_sharding_constraint(x, whole), result)
        return result

    return call


def sum_over_rows(
    function: Callable[[Prepare, nnx.State, nnx.State, Any], tuple[Array, Array, nnx.State]],
    graphdef: nnx.GraphDef,
    *,
    mesh: Mesh | None,
    rules: ShardingRules | None = None,
    batch_axis: int = 0,
) -> Callable[[nnx.State, nnx.State, Any], tuple[Array, Array, nnx.State]]:
    """(trainable, frozen, batch) -> function(prepare, trainable, frozen, batch), over a mesh.

    Each device sums what its own rows and tokens give; devices add their sums up once, when all is
    done.

    Args:
      function: gives a sum, a weight and a gradient of all of `trainable`, each of the rows that it
        is given. `prepare` makes of parameters and a batch the arguments of a pure function of the
        decoder.
      graphdef: of the decoder.
      mesh, rules: as for `over_rows`.
      batch_axis: which axis of the batch's arrays counts rows.
    """
    rules = rules or ShardingRules()
    rows, manual = _manual_axes(mesh, rules)

    def call(trainable: nnx.State, frozen: nnx.State, batch: Any) -> tuple[Array, Array, nnx.State]:
        if mesh is None:
            return function(partial(_as_it_is, graphdef), trainable, frozen, batch)
        full = _find_specs(nnx.merge_state(trainable, frozen), mesh, rules)
        prepare = _make_prepare(graphdef, full, mesh, rules, alike=False)
        if not manual:
            return function(prepare, trainable, frozen, batch)
        specs = [_along(_find_specs(part, mesh, rules), manual) for part in (trainable, frozen)]
        # Devices that share a row have its tokens in parts, but all find what it gives.
        times = math.prod(mesh.shape[axis] for axis in manual if axis not in rows)

        def local(trainable: nnx.State, frozen: nnx.State, batch: Any) -> Any:
            # As arrays that differ from device to device, so that their gradients are those of the
            # device's own tokens.
            own, batch = jax.tree.map(lambda x: vary(x, manual), (trainable, batch))
            value, weight, grads = function(prepare, own, frozen, batch)

            def add(x: Array, spec: PartitionSpec) -> Array:
                missing = set(manual).difference(*map(_names, spec))
                x = lax.psum(x, tuple(sorted(missing))) if missing else x
                return x if times == 1 else x / times

            with jax.named_scope(SUM):
                sums = (add(x, PartitionSpec()) for x in (value, weight))
                return *sums, jax.tree.map(add, grads, specs[0])

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(*specs, PartitionSpec(*(None,) * batch_axis, rows)),
            out_specs=(PartitionSpec(), PartitionSpec(), specs[0]),
            axis_names=frozenset(manual),
        )(trainable, frozen, batch)

    return call


def warn_of_short_rows(
    length: int, tile: int, mesh: Mesh | None, rules: ShardingRules | None = None
) -> None:
    """Warns where a mesh has axes for the tokens of a row, and rows are too short to be split.

    Args:
      length, tile: tokens of a row, and those that attention takes together.
      mesh, rules: as for `over_rows`.
    """
    if mesh is None:
        return
    rules = rules or ShardingRules()
    split = _find_attention_split(mesh, rules)
    if split.for_rows(length, tile).parts == split.parts:
        return
    axes = ",".join(f"{axis}={mesh.shape[axis]}" for axis in split.queries)
    warnings.warn(
        f"rows of {length:,} tokens are too short to be split over {axes}, whose devices compute "
        f"the same; give rows of {split.least_length(tile):,} or more, or another mesh",
        stacklevel=2,
    )


def _as_it_is(graphdef: nnx.GraphDef, params: nnx.State, batch: Any) -> Any:
    return graphdef, params, batch


def _manual_axes(
    mesh: AnyMesh | None, rules: ShardingRules
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that rows are split over, and with them those for the tokens of a row."""
    if mesh is None:
        return (), ()
    rows = rules.mesh_axes("batch", mesh)
    tokens = rules.mesh_axes("sequence", mesh)
    return rows, rows + tuple(axis for axis in tokens if axis not in rows)


def _make_prepare(
    graphdef: nnx.GraphDef,
    specs: nnx.State,
    mesh: Mesh,
    rules: ShardingRules,
    *,
    alike: bool = True,
) -> Prepare:
    """Of parameters and a batch, the arguments of a pure function: the decoder then gathers layers
    as it comes to them, and knows how attention and table are split."""
    rows, manual = _manual_axes(mesh, rules)
    of = None if manual else mesh
    outer, inner = _find_splits(specs, rows, manual)
    split = _find_attention_split(mesh, rules)._replace(mesh=of, alike=alike)

    def prepare(params: nnx.State, batch: Any) -> tuple[nnx.GraphDef, nnx.State, Any]:
        module = nnx.merge(graphdef, outer(params))
        module.gather = inner if inner.splits else None
        module.table_split = _find_table_split(specs, mesh, manual)._replace(mesh=of)
        module.attention_split = split
        return *nnx.split(module), batch

    return prepare


def _along(specs: nnx.State, axes: tuple[str, ...]) -> nnx.State:
    return jax.tree.map(partial(_only, axes=axes), specs, is_leaf=_is_spec)


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


def _find_attention_split(mesh: AnyMesh, rules: ShardingRules) -> AttentionSplit:
    rows, manual = _manual_axes(mesh, rules)
    heads = tuple(name for name in rules.mesh_axes("heads", mesh) if name not in manual)
    queries = manual[len(rows) :]
    parts = math.prod(mesh.shape[axis] for axis in queries)
    auto = frozenset(mesh.shape) - set(manual)
    return AttentionSplit(heads, queries if parts > 1 else (), parts, auto)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _find_splits(
    specs: nnx.State, rows: tuple[str, ...], manual: tuple[str, ...]
) -> tuple[Gather, Gather]:
    """What is to be gathered before the function begins, and what within each layer."""
    outer, inner = [], []
    for keys, spec in jax.tree.leaves_with_path(specs, is_leaf=_is_spec):
        path = path_of(keys)
        stack, _, below = path.partition(".")
        if stack in STACKS:
            path, spec = below, PartitionSpec(*spec[1:])
        others = PartitionSpec(
            *(tuple(n for n in _names(part) if n not in manual) or None for part in spec)
        )
        split = [(axis, _names(part)) for axis, part in enumerate(_only(spec, manual)) if part]
        for axis, names in sorted(split, key=lambda pair: manual.index(pair[1][0])):
            (inner if stack in STACKS else outer).append((path, axis, names, others))
    return Gather(tuple(outer), rows), Gather(tuple(inner), rows)

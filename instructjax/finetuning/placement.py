"""Where the state of a run lies on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from instructjax.finetuning.partition import name_param
from instructjax.finetuning.state import TrainState
from instructjax.models.sharded import param_spec
from instructjax.sharding.processes import put as put_array
from instructjax.sharding.rules import AnyMesh, ShardingRules


def place_state(
    state: TrainState,
    mesh: AnyMesh,
    rules: ShardingRules | None = None,
    *,
    put: Callable[[Any, NamedSharding], Any] = put_array,
) -> TrainState:
    """The state with every array in its place on a mesh.

    Parameters lie as `ShardingRules` say; what an optimizer keeps of a parameter in its shape, such
    as its moments, lies as it does; everything else is small, and whole on every device.

    Args:
      state: see `TrainState`.
      mesh, rules: of the devices, and what is split over them.
      put: moves an array, or within a compiled function says where it lies.
    """
    rules = rules or ShardingRules()
    sizes = {name_param(path): x.shape for path, x in jax.tree.leaves_with_path(state.params)}

    def place(path: Any, leaf: Any) -> Any:
        name = name_param(path)
        # An optimizer may put names of its own before a parameter's.
        while name not in sizes and "." in name:
            name = name.partition(".")[2]
        own = sizes.get(name) == leaf.shape
        spec = param_spec(name, leaf.shape, mesh, rules) if own else PartitionSpec()
        # As the compiler writes it, so that a new state's place is spelled like an old one's.
        while spec and spec[-1] is None:
            spec = PartitionSpec(*spec[:-1])
        return put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(place, state)

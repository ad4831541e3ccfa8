"""How the parameters of a decoder lie on a mesh."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from instructjax.errors import ModelError, UsageError
from instructjax.models.config import DecoderConfig
from instructjax.sharding.mesh import AXES
from instructjax.sharding.rules import AnyMesh, ShardingRules

Names = tuple[str | None, ...]

# Parameters of layers, which come one after the other on a leading axis; in the layers' order.
STACKS = ("dense_layers", "layers")

# What the axes of a parameter are, by the end of its path; within layers one more comes first.
# Vectors that are not here, as long as the hidden state at most, are not worth splitting.
_AXES: dict[str, Names] = {
    "embed.embedding": ("vocab", "embed"),
    "embed.positions": (None, "embed"),
    "lm_head.kernel": ("vocab", "embed"),
    "attention.q.kernel": ("embed", "heads"),
    "attention.k.kernel": ("embed", "kv_heads"),
    "attention.v.kernel": ("embed", "kv_heads"),
    "attention.o.kernel": ("heads", "embed"),
    "attention.q.bias": ("heads",),
    "attention.k.bias": ("kv_heads",),
    "attention.v.bias": ("kv_heads",),
    "attention.sinks": ("heads",),
    "attention.q_down.kernel": ("embed", None),
    "attention.q_up.kernel": (None, "heads"),
    "attention.kv_down.kernel": ("embed", None),
    "attention.kv_up.kernel": (None, "heads"),
    "gate.kernel": ("embed", "mlp"),
    "up.kernel": ("embed", "mlp"),
    "down.kernel": ("mlp", "embed"),
    "gate.bias": ("mlp",),
    "up.bias": ("mlp",),
    "mlp.router.kernel": ("embed", None),
    "mlp.gate": ("experts", "embed", "mlp"),
    "mlp.up": ("experts", "embed", "mlp"),
    "mlp.down": ("experts", "mlp", "embed"),
    "mlp.gate_bias": ("experts", "mlp"),
    "mlp.up_bias": ("experts", "mlp"),
    "mlp.down_bias": ("experts", None),
}


def is_stacked(path: str) -> bool:
    """Whether a parameter's leading axis counts layers.

    >>> is_stacked("layers.attention.q.kernel"), is_stacked("embed.embedding")
    (True, False)
    """
    return path.partition(".")[0] in STACKS


def param_axes(path: str, ndim: int) -> Names:
    """What the axes of a parameter are, in the names of `ShardingRules`.

    Args:
      path: dotted, such as "layers.attention.q.kernel".
      ndim: how many axes it has.

    >>> param_axes("layers.attention.q.kernel", 3)
    ('layers', 'embed', 'heads')
    >>> param_axes("layers.attention.q.lora_b", 3)  # beside it: A takes its rows, B its columns
    ('layers', None, 'heads')
    """
    *parts, last = path.split(".")
    parts.append("kernel" if last in ("lora_a", "lora_b") else last)
    ends = (".".join(parts[-count:]) for count in (3, 2))
    names = next((_AXES[end] for end in ends if end in _AXES), ())
    if names and last == "lora_a":
        names = (names[0], None)
    elif names and last == "lora_b":
        names = (None, names[1])
    names = ("layers", *names) if is_stacked(path) else names
    return (*names, *(None,) * (ndim - len(names)))


def path_of(keys: Any) -> str:
    """The dotted path of a parameter from its path in a tree of parameters."""
    names = (str(getattr(key, "key", getattr(key, "name", ""))) for key in keys)
    return ".".join(name for name in names if name != "value")


def param_spec(
    path: str, shape: tuple[int, ...], mesh: AnyMesh, rules: ShardingRules
) -> PartitionSpec:
    """How a parameter is split; an axis that does not divide is left whole."""
    pairs = zip(param_axes(path, len(shape)), shape, strict=True)
    fitting = tuple(n if size % rules.parts(n, mesh) == 0 else None for n, size in pairs)
    return rules.spec(fitting, mesh)


def param_shardings(
    config: DecoderConfig, mesh: AnyMesh, rules: ShardingRules | None = None
) -> nnx.State:
    """The sharding of every parameter, in a tree like that of `Model.params`.

    The hidden state and the vocabulary are left whole where their sizes do not divide; nothing
    depends on it but memory.

    Args:
      config: the decoder.
      mesh: of the devices.
      rules: by default those of `ShardingRules()`.

    Raises:
      UsageError: heads, MLPs or experts do not divide over the axes that they are split over.
    """
    from instructjax.models.model import abstract_decoder

    rules = rules or ShardingRules()
    check_mesh(config, mesh, rules)

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, param_spec(path_of(path), leaf.shape, mesh, rules))

    return jax.tree.map_with_path(place, abstract_decoder(config, "float32")[1])


def device_bytes(tree: Any) -> int:
    """Bytes that a device holds of arrays, or of abstract ones, by shardings, without padding.

    >>> device_bytes({"w": jax.ShapeDtypeStruct((2, 3), "float32")})
    24
    """
    return sum(
        math.prod(x.shape if x.sharding is None else x.sharding.shard_shape(x.shape))
        * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def check_mesh(config: DecoderConfig, mesh: AnyMesh, rules: ShardingRules) -> None:
    """See that what computes by itself stays whole.

    Raises:
      UsageError: it does not; the message has the numbers that would do.
    """
    counts = {
        "heads": (config.num_heads, "heads"),
        "kv_heads": (config.num_kv_heads, "key-value heads"),
        "mlp": (config.intermediate_size, "features of an MLP"),
    }
    if config.num_experts:
        counts["experts"] = (config.num_experts, "experts")
    for name, (count, what) in counts.items():
        parts = rules.parts(name, mesh)
        if count % parts:
            alike = [c for n, (c, _) in counts.items() if getattr(rules, n) == getattr(rules, name)]
            axes = rules.mesh_axes(name, mesh)
            raise UsageError(
                f"the model's {count} {what} do not divide over {' x '.join(axes)}={parts}",
                remedy=_that_fit(config, mesh, axes, math.gcd(*alike)),
            )


def tell_whole(config: DecoderConfig, mesh: AnyMesh, rules: ShardingRules) -> str | None:
    """Why every device holds parameters whole, and what would do better; None where it does not."""
    size, parts = config.hidden_size, rules.parts("embed", mesh)
    if size % parts == 0:
        return None
    axes = rules.mesh_axes("embed", mesh)
    return (
        f"the hidden size of {size} does not divide over {' x '.join(axes)}={parts}, so every "
        f"device holds parameters whole; give {_that_fit(config, mesh, axes, size)}"
    )


def _that_fit(config: DecoderConfig, mesh: AnyMesh, axes: tuple[str, ...], common: int) -> str:
    """Sizes of axes that divide both a number and the devices, and a mesh with such a size."""
    divisor = math.gcd(common, mesh.size)
    fits = [str(n) for n in range(1, divisor + 1) if divisor % n == 0]
    words = f"{' x '.join(axes)} of {', '.join(fits[:12])} on {mesh.size} devices"
    if len(axes) != 1:
        return words
    axis = axes[0]
    sizes = {name: mesh.shape.get(name, 1) for name in AXES}
    fitting = math.gcd(divisor, sizes[axis])
    rest, sizes[axis] = sizes[axis] // fitting, fitting
    within = axis != "fsdp" and config.hidden_size % (sizes["fsdp"] * rest) == 0
    sizes["fsdp" if within else "data"] *= rest
    return f"{words}, such as {','.join(f'{n}={s}' for n, s in sizes.items() if s > 1)}"


def sharding_of(shardings: nnx.State, path: str) -> NamedSharding:
    """That of one parameter by its dotted path."""
    node: Any = nnx.to_pure_dict(shardings)
    for key in path.split("."):
        if key not in node:
            raise ModelError(f"the decoder has no parameter {path}")
        node = node[key]
    return node

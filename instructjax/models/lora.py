r"""Low-rank adaptation: \(y = x W + s (x A) B\) with W frozen (Hu et al. 2021).

A model with LoRA is a (graphdef, params) pair as any other, so everything that takes a model takes
it. A and B are parameters beside the projection's own: "layers.attention.q.lora_a".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from instructjax.errors import UsageError
from instructjax.models.linear import Linear, matmul
from instructjax.models.sharded import STACKS

# Patterns of the names of LoRA's parameters, for `make_state`.
LORA = ("*.lora_a", "*.lora_b")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which projections get how much.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the product is scaled by alpha / rank.
      rank_stabilized: by alpha / sqrt(rank) instead (Kalajdzievski 2023).
      targets: projections of every layer by their names: "q", "k", "v", "o", "gate", "up", "down";
        of latent attention, "q_down", "q_up", "kv_down", "kv_up"; "all" for all of attention and
        of MLPs that every token goes through. Experts of which a token uses a few, and routers,
        have none. In families without experts that is what PEFT calls "all-linear".
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    targets: tuple[str, ...] = ("all",)

    @property
    def scale(self) -> float:
        """s.

        >>> LoraConfig(rank=16, alpha=32.0).scale
        2.0
        >>> LoraConfig(rank=16, alpha=32.0, rank_stabilized=True).scale
        8.0
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoraLinear(Linear):
    """A projection with A [in, rank] and B [rank, out] beside it."""

    def __init__(self, base: Linear, a: Array, b: Array, scale: float):
        self.kernel, self.bias = base.kernel, base.bias
        self.lora_a, self.lora_b = nnx.Param(a), nnx.Param(b)
        self.scale = scale

    def __call__(self, x: Float[Array, "N inner"]) -> Float[Array, "N outer"]:
        narrow = matmul(x, self.lora_a[...]) * jnp.asarray(self.scale, x.dtype)
        return super().__call__(x) + matmul(narrow, self.lora_b[...])


def _projections(decoder: Any, kind: type[Linear]) -> Iterator[tuple[Any, str, Any]]:
    """(module that holds it, its name there, projection), in every layer of a stack at once."""
    stacks = [getattr(decoder, name, None) for name in STACKS]
    for stack in (stack for stack in stacks if stack is not None):
        shared = getattr(stack.mlp, "shared", None)  # an expert of all tokens
        for block in (stack.attention, stack.mlp, *([] if shared is None else [shared])):
            for name, module in list(vars(block).items()):
                if type(module) is kind:
                    yield block, name, module


def add_lora(
    graphdef: nnx.GraphDef, params: nnx.State, config: LoraConfig, key: Array
) -> tuple[nnx.GraphDef, nnx.State]:
    """The model with A from U(-1, 1) / sqrt(in) and B zero, as in PEFT: still the same function.

    Raises:
      UsageError: the rank is not positive, or the model has no projection of a name.
    """
    if config.rank < 1:
        raise UsageError(f"a rank of {config.rank}", remedy="give 1 or more")
    decoder = nnx.merge(graphdef, params)
    found = list(_projections(decoder, Linear))
    names = list(dict.fromkeys(name for _, name, _ in found))
    for name in config.targets:
        if name not in (*names, "all"):
            raise UsageError(
                f"the model has no projection {name!r}", remedy=f"one of {', '.join(names)}, or all"
            )
    wanted = dict.fromkeys(n for t in config.targets for n in (names if t == "all" else [t]))
    chosen = [each for name in wanted for each in found if each[1] == name]
    if not chosen:
        raise UsageError("LoRA without targets", remedy=f"one of {', '.join(names)}, or all")
    for (block, name, base), each in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        layers, inner, outer = base.kernel.shape
        bound = inner**-0.5
        a = jax.random.uniform(each, (layers, inner, config.rank), minval=-bound, maxval=bound)
        b = jnp.zeros((layers, config.rank, outer))
        dtype = base.kernel.dtype
        setattr(block, name, LoraLinear(base, a.astype(dtype), b.astype(dtype), config.scale))
    return nnx.split(decoder)


def merge_lora(graphdef: nnx.GraphDef, params: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """The plain model whose kernels are W + s A B, the product in float32."""
    decoder = nnx.merge(graphdef, params)
    for block, name, lora in _projections(decoder, LoraLinear):
        product = jnp.matmul(
            lora.lora_a[...].astype(jnp.float32),
            lora.lora_b[...].astype(jnp.float32),
            precision="highest",
        )
        kernel = lora.kernel[...] + (lora.scale * product)
        setattr(block, name, _plain(lora, kernel.astype(lora.kernel.dtype)))
    return nnx.split(decoder)


def _plain(lora: LoraLinear, kernel: Array) -> Linear:
    plain = nnx.eval_shape(
        lambda: Linear(*kernel.shape[1:], bias=lora.bias is not None, dtype=kernel.dtype)
    )
    plain.kernel, plain.bias = nnx.Param(kernel), lora.bias
    return plain

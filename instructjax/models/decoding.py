"""A decoder's weights in the form that a step of one token a row reads fastest.

Such a step does little but read weights. Layers are arrays of their own (a slice of a stack that
all layers share would be copied first, on CPU, every time), kernels are stored [out, in] and
multiply the rows from the left, so that no kernel is packed before it is used, and projections of
the same input are one product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Float

from instructjax.models.decoder import MLP, Attention
from instructjax.models.linear import Linear, precision_of
from instructjax.models.sharded import STACKS


class DecodingParts(struct.PyTreeNode):
    """What a decoding step takes of a decoder.

    Attributes:
      outside: parameters that are not of layers; the very arrays of the model.
      layers: of each stack, each layer's own.
      outside_graph, layer_graphs: the structure of both.
    """

    outside: nnx.State
    layers: tuple[tuple[nnx.State, ...], ...]
    outside_graph: nnx.GraphDef = struct.field(pytree_node=False)
    layer_graphs: tuple[nnx.GraphDef, ...] = struct.field(pytree_node=False)

    def merge_outside(self) -> Any:
        """The decoder without its layers."""
        return nnx.merge(self.outside_graph, self.outside)

    def merge_layers(self) -> list[Any]:
        """The layers, first to last."""
        stacks = zip(self.layer_graphs, self.layers, strict=True)
        return [nnx.merge(graph, params) for graph, each in stacks for params in each]


def prepare_decoding(graphdef: nnx.GraphDef, params: nnx.State) -> DecodingParts:
    """Takes a decoder apart; its layers are copied, which takes their memory once more."""
    decoder: Any = nnx.merge(graphdef, params)
    layers, graphs = [], []
    for name in STACKS:
        if (stack := getattr(decoder, name)) is None:
            continue
        graph, stacked = nnx.split(stack)
        count = jax.tree.leaves(stacked)[0].shape[0]
        split = [
            nnx.split(_turn_layer(nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))))
            for i in range(count)
        ]
        layers.append(tuple(own for _, own in split))
        graphs.append(split[0][0])
        setattr(decoder, name, None)
    outside_graph, outside = nnx.split(decoder)
    return DecodingParts(
        outside=outside,
        layers=tuple(layers),
        outside_graph=outside_graph,
        layer_graphs=tuple(graphs),
    )


def multiply_rows(
    kernel: Float[Array, "outer inner"], x: Float[Array, "N inner"], dtype: Any = None
) -> Float[Array, "outer N"]:
    """kernel @ x.T, in the dtype of x or the one given.

    >>> multiply_rows(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]])).tolist()
    [[11.0, 17.0]]
    """
    product = lax.dot_general(
        kernel,
        x,
        (((1,), (1,)), ((), ())),
        precision=precision_of(x.dtype),
        preferred_element_type=dtype or x.dtype,
    )
    # The compiler would exchange the operands if it saw that the product is transposed.
    return lax.optimization_barrier(product)


class RowsLinear(nnx.Module):
    """`Linear` with W stored [out, in]."""

    def __init__(self, base: Linear):
        self.kernel = nnx.Param(base.kernel[...].T)
        self.bias = base.bias

    def __call__(self, x: Float[Array, "N inner"]) -> Float[Array, "N outer"]:
        y = multiply_rows(self.kernel[...], x).T
        return y if self.bias is None else y + self.bias[...]


class JoinedLinear(nnx.Module):
    """Several projections of the same input, one product."""

    def __init__(self, *parts: Linear):
        self.kernel = nnx.Param(jnp.concatenate([part.kernel[...].T for part in parts]))
        self.biases = nnx.List([part.bias for part in parts])
        widths = [part.kernel[...].shape[1] for part in parts]
        self.starts = tuple(sum(widths[:i]) for i in range(1, len(widths)))

    def __call__(self, x: Float[Array, "N inner"]) -> list[Array]:
        parts = jnp.split(multiply_rows(self.kernel[...], x), self.starts)
        return [
            y.T if bias is None else y.T + bias[...]
            for y, bias in zip(parts, self.biases, strict=True)
        ]


class JoinedAttention(Attention):
    """Queries, keys and values of one product."""

    def __init__(self, base: Attention):
        self.qkv = JoinedLinear(base.q, base.k, base.v)
        _copy(base, self, without=("q", "k", "v"))

    def project(self, x: Float[Array, "N E"]) -> list[Array]:
        return self.qkv(x)


class JoinedMLP(MLP):
    """Gate and up of one product."""

    def __init__(self, base: MLP):
        assert base.gate is not None
        self.gate_up = JoinedLinear(base.gate, base.up)
        _copy(base, self, without=("gate", "up"))

    def project(self, x: Float[Array, "N E"]) -> list[Array]:
        return self.gate_up(x)


def _turn_layer(layer: Any) -> Any:
    """The layer with plain projections as they are read fastest; those with LoRA stay."""
    for name in ("attention", "mlp"):
        setattr(layer, name, _turn_block(getattr(layer, name)))
    return layer


def _turn_block(block: Any) -> Any:
    if type(block) is Attention and _all_plain(block.q, block.k, block.v):
        block = JoinedAttention(block)
    elif type(block) is MLP and _all_plain(block.gate, block.up):
        block = JoinedMLP(block)
    for name, part in list(vars(block).items()):
        if type(part) is Linear:
            setattr(block, name, RowsLinear(part))
        elif type(part) is MLP:  # an expert of all tokens
            setattr(block, name, _turn_block(part))
    return block


def _all_plain(*parts: Any) -> bool:
    return all(type(part) is Linear for part in parts)


def _copy(source: Any, target: Any, *, without: tuple[str, ...]) -> None:
    for name, value in vars(source).items():
        if name not in without and not name.startswith("_"):
            setattr(target, name, value)

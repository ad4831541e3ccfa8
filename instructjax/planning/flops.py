r"""Floating-point operations of a step, counted from the decoder's shape.

A product [n, k] x [k, m] counts 2 n k m; what is not a product is not counted. XLA's own count
takes the body of a loop once and does not look into kernels: no measure of a scanned decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from instructjax.finetuning.partition import name_param
from instructjax.models.config import DecoderConfig
from instructjax.scoring import head, log_prob_head

Form = Literal["visible", "tiles", "flash", "whole"]
_EXPERTS = ("mlp.gate", "mlp.up", "mlp.down")


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of all rows together.

    Attributes:
      layers: of projections, MLPs and experts.
      attention: of scores and of the values that they weigh.
      head: of hidden states and the output table.
    """

    layers: float = 0.0
    attention: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.layers + self.attention + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            layers=self.layers + other.layers,
            attention=self.attention + other.attention,
            head=self.head + other.head,
        )


def count_pairs(length: int, window: int | None, form: Form, tile: int) -> int:
    """Pairs of a query and a key in one row of one sequence.

    Args:
      length: tokens of the row.
      window: how many a query sees, its own included.
      form: "visible" pairs alone; all of the "tiles", or blocks of "flash", that hold one; or the
        "whole" square.
      tile: tokens of a tile or block.

    >>> [count_pairs(4, None, form, 2) for form in ("visible", "tiles", "whole")]
    [10, 12, 16]
    """
    if form == "whole":
        return length * length
    if form == "visible":
        wide = min(window or length, length)
        return wide * (wide + 1) // 2 + (length - wide) * wide
    tiles = -(-length // tile)
    # a tile `back` before the query's is visited while any of it is within the window
    seen = tiles if window is None else min(tiles, 1 + -(-(window - 1) // tile))
    return tile * tile * (seen * (seen + 1) // 2 + (tiles - seen) * seen)


def count_forward(
    config: DecoderConfig,
    params: Any,
    *,
    rows: int,
    length: int,
    form: Form = "visible",
    tile: int = 64,
    scored: int | None = None,
    every_expert: bool = False,
) -> Flops:
    """Of the forward pass.

    Args:
      config: the decoder.
      params: its parameters, abstract ones will do; LoRA's are counted with them.
      rows, length: of the batch; each row is one sequence.
      form, tile: what attention computes.
      scored: tokens that the head is applied to; all of them by default.
      every_expert: a token that goes through some experts is multiplied with the matrices of all,
        once for each of the some, as XLA spells `ragged_dot` for GPUs.
    """
    scored = rows * length if scored is None else scored
    sizes = kernel_sizes(params)
    per_token = sum(_per_token(config, path, size, every_expert) for path, size in sizes.items())
    return Flops(
        layers=per_token * rows * length,
        attention=2.0 * sum(_head_dims(config)) * _pairs(config, length, form, tile) * rows,
        head=2.0 * config.vocab_size * config.hidden_size * scored,
    )


def count_step(
    config: DecoderConfig,
    params: Any,
    *,
    rows: int,
    length: int,
    remat: str = "none",
    form: Form = "visible",
    tile: int = 64,
    scored: int | None = None,
    trained: Any = None,
    again: bool = True,
    every_expert: bool = False,
) -> Flops:
    """Of forward and backward pass.

    Args:
      config, params, rows, length, form, tile, scored, every_expert: as for `count_forward`.
      remat: what is computed again.
      trained: those of the parameters that are; by default all.
      again: count what is computed again. Without it and with "visible" pairs, these are the
        operations of the mathematics, that a utilization is told of.
    """
    tokens = rows * length
    forward = count_forward(
        config,
        params,
        rows=rows,
        length=length,
        form=form,
        tile=tile,
        scored=scored,
        every_expert=every_expert,
    )
    sizes = kernel_sizes(params)
    learn = sizes if trained is None else kernel_sizes(trained)
    # a kernel's input needs a gradient, and the kernel does if it is trained

    def per_token(wanted: Callable[[str], bool]) -> float:
        pairs = sizes.items()
        return sum((_per_token(config, p, n, every_expert) for p, n in pairs if wanted(p)), 0.0)

    layers = forward.layers + tokens * per_token(lambda path: path in learn)
    key, value = _head_dims(config)
    # scores and values, twice each; tiles compute scores once more; of the kernels, one for queries
    # and one for keys, each computes scores and the weights' gradient
    keys, values = {"tiles": (3, 2), "flash": (4, 3)}.get(form, (2, 2)) if again else (2, 2)
    pairs = _pairs(config, length, form, tile) * rows
    attention = 2.0 * (keys * key + values * value) * pairs
    products = 2 if trained is None or learns_table(config, trained) else 1  # of d logits
    backward = Flops(layers=layers, attention=attention, head=products * forward.head)
    if not again:
        return forward + backward
    if remat == "layer":
        repeated = per_token(lambda path: not _is_last(config, path))
        backward += Flops(layers=repeated * tokens, attention=forward.attention)
    elif remat == "dots":
        # grouped products of experts are none of those that are kept; nor is the whole square
        experts = per_token(lambda path: path.endswith(_EXPERTS))
        whole = forward.attention if form == "whole" else 0.0
        backward += Flops(layers=experts * tokens, attention=whole)
    return forward + backward


def kernel_sizes(params: Any) -> dict[str, int]:
    """Elements of every matrix that hidden states are multiplied with within layers, by path."""
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = name_param(keys)
        matrix = path.endswith(("kernel", "lora_a", "lora_b", *_EXPERTS))
        if matrix and not path.startswith("lm_head"):
            found[path] = leaf.size
    return found


def learns_table(config: DecoderConfig, trained: Any) -> bool:
    """Whether the head's table is among the parameters that are trained."""
    table = "embed" if config.tie_embeddings else "lm_head"
    paths = (name_param(keys) for keys, _ in jax.tree.leaves_with_path(trained))
    return any(path.startswith(table) for path in paths)


def head_rows(task: str) -> int:
    """Scored tokens whose logits are computed at a time."""
    return (head if task == "score" else log_prob_head).ROWS


def _per_token(config: DecoderConfig, path: str, size: int, every_expert: bool) -> float:
    if not path.endswith(_EXPERTS):
        return 2.0 * size
    return 2.0 * size * config.experts_per_token / (1 if every_expert else config.num_experts)


def _is_last(config: DecoderConfig, path: str) -> bool:
    """What comes out of it is added to the residual stream, so no gradient needs it again."""
    return not config.post_norm and not config.num_experts and path.endswith("mlp.down.kernel")


def _head_dims(config: DecoderConfig) -> tuple[int, int]:
    """Features of all queries and of all values."""
    return config.num_heads * config.head_dim, config.num_heads * config.value_dim


def _pairs(config: DecoderConfig, length: int, form: Form, tile: int) -> int:
    windows = [kind.window for kind in config.layers] or [None] * config.num_layers
    return sum(count_pairs(length, window, form, tile) for window in windows)

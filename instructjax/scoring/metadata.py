"""What must be known beside a number to get it again."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

import jax
import jax.numpy as jnp

from instructjax.batching.packing import ROW_LENGTHS
from instructjax.models.linear import precision_of
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder


def describe_run(model: Model, encoder: PromptEncoder, contexts: Sequence[str]) -> dict[str, str]:
    """Model, prompt rules, arithmetic and versions of a scoring run, as text by name."""
    return {
        "instructjax": installed_version(),
        "jax": jax.__version__,
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "weights": model.weights,
        "dtype": model.dtype,
        "matmul_precision": precision_of(jnp.dtype(model.dtype)).name.lower(),
        "device": jax.devices()[0].device_kind,
        "row_lengths": ",".join(map(str, ROW_LENGTHS)),
        "contexts": ",".join(contexts),
        **encoder.describe(),
    }


def installed_version() -> str:
    """Version of this package; "unknown" where it is run without being installed."""
    try:
        return metadata.version("instructjax")
    except metadata.PackageNotFoundError:
        return "unknown"

"""Arrays that the functions of this folder take: JAX's or numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array
from jax.core import Tracer

AnyArray = Array | np.ndarray


def is_known_true(condition: Any) -> bool:
    """Whether a truth value, or one of several, is true; False while JAX traces it.

    So that values are checked where they are at hand, and functions stay jit-able.

    >>> import jax
    >>> is_known_true(np.array([False, True])), jax.jit(lambda x: is_known_true(x > 0))(1.0).item()
    (True, False)
    """
    return not isinstance(condition, Tracer) and bool(np.any(condition))

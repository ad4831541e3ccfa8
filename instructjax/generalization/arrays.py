"""Arrays that the functions of this folder take: JAX's or numpy's."""

from __future__ import annotations

import numpy as np
from jax import Array

AnyArray = Array | np.ndarray

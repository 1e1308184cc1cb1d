"""Which dtype statistics and losses are computed in."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(*dtypes: Any) -> Any:
    """The widest of some floating-point dtypes, and float32 if that is wider (also under strict promotion)."""
    return jnp.float64 if any(jnp.dtype(dtype).itemsize > 4 for dtype in dtypes) else jnp.float32

"""Which dtype statistics and losses are computed in."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(*dtypes: Any) -> Any:
    """The widest of some floating-point dtypes, and float32 if that is wider (also under strict promotion).

    Of a complex dtype, that of its parts counts.
    """
    return jnp.float64 if any(jnp.finfo(dtype).bits > 32 for dtype in dtypes) else jnp.float32


def wide(x: jax.Array) -> jax.Array:
    """x in at least float32."""
    return x.astype(at_least_float32(x.dtype))

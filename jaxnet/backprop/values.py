"""A value in words, for tables and boxes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks


def number(value: Any) -> str:
    """A scalar as a number, an array as its norm and mean; "-" where there is none of these."""
    if value is None or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "-"
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return "-" if value.shape else str(value)
    wide = np.asarray(value).astype(complex if jnp.issubdtype(value.dtype, jnp.complexfloating) else float)
    if not value.shape:
        return f"{wide[()]:.4g}"
    with np.errstate(all="ignore"):
        return f"norm {np.linalg.norm(wide):.4g}, mean {wide.mean():.4g}" if wide.size else "empty"


def norm(values: Sequence[Any]) -> str:
    """Several arrays as the norm of those that are no integers or keys."""
    inexact = [np.asarray(v) for v in values if v is not None and jnp.issubdtype(v.dtype, jnp.inexact)]
    norms = [np.linalg.norm(value.astype(np.float64).ravel()) for value in inexact]
    return f"norm {np.linalg.norm(norms):.4g}" if norms else "-"


def constant(value: Any) -> str:
    """A constant among inputs: a number, or the dtype and shape of an array."""
    if np.shape(value):
        return checks.describe(value)
    return number(np.asarray(value)) if jnp.issubdtype(jnp.result_type(value), jnp.inexact) else str(value)

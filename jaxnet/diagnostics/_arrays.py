"""What all of these tools ask of arrays, and the type of a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet._dtypes import at_least_float32

Loss = Callable[[Any, Any], jax.Array]
"""``(prediction, target) -> scalar``"""


def is_floating(value: Any) -> bool:
    """Whether it is an array of real floating-point numbers, bfloat16 too."""
    return hasattr(value, "dtype") and bool(jnp.issubdtype(value.dtype, jnp.floating))


def widest(tree: Any) -> Any:
    """The widest floating-point dtype in a tree, and float32 if that is wider."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return at_least_float32(*(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)))

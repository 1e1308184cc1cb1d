"""Arithmetic on sizes that can be symbolic dimensions of `jax.export`, which stand for many numbers."""

from typing import Any

import jax
import jax.core
import numpy as np


def is_symbolic(size: Any) -> bool:
    """Whether a size is a dimension of `jax.export.symbolic_shape`."""
    return not isinstance(size, (int, np.integer)) and jax.export.is_symbolic_dim(size)


def is_below(size: Any, other: Any) -> bool:
    """Whether a size is below another, and of symbolic ones whether all that they stand for are."""
    try:
        return bool(size < other)
    except jax.errors.InconclusiveDimensionOperation:
        return False


def at_least_0(size: Any) -> Any:
    """The size, or 0 where it is negative."""
    return jax.core.max_dim(size, 0) if is_symbolic(size) else max(size, 0)


def stuffed_length(length: Any, strides: int) -> Any:
    """S (D_in - 1) + 1, a length with S - 1 zeros between the values; 0 of nothing."""
    return at_least_0(strides * (length - 1) + 1)

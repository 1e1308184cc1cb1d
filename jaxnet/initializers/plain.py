"""What an initializer is, and those that ask for no fans."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet._made import made
from jaxnet.errors import named


class Initializer(Protocol):
    """Draws an array: ``f(key, shape, dtype)``.

    For parameters of 16 bits a layer asks for float32 and rounds what comes.

    Example: one of your own.
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> def halves(key, shape, dtype):
      ...     return jnp.full(shape, 0.5, dtype)
      >>> layers.dense(2, kernel_init=halves).init(0, jnp.ones((1, 1)))[0]["kernel"]
      Array([[0.5, 0.5]], dtype=float32)
    """

    def __call__(self, key: Any, shape: Any, dtype: Any, /) -> jax.Array: ...


def zeros(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns zeros, w = 0; needs no key.

    Args:
      key: no number of it is used; may be None.
      shape: of the array, such as (features,).
      dtype: of the array.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.zeros(None, (2,))
      Array([0., 0.], dtype=float32)
    """
    return drawing.filled(key, shape, 0.0, dtype)


def ones(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns ones, w = 1; needs no key.

    Args:
      key: no number of it is used; may be None.
      shape: of the array, such as (features,).
      dtype: of the array.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.ones(None, (2,))
      Array([1., 1.], dtype=float32)
    """
    return drawing.filled(key, shape, 1.0, dtype)


@made
def constant(value: float) -> Initializer:
    """Returns an initializer that fills with ``value``: w = value.

    Args:
      value: of every entry.

    Raises:
      ConfigError: ``value`` is no finite number.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.constant(0.25)(None, (2,), "float32")
      Array([0.25, 0.25], dtype=float32)
    """
    value = checks.number("value", value)
    return lambda key, shape, dtype=jnp.float32: drawing.filled(key, shape, value, dtype)


@made
def normal(stddev: float) -> Initializer:
    """Returns an initializer that draws from a normal distribution: w ~ N(0, stddev^2).

    Args:
      stddev: the standard deviation, at least 0.

    Raises:
      ConfigError: ``stddev`` is negative or no number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> initializers.normal(0.02)(jax.random.key(0), (3, 4), "float32").shape
      (3, 4)
    """
    stddev = checks.number("stddev", stddev, low=0)
    return named("normal")(lambda key, shape, dtype=jnp.float32: drawing.normal(checks.key(key), shape, dtype, stddev))


@made
def uniform(bound: float) -> Initializer:
    """Returns an initializer that draws evenly: w ~ U[-bound, bound), of standard deviation bound / sqrt(3).

    In 16 bits, which are rounded, the upper bound is drawn too.

    Args:
      bound: the largest magnitude, at least 0.

    Raises:
      ConfigError: ``bound`` is negative or no number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> initializers.uniform(0.1)(jax.random.key(0), (3, 4), "float32").shape
      (3, 4)
    """
    bound = checks.number("bound", bound, low=0)
    return named("uniform")(lambda key, shape, dtype=jnp.float32: drawing.uniform(checks.key(key), shape, dtype, bound))

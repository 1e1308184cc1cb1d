"""Losses between sequences: mean squared and mean absolute error, eq. 4.16 and 4.18."""

import jax
from jax import lax
from jax.typing import ArrayLike

from jaxnet.losses.common import absolute, loss, pair, per_example, reduce


@loss
def mse(prediction: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> jax.Array:
    """Mean squared error, eq. 4.16: (1/N) sum over n of (y[n] - target[n])^2; no one-half.

    Args:
      prediction: (batch, ...), floating point. N counts the values of one example.
      target: the same shape.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, or there is no example.
      DTypeError: not floating point.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mse(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2)), reduction="none")
      Array([ 2.5, 12.5], dtype=float32)

    Source: chapter 4.3.1.
    """
    prediction, target = pair(prediction, target)
    return reduce(per_example(lax.square(prediction - target)), reduction)


@loss
def mae(prediction: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> jax.Array:
    """Mean absolute error, eq. 4.18: (1/N) sum over n of |y[n] - target[n]|.

    The derivative is 0 where the error is 0 (the derivative of `jax.numpy.abs` is 1 there).

    Args:
      prediction: (batch, ...), floating point. N counts the values of one example.
      target: the same shape.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, or there is no example.
      DTypeError: not floating point.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mae(jnp.array([[1.0, -3.0]]), jnp.zeros((1, 2)))
      Array(2., dtype=float32)

    Source: chapter 4.3.2.
    """
    prediction, target = pair(prediction, target)
    return reduce(per_example(absolute(prediction - target)), reduction)

"""Losses between sequences: mean squared and mean absolute error, eq. 4.16 and 4.18, and Huber's between them."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.losses.common import Weights, absolute, loss, pair, reduce_weighted, weighted


@loss
def mse(
    prediction: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None, reduction: str = "mean"
) -> jax.Array:
    """Mean squared error, eq. 4.16: L = (1/N) sum over n of (y[n] - target[n])^2; no one-half.

    Args:
      prediction: (batch, ...), floating point. N counts the values of one example.
      target: the same shape.
      weights: what each value counts, numbers from 0 or a mask (True for what is there), of the prediction's shape or
        its first axes: "mean" divides by their sum, and is 0 where that is 0. What counts 0 changes nothing, not even
        a NaN, and has gradient 0.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, or there is no example.
      DTypeError: not floating point.
      DataError: outside ``jit``: a negative weight.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mse(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2)), reduction="none")
      Array([ 2.5, 12.5], dtype=float32)

    Source: chapter 4.3.1.
    """
    error, counts = _error(prediction, target, weights)
    return reduce_weighted(lax.square(error), counts, reduction)


@loss
def mae(
    prediction: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None, reduction: str = "mean"
) -> jax.Array:
    """Mean absolute error, eq. 4.18: L = (1/N) sum over n of |y[n] - target[n]|.

    The derivative is 0 where the error is 0 (the derivative of `jax.numpy.abs` is 1 there).

    Args:
      prediction: (batch, ...), floating point. N counts the values of one example.
      target: the same shape.
      weights: what each value counts, numbers from 0 or a mask (True for what is there), of the prediction's shape or
        its first axes: "mean" divides by their sum, and is 0 where that is 0. What counts 0 changes nothing, not even
        a NaN, and has gradient 0.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, or there is no example.
      DTypeError: not floating point.
      DataError: outside ``jit``: a negative weight.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mae(jnp.array([[1.0, -3.0]]), jnp.zeros((1, 2)))
      Array(2., dtype=float32)

    Source: chapter 4.3.2.
    """
    error, counts = _error(prediction, target, weights)
    return reduce_weighted(absolute(error), counts, reduction)


@loss
def huber(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Huber's loss: the mean of h(e) of the errors e, which is quadratic up to ``delta`` and grows like |e| beyond::

        h(e) = e^2 / 2 where |e| <= delta,    h(e) = delta (|e| - delta / 2) elsewhere

    Args:
      prediction: (batch, ...), floating point.
      target: the same shape.
      delta: the error from which on it grows like the absolute error, above 0.
      weights: as in `mse`.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns, Raises: as `mse`; ConfigError for a ``delta`` of 0 or less, too.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.huber(jnp.array([[0.5], [-3.0]]), jnp.zeros((2, 1)), reduction="none")
      Array([0.125, 2.5  ], dtype=float32)

    Source: Huber 1964, Robust estimation of a location parameter.
    """
    delta = checks.number("delta", delta, low=0, open_low=True)
    error, counts = _error(prediction, target, weights)
    inner = jnp.clip(error, -delta, delta)
    return reduce_weighted(inner * (error - inner / 2), counts, reduction)


def _error(prediction: ArrayLike, target: ArrayLike, weights: ArrayLike | None) -> tuple[jax.Array, Weights | None]:
    prediction, target = pair(prediction, target)
    counts = weighted(weights, prediction.shape, prediction.dtype)
    if counts is None:
        return prediction - target, None
    return counts.only(prediction) - counts.only(target), counts

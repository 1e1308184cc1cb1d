"""The cosine of the angle between two vectors, eq. 4.20, and the distance made of it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.errors import ShapeError
from jaxnet.losses.common import Weights, loss, mean_of, norm, pair, reduce, weighted


@loss
def cosine_similarity(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cosine of the angle between two vectors, eq. 4.20: s = <a, b> / (|a| |b|), from -1 to 1.

    Of a zero vector the similarity is 0, and so is its gradient: it has no direction. Each vector is scaled by its
    largest entry first, so that no magnitude under- or overflows.

    It grows as the vectors align; what to minimize is `cosine_distance`.

    Args:
      prediction: (batch, ...), floating point.
      target: the same shape.
      axis: the axis of the vectors.
      weights: what each vector counts, numbers from 0 or a mask, of the shape without ``axis`` or its first axes:
        "mean" divides by their sum, and is 0 where that is 0. What counts 0 changes nothing, not even a NaN.
      reduction: "mean" over the vectors, "sum" of them, or "none" for one value a vector.

    Returns:
      A scalar, or the shape without ``axis`` for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, or there is no vector.
      DTypeError: not floating point.
      DataError: outside ``jit``: a negative weight.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.cosine_similarity(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])).round(3)
      Array(0.6, dtype=float32)

    Source: chapter 4.3.4.
    """
    a, b, lengths, zero, counted = _vectors(prediction, target, axis, weights)
    cosine = jnp.sum(a * b, axis=axis) / (lengths[0] * lengths[1])
    return _reduced(jnp.where(zero, 0.0, cosine), counted, reduction)


@loss
def cosine_distance(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """One minus `cosine_similarity`, d = 1 - s: the loss, from 0 (aligned) to 2 (opposite); 1 at a zero vector.

    Computed as half the squared distance of the unit vectors, the same number: of an angle below 3e-4, one minus its
    cosine has no digit left in float32.

    Args, Returns, Raises: as `cosine_similarity`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.cosine_distance(jnp.array([[0.0, 2.0]]), jnp.array([[0.0, 7.0]]))
      Array(0., dtype=float32)

    Source: chapter 4.3.4.
    """
    a, b, lengths, zero, counted = _vectors(prediction, target, axis, weights)
    u, v = (x / jnp.expand_dims(length, axis) for x, length in zip((a, b), lengths, strict=True))
    return _reduced(jnp.where(zero, 1.0, jnp.sum(lax.square(u - v), axis=axis) / 2), counted, reduction)


def _vectors(
    prediction: ArrayLike, target: ArrayLike, axis: int, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array, Weights | None]:
    """Both, scaled, their lengths, whether one has none, where the lengths are 1, and what each counts."""
    prediction, target = pair(prediction, target)
    if not prediction.ndim:
        raise ShapeError("prediction and target must hold vectors, got scalars")
    if checks.integer("axis", axis, minimum=-prediction.ndim) >= prediction.ndim:
        raise ShapeError(f"there is no axis {axis} in shape {prediction.shape}")
    rest = [size for i, size in enumerate(prediction.shape) if i != axis % prediction.ndim]
    counted = weighted(weights, tuple(rest), prediction.dtype)
    if counted is not None:  # what does not count, even NaN, must not reach the gradient
        keep = jnp.expand_dims(jnp.broadcast_to(counted.keep, rest), axis)
        prediction, target = jnp.where(keep, prediction, 0.0), jnp.where(keep, target, 0.0)
    (a, a_length), (b, b_length) = _unit_scale(prediction, axis), _unit_scale(target, axis)
    zero = (a_length == 0) | (b_length == 0)
    return a, b, (jnp.where(zero, 1.0, a_length), jnp.where(zero, 1.0, b_length)), zero, counted


def _reduced(values: jax.Array, counted: Weights | None, reduction: str) -> jax.Array:
    """One value a vector, each by what it counts."""
    if counted is None:
        return reduce(values, reduction)
    spread = jnp.broadcast_to(counted.of_values, values.shape)
    return mean_of(counted.only(values) * spread, spread, reduction)


def _unit_scale(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x over its largest magnitude, and the length of that; 0 at the zero vector, with gradient 0."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    zero = largest == 0
    scaled = jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, largest))
    return scaled, norm(scaled, axis)

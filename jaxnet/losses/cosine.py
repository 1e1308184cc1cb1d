"""The cosine of the angle between two vectors, eq. 4.20, and the distance made of it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.errors import ShapeError
from jaxnet.losses.common import loss, norm, pair, reduce


@loss
def cosine_similarity(
    prediction: ArrayLike, target: ArrayLike, *, axis: int = -1, reduction: str = "mean"
) -> jax.Array:
    """Cosine of the angle between two vectors, eq. 4.20: <a, b> / (|a| |b|), from -1 to 1.

    Of a zero vector the similarity is 0, and so is its gradient: it has no direction. Each vector is scaled by its
    largest entry first, so that no magnitude under- or overflows.

    It grows as the vectors align; what to minimize is `cosine_distance`.

    Args:
      prediction: (batch, ...), floating point.
      target: the same shape.
      axis: the axis of the vectors.
      reduction: "mean" over the vectors, "sum" of them, or "none" for one value a vector.

    Returns:
      A scalar, or the shape without ``axis`` for "none".

    Raises:
      ShapeError: the shapes differ, or there is no vector.
      DTypeError: not floating point.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.cosine_similarity(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])).round(3)
      Array(0.6, dtype=float32)

    Source: chapter 4.3.4.
    """
    a, b, lengths, zero = _vectors(prediction, target, axis)
    cosine = jnp.sum(a * b, axis=axis) / (lengths[0] * lengths[1])
    return reduce(jnp.where(zero, 0.0, cosine), reduction)


@loss
def cosine_distance(prediction: ArrayLike, target: ArrayLike, *, axis: int = -1, reduction: str = "mean") -> jax.Array:
    """One minus `cosine_similarity`: the loss, from 0 (aligned) to 2 (opposite); 1 at a zero vector.

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
    a, b, lengths, zero = _vectors(prediction, target, axis)
    u, v = (x / jnp.expand_dims(length, axis) for x, length in zip((a, b), lengths, strict=True))
    return reduce(jnp.where(zero, 1.0, jnp.sum(lax.square(u - v), axis=axis) / 2), reduction)


def _vectors(
    prediction: ArrayLike, target: ArrayLike, axis: int
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """Both, scaled, their lengths, and whether one has none: the lengths are 1 there."""
    prediction, target = pair(prediction, target)
    if not prediction.ndim:
        raise ShapeError("prediction and target must hold vectors, got scalars")
    if checks.integer("axis", axis, minimum=-prediction.ndim) >= prediction.ndim:
        raise ShapeError(f"there is no axis {axis} in shape {prediction.shape}")
    (a, a_length), (b, b_length) = _unit_scale(prediction, axis), _unit_scale(target, axis)
    zero = (a_length == 0) | (b_length == 0)
    return a, b, (jnp.where(zero, 1.0, a_length), jnp.where(zero, 1.0, b_length)), zero


def _unit_scale(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x over its largest magnitude, and the length of that; 0 at the zero vector, with gradient 0."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    zero = largest == 0
    scaled = jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, largest))
    return scaled, norm(scaled, axis)

"""What every loss shares: its door, pairing, per-example values, reductions, and the norms with derivatives at 0."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import DataError, ShapeError, named

_REDUCTIONS = ("mean", "sum", "none")

P = ParamSpec("P")


def loss(function: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """A loss's door: its name begins its errors, and is its scope in profiles and in `jaxnet.backprop`.

    Called with a prediction and a target alone, it is the mean over the examples of what it is for each of them.
    """
    scoped = metric(function)
    scoped.mean_over_examples = scoped  # type: ignore[attr-defined]  # itself: what wraps it copies its attributes
    return scoped


def metric(function: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """The door of a function that may need all examples at once."""

    @named(function.__name__)
    @functools.wraps(function)
    def scoped(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
        with jax.named_scope(function.__name__):
            return function(*args, **kwargs)

    return scoped


def is_mean_over_examples(function: Any) -> bool:
    """Whether it is known to be: one of ours as it is, with no weights or other options."""
    return function is not None and getattr(function, "mean_over_examples", None) is function


def pair(prediction: ArrayLike, target: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Two arrays of one shape, in one dtype of at least float32."""
    p, t = checks.floating("prediction", prediction), checks.floating("target", target)
    if p.shape != t.shape:
        hint = "they are never broadcast"
        if p.size == t.size:
            hint += f"; if they hold the same values, reshape: target.reshape({p.shape})"
        else:
            hint += one_row(p, t)
        raise ShapeError(f"prediction {p.shape} and target {t.shape} must have one shape; {hint}")
    if not p.size:
        raise ShapeError(f"the batch is empty, prediction {p.shape}; the mean of no examples is NaN")
    dtype = at_least_float32(p.dtype, t.dtype)
    return p.astype(dtype), t.astype(dtype)


def one_row(prediction: jax.Array, target: jax.Array) -> str:
    """What to do about a prediction that has axes between an example and its values, of a target that has none."""
    if prediction.ndim > max(target.ndim, 2) and target.ndim in (1, 2) and prediction.shape[:1] == target.shape[:1]:
        return "; for one row an example, put flatten() or global_avg_pool() before the last dense layer"
    return ""


def per_example(values: jax.Array) -> jax.Array:
    """The mean over every axis but the first."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def reduce(values: jax.Array, reduction: str) -> jax.Array:
    """The reduction that was asked for, of one value an example."""
    checks.choice("reduction", reduction, _REDUCTIONS)
    if not values.size:
        raise ShapeError("the batch is empty; the mean of no examples is NaN")
    return values if reduction == "none" else jnp.mean(values) if reduction == "mean" else jnp.sum(values)


class Weights(NamedTuple):
    """What each value counts.

    Attributes:
      of_values: in the losses' dtype, with axes of size 1 after its own.
      keep: where that is not 0.
    """

    of_values: jax.Array
    keep: jax.Array

    def only(self, x: jax.Array) -> jax.Array:
        """x, and 0 where it does not count, so that what stands there, even NaN, reaches no gradient."""
        extra = x.ndim - self.keep.ndim
        keep = self.keep.reshape(self.keep.shape + (1,) * max(extra, 0))
        return jnp.where(keep, x, jnp.zeros((), x.dtype))


def weighted(weights: ArrayLike | None, shape: tuple[int, ...], dtype: Any) -> Weights | None:
    """Weights of values of a shape, of which they have the first axes: a mask or numbers; checked, never broadcast."""
    if weights is None:
        return None
    w = checks.array("weights", weights)
    if w.dtype != bool:
        w = checks.floating("weights", w)
    if not w.ndim or w.shape != shape[: w.ndim]:
        raise ShapeError(f"weights must have the shape {shape}, or its first axes, got {w.shape}")
    if not isinstance(w, jax.core.Tracer) and (np.asarray(w) < 0).any():
        raise DataError("weights must not be negative")
    w = w.astype(dtype).reshape(w.shape + (1,) * (len(shape) - w.ndim))
    return Weights(w, w != 0)


def reduce_weighted(values: jax.Array, weights: Weights | None, reduction: str) -> jax.Array:
    """`reduce` of what `per_example` makes of the values; "mean" divides by the sum of the weights."""
    if weights is None:
        return reduce(per_example(values), reduction)
    spread = jnp.broadcast_to(weights.of_values, values.shape)
    return mean_of(per_example(weights.only(values) * spread), per_example(spread), reduction)


def mean_of(values: jax.Array, weights: jax.Array, reduction: str) -> jax.Array:
    """`reduce` of values that are weighted already, where "mean" divides by the sum of the weights; 0 if that is 0."""
    if reduction != "mean":
        return reduce(values, reduction)
    total = jnp.sum(weights)
    return reduce(values, "sum") / jnp.where(total == 0, 1.0, total)


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 0 at 0, where `jax.numpy.abs` has 1."""
    return x * lax.stop_gradient(jnp.sign(x))


def norm(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """The Euclidean norm, with gradient 0 at 0."""
    square = jnp.sum(lax.square(x), axes)
    zero = square == 0  # and not square > 0, which would take NaN for 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))

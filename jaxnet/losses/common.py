"""What every loss shares: its door, pairing, per-example values, reductions, and the norms with derivatives at 0."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import ShapeError, named

_REDUCTIONS = ("mean", "sum", "none")

P = ParamSpec("P")


def loss(function: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """A loss's door: its name begins its errors, and is its scope in profiles and in `jaxnet.backprop`."""

    @named(function.__name__)
    @functools.wraps(function)
    def scoped(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
        with jax.named_scope(function.__name__):
            return function(*args, **kwargs)

    return scoped


def pair(prediction: ArrayLike, target: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Two arrays of one shape, in one dtype of at least float32."""
    p, t = checks.floating("prediction", prediction), checks.floating("target", target)
    if p.shape != t.shape:
        hint = "they are never broadcast"
        if p.size == t.size:
            hint += f"; if they hold the same values, reshape: target.reshape({p.shape})"
        raise ShapeError(f"prediction {p.shape} and target {t.shape} must have one shape; {hint}")
    if not p.size:
        raise ShapeError(f"the batch is empty, prediction {p.shape}; the mean of no examples is NaN")
    dtype = at_least_float32(p.dtype, t.dtype)
    return p.astype(dtype), t.astype(dtype)


def per_example(values: jax.Array) -> jax.Array:
    """The mean over every axis but the first."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def reduce(values: jax.Array, reduction: str) -> jax.Array:
    """The reduction that was asked for, of one value an example."""
    checks.choice("reduction", reduction, _REDUCTIONS)
    if not values.size:
        raise ShapeError("the batch is empty; the mean of no examples is NaN")
    return values if reduction == "none" else jnp.mean(values) if reduction == "mean" else jnp.sum(values)


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 0 at 0, where `jax.numpy.abs` has 1."""
    return x * lax.stop_gradient(jnp.sign(x))


def norm(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """The Euclidean norm, with gradient 0 at 0."""
    square = jnp.sum(lax.square(x), axes)
    zero = square == 0  # and not square > 0, which would take NaN for 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))

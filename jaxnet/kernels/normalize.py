"""Normalization over some axes of an array, with a derivative rule of its own.

With averages < > over the axes, and of what a mask leaves,

    mean = <x>,   variance = <(x - mean)^2>,   y = (x - mean) / sqrt(variance + epsilon),

and without centring mean = 0. The derivative of y in the direction t is a projection that is its own transpose,

    dy = (t - <t> - y <y t>) / sqrt(variance + epsilon),

so that forward and reverse mode are one computation, in y, whose parts are all again functions with this derivative.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._dtypes import wide
from jaxnet._symbolic import is_below

LARGE = 2**14
"""Elements of an array beyond which it costs more to write it than to compute its averages on their own."""


class Normalized(NamedTuple):
    """What `normalize` returns.

    Attributes:
      y: of the shape of x; 0 where the mask is False.
      mean: the average, with axes of length 1 in place of those averaged over; 0 without centring.
      variance: the average of the squared deviations, of the same shape.
    """

    y: jax.Array
    mean: jax.Array
    variance: jax.Array


def normalize(
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    epsilon: float,
    centered: bool = True,
    groups: int | None = None,
    mask: jax.Array | None = None,
    parts: tuple[str, ...] = (),
) -> Normalized:
    """Normalizes x over ``axes``: y = (x - mean) / sqrt(variance + epsilon), in at least float32.

    Of a few values the nearest to 0 in their range is taken off first, which changes no deviation and leaves of a
    constant exact zeros. Then the variance is computed in two passes: the one-pass form loses all digits where the
    mean is large.

    Args:
      x: a floating-point array.
      axes: the axes to average over, counted from the front.
      epsilon: added to the variance.
      centered: whether to take the mean off; without, ``variance`` is the average of the squares.
      groups: into how many groups of neighbours the channels, the last axis, fall, over each of which the averages go
        too; None averages over ``axes`` alone. The last axis is not one of them then.
      mask: which values count, a boolean array that broadcasts to the shape of x; None for all. What is masked has no
        influence, whatever it is; where nothing is left, y is 0.
      parts: mesh axes over which the axes are divided further, inside `jax.shard_map` and its like.
    """
    if groups is not None and not axes:  # no positions: a group's channels lie together, and are an axis
        apart = (*x.shape[:-1], groups, x.shape[-1] // groups)
        there = None if mask is None else jnp.broadcast_to(mask, x.shape).reshape(apart)
        found = normalize(x.reshape(apart), (x.ndim,), epsilon=epsilon, centered=centered, mask=there, parts=parts)
        return Normalized(*(jnp.broadcast_to(one, apart).reshape(x.shape) for one in found))
    how = _How(tuple(axes), float(epsilon), centered, groups, parts)
    return Normalized(*_normalized(how, wide(x), mask))


class _How(NamedTuple):
    axes: tuple[int, ...]
    epsilon: float
    centered: bool
    groups: int | None
    parts: tuple[str, ...]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalized(how: _How, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean: Any = 0
    if how.centered:
        sample = _sample(how, x, mask)
        x = x - sample
        shifted = _average(how, _left(mask, x), mask)
        mean, x = sample + shifted, x - shifted
    x = _left(mask, x)
    variance = _average(how, lax.square(x), mask)
    return x * _factor(how, variance, x), mean if how.centered else jnp.zeros_like(variance), variance


@_normalized.defjvp
def _derivative(how: _How, primals: Any, tangents: Any) -> Any:
    (x, mask), (t, _) = primals, tangents
    y, mean, variance = _normalized(how, x, mask)
    factor = _factor(how, variance, x)
    t = _left(mask, t)
    along = _average(how, y * t, mask)
    dmean = _average(how, t, mask) if how.centered else jnp.zeros_like(mean)
    dy = factor * (t - y * along - dmean) if how.centered else factor * (t - y * along)
    return (y, mean, variance), (_left(mask, dy), dmean, 2 * along / factor)


def _factor(how: _How, variance: jax.Array, x: jax.Array) -> jax.Array:
    return _apart(lax.rsqrt(variance + how.epsilon), x)


def _apart(few: jax.Array, x: jax.Array) -> jax.Array:
    """What averages of x leave, of which a processor's program makes an array of its own.

    XLA fuses it with what spreads it over the axes, and then writes, and allocates, arrays of the size of x; or it
    writes the deviations from the mean, to read them again, where subtracting is all but free. A barrier alone is gone
    before it fuses on jax 0.10: what is behind it has zeros after it, which are cut off again. That is its own
    transpose, so that derivatives are made of the same parts.
    """
    if not is_below(LARGE, x.size):
        return few
    return lax.platform_dependent(few, cpu=_before_zeros, default=lambda few: few)


def _before_zeros(few: jax.Array) -> jax.Array:
    two = jnp.pad(few[None], [(0, 1)] + [(0, 0)] * few.ndim)
    return lax.index_in_dim(lax.optimization_barrier(two), 0, keepdims=False)


def _left(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """x with zeros for what is masked."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _average(how: _How, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The average over the axes, which stay with length 1, of what the mask leaves; x is 0 elsewhere."""
    if mask is None:
        mean = over_parts(lax.pmean, jnp.mean(x, how.axes, keepdims=True), how.parts)
        return _apart(_of_groups(how, jnp.mean, mean), x)
    ones = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    total, n = (over_parts(lax.psum, jnp.sum(one, how.axes, keepdims=True), how.parts) for one in (x, ones))
    total, n = (_of_groups(how, jnp.sum, one) for one in (total, n))
    return _apart(total / jnp.maximum(n, 1), x)


def _of_groups(how: _How, reduce: Callable[..., jax.Array], values: jax.Array) -> jax.Array:
    """For each channel, what its group's values reduce to; of large arrays, channels alone are reduced fast."""
    if how.groups is None:
        return values
    apart = values.reshape(*values.shape[:-1], how.groups, values.shape[-1] // how.groups)
    return jnp.broadcast_to(reduce(apart, -1, keepdims=True), apart.shape).reshape(values.shape)


def _sample(how: _How, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """What is nearest to 0 in the range of some values along the axes: no outlier, if one is among them.

    The values are all along the batch, one along each other axis, or 8 where the batch is not averaged over, which
    cost nothing; and all along an axis that is in pieces on several devices: each device can find the ends of the
    range in its piece. Of what a mask leaves, all.
    """
    if any(is_below(x.shape[axis], 1) for axis in how.axes):
        return jnp.zeros((), x.dtype)
    if mask is None:
        in_pieces, count = jax.typeof(x).sharding.spec, 1 if 0 in how.axes else 8
        few = {axis for axis in how.axes if axis and in_pieces[axis] is None}
        low = high = x[tuple(slice(0, count if axis in few else None) for axis in range(x.ndim))]
    else:
        low, high = (jnp.where(mask, x, jnp.full_like(x, end)) for end in (jnp.inf, -jnp.inf))
    low = _of_groups(how, jnp.min, over_parts(lax.pmin, jnp.min(low, how.axes, keepdims=True), how.parts))
    high = _of_groups(how, jnp.max, over_parts(lax.pmax, jnp.max(high, how.axes, keepdims=True), how.parts))
    nearest = jnp.clip(0.0, low, high)
    return _apart(nearest if mask is None else jnp.where(low <= high, nearest, jnp.zeros_like(nearest)), x)


def over_parts(collective: Callable[..., jax.Array], value: jax.Array, parts: tuple[str, ...]) -> jax.Array:
    """``collective`` of a value over mesh axes, where there are any."""
    return collective(value, parts) if parts else value

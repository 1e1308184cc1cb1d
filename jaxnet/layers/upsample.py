"""Upsampling without parameters."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.kernels.window import check_input
from jaxnet.layers.layer import Layer, Stream, stateless


@made
def upsample(factor: int | Sequence[int], method: str = "nearest") -> Layer:
    """Makes every length ``factor`` times as long: y[j] = x at position (j + 1/2) / factor - 1/2.

    "nearest" repeats each value. "linear" interpolates between neighbours, and repeats the first and the last value at
    the ends (in 2-D that is bilinear); it is PyTorch's, with align_corners=False.

    Args:
      factor: an integer for one spatial dimension, a tuple for several.
      method: "nearest" or "linear".

    Returns:
      A layer from ``(batch, *lengths, channels)`` to ``(batch, *(factor * lengths), channels)``.

    Raises:
      ConfigError: a factor below 1, or an unknown method.
      ShapeError: another rank, or with "linear" no value to interpolate.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> x = jnp.array([0.0, 4.0]).reshape(1, 2, 1)
      >>> layers.upsample(2, "linear").apply((), (), x, train=False)[0].ravel()
      Array([0., 1., 3., 4.], dtype=float32)

    Source: as `torch.nn.Upsample`.
    """
    factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,)
    factors = tuple(checks.integer("factor", one, minimum=1) for one in factors)
    if not factors:
        raise ConfigError("factor must name at least one dimension, got none")
    one_axis = {"nearest": _nearest, "linear": _linear}[checks.choice("method", method, ("nearest", "linear"))]

    def f(params, x):
        del params
        x = checks.floating("x", x)
        check_input(x, len(factors), "give {n} factors, one an axis")
        if method == "linear" and 0 in x.shape[1:-1]:
            raise ShapeError(f"there is nothing to interpolate in shape {x.shape}")
        y = wide(x)  # the gradient adds what a value was spread over
        for axis, times in enumerate(factors, 1):
            y = one_axis(y, axis, times) if times > 1 else y
        return y.astype(x.dtype)

    stream: str | Stream = "it looks ahead, by half a position; upsample(factor, 'nearest') does not"
    if method == "nearest":
        stream = Stream(_remembers_nothing, lambda params, state, memory, x: (f(params, x), memory))
    return stateless(None, f, name="upsample", stream=stream)


def _remembers_nothing(params: object, state: object, x: object, capacity: object) -> tuple[()]:
    return ()


def _nearest(x: jax.Array, axis: int, times: int) -> jax.Array:
    """By broadcasting, whose transpose is a sum; `jax.numpy.repeat` gathers."""
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    dimensions = tuple(i for i in range(x.ndim + 1) if i != axis + 1)
    return _joined(lax.broadcast_in_dim(x, shape, dimensions), axis)


def _linear(x: jax.Array, axis: int, times: int) -> jax.Array:
    """Each value's ``times`` outputs are made of it and its neighbours, by weights that are the same for all."""
    n = x.shape[axis]
    before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), lax.slice_in_dim(x, n - 1, n, axis=axis)], axis)
    offset = (np.arange(times) + 0.5) / times - 0.5
    parts = ((before, np.maximum(-offset, 0)), (x, 1 - np.abs(offset)), (after, np.maximum(offset, 0)))
    shape = [times if i == axis + 1 else 1 for i in range(x.ndim + 1)]
    spread = [jnp.expand_dims(part, axis + 1) * jnp.asarray(w, x.dtype).reshape(shape) for part, w in parts]
    return _joined(sum(spread[1:], spread[0]), axis)


def _joined(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])

"""Pooling layers, eq. 4.11: they summarize patches and learn nothing."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import kernels
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.kernels.window import Padding, Size, make_window
from jaxnet.layers.layer import Layer, parameterless, stateless
from jaxnet.layers.sliding import sliding


@made
def avg_pool(window: Size, *, strides: Size | None = None, padding: Padding = 0) -> Layer:
    """Averages patches of each channel, y_j = 1/K sum over k of x[S j + k - P] (eq. 4.11).

    Args:
      window: K, the window: an integer for one spatial dimension, a tuple for several.
      strides: S, the downsampling factor; K unless given.
      padding: zeros on both sides, which count in the average; an integer, "valid", "same", "causal",
        (before, after) in 1-D, or one such pair a dimension.

    Returns:
      A layer from ``(batch, *lengths, channels)`` to ``(batch, *out_lengths, channels)``, each length
      floor((D_in + 2P - K) / S) + 1.

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: another rank, or a window longer than the padded input.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layers.avg_pool(4).apply((), (), jnp.ones((2, 512, 3)), train=False)[0].shape
      (2, 128, 3)

    Source: chapter 4.1.4.
    """
    return _make("avg_pool", kernels.avg_pool, window, strides, padding, 0.0)


@made
def max_pool(window: Size, *, strides: Size | None = None, padding: Padding = 0) -> Layer:
    """Takes the maximum of patches of each channel, y_j = max over k of x[S j + k - P].

    Args:
      window: K, the window: an integer for one spatial dimension, a tuple for several.
      strides: S, the downsampling factor; K unless given.
      padding: as in `avg_pool`, but of minus infinity, which never wins, and below K.

    Returns:
      A layer from ``(batch, *lengths, channels)`` to ``(batch, *out_lengths, channels)``, lengths as `avg_pool`.

    Raises:
      ConfigError: a hyperparameter out of range, or padding of K and more.
      ShapeError: another rank, or a window longer than the padded input.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layers.max_pool((2, 2)).apply((), (), jnp.ones((1, 8, 8, 3)), train=False)[0].shape
      (1, 4, 4, 3)

    Source: Scherer et al. 2010, Evaluation of pooling operations in convolutional architectures.
    """
    return _make("max_pool", kernels.max_pool, window, strides, padding, -math.inf)


@made
def global_avg_pool() -> Layer:
    """Averages each channel over all its positions: y[b, c] = 1/D sum over i of x[b, i, c], D being how many there are.

    Returns:
      A layer from ``(batch, *lengths, channels)`` to (batch, channels).

    Raises:
      ShapeError: no spatial axis, or an empty one.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layers.global_avg_pool().apply((), (), jnp.ones((2, 512, 3)), train=False)[0].shape
      (2, 3)

    Source: Lin et al. 2013, Network in network, arXiv 1312.4400.
    """

    def f(x: Any) -> Any:
        x = checks.floating("x", x)
        if x.ndim < 3 or 0 in x.shape[1:-1]:
            raise ShapeError(
                f"x must have the axes (batch, *lengths, channels) and something to average, got shape {x.shape}"
            )
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))

    reason = "its mean is over all positions, so it needs them all; stream the network up to it, and average that"
    return parameterless(f, "global_avg_pool", stream=reason)


def _make(
    name: str, kernel: Callable[..., jax.Array], window: Size, strides: Size | None, padding: Padding, border: float
) -> Layer:
    stops = make_window("window", window, strides=strides, padding=padding)

    def f(params, x, padding=padding):
        del params
        return kernel(x, window, strides=strides, padding=padding)

    return stateless(None, f, name=name, stream=sliding(stops, f, border=border))

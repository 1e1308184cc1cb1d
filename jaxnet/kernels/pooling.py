"""Average and maximum pooling over any number of spatial dimensions, channels last."""

import math

import jax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._symbolic import is_below, is_symbolic
from jaxnet.errors import ConfigError, named
from jaxnet.kernels import pooling_forms, symbolic
from jaxnet.kernels.window import Padding, Size, check_input, make_window


@named("avg_pool")
def avg_pool(x: ArrayLike, window: Size, *, strides: Size | None = None, padding: Padding = 0) -> jax.Array:
    """Averages each channel over sliding windows (eq. 4.11): y[j] = 1/K sum over k of x[S j + k - P].

    Padding counts: a window that reaches into the border averages its zeros too, as the equation's 1/K says
    (PyTorch's ``count_include_pad=True``).

    Args:
      x: ``(batch, *lengths, channels)``, floating point.
      window: K, an integer for one spatial dimension, a sequence for several.
      strides: S, the downsampling factor; K unless given.
      padding: zeros on both sides: an integer, "valid", "same", "causal", (before, after) in 1-D, or one such
        pair a dimension.

    Returns:
      ``(batch, *out_lengths, channels)``, each length floor((D_in + 2P - K) / S) + 1 (`sizes.pool_length`).

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: x of another rank, or a window longer than the padded input.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.avg_pool(jnp.arange(6.0).reshape(1, 6, 1), 2)[0, :, 0]
      Array([0.5, 2.5, 4.5], dtype=float32)

    Source: chapter 4.1.4.
    """
    return _pool("avg", x, window, strides, padding)


@named("max_pool")
def max_pool(x: ArrayLike, window: Size, *, strides: Size | None = None, padding: Padding = 0) -> jax.Array:
    """Takes the maximum of each channel over sliding windows: y[j] = max over k of x[S j + k - P].

    The border never wins: it counts as minus infinity. The gradient goes to the first maximum of a window, in
    row-major order. A window with a NaN gives NaN.

    Args:
      x: ``(batch, *lengths, channels)``, floating point.
      window: K, an integer for one spatial dimension, a sequence for several.
      strides: S, the downsampling factor; K unless given.
      padding: as in `avg_pool`, below K, so that no window lies wholly in the border.

    Returns:
      ``(batch, *out_lengths, channels)``, each length floor((D_in + 2P - K) / S) + 1 (`sizes.pool_length`).

    Raises:
      ConfigError: a hyperparameter out of range, or padding of K and more.
      ShapeError: x of another rank, or a window longer than the padded input.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.max_pool(jnp.arange(6.0).reshape(1, 6, 1), 2)[0, :, 0]
      Array([1., 3., 5.], dtype=float32)

    Source: Scherer et al. 2010, Evaluation of pooling operations in convolutional architectures.
    """
    return _pool("max", x, window, strides, padding)


def _pool(kind: pooling_forms.Kind, x: ArrayLike, window: Size, strides: Size | None, padding: Padding) -> jax.Array:
    stops = make_window("window", window, strides=strides, padding=padding)
    x = checks.floating("x", x)
    check_input(x, len(stops.size))
    along = tuple(zip(stops.slides, x.shape[1:-1], strict=True))
    for slide, length in along:
        slide.conv_length(length)  # refuses a window that is longer than the padded input
    border = tuple(slide.conv_padding(length) for slide, length in along)
    if kind == "max" and any(not is_below(p, k) for pair, k in zip(border, stops.size, strict=True) for p in pair):
        raise ConfigError(
            f"padding {border} reaches the window {stops.size}, so a window could hold no value at all; "
            f"pad by less than the window"
        )
    if any(is_symbolic(p) for pair in border for p in pair):
        x = symbolic.pad(x, border, 0.0 if kind == "avg" else -math.inf)
        border = ((0, 0),) * len(border)
    axes = range(1, x.ndim - 1)
    windows = tuple(map(pooling_forms.Stops, axes, stops.size, stops.strides, border))
    return pooling_forms.pool(x, kind, windows)

"""The convolutional and the transposed convolutional layer, eq. 4.4 to 4.10."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from jaxnet import _checks as checks
from jaxnet import initializers, kernels
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.initializers import Initializer
from jaxnet.kernels.window import Padding, Size, Window, check_input, make_window
from jaxnet.layers.dense import add_bias, check_start, drawn
from jaxnet.layers.layer import Layer, Stream, stateless
from jaxnet.layers.sliding import sliding, stuffed


@made
def conv(
    filters: int,
    kernel_size: Size,
    *,
    strides: Size = 1,
    padding: Padding = 0,
    padding_value: float = 0.0,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Slides ``filters`` learned kernels over a signal (eq. 4.5, cross-correlation).

    With j and k from 0, and within each group::

        y[b, j, o] = bias[o] + sum over k, c of  kernel[k, c, o] x[b, S j + d k - P, c]

    Args:
      filters: C_out, number of output channels.
      kernel_size: K, an integer for one spatial dimension, a tuple for several.
      strides: S, how far the kernel moves between outputs.
      padding: P on both sides; "valid" (0), "same" (ceil(D_in / S) outputs) or "causal" (output j sees nothing
        past S j); (before, after) in 1-D, one such pair a dimension in n-D.
      padding_value: P_v, the constant that fills the border.
      dilation: d, the distance between a kernel's taps.
      groups: g, into how many independent convolutions the channels are split; g = C_in is a depthwise one.
      bias: whether to add one value a filter.
      kernel_init: ``f(key, shape, dtype)`` for the kernel. Ours know the fans: C_in K / g inputs for each output,
        and C_out K / (g S) outputs that each input reaches. The default keeps the variance of its input.
      bias_init: the same for the bias, of shape (C_out,).

    Returns:
      A layer from ``(batch, *lengths, C_in)`` to ``(batch, *out_lengths, C_out)``, lengths as eq. 4.6, with the params
      ``kernel`` of shape ``(*K, C_in / g, C_out)`` and, if asked for, ``bias``: as many as eq. 4.7.

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: ranks, channels or groups that do not fit, or a kernel longer than the padded input.
      DTypeError: an integer input, or one of another dtype than the kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.conv(64, 41, strides=4, padding=20, groups=4)
      >>> params, state = layer.init(0, jnp.ones((1, 8192, 16)))
      >>> layer.apply(params, state, jnp.ones((1, 8192, 16)), train=False)[0].shape
      (1, 2048, 64)

    Source: chapter 4.1.2.
    """
    given = locals()
    return _make(kernels.conv, _conv_fans, kernels.conv_kernel_to_torch, _conv_stream, **given)


@made
def conv_transpose(
    filters: int,
    kernel_size: Size,
    *,
    strides: Size = 1,
    padding: Padding = 0,
    padding_value: float = 0.0,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Upsamples by a learned convolution of the input with S - 1 zeros between its values (eq. 4.9, 4.10).

    With x'[b, S i, c] = x[b, i, c] and 0 between, j and k from 0, and within each group::

        y[b, j, o] = bias[o] + sum over k, c of  kernel[k, c, o] x'[b, j + d k - P, c]

    The kernel is not flipped, and P pads the stuffed input. PyTorch's padding p is P = d (K - 1) - p here, and its
    kernel is flipped: `sizes.torch_padding` and `kernels.conv_transpose_kernel_from_torch` convert.

    Args:
      filters: C_out, number of output channels.
      kernel_size: K, an integer for one spatial dimension, a tuple for several.
      strides: S, the upsampling factor.
      padding: P on both sides; "valid" (0), "same" (S * D_in outputs) or "causal" (S * D_in outputs, output j
        sees nothing past j / S); (before, after) in 1-D, one such pair a dimension in n-D.
      padding_value: P_v, the constant that fills the border; the stuffed zeros stay zero.
      dilation: d, the distance between a kernel's taps.
      groups: g, into how many independent convolutions the channels are split.
      bias: whether to add one value a filter.
      kernel_init: ``f(key, shape, dtype)`` for the kernel. Ours know the fans: C_in K / (g S) inputs for each
        output, since of S taps one meets a value and the others zeros, and C_out K / g outputs for each input.
      bias_init: the same for the bias, of shape (C_out,).

    Returns:
      A layer from ``(batch, *lengths, C_in)`` to ``(batch, *out_lengths, C_out)``, lengths as eq. 4.10, with the params
      ``kernel`` of shape ``(*K, C_in / g, C_out)`` and, if asked for, ``bias``: as many as eq. 4.7.

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: ranks, channels or groups that do not fit, or a kernel longer than the padded, stuffed input.
      DTypeError: an integer input, or one of another dtype than the kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.conv_transpose(128, 16, strides=8, padding="same")
      >>> params, state = layer.init(0, jnp.ones((1, 32, 256)))
      >>> layer.apply(params, state, jnp.ones((1, 32, 256)), train=False)[0].shape
      (1, 256, 128)

    Source: chapter 4.1.3.
    """
    given = locals()
    to_torch = functools.partial(kernels.conv_transpose_kernel_to_torch, groups=groups)
    return _make(kernels.conv_transpose, _conv_transpose_fans, to_torch, stuffed, **given)


def _conv_stream(window: Window, f: Callable[..., Any], *, border: float) -> Stream | str:
    return sliding(window, functools.partial(f, border=border), border=border)


def _conv_fans(channels: int, filters: int, taps: int, strides: int, groups: int) -> tuple[float, float]:
    return channels * taps / groups, filters * taps / (groups * strides)


def _conv_transpose_fans(channels: int, filters: int, taps: int, strides: int, groups: int) -> tuple[float, float]:
    return channels * taps / (groups * strides), filters * taps / groups


def _make(
    kernel_function: Callable[..., jax.Array],
    fans_of: Callable[..., tuple[float, float]],
    to_torch: Callable[..., jax.Array],
    streamed: Callable[..., Stream | str],
    *,
    filters: int,
    kernel_size: Size,
    strides: Size,
    padding: Padding,
    padding_value: float,
    dilation: Size,
    groups: int,
    bias: bool,
    kernel_init: Initializer,
    bias_init: Initializer,
) -> Layer:
    filters = checks.integer("filters", filters, minimum=1)
    stops = make_window("kernel_size", kernel_size, strides=strides, padding=padding, dilation=dilation)
    padding_value = checks.number("padding_value", padding_value)
    groups = checks.integer("groups", groups, minimum=1)
    check_start(bias, kernel_init, bias_init)
    if filters % groups:
        raise ShapeError(f"groups={groups} must divide the {filters} filters")

    def init(key, x):
        x = checks.floating_struct(x)
        check_input(x, len(stops.size))
        channels = x.shape[-1]
        if channels < 1 or channels % groups:
            raise ShapeError(f"groups={groups} must divide the {channels} input channels (input {x.shape})")
        fans = fans_of(channels, filters, math.prod(stops.size), math.prod(stops.strides), groups)
        shape = (*stops.size, channels // groups, filters)
        return drawn(key, shape, x.dtype, fans, kernel_init, bias_init if bias else None)

    def f(params, x, padding=padding, border=padding_value):
        kernel, *rest = checks.leaves(params, *("kernel", "bias")[: 1 + bias])
        if kernel.shape[:-2] != stops.size or kernel.shape[-1] != filters:
            raise ShapeError(
                f"the kernel {kernel.shape} is another layer's; this one has kernel_size={stops.size} and "
                f"{filters} filters; pass what this layer's init returned"
            )
        y = kernel_function(
            x,
            kernel,
            strides=stops.strides,
            padding=padding,
            padding_value=border,
            dilation=stops.dilation,
            groups=groups,
        )
        return add_bias(y, *rest)

    def fan_in(shape):
        return fans_of(shape[-2] * groups, filters, math.prod(stops.size), math.prod(stops.strides), groups)[0]

    torch = (("kernel", "weight", to_torch), ("bias", "bias", None))
    stream = streamed(stops, f, border=padding_value)
    return stateless(init, f, name=kernel_function.__name__, torch=torch, fan_in=fan_in, stream=stream)

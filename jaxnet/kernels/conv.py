"""Convolution and transposed convolution over any number of spatial dimensions, channels last."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._symbolic import is_symbolic, stuffed_length
from jaxnet.errors import ShapeError, named
from jaxnet.kernels import symbolic, trilinear
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.rewrites import transposed_kernel
from jaxnet.kernels.window import Padding, Size, Window, check_channels, check_input, make_window


@named("conv")
def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Size = 1,
    padding: Padding = 0,
    padding_value: float = 0.0,
    dilation: Size = 1,
    groups: int = 1,
) -> jax.Array:
    """Slides a kernel over a signal and takes the inner product at every stop (eq. 4.5, cross-correlation).

    With j and k from 0, and within each group::

        y[b, j, o] = sum over k, c of  w[k, c, o] x[b, S j + d k - P, c]

    where x outside its range is ``padding_value``. The kernel is not flipped.

    Args:
      x: ``(batch, *lengths, C_in)``, floating point.
      kernel: ``(*K, C_in / groups, C_out)``, of x's dtype; its rank tells the number of spatial dimensions.
      strides: S, one number or one a dimension.
      padding: P on both sides; "valid" (0), "same" (ceil(D_in / S) outputs) or "causal" (output j sees nothing
        past S j); (before, after) in 1-D, one such pair a dimension in n-D.
      padding_value: P_v, what the border is filled with.
      dilation: d, the distance between taps, one number or one a dimension.
      groups: g, into how many independent convolutions the channels are split.

    Returns:
      ``(batch, *out_lengths, C_out)``, each length as eq. 4.6 (`sizes.conv_length`).

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: ranks, channels or groups that do not fit, or a kernel longer than the padded input.
      DTypeError: not floating point, or x and kernel of different dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> x = jnp.arange(10.0).reshape(1, 10, 1)
      >>> kernels.conv(x, jnp.ones((3, 1, 1)))[0, :, 0]
      Array([ 3.,  6.,  9., 12., 15., 18., 21., 24.], dtype=float32)

    Source: chapter 4.1.2, eq. 4.4 to 4.7.
    """
    x, kernel, stops, groups = _check(x, kernel, strides, padding, dilation, groups)
    along = tuple(zip(stops.slides, x.shape[1:-1], strict=True))
    outputs = tuple(slide.conv_length(length) for slide, length in along)
    border = tuple(slide.conv_padding(length) for slide, length in along)
    value = checks.number("padding_value", padding_value)
    if value:
        x, border = _fill_border(x, border, value), tuple((0, 0) for _ in border)
    geometry = Geometry(
        lengths=x.shape[1:-1],
        size=stops.size,
        outputs=outputs,
        strides=stops.strides,
        dilation=stops.dilation,
        before=tuple(before for before, _ in border),
        groups=groups,
    )
    return trilinear.conv(x[None], kernel[None], geometry)[0]


@named("conv_transpose")
def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    strides: Size = 1,
    padding: Padding = 0,
    padding_value: float = 0.0,
    dilation: Size = 1,
    groups: int = 1,
) -> jax.Array:
    """Upsamples: S - 1 zeros between the values, P around them, then a convolution of stride 1 (eq. 4.9, 4.10).

    With x'[b, S i, c] = x[b, i, c] and 0 between, j and k from 0, and within each group::

        y[b, j, o] = sum over k, c of  w[k, c, o] x'[b, j + d k - P, c]

    where x' outside its range is ``padding_value``; the stuffed zeros stay zero. The kernel is not flipped, and
    the padding is that of the stuffed input: PyTorch's padding p is P = d (K - 1) - p here, with the kernel
    flipped (`sizes.torch_padding`, `conv_transpose_kernel_from_torch`).

    Args:
      x: ``(batch, *lengths, C_in)``, floating point.
      kernel: ``(*K, C_in / groups, C_out)``, of x's dtype.
      strides: S, the upsampling factor, one number or one a dimension.
      padding: P on both sides; "valid" (0), "same" (S * D_in outputs) or "causal" (S * D_in outputs, output j
        sees nothing past j / S); (before, after) in 1-D, one such pair a dimension in n-D.
      padding_value: P_v, what the border is filled with.
      dilation: d, the distance between taps, one number or one a dimension.
      groups: g, into how many independent convolutions the channels are split.

    Returns:
      ``(batch, *out_lengths, C_out)``, each length as eq. 4.10 (`sizes.conv_transpose_length`).

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: ranks, channels or groups that do not fit, or a kernel longer than the padded, stuffed input.
      DTypeError: not floating point, or x and kernel of different dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> x = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
      >>> kernels.conv_transpose(x, jnp.ones((2, 1, 1)), strides=2, padding="same")[0, :, 0]
      Array([1., 1., 2., 2., 3., 3.], dtype=float32)

    Source: chapter 4.1.3.
    """
    x, kernel, stops, groups = _check(x, kernel, strides, padding, dilation, groups)
    # The form solved for its x: there y is our input, so the kernel's two channel axes change places and its taps run
    # the other way, and what pads the stuffed input by P crops the result by d (K - 1) - P.
    lengths = tuple(slide.conv_transpose_length(n) for slide, n in zip(stops.slides, x.shape[1:-1], strict=True))
    border = tuple(slide.conv_transpose_padding() for slide in stops.slides)
    geometry = Geometry(
        lengths=lengths,
        size=stops.size,
        outputs=x.shape[1:-1],
        strides=stops.strides,
        dilation=stops.dilation,
        before=tuple(slide.reach - before for slide, (before, _) in zip(stops.slides, border, strict=True)),
        groups=groups,
    )
    value, dtype = checks.number("padding_value", padding_value), x.dtype
    if value and dtype.itemsize < 4:  # two sums below, rounded once
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    adjoint = transposed_kernel(jnp.flip(kernel, range(kernel.ndim - 2)), groups)
    y = trilinear.conv_input(x[None], adjoint[None], geometry)[0]
    if value:  # what the border adds: the same convolution of a signal that is P_v there and 0 inside
        inside = tuple(stuffed_length(n, s) for n, s in zip(x.shape[1:-1], stops.strides, strict=True))
        alone = _fill_border(jnp.zeros((1, *inside, x.shape[-1]), x.dtype), border, value)
        y = y + conv(alone, kernel, dilation=dilation, groups=groups)  # broadcast over the batch
    return y.astype(dtype)


def _check(
    x: Any, kernel: Any, strides: Size, padding: Padding, dilation: Size, groups: int
) -> tuple[jax.Array, jax.Array, Window, int]:
    x, kernel = checks.floating("x", x), checks.floating("kernel", kernel)
    checks.same_dtype(x=x, kernel=kernel)
    ndim = kernel.ndim - 2
    if ndim < 1:
        raise ShapeError(f"kernel must have the axes (*kernel_size, C_in / groups, C_out), got shape {kernel.shape}")
    stops = make_window("kernel size", kernel.shape[:-2], strides=strides, padding=padding, dilation=dilation)
    check_input(x, ndim)
    groups = checks.integer("groups", groups, minimum=1)
    check_channels(x.shape, kernel.shape, groups)
    return x, kernel, stops, groups


def _fill_border(x: jax.Array, border: Sequence[tuple[int, int]], value: float) -> jax.Array:
    if any(is_symbolic(p) for pair in border for p in pair):
        return symbolic.pad(x, border, value)
    return jnp.pad(x, ((0, 0), *border, (0, 0)), constant_values=value)

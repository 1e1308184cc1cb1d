"""Lengths and paddings of (transposed) convolutions and poolings, and how far a stack of them sees."""

from collections.abc import Iterable
from typing import Any

from jaxnet import _checks as checks
from jaxnet._symbolic import is_symbolic
from jaxnet.errors import ConfigError, named
from jaxnet.sizes.slide import Padding, slide


def _length(length: Any) -> Any:
    return length if is_symbolic(length) else checks.integer("length", length, minimum=0)


@named("conv")
def conv_padding(
    length: int, kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1
) -> tuple[int, int]:
    """Returns how many values a convolution adds (before, after) a sequence of ``length`` values.

    "valid" adds none. "same" gives ceil(length / strides) outputs, the odd value going after, as in XLA
    and Keras. "causal" adds d (K - 1) values before, so that output j sees no input past S j.

    Args:
      length: D_in, values per input channel.
      kernel_size: K, taps of the kernel.
      strides: S, how far the kernel moves between outputs.
      padding: P on both sides, (before, after), "valid", "same" or "causal".
      dilation: d, the distance between taps.

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_padding(10, 3, padding="same"), sizes.conv_padding(10, 3, dilation=4, padding="causal")
      ((1, 1), (8, 0))
    """
    return slide(kernel_size, strides, padding, dilation).conv_padding(_length(length))


@named("conv")
def conv_length(length: int, kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1) -> int:
    """Returns a convolution's output length, eq. 4.6: floor((D_in + 2P - d (K - 1) - 1) / S + 1).

    With unequal padding, 2P is before + after. The bars of eq. 4.6 are floor brackets, and its condition
    D_in >= K should read D_in + 2P >= d (K - 1) + 1.

    Args:
      length: D_in, values per input channel.
      kernel_size: K, taps of the kernel.
      strides: S, how far the kernel moves between outputs.
      padding: P on both sides, (before, after), "valid", "same" or "causal".
      dilation: d, the distance between taps.

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.
      ShapeError: the dilated kernel is longer than the padded input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_length(10, 3)  # figure 4.3
      8
    """
    return slide(kernel_size, strides, padding, dilation).conv_length(_length(length))


@named("avg_pool")
def pool_length(length: int, window: int, *, strides: int | None = None, padding: Padding = 0) -> int:
    """Returns a pooling layer's output length, floor((D_in + 2P - K) / S) + 1; S defaults to K (eq. 4.11).

    Args:
      length: D_in, values per channel.
      window: K, how many values are pooled.
      strides: S, how far the window moves.
      padding: P on both sides, (before, after), "valid", "same" or "causal".

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.
      ShapeError: the window is longer than the padded input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.pool_length(10, 4)
      2
    """
    strides = window if strides is None else strides
    return slide(window, strides, padding, 1).conv_length(_length(length))


@named("conv_transpose")
def conv_transpose_padding(
    kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1
) -> tuple[int, int]:
    """Returns the padding (before, after) of a transposed convolution's stuffed input (eq. 4.10).

    "valid" is 0. "same" gives S * D_in outputs, placed so that the layer is the adjoint of a "same"
    convolution with the same strides. "causal" also gives S * D_in, and output j sees no input past j / S.

    Args:
      kernel_size: K, taps of the kernel.
      strides: S, the upsampling factor.
      padding: P on both sides of the stuffed input, (before, after), "valid", "same" or "causal".
      dilation: d, the distance between taps.

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_transpose_padding(16, strides=8, padding="same")
      (11, 11)
    """
    return slide(kernel_size, strides, padding, dilation).conv_transpose_padding()


@named("conv_transpose")
def conv_transpose_length(
    length: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
) -> int:
    """Returns a transposed convolution's output length, eq. 4.10: S (D_in - 1) + 2P - d (K - 1) + 1.

    Args:
      length: D_in, values per input channel.
      kernel_size: K, taps of the kernel.
      strides: S, the upsampling factor.
      padding: P on both sides of the stuffed input, (before, after), "valid", "same" or "causal". PyTorch's
        padding p is P = d (K - 1) - p here: see `torch_padding`.
      dilation: d, the distance between taps.

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.
      ShapeError: the dilated kernel is longer than the padded, stuffed input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_transpose_length(4, 3, strides=2, padding=2)  # figure 4.5
      9
    """
    return slide(kernel_size, strides, padding, dilation).conv_transpose_length(_length(length))


@named("torch_padding")
def torch_padding(kernel_size: int, padding: int = 0, *, dilation: int = 1, output_padding: int = 0) -> tuple[int, int]:
    """Returns our padding of a transposed convolution for PyTorch's: P = d (K - 1) - p before, and after it
    plus ``output_padding``.

    Args:
      kernel_size: K, taps of the kernel.
      padding: p, PyTorch's.
      dilation: d, the distance between taps.
      output_padding: PyTorch's, added after.

    Raises:
      ConfigError: p > d (K - 1), with which PyTorch crops the output; or a hyperparameter out of range.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.torch_padding(16, padding=4)
      (11, 11)
    """
    padding = checks.integer("padding", padding, minimum=0)
    output_padding = checks.integer("output_padding", output_padding, minimum=0)
    before = slide(kernel_size, 1, 0, dilation).reach - padding
    if before < 0:
        raise ConfigError(
            f"PyTorch's padding {padding} exceeds d (K - 1) = {dilation * (kernel_size - 1)}; "
            f"convert with padding {before + padding} and crop {-before} outputs at each end"
        )
    return before, before + output_padding


@named("receptive_field")
def receptive_field(stages: Iterable[tuple[int, int, int]]) -> int:
    """Returns how many input values one output of a stack of convolutions or poolings depends on.

    A stage with kernel size K, strides S and dilation d adds d (K - 1) times the product of the strides
    before it.

    Args:
      stages: (kernel_size, strides, dilation) of each stage, input first.

    Raises:
      ConfigError: a hyperparameter out of range, as `slide` says.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.receptive_field([(3, 1, 1), (3, 1, 3), (3, 1, 9)])
      27
    """
    field, step = 1, 1
    for kernel_size, strides, dilation in stages:
        stage = slide(kernel_size, strides, 0, dilation)
        field, step = field + stage.reach * step, step * stage.strides
    return field

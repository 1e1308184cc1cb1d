"""Sizes before any array exists: output lengths, paddings, parameter counts, receptive fields, multiply-adds.

Everything here is arithmetic on Python integers, one spatial dimension at a time; a layer with several
applies it to each. A length can also be a symbolic dimension of `jax.export`, such as ``4*t``.

`multiply_adds` counts those of any function, from its trace.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._multiply_adds import multiply_adds as multiply_adds
from jaxnet._symbolic import at_least_0, is_below, is_symbolic, stuffed_length
from jaxnet.errors import ConfigError, ShapeError, named

__all__ = [
    "Slide",
    "conv_length",
    "conv_multiply_adds",
    "conv_padding",
    "conv_parameters",
    "conv_transpose_length",
    "conv_transpose_padding",
    "dense_parameters",
    "pool_length",
    "receptive_field",
    "slide",
    "torch_padding",
]

Padding = int | tuple[int, int] | Literal["valid", "same", "causal"]
"""One dimension's padding: P on both sides, (before, after), or a rule that depends on the length."""

PADDING_RULES = ("valid", "same", "causal")


class Slide(NamedTuple):
    """How a window slides along one dimension, as `slide` checks it; the functions here and `kernels` compute with it.

    Attributes:
      size: K, the window's taps.
      strides: S, how far it moves.
      padding: (before, after), "same" or "causal".
      dilation: d, the distance between taps.
    """

    size: int
    strides: int
    padding: tuple[int, int] | str
    dilation: int

    @property
    def reach(self) -> int:
        """d (K - 1): how far the dilated window's last tap lies from its first."""
        return self.dilation * (self.size - 1)

    def conv_padding(self, length: Any) -> tuple[int, int]:
        """What `conv_padding` says of a length."""
        if self.padding == "same":
            total = at_least_0(-length % self.strides + self.reach + 1 - self.strides)
            return total // 2, total - total // 2
        return self._fixed_padding(0)

    def conv_length(self, length: Any) -> int:
        """What `conv_length` says of it."""
        before, after = self.conv_padding(length)
        extent, padded = self.reach + 1, length + before + after
        if is_below(padded, extent):
            raise ShapeError(
                f"the kernel is longer than the padded input: d (K - 1) + 1 = {extent} > D_in + padding = "
                f"{padded} (D_in={length}, padding=({before}, {after}), K={self.size}, d={self.dilation}; "
                f"eq. 4.6); pad more, or use a shorter kernel"
            )
        if self.padding == "same":  # the same number, in a form that symbolic lengths keep simple
            return -(-length // self.strides)
        return at_least_0((padded - extent) // self.strides + 1)

    def conv_transpose_padding(self) -> tuple[int, int]:
        """What `conv_transpose_padding` says."""
        if self.padding == "same":
            before = self.reach - max(self.reach + 1 - self.strides, 0) // 2
            return before, self.reach + self.strides - 1 - before
        return self._fixed_padding(self.strides - 1)

    def conv_transpose_length(self, length: Any) -> int:
        """What `conv_transpose_length` says of a length."""
        before, after = self.conv_transpose_padding()
        extent, padded = self.reach + 1, stuffed_length(length, self.strides) + before + after
        if is_below(padded, extent):
            raise ShapeError(
                f"the kernel is longer than the padded, stuffed input: d (K - 1) + 1 = {extent} > "
                f"S (D_in - 1) + 1 + padding = {padded} (D_in={length}, S={self.strides}, "
                f"padding=({before}, {after}), K={self.size}, d={self.dilation}; eq. 4.10); PyTorch's padding p is "
                f"d (K - 1) - p here, so p = 0 means padding={extent - 1}"
            )
        return at_least_0(padded - extent + 1)

    def _fixed_padding(self, after_causal: int) -> tuple[int, int]:
        if isinstance(self.padding, tuple):
            return self.padding
        return (self.reach, after_causal) if self.padding == "causal" else (0, 0)


def slide(size: Any, strides: Any, padding: Any, dilation: Any, *, name: str = "kernel_size") -> Slide:
    """Returns a checked `Slide`; ``name`` is what errors call the size.

    Args:
      size: K, a window's taps.
      strides: S.
      padding: P on both sides, (before, after), "valid", "same" or "causal".
      dilation: d, the distance between taps.
      name: what errors call the size.

    Raises:
      ConfigError: a size, stride or dilation that is no integer of at least 1; a padding that is negative, or neither
        an integer, a pair nor "valid", "same", "causal".

    Example:
      >>> from jaxnet import sizes
      >>> sizes.slide(3, 1, (2, 0), 4).reach
      8
    """
    return Slide(
        checks.integer(name, size, minimum=1),
        checks.integer("strides", strides, minimum=1),
        _padding(padding),
        checks.integer("dilation", dilation, minimum=1),
    )


def _padding(padding: Any) -> tuple[int, int] | str:
    if isinstance(padding, str):
        return checks.choice("padding", padding, PADDING_RULES)
    pair = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(pair) != 2:
        raise ConfigError(f"padding of one dimension is an integer or (before, after), got {words.came(padding)}")
    before, after = (checks.integer("padding", p, minimum=0) for p in pair)
    return before, after


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


@named("dense_parameters")
def dense_parameters(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Returns a dense layer's parameter count, eq. 4.3: N_out (N_in + [bias]).

    Args:
      inputs: N_in.
      outputs: N_out.
      bias: whether there is one value an output more.

    Raises:
      ConfigError: ``inputs`` or ``outputs`` is no positive integer.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.dense_parameters(6, 5)  # figure 4.2's second hidden layer
      35
    """
    inputs = checks.integer("inputs", inputs, minimum=1)
    return checks.integer("outputs", outputs, minimum=1) * (inputs + checks.flag("bias", bias))


@named("conv_parameters")
def conv_parameters(
    in_channels: int, filters: int, kernel_size: int | tuple[int, ...], *, groups: int = 1, bias: bool = True
) -> int:
    """Returns a (transposed) convolution's parameter count, eq. 4.7 with groups: C_out (C_in / g K + [bias]).

    Args:
      in_channels: C_in.
      filters: C_out.
      kernel_size: K, a tuple for several dimensions.
      groups: g.
      bias: whether there is one value a filter more.

    Raises:
      ConfigError: a hyperparameter out of range, or ``groups`` that do not divide the channels and the filters.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_parameters(16, 64, 41, groups=4)
      10560
    """
    taps = [
        checks.integer("kernel_size", k, minimum=1)
        for k in (kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,))
    ]
    weights = _per_group(in_channels, filters, groups) * math.prod(taps)
    return filters * (weights + checks.flag("bias", bias))


@named("conv_multiply_adds")
def conv_multiply_adds(out_length: int, in_channels: int, filters: int, kernel_size: int, *, groups: int = 1) -> int:
    """Returns a convolution's multiply-adds for one example: D_out C_out (C_in / g) K; padding is counted.

    A transposed convolution needs as many with D_in for D_out: each input meets each tap once.

    Args:
      out_length: D_out, positions of the output.
      in_channels: C_in.
      filters: C_out.
      kernel_size: K, taps of the kernel.
      groups: g.

    Raises:
      ConfigError: a hyperparameter out of range, or ``groups`` that do not divide the channels and the filters.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_multiply_adds(8, 2, 4, 3)
      192
    """
    out_length = checks.integer("out_length", out_length, minimum=0)
    kernel_size = checks.integer("kernel_size", kernel_size, minimum=1)
    return out_length * filters * _per_group(in_channels, filters, groups) * kernel_size


def _per_group(in_channels: int, filters: int, groups: int) -> int:
    """C_in / g, if the groups divide the channels and the filters."""
    in_channels = checks.integer("in_channels", in_channels, minimum=1)
    filters = checks.integer("filters", filters, minimum=1)
    groups = checks.integer("groups", groups, minimum=1)
    if in_channels % groups or filters % groups:
        raise ConfigError(
            f"groups={groups} must divide both the {in_channels} input channels and the {filters} filters"
        )
    return in_channels // groups

"""Sizes before any array exists: output lengths, paddings, parameter counts, receptive fields, multiply-adds.

Everything here is arithmetic on Python integers, one spatial dimension at a time; a layer with several
applies it to each. A length can also be a symbolic dimension of `jax.export`, such as ``4*t``.

`multiply_adds` counts those of any function, from its trace.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax

from jaxnet import _checks_named as checks
from jaxnet._symbolic import at_least_0, is_below, is_symbolic, stuffed_length
from jaxnet.errors import ConfigError, ShapeError

Padding = int | tuple[int, int] | Literal["valid", "same", "causal"]
"""One dimension's padding: P on both sides, (before, after), or a rule that depends on the length."""

PADDING_RULES = ("valid", "same", "causal")


def check_padding(who: str, padding: Any) -> Padding:
    """Returns ``padding`` in canonical form: a rule's name, or a pair of integers >= 0.

    Raises:
      ConfigError: negative, or neither an integer, a pair nor "valid", "same", "causal".
    """
    if isinstance(padding, str):
        return checks.choice(who, "padding", padding, PADDING_RULES)  # pyright: ignore[reportReturnType]
    if isinstance(padding, (tuple, list)):
        if len(padding) != 2:
            raise ConfigError(f"{who}: padding of one dimension is an integer or (before, after), got {padding!r}")
        before, after = (checks.integer(who, "padding", p, minimum=0) for p in padding)
        return before, after
    both = checks.integer(who, "padding", padding, minimum=0)
    return both, both


def conv_padding(
    length: int, kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1, who: str = "conv"
) -> tuple[int, int]:
    """Returns how many values a convolution adds (before, after) a sequence of ``length`` values.

    "valid" adds none. "same" gives ceil(length / strides) outputs, the odd value going after, as in XLA
    and Keras. "causal" adds d (K - 1) values before, so that output j sees no input past S j.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_padding(10, 3, padding="same"), sizes.conv_padding(10, 3, dilation=4, padding="causal")
      ((1, 1), (8, 0))
    """
    canonical = check_padding(who, padding)
    length = _length(who, length)
    strides = checks.integer(who, "strides", strides, minimum=1)
    reach = _reach(who, kernel_size, dilation)
    if canonical == "valid":
        return 0, 0
    if canonical == "causal":
        return reach, 0
    if canonical == "same":
        total = at_least_0(-length % strides + reach + 1 - strides)
        return total // 2, total - total // 2
    assert not isinstance(canonical, (str, int))
    return canonical


def conv_length(
    length: int, kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1, who: str = "conv"
) -> int:
    """Returns a convolution's output length, eq. 4.6: floor((D_in + 2P - d (K - 1) - 1) / S + 1).

    With unequal padding, 2P is before + after. The bars of eq. 4.6 are floor brackets, and its condition
    D_in >= K should read D_in + 2P >= d (K - 1) + 1.

    Args:
      length: D_in, values per input channel.
      kernel_size: K, taps of the kernel.
      strides: S, how far the kernel moves between outputs.
      padding: P on both sides, (before, after), "valid", "same" or "causal".
      dilation: d, the distance between taps.
      who: the name that errors begin with.

    Raises:
      ShapeError: the dilated kernel is longer than the padded input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_length(10, 3)  # figure 4.3
      8
    """
    before, after = conv_padding(length, kernel_size, strides=strides, padding=padding, dilation=dilation, who=who)
    extent = dilation * (kernel_size - 1) + 1
    if is_below(length + before + after, extent):
        raise ShapeError(
            f"{who}: the kernel is longer than the padded input: d (K - 1) + 1 = {extent} > D_in + padding = "
            f"{length + before + after} (D_in={length}, padding=({before}, {after}), K={kernel_size}, d={dilation}; "
            f"eq. 4.6); pad more, or use a shorter kernel"
        )
    if padding == "same":  # the same number, in a form that symbolic lengths keep simple
        return -(-length // strides)
    return at_least_0((length + before + after - extent) // strides + 1)


def pool_length(
    length: int, window: int, *, strides: int | None = None, padding: Padding = 0, who: str = "avg_pool"
) -> int:
    """Returns a pooling layer's output length, floor((D_in + 2P - K) / S) + 1; S defaults to K (eq. 4.11).

    Raises:
      ShapeError: the window is longer than the padded input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.pool_length(10, 4)
      2
    """
    return conv_length(length, window, strides=window if strides is None else strides, padding=padding, who=who)


def conv_transpose_padding(
    kernel_size: int, *, strides: int = 1, padding: Padding = 0, dilation: int = 1, who: str = "conv_transpose"
) -> tuple[int, int]:
    """Returns the padding (before, after) of a transposed convolution's stuffed input (eq. 4.10).

    "valid" is 0. "same" gives S * D_in outputs, placed so that the layer is the adjoint of a "same"
    convolution with the same strides. "causal" also gives S * D_in, and output j sees no input past j / S.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_transpose_padding(16, strides=8, padding="same")
      (11, 11)
    """
    canonical = check_padding(who, padding)
    strides = checks.integer(who, "strides", strides, minimum=1)
    reach = _reach(who, kernel_size, dilation)
    if canonical == "valid":
        return 0, 0
    if canonical == "causal":
        return reach, strides - 1
    if canonical == "same":
        before = reach - max(reach + 1 - strides, 0) // 2
        return before, reach + strides - 1 - before
    assert not isinstance(canonical, (str, int))
    return canonical


def conv_transpose_length(
    length: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
    who: str = "conv_transpose",
) -> int:
    """Returns a transposed convolution's output length, eq. 4.10: S (D_in - 1) + 2P - d (K - 1) + 1.

    Args:
      length: D_in, values per input channel.
      kernel_size: K, taps of the kernel.
      strides: S, the upsampling factor.
      padding: P on both sides of the stuffed input, (before, after), "valid", "same" or "causal". PyTorch's
        padding p is P = d (K - 1) - p here: see `torch_padding`.
      dilation: d, the distance between taps.
      who: the name that errors begin with.

    Raises:
      ShapeError: the dilated kernel is longer than the padded, stuffed input.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_transpose_length(4, 3, strides=2, padding=2)  # figure 4.5
      9
    """
    before, after = conv_transpose_padding(kernel_size, strides=strides, padding=padding, dilation=dilation, who=who)
    stuffed = stuffed_length(_length(who, length), strides)
    extent = dilation * (kernel_size - 1) + 1
    if is_below(stuffed + before + after, extent):
        raise ShapeError(
            f"{who}: the kernel is longer than the padded, stuffed input: d (K - 1) + 1 = {extent} > "
            f"S (D_in - 1) + 1 + padding = {stuffed + before + after} (D_in={length}, S={strides}, "
            f"padding=({before}, {after}), K={kernel_size}, d={dilation}; eq. 4.10); PyTorch's padding p is "
            f"d (K - 1) - p here, so p = 0 means padding={extent - 1}"
        )
    return at_least_0(stuffed + before + after - extent + 1)


def torch_padding(kernel_size: int, padding: int = 0, *, dilation: int = 1, output_padding: int = 0) -> tuple[int, int]:
    """Returns our padding of a transposed convolution for PyTorch's: P = d (K - 1) - p before, and after it
    plus ``output_padding``.

    Raises:
      ConfigError: p > d (K - 1), with which PyTorch crops the output.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.torch_padding(16, padding=4)
      (11, 11)
    """
    who = "torch_padding"
    padding = checks.integer(who, "padding", padding, minimum=0)
    output_padding = checks.integer(who, "output_padding", output_padding, minimum=0)
    before = _reach(who, kernel_size, dilation) - padding
    if before < 0:
        raise ConfigError(
            f"torch_padding: PyTorch's padding {padding} exceeds d (K - 1) = {dilation * (kernel_size - 1)}; "
            f"convert with padding {before + padding} and crop {-before} outputs at each end"
        )
    return before, before + output_padding


def receptive_field(stages: Iterable[tuple[int, int, int]]) -> int:
    """Returns how many input values one output of a stack of convolutions or poolings depends on.

    A stage with kernel size K, strides S and dilation d adds d (K - 1) times the product of the strides
    before it.

    Args:
      stages: (kernel_size, strides, dilation) of each stage, input first.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.receptive_field([(3, 1, 1), (3, 1, 3), (3, 1, 9)])
      27
    """
    who = "receptive_field"
    field, step = 1, 1
    for kernel_size, strides, dilation in stages:
        field += _reach(who, kernel_size, dilation) * step
        step *= checks.integer(who, "strides", strides, minimum=1)
    return field


def dense_parameters(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Returns a dense layer's parameter count, eq. 4.3: N_out (N_in + [bias]).

    Example:
      >>> from jaxnet import sizes
      >>> sizes.dense_parameters(6, 5)  # figure 4.2's second hidden layer
      35
    """
    who = "dense_parameters"
    inputs = checks.integer(who, "inputs", inputs, minimum=1)
    return checks.integer(who, "outputs", outputs, minimum=1) * (inputs + checks.flag(who, "bias", bias))


def conv_parameters(
    in_channels: int, filters: int, kernel_size: int | tuple[int, ...], *, groups: int = 1, bias: bool = True
) -> int:
    """Returns a (transposed) convolution's parameter count, eq. 4.7 with groups: C_out (C_in / g K + [bias]).

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_parameters(16, 64, 41, groups=4)
      10560
    """
    who = "conv_parameters"
    taps = [
        checks.integer(who, "kernel_size", k, minimum=1)
        for k in (kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,))
    ]
    weights = _per_group(who, in_channels, filters, groups) * math.prod(taps)
    return filters * (weights + checks.flag(who, "bias", bias))


def conv_multiply_adds(out_length: int, in_channels: int, filters: int, kernel_size: int, *, groups: int = 1) -> int:
    """Returns a convolution's multiply-adds for one example: D_out C_out (C_in / g) K; padding is counted.

    A transposed convolution needs as many with D_in for D_out: each input meets each tap once.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_multiply_adds(8, 2, 4, 3)
      192
    """
    who = "conv_multiply_adds"
    out_length = checks.integer(who, "out_length", out_length, minimum=0)
    kernel_size = checks.integer(who, "kernel_size", kernel_size, minimum=1)
    return out_length * filters * _per_group(who, in_channels, filters, groups) * kernel_size


def multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """Returns the multiply-adds in the matrix products and convolutions of ``function(*args)``.

    The function is traced, not run: the arguments may be `jax.ShapeDtypeStruct`. Scans count once per
    iteration; of a conditional the dearest branch counts, of a ``while`` loop one iteration, since nobody knows
    how many there will be.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import sizes
      >>> x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((64, 10), jnp.float32)
      >>> sizes.multiply_adds(jnp.dot, x, w)
      5120
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _length(who: str, length: Any) -> Any:
    return length if is_symbolic(length) else checks.integer(who, "length", length, minimum=0)


def _reach(who: str, kernel_size: int, dilation: int) -> int:
    """d (K - 1): how far a dilated kernel's last tap lies from its first."""
    kernel_size = checks.integer(who, "kernel_size", kernel_size, minimum=1)
    return checks.integer(who, "dilation", dilation, minimum=1) * (kernel_size - 1)


def _per_group(who: str, in_channels: int, filters: int, groups: int) -> int:
    """C_in / g, if the groups divide the channels and the filters."""
    in_channels = checks.integer(who, "in_channels", in_channels, minimum=1)
    filters = checks.integer(who, "filters", filters, minimum=1)
    groups = checks.integer(who, "groups", groups, minimum=1)
    if in_channels % groups or filters % groups:
        raise ConfigError(
            f"{who}: groups={groups} must divide both the {in_channels} input channels and the {filters} filters"
        )
    return in_channels // groups


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


# Which of their operands and results are y and w of the trilinear form, in the primitives of jaxnet.kernels.
_TRILINEAR = {"jaxnet_conv": ("out", "b"), "jaxnet_conv_input": ("a", "b"), "jaxnet_conv_kernel": ("b", "out")}


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        left, kernel = (v.aval.shape for v in equation.invars[:2])
        out = equation.outvars[0].aval.shape
        taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
        positions = 1
        for i, step in enumerate(params["lhs_dilation"]):  # the zeros stuffed between values cost nothing
            positions *= left[numbers.lhs_spec[2 + i]] if step > 1 else out[numbers.out_spec[2 + i]]
        return out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * positions * taps
    if name in _TRILINEAR:
        operands: dict[str, Any] = dict(zip(("a", "b", "out"), (*equation.invars, *equation.outvars), strict=True))
        y, w = (operands[which].aval.shape for which in _TRILINEAR[name])
        return math.prod(y) * math.prod(w[1:-1])  # y (N, B, *J, O), w (N, *K, C / g, O)
    from jax.extend import core as jax_core  # which imports Pallas; nobody else needs it

    inner = [_count(j) for j in jax_core.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)

"""The hyperparameters of a sliding window, checked and spread over the spatial dimensions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxnet import _checks_named as checks
from jaxnet import sizes
from jaxnet.errors import ConfigError, ShapeError

Size = int | Sequence[int]
"""One number for every spatial dimension, or one number each."""

Padding = sizes.Padding | Sequence[tuple[int, int]]
"""An integer, "valid", "same" or "causal" for every dimension; (before, after) in 1-D; one pair a dimension in n-D."""

_LAYOUT = {1: "(batch, length, channels)", 2: "(batch, height, width, channels)"}


def layout(ndim: int) -> str:
    """Returns the axes of an array with ``ndim`` spatial dimensions, for error messages."""
    return _LAYOUT.get(ndim, f"(batch, {ndim} spatial axes, channels)")


class Window(NamedTuple):
    """A window over ``len(size)`` spatial dimensions; each field has one entry a dimension."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[sizes.Padding, ...]
    dilation: tuple[int, ...]

    def conv_lengths(self, who: str, lengths: Sequence[int]) -> tuple[int, ...]:
        """Returns the output length of each dimension, eq. 4.6."""
        return tuple(
            sizes.conv_length(length, size, strides=strides, padding=padding, dilation=dilation, who=who)
            for length, size, strides, padding, dilation in zip(lengths, *self, strict=True)
        )

    def conv_padding(self, who: str, lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the (before, after) of each dimension."""
        return tuple(
            sizes.conv_padding(length, size, strides=strides, padding=padding, dilation=dilation, who=who)
            for length, size, strides, padding, dilation in zip(lengths, *self, strict=True)
        )

    def conv_transpose_lengths(self, who: str, lengths: Sequence[int]) -> tuple[int, ...]:
        """Returns the output length of each dimension, eq. 4.10."""
        return tuple(
            sizes.conv_transpose_length(length, size, strides=strides, padding=padding, dilation=dilation, who=who)
            for length, size, strides, padding, dilation in zip(lengths, *self, strict=True)
        )

    def conv_transpose_padding(self, who: str) -> tuple[tuple[int, int], ...]:
        """Returns the (before, after) of each dimension."""
        return tuple(
            sizes.conv_transpose_padding(size, strides=strides, padding=padding, dilation=dilation, who=who)
            for size, strides, padding, dilation in zip(*self, strict=True)
        )


def make_window(
    who: str, name: str, size: Size, *, strides: Size | None = 1, padding: Padding = 0, dilation: Size = 1
) -> Window:
    """Returns a checked `Window`; ``size`` tells the number of dimensions, ``strides=None`` means ``size``.

    Raises:
      ConfigError: a size, stride or dilation below 1 or not an integer, a padding that is negative or unknown,
        or a sequence whose length is not the number of dimensions.
    """
    if isinstance(size, (tuple, list)):
        if not size:
            raise ConfigError(f"{who}: {name} must name at least one dimension, got {size!r}")
        spread = tuple(checks.integer(who, name, s, minimum=1) for s in size)
    else:
        spread = (checks.integer(who, name, size, minimum=1),)
    ndim = len(spread)
    return Window(
        size=spread,
        strides=spread if strides is None else _spread(who, "strides", strides, ndim),
        padding=_spread_padding(who, padding, ndim),
        dilation=_spread(who, "dilation", dilation, ndim),
    )


def _spread(who: str, name: str, value: Size, ndim: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    if len(values) != ndim:
        raise ConfigError(f"{who}: {name} must be an integer or {ndim} of them, got {value!r}")
    return tuple(checks.integer(who, name, v, minimum=1) for v in values)


def _spread_padding(who: str, padding: Any, ndim: int) -> tuple[sizes.Padding, ...]:
    if not isinstance(padding, (tuple, list)):
        return (sizes.check_padding(who, padding),) * ndim
    pairs = [padding] if ndim == 1 and not any(isinstance(p, (tuple, list)) for p in padding) else list(padding)
    # In 2-D, (1, 2) could be (before, after) or (height, width): only pairs are taken.
    if len(pairs) != ndim or not all(isinstance(p, (tuple, list)) for p in pairs):
        raise ConfigError(
            f"{who}: padding must be an integer, 'valid', 'same', 'causal' or "
            f"{'(before, after)' if ndim == 1 else f'{ndim} pairs (before, after)'}, got {padding!r}"
        )
    return tuple(sizes.check_padding(who, p) for p in pairs)


def check_input(who: str, x: Any, ndim: int) -> None:
    """Refuses an ``x`` that is not (batch, ndim spatial axes, channels)."""
    checks.rank(who, "x", x, ndim + 2, layout(ndim))


def check_channels(
    who: str, x_shape: Sequence[int], kernel_shape: Sequence[int], groups: int, *, filters: int | None = None
) -> None:
    """Refuses channels that do not fit a kernel ``(*K, C_in / groups, C_out)`` or the groups."""
    channels, wanted = x_shape[-1], kernel_shape[-2] * groups
    filters = kernel_shape[-1] if filters is None else filters
    if channels % groups or filters % groups:
        raise ShapeError(
            f"{who}: groups={groups} must divide both the {channels} input channels and the {filters} filters"
        )
    if channels != wanted:
        hint = "channels come last"
        if x_shape[1] == wanted:
            hint += "; axis 1 fits: is the input channels-first? transpose it with jax.numpy.moveaxis(x, 1, -1)"
        raise ShapeError(
            f"{who}: the input has {channels} channels, the kernel was made for {wanted} "
            f"(input {tuple(x_shape)}, kernel {tuple(kernel_shape)}, groups {groups}); {hint}"
        )

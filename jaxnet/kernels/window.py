"""The hyperparameters of a sliding window, checked and spread over the spatial dimensions."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxnet import _checks as checks
from jaxnet import _words as words
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
    padding: tuple[tuple[int, int] | str, ...]
    dilation: tuple[int, ...]

    @property
    def slides(self) -> tuple[sizes.Slide, ...]:
        """The arithmetic of each dimension."""
        return tuple(map(sizes.Slide, *self))


def make_window(name: str, size: Size, *, strides: Size | None = 1, padding: Padding = 0, dilation: Size = 1) -> Window:
    """Returns a checked `Window`; ``size`` tells the number of dimensions, ``strides=None`` means ``size``.

    Raises:
      ConfigError: a size, stride or dilation below 1 or not an integer, a padding that is negative or unknown,
        or a sequence whose length is not the number of dimensions.
    """
    spread = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if not spread:
        raise ConfigError(f"{name} must name at least one dimension, got {words.came(size)}")
    ndim = len(spread)
    slides = map(
        functools.partial(sizes.slide, name=name),
        spread,
        spread if strides is None else _spread("strides", strides, ndim),
        _spread_padding(padding, ndim),
        _spread("dilation", dilation, ndim),
    )
    return Window(*zip(*slides, strict=True))


def _spread(name: str, value: Any, ndim: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    if len(values) != ndim:
        raise ConfigError(f"{name} must be an integer or {ndim} of them, got {words.came(value)}")
    return values


def _spread_padding(padding: Any, ndim: int) -> tuple[Any, ...]:
    if not isinstance(padding, (tuple, list)):
        return (padding,) * ndim
    pairs = (padding,) if ndim == 1 and not any(isinstance(p, (tuple, list)) for p in padding) else tuple(padding)
    # In 2-D, (1, 2) could be (before, after) or (height, width): only pairs are taken.
    if len(pairs) != ndim or not all(isinstance(p, (tuple, list)) for p in pairs):
        raise ConfigError(
            f"padding must be an integer, 'valid', 'same', 'causal' or "
            f"{'(before, after)' if ndim == 1 else f'{ndim} pairs (before, after)'}, got {words.came(padding)}"
        )
    return pairs


def check_input(x: Any, ndim: int, wanted: str = "a window over {n} axes has {n} numbers, such as {threes}") -> None:
    """Refuses an ``x`` that is not (batch, ndim spatial axes, channels); ``wanted`` of one with n, which are more."""
    more = len(x.shape) - 2
    hint = f"; {wanted.format(n=more, threes=(3,) * more)}" if ndim < more <= 3 else ""
    checks.rank("x", x, ndim + 2, layout(ndim), hint)


def check_channels(x_shape: Sequence[int], kernel_shape: Sequence[int], groups: int) -> None:
    """Refuses channels that do not fit a kernel ``(*K, C_in / groups, C_out)`` or the groups."""
    channels, wanted, filters = x_shape[-1], kernel_shape[-2] * groups, kernel_shape[-1]
    if channels % groups or filters % groups:
        raise ShapeError(f"groups={groups} must divide both the {channels} input channels and the {filters} filters")
    if channels != wanted:
        hint = "channels come last"
        if x_shape[1] == wanted:
            hint += "; axis 1 fits: is the input channels-first? transpose it with jax.numpy.moveaxis(x, 1, -1)"
        raise ShapeError(
            f"the input has {channels} channels, the kernel was made for {wanted} "
            f"(input {tuple(x_shape)}, kernel {tuple(kernel_shape)}, groups {groups}); {hint}"
        )

"""How a window slides along one dimension, and what that makes of a length: eq. 4.6 and 4.10."""

from typing import Any, Literal, NamedTuple

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._symbolic import at_least_0, is_below, stuffed_length
from jaxnet.errors import ConfigError, ShapeError

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

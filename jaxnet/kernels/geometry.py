"""The numbers that say which elements of three arrays meet in the trilinear form."""

from typing import NamedTuple


class Geometry(NamedTuple):
    """Which x meets which w in which y: ``x[S j + d k - P]``, ``w[k]`` and ``y[j]``, one entry a spatial dimension.

    Members, batch and channels are read from the arrays.
    """

    lengths: tuple[int, ...]
    """L, of x."""
    size: tuple[int, ...]
    """K, of w."""
    outputs: tuple[int, ...]
    """J, of y."""
    strides: tuple[int, ...]
    """S."""
    dilation: tuple[int, ...]
    """d."""
    before: tuple[int, ...]
    """P; below zero, it crops."""
    groups: int
    """g."""

    @property
    def after(self) -> tuple[int, ...]:
        """What must follow x so that the last window ends with it; below zero, inputs that no window reaches."""
        return tuple(
            s * (j - 1) + d * (k - 1) + 1 - p - n
            for n, k, j, s, d, p in zip(
                self.lengths, self.size, self.outputs, self.strides, self.dilation, self.before, strict=True
            )
        )

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(P, `after`) of each dimension."""
        return tuple(zip(self.before, self.after, strict=True))

    @property
    def ndim(self) -> int:
        """The number of spatial dimensions."""
        return len(self.size)

"""Hyperparameters drawn by hypothesis, small but awkward."""

from typing import NamedTuple

from hypothesis import strategies as st

from jaxnet.kernels.geometry import Geometry


class Conv(NamedTuple):
    """A 1-D convolution or transposed convolution and the size of its input."""

    length: int
    channels: int
    filters: int
    kernel_size: int
    strides: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    padding_value: float = 0.0
    batch: int = 2

    @property
    def reach(self):
        return self.dilation * (self.kernel_size - 1)

    @property
    def keywords(self):
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_value": self.padding_value,
        }

    @property
    def oracle_keywords(self):
        return {
            "strides": (self.strides,),
            "padding": (self.padding,),
            "dilation": (self.dilation,),
            "groups": self.groups,
            "padding_value": self.padding_value,
        }

    @property
    def x_shape(self):
        return (self.batch, self.length, self.channels)

    @property
    def kernel_shape(self):
        return (self.kernel_size, self.channels // self.groups, self.filters)


# What symmetric K=3, P=1 hides: even kernels, S > 1 with d > 1, groups of several channels, unequal padding, padding
# beyond d (K - 1), and lengths that leave a remainder.
AWKWARD = (
    Conv(11, 4, 6, 4, strides=3, padding=(2, 5), dilation=2, groups=2, padding_value=0.5),
    Conv(7, 6, 4, 2, strides=2, padding=(4, 3), dilation=3, groups=2),
    Conv(5, 3, 6, 5, strides=4, padding=(0, 6), dilation=1, groups=3, padding_value=-1.5),
    Conv(1, 2, 2, 2, strides=2, padding=(3, 1), dilation=3),
)


@st.composite
def convolutions(draw, *, stuffed=False, beyond=3):
    """Any `Conv` that gives an output; ``stuffed`` for the transposed layer, padding up to ``beyond`` d (K - 1)."""
    groups = draw(st.integers(1, 3))
    kernel_size, dilation, strides = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    reach = dilation * (kernel_size - 1)
    padding = draw(st.tuples(st.integers(0, reach + beyond), st.integers(0, reach + beyond)))
    missing = max(reach + 1 - sum(padding), 1)
    shortest = -(-(missing - 1) // strides) + 1 if stuffed else missing
    return Conv(
        length=shortest + draw(st.integers(0, 6)),
        channels=groups * draw(st.integers(1, 3)),
        filters=groups * draw(st.integers(1, 3)),
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_value=draw(st.sampled_from((0.0, 0.0, 0.75))),
        batch=draw(st.integers(1, 2)),
    )


class Pool(NamedTuple):
    """A 1-D pooling and the length of its input."""

    length: int
    window: int
    strides: int
    padding: tuple[int, int]


@st.composite
def poolings(draw, *, below_window=False):
    """Any `Pool` that gives an output."""
    window, strides = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    most = window - 1 if below_window else window + 1
    padding = draw(st.tuples(st.integers(0, most), st.integers(0, most)))
    return Pool(max(window - sum(padding), 1) + draw(st.integers(0, 7)), window, strides, padding)


class Form(NamedTuple):
    """A trilinear form and the sizes that its geometry leaves open."""

    geometry: Geometry
    members: int
    batch: int
    channels: int
    """Of a group."""
    filters: int
    """Of a group."""

    @property
    def shapes(self):
        geometry = self.geometry
        return {
            "x": (self.members, self.batch, *geometry.lengths, self.channels * geometry.groups),
            "w": (self.members, *geometry.size, self.channels, self.filters * geometry.groups),
            "y": (self.members, self.batch, *geometry.outputs, self.filters * geometry.groups),
        }


@st.composite
def forms(draw, *, strides=4, dilation=3, groups=4, members=2, kernel_size=6, ndim=2, bare=False):
    """Any `Form` up to these hyperparameters, crops among its paddings; ``bare`` for nothing to pad or crop.

    Some of x is always inside, and there is always an output: the length is what the other numbers ask for.
    """
    axes = []
    for _ in range(n := draw(st.integers(1, ndim))):
        k = draw(st.integers(1, kernel_size if n == 1 else min(kernel_size, 3)))
        s, d = draw(st.integers(1, strides)), draw(st.integers(1, dilation))
        before, after = (0, 0) if bare else draw(st.tuples(st.integers(-3, 4), st.integers(-3, 4)))
        window = d * (k - 1) + 1
        least = 1 + max(0, -before) + max(0, -after)
        outputs = 1 + max(0, -(-(least + before + after - window) // s)) + draw(st.integers(0, 3))
        axes.append((s * (outputs - 1) + window - before - after, k, outputs, s, d, before))
    geometry = Geometry(*zip(*axes, strict=True), groups=draw(st.integers(1, groups)))
    return Form(geometry, *(draw(st.integers(1, most)) for most in (members, 2, 3, 3)))


class PoolND(NamedTuple):
    """A pooling over several dimensions and the lengths of its input."""

    lengths: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def keywords(self):
        return {"strides": self.strides, "padding": self.padding}


@st.composite
def poolings_nd(draw, *, below_window=False, most_dimensions=2):
    """Any `PoolND` that gives an output."""
    axes = draw(st.lists(poolings(below_window=below_window), min_size=1, max_size=most_dimensions))
    return PoolND(*zip(*axes, strict=True))

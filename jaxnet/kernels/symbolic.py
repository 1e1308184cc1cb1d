"""Lengths that are symbolic dimensions of `jax.export`: one program for many sizes, so nothing is chosen by a size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet._symbolic import is_symbolic
from jaxnet.kernels.forms import dimension_numbers, into_channels, out_of_channels
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.rewrites import transposed_kernel
from jaxnet.kernels.slots import Slot, shape_of


def is_of_many_sizes(a: jax.Array, b: jax.Array, geometry: Geometry) -> bool:
    """Whether a length, a padding or the number of members is symbolic; a batch may be, which no form minds."""
    numbers = (geometry.lengths, geometry.outputs, geometry.before, (a.shape[0], b.shape[0]))
    return any(is_symbolic(n) for each in numbers for n in each)


def solve(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """A general convolution for y, one of the stuffed y for x, and for w a matrix product a tap, in a loop."""
    n, groups = geometry.ndim, geometry.groups
    if slot == "w":
        return _kernel(a, b, geometry)
    whole = all(isinstance(p, (int, np.integer)) for pair in geometry.padding for p in pair)
    padding = geometry.padding if whole else ((0, 0),) * n
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.size, strict=True)]
    if slot == "y":
        strides, stuffing = geometry.strides, (1,) * n
        if not whole:
            for axis, (r, s, j, p) in enumerate(
                zip(reach, geometry.strides, geometry.outputs, geometry.before, strict=True), 2
            ):
                a = cut(a, axis, -p, s * (j - 1) + r + 1)
    else:
        b = transposed_kernel(jnp.flip(b, range(1, n + 1)), groups)
        strides, stuffing = (1,) * n, geometry.strides
        padding = [(r - before, r - after) for r, (before, after) in zip(reach, padding, strict=True)]
    members = a.shape[0]
    out = lax.conv_general_dilated(
        into_channels(a),
        into_channels(b),
        strides,
        padding,
        lhs_dilation=stuffing,
        rhs_dilation=geometry.dilation,
        dimension_numbers=dimension_numbers(n),
        feature_group_count=members * groups,
    )
    out = out_of_channels(out, members)
    if slot == "x" and not whole:
        for axis, (p, length) in enumerate(zip(geometry.before, geometry.lengths, strict=True), 2):
            out = cut(out, axis, p, length)
    return out


def _kernel(x: jax.Array, y: jax.Array, geometry: Geometry) -> jax.Array:
    shape, groups = shape_of("w", x.shape, y.shape, geometry), geometry.groups

    def of_tap(tap):
        met = x
        for axis, (k, d, s, j, p) in enumerate(
            zip(tap, geometry.dilation, geometry.strides, geometry.outputs, geometry.before, strict=True), 2
        ):
            met = cut(met, axis, k * d - jnp.asarray(p, jnp.int32), j, stride=s)
        parts = (v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups) for v in (met, y))
        return jnp.einsum("n...gc,n...go->ncgo", *parts).reshape(shape[0], *shape[-2:])

    taps = jnp.asarray(list(np.ndindex(*geometry.size)), jnp.int32)
    return jnp.moveaxis(lax.map(of_tap, taps), 0, 1).reshape(shape)


def pad(x: jax.Array, border: Sequence[tuple[int, int]], value: float) -> jax.Array:
    """Fills a border around the spatial axes of ``(batch, *lengths, channels)``, of symbolic widths too."""
    for axis, (before, after) in enumerate(border, 1):
        x = cut(x, axis, -before, x.shape[axis] + before + after, value=value)
    return x


def cut(x: jax.Array, axis: int, start, length, *, stride: int = 1, value: float = 0.0) -> jax.Array:
    """x[start + S j] for j below ``length`` along an axis, and ``value`` outside of x; all of it may be symbolic."""
    at = jnp.arange(length, dtype=jnp.int32) * jnp.int32(stride) + jnp.asarray(start, jnp.int32)
    beyond = jnp.asarray(x.shape[axis], jnp.int32)
    at = jnp.where((at < 0) | (at > beyond), beyond, at)
    border = [(0, int(i == axis), 0) for i in range(x.ndim)]
    return jnp.take(lax.pad(x, jnp.asarray(value, x.dtype), border), at, axis=axis, mode="clip")

"""How pooling is computed: the vendor's `reduce_window`, or where that is slow what is faster, an axis at a time.

On a CPU the value of `reduce_window` is fast and its derivative is not: a select-and-scatter for the maximum, a
base-dilated `reduce_window` for the sum. Here each axis is pooled by a function whose value is computed one way and
whose tangent another, so chosen that the tangent's *transpose*, the backward pass, is a few elementwise passes.

The axis is cut into blocks of S, so that window j is the blocks j to j + q - 1, q = ceil(K / S), without the end of
the last one. For the maximum, the place k in 0..K-1 of each window's first maximum is found first; then the tangent
is the sum of what is at that place, and the backward pass compares places and adds.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet._dtypes import wide
from jaxnet._symbolic import is_symbolic
from jaxnet.kernels.forms import once

Kind = Literal["avg", "max"]


class Stops(NamedTuple):
    """Where the windows along one axis lie: x[S j + k - before] for k below K."""

    axis: int
    size: int
    stride: int
    padding: tuple[int, int]

    @property
    def blocks(self) -> int:
        """In how many blocks of S a window lies, q = ceil(K / S)."""
        return -(-self.size // self.stride)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Of each block in a window: the k that it starts with, and how many of its S places are in the window."""
        return [(k, min(self.stride, self.size - k)) for k in range(0, self.size, self.stride)]

    def outputs(self, length: int) -> int:
        """How many windows there are, n."""
        return (length + sum(self.padding) - self.size) // self.stride + 1


class Forms(NamedTuple):
    """How one axis is pooled.

    Attributes:
      value: "window" is `reduce_window`; "slices" combines K strided slices.
      tangent: "window" is `reduce_window`'s own; "gathered" adds q slices of block sums, whose transposes are q pads;
        "shifted" adds q padded block sums, whose transposes are q slices.
    """

    value: Literal["window", "slices"]
    tangent: Literal["window", "gathered", "shifted"]


def cpu_forms(kind: Kind, stops: Stops, width: int) -> Forms:
    """Chooses by shape alone; ``width`` numbers lie side by side after the axis.

    The comments give `reduce_window`'s time over a form's, float32 on two cores, shapes (batch, *lengths, channels).
    """
    # Value: slices of windows that do not overlap 1.5 (16x2048x64, K4 S4), 5 (8x8192x1, K4 S4, sum), 1.8 (16x64x64x64,
    # K2 S2); of windows that do 0.3 (64x512x64, K3 S2 P1; 16x2048x16, K3 S1 P1). They are unrolled: 32 at most.
    apart = stops.stride >= stops.size and stops.padding == (0, 0)
    # Of 16 numbers side by side, the maxima of 3 or 4 are not vectorized: 0.85 and 0.75 (8x8192x16).
    scalar = kind == "max" and width == 16 and stops.size in (3, 4)
    value = "slices" if apart and stops.size <= 32 and not scalar else "window"
    # What follows unrolls the blocks. 128 of them (8x4096x16, K128 S1) still give 1.4 (max) and 3.5 (avg), value and
    # gradient together as everywhere below, but take 1.6 s to compile.
    if stops.blocks > 128:
        return Forms("window", "window")
    if kind == "max":
        # Shifted: 15 (16x2048x64, K4 S4), 8 (64x512x64, K3 S2 P1), 10 (8x8192x16, K32 S1), 2 (8x8192x1, K4 S4). Its
        # least is one channel with overlap, 1.3 alone and 0.7 to 0.9 in a scan (8x8192x1, K4 S2 P1).
        # Gathered: 0.2 (16x512x64, K8 S1).
        return Forms(value, "shifted")
    if stops.stride == 1 and stops.size < 16:
        # The transpose of a sum of stride 1 is another. Shifted: 0.85 (8x4096x16, K5), 0.75 (16x2048x16, K8);
        # gathered: 1.05 and 0.9, in a scan 0.75 and 0.4.
        return Forms("window", "window")
    # Gathered: 1.1 to 1.6 (64x512x64, K3 S2 P1), 0.5 (8x8192x16, K32 S1), 0.75 (8x8192x1, K16 S1).
    # Shifted: 1.0, 1.6, 1.7.
    return Forms(value, "gathered" if stops.blocks <= 5 else "shifted")


@partial(jax.jit, static_argnames=("kind", "windows"))
def pool(x: jax.Array, kind: Kind, windows: tuple[Stops, ...]) -> jax.Array:
    """Pools the axes of ``windows``; which form it is is settled when the program is lowered for its platform."""

    if any(map(is_symbolic, x.shape[1:-1])):
        return plain(kind, x, windows)

    def per_platform(x):
        cpu, default = (partial(form, kind, windows=windows) for form in (separable, plain))
        # The gradient on an H200: a maximum 1.1 to 1.7 times as fast as select-and-scatter, a mean from 0.7 to 1.4.
        faster = ("cpu", "cuda") if kind == "max" else ("cpu",)
        return lax.platform_dependent(x, default=default, **dict.fromkeys(faster, cpu))

    # The maximum keeps x alone for its backward pass, as reduce_window does: without this it would be a mask for every
    # block, and zeros in place of what the other platforms keep.
    return jax.checkpoint(per_platform, prevent_cse=False)(x) if kind == "max" else per_platform(x)


def plain(kind: Kind, x: jax.Array, windows: Sequence[Stops]) -> jax.Array:
    """Pools all axes in one `reduce_window`."""
    y = _reduce_window(kind, wide(x), windows)  # a sum rounded once, not at every term: a mean, or a gradient
    return (y * _share(windows, y.dtype) if kind == "avg" else y).astype(x.dtype)


def separable(
    kind: Kind, x: jax.Array, windows: Sequence[Stops], forms: Callable[[Kind, Stops, int], Forms] = cpu_forms
) -> jax.Array:
    """Pools one axis after the other.

    The last axis comes first: the first maximum of each row, then the first row that has the maximum, is the first
    in row-major order.
    """
    y = wide(x)
    for stops in sorted(windows, reverse=True):
        if stops[1:] != (1, 1, (0, 0)):
            y = _pool_axis(y, kind, stops, forms(kind, stops, math.prod(y.shape[stops.axis + 1 :])))
    return (y * _share(windows, y.dtype) if kind == "avg" else y).astype(x.dtype)


def _pool_axis(x: jax.Array, kind: Kind, stops: Stops, forms: Forms) -> jax.Array:
    if forms.tangent == "window":
        return _reduce_window(kind, x, [stops])
    return _with_tangent(x, kind, stops, forms)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _with_tangent(x: jax.Array, kind: Kind, stops: Stops, forms: Forms) -> jax.Array:
    return _slices(kind, x, stops) if forms.value == "slices" else _reduce_window(kind, x, [stops])


@_with_tangent.defjvp
def _(kind, stops, forms, primals, tangents):
    (x,), (dx,) = primals, tangents
    y = _with_tangent(x, kind, stops, forms)
    place = _first_maximum(x, y, stops) if kind == "max" else None
    return y, _gathered(dx, stops) if forms.tangent == "gathered" else _shifted(dx, stops, place)


def _reduce_window(kind: Kind, x: jax.Array, windows: Sequence[Stops]) -> jax.Array:
    sizes, strides, padding = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
    for stops in windows:
        sizes[stops.axis], strides[stops.axis], padding[stops.axis] = stops[1:]
    start, combine = (0.0, lax.add) if kind == "avg" else (-np.inf, lax.max)
    return lax.reduce_window(x, np.asarray(start, x.dtype), combine, sizes, strides, padding)


def _slices(kind: Kind, x: jax.Array, stops: Stops) -> jax.Array:
    axis, size, stride, padding = stops
    x = _pad(x, axis, *padding, 0.0 if kind == "avg" else -np.inf)
    reach = stride * (stops.outputs(x.shape[axis] - sum(padding)) - 1) + 1
    parts = (lax.slice_in_dim(x, k, k + reach, stride, axis) for k in range(size))
    if kind == "avg":
        return once(reduce(lax.add, parts))  # 1.4 times where a reduction reads it (8x8192x16, K4 S4, in a scan)
    return reduce(lax.max, parts)


def _first_maximum(x: jax.Array, y: jax.Array, stops: Stops) -> jax.Array:
    """Returns the k of each window's first maximum inside x, or of its first NaN."""
    axis, size, stride, (before, _) = stops
    found = jnp.full(y.shape, size - 1, jnp.int32)
    y = jnp.expand_dims(y, axis + 1)
    n = found.shape[axis]
    blocks = _blocks(x, stops, -np.inf)
    for i, (first, width) in enumerate(stops.parts):
        part = lax.slice_in_dim(lax.slice_in_dim(blocks, i, i + n, axis=axis), 0, width, axis=axis + 1)
        hit = (part == y) | (part != part)
        k = lax.broadcasted_iota(jnp.int32, part.shape, axis + 1) + jnp.int32(first)
        found = lax.min(found, jnp.where(hit, k, jnp.int32(size - 1)).min(axis + 1))
    if not before:
        return found
    # Where all is minus infinity, the border is too, but the maximum is inside.
    inside = lax.broadcasted_iota(jnp.int32, found.shape, axis) * jnp.int32(-stride) + jnp.int32(before)
    return lax.max(found, inside)


def _gathered(dx: jax.Array, stops: Stops) -> jax.Array:
    """Sums over the windows: dy[j] = sum over i of the block sums at j + i."""
    axis = stops.axis
    n = stops.outputs(dx.shape[axis])
    blocks = _blocks(dx, stops, 0.0)
    parts = []
    for i, (_, width) in enumerate(stops.parts):
        part = lax.slice_in_dim(lax.slice_in_dim(blocks, i, i + n, axis=axis), 0, width, axis=axis + 1)
        parts.append(part.sum(axis + 1))
    return reduce(lax.add, parts)


def _shifted(dx: jax.Array, stops: Stops, place: jax.Array | None) -> jax.Array:
    """Sums over the windows, or picks each window's ``place``: block m adds to the windows m - i, moved there."""
    axis, last = stops.axis, stops.blocks - 1
    n = stops.outputs(dx.shape[axis])
    blocks = _blocks(dx, stops, 0.0)
    if place is not None:
        place = jnp.expand_dims(_pad(place, axis, last, last, -1), axis + 1)
    parts = []
    for i, (first, width) in enumerate(stops.parts):
        part = lax.slice_in_dim(blocks, 0, width, axis=axis + 1)
        if place is not None:
            k = lax.broadcasted_iota(jnp.int32, part.shape, axis + 1) + jnp.int32(first)
            here = lax.slice_in_dim(place, last - i, last - i + n + last, axis=axis) == k
            part = jnp.where(here, part, jnp.zeros((), part.dtype))
        parts.append(_pad(part.sum(axis + 1), axis, last - i, i, 0.0))
    return lax.slice_in_dim(reduce(lax.add, parts), last, last + n, axis=axis)


def _blocks(x: jax.Array, stops: Stops, border: float) -> jax.Array:
    """Cuts the axis into the n + q - 1 blocks of S that windows reach, as two axes."""
    axis, stride = stops.axis, stops.stride
    count = stops.outputs(x.shape[axis]) + stops.blocks - 1
    before = min(stops.padding[0], count * stride)
    reached = min(count * stride - before, x.shape[axis])
    x = _pad(lax.slice_in_dim(x, 0, reached, axis=axis), axis, before, count * stride - before - reached, border)
    return x.reshape(*x.shape[:axis], count, stride, *x.shape[axis + 1 :])


def _pad(x: jax.Array, axis: int, before: int, after: int, value: float) -> jax.Array:
    if before == after == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, np.asarray(value, x.dtype), config)


def _share(windows: Sequence[Stops], dtype: np.dtype) -> jax.Array:
    return jnp.asarray(1.0 / math.prod(stops.size for stops in windows), dtype)

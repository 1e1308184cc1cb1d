"""Ways to solve the trilinear form: the plain one, and those that XLA compiles well where it does not do so with that.

Each takes a slot, its two operands and the geometry. Arrays are those of `trilinear`.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.rewrites import pad, windows
from jaxnet.kernels.slots import Slot, shape_of


def plain(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """One general convolution, or its transpose as JAX writes it: what every JAX library runs. Members are groups."""
    members = a.shape[0]

    def convolve(x, w):
        y = lax.conv_general_dilated(
            into_channels(x),
            into_channels(w),
            window_strides=geometry.strides,
            padding=_symmetric(geometry),
            rhs_dilation=geometry.dilation,
            dimension_numbers=dimension_numbers(geometry.ndim),
            feature_group_count=members * geometry.groups,
        )
        return out_of_channels(y, members)

    if slot == "y":
        return convolve(a, b)
    like = jax.ShapeDtypeStruct(shape_of(slot, a.shape, b.shape, geometry), a.dtype)
    if slot == "x":
        return jax.linear_transpose(lambda x: convolve(x, b), like)(a)[0]
    return jax.linear_transpose(lambda w: convolve(a, w), like)(b)[0]


def _symmetric(geometry: Geometry) -> list[tuple[int, int]]:
    """As much padding after x as before it, where that adds no output: what a vendor's convolution takes as it is."""
    return [
        (before, max(after, min(before, after + s - 1)))
        for (before, after), s in zip(geometry.padding, geometry.strides, strict=True)
    ]


def into_channels(array: jax.Array) -> jax.Array:
    """Lays the members side by side as channels."""
    members, *shape, channels = array.shape
    if members == 1:
        return array.reshape(*shape, channels)
    return jnp.moveaxis(array, 0, -2).reshape(*shape, members * channels)


def out_of_channels(array: jax.Array, members: int) -> jax.Array:
    """Undoes `into_channels`."""
    return jnp.moveaxis(array.reshape(*array.shape[:-1], members, array.shape[-1] // members), -2, 0)


def dense(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """One convolution in canonical layout, for the slots y and w; one member, one group.

    The kernel's gradient is itself a convolution, of x as (C, *L, B) with y as (*J, B, O), strides and dilation
    exchanged. Left to JAX's transpose rule the same sum carries permuted dimension numbers, which XLA makes canonical
    outside of loops and not inside.
    """
    a, b = a[0], b[0]
    spatial = range(1, geometry.ndim + 1)
    # Cropped here: jax 0.10.2's CPU convolution reads beyond an input that it is to crop before and to pad after. To
    # crop after it is left to the convolution, which does not copy for that.
    for axis, before in zip(spatial, geometry.before, strict=True):
        a = lax.slice_in_dim(a, max(0, -before), None, axis=axis)
    border = [(max(0, before), after) for before, after in geometry.padding]
    if slot == "y":
        strides, dilation = geometry.strides, geometry.dilation
    else:
        a, b = a.transpose(geometry.ndim + 1, *spatial, 0), b.transpose(*spatial, 0, geometry.ndim + 1)
        strides, dilation = geometry.dilation, geometry.strides
    out = lax.conv_general_dilated(
        a,
        b,
        strides,
        border,
        rhs_dilation=dilation,
        dimension_numbers=dimension_numbers(geometry.ndim),
    )
    return (out if slot == "y" else jnp.moveaxis(out, 0, -2))[None]


def dot(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry, *, pieces: int = 1, dtype: Any = None) -> jax.Array:
    """A matrix product a member, for a window of one tap, stride 1 and nothing to pad; one group.

    For the slot w the rows can be summed in ``pieces``, which must divide them: that many products, then their sum.
    ``dtype`` is that of the result, if it is to be wider than the operands'.
    """
    shape = shape_of(slot, a.shape, b.shape, geometry)
    a = a.reshape(a.shape[0], -1, a.shape[-1])
    b = b.reshape(b.shape[0], -1, b.shape[-1])
    if pieces > 1:
        members = a.shape[0] * pieces
        a, b = (array.reshape(members, -1, array.shape[-1]) for array in (a, b))
        return jnp.einsum("nmc,nmo->nco", a, b).reshape(shape[0], pieces, *shape[1:]).sum(1)
    equation = {"y": "nmc,nco->nmo", "x": "nmo,nco->nmc", "w": "nmc,nmo->nco"}[slot]
    if shape[0] == 1:  # XLA's product without a batch is the faster one
        equation, a, b = equation.replace("n", ""), a[0], b[0]
    return jnp.einsum(equation, a, b, preferred_element_type=dtype).reshape(shape)


def shifted(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """A sum of shifted products without any matrix product, for the slots y and w; one member."""
    parts = [part[0] for part in windows(a, geometry)]
    return _products(slot, parts, b, geometry) if slot == "w" else once(_products(slot, parts, b, geometry))


def _products(slot: Slot, parts: list[jax.Array], b: jax.Array, geometry: Geometry) -> jax.Array:
    """What each tap meets, ``(B, *J, C)`` a tap, times the kernel's tap, or times y."""
    groups, taps = geometry.groups, math.prod(geometry.size)
    channels, filters = parts[0].shape[-1] // groups, b.shape[-1] // groups

    def by_group(array, size, axis):  # (B, *J, g * size) -> (B, J, g, size, 1) or (B, J, g, 1, size)
        # One spatial axis at most: jax 0.10.2 miscompiles sums of products that have seven axes.
        return jnp.expand_dims(array.reshape(array.shape[0], -1, groups, size), axis)

    if slot == "y":
        # (1, *K, C / g, O) -> (K, C / g, 1, 1, g, O / g)
        w = b.reshape(taps, channels, 1, 1, groups, filters)
        terms = (
            by_group(part, channels, -1)[..., c, :] * w[k, c] for k, part in enumerate(parts) for c in range(channels)
        )
        total = functools.reduce(operator.add, terms)
        return total.reshape(1, total.shape[0], *geometry.outputs, groups * filters)
    y = by_group(b[0], filters, -2)
    products = [(by_group(part, channels, -1) * y).reshape(-1, groups * channels * filters) for part in parts]
    # -> (K, g, C / g, O / g) -> (1, *K, C / g, O)
    sums = jnp.stack(_sums(products)).reshape(taps, groups, channels, filters).swapaxes(1, 2)
    return sums.reshape(1, *geometry.size, channels, groups * filters)


def rolled(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """As `shifted`, with a loop over the kernel's rows, compiled once for all; two dimensions, nothing to pad."""
    (rows, columns), (down, right), (below, beside) = geometry.size, geometry.strides, geometry.dilation
    reach = [stride * (n - 1) + 1 for stride, n in zip(geometry.strides, geometry.outputs, strict=True)]
    row = geometry._replace(size=(1, columns))

    def parts(k):  # sliced from the whole a tap, so that XLA need not copy a row's inputs first
        at = [(k * below, jnp.int32(tap * beside)) for tap in range(columns)]
        zero = jnp.int32(0)
        met = [lax.dynamic_slice(a[0], (zero, *i, zero), (a.shape[1], *reach, a.shape[-1])) for i in at]
        return [part[:, ::down, ::right] for part in met]

    if slot == "w":
        sums = lax.map(lambda k: _products(slot, parts(k), b, row)[:, 0], jnp.arange(rows, dtype=jnp.int32))
        return sums.swapaxes(0, 1)

    def add(k, total):
        return total + _products(slot, parts(k), lax.dynamic_slice_in_dim(b, k, 1, axis=1), row)

    total = jnp.zeros(shape_of(slot, a.shape, b.shape, geometry), a.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(rows), add, total)


def in_pieces(a: jax.Array, b: jax.Array, geometry: Geometry, count: int, inner: Callable) -> jax.Array:
    """Sums the slot w over pieces of ``count`` outputs along the first axis, which it must divide, in a loop."""
    _, size, outputs, stride, dilation, *_ = (n[0] for n in geometry[:-1])
    a = pad(a, [geometry.padding[0], *[(0, 0)] * (geometry.ndim - 1)])
    piece = geometry._replace(
        lengths=(stride * (count - 1) + dilation * (size - 1) + 1, *geometry.lengths[1:]),
        outputs=(count, *geometry.outputs[1:]),
        before=(0, *geometry.before[1:]),
    )

    def add(i, total):
        x = lax.dynamic_slice_in_dim(a, i * (stride * count), piece.lengths[0], axis=2)
        return total + inner("w", x, lax.dynamic_slice_in_dim(b, i * count, count, axis=2), piece)

    total = jnp.zeros(shape_of("w", a.shape, b.shape, geometry), a.dtype)
    return lax.fori_loop(jnp.int32(0), jnp.int32(outputs // count), add, total)


def by_phases(a: jax.Array, b: jax.Array, geometry: Geometry, inner: Callable) -> jax.Array:
    """Solves the slot x of strides S as one form of stride 1 for each of its phases; one group, without dilation.

    x[i] sums y[j] w[k] over S j + k = i + P. Of i = S u + q all taps are k = S m + r, with r = (q + P) mod S, and what
    is left, j + m = u + (q + P - r) / S, is a form of fewer taps. `rewrites.polyphase` makes of all phases one form of
    more channels, whose kernels it fills up to the longest. Where K < S some phases have no tap, and ``inner`` must
    give zeros.
    """
    counts = [-(-n // s) for n, s in zip(geometry.lengths, geometry.strides, strict=True)]
    one = (1,) * geometry.ndim
    parts = []
    for phase in itertools.product(*map(range, geometry.strides)):
        numbers = list(zip(phase, *geometry[:3], geometry.strides, geometry.before, strict=True))
        first = [(q + p) % s for q, _, _, _, s, p in numbers]
        lengths = tuple(len(range(q, n, s)) for q, n, _, _, s, _ in numbers)
        w = b[:, *(slice(r, None, s) for r, s in zip(first, geometry.strides, strict=True))]
        before = tuple((q + p - r) // s for r, (q, _, _, _, s, p) in zip(first, numbers, strict=True))
        part = inner("x", a, w, Geometry(lengths, w.shape[1:-2], geometry.outputs, one, one, before, 1))
        parts.append(pad(part, [(0, most - n) for most, n in zip(counts, lengths, strict=True)]))
    # (r, r', ..., N, B, q, q', ..., C) -> (N, B, q, r, q', r', ..., C)
    n = geometry.ndim
    x = jnp.stack(parts).reshape(*geometry.strides, *parts[0].shape)
    x = x.transpose(n, n + 1, *(axis for i in range(n) for axis in (n + 2 + i, i)), 2 * n + 2)
    x = x.reshape(*x.shape[:2], *(s * most for s, most in zip(geometry.strides, counts, strict=True)), x.shape[-1])
    return x[:, :, *(slice(n) for n in geometry.lengths)]


def once(array: jax.Array) -> jax.Array:
    """The same array, which what reads it must not compute again.

    XLA would do so in every reader, against which there is the barrier. Into a reduction it would pull products and
    sums even past that, to run them on one core, each shifted array copied first; a rounding to the precision that the
    array has anyway is not pulled. Means of a depthwise 4x56x56, 64, 3 x 3: 45 ms without, 0.8 with it.
    """
    kind = jnp.finfo(array.dtype)
    return lax.optimization_barrier(lax.reduce_precision(array, kind.nexp, kind.nmant))


def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """Sums each ``(rows, columns)`` over its rows, several arrays in one pass over what they are computed from.

    XLA sums many rows on one core, and copies slices first. So short runs are summed first, with enough results to
    share among cores, as one reduction of several operands, which it fuses with what makes them. A reduction of one
    operand it does not fuse, so 9 arrays are 5 and 4: the three slots of a 4x56x56, 64, 3 x 3 take 2.3 ms then, and
    4.8 with 8 and 1.
    """
    rows, columns = arrays[0].shape
    run = next((n for n in range(16, 1, -1) if rows % n == 0), 1)
    totals = []
    most = -(-len(arrays) // -(-len(arrays) // 8))
    for i in range(0, len(arrays), most):
        operands = [array.reshape(rows // run, run, columns) for array in arrays[i : i + most]]
        zeros = [jnp.zeros((), array.dtype) for array in operands]
        totals += lax.reduce(operands, zeros, lambda x, y: [u + v for u, v in zip(x, y, strict=True)], (1,))
    return [total.sum(0) for total in totals]


def dimension_numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """Channels last; a kernel ``(*K, C / g, O)``."""
    channels_last = (0, ndim + 1, *range(1, ndim + 1))
    return lax.ConvDimensionNumbers(channels_last, (ndim + 1, ndim, *range(ndim)), channels_last)

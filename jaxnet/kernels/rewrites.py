"""Identities of the trilinear form, T(x, w, y) = T'(A x, B w, C y), with which a slow case becomes a fast one.

A, B and C only move, copy or zero-fill elements. One such identity serves all three slots, because the gradient of the
left side by a slot is the gradient of the right side, carried back by the transpose of that slot's map:

    conv  = C^T conv'(A x, B w),    conv_input = A^T conv_input'(C y, B w),    conv_kernel = B^T conv_kernel'(A x, C y).

Arrays are those of `trilinear`: x ``(N, B, *L, C)``, w ``(N, *K, C / g, O)``, y ``(N, B, *J, O)``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import OPERANDS, Slot, shape_of

Map = Callable[[jax.Array], jax.Array]


def _same(array: jax.Array) -> jax.Array:
    return array


class Rewrite(NamedTuple):
    """The geometry of T', and the linear maps that take the arrays of T to those of T'.

    Where ``exchanged``, x takes the place of y in T', and y that of x.
    """

    geometry: Geometry
    x: Map = _same
    w: Map = _same
    y: Map = _same
    exchanged: bool = False


def solve(
    rewrite: Rewrite,
    slot: Slot,
    a: jax.Array,
    b: jax.Array,
    geometry: Geometry,
    inner: Callable[[Slot, jax.Array, jax.Array, Geometry], jax.Array],
) -> jax.Array:
    """Solves the form for a slot through an identity; ``inner`` solves what it becomes."""
    values = {name: getattr(rewrite, name)(v) for name, v in zip(OPERANDS[slot], (a, b), strict=True)}
    there: dict[Slot, Slot] = {"x": "y", "w": "w", "y": "x"} if rewrite.exchanged else {"x": "x", "w": "w", "y": "y"}
    first, second = (values[there[name]] for name in OPERANDS[there[slot]])
    result = inner(there[slot], first, second, rewrite.geometry)
    back = getattr(rewrite, slot)
    if back is _same:
        return result
    like = jax.ShapeDtypeStruct(shape_of(slot, a.shape, b.shape, geometry), result.dtype)
    return jax.linear_transpose(back, like)(result)[0]


def padded(geometry: Geometry) -> Rewrite:
    """Fills the border with zeros and crops what no window reaches, so that nothing is left to pad.

    The padded array is kept from being fused into what reads it, which would test every element once a tap.
    """
    lengths = tuple(n + sum(pair) for n, pair in zip(geometry.lengths, geometry.padding, strict=True))
    inside = geometry._replace(lengths=lengths, before=(0,) * geometry.ndim)
    return Rewrite(inside, x=lambda x: lax.optimization_barrier(pad(x, geometry.padding)))


def mirrored(geometry: Geometry) -> Rewrite:
    """The adjoint of a convolution of stride 1 as a convolution: taps reversed, channels and filters exchanged.

    With i = j + d k - P and k' = K - 1 - k, j is i + d k' - (d (K - 1) - P).
    """
    groups = geometry.groups
    before = tuple(d * (k - 1) - p for d, k, p in zip(geometry.dilation, geometry.size, geometry.before, strict=True))
    inside = geometry._replace(lengths=geometry.outputs, outputs=geometry.lengths, before=before)

    def of_kernel(w):
        return jnp.flip(transposed_kernel(w, groups), range(1, geometry.ndim + 1))

    return Rewrite(inside, w=of_kernel, exchanged=True)


def transposed_kernel(w: jax.Array, groups: int) -> jax.Array:
    """Exchanges the channels and the filters of each group."""
    *front, channels, filters = w.shape
    w = w.reshape(*front, channels, groups, filters // groups)
    return w.swapaxes(-1, -3).reshape(*front, filters // groups, groups * channels)


def stuffed_kernel(geometry: Geometry) -> Rewrite:
    """Dilation as zeros between the taps."""
    size = tuple(d * (k - 1) + 1 for k, d in zip(geometry.size, geometry.dilation, strict=True))
    inside = geometry._replace(size=size, dilation=(1,) * geometry.ndim)
    between = [(0, 0, d - 1) for d in geometry.dilation]
    return Rewrite(inside, w=lambda w: lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0), *between, (0, 0, 0), (0, 0, 0)]))


def phases_apart(geometry: Geometry) -> Rewrite:
    """Dilation d as d times the batch: x and y are cut into phases, which never meet another (stride must be 1).

    With j = d q + r, the window x[j + d k - P] is x[d (q + k) + r - P]: of the phase r, at distance k from q.
    """
    dilation, size = geometry.dilation, geometry.size
    outputs = tuple(-(-j // d) for j, d in zip(geometry.outputs, dilation, strict=True))
    lengths = tuple(q + k - 1 for q, k in zip(outputs, size, strict=True))
    one = (1,) * geometry.ndim
    inside = Geometry(lengths, size, outputs, one, one, (0,) * geometry.ndim, geometry.groups)

    def cut(array, before, counts):
        lengths = array.shape[2:-1]
        border = [(p, d * q - n - p) for p, d, q, n in zip(before, dilation, counts, lengths, strict=True)]
        members, batch, *_, channels = array.shape
        array = pad(array, border).reshape(members, batch, *_interleave(counts, dilation), channels)
        # (N, B, q, r, q', r', ..., C) -> (N, B, r, r', ..., q, q', ..., C)
        n = geometry.ndim
        order = (0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2), 2 + 2 * n)
        return array.transpose(order).reshape(members, batch * math.prod(dilation), *counts, channels)

    return Rewrite(
        inside,
        x=lambda x: cut(x, geometry.before, lengths),
        y=lambda y: cut(y, (0,) * geometry.ndim, outputs),
    )


def polyphase(geometry: Geometry, *, align: bool = False) -> Rewrite:
    """Strides S as stride 1 on S times the channels: space-to-depth of x and of the kernel (dilation must be 1).

    x[S (j + q) + r - P] w[S q + r] y[j]: the phase r joins the channels, q is the tap that is left. A P of whole
    strides is left to the convolution, so that x need not be copied. The kernel is filled with zeros to whole strides:
    at its end, or to ``align`` at its front, as far as that makes P whole.
    """
    strides, groups = geometry.strides, geometry.groups
    size = tuple(-(-k // s) for k, s in zip(geometry.size, strides, strict=True))
    spare = tuple(s * q - k for k, s, q in zip(geometry.size, strides, size, strict=True))
    front = tuple(
        -p % s if align and -p % s <= f else 0 for p, s, f in zip(geometry.before, strides, spare, strict=True)
    )
    fill = tuple((f, z - f) for f, z in zip(front, spare, strict=True))
    before = tuple(p + f for p, f in zip(geometry.before, front, strict=True))
    whole = tuple(p // s if p % s == 0 else 0 for p, s in zip(before, strides, strict=True))
    first = tuple(p - s * q for p, s, q in zip(before, strides, whole, strict=True))
    lengths = tuple(
        -(-n // s) if p % s == 0 else j - 1 + q
        for n, p, s, j, q in zip(geometry.lengths, before, strides, geometry.outputs, size, strict=True)
    )
    border = tuple((p, s * q - n - p) for p, s, q, n in zip(first, strides, lengths, geometry.lengths, strict=True))
    one = (1,) * geometry.ndim
    inside = Geometry(lengths, size, geometry.outputs, one, one, whole, groups)

    def of_input(x):
        x = pad(x, border)
        members, batch, *_, channels = x.shape
        x = x.reshape(members, batch, *_interleave(lengths, strides), groups, channels // groups)
        # (N, B, q, r, q', r', ..., g, C / g) -> (N, B, q, q', ..., g, r, r', ..., C / g)
        n = geometry.ndim
        order = (0, 1, *range(2, 2 + 2 * n, 2), 2 + 2 * n, *range(3, 2 + 2 * n, 2), 3 + 2 * n)
        return x.transpose(order).reshape(members, batch, *lengths, math.prod(strides) * channels)

    def of_kernel(w):
        w = pad(w, fill, axis=1)
        members, *_, channels, filters = w.shape
        w = w.reshape(members, *_interleave(size, strides), channels, filters)
        n = geometry.ndim
        order = (0, *range(1, 1 + 2 * n, 2), *range(2, 2 + 2 * n, 2), 1 + 2 * n, 2 + 2 * n)
        return w.transpose(order).reshape(members, *size, math.prod(strides) * channels, filters)

    return Rewrite(inside, x=of_input, w=of_kernel)


def folded(geometry: Geometry, count: int) -> Rewrite:
    """Every ``count`` outputs in a row as one with ``count`` times the filters: wider products, some more arithmetic.

    One spatial dimension without dilation, whose outputs ``count`` divides. The filters for the f-th of the outputs are
    the kernel moved by S f, between zeros: K + S (count - 1) taps in place of K, for ``count`` outputs at once.
    """
    (size,), (outputs,), (stride,), groups = geometry.size, geometry.outputs, geometry.strides, geometry.groups
    longer = size + stride * (count - 1)
    inside = geometry._replace(size=(longer,), outputs=(outputs // count,), strides=(stride * count,))

    def of_kernel(w):
        members, _, channels, filters = w.shape
        w = w.reshape(members, size, channels, groups, 1, filters // groups)
        none = [(0, 0, 0)] * 4
        moved = [
            lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0), (stride * f, longer - size - stride * f, 0), *none])
            for f in range(count)
        ]
        return jnp.concatenate(moved, axis=-2).reshape(members, longer, channels, count * filters)

    def of_output(y):
        members, batch, _, filters = y.shape
        y = y.reshape(members, batch, outputs // count, count, groups, filters // groups)
        return y.swapaxes(-2, -3).reshape(members, batch, outputs // count, count * filters)

    return Rewrite(inside, w=of_kernel, y=of_output)


def ungrouped(geometry: Geometry) -> Rewrite:
    """Groups as members: each group its own form."""
    groups = geometry.groups

    def split(array):
        members, *shape, channels = array.shape
        array = jnp.moveaxis(array.reshape(members, *shape, groups, channels // groups), -2, 1)
        return array.reshape(members * groups, *shape, channels // groups)

    return Rewrite(geometry._replace(groups=1), x=split, w=split, y=split)


def merged(geometry: Geometry, members: int) -> Rewrite:
    """Members as groups of one member: what `ungrouped` undoes."""

    def join(array):
        return jnp.moveaxis(array, 0, -2).reshape(1, *array.shape[1:-1], members * array.shape[-1])

    return Rewrite(geometry._replace(groups=members * geometry.groups), x=join, w=join, y=join)


def packed(geometry: Geometry, count: int) -> Rewrite:
    """Every ``count`` groups as one, with zeros where a filter must not see a channel.

    Fewer and wider products, with ``count`` times the arithmetic.
    """
    groups = geometry.groups // count

    def block_diagonal(w):
        *front, channels, filters = w.shape
        w = w.reshape(*front, channels, groups, count, filters // geometry.groups)
        # Moves alone: their transpose reads the diagonal, and what was computed off it is dropped.
        rows = []
        for i in range(count):
            apart = [(0, 0, 0)] * (w.ndim - 2) + [(i, count - 1 - i, 0), (0, 0, 0)]
            rows.append(lax.pad(w[..., i : i + 1, :], jnp.zeros((), w.dtype), apart))
        return jnp.concatenate(rows, axis=len(front)).reshape(*front, count * channels, filters)

    return Rewrite(geometry._replace(groups=groups), w=block_diagonal)


def patches(geometry: Geometry) -> Rewrite:
    """The inputs under a window side by side as channels, in place of the window (im2col); one group."""
    one, zero = (1,) * geometry.ndim, (0,) * geometry.ndim
    inside = Geometry(geometry.outputs, one, geometry.outputs, one, one, zero, 1)

    def of_input(x):
        return jnp.concatenate(windows(x, geometry), axis=-1)

    def of_kernel(w):
        members, *size, channels, filters = w.shape
        return w.reshape(members, *one, math.prod(size) * channels, filters)

    return Rewrite(inside, x=of_input, w=of_kernel)


def flattened(geometry: Geometry) -> Rewrite:
    """All axes as one, for a window of one tap, stride 1 and nothing to pad."""
    count, one = (math.prod(geometry.outputs),), (1,)

    def of_signal(array):
        return array.reshape(*array.shape[:2], *count, array.shape[-1])

    def of_kernel(w):
        return w.reshape(w.shape[0], *one, *w.shape[-2:])

    inside = Geometry(count, one, count, one, one, (0,), geometry.groups)
    return Rewrite(inside, x=of_signal, w=of_kernel, y=of_signal)


def rows(geometry: Geometry) -> Rewrite:
    """The inputs under a window along the first axis side by side as channels, and that axis as batch; one group.

    One dimension less: two dimensions become a convolution along the second.
    """
    numbers = geometry[:-1]
    first, rest = Geometry._make([*(n[:1] for n in numbers), 1]), Geometry._make([*(n[1:] for n in numbers), 1])

    def of_input(x):
        return of_output(jnp.concatenate(windows(x, first), axis=-1))

    def of_kernel(w):
        w = jnp.moveaxis(w, 1, -3)
        return w.reshape(*w.shape[:-3], w.shape[-3] * w.shape[-2], w.shape[-1])

    def of_output(y):
        return y.reshape(y.shape[0], y.shape[1] * y.shape[2], *y.shape[3:])

    return Rewrite(rest, x=of_input, w=of_kernel, y=of_output)


def windows(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """The inputs that each tap meets, ``(N, B, *J, C)`` a tap in the kernel's order, zeros outside of x."""
    parts = [x]
    for axis, (k, *numbers) in enumerate(
        zip(geometry.size, geometry.dilation, geometry.before, geometry.strides, geometry.outputs, strict=True)
    ):
        parts = [_window(part, axis + 2, tap, *numbers) for part in parts for tap in range(k)]
    return parts


def _window(x: jax.Array, axis: int, tap: int, dilation: int, before: int, stride: int, outputs: int) -> jax.Array:
    """x[S j + d k - P] for all j along one axis. Zeros are joined on: a pad would test every element (1.8 times)."""
    start, length = dilation * tap - before, x.shape[axis]
    first = min(max(0, -(start // stride)), outputs)  # the first j that is inside
    last = max(min(-(-(length - start) // stride), outputs), first)  # the first beyond
    inside = (
        lax.slice_in_dim(x, start + stride * first, start + stride * (last - 1) + 1, stride, axis)
        if last > first
        else None
    )
    zeros = [jnp.zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype) for n in (first, outputs - last)]
    pieces = [piece for piece in (zeros[0], inside, zeros[1]) if piece is not None and piece.shape[axis]]
    return jnp.concatenate(pieces, axis) if len(pieces) > 1 else pieces[0]


def pad(array: jax.Array, border: Sequence[tuple[int, int]], axis: int = 2) -> jax.Array:
    """Pads the spatial axes, which begin at ``axis``, with zeros; a negative width crops."""
    if not any(map(any, border)):
        return array
    widths = [(0, 0, 0)] * array.ndim
    widths[axis : axis + len(border)] = [(*pair, 0) for pair in border]
    return lax.pad(array, jnp.zeros((), array.dtype), widths)


def _interleave(first: Sequence[int], second: Sequence[int]) -> list[int]:
    return [n for pair in zip(first, second, strict=True) for n in pair]

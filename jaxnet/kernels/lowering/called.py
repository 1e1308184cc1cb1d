"""Which problems are calls of `onednn`, where there are any, and how the kernel's gradient becomes one.

The figures are times of the other forms of `cpu` over the call's, on an AMD EPYC with AVX-512 and its bfloat16 (Zen 4),
2 cores, jax 0.10.2. Kept to AVX2, it showed the same for one group: 1.0 in one dimension, 1.27 dilated, 1.2 for images.
Groups of 16 bits are never one call: some have no fast code behind it, and what takes its place
waits for itself for ever on jax 0.10.2 (a matrix product of several threads within one of them).
"""

import jax
import jax.numpy as jnp

from jaxnet.kernels import forms, rewrites
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.lowering import onednn
from jaxnet.kernels.lowering.table import MOST_GROUPS, MOST_MEMBERS, Problem, Rule, otherwise, table
from jaxnet.kernels.slots import Slot, shape_of

FAR = 4
"""Dilation from which on the kernel's gradient by one call, whose strides it becomes, is slower than by a tap each."""

MOST_WIDE_GROUPS = 4
"""Groups of 16 bits that are a call each, forward and for the gradient by the input."""

MOST_SIDE = 15
"""Taps along an axis of a convolution in groups that is one call."""


def _alone(p: Problem) -> bool:
    return p.members == 1 and p.groups == 1 and onednn.ready(p.a.dtype)


def _has_code(p: Problem, channels: int) -> bool:
    # Of one channel of 16 bits in three dimensions, oneDNN 3.7 and 3.12 read what nobody wrote: 4 of 1,700 that
    # were drawn, all of that kind. One channel and three dimensions, run the same code: neither is let in.
    return not p.narrow or (channels > 1 and p.geometry.ndim <= 2)


def is_convolution(p: Problem) -> bool:
    """Slot y: 1.0 to 2.9 times in float32 (few channels most), 2.0 to 5.2 in bfloat16.

    With one filter 0.2 to 1.0. In float32 with one channel, or one tap, it is level, and XLA fuses its own with what is
    around.
    """
    if p.slot != "y" or not _alone(p) or not _has_code(p, p.channels):
        return False
    if p.geometry.ndim > 2:  # which XLA lowers to scalar loops
        return True
    return p.filters > 1 and (p.narrow or not (p.pointwise or p.channels == 1))


def is_grouped(p: Problem) -> bool:
    """Slot y, and x if it becomes one: 1.3 to 2.9 times in float32.

    Depthwise ones, and nearly so, are none: some have no fast code in oneDNN, and what takes its place waits for itself
    too. One dimension would lose, 0.1 to 0.3; two would gain, 2 to 2.9. Of some 800 others that were drawn none had it.
    With AVX2 alone groups gain nothing.
    """
    if p.slot == "w" or p.members > 1 or p.groups == 1 or p.narrow or not onednn.multiplies(p.a.dtype):
        return False
    return p.channels * p.filters > 4 and p.geometry.ndim <= 2 and max(p.geometry.size) <= MOST_SIDE


def is_product(p: Problem) -> bool:
    """One tap: slot w 1.3 to 2.5 times in float32, all slots 1.8 to 3.7 in bfloat16."""
    return p.pointwise and _alone(p) and (p.slot == "w" or p.narrow) and onednn.multiplies(p.a.dtype)


def is_kernel(p: Problem) -> bool:
    """Slot w by the convolution of the transposed arrays, channels as batch.

    In bfloat16 1.1 to 3.9 times, but 0.4 to 0.7 for few channels of one dimension. In float32 0.8 to 1.8 in two
    dimensions, and in one, of at most 64 channels, 1.0 to 1.6 with strides and 1.1 to 1.3 without, from 32 channels on
    for K 3 and 4; elsewhere 0.3 to 1.4, without a rule.
    """
    if p.slot != "w" or not _alone(p) or not _has_code(p, p.a.shape[1]):
        return False
    if p.geometry.ndim > 2:
        return True
    if p.taps == 1 or 1 in (p.channels, p.filters) or p.dilation >= FAR:
        return False
    if p.geometry.ndim == 2:
        return p.dilation == 1
    if p.narrow:
        return p.channels * p.filters >= 512 or p.strided
    return p.widest <= 64 and (p.strided or (p.taps <= 4 and min(p.channels, p.filters) >= 32))


def is_taps(p: Problem) -> bool:
    """Slot w by a product a tap, in bfloat16, where the dilation is long: 1.3 to 2.0 times; 16 channels 0.8."""
    if p.slot != "w" or not _alone(p) or not p.narrow or p.geometry.ndim > 2:
        return False
    return p.taps > 1 and p.dilation >= FAR and p.channels * p.filters >= 1024


def is_dense(p: Problem) -> bool:
    """One member and one group, in any number of dimensions: one of the calls above, or rewritten to be one."""
    if not _alone(p):
        return False
    if p.slot == "x":
        return not p.strided or p.dilation == 1
    return is_convolution(p) or is_kernel(p) or is_taps(p)


def in_16_bits(p: Problem) -> bool:
    """Whether a problem of 16 bits is not to be computed in float32: what it comes to are calls, which round once.

    Members, and groups, come apart first, and are each what one of them is alone. Of the kernel's gradient all groups:
    of 4 to 16 channels, K 41, S 4, 1.2 to 1.9 times. Of y and x a few wide ones: 2 to 4 groups of 64 and more channels
    1.2 to 2.3 times, of 32, strided or images, 1.2 to 1.5, else 0.9 to 1.1; 8 and more groups 0.7 to 1.1.
    """
    if not (p.narrow and onednn.ready(p.a.dtype)):
        return False
    one = _one(p)
    if p.groups > 1:
        few = MOST_GROUPS if p.slot == "w" else MOST_WIDE_GROUPS
        return p.members == 1 and p.groups <= few and (is_kernel(one) if p.slot == "w" else _is_wide(p))
    if p.members > MOST_MEMBERS:
        return False
    if p.slot == "x" and not p.strided and (p.channels == 1 or p.geometry.ndim > 2):
        return False
    return is_dense(one) or is_product(one)


def _is_wide(p: Problem) -> bool:
    least = 32 if p.strided or p.geometry.ndim == 2 else 64
    return min(p.channels, p.filters) >= least and is_dense(_one(p))


def _one(p: Problem) -> Problem:
    """One group of one member, of arrays that are shapes alone."""
    a, b = (jax.ShapeDtypeStruct((1, *v.shape[1:-1], v.shape[-1] // p.groups), v.dtype) for v in (p.a, p.b))
    return Problem(p.slot, a, b, p.geometry._replace(groups=1))  # pyright: ignore[reportArgumentType]


def convolution(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """Slot y as one call, groups and all."""
    return onednn.convolution(a, b, geometry)


def kernel(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """Slot w as a convolution of x with y, whose channels are the batch, strides and dilation exchanged.

    Of the C channels of x, F lie beside each other along the last axis, and the others take the batch's place: x as
    (C / F, *L F, B) and y as (*J, B, O), with a dilation of S F in the last axis, give (C / F, *K F, O). oneDNN's
    products have as many rows as there are outputs along that axis, which with F = 1 are a few taps.
    """
    _, size, outputs, strides, dilation, before, _ = geometry
    last, many = geometry.ndim, _beside(Problem(slot, a, b, geometry))

    def wider(numbers):
        return (*numbers[:-1], numbers[-1] * many)

    x, y = a[0].reshape(*a.shape[1:-1], -1, many), jnp.moveaxis(b[0], 0, -2)
    x = x.transpose(last + 1, *range(1, last + 1), last + 2, 0)
    x = x.reshape(-1, *wider(geometry.lengths), a.shape[1])
    exchanged = Geometry(wider(geometry.lengths), outputs, wider(size), dilation, wider(strides), wider(before), 1)
    taps = onednn.convolution(x[None], y[None], exchanged)
    taps = jnp.moveaxis(taps.reshape(-1, *size, many, b.shape[-1]), 0, -3)
    return taps.reshape(1, *size, a.shape[-1], b.shape[-1])


def _beside(p: Problem) -> int:
    """How many channels lie along the last axis of `kernel`.

    All of an image's: 1.0 to 1.6 times in float32, of both strides (64x14x14, 64 to 64, S 2 0.8; of 3 channels 0.8,
    which are none), and 1.1 to 2 in bfloat16. Of a signal's in bfloat16 four, up to a batch of 8 and without strides,
    1.1 to 1.6 times; more examples lose, and float32 is level but for 16 channels.
    """
    *_, (before, after) = p.geometry.padding
    if p.dilation > 1 or max(before, after) > p.geometry.strides[-1] * (p.geometry.outputs[-1] - 1):
        return 1  # where a tap meets padding alone, jaxlib 0.12's ends the process in 16 bits: 3 of 835 drawn, all such
    if p.geometry.ndim == 2:
        return p.channels if p.narrow or p.channels >= 8 else 1
    few = p.narrow and p.geometry.ndim == 1 and not p.strided and p.a.shape[1] <= 8 and p.channels % 4 == 0
    return 4 if few else 1


def taps(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """Slot w as a product a tap, nothing to pad."""
    rows = b.reshape(-1, b.shape[-1])
    products = [
        onednn.product(part.reshape(-1, part.shape[-1]), rows, transpose_a=True)
        for part in rewrites.windows(a, geometry)
    ]
    return jnp.stack(products).reshape(1, *geometry.size, a.shape[-1], b.shape[-1])


def product(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """A matrix product, for a window of one tap, stride 1 and nothing to pad."""
    shape = shape_of(slot, a.shape, b.shape, geometry)
    a, b = (array.reshape(-1, array.shape[-1]) for array in (a, b))
    return onednn.product(a, b, transpose_a=slot == "w", transpose_b=slot == "x").reshape(shape)


dot = table(Rule(is_product, lambda p: p.by(product)), otherwise(lambda p: p.by(forms.dot)))
"""A matrix product, for a window of one tap, stride 1 and nothing to pad: a call where that is faster."""

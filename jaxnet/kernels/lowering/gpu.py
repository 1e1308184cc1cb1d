"""CUDA: the vendor's convolution, but where XLA does not find it or it is slow.

The figures are microseconds, plain form / this one, on an H200 with TF32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxnet.kernels import forms, rewrites
from jaxnet.kernels.lowering.table import (
    EMPTY,
    MANY_SIZES,
    MOST_DILATION,
    MOST_TAPS,
    Problem,
    Rule,
    in_float32,
    one_channel,
    otherwise,
    shifted,
    table,
)

MOST_COPIES = 9
"""Copies of the input in the patches that members become."""


def _members(p: Problem) -> jax.Array:
    # The vendor's convolution would run one member after another. 8 of 32x512, 16 to 32, K 5: y 104 / 55, x 101 / 53,
    # w 399 / 57; of 64x16x16, 32 to 64, K 3: 159 / 170, 172 / 133, 381 / 172.
    # 16-bit terms of x, which overlapping patches add up, are rounded after that.
    dtype = jnp.float32 if p.slot == "x" and p.narrow else p.a.dtype
    return p.through(rewrites.patches(p.geometry), partial(forms.dot, dtype=dtype)).astype(p.a.dtype)


def _group_after_group(p: Problem) -> jax.Array:
    # XLA would pull a bias that is added next into the vendor's convolution, which then runs in float32 without tensor
    # cores, a launch a group: a discriminator's step of three such convolutions 1900 / 960.
    return jax.lax.optimization_barrier(p.by(forms.plain))


def _all_or_16_filters(p: Problem) -> jax.Array:
    # All in one if that is narrow: 8x2048, 64 to 64, K 3, g 4: 49 / 50, 51 / 50, 163 / 58. Else so that a group has 16
    # filters: 8x512, 256 to 256, K 41, S 4, g 64: y 619 / 136, x 151 / 153, w 141 / 133.
    most = p.groups if p.groups * p.widest <= 64 else max(1, min(16 // p.filters, 64 // p.channels))
    pack = max(n for n in range(1, most + 1) if p.groups % n == 0)
    return p.through(rewrites.packed(p.geometry, pack), solve) if pack > 1 else _group_after_group(p)


def _phases(p: Problem) -> jax.Array:
    # Of the gradient by the input, strides become channels; without them it is a convolution with the mirrored kernel.
    return p.through(rewrites.polyphase(p.geometry) if p.strided else rewrites.mirrored(p.geometry), solve)


# The vendor's convolution runs one group after another, and XLA stuffs the gradient by the input with zeros.
_grouped = table(
    # In 16 bits the vendor has kernels for these; all three slots in a scan, 4x56x56, 64, K 3: 162 / 185; 4x28x28, 128,
    # K 5: 162 / 204 of shifted products. 8x512, 256 to 256, K 41, S 4, g 64: 252 / 390 of phases.
    Rule(lambda p: p.narrow and p.elementwise(25) and len(p.geometry.size) == 2 and not p.strided, _group_after_group),
    Rule(lambda p: p.narrow and p.strided and p.taps > 16 and p.channels == p.filters == 4, _group_after_group),
    # 16x8192, 32, K 5: y 170 / 44, x 173 / 37, w 104 / 43. 8x512, 256, K 31: 167 / 46, 165 / 47, 135 / 70.
    Rule(lambda p: p.elementwise() and p.slot == "x", _phases),
    Rule(lambda p: p.elementwise(), lambda p: p.by(in_float32(shifted))),
    # 8x2048, 64 to 256, K 41, S 4, g 16: y 253 / 79, x 690 / 73, w 131 / 78. 8x8192, 16 to 64, g 4: 231 / 99, 259 /
    # 108, 278 / 121.
    Rule(lambda p: p.strided, _phases),
    # Not measured, and packing would be mostly zeros.
    Rule(lambda p: min(p.channels, p.filters) < 4, _group_after_group),
    otherwise(_all_or_16_filters),
)

solve = table(
    EMPTY,
    MANY_SIZES,
    Rule(
        lambda p: p.members > 1 and (p.groups > 1 or p.taps > MOST_COPIES * math.prod(p.geometry.strides)),
        lambda p: p.through(rewrites.merged(p.geometry, p.members), solve),
    ),
    # 8x8192, a MelGAN's generator step 10.2 / 8.8 ms: no copies of kernels in the vendor's layout, and XLA fuses what
    # follows.
    Rule(lambda p: p.pointwise and p.groups == 1, lambda p: p.by(forms.dot)),
    Rule(lambda p: p.members > 1, _members),
    # As the next but one. Without strides, 16x56x56, 64 to 64, K 3, d 2: 1537 / 125.
    Rule(
        lambda p: p.strided and 1 < p.dilation <= MOST_DILATION and p.slot == "w",
        lambda p: p.through(rewrites.stuffed_kernel(p.geometry), solve),
    ),
    Rule(lambda p: p.strided and p.dilation > 1, lambda p: p.by(forms.plain)),
    # XLA takes the vendor's gradient for a convolution with a kernel as long as the signal. 16x8192, 32 to 32, K 3, d
    # 3: 4115 / 47, and 76 with phases apart; K 11, d 5: 146 with phases apart, 292 with patches.
    Rule(
        lambda p: p.slot == "w" and p.dilation > 1 and not p.elementwise() and p.taps <= 3 and p.groups == 1,
        lambda p: p.through(rewrites.patches(p.geometry), forms.dot),
    ),
    Rule(
        lambda p: p.slot == "w" and p.dilation > 1 and not p.elementwise(),
        lambda p: p.through(rewrites.phases_apart(p.geometry), solve),
    ),
    Rule(lambda p: p.groups > 1, lambda p: p.by(_grouped)),
    # 16x8192, 32 to 1, K 7: y 80 / 50, x 73 / 48. 8x8192, 1 to 16, K 15: y 45 / 40, x 55 / 41.
    Rule(
        lambda p: p.slot != "w" and not p.strided and 1 < p.taps <= MOST_TAPS and 1 in (p.channels, p.filters),
        lambda p: p.by(in_float32(one_channel(solve))),
    ),
    otherwise(lambda p: p.by(forms.plain)),
)

"""How the trilinear form is compiled: which form, for which platform and shapes. All choices are made here."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.kernels import forms, rewrites
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import Slot


Solver = Callable[[Slot, jax.Array, jax.Array, Geometry], jax.Array]
"""Takes a slot, its two operands and the geometry; returns the array that the form is solved for."""


def vendor(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """GPU and TPU: the vendor's convolution."""
    return forms.plain(slot, a, b, geometry)


MOST_UNROLLED = 64
MOST_TAPS = 32
FEWEST_FILTERS = 8


def cpu(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """CPU: dense convolutions of stride 1 and matrix products, which are all that XLA compiles well."""
    dtype = a.dtype
    if jnp.finfo(dtype).bits < 32:  # sums of products are rounded once, at the end
        return cpu(slot, a.astype(jnp.float32), b.astype(jnp.float32), geometry).astype(dtype)
    if geometry.ndim > 2:
        return forms.plain(slot, a, b, geometry)
    return _solve(slot, a, b, geometry)


def _solve(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    def through(rewrite, inner=_solve):
        return rewrites.solve(rewrite, slot, a, b, geometry, inner)

    members, groups = a.shape[0], geometry.groups
    strided, dilated = max(geometry.strides) > 1, max(geometry.dilation) > 1
    taps = math.prod(geometry.size)
    # Channels and filters of a group.
    channels = b.shape[-2] if slot != "w" else a.shape[-1] // groups
    filters = b.shape[-1] // groups

    if members > 1:
        if members <= MOST_UNROLLED or groups > 1:
            return jnp.concatenate([_solve(slot, a[i : i + 1], b[i : i + 1], geometry) for i in range(members)])
        return through(rewrites.patches(geometry), forms.dot)
    if groups > 1:
        if (strided and slot == "x") or (strided and slot == "y" and channels * filters > 4):
            return through(rewrites.stuffed_kernel(geometry) if dilated else rewrites.polyphase(geometry))
        if channels * filters <= 4 and taps <= MOST_TAPS:
            if slot == "x":
                return through(rewrites.mirrored(geometry))
            if (slot == "w" or taps > 5) and any(map(any, geometry.padding)):
                return through(rewrites.padded(geometry))
            return forms.shifted(slot, a, b, geometry)
        pack = next(
            p
            for p in range(1, groups + 1)
            if groups % p == 0 and (groups // p <= MOST_UNROLLED and (filters * p >= FEWEST_FILTERS or p == groups))
        )
        if pack > 1:
            return through(rewrites.packed(geometry, pack))
        return through(rewrites.ungrouped(geometry))
    if slot == "x":
        if strided:
            return through(rewrites.stuffed_kernel(geometry) if dilated else rewrites.polyphase(geometry))
        if channels == 1 and 1 < taps <= MOST_TAPS and filters > 1:
            return through(rewrites.patches(geometry), forms.dot)
        return through(rewrites.mirrored(geometry))
    if slot == "y":
        if channels == 1 and not strided and taps <= MOST_TAPS:
            if taps > 5 and any(map(any, geometry.padding)):
                return through(rewrites.padded(geometry))
            return forms.shifted(slot, a, b, geometry)
        if filters == 1 and not strided and 1 < taps <= MOST_TAPS:
            return through(
                rewrites.mirrored(geometry), lambda *args: rewrites.solve(rewrites.patches(args[-1]), *args, forms.dot)
            )
        return forms.dense(slot, a, b, geometry)
    if taps == 1 and not strided and not any(map(any, geometry.padding)):
        return forms.dot(slot, a, b, geometry)
    if (
        filters <= channels
        and not strided
        and all(n <= j for n, j in zip(geometry.lengths, geometry.outputs, strict=True))
    ):
        return through(rewrites.mirrored(geometry), forms.dense)
    return forms.dense(slot, a, b, geometry)

"""How the trilinear form is compiled: which form, for which platform and shapes. All choices are made here.

They depend on nothing but the platform and the shapes, and are made when a program is lowered for its platform. The
figures beside them are ratios of times in trials, float32 on 2 cores; `python -m benchmarks kernels` measures it all.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxnet._symbolic import is_symbolic
from jaxnet.kernels import forms, rewrites, symbolic
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import Slot, shape_of

Solver = Callable[[Slot, jax.Array, jax.Array, Geometry], jax.Array]
"""Takes a slot, its two operands and the geometry; returns the array that the form is solved for."""


def vendor(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """TPU, ROCm and whatever else JAX runs on, where nothing was measured: the vendor's convolution."""
    if _is_empty(slot, a, b, geometry):
        return _nothing(slot, a, b, geometry)
    if symbolic.is_of_many_sizes(a, b, geometry):
        return symbolic.solve(slot, a, b, geometry)
    return forms.plain(slot, a, b, geometry)


def gpu(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """CUDA: the vendor's convolution, but where XLA does not find it or it is slow.

    The figures are microseconds, plain form / this one, on an H200 with TF32.
    """
    if _is_empty(slot, a, b, geometry):
        return _nothing(slot, a, b, geometry)
    if symbolic.is_of_many_sizes(a, b, geometry):
        return symbolic.solve(slot, a, b, geometry)

    def through(rewrite, inner=gpu):
        return rewrites.solve(rewrite, slot, a, b, geometry, inner)

    strided, taps = _is_strided(geometry), math.prod(geometry.size)
    if a.shape[0] > 1 and (geometry.groups > 1 or taps > MOST_COPIES * math.prod(geometry.strides)):
        return through(rewrites.merged(geometry, a.shape[0]))
    if _is_pointwise(geometry) and geometry.groups == 1:
        # 8x8192, a MelGAN's generator step 10.2 / 8.8 ms: no copies of kernels in the vendor's layout, and XLA fuses
        # what follows.
        return forms.dot(slot, a, b, geometry)
    if a.shape[0] > 1:
        # The vendor's convolution would run one member after another. 8 of 32x512, 16 to 32, K 5: y 104 / 55, x 101 /
        # 53, w 399 / 57; of 64x16x16, 32 to 64, K 3: 159 / 170, 172 / 133, 381 / 172.
        # 16-bit terms of x, which overlapping patches add up, are rounded after that.
        dtype = jnp.float32 if slot == "x" and jnp.finfo(a.dtype).bits < 32 else a.dtype
        return through(rewrites.patches(geometry), partial(forms.dot, dtype=dtype)).astype(a.dtype)
    if strided and max(geometry.dilation) > 1:
        # As the next. Without strides, 16x56x56, 64 to 64, K 3, d 2: 1537 / 125.
        if slot == "w" and max(geometry.dilation) <= MOST_DILATION:
            return through(rewrites.stuffed_kernel(geometry))
        return forms.plain(slot, a, b, geometry)
    if slot == "w" and max(geometry.dilation) > 1 and not _is_elementwise(slot, a, b, geometry):
        # XLA takes the vendor's gradient for a convolution with a kernel as long as the signal. 16x8192, 32 to 32, K 3,
        # d 3: 4115 / 47, and 76 with phases apart; K 11, d 5: 146 with phases apart, 292 with patches.
        if taps <= 3 and geometry.groups == 1:
            return through(rewrites.patches(geometry), forms.dot)
        return through(rewrites.phases_apart(geometry))
    if geometry.groups > 1:
        # XLA would pull a bias that is added next into the vendor's convolution, which with that runs group after group
        # in float32, without tensor cores: 16x2048, 64 to 256, K 41, S 4, g 16: 900 / 25.
        return jax.lax.optimization_barrier(_grouped_on_gpu(slot, a, b, geometry))
    if slot != "w" and not strided and 1 < taps <= MOST_TAPS and 1 in _channels(slot, a, b, geometry):
        # 16x8192, 32 to 1, K 7: y 80 / 50, x 73 / 48. 8x8192, 1 to 16, K 15: y 45 / 40, x 55 / 41.
        return _in_float32(partial(_one_channel, inner=gpu), slot, a, b, geometry)
    return forms.plain(slot, a, b, geometry)


def _grouped_on_gpu(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    # The vendor's convolution runs one group after another, and XLA stuffs the gradient by the input with zeros.
    def through(rewrite, inner=gpu):
        return rewrites.solve(rewrite, slot, a, b, geometry, inner)

    strided = _is_strided(geometry)
    if _is_elementwise(slot, a, b, geometry):
        # 16x8192, 32, K 5: y 170 / 44, x 173 / 37, w 104 / 43. 8x512, 256, K 31: 167 / 46, 165 / 47, 135 / 70.
        if slot == "x":
            return through(rewrites.polyphase(geometry) if strided else rewrites.mirrored(geometry))
        return _in_float32(_shifted, slot, a, b, geometry)
    if strided:
        # 8x2048, 64 to 256, K 41, S 4, g 16: y 253 / 79, x 690 / 73, w 131 / 78. 8x8192, 16 to 64, g 4: 231 / 99,
        # 259 / 108, 278 / 121.
        return through(rewrites.polyphase(geometry))
    channels, filters = _channels(slot, a, b, geometry)
    groups, widest = geometry.groups, max(channels, filters)
    if min(channels, filters) < 4:  # not measured, and packing would be mostly zeros
        return forms.plain(slot, a, b, geometry)
    # All in one if that is narrow: 8x2048, 64 to 64, K 3, g 4: 49 / 50, 51 / 50, 163 / 58. Else so that a group has 16
    # filters: 8x512, 256 to 256, K 41, S 4, g 64: y 619 / 136, x 151 / 153, w 141 / 133.
    most = groups if groups * widest <= 64 else max(1, min(16 // filters, 64 // channels))
    pack = max(n for n in range(1, most + 1) if groups % n == 0)
    return through(rewrites.packed(geometry, pack)) if pack > 1 else forms.plain(slot, a, b, geometry)


def _in_float32(solve: Solver, slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """Sums of products of 16-bit numbers are rounded once, at the end."""
    dtype = a.dtype
    if jnp.finfo(dtype).bits < 32:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return solve(slot, a, b, geometry).astype(dtype)


def cpu(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """CPU: dense convolutions without input dilation, matrix products and elementwise sums, which XLA compiles well.

    Everything else (input dilation, groups, and the kernel's gradient in a loop) XLA lowers to scalar loops.
    """
    if _is_empty(slot, a, b, geometry):
        return _nothing(slot, a, b, geometry)
    if jnp.finfo(a.dtype).bits < 32:
        return _in_float32(cpu, slot, a, b, geometry)
    if symbolic.is_of_many_sizes(a, b, geometry):
        return symbolic.solve(slot, a, b, geometry)
    if geometry.ndim > 1 and _is_pointwise(geometry):  # 8x32x32, 64 to 64: 2 times for y and x, 2.5 for w
        return rewrites.solve(rewrites.flattened(geometry), slot, a, b, geometry, cpu)
    # XLA's fast convolution ends at two dimensions; and strides and dilation at once are rewritten by zeros between the
    # taps, more than which would be worse than a scalar loop.
    if geometry.ndim > 2 or (_is_strided(geometry) and max(geometry.dilation) > MOST_DILATION):
        return forms.plain(slot, a, b, geometry)
    if a.shape[0] > 1:
        return _members(slot, a, b, geometry)
    if geometry.groups > 1:
        return _grouped(slot, a, b, geometry)
    return _dense(slot, a, b, geometry)


MOST_MEMBERS = 16
"""Members, which `vmap` makes, that become a form each: beyond, compiling would take longer than it saves."""

MOST_GROUPS = 64
"""Groups that become a form each: 64 compile in 2 seconds a slot and then run 20 times as fast as the plain form."""

MOST_TAPS = 32
"""Taps that become a shifted product each."""

MOST_COPIES = 9
"""Copies of the input in the patches that members become on a GPU."""

MOST_ROWS = 8
"""Copies of the input, moved along the first of two axes, that are joined so that one axis is left."""

MOST_JOINED = 10 * 2**20
"""Bytes of those copies. The system hands out more than that page by page: 2x224x224, 64 to 64, K 3: 0.5 times."""

MOST_LOOPLESS = 4
"""Groups of two dimensions that become a form each: more are a loop, which takes as long and compiles at once."""

MOST_UNROLLED_TAPS = 64
"""Taps of two dimensions that become a shifted product each, for y and x: more are a loop over the first axis."""

MOST_DILATION = 16
"""Zeros between taps, that make strides and dilation at once into strides alone."""


def _is_empty(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> bool:
    return 0 in (*a.shape, *b.shape, *shape_of(slot, a.shape, b.shape, geometry))


def _nothing(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    return jnp.zeros(shape_of(slot, a.shape, b.shape, geometry), a.dtype)


def _members(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    members, elementwise = a.shape[0], _is_elementwise(slot, a, b, geometry)
    if members <= MOST_MEMBERS and (elementwise or members * geometry.groups <= MOST_GROUPS):
        return jnp.concatenate([cpu(slot, a[i : i + 1], b[i : i + 1], geometry) for i in range(members)])
    if elementwise:
        return rewrites.solve(rewrites.merged(geometry, members), slot, a, b, geometry, cpu)
    if geometry.groups > 1:
        return rewrites.solve(rewrites.ungrouped(geometry), slot, a, b, geometry, cpu)
    if math.prod(geometry.size) > MOST_TAPS:  # the patches would be too large
        return jax.lax.map(lambda pair: cpu(slot, pair[0][None], pair[1][None], geometry)[0], (a, b))
    return rewrites.solve(rewrites.patches(geometry), slot, a, b, geometry, forms.dot)


def _grouped(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    def through(rewrite, inner=cpu):
        return rewrites.solve(rewrite, slot, a, b, geometry, inner)

    if _is_elementwise(slot, a, b, geometry):
        if slot == "x":
            return through(_unit_strides(geometry) if _is_strided(geometry) else rewrites.mirrored(geometry))
        return _shifted(slot, a, b, geometry)
    if _is_elementwise(slot, a, b, geometry, most=MOST_TAPS**2) and geometry.ndim == 2:
        # 8x28x28, 96, K 7, against two groups as one: y 5 times, x 5, w 1.6; 4x28x28, 64, K 11: y 1.3, x 1.6, w 5.
        if slot == "x":
            return through(_unit_strides(geometry) if _is_strided(geometry) else rewrites.mirrored(geometry))
        if slot == "y" and math.prod(geometry.size) <= MOST_UNROLLED_TAPS:
            return _shifted(slot, a, b, geometry)
        if geometry.size[1] <= MOST_TAPS:
            return through(rewrites.padded(geometry), forms.rolled)
    if geometry.groups > MOST_GROUPS:
        fewest = -(-geometry.groups // MOST_GROUPS)
        pack = next(p for p in range(fewest, geometry.groups + 1) if geometry.groups % p == 0)
        if pack > 4 * fewest:  # a block has ``pack`` times the arithmetic
            return through(rewrites.ungrouped(geometry))
        return through(rewrites.packed(geometry, pack))
    if _is_pointwise(geometry):
        # 8x2048, 64 to 128, g 4: y 1.4 times as fast as products one by one, x and w 1.5 times; 8x4096, 32 to 32, g 4,
        # all in one: 1.3, 1.5 and 1.8 times.
        if geometry.groups * max(_channels(slot, a, b, geometry)) <= 64:
            return through(rewrites.packed(geometry, geometry.groups), forms.dot)
        return through(rewrites.ungrouped(geometry), forms.dot)
    pack, count = _pack_and_fold(slot, a, b, geometry)

    def folded(slot, a, b, geometry):
        if count == 1:
            return _groups_apart(slot, a, b, geometry)
        return rewrites.solve(rewrites.folded(geometry, count), slot, a, b, geometry, _groups_apart)

    return through(rewrites.packed(geometry, pack), folded) if pack > 1 else folded(slot, a, b, geometry)


def _groups_apart(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    loop = geometry.ndim > 1 and geometry.groups > MOST_LOOPLESS
    # Strides go before the groups part, so that each group reads its phases from one array.
    if _is_strided(geometry) and (slot == "x" or (slot == "y" and not loop)):
        return rewrites.solve(_unit_strides(geometry), slot, a, b, geometry, _groups_apart)

    def apart(slot, a, b, geometry):
        if loop:
            # 8x16x16, 256 to 256, g 32, K 3, against a form each: y 1.7 times, x 1.05, w 1.8, and 1.5 s to compile in
            # place of 5.3; with S 2 y 1.5 times, x 0.8, w 1.5, and 1.6 s in place of 7.7.
            return jax.lax.map(lambda pair: _dense(slot, pair[0][None], pair[1][None], geometry)[0], (a, b))
        parts = [_dense(slot, a[i : i + 1], b[i : i + 1], geometry) for i in range(a.shape[0])]
        return jnp.concatenate(parts)

    return rewrites.solve(rewrites.ungrouped(geometry), slot, a, b, geometry, apart)


def _dense(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    def through(rewrite, inner=cpu):
        return rewrites.solve(rewrite, slot, a, b, geometry, inner)

    strided, taps = _is_strided(geometry), math.prod(geometry.size)
    channels, filters = _channels(slot, a, b, geometry)
    if slot != "w" and not strided and 1 < taps <= MOST_TAPS and 1 in (channels, filters):
        return _one_channel(slot, a, b, geometry, inner=cpu)
    if taps == 1 and strided and slot != "y":
        # The inputs that are read, and a product: 1.3 times (1-D), 2.2 (2-D), all three slots together. y alone loses.
        return through(rewrites.patches(geometry), forms.dot)
    if slot == "x":
        if strided:  # 10 to 30 times: XLA's own gradient of a strided convolution dilates its input
            if _wastes_phases(geometry):  # 8x512, 256 to 256, K 5, S 4: 1.15 times, all three slots together
                longer = geometry.size[0] % geometry.strides[0] * channels
                return through(rewrites.polyphase(geometry), partial(_shorter_phases, longer=longer))
            return through(_unit_strides(geometry))
        return through(rewrites.mirrored(geometry))
    if slot == "y":
        return _convolution(slot, a, b, geometry)  # strided too: space-to-depth would be slower here, 0.6 to 0.9
    if _is_pointwise(geometry):
        # 1.1 to 2 times as fast as a convolution; for y and x the convolution is, by 1.05 to 1.3 times. Many rows for
        # few columns are summed in 8 pieces: 8x4096, 32 to 32, all slots together, 1.3 times, 8x2048, 64 to 64, 1.25.
        rows = a.shape[1] * math.prod(geometry.outputs)
        pieces = 8 if rows % 8 == 0 and rows >= 128 * max(channels, filters) else 1
        return forms.dot(slot, a, b, geometry, pieces=pieces)
    no_longer = all(n <= j for n, j in zip(geometry.lengths, geometry.outputs, strict=True))
    if filters <= channels and not strided and no_longer:
        # The smaller of the two becomes the batch of the convolution, whose patches are copied: 1.1 to 2 times. Where
        # x is longer than y, XLA would take a kernel longer than its signal, which is a scalar loop again.
        return through(rewrites.mirrored(geometry), _convolution)
    return _convolution(slot, a, b, geometry)


def _one_channel(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry, *, inner: Solver) -> jax.Array:
    """Solves for y or x where there is one channel or one filter: shifted products, or one product and a sum.

    2 to 4 times as fast as products with one column or one row.
    """
    channels, filters = _channels(slot, a, b, geometry)
    if slot == "y" and channels == 1:
        return _shifted(slot, a, b, geometry)
    if slot == "x" and channels == 1 and filters > 1:
        return rewrites.solve(rewrites.patches(geometry), slot, a, b, geometry, forms.dot)
    return rewrites.solve(rewrites.mirrored(geometry), slot, a, b, geometry, inner)


def _wastes_phases(geometry: Geometry) -> bool:
    # Most phases have one tap less than the longest. K 3, S 2, which would save a quarter, loses a tenth.
    if geometry.ndim > 1 or max(geometry.dilation) > 1:
        return False
    (size,), (stride,) = geometry.size, geometry.strides
    return size > stride and 2 * stride * -(-size // stride) >= 3 * size


def _shorter_phases(slot: Slot, y: jax.Array, w: jax.Array, geometry: Geometry, *, longer: int) -> jax.Array:
    """Solves what polyphase makes of x, where the last tap of all channels but the first ``longer`` is zero."""
    full = cpu(slot, y, w[:, :, :longer], geometry)
    rest = cpu(slot, y, w[:, :-1, longer:], geometry._replace(size=(geometry.size[0] - 1,)))
    return jnp.concatenate([full, rest], axis=-1)


def _convolution(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    # XLA's convolution is faster along one axis than along two: 1.1 to 1.7 times for y, 1.0 to 2.8 for w (3 to 96
    # channels, 32 to 192 filters, K 3, 5 and 7). 256 filters make no difference to y. With 128 channels or 512 filters
    # it is 0.85 to 1.2, by machine; with 16 filters 0.7, and with 8, whose products are narrow, 0.15.
    channels, filters, several = a.shape[-1], b.shape[-1], math.prod(geometry.size) > 1
    small = not is_symbolic(a.shape[1])  # with a batch of any size, none is known to be
    if slot == "y" and not small:
        return forms.dense(slot, a, b, geometry)
    if geometry.ndim > 1 and several and geometry.size[0] <= MOST_ROWS and channels <= 96 and 32 <= filters <= 256:
        row = a.dtype.itemsize * geometry.size[0] * a.size // geometry.lengths[0]
        most = max(1, MOST_JOINED // row) if small else geometry.outputs[0]
        if most >= geometry.outputs[0]:
            return rewrites.solve(rewrites.rows(geometry), slot, a, b, geometry, cpu)
        if slot == "w":
            # 2x224x224, 64 to 64, K 3: 2.3 times as fast as all rows at once, 7 times as XLA's; 16x56x56: 1.8 times.
            count = next(n for n in range(most, 0, -1) if geometry.outputs[0] % n == 0)
            return forms.in_pieces(a, b, geometry, count, _convolution)
    return forms.dense(slot, a, b, geometry)


def _shifted(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    # Zeros joined on to each tap's window are free for a few taps; one padded copy is cheaper for more (3 times at 7),
    # and for the kernel's gradient, which reads every window in one pass.
    if any(map(any, geometry.padding)) and (slot == "w" or math.prod(geometry.size) > 5):
        return rewrites.solve(rewrites.padded(geometry), slot, a, b, geometry, forms.shifted)
    return forms.shifted(slot, a, b, geometry)


def _is_elementwise(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry, most: int = MOST_TAPS) -> bool:
    # Depthwise and nearly so: a group's product is too small for a matrix product. After space-to-depth, the gradient
    # of a strided depthwise convolution has S channels a group: beyond S = 4 it leaves this path.
    channels, filters = _channels(slot, a, b, geometry)
    return geometry.groups > 1 and channels * filters <= 4 and math.prod(geometry.size) <= most


def _channels(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> tuple[int, int]:
    """The channels and filters of a group."""
    channels = a.shape[-1] // geometry.groups if slot == "w" else b.shape[-2]
    return channels, b.shape[-1] // geometry.groups


def _is_strided(geometry: Geometry) -> bool:
    return max(geometry.strides) > 1


def _is_pointwise(geometry: Geometry) -> bool:
    """Whether it is a matrix product a group: one tap, stride 1, nothing to pad."""
    return math.prod(geometry.size) == 1 and not _is_strided(geometry) and not any(map(any, geometry.padding))


def _unit_strides(geometry: Geometry) -> rewrites.Rewrite:
    # Strided and dilated at once is rare: the dilation becomes zeros in the kernel.
    if max(geometry.dilation) > 1:
        return rewrites.stuffed_kernel(geometry)
    # Aligned, 8x1024, 64 to 64, K 3, S 2: x 1.1 times, for no copy is cropped. Two dimensions lose, 0.8.
    return rewrites.polyphase(geometry, align=geometry.ndim == 1)


def _pack_and_fold(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> tuple[int, int]:
    """How many narrow groups to compute as one, with zeros between, and how many outputs at once.

    Products get wider by both. Without strides, packing p groups and folding c outputs costs p c ceil((K + c - 1) / c)
    / K times the arithmetic; of the pairs that make a product of y or x 32 wide, the cheapest is taken. Against groups
    as they are: 8x4096, 32 to 32, g 8: K 7 (c 8) 1.9 times for y, K 3 (p 4, c 2) 1.6; 8x2048, 64 to 64, K 3, g 4 (c 2)
    1.25; 8x1024, 128 to 128, K 5, g 8 (c 2) 1.2. For w 4 channels gain 1.3 times with K 7 and 1.13 with K 3 (c 4), and
    more than 4 lose.
    """
    if _is_strided(geometry):
        return 1, _fold(slot, a, b, geometry)
    widest = max(_channels(slot, a, b, geometry))
    folds = [1]
    if geometry.ndim == 1 and max(geometry.dilation) == 1:
        folds = [c for c in (1, 2, 4, 8) if geometry.outputs[0] % c == 0]
    if slot == "w" and max(folds) >= 4:
        return 1, 4 if widest <= 4 and geometry.size[0] >= 3 else 1
    # Where outputs cannot be folded, products of 16: 8x4096, 32 to 32, g 8: y 4.5 times with K 3, w of 8, 1.2 times.
    target = 8 if slot == "w" else 32 if max(folds) > 1 else 16
    packs = [p for p in range(1, max(1, target // widest) + 1) if geometry.groups % p == 0]
    pairs = [(p, c) for p in packs for c in ([1] if slot == "w" else folds) if p * c * widest <= max(target, widest)]

    def cost(pair):
        p, c = pair
        return -p * c, p * c * -(-(geometry.size[0] + c - 1) // c), -p

    return min(pairs, key=cost)


def _fold(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> int:
    """How many outputs of a long strided kernel to compute at once.

    8x8192, 16 to 64 channels, K 41, S 4, g 4, and 8x512, 256 to 256, g 64: 1.3 and 1.6 times as fast for y, 1.3 and 1.6
    for x, 1.3 and 1.9 for w. Dense convolutions only lose.
    """
    if geometry.ndim > 1 or max(geometry.dilation) > 1:
        return 1
    (size,), (stride,), (outputs,) = geometry.size, geometry.strides, geometry.outputs
    channels, filters = _channels(slot, a, b, geometry)
    columns = stride * channels if slot == "x" else filters
    count = 2 if slot == "x" else 4
    while count > 1 and (outputs % count or columns * count > 32 or stride * (count - 1) > 0.3 * size):
        count //= 2
    return count

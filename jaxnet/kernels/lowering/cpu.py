"""CPU: dense convolutions without input dilation, matrix products and elementwise sums, which XLA compiles well.

Everything else (input dilation, groups, and the kernel's gradient in a loop) XLA lowers to scalar loops. The figures
are ratios of times in trials, float32 on 2 cores; `python -m benchmarks kernels` measures it all.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxnet._symbolic import is_below, is_symbolic
from jaxnet.kernels import forms, rewrites
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.lowering import called
from jaxnet.kernels.lowering.packing import pack_and_fold
from jaxnet.kernels.lowering.table import (
    EMPTY,
    MANY_SIZES,
    MOST_DILATION,
    MOST_GROUPS,
    MOST_MEMBERS,
    MOST_TAPS,
    UNMET,
    Problem,
    Rule,
    Solver,
    in_float32,
    one_channel,
    otherwise,
    shifted,
    table,
)
from jaxnet.kernels.slots import Slot

MOST_ROWS = 8
"""Copies of the input, moved along the first of two axes, that are joined so that one axis is left."""

MOST_JOINED = 10 * 2**20
"""Bytes of those copies. The system hands out more than that page by page: 2x224x224, 64 to 64, K 3: 0.5 times."""

MOST_PIECE = 3 * 2**20
"""Bytes of them at once, where a kernel's gradient is summed in pieces because all would be twice too many."""

MOST_PATCHES = 2 * 2**20
"""Bytes of the patches that are made at once where a kernel's gradient is summed in pieces."""

MOST_LOOPLESS = 4
"""Groups of two dimensions that become a form each: more are a loop, which takes as long and compiles at once."""

MOST_AT_ONCE = 8
"""Groups of one dimension that become a form each, of a kernel's gradient in float32, in a loop over the others."""

MOST_IN_NO_LOOP = 16
"""Groups up to which it is not so: as a form each they compile in half a second."""

FEW_PRODUCTS = 3 * 10**7
"""Multiply-adds up to which a strided image's gradient by the input is one form, however many taps are in vain."""

MOST_UNROLLED_TAPS = 64
"""Taps of two dimensions that become a shifted product each, for y and x: more are a loop over the first axis."""


def _unit_strides(p: Problem, inner: Solver) -> jax.Array:
    # Strided and dilated at once is rare: the dilation becomes zeros in the kernel.
    if p.dilation > 1:
        return p.through(rewrites.stuffed_kernel(p.geometry), inner)
    # Aligned, 8x1024, 64 to 64, K 3, S 2: x 1.1 times, for no copy is cropped. Two dimensions lose, 0.8.
    return p.through(rewrites.polyphase(p.geometry, align=p.geometry.ndim == 1), inner)


def _stride_1(p: Problem) -> jax.Array:
    """The gradient by the input, of an elementwise form."""
    return _unit_strides(p, solve) if p.strided else p.through(rewrites.mirrored(p.geometry), solve)


def _apart(p: Problem) -> jax.Array:
    return jnp.concatenate([solve(p.slot, p.a[i : i + 1], p.b[i : i + 1], p.geometry) for i in range(p.members)])


def _in_turn(p: Problem, solver: Solver) -> jax.Array:
    return jax.lax.map(lambda pair: solver(p.slot, pair[0][None], pair[1][None], p.geometry)[0], (p.a, p.b))


_members = table(
    Rule(
        lambda p: p.members <= MOST_MEMBERS and (p.elementwise() or p.members * p.groups <= MOST_GROUPS),
        _apart,
    ),
    Rule(lambda p: p.elementwise(), lambda p: p.through(rewrites.merged(p.geometry, p.members), solve)),
    Rule(lambda p: p.groups > 1, lambda p: p.through(rewrites.ungrouped(p.geometry), solve)),
    Rule(lambda p: p.taps > MOST_TAPS, lambda p: _in_turn(p, solve)),  # the patches would be too large
    otherwise(lambda p: p.through(rewrites.patches(p.geometry), called.dot)),
)


# -- Groups ------------------------------------------------------------------------------------------------------------


def _fewer_groups(p: Problem) -> jax.Array:
    fewest = -(-p.groups // MOST_GROUPS)
    pack = next(n for n in range(fewest, p.groups + 1) if p.groups % n == 0)
    if pack > 4 * fewest:  # a block has ``pack`` times the arithmetic
        return p.through(rewrites.ungrouped(p.geometry), solve)
    return p.through(rewrites.packed(p.geometry, pack), solve)


def _packed_and_folded(p: Problem) -> jax.Array:
    pack, count = pack_and_fold(p)
    folded = table(
        Rule(lambda p: count == 1, lambda p: p.by(_groups_apart)),
        otherwise(lambda p: p.through(rewrites.folded(p.geometry, count), _groups_apart)),
    )
    return p.through(rewrites.packed(p.geometry, pack), folded) if pack > 1 else p.by(folded)


_large_depthwise = table(
    # 8x28x28, 96, K 7, against two groups as one: y 5 times, x 5, w 1.6; 4x28x28, 64, K 11: y 1.3, x 1.6, w 5.
    Rule(lambda p: p.slot == "x", _stride_1),
    Rule(lambda p: p.slot == "y" and p.taps <= MOST_UNROLLED_TAPS, lambda p: p.by(shifted)),
    otherwise(lambda p: p.through(rewrites.padded(p.geometry), forms.rolled)),
)

_grouped = table(
    Rule(lambda p: p.slot == "y" and called.is_grouped(p), lambda p: p.by(called.convolution)),
    Rule(called.is_grouped, _stride_1),
    Rule(lambda p: p.narrow, lambda p: p.by(_groups_apart)),
    Rule(lambda p: p.elementwise() and p.slot == "x", _stride_1),
    Rule(lambda p: p.elementwise(), lambda p: p.by(shifted)),
    Rule(
        lambda p: (
            p.geometry.ndim == 2
            and p.elementwise(most=MOST_TAPS**2)
            and (p.slot == "x" or (p.slot == "y" and p.taps <= MOST_UNROLLED_TAPS) or p.geometry.size[1] <= MOST_TAPS)
        ),
        lambda p: p.by(_large_depthwise),
    ),
    Rule(lambda p: p.groups > MOST_GROUPS, _fewer_groups),
    # 8x2048, 64 to 128, g 4: y 1.4 times as fast as products one by one, x and w 1.5 times; 8x4096, 32 to 32, g 4, all
    # in one: 1.3, 1.5 and 1.8 times.
    Rule(
        lambda p: p.pointwise and p.groups * p.widest <= 64,
        lambda p: p.through(rewrites.packed(p.geometry, p.groups), called.dot),
    ),
    Rule(lambda p: p.pointwise, lambda p: p.through(rewrites.ungrouped(p.geometry), forms.dot)),
    otherwise(_packed_and_folded),
)


def _is_looped(geometry: Geometry) -> bool:
    return geometry.ndim > 1 and geometry.groups > MOST_LOOPLESS


def _one_by_one(p: Problem, *, at_once: int) -> jax.Array:
    """Each member as a form of its own, some at once in a loop over the others."""

    def some(pair):
        a, b = pair
        return jnp.concatenate([_dense(p.slot, a[i : i + 1], b[i : i + 1], p.geometry) for i in range(at_once)])

    if at_once == p.members:
        return some((p.a, p.b))
    pieces = (v.reshape(-1, at_once, *v.shape[1:]) for v in (p.a, p.b))
    out = jax.lax.map(some, tuple(pieces))
    return out.reshape(-1, *out.shape[2:])


def _at_once(p: Problem) -> int:
    """How many groups become a form each, in a loop over the others, which compiles as these do."""
    if _is_looped(p.geometry):
        # 8x16x16, 256 to 256, g 32, K 3, against a form each: y 1.7 times, x 1.05, w 1.8, and 1.5 s to compile in place
        # of 5.3; with S 2 y 1.5 times, x 0.8, w 1.5, and 1.6 s in place of 7.7.
        return 1
    if p.slot == "w" and not p.narrow and p.groups > MOST_IN_NO_LOOP:
        # 8x512, 256 to 256, g 32, K 3, and g 64, K 41, S 4, against a form each: 0.3 s to compile in place of 0.6 and
        # 1.2, and 1.2 times as fast, in some runs 0.8; 8x512, 128 to 128, g 32, K 41, S 4: 0.9. In 16 bits long kernels
        # lose, 0.3 to 0.8; so do y and x, 0.6 to 0.9.
        few = range(MOST_AT_ONCE, MOST_LOOPLESS - 1, -1)
        return next((n for n in few if p.groups % n == 0), p.groups)
    return p.groups


_groups_apart = table(
    # Strides go before the groups part, so that each group reads its phases from one array.
    Rule(
        lambda p: p.strided and (p.slot == "x" or (p.slot == "y" and not _is_looped(p.geometry))),
        lambda p: _unit_strides(p, _groups_apart),
    ),
    otherwise(
        lambda p: p.through(
            rewrites.ungrouped(p.geometry),
            lambda *inner: _one_by_one(Problem(*inner), at_once=_at_once(p)),
        )
    ),
)


# -- One member, one group ---------------------------------------------------------------------------------------------


def _strided_input(p: Problem) -> jax.Array:
    # 10 to 30 times: XLA's own gradient of a strided convolution dilates its input.
    if _fills_phases(p):
        # 64x32x32, 16 to 32, K 3, S 2, 16x56x56, 64 to 128, and 32x28x28, 128 to 256: 2.0, 1.6 and 1.5 times; without
        # calls 1.3, 0.85 and 1.25. In 16 bits 1.3, 1.75 and 1.7. K 5, S 2 is level; three channels, K 7, lose, 0.3, and
        # so do small ones: 8x16x16, 16 to 32, 0.7, 1x64x64, 32 to 32, 0.8, and 64x28x28, 8 to 16, 0.55.
        return forms.by_phases(p.a, p.b, p.geometry, solve)
    if not _wastes_phases(p):
        return _unit_strides(p, solve)
    # 8x512, 256 to 256, K 5, S 4: 1.15 times, all three slots together.
    longer = p.geometry.size[0] % p.geometry.strides[0] * p.channels
    return p.through(rewrites.polyphase(p.geometry), partial(_shorter_phases, longer=longer))


def _fills_phases(p: Problem) -> bool:
    # Phases as channels have a third of their taps in vain, or more: K 3, S 2 uses 9 of 16.
    if p.geometry.ndim != 2 or p.dilation > 1 or p.channels < 16 or p.geometry.strides != (2, 2):
        return False
    products = p.a.shape[1] * math.prod(p.geometry.outputs) * p.taps * p.channels * p.filters
    if not is_below(FEW_PRODUCTS, products):
        return False
    return math.prod(2 * -(-k // 2) for k in p.geometry.size) >= 1.5 * p.taps


def _wastes_phases(p: Problem) -> bool:
    # Most phases have one tap less than the longest. K 3, S 2, which would save a quarter, loses a tenth.
    if p.geometry.ndim > 1 or p.dilation > 1:
        return False
    (size,), (stride,) = p.geometry.size, p.geometry.strides
    return size > stride and 2 * stride * -(-size // stride) >= 3 * size


def _shorter_phases(slot: Slot, y: jax.Array, w: jax.Array, geometry: Geometry, *, longer: int) -> jax.Array:
    """Solves what polyphase makes of x, where the last tap of all channels but the first ``longer`` is zero."""
    full = solve(slot, y, w[:, :, :longer], geometry)
    rest = solve(slot, y, w[:, :-1, longer:], geometry._replace(size=(geometry.size[0] - 1,)))
    return jnp.concatenate([full, rest], axis=-1)


def _product_for_w(p: Problem) -> jax.Array:
    # 1.1 to 2 times as fast as a convolution; for y and x the convolution is, by 1.05 to 1.3 times. Many rows for few
    # columns are summed in 8 pieces: 8x4096, 32 to 32, all slots together, 1.3 times, 8x2048, 64 to 64, 1.25.
    rows = p.a.shape[1] * math.prod(p.geometry.outputs)
    pieces = 8 if rows % 8 == 0 and rows >= 128 * p.widest else 1
    return forms.dot(*p, pieces=pieces)


def _convolution(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    # XLA's convolution is faster along one axis than along two: 1.1 to 1.7 times for y, 1.0 to 2.8 for w (3 to 96
    # channels, 32 to 192 filters, K 3, 5 and 7). 256 filters make no difference to y. With 128 channels or 512 filters
    # y is 0.8 to 1.2, by machine; with 16 filters 0.7, and with 8, whose products are narrow, 0.15. For w there is no
    # such bound: 8x32x32, 128 to 128, and 64x32x32, 16 to 16: 2.1 and 2.8 times; 128x28x28, 8 to 16: 8; 16x32x32, 16 to
    # 8, 0.8.
    channels, filters, several = a.shape[-1], b.shape[-1], math.prod(geometry.size) > 1
    wide = slot == "w" or (channels <= 96 and 32 <= filters <= 256)
    small = not is_symbolic(a.shape[1])  # with a batch of any size, none is known to be
    if slot == "y" and not small:
        return forms.dense(slot, a, b, geometry)
    if geometry.ndim > 1 and several and geometry.size[0] <= MOST_ROWS and wide:
        row = a.dtype.itemsize * geometry.size[0] * a.size // geometry.lengths[0]
        rows = geometry.outputs[0]
        if not small or rows == 1 or row * rows <= (2 if slot == "w" else 1) * MOST_JOINED:
            return rewrites.solve(rewrites.rows(geometry), slot, a, b, geometry, solve)
        if slot == "w":
            # 2x224x224, 64 to 64, K 3: 1.9 times as fast as all rows at once, 1.3 times as in pieces of 10 MB;
            # 16x56x56: 2.2 and 1.5 times. 64x28x28, 32 to 64, of 18 MB: 0.9 times, 128x28x28, 16 to 32: 0.7.
            count = next(n for n in range(min(rows, max(1, MOST_PIECE // row)), 0, -1) if rows % n == 0)
            return forms.in_pieces(a, b, geometry, count, _convolution)
    return forms.dense(slot, a, b, geometry)


def _patches_in_pieces(p: Problem) -> jax.Array:
    # As many rows of outputs at once as have patches that a cache holds.
    outputs, columns = p.geometry.outputs
    row = p.a.dtype.itemsize * p.a.shape[1] * columns * p.taps * p.channels
    count = next(n for n in range(min(outputs, max(1, MOST_PATCHES // row)), 0, -1) if outputs % n == 0)
    return forms.in_pieces(p.a, p.b, p.geometry, count, _product_of_patches)


def _product_of_patches(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    return rewrites.solve(rewrites.patches(geometry), slot, a, b, geometry, called.dot)


def _no_longer(geometry: Geometry) -> bool:
    return all(n <= j for n, j in zip(geometry.lengths, geometry.outputs, strict=True))


_dense = table(
    Rule(called.is_convolution, lambda p: p.by(called.convolution)),
    Rule(called.is_product, lambda p: p.by(called.product)),
    Rule(called.is_kernel, lambda p: p.by(called.kernel)),
    Rule(called.is_taps, lambda p: p.through(rewrites.padded(p.geometry), called.taps)),
    Rule(
        lambda p: p.slot != "w" and not p.strided and 1 < p.taps <= MOST_TAPS and 1 in (p.channels, p.filters),
        lambda p: p.by(one_channel(solve)),
    ),
    # The inputs that are read, and a product: 1.3 times (1-D), 2.2 (2-D), all three slots together. y alone loses.
    Rule(
        lambda p: p.taps == 1 and p.strided and p.slot != "y",
        lambda p: p.through(rewrites.patches(p.geometry), called.dot),
    ),
    Rule(lambda p: p.slot == "x" and p.strided, _strided_input),
    Rule(lambda p: p.slot == "x", lambda p: p.through(rewrites.mirrored(p.geometry), solve)),
    # Strided too: space-to-depth would be slower here, 0.6 to 0.9.
    Rule(lambda p: p.slot == "y", lambda p: p.by(_convolution)),
    Rule(lambda p: p.pointwise, _product_for_w),
    # The smaller of the two becomes the batch of the convolution, whose patches are copied: 1.1 to 2 times. Where x is
    # longer than y, XLA would take a kernel longer than its signal, which is a scalar loop again.
    Rule(
        lambda p: p.filters <= p.channels and not p.strided and _no_longer(p.geometry),
        lambda p: p.through(rewrites.mirrored(p.geometry), _convolution),
    ),
    # 64x32x32, 16 to 32, K 3, S 2: 1.7 times; 16x56x56, 64 to 128: 1.6; 32x28x28, 128 to 256: 2.2; 64x14x14, 64 to 64:
    # 1.0. Fewer channels, or K 4 and more, lose, and long signals too, with or without strides.
    Rule(
        lambda p: (
            p.geometry.ndim == 2
            and p.strided
            and p.taps <= 9
            and p.channels * p.filters >= 512
            and not is_symbolic(p.a.shape[1])
        ),
        _patches_in_pieces,
    ),
    otherwise(lambda p: p.by(_convolution)),
)

solve = table(
    EMPTY,
    MANY_SIZES,
    UNMET,
    Rule(lambda p: p.narrow and not called.in_16_bits(p), lambda p: p.by(in_float32(solve))),
    # 8x32x32, 64 to 64: 2 times for y and x, 2.5 for w.
    Rule(
        lambda p: p.geometry.ndim > 1 and p.pointwise,
        lambda p: p.through(rewrites.flattened(p.geometry), solve),
    ),
    Rule(called.is_dense, lambda p: p.by(_dense)),
    # XLA's fast convolution ends at two dimensions; and strides and dilation at once are rewritten by zeros between the
    # taps, more than which would be worse than a scalar loop.
    Rule(
        lambda p: p.geometry.ndim > 2 or (p.strided and p.dilation > MOST_DILATION),
        lambda p: p.by(forms.plain),
    ),
    Rule(lambda p: p.members > 1, lambda p: p.by(_members)),
    Rule(lambda p: p.groups > 1, lambda p: p.by(_grouped)),
    otherwise(lambda p: p.by(_dense)),
)

"""The product of rows with a matrix, y = x w, of which a processor's program makes oneDNN's calls where it gains.

A product is `jax.lax.dot_general`, and stays so in every program that can have no such call. Where one may be, it is
one of three primitives, each the bilinear function that the form T(x, w, y) = sum of x[..., c] w[c, o] y[..., o] is
solved by for one of its slots: y = x w, and the gradients x = y w' and w = x' y. The transposes of each are the others.

The first axes of all arrays can be members, products side by side: with M of them x is ``(*M, *R, C)``, w
``(*M, C, O)`` and y ``(*M, *R, O)``, of rows R. `vmap` makes members, and so do the heads of an attention.
"""

import functools
import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._mesh import spread
from jaxnet._symbolic import is_symbolic
from jaxnet.kernels import bilinear
from jaxnet.kernels.lowering import onednn
from jaxnet.kernels.slots import Slot

NAMES: dict[Slot, str] = {"y": "jaxnet_product", "x": "jaxnet_product_of_x", "w": "jaxnet_product_of_w"}
"""The primitives', by what each solves for."""

FEW = 2**28
"""Multiply-adds below which a product of float32 is XLA's."""

FEW_OF_MEMBERS = 2**16
"""The same of products side by side, which XLA is slower at: w alone, from two rows on."""


MOST_AXES = 12
"""Of an array that oneDNN takes; XLA ends the process at one with more."""


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """y = x w of rows x ``(..., C)`` and a matrix w ``(C, O)``, both of one dtype: ``(..., O)``.

    Of 16 bits, sums are in float32 and rounded once. In float32 the gradient of w alone is a call: the other two
    products XLA computes as fast, and fuses with what is around them.
    """
    return solve("y", x, w, 0)


def solve(slot: Slot, a: jax.Array, b: jax.Array, members: int) -> jax.Array:
    """The form solved for a slot: of x and w for y, of y and w for x, of x and y for w."""
    if not _may_be_called(a, b):
        return dot(slot, a, b, members)
    # Inside shard_map both vary over the same mesh axes first: the transpose of that sums a replicated w's gradient.
    return _primitive(slot).bind(spread(a, b), spread(b, a), members=members, precision=_precision())


def _precision() -> Any:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def _may_be_called(a: jax.Array, b: jax.Array) -> bool:
    """Whether a program that this is traced for could have calls, of which lowering decides."""
    sizes = (*a.shape, *b.shape)
    if not onednn.likely(a.dtype) or any(map(is_symbolic, sizes)) or 0 in sizes:
        return False
    if str(_precision()).isupper():  # an algorithm, such as BF16_BF16_F32, which JAX has or refuses
        return False
    mesh: Any = jax.typeof(a).sharding.mesh  # how explicitly sharded arrays are multiplied is JAX's to say
    return jax.sharding.AxisType.Explicit not in mesh.axis_types


def dot(slot: Slot, a: jax.Array, b: jax.Array, members: int) -> jax.Array:
    """The product as JAX's own; of one w as JAX writes its gradient, so that a program reads the same either way."""
    batch = tuple(range(members))

    def of(a, b, contracted):
        return lax.dot_general(a, b, (contracted, (batch, batch)))

    if slot == "y":
        return of(a, b, ((a.ndim - 1,), (members,)))
    if slot == "x":
        return of(a, b, ((a.ndim - 1,), (b.ndim - 1,)))
    rows = tuple(range(members, a.ndim - 1))
    return of(a, b, (rows, rows)) if members else of(b, a, (rows, rows)).T


def _shape(slot: Slot, a: Any, b: Any, members: int) -> tuple[int, ...]:
    return (*a[:members], a[-1], b[-1]) if slot == "w" else (*a[:-1], b[-1 if slot == "y" else -2])


def _primitive(slot: Slot) -> Any:
    with _LOCK:  # two primitives of one name would be two to every cache
        return _make(slot)


_LOCK = threading.RLock()


@functools.cache
def _make(slot: Slot) -> Any:
    def abstract(a, b, *, members, precision):
        shape = _shape(slot, a.shape, b.shape, members)
        spec = jax.sharding.PartitionSpec(*(None,) * len(shape))
        return a.update(shape=shape, sharding=a.sharding.update(spec=spec), weak_type=False)

    def multiply_adds(a, b, out):
        return math.prod(a.shape) * b.shape[-2 if slot == "x" else -1]

    return bilinear.make(
        NAMES[slot],
        slot,
        _primitive,
        abstract=abstract,
        batch=functools.partial(_batch, slot),
        multiply_adds=multiply_adds,
        solvers={None: functools.partial(dot, slot), "cpu": functools.partial(_dot_or_call, slot)},
    )


def _batch(slot: Slot, operands, dims, *, members, precision):
    (a, b), bind = operands, functools.partial(_primitive(slot).bind, precision=precision)
    if None not in dims:
        return bind(*(jnp.moveaxis(v, dim, 0) for v, dim in zip(operands, dims, strict=True)), members=members + 1), 0
    if slot != "w" and dims[1] is None:  # more rows
        return bind(jnp.moveaxis(a, dims[0], members), b, members=members), members
    with jax.default_matmul_precision(precision):
        return jax.vmap(functools.partial(dot, slot, members=members), dims)(a, b), 0


def _dot_or_call(slot: Slot, a: jax.Array, b: jax.Array, members: int) -> jax.Array:
    if not _is_call(slot, a, b, members):
        return dot(slot, a, b, members)
    shape = _shape(slot, a.shape, b.shape, members)
    # Members stay axes, which are those of the other products too: XLA computes what both read once.
    together = a.shape[:members] if math.prod(a.shape[:members]) > 1 else ()
    a, b = (v.reshape(*together, math.prod(v.shape[members:-1]), v.shape[-1]) for v in (a, b))
    return onednn.product(a, b, transpose_a=slot == "w", transpose_b=slot == "x").reshape(shape)


def _is_call(slot: Slot, a: jax.Array, b: jax.Array, members: int) -> bool:
    """In bfloat16 all, which gain 1.5 to 4 times; of float32 the gradient of w, 1.1 to 1.5 times, of members 1.2 to 3.

    AMD EPYC with AVX-512 and its bfloat16, 2 cores, jax 0.10.2 and 0.12.
    """
    if jnp.finfo(a.dtype).bits == 32:
        several = math.prod(a.shape[:members]) > 1
        rows = math.prod(a.shape[members:-1])
        large = math.prod(a.shape) * b.shape[-1] >= (FEW_OF_MEMBERS if several else FEW)
        if slot != "w" or not large or (several and rows == 1):
            return False
    return members + 2 <= MOST_AXES and onednn.multiplies(a.dtype)

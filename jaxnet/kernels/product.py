"""The product of rows with a matrix, y = x w, of which a processor's program makes oneDNN's calls where it gains.

A product is `jax.lax.dot_general`, and stays so in every program that can have no such call. Where one may be, it is
one of three primitives, each the bilinear function that the form T(x, w, y) = sum of x[..., c] w[c, o] y[..., o] is
solved by for one of its slots: y = x w, and the gradients x = y w' and w = x' y. The transposes of each are the others.
"""

import functools
import math
import threading
from typing import Any

import jax
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


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """y = x w of rows x ``(..., C)`` and a matrix w ``(C, O)``, both of one dtype: ``(..., O)``.

    Of 16 bits, sums are in float32 and rounded once. In float32 the gradient of w alone is a call: the other two
    products XLA computes as fast, and fuses with what is around them.
    """
    if not _may_be_called(x, w):
        return dot("y", x, w)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    # Inside shard_map both vary over the same mesh axes first: the transpose of that sums a replicated w's gradient.
    return _primitive("y").bind(spread(x, w), spread(w, x), precision=precision)


def _may_be_called(a: jax.Array, b: jax.Array) -> bool:
    """Whether a program that this is traced for could have calls, of which lowering decides."""
    sizes = (*a.shape, *b.shape)
    if not onednn.likely(a.dtype) or any(map(is_symbolic, sizes)) or 0 in sizes:
        return False
    mesh: Any = jax.typeof(a).sharding.mesh  # how explicitly sharded arrays are multiplied is JAX's to say
    return jax.sharding.AxisType.Explicit not in mesh.axis_types


def dot(slot: Slot, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product as JAX writes it, and its transposes as JAX writes them."""

    def forward(x, w):
        return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))

    if slot == "y":
        return forward(a, b)
    like = jax.ShapeDtypeStruct(_shape(slot, a.shape, b.shape), a.dtype)
    if slot == "x":
        return jax.linear_transpose(lambda x: forward(x, b), like)(a)[0]
    return jax.linear_transpose(lambda w: forward(a, w), like)(b)[0]


def _shape(slot: Slot, a: Any, b: Any) -> tuple[int, ...]:
    return {"y": (*a[:-1], b[-1]), "x": (*a[:-1], b[0]), "w": (a[-1], b[-1])}[slot]


def _primitive(slot: Slot) -> Any:
    with _LOCK:  # two primitives of one name would be two to every cache
        return _make(slot)


_LOCK = threading.RLock()


@functools.cache
def _make(slot: Slot) -> Any:
    def abstract(a, b, *, precision):
        shape = _shape(slot, a.shape, b.shape)
        spec = jax.sharding.PartitionSpec(*(None,) * len(shape))
        return a.update(shape=shape, sharding=a.sharding.update(spec=spec), weak_type=False)

    def multiply_adds(a, b, out):
        return math.prod(a.shape) * (b.shape[0] if slot == "x" else b.shape[-1])

    return bilinear.make(
        NAMES[slot],
        slot,
        _primitive,
        abstract=abstract,
        batch=functools.partial(_batch, slot),
        multiply_adds=multiply_adds,
        solvers={None: functools.partial(dot, slot), "cpu": functools.partial(_dot_or_call, slot)},
    )


def _batch(slot: Slot, operands, dims, *, precision):
    a, b = operands
    if slot != "w" and dims[1] is None:  # more rows
        return _primitive(slot).bind(jax.numpy.moveaxis(a, dims[0], 0), b, precision=precision), 0
    with jax.default_matmul_precision(precision):
        return jax.vmap(functools.partial(dot, slot), dims)(a, b), 0


def _dot_or_call(slot: Slot, a: jax.Array, b: jax.Array) -> jax.Array:
    narrow = jax.numpy.finfo(a.dtype).bits < 32
    large = math.prod(a.shape) * b.shape[-1] >= FEW
    if not (narrow or (slot == "w" and large)) or not onednn.multiplies(a.dtype):
        return dot(slot, a, b)
    shape = _shape(slot, a.shape, b.shape)
    a, b = (v.reshape(-1, v.shape[-1]) for v in (a, b))
    return onednn.product(a, b, transpose_a=slot == "w", transpose_b=slot == "x").reshape(shape)

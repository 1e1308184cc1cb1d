"""One trilinear form, and the three primitives that solve it for each of its slots.

Within each group, with j, k from 0 and x outside its range being 0,

    T(x, w, y) = sum over b, j, k, c, o of  x[b, S j + d k - P, c] w[k, c, o] y[b, j, o].

The gradient of T by one slot is a bilinear function of the other two:

    conv(x, w)        = dT/dy    convolution
    conv_input(y, w)  = dT/dx    its adjoint, which is also the transposed convolution
    conv_kernel(x, y) = dT/dw    the gradient of the kernel

Each one's derivative by an operand is itself, and its transpose by an operand is another of the three. So derivatives
of every order and mode stay among them, and what makes the three fast (`lowering`) makes all derivatives fast.

Arrays have a leading axis of members, independent forms side by side, which `vmap` over both operands adds to:
x is ``(N, B, *L, C)``, w is ``(N, *K, C / g, O)``, y is ``(N, B, *J, O)``. `vmap` over one operand alone makes the
batch or the channels larger, and costs no more than that.
"""

import functools
import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from jaxnet._mesh import varying
from jaxnet.errors import ConfigError, named
from jaxnet.kernels import bilinear, lowering
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import OPERANDS, Slot, shape_of


def conv(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """Solves the form for y: the convolution of x with w."""
    return _bind("y", x, w, geometry)


def conv_input(y: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """Solves the form for x: the gradient of the input, or the transposed convolution of y with w."""
    return _bind("x", y, w, geometry)


def conv_kernel(x: jax.Array, y: jax.Array, geometry: Geometry) -> jax.Array:
    """Solves the form for w: the gradient of the kernel."""
    return _bind("w", x, y, geometry)


def _bind(slot: Slot, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    # Inside shard_map, operands that vary over different mesh axes are first made to vary over the same ones; the
    # transpose of that is the sum over devices which a replicated kernel's gradient needs.
    every = varying(a) | varying(b)
    a, b = (jax.lax.pcast(v, tuple(every - varying(v)), to="varying") for v in (a, b))
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return _primitive(slot).bind(a, b, geometry=geometry, precision=precision)


# The axis along which an index runs in each array that has it; channels of x and outputs of y are group-major.
_AXES = {"x": {"b": 1, "c": -1}, "w": {"c": -2, "o": -1}, "y": {"b": 1, "o": -1}}


def _split(array: str, index: str, groups: int) -> int:
    # The batch has no groups, nor has w's axis C / g.
    return 1 if index == "b" or (array, index) == ("w", "c") else groups


def _widen(value: jax.Array, mapped: int, array: str, index: str, groups: int) -> jax.Array:
    """Merges the axis ``mapped`` into the axis of ``index``, inside each group."""
    value = jnp.moveaxis(value, mapped, 0)
    members, *shape = value.shape
    axis = _AXES[array][index] % len(shape)
    split = _split(array, index, groups)
    value = value.reshape(members, *shape[:axis], split, shape[axis] // split, *shape[axis + 1 :])
    value = jnp.moveaxis(value, 0, axis + 1)
    return value.reshape(*shape[:axis], members * shape[axis], *shape[axis + 1 :])


def _narrow(value: jax.Array, members: int, array: str, index: str, groups: int) -> jax.Array:
    """Undoes `_widen`; the mapped axis comes first."""
    shape = value.shape
    axis = _AXES[array][index] % len(shape)
    split = _split(array, index, groups)
    value = value.reshape(*shape[:axis], split, members, shape[axis] // (split * members), *shape[axis + 1 :])
    value = jnp.moveaxis(value, axis + 1, 0)
    return value.reshape(members, *shape[:axis], shape[axis] // members, *shape[axis + 1 :])


def _batch(slot: Slot, operands, dims, *, geometry: Geometry, **params):
    arrays = OPERANDS[slot]
    mapped = [dim is not None for dim in dims]
    bind = functools.partial(_primitive(slot).bind, geometry=geometry, **params)
    if all(mapped):
        a, b = (jnp.moveaxis(v, dim, 0) for v, dim in zip(operands, dims, strict=True))
        members = a.shape[0]
        out = bind(*(v.reshape(members * v.shape[1], *v.shape[2:]) for v in (a, b)))
        return out.reshape(members, out.shape[0] // members, *out.shape[1:]), 0
    which = mapped.index(True)
    one, other = arrays[which], arrays[1 - which]
    # The index that the mapped operand shares with the result alone: there the members can lie side by side.
    (index,) = _AXES[one].keys() & _AXES[slot].keys() - _AXES[other].keys()
    values = list(operands)
    members = values[which].shape[dims[which]]
    values[which] = _widen(values[which], dims[which], one, index, geometry.groups)
    return _narrow(bind(*values), members, slot, index, geometry.groups), 0


def _primitive(slot: Slot) -> Any:
    with _LOCK:  # two primitives of one name would be two to every cache
        return _make(slot)


_LOCK = threading.RLock()


@named("conv")
def _check_sharding(slot: Slot, a: ShapedArray, b: ShapedArray) -> None:
    """Refuses, on a mesh with explicit axes, what has no one obvious result: all but x and y spread over the batch."""
    for name, array in zip(OPERANDS[slot], (a, b), strict=True):
        spread = [i for i, axes in enumerate(array.sharding.spec) if axes is not None and (name == "w" or i != 1)]
        if spread:
            raise ConfigError(
                f"of an explicitly sharded mesh's arrays only the input's batch can be spread over devices, got "
                f"{array}; take axis_types=(jax.sharding.AxisType.Auto,) for the mesh, or jax.sharding.reshard first"
            )


@functools.cache
def _make(slot: Slot) -> Any:
    def abstract(a, b, *, geometry, precision):
        _check_sharding(slot, a, b)
        shape = shape_of(slot, a.shape, b.shape, geometry)
        if slot == "w":  # summed over the batch: the same on every device of an explicitly sharded mesh
            spec = jax.sharding.PartitionSpec(*(None,) * len(shape))
            return a.update(shape=shape, sharding=a.sharding.update(spec=spec), weak_type=False)
        return a.update(shape=shape, weak_type=False)

    def multiply_adds(*types):  # each of y once a tap and input channel; y (N, B, *J, O), w (N, *K, C / g, O)
        shapes = {name: kind.shape for name, kind in zip((*OPERANDS[slot], slot), types, strict=True)}
        return math.prod(shapes["y"]) * math.prod(shapes["w"][1:-1])

    by_platform = {None: lowering.vendor.solve, "cpu": lowering.cpu.solve, "cuda": lowering.gpu.solve}
    return bilinear.make(
        {"y": "jaxnet_conv", "x": "jaxnet_conv_input", "w": "jaxnet_conv_kernel"}[slot],
        slot,
        _primitive,
        abstract=abstract,
        batch=functools.partial(_batch, slot),
        multiply_adds=multiply_adds,
        solvers={platform: functools.partial(solve, slot) for platform, solve in by_platform.items()},
    )

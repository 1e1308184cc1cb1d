"""A function in a few of JAX's own primitives, for tools that translate these one by one: jax2onnx."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxnet.kernels import product
from jaxnet.kernels.lowering import vendor
from jaxnet.kernels.slots import Slot

_SLOTS = {"jaxnet_conv": "y", "jaxnet_conv_input": "x", "jaxnet_conv_kernel": "w"}
_PRODUCTS: dict[str, Slot] = {name: slot for slot, name in product.NAMES.items()}
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jaxnet_linear": "jaxpr",
}
"""Primitives that are the call of a function, with the parameter that has it."""


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, written out: our primitives as JAX's convolution, no calls, one platform's branch.

    Windows, padding, reshapes and the order of a convolution's axes are written as what jax2onnx and the runtimes have.
    Its values are those of ``function`` to within rounding; derivative rules of its parts are not kept.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> from jaxnet.kernels.inlined import inlined
      >>> x, w = jnp.ones((1, 9, 1)), jnp.ones((3, 1, 1))
      >>> [str(e.primitive) for e in jax.make_jaxpr(inlined(kernels.conv))(x, w).eqns if "conv" in str(e.primitive)]
      ['conv_general_dilated']
    """

    def flat(*args):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(out), _run(closed, jax.tree.leaves(args)))

    return flat


def _run(closed: Any, args: list[Any]) -> list[Any]:
    """The outputs of a jaxpr, its equations evaluated one after the other."""
    jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, [])
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(variable):
        return variable.val if hasattr(variable, "val") else values[variable]  # a literal has its value with it

    for equation in jaxpr.eqns:
        out = _solved(equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, out, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _solved(equation: Any, operands: list[Any]) -> list[Any]:
    primitive, params = equation.primitive, equation.params
    if primitive.name in _SLOTS:
        slot: Any = _SLOTS[primitive.name]
        return _run(jax.make_jaxpr(lambda a, b: vendor.solve(slot, a, b, params["geometry"]))(*operands), operands)
    if primitive.name in _PRODUCTS:
        return _run(
            jax.make_jaxpr(functools.partial(product.dot, _PRODUCTS[primitive.name], members=params["members"]))(
                *operands
            ),
            operands,
        )
    if primitive.name in _CALLS:
        return _run(params[_CALLS[primitive.name]], operands)
    if primitive.name == "platform_index":
        platforms = params["platforms"]
        return [np.int32(platforms.index(None) if None in platforms else 0)]  # what is for none in particular
    if primitive.name == "cond" and type(operands[0]) is np.int32:
        return _run(params["branches"][operands[0]], operands[1:])
    if primitive is lax.conv_general_dilated_p:
        return [_channels_first(*operands, **params)]
    if primitive is lax.reshape_p and params["dimensions"] is not None:  # which jax2onnx 0.17.1 overlooks
        return [operands[0].transpose(params["dimensions"]).reshape(params["new_sizes"])]
    if primitive is lax.pad_p:
        return [_padded(*operands, **params)]
    if primitive is lax.reduce_window_max_p:
        return [_one_axis_each(*operands, **params)]
    out = primitive.bind(*operands, **{name: _written(value) for name, value in params.items()})
    return list(out) if primitive.multiple_results else [out]


def _channels_first(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> jax.Array:
    """A convolution with its arrays in one order, the only one that every tool has."""
    x_order, kernel_order, y_order = dimension_numbers
    plain = lax.ConvDimensionNumbers(*[tuple(range(x.ndim))] * 3)
    x, kernel = x.transpose(x_order), kernel.transpose(kernel_order)
    y = lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=plain, **params)
    return y.transpose(np.argsort(y_order))


def _one_axis_each(x: jax.Array, **params: Any) -> jax.Array:
    """The largest of windows, axis by axis, each as one of three: ONNX runtimes have windows over no more."""
    paddings = params.pop("padding")
    for axis, padding in enumerate(paddings):
        one = {name: (1, values[axis], 1) for name, values in params.items()}
        if padding != (0, 0) or set(one.values()) != {(1, 1, 1)}:
            three = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
            y = lax.reduce_window_max_p.bind(three, padding=((0, 0), padding, (0, 0)), **one)
            x = y.reshape(*x.shape[:axis], y.shape[1], *x.shape[axis + 1 :])
    return x


def _padded(x: jax.Array, value: jax.Array, *, padding_config: Any) -> jax.Array:
    """Padding as a concatenation, which jax2onnx has for a batch of any size."""
    if any(inside for _, _, inside in padding_config):
        return lax.pad_p.bind(x, value, padding_config=padding_config)
    for axis, (before, after, _) in enumerate(padding_config):
        if before or after:
            around = [(*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :]) for n in (before, after)]
            x = lax.concatenate([lax.broadcast(value, around[0]), x, lax.broadcast(value, around[1])], axis)
            x = lax.slice_in_dim(x, max(-before, 0), x.shape[axis] - max(-after, 0), axis=axis)
    return x


def _written(value: Any) -> Any:
    """A parameter, written out where it is the body of a loop or branch."""
    if _is_body(value):
        kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in value.in_avals]
        return jax.make_jaxpr(lambda *args: _run(value, list(args)))(*kinds)
    return tuple(map(_written, value)) if isinstance(value, tuple) and any(map(_is_body, value)) else value


def _is_body(value: Any) -> bool:
    return hasattr(value, "in_avals") and hasattr(value, "eqns")

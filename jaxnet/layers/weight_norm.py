"""Weight normalization: a kernel's direction and its length as parameters of their own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.layers import reparametrized
from jaxnet.layers.layer import Layer, Merged, as_layer
from jaxnet.layers.layer import layer as define


@made
def weight_norm(layer: Layer | Callable[..., Any]) -> Layer:
    """Learns a layer's kernel as direction v and length g: w = g v / ||v||, one length a filter.

    Around a whole network it does so for each layer with a kernel in it, and leaves what is `frozen`. The network
    computes at the start what it would have computed without: g starts as the length of v. The kernel is made anew
    each time the layer is applied, in float32, or wider if v is; nothing is ever written back into the parameters.

    A filter is what PyTorch takes for one, an entry of its weight's first axis: an output of a dense layer or a
    convolution, and an input of a transposed convolution.

    Args:
      layer: a layer with a param ``kernel``, or a network with such layers in it.

    Returns:
      The layer with v in the place of its ``kernel``, and g as one param more, ``scale``, of the kernel's rank, such as
      (1, 1, C_out). A filter whose v is all 0 gives 0.

    Raises:
      ConfigError: no kernel is there, or the layer has a ``scale`` of its own; nothing can be put into a network in it.
      ShapeError, DTypeError: a ``scale`` that is not the kernel's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.weight_norm(layers.chain(layers.conv(8, 3), jnp.tanh, layers.dense(2)))
      >>> params, state = net.init(0, jnp.ones((1, 16, 4)))
      >>> jax.tree.map(jnp.shape, params[0])
      {'bias': (8,), 'kernel': (3, 4, 8), 'scale': (1, 1, 8)}

    Source: Salimans and Kingma 2016, arXiv 1602.07868.
    """
    return reparametrized.every_kernel(as_layer(layer), _weight_norm, "weight_norm")


@made
def _weight_norm(inner: Layer) -> Layer:
    into = next((f for leaf, _, f in inner.about.torch if leaf == "kernel"), None)

    @functools.cache
    def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
        return _filters(shape, into)

    def init(key, x):
        params, state = inner.init(key, x)
        kernel = reparametrized.kernel_of(params, inner, others=("scale",))
        return {**params, "scale": _lengths(kernel, scale_shape(kernel.shape)).astype(kernel.dtype)}, state

    def effective(params, state):
        if not isinstance(params, dict) or not {"kernel", "scale"} <= params.keys():
            raise ConfigError("params must have a kernel and a scale; pass what this layer's init returned")
        kernel, scale = (checks.array(name, params[name]) for name in ("kernel", "scale"))
        if scale.shape != (wanted := scale_shape(kernel.shape)):
            raise ShapeError(
                f"a kernel {kernel.shape} has a scale of shape {wanted}, got {scale.shape}; "
                f"pass what this layer's init returned"
            )
        checks.same_dtype(kernel=kernel, scale=scale)
        new = {name: leaf for name, leaf in params.items() if name != "scale"}
        return {**new, "kernel": _scaled(kernel, scale)}, state

    def apply(params, state, x, *, train, key):
        return inner.apply(*effective(params, state), x, train=train, key=key)

    torch = tuple(entry for entry in inner.about.torch if entry[0] != "kernel")
    if into is not None:
        # The norm of PyTorch's weight is over all its axes but the first, and is kept with those at length 1.
        torch += (
            ("scale", "parametrizations.weight.original0", into),
            ("kernel", "parametrizations.weight.original1", into),
        )
    about = inner.about._replace(
        torch=torch, stream=reparametrized.streamed(inner, effective), merged=Merged(inner, effective)
    )
    return define(inner.name, init, apply, **about._asdict())


def _scaled(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    lengths = _lengths(kernel, scale.shape)
    factor = wide(scale) / jnp.where(lengths > 0, lengths, jnp.ones_like(lengths))
    groups = scale.shape[-1]
    apart = wide(kernel).reshape(*kernel.shape[:-1], groups, kernel.shape[-1] // groups)
    return (apart * factor[..., None]).reshape(kernel.shape).astype(kernel.dtype)


def _lengths(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The norm of each filter, in the scale's shape; where it is 0, so is its derivative."""
    groups = shape[-1]
    apart = wide(kernel).reshape(*kernel.shape[:-1], groups, kernel.shape[-1] // groups)
    over = (*(axis for axis in range(kernel.ndim - 1) if shape[axis] == 1), kernel.ndim)
    squares = jnp.sum(apart * apart, over, keepdims=True)[..., 0]
    there = squares > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, squares, jnp.ones_like(squares))), jnp.zeros_like(squares))


def _filters(shape: tuple[int, ...], into: Callable[[Any], Any] | None) -> tuple[int, ...]:
    """The scale's shape: an axis of the kernel where the filters are counted, 1 where a filter lies.

    The last axis is counted in groups: of a grouped transposed convolution, each has inputs of its own.
    """
    if len(shape) < 2:
        raise ShapeError(f"a kernel must have the axes (..., inputs, outputs), got shape {shape}")
    if into is None:
        return (*(1,) * (len(shape) - 1), shape[-1])
    with jax.ensure_compile_time_eval():
        numbers = np.asarray(jax.jit(into)(np.arange(np.prod(shape), dtype=np.int32).reshape(shape)))
    first = np.empty(numbers.size, np.int64)  # of each element, the index on the first axis of PyTorch's weight
    first[numbers.reshape(-1)] = np.repeat(np.arange(numbers.shape[0]), numbers.size // numbers.shape[0])
    first = first.reshape(shape)

    def distinct(axis):
        return len(np.unique(first[tuple(slice(None) if i == axis else 0 for i in range(len(shape)))]))

    return tuple(distinct(axis) for axis in range(len(shape)))

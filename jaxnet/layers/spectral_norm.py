"""Spectral normalization: a kernel divided by its largest singular value."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet._dtypes import at_least_float32, wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.layers import reparametrized
from jaxnet.layers.layer import Layer, Merged, as_layer
from jaxnet.layers.layer import layer as define


@made
def spectral_norm(layer: Layer | Callable[..., Any], *, iterations: int = 1, epsilon: float = 1e-12) -> Layer:
    """Divides a layer's kernel by its largest singular value: w = v / sigma(v), with sigma = left . V right.

    V is the kernel as a matrix, an output a row. ``left`` and ``right`` approach its first singular vectors by power
    iteration, left <- V right / ||V right||, right <- V^T left / ||V^T left||, from where the step before came to: they
    are in the state, and move in training alone. No gradient flows through them. Around a whole network each layer
    with a kernel in it is so normalized, and what is `frozen` is left. Nothing is ever written back into the
    parameters.

    Args:
      layer: a layer with a param ``kernel``, or a network with such layers in it.
      iterations: power iterations a training step.
      epsilon: the least length that the vectors are divided by.

    Returns:
      The layer with its own params, and in its state ``left (outputs,)`` and ``right (*kernel.shape[:-1],)`` too, after
      15 iterations from a random start.

    Raises:
      ConfigError: no kernel is there, ``iterations`` or ``epsilon`` out of range; nothing can be put into a network in
        it.
      ShapeError: a state that is not the kernel's.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.spectral_norm(layers.dense(2, bias=False))
      >>> _, state = net.init(0, jnp.ones((1, 2)))
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
      >>> for _ in range(20):
      ...     y, state = net.apply(params, state, jnp.ones((1, 2)), train=True)
      >>> [round(float(value), 3) for value in y[0]]
      [0.75, 1.0]

    Source: Miyato et al. 2018, arXiv 1802.05957.
    """
    iterations = checks.integer("iterations", iterations, minimum=1)
    epsilon = checks.number("epsilon", epsilon, low=0, open_low=True)

    def wrap(inner):
        return _spectral_norm(inner, iterations, epsilon)

    return reparametrized.every_kernel(as_layer(layer), wrap, "spectral_norm")


@made
def _spectral_norm(inner: Layer, iterations: int, epsilon: float) -> Layer:
    def init(key, x):
        key, start = drawing.split(checks.key(key), 2)
        params, state = inner.init(key, x)
        kernel = reparametrized.kernel_of(params, inner)
        right = jax.random.normal(start, kernel.shape[:-1], at_least_float32(kernel.dtype))
        left, right = _iterated(kernel, right, 15, epsilon)
        return params, {**_dict(state), "left": left, "right": right}

    def apart(params, state):
        """The kernel, the two vectors and the state inside."""
        kernel = reparametrized.kernel_of(params, inner)
        if not isinstance(state, dict) or not {"left", "right"} <= state.keys():
            raise ConfigError("the state must have left and right; pass what this layer's init returned")
        kernel, left, right = (
            checks.array(n, a) for n, a in (("kernel", kernel), ("left", state["left"]), ("right", state["right"]))
        )
        if left.shape != kernel.shape[-1:] or right.shape != kernel.shape[:-1]:
            raise ShapeError(
                f"a kernel {kernel.shape} has the vectors left {kernel.shape[-1:]} and right {kernel.shape[:-1]}, got "
                f"{left.shape} and {right.shape}; pass what this layer's init returned"
            )
        rest = {name: leaf for name, leaf in state.items() if name not in ("left", "right")}
        return kernel, left, right, rest or ()

    def divided(params, kernel, left, right):
        v = wide(kernel)
        sigma = jnp.vdot(_rows(v) @ left.astype(v.dtype), right.reshape(-1).astype(v.dtype))
        return {**params, "kernel": (v / jnp.where(sigma == 0, 1, sigma)).astype(kernel.dtype)}

    def effective(params, state):
        kernel, left, right, rest = apart(params, state)
        return divided(params, kernel, left, right), rest

    def apply(params, state, x, *, train, key):
        kernel, left, right, rest = apart(params, state)
        if train:
            moved = _iterated(lax.stop_gradient(kernel), right, iterations, epsilon)
            left, right = (new.astype(old.dtype) for new, old in zip(moved, (left, right), strict=True))
        y, rest = inner.apply(divided(params, kernel, left, right), rest, x, train=train, key=key)
        return y, {**_dict(rest), "left": left, "right": right}

    about = inner.about._replace(
        torch=_torch(inner), stream=reparametrized.streamed(inner, effective), merged=Merged(inner, effective)
    )
    return define(inner.name, init, apply, **about._asdict())


def _rows(kernel: jax.Array) -> jax.Array:
    """V transposed, of shape (what an output is made of, outputs)."""
    return kernel.reshape(-1, kernel.shape[-1])


def _iterated(kernel: jax.Array, right: jax.Array, iterations: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    v = _rows(wide(kernel))
    left, right = jnp.zeros(v.shape[1:], v.dtype), right.reshape(-1).astype(v.dtype)
    for _ in range(iterations):
        left = _unit(right @ v, epsilon)
        right = _unit(v @ left, epsilon)
    return left, right.reshape(kernel.shape[:-1])


def _unit(x: jax.Array, epsilon: float) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), epsilon)


def _dict(state: Any) -> dict[str, Any]:
    if isinstance(state, dict):
        return state
    if state != ():
        raise ConfigError("the layer inside must have a state that is () or a dict")
    return {}


def _flat(into: Callable[[Any], Any], right: jax.Array) -> jax.Array:
    return into(right[..., None]).reshape(-1)


def _torch(inner: Layer) -> Any:
    """PyTorch keeps the vectors flat, of which the right one in its weight's order."""
    torch: tuple[Any, ...] = tuple(entry for entry in inner.about.torch if entry[0] != "kernel")
    into = next((f for leaf, _, f in inner.about.torch if leaf == "kernel"), None)
    if into is None:
        return torch
    return (
        *torch,
        ("kernel", "parametrizations.weight.original", into),
        ("left", "parametrizations.weight.0._u", None),
        ("right", "parametrizations.weight.0._v", functools.partial(_flat, into)),
    )

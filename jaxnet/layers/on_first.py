"""A layer on the first entry of a tuple."""

from collections.abc import Callable
from typing import Any

from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.layers.layer import Layer, applied, as_layer
from jaxnet.layers.layer import layer as define


@made
def on_first(layer: Layer | Callable[..., Any]) -> Layer:
    """Applies a layer to the first entry of a tuple and hands the others on: (x, mask, ...) to (layer(x), mask, ...).

    So layers that know of no mask stand between those that take one. What is no tuple is given to the layer whole: one
    network takes ``x`` and ``(x, mask)``.

    Args:
      layer: a layer, or a bare callable.

    Returns:
      A layer with the params and the state of ``layer``.

    Raises:
      ConfigError: a part that is neither a layer nor callable.
      ShapeError: an empty tuple.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.on_first(layers.dense(8)), layers.on_first(jnp.tanh))
      >>> x = jnp.ones((2, 5, 4)), jnp.array([[True] * 5, [True] * 3 + [False] * 2])
      >>> params, state = net.init(0, x)
      >>> [entry.shape for entry in net.apply(params, state, x, train=False)[0]]
      [(2, 5, 8), (2, 5)]
    """
    inner = as_layer(layer)

    def init(key, x):
        return inner.init(key, _parted(x)[0])

    def apply(params, state, x, *, train, key):
        first, *others = _parted(x)
        with applied("on_first", inner):
            y, state = inner.apply(params, state, first, train=train, key=key)
        return (y, *others) if isinstance(x, tuple) else y, state

    return define("on_first", init, apply, parts=(("layer", inner),), rebuild=on_first, trees="same")


def _parted(x: Any) -> tuple[Any, ...]:
    if isinstance(x, tuple) and not x:
        raise ShapeError("x is an empty tuple; its first entry is what the layer is applied to")
    return x if isinstance(x, tuple) else (x,)

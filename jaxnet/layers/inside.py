"""Looking inside a network: the same network, with every layer's input and output shown to a function."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxnet.layers.layer import Layer

Watch = Callable[[tuple[str, ...], Layer, Any, Any, Any, Any], Any]
"""``(path, layer, params, state, x, y) -> anything``, called once for each layer as it is traced."""


class Watched(NamedTuple):
    """The state of a watched layer: the layer's own next state, and what the watcher returned for it."""

    state: Any
    seen: Any


def watched(net: Layer, watch: Watch, path: tuple[str, ...] = ()) -> Layer:
    """Returns ``net`` with ``watch`` called on every layer in it, containers after their parts.

    The network takes the same params and state. The state that it returns holds a `Watched` in place of each layer's,
    so that what ``watch`` computes leaves through ``jit``, ``grad`` and the scan of ``repeat`` like any other value,
    stacked over the copies in the latter.

    Args:
      net: any layer or network.
      watch: given the path of labels, the layer, its params, its state before the call, its input and its output;
        returns a pytree of arrays, or ``()``.
      path: the labels above ``net``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.dense(3), jnp.tanh)
      >>> params, state = net.init(0, jnp.ones((1, 2)))
      >>> norms = layers.watched(net, lambda path, layer, params, state, x, y: jnp.linalg.norm(y))
      >>> _, seen = norms.apply(params, state, jnp.zeros((1, 2)), train=False)
      >>> seen.state[0].seen  # of chain[0], the dense layer
      Array(0., dtype=float32)
    """
    inner = net
    if net.rebuild is not None:
        inner = net.rebuild(*(watched(part, watch, (*path, label)) for label, part in net.parts))

    def apply(params, state, x, *, train, key=None):
        y, new = inner.apply(params, state, x, train=train, key=key)
        return y, Watched(new, watch(path, net, params, state, x, y))

    return Layer(net.init, apply, net.name, groups=net.groups)

"""A network whose parameters are one vector."""

from collections.abc import Callable
from typing import Any

from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.layers.layer import Around, Layer, applied, as_layer, layer
from jaxnet.optimizers.flat import Raveled, ravel


@made
def raveled(net: Layer | Callable[..., Any]) -> Layer:
    """Keeps a network's parameters in one vector, so that a training step handles a few arrays and not hundreds.

    Gradients, updates and the optimizer's moments are then vectors too: Adam is one operation, whatever the network.
    Where a network has many small leaves, on a GPU above all, that is most of what a step costs beyond its arithmetic.
    The numbers are those of ``net`` trained as it is, for the rules that `optimizers.flat` names.

    Inside ``mixed_precision(raveled(net))`` the whole vector is cast at once.

    Args:
      net: the network.

    Returns:
      A layer with the state of ``net`` and, as params, an `optimizers.Raveled`: ``params.unravel()`` are those of
      ``net``, and ``optimizers.ravel(params)`` makes them from trained ones. To tools that look inside a network it is
      one layer; give them ``net`` and ``params.unravel()``.

    Raises:
      ConfigError: from ``apply``: params that are not raveled.
      DTypeError: from ``init``: a parameter is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.raveled(layers.chain(layers.dense(8), jnp.tanh, layers.dense(2)))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, params.vectors)
      {'float32': (58,)}
      >>> params.unravel()[0]["kernel"].shape
      (4, 8)

    Source: measured by ``python -m benchmarks vocoder-step``.
    """
    inner = as_layer(net, "net")

    def init(key, x):
        params, state = inner.init(key, x)
        return ravel(params), state

    def apply(params, state, x, *, train, key):
        if not isinstance(params, Raveled):
            raise ConfigError(
                f"params must be an optimizers.Raveled, got {type(params).__name__}; pass what this layer's "
                f"init returned, or make it from the params of the network inside: optimizers.ravel(params)"
            )
        with applied("raveled", inner):
            return inner.apply(params.unravel(), state, x, train=train, key=key)

    return layer("raveled", init, apply, parts=(("net", inner),), trees="same", stream=Around(raveled))

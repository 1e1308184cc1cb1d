"""A layer whose parameters are not learned: they lie in its state."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.layers.layer import Around, Layer, Params, State, applied, as_layer
from jaxnet.layers.layer import layer as define


@made
def frozen(layer: Layer | Callable[..., Any], params: Params = None, state: State = ()) -> Layer:
    """Keeps a layer, or a whole network, as it is while what stands around it learns.

    Its parameters become a part of the state. So no gradient of them is computed, none counts in a clip's norm or can
    make a step be skipped, the optimizer keeps no moments for them, and weight decay does not reach them; they are
    saved and loaded with the state. The layer is always applied as in evaluation: batch norm keeps its statistics,
    dropout drops nothing. Gradients of its input pass through. To tools that measure layers it is one layer.

    Args:
      layer: the layer.
      params: its trained parameters; drawn by its ``init`` unless given.
      state: its state, where the parameters are given.

    Returns:
      A layer with the params ``()`` and a state that is a dict of ``params`` and ``state``, those of ``layer``. To
      learn them after all, hand them back to ``layer`` itself.

    Raises:
      ConfigError: a state without parameters, or from ``apply`` a state that is not this layer's.
      ShapeError: ``params`` are not those that ``layer`` has for the example input.
      DataError: a masked array among them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> backbone = layers.chain(layers.dense(8), jnp.tanh)
      >>> trained, state = backbone.init(0, jnp.ones((1, 4)))
      >>> net = layers.chain(layers.frozen(backbone, trained, state), layers.dense(2))
      >>> params, state = net.init(1, jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, params)
      ((), {'bias': (2,), 'kernel': (8, 2)})
    """
    return _frozen(as_layer(layer), params, state)


def _frozen(inner: Layer, params: Params, state: State, streams: bool = False) -> Layer:
    """The layer; where it ``streams``, what its part remembers follows the pieces."""
    if params is None and jax.tree.leaves(state):
        raise ConfigError("a state was given without parameters; give both, frozen(layer, params, state)")

    def init(key, x):
        if params is None:
            own = inner.init(key, x)
        else:
            wanted = jax.eval_shape(inner.init, jax.random.key(0), x)
            own = tuple(_arrays(name, tree) for name, tree in (("params", params), ("state", state)))
            _fits(own, wanted)
        return (), dict(zip(("params", "state"), own, strict=True))

    def apply(params, state, x, *, train, key):
        del key
        checks.nothing("params", params)
        if not isinstance(state, dict) or set(state) != {"params", "state"}:
            raise ConfigError("the state must be a dict of params and state; pass what this layer's init returned")
        with applied("frozen", inner):
            y, new = inner.apply(state["params"], state["state"], x, train=False)
        return y, {"params": state["params"], "state": new} if streams else state

    def rebuild(part):
        return frozen(part, params, state)

    stream = Around(lambda part: _frozen(part, params, state, streams=True))
    return define("frozen", init, apply, parts=(("layer", inner),), rebuild=rebuild, trees="state", stream=stream)


def _arrays(name: str, tree: Any) -> Any:
    narrowed: dict[str, np.dtype] = {}

    def array(leaf):
        on_host = isinstance(leaf, (np.ndarray, np.generic))
        return checks.array(name, checks.host_array(name, leaf, narrowed) if on_host else leaf)

    arrays = jax.tree.map(array, tree)
    checks.warn_of_narrowed(narrowed)
    return arrays


def _fits(own: Any, wanted: Any) -> None:
    for name, mine, theirs in zip(("params", "state"), own, wanted, strict=True):
        came, want = (jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (mine, theirs))
        if came != want:
            raise ShapeError(f"{name} have the shapes {came}, and the layer wants {want}; give this layer's own")

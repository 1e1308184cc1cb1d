"""A network without its weight norms and spectral norms, once it is trained: their kernels computed once for all."""

from collections.abc import Callable
from typing import Any

import jax

from jaxnet.errors import ConfigError, located, named
from jaxnet.layers.inside import entries, looked_into, rebuilt
from jaxnet.layers.layer import Layer, Memory, Params, State, as_layer


@named("merged")
def merged(net: Layer | Callable[..., Any], params: Params, state: State) -> tuple[Layer, Params, State]:
    """Takes `weight_norm` and `spectral_norm` out of a trained network, which computes the same as before without them.

    It works on nothing but what it returns. A network without any comes back as it is, and so does what is `frozen`.

    Args:
      net: the network.
      params: its own.
      state: its own, as it is in evaluation: the singular vectors stay where they are.

    Returns:
      ``(net, params, state)`` without the normalization, as if it had never been around.

    Raises:
      ConfigError: params or a state of another network, or a layer around a normalized one that no other can be put
        into.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.weight_norm(layers.chain(layers.dense(8), jnp.tanh, layers.dense(2)))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> plain, plain_params, plain_state = layers.merged(net, params, state)
      >>> jax.tree.map(jnp.shape, plain_params[0])
      {'bias': (8,), 'kernel': (4, 8)}
      >>> (y, _), (z, _) = net.apply(params, state, jnp.ones((1, 4)), train=False), plain.apply(
      ...     plain_params, plain_state, jnp.ones((1, 4)), train=False)
      >>> bool(jnp.array_equal(y, z))
      True

    Source: as `torch.nn.utils.remove_weight_norm`.
    """
    net = as_layer(net, "net")
    if isinstance(state, Memory):
        raise ConfigError("the state is that of a stream; merge the network first, and stream what it becomes")
    return _without(net), *_trees(net, params, state)


def _normalized(net: Layer) -> bool:
    return net.about.merged is not None or any(_normalized(part) for _, part in net.about.parts)


def _place(net: Layer, label: str) -> located:
    return located(f"{net.name}[{label}]" if label.isdecimal() else f"{net.name}.{label}")


def _without(net: Layer) -> Layer:
    """The network; its arrays are no part of it."""
    if net.about.merged is not None:
        return _without(net.about.merged.layer)
    if not _normalized(net) or net.about.trees == "state":
        return net
    if not looked_into(net):
        raise ConfigError(
            f"nothing can be put into a {net.name}; call layers.merged for the network inside it, with its own params"
        )
    new = []
    for label, part in looked_into(net):
        with _place(net, label):
            new.append(_without(part))
    return rebuilt(net, new)


def _trees(net: Layer, params: Params, state: State) -> tuple[Params, State]:
    if net.about.merged is not None:
        return _trees(net.about.merged.layer, *net.about.merged.trees(params, state))
    if not _normalized(net) or net.about.trees == "state":
        return params, state
    if net.about.trees != "apart":
        ((label, part),) = net.about.parts
        with _place(net, label):
            if net.about.trees == "stacked":
                return jax.vmap(lambda p, s: _trees(part, p, s))(params, state)
            return _trees(part, params, state)
    new = []
    for (label, part), p, s in zip(net.about.parts, _entries(net, params), _entries(net, state), strict=True):
        with _place(net, label):
            new.append(_trees(part, p, s))
    return _packed(net, params, [p for p, _ in new]), _packed(net, state, [s for _, s in new])


def _entries(net: Layer, tree: Any) -> list[Any]:
    if (found := entries(net, tree)) is not None:
        return found
    raise ConfigError(
        f"{net.name} has the parts {', '.join(label for label, _ in net.about.parts)}, but params or state are no "
        f"tuple or dict of as many; pass what this network's init returned"
    )


def _packed(net: Layer, like: Any, entries: list[Any]) -> Any:
    if isinstance(like, dict):
        return dict(zip((label for label, _ in net.about.parts), entries, strict=True))
    return type(like)(entries)

"""Looking inside a network: the same network, with every layer's input and output shown to a function."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxnet._made import made
from jaxnet.layers.layer import Layer, Memory, entered

Watch = Callable[[tuple[str, ...], Layer, Any, Any, Any, Any], Any]
"""``(path, layer, params, state, x, y) -> anything``, called once for each layer as it is traced."""


class Watched(NamedTuple):
    """What `watched` puts in the place of a layer's state: its own next one, and what the watcher returned for it.

    Attributes:
      state: the layer's own next state.
      seen: what the watcher returned for it.
    """

    state: Any
    seen: Any


def looked_into(net: Layer) -> tuple[tuple[str, Layer], ...]:
    """The parts that tools see, with their labels: none where nothing says how to put others in their place.

    And none of a layer that keeps its part's parameters in the state: they are not learned, nothing of them is to see.
    """
    return () if net.about.rebuild is None or net.about.trees == "state" else net.about.parts


def rebuilt(net: Layer, parts: Iterable[Layer]) -> Layer:
    """``net`` around other parts, as many as `looked_into` gave."""
    parts = tuple(parts)
    return net.about.rebuild(*parts) if net.about.rebuild is not None and parts else net


def entries(net: Layer, tree: Any) -> list[Any] | None:
    """A container's params, or its state, one entry a part; None where it is no tuple or dict of as many."""
    labels = [label for label, _ in net.about.parts]
    if isinstance(tree, dict) and tree.keys() == set(labels):
        return [tree[label] for label in labels]
    return list(tree) if isinstance(tree, (tuple, list)) and len(tree) == len(labels) else None


def with_frozen(f: Callable[..., Any], net: Layer, state: Any, *others: Any) -> Any:
    """``state`` with ``f(params, ...)`` in place of the parameters of every layer whose ``trees`` are "state".

    Args:
      f: given those parameters, and those at the same place of each of the other states.
      net: the network.
      state: its state, as it goes in, or as it comes out, of a `watched` or a `streaming` one too. What does not fit
        is left as it is, for the layer to refuse.
      *others: its states, as they go in.
    """
    if isinstance(state, Watched):
        return state._replace(state=with_frozen(f, net, state.state, *others))
    others = tuple(one.state if isinstance(one, Memory) else one for one in others)
    if isinstance(state, Memory):
        return state._replace(state=with_frozen(f, net, state.state, *others))
    states = (state, *others)
    if not net.about.parts:
        return state
    if net.about.trees == "state":
        if not all(type(one) is dict and one.keys() == {"params", "state"} for one in states):
            return state
        inner = with_frozen(f, net.about.parts[0][1], *(one["state"] for one in states))
        return {"params": f(*(one["params"] for one in states)), "state": inner}
    if net.about.trees != "apart":
        return with_frozen(f, net.about.parts[0][1], *states)
    labels = [label for label, _ in net.about.parts]
    if all(type(one) is dict and one.keys() == set(labels) for one in states):
        return {label: with_frozen(f, part, *(one[label] for one in states)) for label, part in net.about.parts}
    if all(type(one) in (tuple, list) and len(one) == len(labels) for one in states):
        return type(state)(
            with_frozen(f, part, *rest) for (_, part), *rest in zip(net.about.parts, *states, strict=True)
        )
    return state


@made
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
    inner = rebuilt(net, (watched(part, watch, (*path, label)) for label, part in looked_into(net)))

    def apply(params, state, x, *, train, key=None):
        y, new = inner.apply(params, state, x, train=train, key=key)
        return y, Watched(new, watch(path, net, params, state, x, y))

    stream = "it is watched; watch the stream of the network, watched(streaming(net), watch)"
    return net._replace(apply=entered(net.name, apply, "apply")).described(
        parts=inner.about.parts, rebuild=None, stream=stream, merged=None
    )

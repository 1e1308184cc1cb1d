"""What weight norm and spectral norm share: a layer whose kernel is computed from other parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxnet.errors import ConfigError, located
from jaxnet.layers.inside import looked_into, rebuilt
from jaxnet.layers.layer import Layer, Stream


def every_kernel(net: Layer, wrap: Callable[[Layer], Layer], name: str) -> Layer:
    """``net`` with ``wrap`` around each layer in it that has a kernel; a layer alone is wrapped in any case."""
    if not net.about.parts:
        return wrap(net)
    new, count = _inside(net, wrap, name)
    if not count:
        raise ConfigError(f"no layer in the {net.name} has a kernel; a layer of your own says so with fan_in=")
    return new


def _inside(net: Layer, wrap: Callable[[Layer], Layer], name: str) -> tuple[Layer, int]:
    if not net.about.parts:
        return (wrap(net), 1) if net.about.fan_in is not None else (net, 0)
    if net.about.trees == "state":  # what is frozen stays as it was
        return net, 0
    parts = looked_into(net)
    if not parts:
        raise ConfigError(
            f"nothing can be put into a {net.name}; wrap the network inside it, layers.{net.name}(layers.{name}(...))"
        )
    new = []
    for label, part in parts:
        with located(f"{net.name}[{label}]" if label.isdecimal() else f"{net.name}.{label}"):
            new.append(_inside(part, wrap, name))
    return rebuilt(net, (part for part, _ in new)), sum(count for _, count in new)


def kernel_of(params: Any, layer: Layer, others: Iterable[str] = ()) -> jax.Array:
    """The kernel among the params that a layer's init drew."""
    if not isinstance(params, dict) or "kernel" not in params:
        raise ConfigError(f"a layer {layer.name!r} has no kernel, which is what is normalized")
    for other in others:
        if other in params:
            raise ConfigError(f"a layer {layer.name!r} has a param {other!r} of its own, which would be this one's")
    return params["kernel"]


def streamed(layer: Layer, effective: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """How the layer is fed piece by piece: as the one inside, whose params and state ``effective`` makes."""
    stream = layer.about.stream
    if not isinstance(stream, Stream):
        return stream

    def start(params, state, x, capacity):
        return stream.start(*effective(params, state), x, capacity)

    def step(params, state, memory, x):
        return stream.step(*effective(params, state), memory, x)

    return Stream(start, step)

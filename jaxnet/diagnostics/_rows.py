"""The layers of a network as rows of a table: which there are, what they are called, and what was seen of each."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.errors import ConfigError
from jaxnet.layers.inside import Watched, looked_into, watched
from jaxnet.layers.layer import Layer


class Step(NamedTuple):
    """From a container to one of its parts: which it is, its label, and whether the container makes copies of it."""

    number: int
    label: str
    copied: bool


def leaves(net: Layer, path: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Layer]]:
    """The layers that hold no others, with the steps to them, in the order of the trees of params and state."""
    parts = looked_into(net)
    if not parts:
        yield path, net
    for number, (label, part) in enumerate(parts):
        yield from leaves(part, (*path, Step(number, label, net.about.trees == "stacked")))


def evaluated(net: Layer, measure: Callable[[Layer, Any], Any]) -> Callable[[Any, Any, Any], list[Any]]:
    """A program ``(params, state, x) -> what measure(leaf, output) gave``, of each leaf in evaluation."""

    def watch(path, layer, params, state, x, y):
        return () if looked_into(layer) else measure(layer, y)

    looked_at = watched(net, watch)
    return jax.jit(lambda params, state, x: seen(net, looked_at.apply(params, state, x, train=False)[1]))


def seen(net: Layer, state: Any) -> list[Any]:
    """What a `watched` network saw of each of its leaves, in their order."""
    found = _seen(state)
    one_each(net, len(found))
    return found


def one_each(net: Layer, count: int) -> None:
    """Refuses a network of which not every layer has left a trace: nobody knows then whose the others are."""
    rows = [".".join([*(step.label for step in path), layer.name]) for path, layer in leaves(net)]
    if len(rows) != count:
        raise ConfigError(
            f"{net.name} has the layers {', '.join(rows)}, but its params or state are of {count}; a container "
            f"must give back the params and the state of each of its parts, or have no rebuild"
        )


def _seen(state: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Watched))
    found = [node for node in nodes if isinstance(node, Watched)]
    return [value for node in found for value in (_seen(node.state) or [node.seen])]


def expanded(net: Layer, values: list[Any]) -> list[tuple[str, int, tuple[int, ...]]]:
    """The rows of the table, from the input to the output: ``(label, leaf, copy)``.

    Args:
      net: the network.
      values: an array a leaf; before its own axes stand those of the copies that every ``repeat`` around it makes.

    Returns:
      A row a leaf, or a row a copy of one inside a ``repeat``; ``copy`` indexes the axes that the repeats add.
    """
    rows = []
    for leaf, (path, layer) in enumerate(leaves(net)):
        for copy in np.ndindex(values[leaf].shape[: sum(step.copied for step in path)]):
            copies = iter(copy)
            place = [next(copies) if step.copied else step.number for step in path]
            words = [str(number) if step.copied else step.label for number, step in zip(place, path, strict=True)]
            rows.append((place, " ".join([".".join(words), layer.name]).strip(), leaf, copy))
    return [(label, leaf, copy) for _, label, leaf, copy in sorted(rows, key=lambda row: row[0])]


# Both sides of zero, and far enough out that every saturating function is flat between the last two points.
_GRID = np.array([-40.0, -30.0, -3.0, -1.0, -0.3, 0.3, 1.0, 3.0, 30.0, 40.0])


class Kind(NamedTuple):
    """What an activation function does, found by asking it and not by its name.

    Attributes:
      rectifier: 0 for every negative input (relu and its like): its units can die.
      bounds: the values that it approaches at minus and plus infinity, if it saturates at both ends.
    """

    rectifier: bool = False
    bounds: tuple[float, float] | None = None


def kind(layer: Layer, dtype: Any) -> Kind:
    """Asks a layer for its values on a few numbers; what cannot answer is no activation function."""
    try:
        with jax.ensure_compile_time_eval():
            grid = jnp.asarray(_GRID, dtype)
            y = layer.apply((), (), grid, train=False)[0]
            half = layer.apply((), (), grid[:5], train=False)[0]
            y, half = np.asarray(y, np.float64), np.asarray(half, np.float64)
    except Exception:  # it has parameters, wants other shapes, or closes over traced values: all of them answers
        return Kind()
    if y.shape != _GRID.shape or not np.array_equal(y[:5], half):  # softmax is not elementwise
        return Kind()
    rectifier = bool((y[:5] == 0).all() and (y[5:] > 0).all())
    saturates = np.isclose(y[0], y[1]) and np.isclose(y[-1], y[-2]) and not np.isclose(y[0], y[-1])
    return Kind(rectifier, (float(y[0]), float(y[-1])) if saturates else None)

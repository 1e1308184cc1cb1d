"""The layers of a network as rows of a table: which there are, what they are called, and what was seen of each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.errors import ConfigError
from jaxnet.layers.inside import Watched, looked_into
from jaxnet.layers.layer import Layer

Path = tuple[str, ...]


def leaves(net: Layer, path: Path = ()) -> Iterator[tuple[Path, Layer]]:
    """The layers that hold no others, with their paths, in the order of the trees of params and state."""
    parts = looked_into(net)
    if not parts:
        yield path, net
    for label, part in parts:
        yield from leaves(part, (*path, label))


def repeats(net: Layer, above: int = 0) -> list[int]:
    """Of each leaf, how many ``repeat`` are around it: as many axes come before those of its own values."""
    parts = looked_into(net)
    return [count for _, part in parts for count in repeats(part, above + (net.trees == "stacked"))] or [above]


def seen(net: Layer, state: Any) -> list[Any]:
    """What a `watched` network saw of each of its leaves, in their order."""
    found = _seen(state)
    one_each(net, len(found))
    return found


def one_each(net: Layer, count: int) -> None:
    """Refuses a network of which not every layer has left a trace: nobody knows then whose the others are."""
    rows = [".".join((*path, layer.name)) for path, layer in leaves(net)]
    if len(rows) != count:
        raise ConfigError(
            f"{net.name} has the layers {', '.join(rows)}, but its params or state are of {count}; a container "
            f"must give back the params and the state of each of its parts, or have no rebuild"
        )


def _seen(state: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Watched))
    found = [node for node in nodes if isinstance(node, Watched)]
    return [value for node in found for value in (_seen(node.state) or [node.seen])]


def expanded(net: Layer, lengths: list[tuple[int, ...]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """The rows of the table, from the input to the output: ``(label, leaf, copy)``.

    Args:
      net: the network.
      lengths: of each leaf, how many copies every ``repeat`` around it makes, outermost first.

    Returns:
      A row a leaf, or a row a copy of one inside a ``repeat``; ``copy`` indexes the axes that the repeats add.
    """
    counter = iter(range(len(lengths)))

    def walk(part: Layer, repeats: int) -> list[tuple[list[str], int, tuple[int, ...]]]:
        parts = looked_into(part)
        if not parts:
            return [([part.name], next(counter), ())]
        rows = [
            ([label, *words], leaf, copy)
            for label, inner in parts
            for words, leaf, copy in walk(inner, repeats + (part.trees == "stacked"))
        ]
        if part.trees != "stacked":
            return rows
        copies = lengths[rows[0][1]][repeats]
        return [([str(i), *words[1:]], leaf, (i, *copy)) for i in range(copies) for words, leaf, copy in rows]

    return [(" ".join((".".join(words[:-1]), words[-1])).strip(), leaf, copy) for words, leaf, copy in walk(net, 0)]


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

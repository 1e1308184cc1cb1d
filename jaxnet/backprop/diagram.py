"""What text and pictures show of a graph: its nodes, and boxes and edges in which a layer's parameters are one."""

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jaxnet import _checks as checks
from jaxnet.backprop.values import norm, number


class Node(NamedTuple):
    """A value of the graph that `trace` records.

    Attributes:
      name: v1, v2, ... in the order of computation; of a layer its path, of an argument its name in the signature.
      operation: what computed it; "argument".
      inputs: the names of the nodes that it was computed from, and the constants among them.
      value: what the forward pass gave.
      adjoint: the derivative of the function's value with respect to this one, from the backward pass; None where
        there is none: integers, bools, keys, and where no path of derivatives leads from a differentiated argument
        through this value to the function's.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    value: Any
    adjoint: Any


class Source(NamedTuple):
    """Where a node reads: another node, a constant, or arguments together, such as a layer's params.

    Attributes:
      name: the node's, the constant's words, or what is common to the names of the arguments.
      nodes: the node or the arguments; empty for a constant.
    """

    name: str
    nodes: tuple[Node, ...]


class Box(NamedTuple):
    """A node, or arguments read together, as a picture shows it.

    Attributes:
      name: of the node, or of what is common to the arguments.
      lines: what it says: the operation and, of an array, its shape.
      value: as text.
      adjoint: as text; "" for none.
      argument: whether it is where the forward pass begins.
    """

    name: str
    lines: tuple[str, ...]
    value: str
    adjoint: str
    argument: bool


class Edge(NamedTuple):
    """From what is read to what reads it; ``backward`` where an adjoint flows the other way."""

    source: str
    target: str
    backward: bool


@dataclass(frozen=True)
class Diagram:
    """A graph to be shown.

    Attributes:
      title: the function with its arguments.
      value: of the function.
      nodes: what was computed, in order.
      arguments: a node for each array of the arguments.
      parts: of each of these, the argument and the keys that lead to it.
      closed: the paths of scopes that are shown as one node.
    """

    title: str
    value: Any
    nodes: tuple[Node, ...]
    arguments: tuple[Node, ...]
    parts: tuple[tuple[str, ...], ...]
    closed: Collection[str]

    @property
    def heading(self) -> str:
        """What stands above it."""
        return f"{self.title} = {number(self.value)}"

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """All nodes."""
        return {node.name: node for node in (*self.arguments, *self.nodes)}

    @cached_property
    def _parts_of(self) -> dict[str, tuple[str, ...]]:
        return {argument.name: parts for argument, parts in zip(self.arguments, self.parts, strict=True)}

    def sources(self, node: Node) -> list[Source]:
        """The inputs of a node, those that are parts of one argument as one."""
        parts_of = self._parts_of
        found: dict[str, list[str]] = {}
        for name in node.inputs:
            found.setdefault(parts_of[name][0] if name in parts_of else name, []).append(name)
        result = []
        for names in found.values():
            distinct = list(dict.fromkeys(names))
            name = names[0]
            if name in parts_of:
                levels = zip(*(parts_of[n] for n in distinct), strict=False)
                name = "".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
            source = Source(name, tuple(self.by_name[n] for n in distinct if n in self.by_name))
            # v1 * v1 is written so, and so is w * w
            result += [source] * (len(names) if len(distinct) == 1 else 1)
        return result

    @cached_property
    def boxes(self) -> list[Box]:
        """A box a node, after those of the arguments that it is the first to read."""
        boxes: dict[str, Box] = {}
        for node in self.nodes:
            sources = self.sources(node)
            for source in sources:
                if source.nodes and source.name not in boxes:
                    boxes[source.name] = _box(source.name, [], source.nodes)
            what = node.operation
            if node.name.partition("#")[0].partition(":")[0] not in self.closed:
                what += f"({', '.join(s.name.rpartition('/')[2] if s.nodes else s.name for s in sources)})"
            boxes[node.name] = _box(node.name, [what], [node])
        return list(boxes.values())

    @cached_property
    def edges(self) -> list[Edge]:
        """An edge a source and reader."""
        edges = [
            Edge(source.name, node.name, node.adjoint is not None and any(n.adjoint is not None for n in source.nodes))
            for node in self.nodes
            for source in self.sources(node)
            if source.nodes
        ]
        return list(dict.fromkeys(edges))


def _box(name: str, lines: list[str], nodes: Any) -> Box:
    """Of a node, or of arguments, which have no line for an operation."""
    adjoints = [node.adjoint for node in nodes if node.adjoint is not None]
    if len(nodes) > 1:
        value, adjoint = norm([node.value for node in nodes]), norm(adjoints)
        lines = [f"{len(nodes)} arrays"]
    else:
        value, adjoint = number(nodes[0].value), number(nodes[0].adjoint)
        lines = [*lines, *([checks.describe(nodes[0].value)] if nodes[0].value.shape else [])]
    return Box(name, tuple(lines), value, adjoint if adjoints else "", nodes[0].operation == "argument")

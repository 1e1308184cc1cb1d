"""A graph as text: a table, and Graphviz' language."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxnet.backprop.tracing import Node, Trace


class Source(NamedTuple):
    """Arguments that a node reads together, for example a layer's params: where they part, and what they are."""

    name: str
    arguments: tuple[Node, ...]


def table(trace: Trace, rows: int | None) -> str:
    """The nodes, a line each, then the arguments with their gradients; ``rows`` of each at most."""
    shapes = any(_array(node.value) for node in trace.nodes)
    nodes = [("node", "operation", "inputs", "shape", "value", "adjoint")]
    nodes += [
        (n.name, n.operation, _inputs(trace, n), shape(n), number(n.value), number(n.adjoint)) for n in trace.nodes
    ]
    arguments = [("argument", "shape", "value", "gradient")]
    arguments += [(n.name, shape(n), number(n.value), number(n.adjoint)) for n in trace.arguments]
    if not shapes:
        nodes = [row[:3] + row[4:] for row in nodes]
    if not any(_array(node.value) for node in trace.arguments):
        arguments = [row[:1] + row[2:] for row in arguments]
    head = f"{title(trace)} = {number(trace.value)}"
    return "\n\n".join([head, *(_lines(part, rows, right=not shapes) for part in (nodes, arguments) if len(part) > 1)])


def title(trace: Trace) -> str:
    """The function with its arguments."""
    program = trace._program
    return f"{program.name}({', '.join(dict.fromkeys(parts[0] for parts in program.names))})"


def _lines(body: list[tuple[str, ...]], rows: int | None, right: bool) -> str:
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]

    def line(cells):
        padded = [
            c.rjust(w) if right and i >= len(cells) - 2 else c.ljust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    lines = [line(cells) for cells in body[1:]]
    if rows is not None and len(lines) > max(rows, 2):
        first = max(rows, 2) // 2
        last = max(rows, 2) - first
        lines[first:-last] = [f"... {len(lines) - first - last} more; all of them: print(trace.table(rows=None))"]
    return "\n".join([line(body[0]), line(["-" * w for w in widths]), *lines])


def shape(node: Node) -> str:
    """Dtype and shape, as in ``float32 (16, 8)``."""
    return f"{node.value.dtype} {node.value.shape}"


def number(value: Any) -> str:
    """A scalar as a number, an array as its norm and mean; "-" where there is none of these."""
    if value is None or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "-"
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return "-" if value.shape else str(value)
    wide = np.asarray(value).astype(complex if jnp.issubdtype(value.dtype, jnp.complexfloating) else float)
    if not value.shape:
        return f"{wide[()]:.4g}"
    with np.errstate(all="ignore"):
        return f"norm {np.linalg.norm(wide):.4g}, mean {wide.mean():.4g}" if wide.size else "empty"


def constant(value: Any) -> str:
    """A constant among inputs: a number, or the dtype and shape of an array."""
    if np.shape(value):
        return f"{value.dtype} {np.shape(value)}"
    if jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return f"{np.asarray(value).astype(np.result_type(float, np.asarray(value).dtype))[()]:.4g}"
    return str(value)


def _array(value: Any) -> bool:
    return bool(value.shape)


def _inputs(trace: Trace, node: Node) -> str:
    return ", ".join(source if isinstance(source, str) else source.name for source in sources(trace, node))


def sources(trace: Trace, node: Node) -> list[str | Source]:
    """The inputs of a node, those that are parts of one argument as one."""
    parts_of = {argument.name: parts for argument, parts in zip(trace.arguments, trace._program.names, strict=True)}
    found: dict[str, list[str]] = {}
    for name in node.inputs:
        found.setdefault(parts_of[name][0] if name in parts_of else name, []).append(name)
    result: list[str | Source] = []
    for names in found.values():
        if names[0] not in parts_of:
            result += names
            continue
        distinct = tuple(dict.fromkeys(names))
        same = itertools.takewhile(
            lambda level: len(set(level)) == 1, zip(*(parts_of[n] for n in distinct), strict=False)
        )
        source = Source("".join(level[0] for level in same), tuple(trace[name] for name in distinct))
        # v1 * v1 is written so, and so is w * w
        result += [source] * (len(names) if len(distinct) == 1 else 1)
    return result


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


def diagram(trace: Trace) -> tuple[list[Box], list[Edge]]:
    """The boxes and edges that a picture of the graph has."""
    boxes: dict[str, Box] = {}
    edges: dict[Edge, None] = {}
    folded = trace._kinds.keys() - trace._opened
    by_name = {node.name: node for node in trace.nodes}
    for node in trace.nodes:
        inputs = []
        for source in sources(trace, node):
            if isinstance(source, Source):
                adjoints = [a.adjoint for a in source.arguments if a.adjoint is not None]
                boxes.setdefault(source.name, _box_of_arguments(source, adjoints))
                backward = bool(adjoints)
                name = source.name
            elif source in by_name:
                name, backward = source, by_name[source].adjoint is not None
            else:
                inputs.append(source)
                continue
            inputs.append(name.rpartition("/")[2])
            edges[Edge(name, node.name, backward and node.adjoint is not None)] = None
        is_folded = node.name.partition("#")[0].partition(":")[0] in folded
        what = node.operation if is_folded else f"{node.operation}({', '.join(inputs)})"
        lines = (what, shape(node)) if node.value.shape else (what,)
        adjoint = "" if node.adjoint is None else number(node.adjoint)
        boxes[node.name] = Box(node.name, lines, number(node.value), adjoint, False)
    return list(boxes.values()), list(edges)


def _box_of_arguments(source: Source, adjoints: list[Any]) -> Box:
    first = source.arguments[0]
    if len(source.arguments) == 1:
        lines = (shape(first),) if first.value.shape else ()
        return Box(source.name, lines, number(first.value), number(first.adjoint) if adjoints else "", True)
    values = [a.value for a in source.arguments if jnp.issubdtype(a.value.dtype, jnp.inexact)]
    return Box(
        source.name, (f"{len(source.arguments)} arrays",), _norm(values), _norm(adjoints) if adjoints else "", True
    )


def _norm(arrays: list[Any]) -> str:
    if not arrays:
        return "-"
    return f"norm {np.linalg.norm([np.linalg.norm(np.asarray(a).astype(np.float64).ravel()) for a in arrays]):.4g}"


def dot(trace: Trace) -> str:
    """Graphviz' language; its ``dot -Tsvg`` draws it."""
    boxes, edges = diagram(trace)
    lines = ["digraph {", "  node [shape=box, fontname=monospace];"]
    for box in boxes:
        passes = [f"value {box.value}"] if box.value != "-" else []
        passes += [f"adjoint {box.adjoint}"] if box.adjoint else []
        style = ", style=rounded" if box.argument else ""
        lines.append(f"  {_quoted(box.name)} [label={_quoted(chr(10).join([box.name, *box.lines, *passes]))}{style}];")
    for edge in edges:
        source, target = _quoted(edge.source), _quoted(edge.target)
        lines.append(f"  {source} -> {target};")
        if edge.backward:
            lines.append(f"  {target} -> {source} [style=dashed, constraint=false];")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

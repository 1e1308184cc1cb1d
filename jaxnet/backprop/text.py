"""A graph as text: a table, and Graphviz' language."""

from jaxnet import _checks as checks
from jaxnet import _tables as tables
from jaxnet.backprop.diagram import Diagram
from jaxnet.backprop.values import number


def table(diagram: Diagram, rows: int | None) -> str:
    """The nodes, a line each, then the arguments with their gradients; ``rows`` of each at most."""
    shapes = any(node.value.shape for node in diagram.nodes)
    parts = [diagram.heading]
    for kind, nodes, columns in (
        ("node", diagram.nodes, ("operation", "inputs", "shape", "value", "adjoint")),
        ("argument", diagram.arguments, ("shape", "value", "gradient")),
    ):
        if not any(node.value.shape for node in nodes):
            columns = tuple(column for column in columns if column != "shape")
        cells = {
            kind: [node.name for node in nodes],
            "operation": [node.operation for node in nodes],
            "inputs": [", ".join(source.name for source in diagram.sources(node)) for node in nodes],
            "shape": [checks.describe(node.value) for node in nodes],
            "value": [number(node.value) for node in nodes],
            columns[-1]: [number(node.adjoint) for node in nodes],
        }
        head = (kind, *columns)
        body = list(zip(*(cells[name] for name in head), strict=True))
        if body:
            parts.append(_cut(tables.table(head, body, left=len(head) if shapes else len(head) - 2), rows))
    return "\n\n".join(parts)


def _cut(text: str, rows: int | None) -> str:
    head, rule, *lines = text.splitlines()
    if rows is not None and len(lines) > max(rows, 2):
        first, last = max(rows, 2) // 2, -(-max(rows, 2) // 2)
        lines[first:-last] = [f"... {len(lines) - first - last} more; all of them: print(trace.table(rows=None))"]
    return "\n".join([head, rule, *lines])


def dot(diagram: Diagram) -> str:
    """Graphviz' language; its ``dot -Tsvg`` draws it."""
    lines = ["digraph {", "  node [shape=box, fontname=monospace];"]
    for box in diagram.boxes:
        passes = [f"value {box.value}"] if box.value != "-" else []
        passes += [f"adjoint {box.adjoint}"] if box.adjoint else []
        style = ", style=rounded" if box.argument else ""
        lines.append(f"  {_quoted(box.name)} [label={_quoted(chr(10).join([box.name, *box.lines, *passes]))}{style}];")
    for edge in diagram.edges:
        source, target = _quoted(edge.source), _quoted(edge.target)
        lines.append(f"  {source} -> {target};")
        if edge.backward:
            lines.append(f"  {target} -> {source} [style=dashed, constraint=false];")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

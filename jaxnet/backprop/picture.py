"""A graph as a picture: a box a node with value and adjoint, solid arrows forward, dashed ones backward."""

import functools
import itertools
from pathlib import Path
from typing import Any

from jaxnet import _optional as optional
from jaxnet.backprop.diagram import Box, Diagram, Edge
from jaxnet.backprop.layout import Item, Layout, layout, packed
from jaxnet.backprop.values import number
from jaxnet.errors import ConfigError

LIMIT = 150
FONT = 9.0
LINE = 12.0  # points from one line of text to the next
PAD = 6.0
PAIR = 3.5  # half the distance between an edge's two arrows
MARGIN = 14.0
FORWARD: dict[str, Any] = {"color": "black", "linewidth": 1.1}
BACKWARD: dict[str, Any] = {"color": "0.35", "linewidth": 1.1, "linestyle": (0, (3, 2))}


def draw(diagram: Diagram, path: Path) -> Path:
    """Draws the graph into a file of the format that its extension names."""
    figure_module = optional.load("a picture", "matplotlib.figure")
    boxes, edges = diagram.boxes, diagram.edges
    if len(boxes) > LIMIT:
        raise ConfigError(
            f"{len(boxes)} nodes are too many for a picture that can be read (at most {LIMIT}); leave layers "
            f"closed, put parts in a jax.named_scope, or give trace.dot() to Graphviz"
        )
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"the picture's extension must be .png, .svg or .pdf, got {str(path)!r}")
    index = {box.name: i for i, box in enumerate(boxes)}
    boxes = boxes or [Box("f", (), number(diagram.value), "", True)]
    places = layout(
        # A chain of layers stands straight, and what feeds it stands beside it.
        [Item(*_size(box), 1e-4 if box.argument else 1.0 if box.adjoint else 1e-2) for box in boxes],
        {i for i, box in enumerate(boxes) if box.argument},
        [(index[edge.source], index[edge.target]) for edge in edges],
    )
    half = {i: _size(box)[0] / 2 for i, box in enumerate(boxes)}
    left = min(x - half.get(i, 2 * PAIR) for i, x in places.x.items()) - MARGIN
    right = max(x + half.get(i, 2 * PAIR) for i, x in places.x.items()) + MARGIN
    width = max(right - left, _width(diagram.heading, FONT + 1) + 2 * MARGIN, 300.0)
    left -= (width - right + left) / 2
    top, bottom = -MARGIN - 2 * LINE, places.bottom[-1] + MARGIN + 2 * LINE

    figure = figure_module.Figure(figsize=(width / 72, (bottom - top) / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, left + width), ylim=(bottom, top))
    axes.set_axis_off()
    middle = left + width / 2
    axes.text(middle, top + MARGIN, diagram.heading, size=FONT + 1, ha="center", va="center", parse_math=False)
    _draw_edges(axes, boxes, edges, places)
    for i, box in enumerate(boxes):
        _draw_box(axes, box, places.x[i], *_vertical(box, places, i))
    y = bottom - MARGIN
    for x, text, style in (
        (middle - 138, "forward pass: values", FORWARD),
        (middle + 8, "backward pass: adjoints", BACKWARD),
    ):
        forward = style is FORWARD
        axes.plot((x + 5 * (not forward), x + 26 - 5 * forward), (y, y), **style)
        _head(axes, x + 26 * forward, y, (1 if forward else -1, 0), style)
        axes.text(x + 32, y, text, size=FONT - 1, va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


@functools.cache
def _width(text: str, size: float = FONT, weight: str = "normal") -> float:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64  # the font counts in 64ths of a point


def _cells(box: Box) -> list[list[str]]:
    """Value and adjoint, a line each for norm and mean."""
    return [text.split(", ") for text in (box.value, box.adjoint) if text and text != "-"]


@functools.cache
def _size(box: Box) -> tuple[float, float]:
    first, *others = box.lines or ("",)
    cells = _cells(box)
    widths = [_width(box.name, weight="bold") + (_width(first) + 8 if first else 0) + 2 * PAD]
    widths += [_width(line) + 2 * PAD for line in others]
    widths += [len(cells) * max(_width(line) + 2 * PAD for cell in cells for line in cell)] if cells else []
    lines = 1 + len(others) + max(map(len, cells), default=0)
    return max(*widths, 50.0), lines * LINE + PAD * (2 if cells else 1)


def _vertical(box: Box, places: Layout, i: int) -> tuple[float, float]:
    """Top and bottom of a box, in the middle of its row."""
    row, height = places.row[i], _size(box)[1]
    middle = (places.top[row] + places.bottom[row]) / 2
    return middle - height / 2, middle + height / 2


def _draw_box(axes: Any, box: Box, x: float, top: float, bottom: float) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    width = _size(box)[0]
    left, cells = x - width / 2, _cells(box)
    first, *others = box.lines or ("",)
    lines = 1 + len(others)
    rule = top + lines * LINE + PAD
    shape = "round,pad=0,rounding_size=6" if box.argument else "square,pad=0"
    frame = FancyBboxPatch((left, top), width, bottom - top, boxstyle=shape, facecolor="white", edgecolor="none")
    axes.add_patch(frame)
    if box.adjoint and len(cells) == 2:
        shade = Rectangle((x, rule), width / 2, bottom - rule, facecolor="0.88", edgecolor="none", zorder=1.5)
        axes.add_patch(shade)
        shade.set_clip_path(frame)
        axes.plot((x, x), (rule, bottom), color="black", linewidth=0.6)
    if cells:
        axes.plot((left, left + width), (rule, rule), color="black", linewidth=0.6)
    edge = {"facecolor": "none", "edgecolor": "black", "linewidth": 0.8 if box.argument else 1.2, "zorder": 3}
    axes.add_patch(FancyBboxPatch((left, top), width, bottom - top, boxstyle=shape, **edge))

    text: dict[str, Any] = {"size": FONT, "va": "center", "parse_math": False}
    name_width = _width(box.name, weight="bold")
    start = x - (name_width + (_width(first) + 8 if first else 0)) / 2
    y = top + PAD / 2 + LINE / 2
    axes.text(start, y, box.name, weight="bold", **text)
    axes.text(start + name_width + 8, y, first, **text)
    for i, line in enumerate(others, 1):
        axes.text(x, y + i * LINE, line, ha="center", **text)
    for j, cell in enumerate(cells):
        centre = left + width * (j + 0.5) / len(cells)
        for i, line in enumerate(cell):
            axes.text(centre, rule + PAD / 2 + (i + 0.5) * LINE, line, ha="center", **text)


def _draw_edges(axes: Any, boxes: list[Box], edges: list[Edge], places: Layout) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    ports = _ports(boxes, edges, places)
    for edge, stops, (start, end) in zip(edges, places.route, ports, strict=True):
        source, target = stops[0], stops[-1]
        leave, arrive = _vertical(boxes[source], places, source)[1], _vertical(boxes[target], places, target)[0]
        columns = [start, *(places.x[lane] for lane in stops[1:-1]), end]
        for backward in (False, True)[: 1 + edge.backward]:
            shift = 0.0 if not edge.backward else PAIR if backward else -PAIR
            y0, y1 = leave + 6 * backward, arrive - 6 * (not backward)
            points, codes = [(columns[0] + shift, y0)], [Curve.MOVETO]
            for i, (a, b) in enumerate(itertools.pairwise(columns)):
                row = places.row[source] + i
                above, below = max(places.bottom[row], leave + 6), min(places.top[row + 1], arrive - 6)
                # Straight down past the row, then over to the next column between the rows, side by side on a slope.
                middle = (above + below) / 2 - (shift if b > a else -shift if b < a else 0)
                points += [(a + shift, above), (a + shift, middle), (b + shift, middle), (b + shift, below)]
                codes += [Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
            points.append((columns[-1] + shift, y1))
            codes.append(Curve.LINETO)
            style = BACKWARD if backward else FORWARD
            axes.add_patch(PathPatch(Curve(points, codes), fill=False, zorder=0.5, **style))
            column, tip = (columns[0], leave) if backward else (columns[-1], arrive)
            _head(axes, column + shift, tip, (0, -1 if backward else 1), style)


def _ports(boxes: list[Box], edges: list[Edge], places: Layout) -> list[tuple[float, float]]:
    """Where each edge leaves and arrives: below or above where it goes, as far as the box reaches."""
    result = [[0.0, 0.0] for _ in edges]
    for end, away in ((0, 1), (-1, -2)):
        for i, box in enumerate(boxes):
            mine = [k for k, stops in enumerate(places.route) if stops[end] == i]
            if not mine:
                continue
            mine.sort(key=lambda k: places.x[places.route[k][away]])
            middle, width = places.x[i], _size(box)[0]
            pitch, reach = min(20.0, width / (len(mine) + 1)), max(width / 2 - 14, 0)
            goal = {k: places.x[places.route[k][away]] for k in mine}
            wanted = {k: min(max(x, middle - reach), middle + reach) for k, x in goal.items()}
            straight = {k: 1.0 if wanted[k] == goal[k] else 0.01 for k in mine}
            found = packed(mine, dict.fromkeys(mine, pitch), straight, wanted)
            for j, k in enumerate(mine):
                low, high = middle - width / 2 + (j + 0.7) * pitch, middle + width / 2 - (len(mine) - j - 0.3) * pitch
                result[k][end] = min(max(found[k], low), high)
    for k, (start, finish) in enumerate(result):
        if len(places.route[k]) == 2 and abs(start - finish) < 4:  # nearly straight looks like a mistake
            result[k] = [(start + finish) / 2] * 2
    return [(start, finish) for start, finish in result]


def _head(axes: Any, x: float, y: float, direction: tuple[int, int], style: dict[str, Any]) -> None:
    """An arrow's head with its tip at (x, y)."""
    from matplotlib.patches import Polygon

    dx, dy = direction
    back = (x - 6 * dx, y - 6 * dy)
    corners = [(x, y), (back[0] + 2.6 * dy, back[1] + 2.6 * dx), (back[0] - 2.6 * dy, back[1] - 2.6 * dx)]
    axes.add_patch(Polygon(corners, closed=True, facecolor=style["color"], edgecolor="none"))

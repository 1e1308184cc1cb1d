"""Where the boxes of a graph go: rows from the arguments down to the value, few crossings, no edge through a box."""

import itertools
from typing import NamedTuple

ROW_GAP = 46.0
BOX_GAP = 22.0
LANE = 16.0  # the width that an edge takes on its way past a row
SWEEPS = 12
SETTLING = 20  # passes over the rows after each, and ten times as many in the end


class Item(NamedTuple):
    """A box, or an edge on its way past a row; widths and heights in points.

    ``weight`` says how strongly it keeps its place and pulls at its neighbours. What matters more stands straighter.
    """

    width: float
    height: float
    weight: float


class Layout(NamedTuple):
    """Centres and rows of boxes, and the lanes of edges.

    Attributes:
      x: the centre of each box and lane.
      row: of each.
      top: of each row, y growing downward.
      bottom: of each row.
      route: of each edge, from the box through its lanes to the box.
    """

    x: dict[int, float]
    row: dict[int, int]
    top: list[float]
    bottom: list[float]
    route: list[list[int]]


def layout(boxes: list[Item], sources: set[int], edges: list[tuple[int, int]]) -> Layout:
    """Places boxes 0, 1, ... in rows (Sugiyama's method).

    Args:
      boxes: what each takes.
      sources: boxes that may stand in any row above what reads them.
      edges: from a box to one below it; boxes come in the order of computation.
    """
    row = _rows(len(boxes), sources, edges)
    items = {i: box._replace(width=box.width + BOX_GAP) for i, box in enumerate(boxes)}
    route: list[list[int]] = []
    for a, b in edges:
        lanes = []
        for between in range(row[a] + 1, row[b]):
            lane = len(items)
            items[lane], row[lane] = Item(LANE, 0.0, 0.05), between
            lanes.append(lane)
        route.append([a, *lanes, b])
    links = [link for stops in route for link in itertools.pairwise(stops)]
    x = _columns(items, row, links)
    top, bottom, y = [], [], 0.0
    for r in range(max(row.values()) + 1):
        top.append(y)
        y += max(items[i].height for i in items if row[i] == r)
        bottom.append(y)
        y += ROW_GAP
    return Layout(x, row, top, bottom, route)


def _rows(n: int, sources: set[int], edges: list[tuple[int, int]]) -> dict[int, int]:
    """As far up as the inputs allow; then down to what reads it, where that makes no edge longer."""
    above = {i: [a for a, b in edges if b == i and a not in sources] for i in range(n)}
    below = {i: [b for a, b in edges if a == i] for i in range(n)}
    row: dict[int, int] = {}
    for i in range(n):
        row[i] = 0 if i in sources else 1 + max((row[a] for a in above[i]), default=0)
    for i in reversed(range(n)):
        if below[i] and len(above[i]) <= len(below[i]):
            row[i] = min(row[b] for b in below[i]) - 1
    first = min(row.values())
    return {i: r - first for i, r in row.items()}


def _columns(items: dict[int, Item], row: dict[int, int], links: list[tuple[int, int]]) -> dict[int, float]:
    """Centres: orders each row by its neighbours' centres, and keeps the best of several tries."""
    above = {i: [a for a, b in links if b == i] for i in items}
    below = {i: [b for a, b in links if a == i] for i in items}
    rows = [[i for i in items if row[i] == r] for r in range(max(row.values()) + 1)]
    widths, weights = ({i: item[field] for i, item in items.items()} for field in (0, 2))
    x: dict[int, float] = {}
    for members in rows:
        x |= packed(members, widths, weights, dict.fromkeys(members, 0.0))

    def mean(neighbours, otherwise):
        weight = sum(weights[n] for n in neighbours)
        return sum(weights[n] * x[n] for n in neighbours) / weight if neighbours else otherwise

    def settle(passes):
        for repetition in range(passes):
            for members in rows if repetition % 2 else rows[::-1]:
                x.update(packed(members, widths, weights, {i: mean(both[i], x[i]) for i in members}))

    both = {i: above[i] + below[i] for i in items}
    best, best_cost = (rows, x), (float("inf"), float("inf"))
    for sweep in range(SWEEPS):
        neighbours = (above, below, both)[sweep % 3]
        for members in rows if sweep % 3 != 1 else rows[::-1]:
            members.sort(key=lambda i: mean(neighbours[i], x[i]))
            x.update(packed(members, widths, weights, x))
        settle(SETTLING)
        cost = (_crossings(x, row, links), sum(abs(x[a] - x[b]) for a, b in links))
        if cost < best_cost:
            best, best_cost = ([list(members) for members in rows], dict(x)), cost
    rows, x = best
    settle(10 * SETTLING)
    return x


def packed(
    members: list[int], widths: dict[int, float], weights: dict[int, float], wanted: dict[int, float]
) -> dict[int, float]:
    """The centres nearest to those wanted, by weighted squares, in this order and without overlap.

    Less the widths to the left, centres must not decrease: isotonic regression, by pooling neighbours.
    """
    offsets = list(itertools.accumulate((widths[a] + widths[b]) / 2 for a, b in itertools.pairwise(members)))
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for i, offset in zip(members, [0.0, *offsets], strict=True):
        mean, weight, count = wanted[i] - offset, weights[i], 1
        while pools and pools[-1][0] > mean:
            other, other_weight, other_count = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, count = weight + other_weight, count + other_count
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return {i: mean + offset for i, mean, offset in zip(members, means, [0.0, *offsets], strict=True)}


def _crossings(x: dict[int, float], row: dict[int, int], links: list[tuple[int, int]]) -> int:
    return sum(
        row[a] == row[c] and (x[a] - x[c]) * (x[b] - x[d]) < 0
        for i, (a, b) in enumerate(links)
        for c, d in links[:i]
    )  # fmt: skip

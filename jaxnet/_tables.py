"""What reports in text are made of: tables, and lists that are cut."""

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, total: Sequence[str] = ()) -> str:
    """Columns of text under their names.

    Args:
      head: the names.
      rows: the cells.
      left: how many columns stand flush left; the others, of numbers, flush right.
      total: a last row, under a rule of its own.

    Example:
      >>> from jaxnet import _tables
      >>> print(_tables.table(["layer", "units"], [["dense", "8"], ["conv", "128"]]))
      layer  units
      -----  -----
      dense      8
      conv     128
    """
    sums = [total] if total else []
    widths = [max(map(len, column)) for column in zip(head, *rows, *sums, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [head, rule, *rows, *(line for row in sums for line in (rule, row))]
    aligned = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def few(items: Any, most: int, more: str = ", ...") -> str:
    """The first of some items, and a word for the others, in which ``{}`` is their number.

    Example:
      >>> from jaxnet import _tables
      >>> _tables.few(range(9), 3), _tables.few("abc", 2, ", and {} more"), _tables.few([7], 3)
      ('0, 1, 2, ...', 'a, b, and 1 more', '7')
    """
    rest = len(items) - most
    return ", ".join(map(str, items[:most])) + (more.format(rest) if rest > 0 else "")

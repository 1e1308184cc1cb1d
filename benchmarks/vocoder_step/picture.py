"""The bar chart of a vocoder step's times."""

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import timing


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draws what `timing.save` wrote: one bar a contestant, its steps end to end, one panel a network and dtype."""
    from matplotlib.figure import Figure

    records = saved["results"]["records"]
    panels = [list(group) for _, group in groupby(records, lambda r: (r["network"], r["dtype"]))]
    rows = [len(panel[0]["seconds"]) for panel in panels]
    figure = Figure(figsize=(8, 0.9 * len(panels) + 0.42 * sum(rows)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        names = [n for n in panel[0]["seconds"] if all(n in r["seconds"] for r in panel)][::-1]
        ends = dict.fromkeys(names, 0.0)
        for record, shade, hatch in zip(panel, ("0.35", "0.75"), ("", "///"), strict=False):
            widths = [1e3 * record["seconds"][n]["median"] for n in names]
            ax.barh(
                names,
                widths,
                left=list(ends.values()),
                color=shade,
                edgecolor="black",
                hatch=hatch,
                label=record["step"],
            )
            ends = {n: ends[n] + width for n, width in zip(names, widths, strict=True)}
        for i, (name, end) in enumerate(ends.items()):
            ratio = "" if name == "ours" else f" ({end / ends['ours']:.2f}x ours)"
            ax.annotate(f" {timing.figures(end)}{ratio}", (end, i), va="center")
        ax.set_xlim(0, 1.25 * max(ends.values()))
        ax.set_title(f"{panel[0]['network']}, {panel[0]['dtype']}", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes[-1].set_xlabel(f"ms a training step, median, lower is better; {timing.machine_name(saved['machine'])}")
    figure.savefig(path, dpi=150)

"""The dot plot of the kernel sweep."""

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.kernels.report import ratios


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draws what `timing.save` wrote: the gradient's time over ours, one column a case, one panel a family."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    records = [r for r in saved["results"]["records"] if r["mode"] == "gradient"]
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    figure = Figure(
        figsize=(max(0.19 * len(records) / len(dtypes), 5) + 1, 2 + 3.2 * len(dtypes)), layout="constrained"
    )
    widths = [len(list(group)) for _, group in groupby(r["family"] for r in records if r["dtype"] == dtypes[0])]
    axes = figure.subplots(
        len(dtypes), len(widths), squeeze=False, sharey=True, sharex="col", width_ratios=[w + 1 for w in widths]
    )
    for dtype, row in zip(dtypes, axes, strict=True):
        families = [list(g) for _, g in groupby((r for r in records if r["dtype"] == dtype), lambda r: r["family"])]
        for ax, members in zip(row, families, strict=True):
            for peer, marker, face in (("lax", "o", "black"), ("torch", "^", "white")):
                found = [(i, ratios(r)[peer]) for i, r in enumerate(members) if peer in ratios(r)]
                ax.plot(
                    *zip(*found, strict=True) if found else ([], []), marker, mfc=face, mec="black", ms=5, label=peer
                )
            ax.axhline(1, color="black", lw=0.8)
            ax.set_yscale("log")
            ax.grid(axis="y", which="major", color="0.85")
            ax.set_axisbelow(True)
            ax.set_title(members[0]["family"], fontsize=9)
            ax.set_xlim(-1, len(members))
            ax.set_xticks(range(len(members)), [r["case"] for r in members], rotation=90, fontsize=6)
        row[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        row[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        row[0].yaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(f"time / ours, forward + backward, {dtype}\nabove 1: ours is faster", fontsize=8)
    notation = "batch x lengths, channels, kernel size K, stride S, dilation d, groups g"
    figure.supxlabel(f"{notation}; {timing.machine_name(saved['machine'])}", fontsize=8)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    labels = ["lax (Flax, Haiku, Equinox) / ours", "PyTorch / ours"]
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)

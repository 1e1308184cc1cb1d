"""The accuracies over the seconds of training."""

from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.speedrun.measure import TARGETS

COLORS = ("tab:blue", "tab:orange", "tab:red", "tab:purple")


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draws what `timing.save` wrote: a line a seed, a color a library, a panel a recipe."""
    from matplotlib.figure import Figure

    records = saved["results"]["records"]
    names = list(dict.fromkeys(record["name"] for record in records))
    figure = Figure(figsize=(8, 3.2 * len(names)), layout="constrained")
    for ax, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        for record, color in zip((r for r in records if r["name"] == name), COLORS, strict=False):
            for i, curve in enumerate(record["curves"]):
                seconds, accuracies = zip(*curve, strict=True)
                label = record["library"] if i == 0 else None
                ax.plot(seconds, accuracies, color=color, alpha=0.5, linewidth=1, label=label)
        for target in TARGETS:
            ax.axhline(target, color="0.6", linewidth=0.6, zorder=0)
        ax.set_ylim(84, 95)
        ax.set_xlim(left=0)
        ax.set_ylabel("test accuracy, %")
        ax.set_title(f"recipe {name}", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="lower right", frameon=False)
        ax.set_xlabel(f"s of training; {timing.machine_name(saved['machine'])}")
    figure.savefig(path, dpi=150)

"""Small multiples of what the training benchmark measured."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks import timing

OURS, OTHERS = "black", "0.7"
LINES = {"repeat": ("black", "o"), "repeat, remat": ("0.4", "s"), "chain": ("C0", "^"), "flax": ("C1", "v")}


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draws what `timing.save` wrote, a panel a problem or a question; parts that were not run are left out."""
    from matplotlib.figure import Figure

    results = saved["results"]
    panels: list[tuple[Any, dict[str, Any]]] = [
        *((_bars, _steps(record)) for record in results.get("loops", [])),
        *((_bars, panel) for panel in _accuracy(results.get("accuracy", []))),
        *((_bars, panel) for panel in _processes(results.get("processes", []))),
    ]
    if depth := results.get("depth"):
        panels += [(_lines, panel) for panel in _depth(depth)]
    if sweeps := results.get("sweeps"):
        panels.append((_lines, _sweeps(sweeps)))
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (kind, panel) in zip(axes, panels, strict=False):
        kind(ax, **panel)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.suptitle(f"Training; {timing.machine_name(saved['machine'])}")
    figure.savefig(path, dpi=130)


def _bars(ax: Any, title: str, values: dict[str, float], spread: dict[str, tuple[float, float]] | None = None) -> None:
    names = list(values)[::-1]
    ends = []
    ax.barh(names, [values[name] for name in names], color=[OURS if name == "ours" else OTHERS for name in names])
    for i, name in enumerate(names):
        end = values[name]
        if spread is not None:
            low, high = spread[name]
            ax.plot([low, high], [i, i], color="C3", linewidth=1.5)
            end = max(end, high)
        ends.append(end)
        ax.annotate(f" {timing.figures(values[name])}", (end, i), va="center", fontsize=8)
    ax.set_xlim(0, 1.2 * max(ends))
    ax.set_title(title, loc="left", fontsize=10)
    ax.tick_params(labelsize=8)


def _lines(
    ax: Any, title: str, x: str, lines: dict[str, tuple[list[int], list[float]]], one: bool = False, log: bool = True
) -> None:
    from matplotlib.ticker import LogLocator

    for i, (name, (xs, ys)) in enumerate(lines.items()):
        color, marker = LINES.get(name, (f"C{i}", "o"))
        ax.plot(xs, ys, marker=marker, color=color, label=name, markersize=4)
    ax.set_xscale("log", base=2)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    else:
        ax.set_ylim(0, 1.15 * max(y for _, ys in lines.values() for y in ys))
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    ax.set_xticks(ticks, list(map(str, ticks)))
    if one:
        ax.axhline(1, color="0.7", linewidth=1, zorder=0)
    ax.set_xlabel(x, fontsize=8)
    ax.set_title(title, loc="left", fontsize=10)
    ax.tick_params(labelsize=8)
    ax.legend(frameon=False, fontsize=8)


def _steps(record: dict[str, Any]) -> dict[str, Any]:
    seconds = record["seconds_a_step"]
    return {
        "title": f"{record['problem']}: steps a second",
        "values": {name: 1 / t["median"] for name, t in seconds.items()},
        "spread": {name: (1 / t["high"], 1 / t["low"]) for name, t in seconds.items()},
    }


def _accuracy(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    panels = []
    for problem, goal in dict.fromkeys((r["problem"], r["goal"]) for r in records):
        of = [r for r in records if r["problem"] == problem]
        seconds = {
            name: [r["seconds"] for r in of if r["library"] == name] for name in dict.fromkeys(r["library"] for r in of)
        }
        panels.append(
            {
                "title": f"{problem}: s to {goal:.0%}, compiling included",
                "values": {name: statistics.median(values) for name, values in seconds.items()},
                "spread": {name: (min(values), max(values)) for name, values in seconds.items()},
            }
        )
    return panels


def _processes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    panels = []
    for problem, whole in dict.fromkeys((r["problem"], bool(r["epochs"])) for r in records):
        of = [r for r in records if (r["problem"], bool(r["epochs"])) == (problem, whole)]
        values = {}
        for name in dict.fromkeys(r["library"] for r in of):
            values[name] = statistics.median(
                r["bytes"] / 1e6 if whole else r["seconds"] for r in of if r["library"] == name
            )
        panels.append(
            {"title": f"{problem}: {'MB at most' if whole else 's to the first step'}, new process", "values": values}
        )
    return panels


def _depth(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def lines(value):
        names = records[0]["compile_seconds"]
        return {name: ([r["blocks"] for r in records], [value(r, name) for r in records]) for name in names}

    return [
        {"title": title, "x": "equal residual blocks", "lines": lines(value)}
        for title, value in (
            ("s to compile a step", lambda r, n: r["compile_seconds"][n]),
            ("ms a step", lambda r, n: 1e3 * r["step_seconds"][n]["median"]),
            ("MB of temporary memory a step", lambda r, n: r["temporary_bytes"][n] / 1e6),
        )
    ]


def _sweeps(records: list[dict[str, Any]]) -> dict[str, Any]:
    lines = {}
    for problem in dict.fromkeys(r["problem"] for r in records):
        of = [r for r in records if r["problem"] == problem]
        gains = [r["members"] * r["fit_epoch_seconds"] / r["sweep_epoch_seconds"] for r in of]
        lines[problem] = ([r["members"] for r in of], gains)
    return {
        "title": "a sweep's speed in fits one after the other's",
        "x": "networks",
        "lines": lines,
        "one": True,
        "log": False,
    }

"""How long training takes to a given accuracy: everything from building the network on, and without compiling."""

import statistics
import time
from typing import Any

from benchmarks import timing
from benchmarks.training.libraries import contestants, import_packages
from benchmarks.training.problems import Problem

NAMES = ["ours", "flax, device", "equinox, device", "torch, fused"]
MOST = 100  # epochs


def measure(problem: Problem, seeds: int) -> list[dict[str, Any]]:
    """Trains every library to the problem's goal, from a few seeds, in turns."""
    records = []
    for seed in range(seeds):
        for name in NAMES:
            if import_packages(name):
                continue
            began = time.perf_counter()
            found, _ = contestants(problem._replace(seed=seed), [name], validate=True)
            laps, reached, epoch = [], 0.0, 0
            while reached < problem.goal and epoch < MOST:
                lap = time.perf_counter()
                reached = found[name](1).accuracy or 0.0
                laps.append(time.perf_counter() - lap)
                epoch += 1
            records.append(
                {
                    "problem": problem.name,
                    "goal": problem.goal,
                    "library": name,
                    "seed": seed,
                    "reached": reached,
                    "epochs": epoch,
                    "seconds": time.perf_counter() - began,
                    # The first epoch compiles; what it trains is as much as another.
                    "seconds_compiled": sum(laps[1:]) + statistics.median(laps[1:] or laps),
                }
            )
    return records


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table, medians over the seeds."""
    rows = []
    for problem, goal in dict.fromkeys((r["problem"], r["goal"]) for r in records):
        for name in dict.fromkeys(r["library"] for r in records):
            of = [r for r in records if (r["problem"], r["library"]) == (problem, name)]
            if not of:
                continue
            epochs = ", ".join(str(r["epochs"]) + "!" * (r["reached"] < goal) for r in of)
            middle = [statistics.median(r[key] for r in of) for key in ("seconds", "seconds_compiled")]
            rows.append([problem, f"{goal:.0%}", name, epochs, *map(timing.figures, middle)])
    header = ["", "accuracy", "library", "epochs, a seed each", "s in all", "s without compiling"]
    return "Time to an accuracy (medians over seeds; !: not reached)\n" + timing.table(header, rows)

"""Whole trainings: ours, Flax and Equinox with optax, PyTorch eager, fused and compiled; depth; many networks at once.

All libraries start from the same weights and see the same batches, and their losses are compared before any is timed.
"""

import argparse
import json
import os
from typing import Any

from benchmarks import timing
from benchmarks.training import accuracy, depth, loops, processes, sweeps
from benchmarks.training.picture import draw
from benchmarks.training.problems import PROBLEMS, load

NAME = "training"
PARTS = ("loops", "accuracy", "processes", "depth", "sweeps")


def measure(part: str, problems: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Runs one part."""
    if part == "loops":
        return [loops.measure(problem, quick) for problem in problems.values()]
    if part == "accuracy":
        chosen = [problems[name] for name in ("digits-conv", "italy") if name in problems]
        return [record for problem in chosen for record in accuracy.measure(problem, 1 if quick else 2)]
    if part == "processes":
        return processes.measure(list(problems), quick)
    if part == "depth":
        return [depth.measure(blocks, quick) for blocks in ((2, 16) if quick else (2, 8, 64))]
    chosen = [problems[name] for name in ("digits-mlp", "digits-conv") if name in problems]
    members = [1, 8] if quick else [1, 2, 4, 8, 16, 64]
    return [record for problem in chosen for record in sweeps.measure(problem, members, 0.3 if quick else 0.5)]


REPORTS = {
    "loops": loops.report,
    "accuracy": accuracy.report,
    "processes": processes.report,
    "depth": depth.report,
    "sweeps": sweeps.report,
}


def main(argv: list[str]) -> None:
    """Prints the tables, saves the numbers and draws them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter; saved apart from a whole run")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="these problems alone")
    parser.add_argument("--picture", action="store_true", help="only draw the saved numbers again")
    options = parser.parse_args(argv)
    partial = options.quick or set(options.part) != set(PARTS) or set(options.problem) != set(PROBLEMS)
    path = timing.path(NAME, partial=partial)
    if not options.picture:
        # Steps of many small operations lose a third and more of PyTorch's speed when its threads go to sleep after
        # each. So here they spin as long as is usual, and the loops rest between turns until they have stopped.
        os.environ.setdefault("GOMP_SPINCOUNT", "300000")
        problems, missing = load(options.problem)
        results: dict[str, Any] = {"quick": options.quick}
        for part in options.part:
            results[part] = measure(part, problems, options.quick)
            if results[part]:
                print(REPORTS[part](results[part]) + "\n", flush=True)
        for reason in missing:
            print(f"not run: {reason}")
        timing.save(NAME, results, partial=partial)
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"written to {path.name} and {path.with_suffix('.png').name}")

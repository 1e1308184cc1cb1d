"""Steps per second of whole training loops, on arrays, with the same first weights and the same batches."""

import time
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.training.libraries import LIBRARIES, contestants
from benchmarks.training.problems import Contestant, Conv, Problem, named

TURN = 0.1  # seconds that ours trains at a stretch; the others do as many epochs
REST = 0.02  # seconds; PyTorch's idle threads spin for a few ms


def compare(problem: Problem, found: dict[str, Contestant]) -> None:
    """Trains two epochs with every contestant: their mean losses must be the first one's.

    Raises:
      AssertionError: who differs, and by how much.
    """
    reference = None
    for name, train in found.items():
        losses = [train(1).loss for _ in range(2)]
        reference = reference or losses
        if not np.allclose(losses, reference, rtol=timing.rounding(1e-3), atol=0):
            raise AssertionError(f"{problem.name}: the losses of {name} are {losses}, of the first {reference}")


def measure(problem: Problem, quick: bool) -> dict[str, Any]:
    """Compares and times all libraries on one problem."""
    names = [name for name in LIBRARIES if not (quick and name == "torch.compile")]
    if any(isinstance(part, Conv) for part in named(problem.parts)):
        # On a CPU XLA's gradient of a convolution is many times slower inside a scan (benchmarks kernels).
        names.remove("flax, scan")
    found, missing = contestants(problem, names, validate=False)
    compare(problem, found)
    found["ours"](3)  # its dispatches grow
    began = time.perf_counter()
    found["ours"](3)
    epochs = max(1, round(TURN / ((time.perf_counter() - began) / 3)))
    runs = {name: lambda train=train: train(epochs) for name, train in found.items()}
    times = timing.interleaved(
        runs, seconds=0.3 if quick else 1.2, warmup=1, minimum=3, own_pace=True, rest=REST
    )  # fmt: skip
    steps = epochs * problem.steps
    return {
        "problem": problem.name,
        "steps_a_turn": steps,
        "steps_an_epoch": problem.steps,
        "seconds_a_step": {n: timing.per(steps, t)._asdict() for n, t in times.items()},
        "missing": missing,
    }


def fastest(record: dict[str, Any], library: str) -> float | None:
    """The least median of the variants of a library's loop, one step a dispatch."""
    variants = (library, f"{library}, device", f"{library}, fused")
    medians = [record["seconds_a_step"][name]["median"] for name in variants if name in record["seconds_a_step"]]
    return min(medians, default=None)


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table: steps per second (10th-90th percentile), and ours in multiples of each."""
    names = list(dict.fromkeys(name for record in records for name in record["seconds_a_step"]))
    rows = []
    for name in names:
        cells = []
        for record in records:
            t = record["seconds_a_step"].get(name)
            if t is None:
                cells.append("-")
                continue
            median, low, high = (timing.figures(1 / t[k]) for k in ("median", "high", "low"))
            cells.append(f"{median} ({low}-{high}), {t['median'] / record['seconds_a_step']['ours']['median']:.2f}x")
        rows.append([name, *cells])
    lines = [
        "Loops: steps per second (10th-90th percentile), how many times as fast ours is",
        timing.table(["", *(r["problem"] for r in records)], rows),
    ]
    for library in ("flax", "equinox", "torch", "torch.compile"):
        ratios = [
            f"{best / r['seconds_a_step']['ours']['median']:.2f}x {r['problem']}"
            for r in records
            if (best := fastest(r, library)) is not None
        ]
        if ratios:
            lines.append(f"ours against the faster loop of {library}: {', '.join(ratios)}")
    lines += [f"not run: {reason}" for reason in dict.fromkeys(reason for r in records for reason in r["missing"])]
    return "\n".join(lines)

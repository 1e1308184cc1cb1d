"""Many networks at once, `training.sweep`, against as many `training.fit`, one after the other."""

import itertools
import statistics
import time
from typing import Any
from unittest import mock

from benchmarks import timing
from benchmarks.training.libraries import network, ours
from benchmarks.training.problems import RATE, Problem
from jaxnet import data, losses, optimizers, training


def measure(problem: Problem, members: list[int], seconds: float) -> list[dict[str, Any]]:
    """Times an epoch of a fit, and of sweeps of so many members; a fit's turns are before and after each sweep."""
    began = time.perf_counter()
    train = ours(problem, False)
    train(1)
    fit_first = time.perf_counter() - began
    train(5)
    records = []
    for count in members:
        before = _fit_epoch(train, seconds)
        epoch, first = _sweep_epoch(problem, count, 2 + max(3, round(seconds / (before * count))))
        fits = (before + _fit_epoch(train, seconds)) / 2
        records.append(
            {
                "problem": problem.name,
                "members": count,
                "fit_epoch_seconds": fits,
                "fit_compile_seconds": fit_first - fits,
                "sweep_epoch_seconds": epoch,
                "sweep_compile_seconds": first - epoch,
            }
        )
    return records


def _fit_epoch(train: Any, seconds: float) -> float:
    """The median of a few turns."""
    laps = []
    for _ in range(3):
        began = time.perf_counter()
        done = 0
        while not done or time.perf_counter() - began < seconds / 6:
            train(5)
            done += 5
        laps.append((time.perf_counter() - began) / done)
    return statistics.median(laps)


def _sweep_epoch(problem: Problem, members: int, epochs: int) -> tuple[float, float]:
    """The median of a sweep's epochs after the first, and how long it took to the end of the first.

    A sweep reports no times; it draws the first member's next order while the device computes an epoch.
    """
    begun = []

    def order(samples, *, seed, epoch):
        if seed == 0:
            begun.append(time.perf_counter())
        return epoch_order(samples, seed=seed, epoch=epoch)

    epoch_order, called = data.epoch_order, time.perf_counter()
    with mock.patch.object(data, "epoch_order", order):
        training.sweep(
            network(problem.parts), losses.softmax_cross_entropy, lambda rate: optimizers.adam(rate), problem.train,
            settings={"seed": range(members), "rate": [RATE] * members}, epochs=epochs, batch_size=problem.batch_size,
        )  # fmt: skip
    laps = [after - before for before, after in itertools.pairwise(begun)]
    return statistics.median(laps[2:]), begun[2] - called


def gain(record: dict[str, Any]) -> float:
    """How many times as fast the sweep is, compiled."""
    return record["members"] * record["fit_epoch_seconds"] / record["sweep_epoch_seconds"]


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    rows = [
        [
            r["problem"],
            str(r["members"]),
            *(timing.figures(1e3 * v) for v in (r["members"] * r["fit_epoch_seconds"], r["sweep_epoch_seconds"])),
            f"{gain(r):.2f}x",
            *(timing.figures(v) for v in (r["members"] * r["fit_compile_seconds"], r["sweep_compile_seconds"])),
        ]
        for r in records
    ]
    header = ["", "networks", "ms an epoch, fits", "sweep", "gain", "s to compile, fits", "sweep"]
    return "Sweeps: all networks, one fit after the other and in one sweep\n" + timing.table(header, rows)

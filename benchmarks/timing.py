"""How things are timed here: all contestants in one process, in turns, warmed up, and compared before timing."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "torch", "flax", "equinox", "dm-haiku")


class Timing(NamedTuple):
    """Times of one contestant in seconds.

    Attributes:
      median: of all repetitions.
      low: the 10th percentile.
      high: the 90th percentile.
      repetitions: how many were measured.
    """

    median: float
    low: float
    high: float
    repetitions: int


def interleaved(
    contestants: dict[str, Callable[[], Any]], *, seconds: float = 1.0, warmup: int = 3, minimum: int = 5
) -> dict[str, Timing]:
    """Times functions in turns, so that what else the machine does hits all of them alike.

    Args:
      contestants: name -> a function of no arguments; what it returns is waited for.
      seconds: how long to go on, per contestant.
      warmup: calls of each before any is timed.
      minimum: the least number of repetitions, however slow.

    Returns:
      name -> `Timing`.
    """
    for run in contestants.values():
        for _ in range(warmup):
            jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    rounds = 0
    while rounds < minimum or (time.perf_counter() - start < seconds * len(contestants) and rounds < 1000):
        order = list(contestants)
        for name in order if rounds % 2 else reversed(order):
            before = time.perf_counter()
            jax.block_until_ready(contestants[name]())
            times[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Timing(statistics.median(ordered), at(0.1), at(0.9), len(ordered))


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, devices, versions. No names of hosts or paths."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
    }


def milliseconds(timing: Timing | None) -> str:
    """``median (low-high)`` in milliseconds, or a dash."""
    if timing is None:
        return "-"
    return f"{1e3 * timing.median:.3g} ({1e3 * timing.low:.3g}-{1e3 * timing.high:.3g})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def save(name: str, results: Any) -> Path:
    """Writes results and the machine's description to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), "results": results}, indent=1) + "\n")
    return path

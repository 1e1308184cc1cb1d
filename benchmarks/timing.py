"""How things are timed here: all contestants in one process, in turns, warmed up, and compared before timing."""

import importlib.metadata
import json
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.memory import TUNABLES

RESULTS = Path(__file__).parent / "results"
FAST = 0.02  # seconds
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
    contestants: dict[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    warmup: int = 3,
    minimum: int = 5,
    own_pace: bool = False,
    rest: float = 0.0,
) -> dict[str, Timing]:
    """Times functions in turns, so that what else the machine does hits all of them alike.

    Args:
      contestants: name -> a function of no arguments; what it returns is waited for.
      seconds: how long to go on, per contestant.
      warmup: calls of each before any is timed.
      minimum: the least number of repetitions, however slow.
      own_pace: for programs of very different speeds. Each is called for about ``seconds``, the slow ones less often
        but spread evenly over the rounds, instead of all equally often; and a fast one is called once untimed at the
        start of its turn, so that it finds its own data in the caches. Needs a warm-up.
      rest: seconds to sleep before each turn, until idle threads of the one before have stopped spinning.

    Returns:
      name -> `Timing`.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}

    def call(name):
        before = time.perf_counter()
        jax.block_until_ready(contestants[name]())
        return time.perf_counter() - before

    last = {name: [call(name) for _ in range(warmup)][-1:] for name in contestants}
    planned = dict.fromkeys(contestants, 1000)
    if own_pace:
        planned = {name: max(minimum, min(int(seconds / value), 1000)) for name, (value,) in last.items()}
    total = max(planned.values(), default=0)
    order = list(contestants)
    shuffle = random.Random(0).shuffle  # a fixed order would always put one after the same other one
    start = time.perf_counter()
    rounds = 0
    while rounds < total and (own_pace or rounds < minimum or time.perf_counter() - start < seconds * len(contestants)):
        shuffle(order)
        for name in order:
            if (rounds + 1) * planned[name] // total > rounds * planned[name] // total:
                time.sleep(rest)
                if own_pace and last[name][0] < FAST:
                    call(name)
                times[name].append(call(name))
        rounds += 1
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Timing(statistics.median(ordered), at(0.1), at(0.9), len(ordered))


def per(steps: int, t: Timing) -> Timing:
    """The times of one of the steps that each repetition took."""
    return Timing(t.median / steps, t.low / steps, t.high / steps, t.repetitions)


def dtypes() -> tuple[str, ...]:
    """What is measured here: float32, and on a GPU bfloat16 too."""
    return ("float32", "bfloat16") if jax.default_backend() == "gpu" else ("float32",)


def rounding(tolerance: float) -> float:
    """How far apart, relatively, results of libraries may be: on a GPU, where products are TF32, ten times as far."""
    return 10 * tolerance if jax.default_backend() == "gpu" else tolerance


def matrix_product_flops(dtype: str = "float32", *, seconds: float = 0.5) -> float:
    """The most operations per second that compiled square matrix products reach: what arithmetic can cost here."""
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    rates = []
    for size in sizes:
        a = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul).lower(a, a).compile()
        times = interleaved({"product": lambda product=product, a=a: product(a, a)}, seconds=seconds)
        rates.append(2 * size**3 / times["product"].low)
    return max(rates)


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
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
    }


def instructions() -> str | None:
    """The widest of the instruction sets that XLA, oneDNN and PyTorch choose their code by; None if it is not known."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in flags), None)


def machine_name(machine: dict[str, Any]) -> str:
    """What a picture says of the saved `machine`: the accelerator, or the processor and its cores."""
    device = machine["devices"][0]
    if device != "cpu":
        return device
    known = machine.get("instructions")
    return f"{machine['cores']} cores, {machine['cpu']}" + (f" ({known})" if known else "")


def milliseconds(timing: Timing | None) -> str:
    """``median (low-high)`` in milliseconds, or a dash."""
    if timing is None:
        return "-"
    median, low, high = (figures(1e3 * seconds) for seconds in timing[:3])
    return f"{median} ({low}-{high})"


def figures(value: float) -> str:
    """Three significant figures, and no exponent for large values."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def path(name: str, *, partial: bool = False) -> Path:
    """Where a benchmark's results lie: ``benchmarks/results/NAME.json``.

    On a GPU or TPU the name carries the device, and where memory is reused, that. Where the results of another version
    of JAX, or another processor, have the name already, it carries both: they are kept. Results of a partial run, which
    git ignores, never take the place of a whole one's.
    """
    device = jax.devices()[0]
    parts = [name] if device.platform == "cpu" else [name, _slug(device.device_kind)]
    parts += ["memory-reused"] * (os.environ.get("GLIBC_TUNABLES") == TUNABLES)
    taken = RESULTS / ("-".join(parts) + ".json")
    here = machine()
    if not partial and taken.exists() and not _is_alike(here, json.loads(taken.read_text())["machine"]):
        parts += ["jax", here["versions"]["jax"], _slug(f"{here['cpu']} {here['instructions'] or ''}".strip())]
    return RESULTS / ("-".join(parts + ["partial"] * partial) + ".json")


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower())


def _is_alike(here: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether two runs had one version of JAX and one processor; of an older run the instructions are not known."""
    if here["versions"]["jax"] != saved["versions"]["jax"]:
        return False
    if here["devices"][0] != "cpu":  # the name has the device
        return True
    return here["cpu"] == saved["cpu"] and saved.get("instructions", here["instructions"]) == here["instructions"]


def save(name: str, results: Any, *, partial: bool = False) -> Path:
    """Writes results and the machine's description to `path`."""
    RESULTS.mkdir(exist_ok=True)
    file = path(name, partial=partial)
    file.write_text(json.dumps({"benchmark": name, "machine": machine(), "results": results}, indent=1) + "\n")
    return file

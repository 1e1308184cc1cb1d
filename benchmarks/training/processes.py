"""What only a fresh process shows: how long the first parameters and step take, and the most memory training needs.

Such a process runs `child` for a library, a problem and a number of epochs; with 0 epochs it draws parameters, as that
library's users do, and takes one step on one batch.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import timing
from benchmarks.training.problems import Problem

NAMES = ["ours", "flax, device", "equinox, device", "torch", "torch.compile"]
FIRST, MEMORY = "digits-conv", ("digits-conv", "osuleaf")
CHILD = "from benchmarks.training import processes; processes.main()"


def measure(problems: list[str], quick: bool) -> list[dict[str, Any]]:
    """Runs the processes, libraries in turns."""
    rounds = 1 if quick else 3
    jobs = [(name, FIRST, 0) for _ in range(rounds) for name in NAMES if name != "torch.compile"]
    jobs += [(name, p, 3) for p in (MEMORY[:1] if quick else MEMORY) for name in NAMES if name != "torch.compile"]
    if not quick:  # it compiles for up to half a minute
        jobs.append(("torch.compile", FIRST, 0))
    records = []
    for name, problem, epochs in jobs:
        if problem in problems:
            record = run(name, problem, epochs)
            records += [] if record is None else [{"library": name, "problem": problem, "epochs": epochs, **record}]
    return records


def run(name: str, problem: str, epochs: int) -> dict[str, float] | None:
    """One process's answer; None if the library cannot run here, and says so."""
    command = [sys.executable, "-c", CHILD, name, problem, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    if done.returncode:
        print(f"not run: {name} on {problem}: {(done.stderr.splitlines() or ['no message'])[-1][:100]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, problem_name: str, epochs: int) -> dict[str, float]:
    """Trains in this process, and says how long the first parameters and step, or all, took, and how much memory."""
    from benchmarks.training.libraries import LIBRARIES, import_packages
    from benchmarks.training.problems import PROBLEMS

    import_packages(name)
    problem = PROBLEMS[problem_name][0]()
    before = peak_bytes()
    drawn = {} if epochs or name not in INIT else {"init_seconds": _seconds(lambda: INIT[name](problem))}
    began = time.perf_counter()
    train = LIBRARIES[name][0](problem if epochs else problem.one_step(), False)
    train(epochs or 1)
    return {**drawn, "seconds": time.perf_counter() - began, "bytes": peak_bytes() - before}


def _ours(problem: Problem) -> Any:
    from benchmarks.training.libraries import network

    return network(problem.parts).init(0, problem.train[0][:1])


def _flax(problem: Problem) -> Any:
    from benchmarks.training.libraries import flax_network

    return jax.jit(flax_network(problem.parts).init, static_argnums=2)(jax.random.key(0), problem.train[0][:1], True)


INIT: dict[str, Callable[[Problem], Any]] = {"ours": _ours, "flax, device": _flax}
"""How the parameters are drawn, where there is one function for that."""


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def main() -> None:
    """What a process does: `child` of its arguments, printed."""
    print(json.dumps(child(sys.argv[1], sys.argv[2], int(sys.argv[3]))))


def peak_bytes() -> int:
    """The most memory this process has had.

    On Linux not `resource.getrusage`'s ``ru_maxrss``: of a process started by another it is at least the other's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(lines[0].split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table: medians of the first step, and the peaks."""
    columns = list(dict.fromkeys((r["problem"], bool(r["epochs"])) for r in records))
    rows = []
    for name in dict.fromkeys(r["library"] for r in records):
        cells = []
        for problem, whole in columns:
            of = [r for r in records if (r["library"], r["problem"], bool(r["epochs"])) == (name, problem, whole)]
            value = statistics.median(r["bytes"] / 1e6 if whole else r["seconds"] for r in of) if of else None
            drawn = [r["init_seconds"] for r in of if "init_seconds" in r]
            first = f"{timing.figures(statistics.median(drawn))} + " if drawn else ""
            cells.append("-" if value is None else f"{first}{timing.figures(value)} {'MB' if whole else 's'}")
        rows.append([name, *cells])
    header = [f"{p}: {'peak memory' if whole else 'first parameters + first step'}" for p, whole in columns]
    return "In fresh processes, above the imports\n" + timing.table(["", *header], rows)

"""Layers of sequences, value and gradients, or whole steps: ours, Flax, Equinox, PyTorch eager and compiled.

All compute from the same weights, and must have the same outputs and gradients; only after that they are timed, in
turns in one process, and each in a process of its own. The better of its two times counts. All of that on one core and
on all.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.sequence import attention, generation, gpt, norms, recurrent
from benchmarks.sequence.libraries import LIBRARIES, Work, compare, contestants

NAME = "sequence"
Record = dict[str, Any]


def works() -> dict[str, Work]:
    """All works by name."""
    return {
        work.name: work
        for work in (*gpt.works(), *generation.works(), *recurrent.works(), *attention.works(), *norms.works())
    }


def limit(cores: int) -> None:
    """Keeps this process, which must not have computed yet, to so many cores: XLA's threads and PyTorch's."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(cores)
    os.environ["OMP_NUM_THREADS"] = str(cores)


def measure(work: Work, libraries: list[str], seconds: float) -> Record:
    """Compares and times the contestants at one work, in turns."""
    found, missing = contestants(work, libraries)
    compare(work, found)
    runs = {name: contestant.run for name, contestant in found.items()}
    times = timing.interleaved(runs, seconds=seconds, warmup=2, own_pace=True)
    return {
        "work": work.name,
        "label": work.label,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "missing": missing,
    }


def child(names: list[str], libraries: list[str], cores: int, seconds: float) -> None:
    """What a process does: prints a record, as a line of JSON, for each work."""
    limit(cores)
    for name in names:
        print(json.dumps(measure(works()[name], libraries, seconds)), flush=True)


def in_process(names: list[str], libraries: list[str], cores: int, seconds: float) -> list[Record]:
    """Runs `child` in a fresh process, which has computed nothing yet."""
    command = [sys.executable, "-m", "benchmarks", NAME, "--print", "--seconds", str(seconds), "--cores", str(cores)]
    command += ["--work", *names, "--library", *libraries]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def at_all(names: list[str], libraries: list[str], cores: int, seconds: float) -> list[Record]:
    """In turns, and then each library alone."""
    records = in_process(names, libraries, cores, seconds)
    for library in libraries:
        theirs = [record["work"] for record in records if library in record["seconds"]]
        alone = in_process(theirs, [library], cores, seconds) if theirs else []
        for record in alone:
            whole = next(one for one in records if one["work"] == record["work"])
            whole.setdefault("alone", {}).update(record["seconds"])
    return [record | {"cores": cores} for record in records]


def best(record: Record, library: str) -> timing.Timing | None:
    """The better of a library's two times."""
    found = [record[way][library] for way in ("seconds", "alone") if library in record.get(way, {})]
    return timing.Timing(**min(found, key=lambda times: times["median"])) if found else None


def report(records: list[Record]) -> str:
    """A Markdown table, a row a work and number of cores."""
    names = [name for name in LIBRARIES if any(name in record["seconds"] for record in records)]
    rows = []
    for record in records:
        times = {name: best(record, name) for name in names}
        ours = times.get("ours")
        peers = [t.median for name, t in times.items() if t and name != "ours"]
        ratio = timing.figures(min(peers) / ours.median) if ours and peers else "-"
        cells = [timing.milliseconds(times[name]) for name in names]
        rows.append([record["label"], str(record["cores"]), *cells, ratio])
    return timing.table(["work", "cores", *names, "best peer / ours"], rows)


def main(argv: list[str]) -> None:
    """Prints the table and saves the times."""
    everything = list(works())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks sequence", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the time for each")
    parser.add_argument("--work", nargs="+", choices=everything, default=everything, help="these works alone")
    parser.add_argument("--library", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES), help="these alone")
    parser.add_argument("--cores", nargs="+", type=int, default=sorted({1, cores}), help="default: one, and all")
    parser.add_argument("--seconds", type=float, help="how long to time a contestant; default 2, quick 0.5")
    parser.add_argument("--print", action="store_true", help="as one process: only print the records")
    options = parser.parse_args(argv)
    seconds = options.seconds or (0.5 if options.quick else 2.0)
    if options.print:
        child(options.work, options.library, options.cores[0], seconds)
        return
    records = []
    for number in options.cores:
        records += at_all(options.work, options.library, number, seconds)
    print(f"ms (10th-90th percentile), the better of in turns and alone\n{report(records)}")
    for reason in sorted({reason for record in records for reason in record["missing"]}):
        print(f"not run: {reason}")
    partial = options.quick or options.work != everything or options.library != list(LIBRARIES)
    path = timing.save(NAME, {"records": records}, partial=partial)
    print(f"\nwritten to {path.name}")

"""A sweep over convolutions and poolings: ours, the plain lax form that other JAX libraries run, and PyTorch.

Modes: "forward"; "gradient", the value and the derivatives of a weighted sum of the output with respect to input and
kernel; "scan", gradient steps in a loop, per step; "vmap", the gradients for several kernels on one input (for
pooling: several inputs), and "vmap both", for as many inputs. All are compared before they are timed.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from typing import Any

from benchmarks import timing
from benchmarks.kernels.cases import CASES, FAMILIES, Case
from benchmarks.kernels.picture import draw
from benchmarks.kernels.programs import STEPS, Contestant, compare, contestants
from benchmarks.kernels.report import compile_table, family_table, summary_table

NAME = "kernels"
LIBRARIES = ("ours", "lax", "torch")
ALONE = ("ours", "torch")  # lax is compared in turns
MODES = ("forward", "gradient", "scan", "vmap", "vmap both")


def prepare(case: Case, mode: str, dtype: str, **which: Any) -> dict[str, Contestant]:
    """Compiles one case in one mode, and compares what the contestants return; ``which`` is for `contestants`."""
    programs = contestants(case, mode, dtype, **which)
    if "lax" in programs:
        compare(programs, f"{case.label}, {mode}", dtype)
    return programs


def measure(
    case: Case, mode: str, dtype: str, programs: dict[str, Contestant], seconds: float, matrix_product: float
) -> dict[str, Any]:
    """Times what `prepare` has compiled."""
    runs = {name: program.run for name, program in programs.items()}
    # A plain lax gradient can take seconds, and then three calls of it say enough.
    times = timing.interleaved(runs, seconds=seconds, warmup=1, minimum=3, own_pace=True)
    if mode == "scan":
        times = {n: timing.per(STEPS, t) for n, t in times.items()}
    flops = 2 * case.multiply_adds * (1 if mode == "forward" else 3) * (case.copies if "vmap" in mode else 1)
    return {
        "family": case.family,
        "case": case.label,
        "mode": mode,
        "dtype": dtype,
        "copies": case.copies if "vmap" in mode else 1,
        "flops": flops,
        "share_of_matrix_product": flops / times["ours"].median / matrix_product if "ours" in times else None,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "compile_seconds": {name: programs[name].compile_seconds for name in ("ours", "lax") if name in programs},
    }


def measure_alone(records: list[dict[str, Any]], family: str, options: argparse.Namespace) -> None:
    """Times ours and PyTorch again in a process each, as their users have them, and adds that to the records."""
    for name in ALONE:
        command = [sys.executable, "-m", "benchmarks", "kernels", "--print", "--library", name, "--family", family]
        command += ["--mode", *options.mode, "--dtype", *options.dtype, "--seconds", str(options.seconds)]
        command += ["--quick"] * options.quick + ["--compiled"] * options.compiled
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = {_which(record): record["seconds"] for record in json.loads(output.splitlines()[-1])}
        for record in records:
            record.setdefault("alone", {}).update(found[_which(record)])


def _which(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["case"], record["mode"], record["dtype"]


def in_processes(
    jobs: int, plan: list[tuple[Case, str, str]], seconds: float, rates: dict[str, float], **which: Any
) -> list[Any]:
    """Measures a plan, compiled by several processes at once and timed by one at a time, after all have compiled."""
    context = multiprocessing.get_context("spawn")
    ready, alone, records = context.Barrier(jobs), context.Lock(), context.Queue()
    parts = [[(i, *plan[i]) for i in range(job, len(plan), jobs)] for job in range(jobs)]
    given = seconds, rates, which, ready, alone, records
    processes = [context.Process(target=_work, args=(part, *given)) for part in parts]
    for process in processes:
        process.start()
    found = dict(records.get() for _ in plan)
    for process in processes:
        process.join()
    for error in (record for record in found.values() if isinstance(record, str)):
        print(f"not measured: {error}")
    return [found[i] for i in sorted(found) if not isinstance(found[i], str)]


def _work(
    part: list[Any], seconds: float, rates: dict[str, float], which: Any, ready: Any, alone: Any, records: Any
) -> None:
    prepared = []
    for i, case, mode, dtype in part:
        try:
            prepared.append((i, case, mode, dtype, prepare(case, mode, dtype, **which)))
        except Exception as error:  # the others shall be measured
            records.put((i, f"{case.label}, {mode}, {dtype}: {error}"))
    ready.wait()
    with alone:
        for i, case, mode, dtype, programs in prepared:
            records.put((i, measure(case, mode, dtype, programs, seconds, rates[dtype])))


def plan_of(family: str, options: argparse.Namespace) -> list[tuple[Case, str, str]]:
    """The cases, modes and dtypes of a family that were asked for."""
    return [
        (case, mode, dtype)
        for dtype in options.dtype
        for case in CASES
        if case.family == family and (case.copies or not options.quick)
        for mode in case.modes
        if mode in options.mode
    ]


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, with what they leave open filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the representative cases alone, in all modes")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="these families alone")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="these modes alone")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="default: float32, on a GPU both")
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="these alone, for --print")
    parser.add_argument("--compiled", action="store_true", help="PyTorch compiled too, some seconds a case")
    parser.add_argument("--alone", action="store_true", help="time ours and PyTorch in a process each too")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile, for a GPU on many cores")
    parser.add_argument("--seconds", type=float, help="how long to time a contestant; default 0.3, quick 0.15")
    parser.add_argument("--picture", action="store_true", help="only draw the saved times again")
    parser.add_argument("--print", action="store_true", help="print the records as JSON, and save and draw nothing")
    options = parser.parse_args(argv)
    if set(options.library) != set(LIBRARIES) and not options.print:
        parser.error("--library is for --print: the tables compare ours with the others")
    options.dtype = options.dtype or timing.dtypes()
    options.seconds = options.seconds or (0.15 if options.quick else 0.3)
    return options


def main(argv: list[str]) -> None:
    """Prints the tables, saves the times and draws them."""
    options = parse(argv)
    if options.jobs > 1 or options.alone:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share the GPU
    everything = (FAMILIES, MODES, timing.dtypes())
    chosen = (options.family, options.mode, options.dtype)
    partial = options.quick or any(set(some) != set(all_) for some, all_ in zip(chosen, everything, strict=True))
    path = timing.path(NAME, partial=partial)
    if not options.picture:
        rates = {dtype: timing.matrix_product_flops(dtype) for dtype in options.dtype}
        which = {"libraries": options.library, "compiled": options.compiled}
        if options.print:
            plan = itertools.chain(*(plan_of(family, options) for family in options.family))
            print(json.dumps([measure(*one, prepare(*one, **which), options.seconds, rates[one[2]]) for one in plan]))
            return
        _measure_all(options, rates, which, partial)
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"\nwritten to {path.name} and {path.with_suffix('.png').name}")


def _measure_all(options: argparse.Namespace, rates: dict[str, float], which: dict[str, Any], partial: bool) -> None:
    records: list[dict[str, Any]] = []
    for dtype, rate in rates.items():
        print(f"{dtype} matrix product: {rate / 1e9:.0f} GFLOP/s", flush=True)
    plans = {family: plan_of(family, options) for family in options.family}
    at_once: list[Any] = []
    if options.jobs > 1:
        at_once = in_processes(options.jobs, list(itertools.chain(*plans.values())), options.seconds, rates, **which)
    for family, plan in plans.items():
        of_family = [r for r in at_once if r["family"] == family]
        if options.jobs == 1:
            of_family = [measure(*one, prepare(*one, **which), options.seconds, rates[one[2]]) for one in plan]
        if options.alone:
            measure_alone(of_family, family, options)
        print(f"\n{family}: ms (10th-90th percentile), a step of a scan\n{family_table(of_family)}", flush=True)
        records += of_family
        results = {"quick": options.quick, "matrix_product_flops": rates, "scan_steps": STEPS, "records": records}
        # After each family: a run that is killed keeps what it has, and takes the place of no whole one.
        timing.save(NAME, results, partial=partial or family != options.family[-1])
    print(f"\nhow many times as long as ours, geometric means\n{summary_table(records)}")
    print(f"\nvalue and derivatives, s to compile, means\n{compile_table(records)}")

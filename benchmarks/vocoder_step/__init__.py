"""A vocoder's two training steps, generator and discriminator: ours, Flax, Haiku, Equinox and PyTorch.

Every library builds the network from the same records (`networks`), starts from the same weights and takes the same
two steps, and must then have our losses and our weights; only after that it is timed. "Both" is the sum of the two
medians: the steps are timed apart, each with all contestants in turns.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.vocoder_step import libraries
from benchmarks.vocoder_step.networks import Task, Weights, initial_weights, melgan, multiply_adds, v1_generator
from benchmarks.vocoder_step.picture import draw

NAME = "vocoder_step"
STEPS = 20
"""That are waited for at once, where a library can take many so."""

NETWORKS: dict[str, Callable[[], list[Task]]] = {
    "MelGAN-size": partial(melgan, batch=8, frames=32),
    "HiFi-GAN V1": partial(v1_generator, batch=16, frames=32),
}
RUN_BY = {"haiku": ("MelGAN-size",), "equinox": ("MelGAN-size",)}
"""The networks that a library is timed on, if not all: V1's generator takes it a minute to compile."""
# dtype -> how far apart, relatively, the losses may be; on a GPU, float32 products are TF32 in all libraries.
LOSS_TOLERANCE = {"float32": 1e-3, "TF32": 5e-3, "bfloat16": 3e-2}


def compare(task: Task, contestants: dict[str, libraries.Contestant], dtype: str = "float32") -> None:
    """Takes two steps with every contestant; all must agree with the first one.

    Adam's first steps are nearly the gradient's sign, and where a gradient is nearly 0, rounding decides it. So of
    each tensor's weights one in a hundred, and one more, may be off by over a tenth of the tensor's largest change. In
    bfloat16 and TF32 rounding decides so many that the losses alone are compared; that of the second step depends on
    the whole gradient of the first.

    Raises:
      AssertionError: who differs, in what and by how much.
    """
    start = initial_weights(task.parts)
    precision = "TF32" if dtype == "float32" and jax.default_backend() == "gpu" else dtype
    reference: tuple[list[float], Weights] | None = None
    for name, contestant in contestants.items():
        losses, weights = [float(contestant.run()) for _ in range(2)], contestant.weights()
        reference = reference or (losses, weights)
        if not np.allclose(losses, reference[0], rtol=LOSS_TOLERANCE[precision], atol=0):
            raise AssertionError(f"{task.name}: the losses of {name} are {losses}, of the first {reference[0]}")
        if precision != "float32":
            continue
        for layer, leaf in ((layer, leaf) for layer, leaves in start.items() for leaf in leaves):
            wanted, got, before = reference[1][layer][leaf], weights[layer][leaf], start[layer][leaf]
            off = np.count_nonzero(~(np.abs(got - wanted) <= 0.1 * np.abs(wanted - before).max()))
            if off > wanted.size // 100 + (wanted.size > 1):
                raise AssertionError(
                    f"{task.name}: of {layer}'s {leaf} {name} has {off} of {wanted.size} weights wrong"
                )


def measure(tasks: list[Task], libraries_named: list[str], dtype: str, quick: bool) -> list[dict[str, Any]]:
    """Compares and times every task's contestants; one record a task."""
    records = []
    for task in tasks:
        contestants, missing = libraries.contestants(task, libraries_named, dtype)
        compare(task, contestants, dtype)
        runs = {name: (contestant.run, 1) for name, contestant in contestants.items()}
        for name, contestant in contestants.items():
            if contestant.many is not None:
                runs[f"{name}, {STEPS} at once"] = partial(contestant.many, STEPS), STEPS
        # On a GPU a step takes milliseconds, and a second has hundreds of them.
        seconds = 1.0 if quick or jax.default_backend() == "gpu" else 8.0
        budget = {"seconds": seconds, "minimum": 3 if quick else 10}
        times = timing.interleaved({name: run for name, (run, _) in runs.items()}, warmup=1, own_pace=True, **budget)
        records.append(
            {
                "network": task.network,
                "step": task.name,
                "dtype": dtype,
                "parameters": task.parameters,
                "flops": 6 * multiply_adds(task.parts, task.x.shape[1]) * len(task.x),
                "seconds": {name: timing.per(runs[name][1], t)._asdict() for name, t in times.items()},
                "missing": missing,
            }
        )
    return records


def measure_alone(records: list[dict[str, Any]], names: list[str], quick: bool) -> None:
    """Times every library again in a process of its own, as its user has it, and adds that to the records."""
    for name in names:
        if not any(name in record["seconds"] for record in records):
            continue
        first = records[0]
        command = [sys.executable, "-m", "benchmarks", "vocoder-step", "--print", "--library", name]
        command += ["--network", first["network"], "--dtype", first["dtype"], *["--quick"] * quick]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for record, of_one in zip(records, json.loads(output.splitlines()[-1]), strict=True):
            record.setdefault("alone", {}).update(of_one["seconds"])


def report(records: list[dict[str, Any]], matrix_product: float) -> str:
    """A Markdown table of one network in one dtype: the steps, their sum, and the ratio to ours."""
    lines = [f"{records[0]['network']}, {records[0]['dtype']}: ms a step (10th-90th percentile), ratio to ours"]
    lines.append(_table(records, "seconds", matrix_product))
    if "alone" in records[0]:
        lines += ["", "each library in a process of its own:", _table(records, "alone", matrix_product)]
    ours, theirs = (_best(records, name) for name in ("ours", "torch"))
    if ours and theirs:
        lines.append(
            f"PyTorch's best, {theirs[1]}: {timing.figures(1e3 * theirs[0])} ms for "
            f"{timing.figures(1e3 * ours[0])} of {ours[1]}, {theirs[0] / ours[0]:.2f}x"
        )
    lines += [f"not run: {reason}" for reason in dict.fromkeys(reason for r in records for reason in r["missing"])]
    return "\n".join(lines)


def _best(records: list[dict[str, Any]], library: str) -> tuple[float, str] | None:
    """The least sum of a library's medians among its variants, in turns or alone, and whose it is."""
    sums = [
        (sum(r[where][name]["median"] for r in records), name + ", alone" * (where == "alone"))
        for where in ("seconds", "alone")
        for name in records[0].get(where, {})
        if name.startswith(library) and all(name in r.get(where, {}) for r in records)
    ]
    return min(sums, default=None)


def _table(records: list[dict[str, Any]], where: str, matrix_product: float) -> str:
    steps = [r["step"] for r in records]
    columns = [{n: timing.Timing(**t) for n, t in r[where].items()} for r in records]
    names = list(dict.fromkeys(name for column in columns for name in column))
    whole = {n: sum(c[n].median for c in columns) for n in names if all(n in c for c in columns)}
    rows = []
    for name in names:
        cells = [
            f"{timing.milliseconds(c.get(name))}, {c[name].median / c[names[0]].median:.2f}x" if name in c else "-"
            for c in columns
        ]
        total = [f"{timing.figures(1e3 * whole[name])}, {whole[name] / whole[names[0]]:.2f}x" if name in whole else "-"]
        rows.append([name, *cells, *(total if len(columns) > 1 else [])])
    ideal = [r["flops"] / matrix_product for r in records]
    cells = [timing.figures(1e3 * seconds) for seconds in ([*ideal, sum(ideal)] if len(ideal) > 1 else ideal)]
    rows.append([f"arithmetic at {matrix_product / 1e9:.0f} GFLOP/s", *cells])
    header = [f"{r['step']} ({r['parameters'] / 1e6:.2f} M)" for r in records] + ["both"] * (len(steps) > 1)
    return timing.table(["", *header], rows)


def main(argv: list[str]) -> None:
    """Prints the tables, saves the times and draws them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vocoder-step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions; saved apart from a whole run")
    parser.add_argument("--picture", action="store_true", help="only draw the saved times again")
    parser.add_argument("--alone", action="store_true", help="time each library in a process of its own too")
    parser.add_argument("--library", nargs="+", choices=libraries.LIBRARIES, help="these libraries alone")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, help="default: MelGAN-size, on a GPU both")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="default: float32, on a GPU both")
    parser.add_argument("--print", action="store_true", help="print the records as JSON, and save and draw nothing")
    options = parser.parse_args(argv)
    on_gpu = jax.default_backend() == "gpu"
    dtypes = options.dtype or timing.dtypes()
    chosen = options.network or list(NETWORKS)[: 2 if on_gpu else 1]
    if options.print:
        names = options.library or list(libraries.LIBRARIES)
        records = [r for d in dtypes for n in chosen for r in measure(NETWORKS[n](), names, d, options.quick)]
        print(json.dumps(records))
        return
    partial_run = options.quick or bool(options.library or options.network or options.dtype)
    path = timing.path(NAME, partial=partial_run)
    if not options.picture:
        results: dict[str, Any] = {"quick": options.quick, "records": []}
        results["matrix_product_flops"] = {dtype: timing.matrix_product_flops(dtype) for dtype in dtypes}
        for dtype in dtypes:
            for network in chosen:
                names = options.library or [n for n in libraries.LIBRARIES if network in RUN_BY.get(n, (network,))]
                records = measure(NETWORKS[network](), names, dtype, options.quick)
                results["records"] += records
                # A run that is killed has said what it has, and takes the place of no whole one.
                last = dtype == dtypes[-1] and network == chosen[-1]
                for alone in (False, True)[: 1 + options.alone]:
                    if alone:
                        measure_alone(records, names, options.quick)
                    print(report(records, results["matrix_product_flops"][dtype]) + "\n", flush=True)
                    timing.save(NAME, results, partial=partial_run or not (last and alone == options.alone))
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"written to {path.name} and {path.with_suffix('.png').name}")

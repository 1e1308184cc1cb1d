"""A vocoder's two training steps, generator and discriminator: ours, Flax, Haiku, Equinox and PyTorch.

Every library builds the network from the same records (`networks`), starts from the same weights and takes the same
two steps, and must then have our losses and our weights; only after that it is timed. "Both" is the sum of the two
medians: the steps are timed apart, each with all contestants in turns.
"""

import argparse
import json
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.vocoder_step import libraries
from benchmarks.vocoder_step.networks import Task, Weights, initial_weights, melgan, multiply_adds, v1_generator
from benchmarks.vocoder_step.picture import draw

NAME = "vocoder_step"
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
        runs = {name: contestant.run for name, contestant in contestants.items()}
        # On a GPU a step takes milliseconds, and a second has hundreds of them.
        seconds = 1.0 if quick or jax.default_backend() == "gpu" else 8.0
        budget = {"seconds": seconds, "minimum": 3 if quick else 10}
        times = timing.interleaved(runs, warmup=1, **budget)
        records.append(
            {
                "network": task.network,
                "step": task.name,
                "dtype": dtype,
                "parameters": task.parameters,
                "flops": 6 * multiply_adds(task.parts, task.x.shape[1]) * len(task.x),
                "seconds": {name: t._asdict() for name, t in times.items()},
                "missing": missing,
            }
        )
    return records


def report(records: list[dict[str, Any]], matrix_product: float) -> str:
    """A Markdown table of one network in one dtype: the steps, their sum, and the ratio to ours."""
    steps = [r["step"] for r in records]
    columns = [{n: timing.Timing(**t) for n, t in r["seconds"].items()} for r in records]
    names = list(dict.fromkeys(name for column in columns for name in column))
    whole = {n: sum(c[n].median for c in columns) for n in names if all(n in c for c in columns)}
    rows = []
    for name in names:
        cells = [
            f"{timing.milliseconds(c.get(name))}, {c[name].median / c['ours'].median:.2f}x" if name in c else "-"
            for c in columns
        ]
        total = [f"{timing.figures(1e3 * whole[name])}, {whole[name] / whole['ours']:.2f}x" if name in whole else "-"]
        rows.append([name, *cells, *(total if len(columns) > 1 else [])])
    ideal = [r["flops"] / matrix_product for r in records]
    cells = [timing.figures(1e3 * seconds) for seconds in ([*ideal, sum(ideal)] if len(ideal) > 1 else ideal)]
    rows.append([f"arithmetic at {matrix_product / 1e9:.0f} GFLOP/s", *cells])
    header = [f"{r['step']} ({r['parameters'] / 1e6:.2f} M)" for r in records] + ["both"] * (len(steps) > 1)
    reasons = dict.fromkeys(reason for r in records for reason in r["missing"])
    lines = [
        f"{records[0]['network']}, {records[0]['dtype']}: ms a step (10th-90th percentile), ratio to ours",
        timing.table(["", *header], rows),
        *(f"not run: {reason}" for reason in reasons),
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prints the tables, saves the times and draws them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vocoder-step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions; saved apart from a whole run")
    parser.add_argument("--picture", action="store_true", help="only draw the saved times again")
    options = parser.parse_args(argv)
    path = timing.path(NAME, partial=options.quick)
    if not options.picture:
        dtypes = timing.dtypes()
        results: dict[str, Any] = {"quick": options.quick, "records": []}
        results["matrix_product_flops"] = {dtype: timing.matrix_product_flops(dtype) for dtype in dtypes}
        for dtype in dtypes:
            rate = results["matrix_product_flops"][dtype]
            networks = [(melgan(batch=8, frames=32), list(libraries.LIBRARIES))]
            if jax.default_backend() == "gpu":
                networks.append((v1_generator(batch=16, frames=32), ["ours", "flax", "torch", "torch.compile"]))
            for tasks, names in networks:
                records = measure(tasks, names, dtype, options.quick)
                results["records"] += records
                print(report(records, rate) + "\n", flush=True)
                # A run that is killed keeps what it has, and takes the place of no whole one.
                last = dtype == dtypes[-1] and tasks is networks[-1][0]
                timing.save(NAME, results, partial=options.quick or not last)
    draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"written to {path.name} and {path.with_suffix('.png').name}")

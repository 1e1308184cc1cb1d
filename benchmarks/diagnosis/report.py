"""Runs the cases and prints the confusion table."""

import argparse
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks import timing
from benchmarks.diagnosis import cost, outside
from benchmarks.diagnosis.cases import CASES, Case, Setup, remedied, setup
from jaxnet import diagnostics
from jaxnet.diagnostics import thresholds

SEEDS = 5
STEPS = 600


def diagnosed(it: Setup, seed: int, steps: int = STEPS) -> diagnostics.Diagnosis:
    """Diagnoses a setup."""
    return diagnostics.diagnose(
        it.net, it.loss, it.optimizer, it.data, validation=it.validation, key=seed, steps=steps,
        regularizer=it.regularizer, progress=False,
    )  # fmt: skip


def trains(found: diagnostics.Diagnosis) -> bool:
    """Whether a run has learned what holds for other data: half the best constant prediction's loss, or less."""
    return found.history[-1]["validation_loss"] <= thresholds.TRAINED * found.baseline


def run(case: Case, size: int, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """One case: what came first, and what its first remedy did."""
    plan = case.plans[size]
    found = diagnosed(setup(plan, seed), seed, steps)
    first = found.verdicts[0]
    record: dict[str, Any] = {
        "case": case.name, "wanted": case.verdict, "size": size, "seed": seed, "first": first.name,
        "all": [[verdict.name, verdict.certainty] for verdict in found.verdicts],
        "validation": found.history[-1]["validation_loss"] / found.baseline,
        "evidence": first.evidence,
        "gradient_ratio": found.reports[0].gradient_ratio,
    }  # fmt: skip
    if first.remedies:
        after = diagnosed(setup(remedied(plan, first.remedies[0]), seed), seed, steps)
        record |= {
            "remedy": first.remedies[0].action,
            "remedied": trains(after),
            "validation_after": after.history[-1]["validation_loss"] / after.baseline,
            "first_after": after.verdicts[0].name,
        }
    return record


def run_seeds(task: tuple[int, int, int]) -> list[dict[str, Any]]:
    """One case, by its index, in one size, with so many seeds, which share their compiled programs."""
    case, size, seeds = task
    return [run(CASES[case], size, seed) for seed in range(seeds)]


def confusion(records: list[dict[str, Any]]) -> str:
    """A row a case: which verdicts came first, and how often the first remedy made it train."""
    rows = []
    for case in CASES:
        of_case = [record for record in records if record["case"] == case.name]
        if not of_case:
            continue
        counts = Counter(record["first"] for record in of_case)
        right = counts.pop(case.verdict, 0)
        others = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.most_common())
        before = sorted(record["validation"] for record in of_case)[len(of_case) // 2]
        row = [case.name, case.verdict.replace("_", " "), f"{right}/{len(of_case)}", others or "-", f"{before:.2g}"]
        treated = [record for record in of_case if "remedied" in record]
        if case.verdict == "healthy":
            rows.append([*row, "-", "-", "-"])
            continue
        after = sorted(record["validation_after"] for record in treated)[len(treated) // 2] if treated else float("nan")
        actions = Counter(record["remedy"] for record in treated).most_common()
        rows.append([
            *row, ", ".join(name.replace("_", " ") for name, _ in actions),
            f"{sum(record['remedied'] for record in treated)}/{len(of_case)}", f"{after:.2g}",
        ])  # fmt: skip
    head = ["planted", "verdict wanted", "came first", "instead", "loss", "first remedy", "then trains", "loss then"]
    return timing.table(head, rows)


def main(argv: list[str]) -> None:
    """Prints the confusion table and saves it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks diagnosis", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed and one size")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once (default: one a core)")
    parser.add_argument("--cost", action="store_true", help="only what a report costs")
    parser.add_argument("--programs", action="store_true", help="faults that others published, on real data")
    parser.add_argument("--which", default="all", choices=["all", "tuned", "drawn"], help="of the programs")
    parser.add_argument("--seeds", default="0,1,2", help="of the programs")
    options = parser.parse_args(argv)
    if options.programs:
        outside.main(options.only, [int(seed) for seed in options.seeds.split(",")], options.which)
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share a GPU, where there is one
    costs = cost.measure(0.2 if options.quick else 2.0)
    print(cost.table(costs))
    if options.cost:
        return
    seeds, sizes = (1, 1) if options.quick else (SEEDS, 2)
    chosen = [i for i, case in enumerate(CASES) if options.only in case.name]
    tasks = [(i, size, seeds) for i in chosen for size in range(sizes)]
    records = []
    # A process a task: what one has compiled no other can use.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for found in pool.map(run_seeds, tasks):
            records += found
            firsts = Counter(record["first"] for record in found)
            print(f"{found[0]['case']}, size {found[0]['size']}: {dict(firsts)}", flush=True)
    print()
    print(confusion(records))
    print("\nLosses are of validation, over the best constant prediction's; medians over seeds and sizes.")
    partial = bool(options.quick or options.only)
    print(f"written to {timing.save('diagnosis', {'cost': costs, 'records': records}, partial=partial).name}")

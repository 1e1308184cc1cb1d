"""Diagnoses the programs of `programs`, carries out the first remedy, and counts."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.diagnosis.programs import HELD_OUT, PROGRAMS, Program
from benchmarks.diagnosis.sound import Setup
from jaxnet import diagnostics
from jaxnet.diagnostics.changes import changed
from jaxnet.diagnostics.score import score_of, targets
from jaxnet.diagnostics.trial import LOOKS, Task
from jaxnet.layers.layer import as_layer

SEEDS = 3
HELPS = 0.1
"""By how much accuracy or R2 of the twin must be above the faulty program's, for the fault to count as one."""

BY_HAND = {
    "restore_labels", "pair_again", "split_again", "let_gradient_through", "differentiable_loss", "repair_columns",
    "drop_samples",
}  # fmt: skip
"""Remedies that only a person can carry out; the twin is the program with them carried out."""

FILE = timing.path("diagnosis_programs")


def diagnosed(it: Setup, seed: int) -> diagnostics.Diagnosis:
    """Diagnoses a program."""
    return diagnostics.diagnose(
        it.net, it.loss, it.optimizer, it.train, validation=it.validation, key=seed, steps=it.steps,
        batch_size=it.batch, regularizer=it.regularizer, progress=False,
    )  # fmt: skip


def task(it: Setup, seed: int) -> Task:
    """What is trained."""
    size = min(it.batch, len(it.train[1]))
    return Task(
        as_layer(it.net), it.loss, it.optimizer, it.regularizer, it.train, it.validation, size, jax.random.key(seed),
        score_of(targets(it.train[1])),
    )  # fmt: skip


def score(it: Task, last: Any) -> float:
    """Accuracy or R2 of validation; of whole numbers that stand for classes, as nearly as they are met."""
    x, target = it.validation
    params, state = last
    predicted = it.net.apply(params, state, jnp.asarray(x), train=False)[0]
    kind = targets(it.train[1])
    if kind.kind == "numbers" and len(kind.values) > 2:
        return float(np.mean(np.round(np.asarray(predicted)) == target))
    value = float(it.score(predicted, jnp.asarray(target))) if it.score else float("nan")
    return value if np.isfinite(value) else 0.0


def trained(it: Task, steps: int) -> float:
    """The score after a run."""
    steps = max(steps, LOOKS)
    return score(it, it.outcome(steps, LOOKS, 1.0).last)


def repaired(program: Program, it: Setup, remedy: diagnostics.Remedy, seed: int, twin: float) -> float | None:
    """The score with a remedy carried out; None if it cannot be."""
    if remedy.action in BY_HAND:
        return twin
    steps = it.steps
    other = task(it, seed)
    if remedy.action == "train_longer":
        steps = min(remedy.value or 4 * steps, 20 * steps)
    elif remedy.action == "smaller_batch":
        steps *= it.batch // remedy.value
    if remedy.action != "train_longer":
        other = changed(other, remedy)
    return None if other is None else trained(other, steps)


@functools.cache
def twin_of(fixed: Callable[[], Setup], seed: int) -> tuple[diagnostics.Diagnosis, float]:
    """What a twin is called, and its score; several programs share one."""
    twin = fixed()
    found = diagnosed(twin, seed)
    return found, score(task(twin, seed), found.last) if found.last else 0.0


def run(program: Program, seed: int) -> dict[str, Any]:
    """One program and its twin."""
    it = program.faulty()
    found = diagnosed(it, seed)
    before = score(task(it, seed), found.last) if found.last else 0.0
    healthy, after = twin_of(program.fixed, seed)
    first = found.verdicts[0]
    remedied = repaired(program, it, first.remedies[0], seed, after) if first.remedies else None
    return {
        "program": program.name, "kind": program.kind, "held_out": program.name in HELD_OUT, "seed": seed,
        "wanted": list(program.wanted), "score": before, "twin": after, "counts": after - before >= HELPS,
        "verdicts": [[v.name, round(v.certainty, 3)] for v in found.verdicts],
        "remedy": first.remedies[0].action if first.remedies else None, "remedied": remedied,
        "of_twin": [[v.name, round(v.certainty, 3)] for v in healthy.verdicts], "cost": round(found.cost, 2),
        "text": str(found).split("\n\nbefore the first step")[0], "text_of_twin": str(healthy).split("\n\nbefore")[0],
    }  # fmt: skip


def saved() -> list[dict[str, Any]]:
    """What was measured so far."""
    return json.loads(FILE.read_text())["results"] if FILE.exists() else []


def measure(only: str, seeds: list[int], which: str) -> Iterator[dict[str, Any]]:
    """Runs the programs, saving after each."""
    for program in PROGRAMS:
        held_out = program.name in HELD_OUT
        chosen = any(word in f"{program.kind}: {program.name}" for word in only.split("|"))
        if not chosen or which == ("drawn" if not held_out else "tuned"):
            continue
        for seed in seeds:
            record = run(program, seed)
            others = [r for r in saved() if (r["program"], r["seed"]) != (record["program"], seed)]
            timing.save("diagnosis_programs", [*others, record])
            yield record


def healthy(record: dict[str, Any]) -> bool:
    """Whether the twin was called so."""
    return record["of_twin"][0][0] == "healthy"


def table(records: list[dict[str, Any]]) -> str:
    """A row a kind."""
    kinds = [*dict.fromkeys(program.kind for program in PROGRAMS)]
    groups = [(kind, [r for r in records if r["kind"] == kind]) for kind in kinds]
    groups += [("all", records)]
    groups += [("of these held out", [r for r in records if r["held_out"]])]
    rows = []
    for name, of_kind in groups:
        counted = [r for r in of_kind if r["counts"]]
        if of_kind:
            rows.append([name, *counts(counted), f"{sum(not healthy(r) for r in of_kind)}/{len(of_kind)}"])
    head = ["kind of fault", "detected", "named first", "named anywhere", "first remedy repairs", "twins not healthy"]
    return timing.table(head, rows)


def said(records: list[dict[str, Any]]) -> str:
    """What was run, with which seeds, how much of it held out; and the table."""
    programs, held_out = {r["program"] for r in records}, {r["program"] for r in records if r["held_out"]}
    seeds = sorted(Counter(r["seed"] for r in records).items())
    run = "All" if len(programs) == len(PROGRAMS) else f"{len(programs)} of"
    return (
        f"{run} {len(PROGRAMS)} programs were run, {len(held_out)} of the {len(HELD_OUT)} held out among them: "
        f"{', '.join(f'{count} with seed {seed}' for seed, count in seeds)}.\n"
        f"In {sum(r['counts'] for r in records)} of these {len(records)} runs the fault does harm, and those are "
        f"counted; in the last column, all.\n\n{table(records)}\n"
    )


def counts(counted: list[dict[str, Any]]) -> list[str]:
    """The counts over runs in which the fault does harm."""
    found = [
        sum(r["verdicts"][0][0] != "healthy" for r in counted),
        sum(r["verdicts"][0][0] in r["wanted"] for r in counted),
        sum(any(name in r["wanted"] for name, _ in r["verdicts"]) for r in counted),
        sum(
            r["remedied"] is not None and r["remedied"] - r["score"] >= (r["twin"] - r["score"]) / 2
            for r in counted
        ),
    ]  # fmt: skip
    return [f"{count}/{len(counted)}" for count in found]


def main(only: str, seeds: list[int], which: str) -> None:
    """Prints a line a run, and the table of all that were measured."""
    for record in measure(only, seeds, which):
        first = record["verdicts"][0][0]
        mark = "ok" if first in record["wanted"] else "--"
        print(
            f"{mark} {'h' if record['held_out'] else ' '} {record['kind']}: {record['program']} [{record['seed']}]: "
            f"{', '.join(name for name, _ in record['verdicts'])} | {record['score']:.2f}, twin {record['twin']:.2f} "
            f"{record['of_twin'][0][0]}, {record['remedy']} {record['remedied']}, cost {record['cost']}",
            flush=True,
        )  # fmt: skip
    print(table(saved()))

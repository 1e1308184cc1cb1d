"""How a training is timed: the clock runs while it learns, and stands still while it is evaluated."""

import statistics
import time
from typing import Any

from benchmarks import timing
from benchmarks.speedrun.batches import plans
from benchmarks.speedrun.contestant import Contestant
from benchmarks.speedrun.images import Images
from benchmarks.speedrun.ours import initial
from benchmarks.speedrun.recipes import Recipe

TARGETS = (90, 92, 94)


def train(contestant: Contestant, recipe: Recipe, images: Images, seed: int) -> list[tuple[float, float]]:
    """One training; after each evaluation, the seconds of training up to there, and the accuracy in percent.

    What the next steps see is drawn while the device takes the present ones.
    """
    contestant.begin(*initial(recipe, seed))
    contestant.wait()
    curve, seconds = [], 0.0
    start = time.perf_counter()
    given = plans(recipe, len(images.train), seed)
    plan = next(given)
    while plan is not None:
        contestant.advance(plan)
        plan = next(given, None)
        contestant.wait()
        seconds += time.perf_counter() - start
        curve.append((seconds, 100 * contestant.accuracy()))
        start = time.perf_counter()
    return curve


def prepare(contestant: Contestant, recipe: Recipe, images: Images) -> None:
    """All that compiles, once: the steps up to an evaluation, and this."""
    contestant.begin(*initial(recipe, 0))
    contestant.advance(next(plans(recipe, len(images.train), 0)))
    contestant.wait()
    contestant.accuracy()


def reached(curve: list[tuple[float, float]], target: float) -> float | None:
    """The seconds to the first evaluation that is as good, if one is."""
    return next((seconds for seconds, accuracy in curve if accuracy >= target), None)


def soonest(records: list[dict[str, Any]], target: float) -> str:
    """The name of the record that reached the target from most seeds, and of those the soonest; or came closest."""

    def order(record):
        found = [s for curve in record["curves"] if (s := reached(curve, target)) is not None]
        closest = statistics.mean(max(accuracy for _, accuracy in curve) for curve in record["curves"])
        return -len(found), statistics.median(found) if found else -closest

    return min(records, key=order)["name"]


def row(record: dict[str, Any]) -> list[str]:
    """A training of some seeds as a line of the table."""

    def cell(target):
        found = [s for curve in record["curves"] if (s := reached(curve, target)) is not None]
        if not found:
            return "-"
        share = "" if len(found) == len(record["curves"]) else f", {len(found)} of {len(record['curves'])}"
        median, least, most = map(timing.figures, (statistics.median(found), min(found), max(found)))
        return f"{median} ({least}-{most}){share}"

    last = [curve[-1] for curve in record["curves"]]
    accuracies = [accuracy for _, accuracy in last]
    spread = f"{statistics.mean(accuracies):.2f} ({min(accuracies):.2f}-{max(accuracies):.2f})"
    whole = timing.figures(statistics.median(seconds for seconds, _ in last))
    return [record["name"], record["library"], *map(cell, TARGETS), whole, spread, timing.figures(record["prepared"])]


def report(records: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    header = [
        "recipe",
        "library",
        *(f"s to {target} %" for target in TARGETS),
        "s in all",
        "in the end, %",
        "s to prepare",
    ]
    return timing.table(header, [row(record) for record in records])

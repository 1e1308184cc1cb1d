"""What is run: recipes in libraries, from several seeds."""

import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.speedrun import ours, pytorch
from benchmarks.speedrun.ablations import ABLATIONS, without
from benchmarks.speedrun.contestant import Contestant
from benchmarks.speedrun.images import Images
from benchmarks.speedrun.measure import prepare, train
from benchmarks.speedrun.recipes import RECIPES, Recipe

Options = dict[str, Any]
LIBRARIES: dict[str, dict[str, tuple[Callable[..., Contestant], Options]]] = {
    "cpu": {
        "ours": (ours.contestant, {}),
        "torch": (pytorch.contestant, {}),
        "torch, one thread": (pytorch.contestant, {"threads": 1}),
        "torch.compile": (pytorch.contestant, {"compiled": True}),
    },
    "gpu": {
        "ours": (ours.contestant, {"dtype": "bfloat16", "raveled": True}),
        "torch, CUDA graph": (pytorch.contestant, {"dtype": "bfloat16", "on_gpu": True}),
        "torch.compile, CUDA graph": (pytorch.contestant, {"dtype": "bfloat16", "on_gpu": True, "compiled": True}),
    },
}
"""By the device: the functions that make a contestant, and their options."""


class Trial(NamedTuple):
    """One recipe in one library."""

    name: str
    recipe: Recipe
    library: str
    make: Callable[[Recipe, Images], Contestant]


def in_libraries(recipes: dict[str, Recipe], libraries: list[str], device: str) -> list[Trial]:
    """Every recipe in every library."""
    found = []
    for (name, recipe), library in itertools.product(recipes.items(), libraries):
        make, options = LIBRARIES[device][library]
        found.append(Trial(name, recipe, library, functools.partial(make, **options)))
    return found


def undone(name: str, choices: list[str], device: str) -> list[Trial]:
    """A recipe of ours with one choice after another undone, of those that it has."""
    make, options = LIBRARIES[device]["ours"]
    changed = {what: without(RECIPES[name], what, device == "gpu") for what in choices}
    return [
        Trial(f"{name}, {what}", recipe, "ours", functools.partial(make, **options | ABLATIONS[what].program))
        for what, recipe in changed.items()
        if recipe is not None
    ]


def variants(names: list[str], epochs: list[float] | None, rates: list[float] | None) -> dict[str, Recipe]:
    """The recipes of these names, with every one of these lengths and rates."""
    found = {}
    for name in names:
        recipe = RECIPES[name]
        for length, rate in itertools.product(epochs or [recipe.epochs], rates or [recipe.rate]):
            changed = f", {length:g} epochs, rate {rate:g}" if epochs or rates else ""
            found[name + changed] = recipe._replace(epochs=length, rate=rate)
    return found


def run(
    chosen: list[Trial], images: Images, seeds: int, keep: Callable[[list[dict[str, Any]]], Any] = len
) -> list[dict[str, Any]]:
    """Runs every trial from every seed, seeds outermost, in an order that changes; a record a trial.

    Trials whose recipes differ in their length and rates alone share one contestant. After each seed, what there is
    is given to ``keep``.
    """
    made: dict[Any, tuple[Contestant, float]] = {}
    records: list[tuple[Trial, Contestant, dict[str, Any]]] = []
    for trial in chosen:
        program = repr(trial.make), trial.recipe._replace(rate=0.0, epochs=0, rise=None)
        if program not in made:
            start = time.perf_counter()
            try:
                contestant = trial.make(trial.recipe, images)
                prepare(contestant, trial.recipe, images)
            except Exception as error:  # torch.compile needs a C++ compiler, and fails when it first runs
                if trial.library == "ours":
                    raise
                print(f"not run: {trial.library}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            made[program] = contestant, time.perf_counter() - start
            print(f"  {trial.name}, {trial.library}: prepared in {made[program][1]:.1f} s", flush=True)
        contestant, seconds = made[program]
        record = {"name": trial.name, "library": trial.library, "prepared": seconds, "curves": []}
        records.append((trial, contestant, record))
    shuffle = random.Random(0).shuffle
    for seed in range(seeds):
        order = list(records)
        shuffle(order)
        for trial, contestant, record in order:
            curve = train(contestant, trial.recipe, images, seed)
            record["curves"].append(curve)
            accuracies = " ".join(f"{accuracy:.2f}" for _, accuracy in curve)
            print(f"  seed {seed}, {trial.name}, {trial.library}: {accuracies} in {curve[-1][0]:.3f} s", flush=True)
        keep([record for *_, record in records])
    return [record for *_, record in records]

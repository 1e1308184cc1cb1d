"""Fashion-MNIST in seconds: from the start of training to 90, 92 and 94 % of the test images, ours and PyTorch's.

Both train the same network from the same weights on the same batches. Times are medians over seeds, of those that
reached the target, and count what happens from the first step on: the images lie on the device as bytes, everything is
compiled (that is the time to prepare), and the clock stands still during evaluation, which both do equally often.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path

import jax

from benchmarks import timing
from benchmarks.speedrun import images as data
from benchmarks.speedrun.ablations import ABLATIONS
from benchmarks.speedrun.measure import report, soonest
from benchmarks.speedrun.picture import draw
from benchmarks.speedrun.recipes import RECIPES
from benchmarks.speedrun.trials import LIBRARIES, in_libraries, run, undone, variants

NAME = "speedrun"
DEFAULT = {"cpu": ["90"], "gpu": ["94"]}
USUAL = ("ours", "torch", "torch, CUDA graph", "torch.compile, CUDA graph")
"""The libraries that run unless others are asked for; on a CPU `torch.compile` takes a minute to compile."""
SEEDS = {"cpu": 5, "gpu": 20}


def main(argv: list[str]) -> None:
    """Prints the tables and saves the curves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks speedrun",
        description=f"{__doc__}\n{data.HOW}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    libraries = list(dict.fromkeys(name for names in LIBRARIES.values() for name in names))
    parser.add_argument("--data", type=Path, help="a directory with the four files somewhere below")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, help="default: on a CPU 90, on a GPU 94")
    parser.add_argument("--target", nargs="+", choices=("90", "94"), help="the recipes made for these")
    parser.add_argument("--epochs", nargs="+", type=float, help="in place of the recipe's; several are all tried")
    parser.add_argument("--rate", nargs="+", type=float, help="likewise the peak of the learning rate")
    parser.add_argument("--library", nargs="+", choices=libraries, help="these alone")
    parser.add_argument("--seeds", type=int, help="how many; default: on a CPU 5, on a GPU 20")
    parser.add_argument("--best", type=float, help="try all in ours first, and keep the one soonest at this accuracy")
    parser.add_argument(
        "--ablation", nargs="*", choices=ABLATIONS, help="ours, with these choices undone, or with each"
    )
    options = parser.parse_args(argv)
    if options.device:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")  # PyTorch needs some of it too
    device = "gpu" if jax.default_backend() == "gpu" else "cpu"
    images = data.load(options.data)
    names = options.recipe or options.target or DEFAULT[device]
    seeds = options.seeds or SEEDS[device]
    ablation = options.ablation is not None
    if ablation:
        chosen = [trial for name in names for trial in undone(name, options.ablation or list(ABLATIONS), device)]
    else:
        chosen_libraries = [n for n in LIBRARIES[device] if n in (options.library or USUAL)]
        if not importlib.util.find_spec("torch"):
            print("not run: torch is not installed")
            chosen_libraries = [name for name in chosen_libraries if not name.startswith("torch")]
        recipes = variants(names, options.epochs, options.rate)
        if options.best:
            tried = run(in_libraries(recipes, ["ours"], device), images, min(seeds, 2))
            print(f"{report(tried)}\n", flush=True)
            recipes = {soonest(tried, options.best): recipes[soonest(tried, options.best)]}
        chosen = in_libraries(recipes, chosen_libraries, device)
    part = ("recipe", "target", "epochs", "rate", "library", "seeds", "best", "ablation")
    partial = any(getattr(options, name) for name in part)
    name = NAME + "_ablation" * ablation

    def keep(records):
        # A run that is cut off keeps what it has, and takes the place of no whole one.
        timing.save(name, {"seeds": len(records[0]["curves"]), "records": records}, partial=True)

    records = run(chosen, images, seeds, keep)
    print(f"\n{timing.machine_name(timing.machine())}, {seeds} seeds; median (least-most)\n{report(records)}")
    path = timing.save(name, {"seeds": seeds, "records": records}, partial=partial)
    print(f"written to {path.name}")
    if not ablation:
        draw(json.loads(path.read_text()), path.with_suffix(".png"))

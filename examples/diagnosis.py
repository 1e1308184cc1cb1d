"""Plants a pathology, lets `diagnostics.diagnose` find it, applies the first remedy, and draws before and after.

python examples/diagnosis.py                 # twenty sigmoid layers: the gradient vanishes
python examples/diagnosis.py --plant rate    # a learning rate a hundred times too large
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet import activations, diagnostics, initializers, layers, losses, optimizers
from jaxnet.diagnostics import pictures


def network(activation: Any, depth: int) -> layers.Layer:
    """``depth`` dense layers of 32 units, and four classes."""
    kernel = initializers.he_normal() if activation is activations.relu else initializers.glorot_normal()
    hidden = layers.chain(layers.dense(32, kernel_init=kernel), activation)
    return layers.chain(hidden, layers.repeat(hidden, depth - 1), layers.dense(4))


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1,024 points in 8 dimensions around 12 centres, three of each of the 4 classes."""
    random = np.random.default_rng(seed)
    cluster = random.integers(0, 12, 1024)
    x = 1.5 * random.standard_normal((12, 8))[cluster] + 0.5 * random.standard_normal((1024, 8))
    return (x / x.std()).astype(np.float32), (cluster % 4).astype(np.int32)


def plant(name: str, remedy: diagnostics.Remedy | None = None) -> tuple[layers.Layer, Any]:
    """The network and the optimizer of a pathology, or of what its remedy makes of it."""
    action = None if remedy is None else remedy.action
    if name == "sigmoid":
        rectified = action == "use_rectifiers"
        return network(activations.relu if rectified else activations.sigmoid, 20), optimizers.adam(1e-3)
    rate = 0.5 * (remedy.value if remedy is not None and action == "scale_rate" else 1)
    return network(activations.relu, 3), optimizers.adam(rate)


def main(argv: list[str] | None = None) -> tuple[diagnostics.Diagnosis, diagnostics.Diagnosis]:
    """Runs the example and returns the diagnosis before and after the remedy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plant", choices=("sigmoid", "rate"), default="sigmoid", help="which pathology")
    parser.add_argument("--steps", type=int, default=600, help="of each run (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the parameters (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and pages (default: out)")
    args = parser.parse_args(argv)

    x, labels = clusters(args.seed)
    found = []
    remedy = None
    for when in ("before", "after"):
        net, optimizer = plant(args.plant, remedy)
        diagnosis = diagnostics.diagnose(
            net, losses.softmax_cross_entropy, optimizer, (x, labels), key=args.seed, steps=args.steps
        )
        first = diagnosis.verdicts[0]
        print(f"{when}: {first}\n")
        pictures.learning_curves(
            args.out / f"{args.plant}-{when}.png", diagnosis.history, baseline=diagnosis.baseline, verdict=first
        )
        diagnosis.html(args.out / f"{args.plant}-{when}.html", f"{args.plant}, {when} the remedy")
        found.append(diagnosis)
        if when == "before" and first.remedies:
            remedy = first.remedies[0]
            print(f"trying the first remedy: {remedy.sentence}\n")
    if args.plant == "sigmoid":  # a rate changes nothing before the first step
        pictures.gradient_flow(
            args.out / f"{args.plant}-gradients.png", [d.reports[0] for d in found], ["before the remedy", "after it"]
        )
    print(f"pictures and pages: {args.out}")
    return found[0], found[1]


if __name__ == "__main__":
    main()

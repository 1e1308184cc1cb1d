"""Muon's whole update on the arrays of a small transformer, the rest AdamW's: a step, and the first call.

Ours, optax.contrib's and PyTorch's; the latter's products are in bfloat16, which is slow on processors that have none,
so it is timed in float32 too. Every contestant but the one in bfloat16 takes two steps from the same start first, and
must end where ours ends.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import timing
from benchmarks.optimizers import RATE, compare, jax_update
from jaxnet import optimizers

ARGUMENTS = {"beta": 0.95, "nesterov": False}
STEPS = 5


def transformer(quick: bool) -> dict[str, np.ndarray]:
    """The arrays of a small transformer, 148 with 5.4 million numbers: most of what Muon moves is in its matrices."""
    width, blocks = (32, 2) if quick else (192, 12)
    shapes: dict[str, tuple[int, ...]] = {"tokens": (256, width), "positions": (256, width)}
    for i in range(blocks):
        for name, fan_out, fan_in in (("qkv", 3, 1), ("out", 1, 1), ("up", 4, 1), ("down", 1, 4)):
            shapes[f"{i:02d} {name} kernel"] = (fan_in * width, fan_out * width)
            shapes[f"{i:02d} {name} bias"] = (fan_out * width,)
        shapes |= {f"{i:02d} norm {name}": (width,) for name in ("1 scale", "1 offset", "2 scale", "2 offset")}
    shapes |= {"scale": (width,), "offset": (width,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def product_flops(shape: tuple[int, int]) -> int:
    """Of the products with a matrix and with its square that five steps take as they are written."""
    shorter, longer = sorted(shape)
    return STEPS * 2 * shorter**2 * (2 * longer + shorter)


def contestants(leaves: list[np.ndarray]) -> tuple[dict[str, Callable[[], Callable[[], Any]]], list[str]]:
    """What makes the functions to time, and what could not run, with the reason."""
    makes = {"ours": lambda: jax_update(optimizers.muon(RATE, **ARGUMENTS), leaves, False)}
    missing = []
    if importlib.util.find_spec("optax"):
        import optax.contrib

        makes["optax.contrib"] = lambda: jax_update(optax.contrib.muon(RATE, **ARGUMENTS), leaves, False)
    else:
        missing.append("optax: not installed")
    if importlib.util.find_spec("torch"):
        makes["torch, float32 products"] = lambda: torch_update(leaves, in_float32=True)
        makes["torch"] = lambda: torch_update(leaves, in_float32=False)
    else:
        missing.append("torch: not installed")
    return makes, missing


def torch_update(leaves: list[np.ndarray], *, in_float32: bool) -> Callable[[], Any]:
    """PyTorch's step; its kernels are ours transposed. Its cast to bfloat16 has no switch: for float32 it copies."""
    import torch

    params = [torch.from_numpy((leaf.T if leaf.ndim == 2 else leaf).copy()) for leaf in leaves]
    for p in params:
        p.grad = 0.1 * p + 0.01
    both = [
        torch.optim.Muon([p for p in params if p.ndim == 2], lr=RATE, weight_decay=0.0, nesterov=False),
        torch.optim.AdamW([p for p in params if p.ndim != 2], lr=RATE, weight_decay=0.0, fused=True),
    ]

    def run():
        if in_float32:
            with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
                both[0].step()
        else:
            both[0].step()
        both[1].step()
        return [p.T if p.ndim == 2 else p for p in params]

    return run


def measure(quick: bool) -> dict[str, Any]:
    """Seconds of a step and of the first call; and what the products alone would take as fast as large square ones."""
    leaves = list(transformer(quick).values())
    matrices = [leaf for leaf in leaves if leaf.ndim == 2]
    makes, missing = contestants(leaves)
    runs, first = {}, {}
    for name, make in makes.items():
        runs[name] = make()
        began = time.perf_counter()
        jax.block_until_ready(runs[name]())
        first[name] = time.perf_counter() - began
    compare({name: run for name, run in runs.items() if name != "torch"}, steps=1)
    times = timing.interleaved(runs, seconds=0.3 if quick else 4.0, warmup=1, minimum=3, own_pace=True)
    flops = sum(product_flops(leaf.shape) for leaf in matrices)
    return {
        "arrays": len(leaves),
        "numbers": sum(leaf.size for leaf in leaves),
        "in_matrices": sum(leaf.size for leaf in matrices),
        "seconds": {name: t._asdict() for name, t in times.items()},
        "first_call": first,
        "product_flops": flops,
        "products_alone": flops / timing.matrix_product_flops(),
        "missing": missing,
    }


def main(argv: list[str]) -> None:
    """Prints the table and saves the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks muon", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller transformer")
    options = parser.parse_args(argv)
    found = measure(options.quick)
    print(f"Muon: {found['arrays']} arrays, {found['numbers']:,} numbers, {found['in_matrices']:,} in matrices")
    rows = [
        [name, timing.milliseconds(timing.Timing(**t)), f"{found['first_call'][name]:.2f}"]
        for name, t in found["seconds"].items()
    ]
    print(timing.table(["", "a step: ms (10th-90th percentile)", "first call: s"], rows))
    alone = timing.figures(1e3 * found["products_alone"])
    print(f"its {found['product_flops'] / 1e9:.1f} GFLOP of products as fast as large square ones: {alone} ms")
    print(*found["missing"], sep="\n", end="")
    print(f"written to {timing.save('muon', found, partial=options.quick).name}")

"""The largest difference from optax after 1,000 compiled steps, in units in the last place."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jaxnet import optimizers

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adam", {}),
    ("adam", {"eps": 0.0, "eps_root": 1e-8}),
    ("adam", {"nesterov": True}),
    ("adam", {"mu_dtype": jnp.bfloat16}),
    ("adamw", {"weight_decay": 0.1}),
    ("adagrad", {}),
    ("rmsprop", {}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("rmsprop", {"eps_in_sqrt": False, "bias_correction": True}),
    ("adabelief", {}),
    ("adabelief", {"nesterov": True}),
    ("clip_by_global_norm", {}),
]
DTYPES = ("float32", "float64", "complex64")


def ulps(a: Any, b: Any) -> float:
    """The largest distance between two arrays, counted in representable numbers between them."""
    a, b = np.asarray(a), np.asarray(b)
    if np.iscomplexobj(a):
        return max(ulps(a.real, b.real), ulps(a.imag, b.imag))
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    bits = {2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]

    def order(x):  # maps floats to integers so that neighbours differ by one, across 0 too
        i = np.ascontiguousarray(x).view(bits).astype(object)
        return np.where(i < 0, np.iinfo(bits).min - i, i)

    return float(max(abs(order(a) - order(b)).reshape(-1), default=0))


def train(library: Any, name: str, arguments: dict[str, Any], params: Any, steps: int) -> Any:
    """The parameters after ``steps`` compiled steps on a sum of quartic and quadratic terms."""
    if name == "clip_by_global_norm":
        optimizer = library.chain(library.clip_by_global_norm(0.5), library.sgd(0.01))
    else:
        optimizer = getattr(library, name)(0.01, **arguments)

    def loss(params):
        return sum(jnp.sum(x**4 - 0.3 * (i + 1) * x**2) for i, x in enumerate(map(jnp.abs, jax.tree.leaves(params))))

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        updates, state = optimizer.update(grads, state, params)
        return (optimizers.apply_updates(params, updates), state), None

    run = jax.jit(lambda params, state: jax.lax.scan(step, (params, state), None, length=steps)[0][0])
    return run(params, optimizer.init(params))


def tree(dtype: str) -> Any:
    """Leaves of odd shapes: a matrix, a vector, a scalar, an empty one."""

    def make(low, high, size):
        return jnp.linspace(low, high, size).astype(dtype)

    phase = jnp.asarray(1 + 0.5j, dtype) if dtype.startswith("complex") else jnp.asarray(1, dtype)
    shapes = {"matrix": make(-2, 2, 35).reshape(5, 7), "vector": make(0.1, 1, 3), "scalar": make(0.3, 1, 1)[0]}
    return {name: phase * leaf for name, leaf in shapes.items()} | {"empty": jnp.zeros((0, 3), dtype)}


def measure(steps: int) -> list[dict[str, Any]]:
    """One record per configuration: the largest difference per dtype."""
    import optax

    records = []
    for name, arguments in CONFIGURATIONS:
        record: dict[str, Any] = {"optimizer": name, "arguments": _text(arguments), "steps": steps}
        for dtype in DTYPES:
            if dtype.startswith("complex") and "mu_dtype" in arguments:
                continue  # ours refuses a real accumulator of complex numbers
            with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
                params = tree(dtype)
                ours = train(optimizers, name, arguments, params, steps)
                theirs = train(optax, name, arguments, params, steps)
            pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
            record[dtype] = max(ulps(a, b) for a, b in pairs)
        records.append(record)
    return records


def _text(arguments: dict[str, Any]) -> str:
    named = {k: getattr(v, "__name__", v) for k, v in arguments.items()}
    return ", ".join(f"{k}={v}" for k, v in named.items())


def main(argv: list[str]) -> None:
    """Prints the parity table and saves it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks parity", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 steps instead of 1,000")
    options = parser.parse_args(argv)
    try:
        records = measure(100 if options.quick else 1000)
    except ImportError:
        print("optax is not installed; nothing to compare with (pip install optax)")
        return
    rows = [
        [f"`{r['optimizer']}({r['arguments']})`", *(f"{r[d]:g}" if d in r else "-" for d in DTYPES)] for r in records
    ]
    print(timing.table(["optimizer", *DTYPES], rows))
    print(f"\nwritten to {timing.save('parity', records).name}")

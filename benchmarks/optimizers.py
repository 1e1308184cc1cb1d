"""Whole updates: ours, raveled (`ravel`) and wrapped (`flat`), against optax and PyTorch, on five parameter trees.

The update is ``(gradients, state, parameters) -> (parameters, state)``, with parameters and state donated.
Every contestant takes three steps from the same start first, and must end where ours ends.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jaxnet import optimizers

# rule -> arguments, words moved per parameter and step (each of the parameter and the moments is read and
# written, the gradient is read), PyTorch's class and arguments for the same rule
RULES: dict[str, tuple[dict[str, Any], int, str | None, dict[str, Any]]] = {
    "sgd": ({}, 3, "SGD", {}),
    "sgd momentum": ({"momentum": 0.9}, 5, "SGD", {"momentum": 0.9}),
    "adam": ({}, 7, "Adam", {}),
    "adamw": ({"weight_decay": 0.01}, 7, "AdamW", {"weight_decay": 0.01}),
    "adagrad": ({"initial_accumulator_value": 0.0, "eps": 0.0}, 5, "Adagrad", {"eps": 0.0}),
    "rmsprop": ({"eps_in_sqrt": False}, 5, "RMSprop", {"alpha": 0.9}),
    "adabelief": ({}, 7, None, {}),
    "lion": ({}, 5, None, {}),
    "adan": ({}, 11, None, {}),
    "schedule_free_sgd": ({"weight_decay": 0.01}, 5, None, {}),
    "schedule_free_adamw": ({"weight_decay": 0.01}, 7, None, {}),
}
RATE = 1e-3
# XLA compiles a step over 2,000 separate leaves in half a minute and more, so there only Adam is timed.
SLOW_TO_COMPILE = ("2,000 x 64",)


def trees(quick: bool) -> dict[str, Callable[[], list[np.ndarray]]]:
    """The parameter trees, as functions that make their leaves."""

    def of(*shapes):
        rng = np.random.default_rng(0)
        return lambda: [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    network = []  # a residual convolutional net: kernels, biases, scales, offsets
    for width in (32, 64, 128, 256):
        network += [(7, width, width), (width,), (width,), (width,)] * 4
    network += [(256, 10), (10,)]
    if quick:
        return {
            "1 x 4.2 M": of((4096, 1024)),
            "40 x (128 x 128)": of(*[(128, 128)] * 40),
            "200 x 64": of(*[(64,)] * 200),
            "6 x (32 x 32)": of(*[(32, 32)] * 6),
            "conv net, 66 leaves": of(*network),
        }
    return {
        "1 x 16.8 M": of((4096, 4096)),
        "400 x (128 x 128)": of(*[(128, 128)] * 400),
        "2,000 x 64": of(*[(64,)] * 2000),
        "6 x (32 x 32)": of(*[(32, 32)] * 6),
        "conv net, 66 leaves": of(*network),
    }


def jax_update(optimizer: Any, leaves: list[np.ndarray], raveled: bool) -> Callable[[], Any]:
    """A function that takes one donated step and returns the parameters; it keeps the training state."""
    params: Any = {f"p{i:04d}": jnp.asarray(leaf) for i, leaf in enumerate(leaves)}
    if raveled:
        params = optimizers.ravel(params)
    grads = jax.tree.map(lambda p: 0.1 * p + 0.01, params)

    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    carry = [(params, optimizer.init(params))]

    def run():
        carry[0] = step(*carry[0], grads)
        return carry[0][0]

    return run


def torch_update(name: str, arguments: dict[str, Any], leaves: list[np.ndarray], **form: bool) -> Callable[[], Any]:
    """The same for one of PyTorch's three implementations."""
    import torch

    params = [torch.from_numpy(leaf.copy()) for leaf in leaves]
    for p in params:
        p.grad = 0.1 * p + 0.01
    optimizer = getattr(torch.optim, name)(params, lr=RATE, **arguments, **form)

    def run():
        optimizer.step()
        return params

    return run


def contestants(rule: str, leaves: list[np.ndarray]) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """The functions to time for one rule and tree, and what could not run, with the reason."""
    arguments, _, torch_name, torch_arguments = RULES[rule]
    name = rule.split()[0]
    ours = getattr(optimizers, name)(RATE, **arguments)
    runs = {
        "ours": jax_update(ours, leaves, False),
        "ours raveled": jax_update(ours, leaves, True),
        "ours in flat": jax_update(optimizers.flat(ours), leaves, False),
    }
    missing = []
    if importlib.util.find_spec("optax"):
        import optax.contrib

        theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
        runs["optax"] = jax_update(theirs(RATE, **arguments), leaves, False)
    else:
        missing.append("optax: not installed")
    if torch_name is None:
        missing.append("torch: has no such rule")
    elif not importlib.util.find_spec("torch"):
        missing.append("torch: not installed")
    else:
        for form in ("plain", "foreach", "fused"):
            options = {"foreach": form == "foreach"} | ({"fused": True} if form == "fused" else {})
            try:
                run = torch_update(torch_name, torch_arguments, leaves, **options)
                run()
            except (RuntimeError, TypeError, ValueError) as error:
                missing.append(f"torch {form}: {str(error).splitlines()[0][:80]}")
            else:
                runs[f"torch {form}"] = torch_update(torch_name, torch_arguments, leaves, **options)
    return runs, missing


def compare(runs: dict[str, Callable[[], Any]], steps: int = 3) -> None:
    """A few steps each; all must end at the same parameters."""
    results = {}
    for name, run in runs.items():
        for _ in range(steps - 1):
            run()
        result = run()
        if isinstance(result, optimizers.Raveled):
            result = result.unravel()
        results[name] = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(result)])
    reference = next(iter(results.values()))
    for name, value in results.items():
        if not np.allclose(value, reference, rtol=timing.rounding(1e-4), atol=timing.rounding(1e-5)):
            raise AssertionError(f"{name} is off by {np.abs(value - reference).max():.2e}")


def copy_bandwidth(quick: bool) -> float:
    """Bytes per second of a donated elementwise pass over 64 MiB, read and written."""
    x = [jnp.ones((4 if quick else 16) * 2**20, jnp.float32)]
    step = jax.jit(lambda v: v + 1.0, donate_argnums=0)

    def run():
        x[0] = step(x[0])
        return x[0]

    return 2 * x[0].size * 4 / timing.interleaved({"copy": run}, seconds=1.0)["copy"].median


def training_steps(quick: bool) -> list[dict[str, Any]]:
    """Whole training steps, gradient included: parameters as a tree and raveled."""
    if importlib.util.find_spec("optax"):
        import optax
    else:
        optax = None
    records = []
    sizes = {"200 x 64": (200, 64)} if quick else {"200 x 64": (200, 64), "2,000 x 64": (2000, 64)}
    problems: dict[str, tuple[Any, Any]] = {}
    for label, (count, size) in sizes.items():
        start: Any = {f"p{i}": jnp.linspace(-1.0, 1.0, size) + i / count for i in range(count)}
        problems[label] = (start, lambda params: sum(jnp.sum(jnp.tanh(v) ** 2) for v in params.values()))
    x = jnp.sin(jnp.arange(32.0 * 32)).reshape(32, 32)

    def perceptron(params):
        h = x
        for i in range(6):
            h = jnp.tanh(h @ params[f"w{i}"])
        return jnp.mean((h - x) ** 2)

    problems["6 x (32 x 32), batch 32"] = (
        {f"w{i}": jnp.sin(jnp.arange(1024.0) + i).reshape(32, 32) / 6 for i in range(6)},
        perceptron,
    )
    for label, (start, loss) in problems.items():
        forms: dict[str, tuple[Any, bool]] = {"ours raveled": (optimizers.adam(RATE), True)}
        if len(start) < 1000:  # half a minute of compiling, for what optax's column shows as well
            forms["ours"] = (optimizers.adam(RATE), False)
        if optax is not None:
            forms["optax"] = (optax.adam(RATE), False)
        runs = {}
        for name, (optimizer, raveled) in forms.items():
            runs[name] = _training_step(optimizer, loss, start, raveled)
        if len(start) < 1000:
            gradient = jax.jit(jax.grad(loss))
            runs["gradient alone"] = lambda gradient=gradient, start=start: gradient(start)
        compare({name: run for name, run in runs.items() if name != "gradient alone"})
        times = timing.interleaved(runs, seconds=0.5)
        records.append({"problem": label, "seconds": {name: t._asdict() for name, t in times.items()}})
    return records


def _training_step(optimizer: Any, loss: Any, start: Any, raveled: bool) -> Callable[[], Any]:
    params = optimizers.ravel(start) if raveled else jax.tree.map(jnp.array, start)
    objective = (lambda p: loss(p.unravel())) if raveled else loss

    def update(params, state):
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    carry = [(params, optimizer.init(params))]

    def run():
        carry[0] = step(*carry[0])
        return carry[0][0]

    return run


def main(argv: list[str]) -> None:
    """Prints the tables and saves the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks optimizers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller trees, Adam and SGD only")
    parser.add_argument("--rule", nargs="+", choices=RULES, help="these rules alone, and no whole training steps")
    options = parser.parse_args(argv)
    partial = options.quick or bool(options.rule)
    bandwidth = copy_bandwidth(options.quick)
    print(f"measured copy: {bandwidth / 1e9:.1f} GB/s\n")
    columns = ["ours", "ours raveled", "ours in flat", "optax", "torch plain", "torch foreach", "torch fused"]
    records: list[dict[str, Any]] = []
    for tree_name, make in trees(options.quick).items():
        rules = ["sgd", "adam"] if options.quick else ["adam"] if tree_name in SLOW_TO_COMPILE else list(RULES)
        rules = [rule for rule in rules if rule in (options.rule or rules)]
        rows = []
        if not rules:
            continue
        for rule in rules:
            leaves = make()
            runs, missing = contestants(rule, leaves)
            compare(runs)
            times = timing.interleaved(runs, seconds=0.25, warmup=1)
            size = sum(leaf.size for leaf in leaves)
            share = {n: 4 * RULES[rule][1] * size / t.median / bandwidth for n, t in times.items()}
            records.append(
                {
                    "tree": tree_name,
                    "rule": rule,
                    "seconds": {n: t._asdict() for n, t in times.items()},
                    "share_of_copy": share,
                    "missing": missing,
                }
            )
            cells = [f"{timing.milliseconds(times[c])}, {share[c]:.0%}" if c in times else "-" for c in columns]
            ratio = f"{times['optax'].median / times['ours raveled'].median:.1f}" if "optax" in times else "-"
            rows.append([rule, *cells, ratio, "; ".join(missing)])
        note = " (Adam alone: the others compile as long)" if rules == ["adam"] else ""
        print(f"{tree_name}{note}, whole update: ms (10th-90th percentile), share of the copy's bytes per second")
        print(timing.table(["rule", *columns, "optax / ours raveled", "not run"], rows) + "\n", flush=True)
    steps = [] if options.rule else training_steps(options.quick)
    names = list(dict.fromkeys(name for record in steps for name in record["seconds"]))
    rows = [
        [
            r["problem"],
            *(timing.milliseconds(timing.Timing(**r["seconds"][n]) if n in r["seconds"] else None) for n in names),
        ]
        for r in steps
    ]
    if steps:
        print("whole training step with Adam, gradient included: ms (10th-90th percentile)")
        print(timing.table(["problem", *names], rows))
    results = {"copy_bytes_per_second": bandwidth, "updates": records, "steps": steps}
    path = timing.save("optimizers", results, partial=partial)
    print(f"\nwritten to {path.name}")

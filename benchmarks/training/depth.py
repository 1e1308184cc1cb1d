"""Many equal residual blocks: how compile time, step time and memory grow with depth, with a scan and without."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.training.libraries import arranged, flax_network, flax_variables, initial_state, network
from benchmarks.training.problems import RATE, BatchNorm, Conv, Relu, Residual, initial_weights
from jaxnet import layers, losses, optimizers, training
from jaxnet.training.state import from_params as start

BATCH, LENGTH, CHANNELS = 16, 128, 32


class Program(NamedTuple):
    """A training step to compile: a function, and what it is called with; the first argument is replaced."""

    step: Callable[..., Any]
    carry: Any
    batch: Any


def block(i: int) -> Residual:
    """A residual block of two convolutions, normalized."""
    inner = [(Conv(f"conv{i}{n}", CHANNELS, CHANNELS, 3), BatchNorm(f"norm{i}{n}", CHANNELS), Relu()) for n in "ab"]
    return Residual((*inner[0], *inner[1]))


def programs(depth: int) -> dict[str, Callable[[], Program]]:
    """Training steps of so many blocks, new ones at each call, so that nothing of them is compiled yet."""
    parts = tuple(block(i) for i in range(depth))
    weights = initial_weights(parts, 0)
    for i in range(depth):
        weights[f"norm{i}b"]["scale"] *= depth**-0.5  # so that the sum of all branches stays near the input's size
    rng = np.random.default_rng(1)
    batch = tuple(rng.normal(size=(BATCH, LENGTH, CHANNELS)).astype(np.float32) for _ in range(2))

    def of_ours(net, params):
        optimizer = optimizers.adam(RATE)
        carry = start(optimizer, params, initial_state(net, batch[0]), jax.random.key(0))
        step = training.make_step(net, losses.mse, optimizer)
        return Program(lambda carry, batch: _with_loss(*step(carry, batch)), carry, batch)

    def repeat(remat=False):
        net = layers.repeat(network(parts[:1]), depth, remat=remat)
        each = [arranged((part,), weights) for part in parts]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return of_ours(net, stacked)

    def chain():
        net = network(parts)
        return of_ours(net, arranged(parts, weights))

    def flax():
        import optax

        net, optimizer = flax_network(parts), optax.adam(RATE)
        params, stats = flax_variables(parts, weights)

        def step(carry, batch):
            params, stats, opt_state = carry
            x, target = batch

            def loss(params):
                y, changed = net.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
                return jnp.mean((y - target) ** 2), changed["batch_stats"]

            (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), stats, opt_state), value

        return Program(step, (params, stats, optimizer.init(params)), batch)

    return {"repeat": repeat, "repeat, remat": lambda: repeat(remat=True), "chain": chain, "flax": flax}


def _with_loss(carry: Any, metrics: Any) -> tuple[Any, Any]:
    return carry, metrics["loss"]


def measure(depth: int, quick: bool) -> dict[str, Any]:
    """Compiles each a few times, compares two steps' losses, and times the steps in turns."""
    made = programs(depth)
    if not (importlib.util.find_spec("flax") and importlib.util.find_spec("optax")):
        made.pop("flax", None)
    compiling, compiled, runs = {name: [] for name in made}, {}, {}
    for _ in range(1 if quick else 3):
        for name, make in made.items():
            if sum(compiling[name]) > 5:  # seconds; that is measured well enough
                continue
            program = make()
            began = time.perf_counter()
            compiled[name] = (
                jax.jit(program.step, donate_argnums=0).lower(program.carry, program.batch).compile(), program,
            )  # fmt: skip
            compiling[name].append(time.perf_counter() - began)
    reference = None
    for name, (run, program) in compiled.items():
        carry = jax.tree.map(jnp.array, program.carry)
        batch = jax.tree.map(jnp.asarray, program.batch)
        values = []
        for _ in range(2):
            carry, value = run(carry, batch)
            values.append(float(value))
        reference = reference or values
        if not np.allclose(values, reference, rtol=timing.rounding(1e-3), atol=0):
            raise AssertionError(f"{depth} blocks: the losses of {name} are {values}, of the first {reference}")
        runs[name] = _again(run, carry, batch)
    times = timing.interleaved(runs, seconds=0.3 if quick else 1.0, warmup=1, minimum=3, own_pace=True)
    return {
        "blocks": depth,
        "compile_seconds": {name: statistics.median(values) for name, values in compiling.items()},
        "step_seconds": {name: t._asdict() for name, t in times.items()},
        "temporary_bytes": {name: run.memory_analysis().temp_size_in_bytes for name, (run, _) in compiled.items()},
    }


def _again(run: Any, carry: Any, batch: Any) -> Callable[[], Any]:
    held = [carry]

    def once():
        held[0], value = run(held[0], batch)
        return value

    return once


def report(records: list[dict[str, Any]]) -> str:
    """Three Markdown tables."""
    names = list(records[0]["compile_seconds"])
    kinds = (
        ("s to compile", lambda r, n: r["compile_seconds"][n]),
        ("ms a step", lambda r, n: 1e3 * r["step_seconds"][n]["median"]),
        ("MB of temporary memory", lambda r, n: r["temporary_bytes"][n] / 1e6),
    )
    tables = []
    for title, value in kinds:
        rows = [[str(r["blocks"]), *(timing.figures(value(r, name)) for name in names)] for r in records]
        tables.append(f"Depth: {title}\n" + timing.table(["blocks", *names], rows))
    few, many = records[0], records[-1]
    growth = many["compile_seconds"]["repeat"] / few["compile_seconds"]["repeat"]
    memory = many["temporary_bytes"]["repeat, remat"] / many["temporary_bytes"]["repeat"]
    return "\n\n".join(tables) + (
        f"\n{many['blocks']} blocks in a repeat compile in {growth:.2f}x the time of {few['blocks']}; "
        f"with rematerialization they need {memory:.2f}x the memory"
    )

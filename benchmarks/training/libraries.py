"""One function a library: a problem as the training loop that the library's users write."""

import functools
import importlib.util
import queue
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.problems import (
    RATE,
    BatchNorm,
    Contestant,
    Conv,
    Dense,
    Epoch,
    Flatten,
    Mean,
    Parts,
    Pool,
    Problem,
    Relu,
    Residual,
    Weights,
    channels_first,
    forward,
    laid_out,
    named,
)
from benchmarks.training.pytorch import torch
from jaxnet import activations, layers, losses, optimizers, training


def network(parts: Parts) -> layers.Layer:
    """A network of ours."""

    def layer(part):
        if isinstance(part, Residual):
            return layers.residual(network(part.branch))
        if isinstance(part, Dense):
            return layers.dense(part.units)
        if isinstance(part, Conv):
            return layers.conv(part.filters, part.size, padding="same")
        if isinstance(part, Pool):
            return layers.avg_pool(part.size)
        simple = {BatchNorm: layers.batch_norm, Mean: layers.global_avg_pool, Flatten: layers.flatten}
        return activations.relu if isinstance(part, Relu) else simple[type(part)]()

    return layers.chain(*map(layer, parts))


def arranged(parts: Parts, weights: Weights) -> Any:
    """Weights as the params of `network`."""

    def of(part):
        if isinstance(part, Residual):
            return {"branch": arranged(part.branch, weights), "shortcut": ()}
        return weights[part.name] if isinstance(part, (Dense, Conv, BatchNorm)) else ()

    return tuple(map(of, parts))


def accuracy(logits: Any, labels: Any) -> Any:
    """The share of examples classified rightly."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def ours(problem: Problem, validate: bool) -> Contestant:
    """jaxnet: `training.fit`, in a thread of its own, held after the epochs that were asked for."""
    net = network(problem.parts)
    net = training.pretrained(net, arranged(problem.parts, problem.weights()), initial_state(net, problem.train[0][:1]))
    train_set = training.arrays(*problem.train, batch_size=problem.batch_size, seed=problem.seed)
    asked, records = queue.SimpleQueue(), queue.SimpleQueue()
    last = 0

    def hold(record, _):
        nonlocal last
        if record["epoch"] == last:
            records.put(record)
            last += asked.get()

    def run():
        nonlocal last
        last = asked.get()
        try:
            training.fit(
                net, losses.softmax_cross_entropy, optimizers.adam(RATE), train_set, epochs=10**9, callbacks=[hold],
                progress=False,
                **({"validation": problem.held_out, "metrics": {"accuracy": accuracy}} if validate else {}),
            )  # fmt: skip
        except BaseException as error:  # it belongs to who waits
            records.put(error)

    threading.Thread(target=run, daemon=True).start()

    def train(epochs):
        asked.put(epochs)
        record = records.get()
        if isinstance(record, BaseException):
            raise record
        return Epoch(record["loss"], record.get("validation_accuracy"))

    return train


def initial_state(net: layers.Layer, x: np.ndarray) -> Any:
    """The averages of batch normalization at the start, without drawing parameters for them."""

    def fill(path, leaf):
        return (np.ones if path[-1].key == "variance" else np.zeros)(leaf.shape, leaf.dtype)

    _, state = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(fill, state)


def flax(problem: Problem, validate: bool, *, gather: str = "host") -> Contestant:
    """Flax linen and optax."""
    net = flax_network(problem.parts)
    params, stats = flax_variables(problem.parts, problem.weights())

    def apply(params, stats, x, train):
        variables = {"params": params, "batch_stats": stats}
        if not train or not stats:
            return net.apply(variables, x, train), stats
        logits, changed = net.apply(variables, x, train, mutable=["batch_stats"])
        return logits, changed["batch_stats"]

    return _jax_loop(problem, validate, apply, params, stats, gather)


def flax_network(parts: Parts) -> Any:
    """A network of Flax's; called with x and whether it trains."""
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            def layer(part, x):
                if isinstance(part, Dense):
                    return nn.Dense(part.units, name=part.name)(x)
                if isinstance(part, Conv):
                    return nn.Conv(part.filters, (part.size,), name=part.name)(x)
                if isinstance(part, BatchNorm):
                    return nn.BatchNorm(not train, momentum=0.9, name=part.name)(x)
                if isinstance(part, Pool):
                    return nn.avg_pool(x, (part.size,), (part.size,))
                if isinstance(part, Relu):
                    return nn.relu(x)
                return x.mean(1) if isinstance(part, Mean) else x.reshape(len(x), -1)

            return forward(parts, x, layer)

    return Net()


def flax_variables(parts: Parts, weights: Weights) -> tuple[Any, Any]:
    """The start of `flax_network`: parameters, and the averages of batch normalization."""
    renamed = {"offset": "bias"}
    params = {n: {renamed.get(k, k): v for k, v in w.items()} for n, w in weights.items()}
    norms = [part for part in named(parts) if isinstance(part, BatchNorm)]
    stats = {p.name: {"mean": np.zeros(p.channels, "f4"), "var": np.ones(p.channels, "f4")} for p in norms}
    return params, stats


def equinox(problem: Problem, validate: bool, *, gather: str = "host") -> Contestant:
    """Equinox and optax: modules of layers, channels first, under `jax.vmap`."""
    import equinox as eqx

    weights = problem.weights()

    def make(part):
        if isinstance(part, BatchNorm):  # scale and offset are 1 and 0 at the start
            return eqx.nn.BatchNorm(part.channels, "batch", momentum=0.9, mode="batch")
        if isinstance(part, Dense):
            layer = eqx.nn.Linear(part.positions * part.channels, part.units, key=jax.random.key(0))
            kernel, bias = channels_first(part, weights[part.name]["kernel"]).T, weights[part.name]["bias"]
        else:
            layer = eqx.nn.Conv1d(part.channels, part.filters, part.size, padding="SAME", key=jax.random.key(0))
            kernel, bias = weights[part.name]["kernel"].T, weights[part.name]["bias"][:, None]
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (jnp.asarray(kernel), jnp.asarray(bias)))

    class Net(eqx.Module):
        layers: dict[str, eqx.Module]

        def __call__(self, x, state):
            def layer(part, x):
                nonlocal state
                if isinstance(part, BatchNorm):
                    x, state = self.layers[part.name](x, state)  # pyright: ignore[reportCallIssue]
                    return x
                if isinstance(part, (Dense, Conv)):
                    return self.layers[part.name](x)  # pyright: ignore[reportCallIssue]
                if isinstance(part, Pool):
                    return eqx.nn.AvgPool1d(part.size, part.size)(x)
                if isinstance(part, Relu):
                    return jax.nn.relu(x)
                return x.mean(1) if isinstance(part, Mean) else x.ravel()

            return forward(problem.parts, x, layer), state

    net, state = eqx.nn.make_with_state(lambda: Net({part.name: make(part) for part in named(problem.parts)}))()
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def apply(params, state, x, train):
        net = eqx.nn.inference_mode(eqx.combine(params, static), not train)
        return jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    return _jax_loop(problem, validate, apply, params, state, gather, channels_last=False)


def _jax_loop(
    problem: Problem,
    validate: bool,
    apply: Callable[..., Any],
    params: Any,
    state: Any,
    gather: str,
    *,
    channels_last: bool = True,
) -> Contestant:
    """A hand-written loop: one compiled step a dispatch that donates what it replaces, losses fetched once an epoch.

    Args:
      apply: ``(params, state, x, train) -> (logits, state)``.
      gather: where batches are put together: on the "host", or on the "device", in the step; or "scan", a whole epoch
        in one `jax.lax.scan`.
    """
    import optax

    optimizer = optax.adam(RATE)

    def step(params, state, opt_state, x, labels):
        def loss(params):
            logits, new = apply(params, state, x, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state, value

    def gathered(params, state, opt_state, data, rows):
        x, labels = (a[rows] for a in data)
        return step(params, state, opt_state, x, labels)

    def scanned(params, state, opt_state, data, rows):
        def body(carry, rows):
            *carry, value = gathered(carry[0], carry[1], carry[2], data, rows)
            return tuple(carry), value

        carry, values = jax.lax.scan(body, (params, state, opt_state), rows)
        return *carry, values

    on_host = (laid_out(problem.train[0], channels_last), problem.train[1])
    on_device = jax.tree.map(jnp.asarray, on_host)
    compiled = jax.jit({"host": step, "device": gathered, "scan": scanned}[gather], donate_argnums=(0, 1, 2))
    evaluate = jax.jit(lambda params, state, x, labels: accuracy(apply(params, state, x, False)[0], labels))
    held_out = (jnp.asarray(laid_out(problem.held_out[0], channels_last)), jnp.asarray(problem.held_out[1]))
    params, state = jax.tree.map(jnp.array, (params, state))  # donated, so copies
    carry = [params, state, optimizer.init(params)]
    done = 0

    def epoch():
        nonlocal done
        rows = problem.order(done)
        values = []
        if gather == "scan":
            *carry[:], values = compiled(*carry, on_device, rows)
        else:
            for batch in rows:
                given = (on_device, batch) if gather == "device" else (a[batch] for a in on_host)
                *carry[:], value = compiled(*carry, *given)
                values.append(value)
        done += 1
        loss = float(np.mean(jax.device_get(values)))
        return Epoch(loss, float(evaluate(*carry[:2], *held_out)) if validate else None)

    return lambda epochs: [epoch() for _ in range(epochs)][-1]


LIBRARIES: dict[str, tuple[Callable[[Problem, bool], Contestant], tuple[str, ...]]] = {
    "ours": (ours, ()),
    "flax": (flax, ("flax", "optax")),
    "flax, device": (functools.partial(flax, gather="device"), ("flax", "optax")),
    "flax, scan": (functools.partial(flax, gather="scan"), ("flax", "optax")),
    "equinox": (equinox, ("equinox", "optax")),
    "equinox, device": (functools.partial(equinox, gather="device"), ("equinox", "optax")),
    "torch": (torch, ("torch",)),
    "torch, fused": (functools.partial(torch, fused=True), ("torch",)),
    "torch.compile": (functools.partial(torch, compiled=True), ("torch",)),
}
"""Name -> the function that makes a contestant, and the packages that it needs."""


def import_packages(name: str) -> list[str]:
    """Imports what a library needs, which takes seconds; returns what is not installed."""
    packages = LIBRARIES[name][1]
    absent = [package for package in packages if not importlib.util.find_spec(package)]
    if not absent:
        for package in packages:
            importlib.import_module({"flax": "flax.linen"}.get(package, package))
    return absent


def contestants(problem: Problem, names: list[str], validate: bool) -> tuple[dict[str, Contestant], list[str]]:
    """The contestants that can run here, and why the others cannot."""
    found, missing = {}, []
    for name in names:
        make, absent = LIBRARIES[name][0], import_packages(name)
        if absent:
            missing.append(f"{name}: {', '.join(absent)} not installed")
            continue
        if name == "torch.compile":  # it needs a C++ compiler, and fails when it first runs
            try:
                make(problem.one_step(), False)(1)
            except Exception as error:
                missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
        found[name] = make(problem, validate)
    return found, missing

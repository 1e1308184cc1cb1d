"""Planted pathologies and healthy runs: each a setup, and what every remedy does to it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnet import activations, initializers, layers, losses, optimizers, regularizers
from jaxnet.diagnostics import Remedy

CROSS_ENTROPY = losses.softmax_cross_entropy
Data = tuple[np.ndarray, np.ndarray]


class Setup(NamedTuple):
    """Everything `diagnose` is called with."""

    net: layers.Layer
    loss: Callable[[Any, Any], Any]
    optimizer: Any
    data: Data
    validation: Data
    regularizer: Any = None


class Plan(NamedTuple):
    """What a setup is made from; a remedy changes one field.

    Attributes:
      task: "clusters" (4 classes of 3 clusters each in 8 dimensions), "rings" (2 classes of alternating rings in the
        plane), "linear" (a regression), "waves" (2 classes of noisy waves).
      depth: hidden layers.
      width: of each.
      samples: to train on.
      activation: of the hidden layers.
      gain: factor on the weights that keep the variance.
      bias: with which biases begin.
      normalize: batch normalization before the activations.
      residual: around each hidden layer but the first.
      rate: of Adam, or of SGD with momentum where ``sgd``.
      offset, spread: what is added to the input, and by what it is multiplied first.
      wrong: share of wrong labels, in training and validation alike.
      missing: samples with a NaN.
      drop: samples that are left out; the validation set then has its right labels.
      l2, dropout: regularization.
      conv: a convolutional network.
    """

    task: str = "clusters"
    depth: int = 2
    width: int = 32
    samples: int = 512
    activation: str = "relu"
    gain: float = 1.0
    bias: float = 0.0
    normalize: bool = False
    residual: bool = False
    rate: float = 3e-3
    sgd: bool = False
    offset: float = 0.0
    spread: float = 1.0
    wrong: float = 0.0
    missing: int = 0
    drop: tuple[int, ...] = ()
    l2: float = 0.0
    dropout: float = 0.0
    clip: float = 0.0
    conv: bool = False


class Case(NamedTuple):
    """A pathology: its name, the verdict that it must get, and its plan in two sizes."""

    name: str
    verdict: str
    plans: tuple[Plan, Plan]


def sizes(small: Plan, **large: Any) -> tuple[Plan, Plan]:
    """A plan in two sizes."""
    return small, small._replace(**large)


_WIDE = {"width": 64, "samples": 1024}

PATHOLOGIES = (
    Case(
        "20 sigmoid layers", "vanishing_gradient",
        sizes(Plan(depth=20, activation="sigmoid", rate=1e-3), **_WIDE),
    ),
    Case(
        "exploding linear stack", "exploding_gradient",
        sizes(Plan("linear", depth=16, activation="identity", gain=2.0, sgd=True, rate=0.002), **_WIDE),
    ),
    Case("relu killed by bias", "dead_units", sizes(Plan(bias=-10.0), **_WIDE)),
    Case("rate x 100", "rate_too_large", sizes(Plan(sgd=True, rate=5.0), **_WIDE)),
    Case("rate / 1,000", "rate_too_small", sizes(Plan(rate=3e-6), **_WIDE)),
    Case("wide on 30 samples", "overfitting", sizes(Plan("rings", width=256, samples=30), width=512)),
    Case(
        "narrow on a hard task", "underfitting",
        sizes(Plan("rings", width=2, activation="tanh", rate=1e-2), samples=1024, depth=3),
    ),
    Case(
        "initialization x 10", "initialization_too_large",
        sizes(Plan(depth=3, gain=10.0, sgd=True, rate=0.05), **_WIDE),
    ),
    Case(
        "initialization x 0.01", "initialization_too_small",
        sizes(Plan(depth=3, gain=0.01, sgd=True, rate=0.05), **_WIDE),
    ),
    Case(
        "tanh on raw input", "unnormalized_input",
        sizes(Plan(activation="tanh", offset=50.0, spread=20.0, sgd=True, rate=0.05), **_WIDE),
    ),
    Case("40 % wrong labels", "wrong_labels", sizes(Plan(wrong=0.4), **_WIDE)),
    Case("NaN in one sample", "non_finite_data", sizes(Plan(missing=1), **_WIDE)),
)  # fmt: skip

HEALTHY = (
    Case("healthy: relu, Adam", "healthy", sizes(Plan(), **_WIDE)),
    Case(
        "healthy: tanh regression, SGD", "healthy",
        sizes(Plan("linear", activation="tanh", sgd=True, rate=0.05), **_WIDE),
    ),
    Case(
        "healthy: conv, batch norm", "healthy",
        sizes(Plan("waves", conv=True, width=8, normalize=True), width=16, samples=1024),
    ),
    Case(
        "healthy: 16 residual blocks", "healthy",
        sizes(Plan(depth=16, normalize=True, residual=True, rate=1e-3), **_WIDE),
    ),
)  # fmt: skip

CASES = (*PATHOLOGIES, *HEALTHY)


def setup(plan: Plan, seed: int) -> Setup:
    """The setup of a plan; the seed draws the data."""
    train, validation = draw(plan, seed)
    regularizer = _penalty(plan.l2) if plan.l2 else None
    return Setup(
        network(plan), _loss(plan.task), optimizer(plan.rate, plan.sgd, plan.clip), train, validation, regularizer
    )


def remedied(plan: Plan, remedy: Remedy) -> Plan:
    """The plan after a remedy, by its action."""
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "drop_samples": lambda: {"drop": plan.drop + tuple(remedy.value)},
        "standardize_input": lambda: {"offset": 0.0, "spread": 1.0},
        "more_data": lambda: {"samples": 1024},
        "initialize": lambda: {"gain": 1.0, "bias": 0.0},
        "use_rectifiers": lambda: {"activation": "relu", "gain": 1.0},
        "use_leaky_rectifiers": lambda: {"activation": "leaky_relu"},
        "normalize": lambda: {"normalize": True},
        "residual": lambda: {"residual": True, "normalize": True},
        "clip": lambda: {"clip": 1.0},
        "scale_rate": lambda: {"rate": plan.rate * remedy.value},
        "regularize": lambda: {"l2": 1e-3, "dropout": 0.5},
        "shrink": lambda: {"width": max(plan.width // 8, 4)},
        "widen": lambda: {"width": 16 * plan.width},
    }
    return plan._replace(**changes[remedy.action]())


# One object a plan, so that the programs are compiled once for all seeds.


@functools.lru_cache
def _network(task, depth, width, activation, gain, bias, normalize, residual, dropout, conv):
    act = {
        "relu": activations.relu, "leaky_relu": activations.leaky_relu, "tanh": jnp.tanh,
        "sigmoid": activations.sigmoid, "identity": None,
    }[activation]  # fmt: skip
    keeps = 2.0 if activation in ("relu", "leaky_relu") else 1.0
    kernel = initializers.VarianceScaling(keeps * gain**2, "fan_in", "normal")
    last = initializers.VarianceScaling(gain**2, "fan_in", "normal")
    biases = initializers.constant(bias)

    def block(first):
        make = layers.conv(width, 5, padding="same", kernel_init=kernel) if conv else layers.dense(
            width, kernel_init=kernel, bias_init=biases
        )  # fmt: skip
        parts = [make, *([layers.batch_norm()] if normalize else []), *([act] if act else [])]
        parts += [layers.dropout(dropout)] if dropout else []
        return layers.residual(layers.chain(*parts)) if residual and not first else layers.chain(*parts)

    head = [layers.global_avg_pool()] if conv else []
    outputs = {"clusters": 4, "rings": 2, "waves": 2, "linear": 2}[task]
    rest = [layers.repeat(block(False), depth - 1)] if depth > 1 else []
    return layers.chain(block(True), *rest, *head, layers.dense(outputs, kernel_init=last))


def network(plan: Plan) -> layers.Layer:
    """The plan's network."""
    return _network(
        plan.task, plan.depth, plan.width, plan.activation, plan.gain, plan.bias, plan.normalize, plan.residual,
        plan.dropout, plan.conv,
    )  # fmt: skip


@functools.lru_cache
def optimizer(rate: float, sgd: bool, clip: float) -> Any:
    """Adam, or SGD with momentum; clipped or not."""
    rule = optimizers.sgd(rate, momentum=0.9) if sgd else optimizers.adam(rate)
    return optimizers.chain(optimizers.clip_by_global_norm(clip), rule) if clip else rule


@functools.lru_cache
def _penalty(strength):
    return regularizers.l2(strength)


def _loss(task):
    return losses.mse if task == "linear" else CROSS_ENTROPY


def draw(plan: Plan, seed: int) -> tuple[Data, Data]:
    """The training and the validation set."""
    random = np.random.default_rng([seed, 2026])
    total = plan.samples + 512
    x, target = {"clusters": _clusters, "rings": _rings, "linear": _linear, "waves": _waves}[plan.task](random, total)
    if plan.wrong:
        flipped = random.random(total) < plan.wrong
        flipped[plan.samples :] &= not plan.drop
        target = np.where(flipped, (target + random.integers(1, 4, total)) % 4, target).astype(np.int32)
    x = plan.spread * x + plan.offset
    for sample in random.integers(0, plan.samples, plan.missing):
        x[sample, 0] = np.nan
    kept = np.setdiff1d(np.arange(plan.samples), plan.drop)
    x = x.astype(np.float32)
    return (x[kept], target[kept]), (x[plan.samples :], target[plan.samples :])


def _clusters(random, n):
    centres = 1.5 * random.standard_normal((12, 8))
    cluster = random.integers(0, 12, n)
    x = centres[cluster] + 0.5 * random.standard_normal((n, 8))
    return x / x.std(), (cluster % 4).astype(np.int32)


def _rings(random, n):
    radius, angle = random.uniform(0, 3, n), random.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), (radius.astype(int) % 2).astype(np.int32)


def _linear(random, n):
    x = random.standard_normal((n, 8))
    y = x @ random.standard_normal((8, 2)) / np.sqrt(8) + 0.05 * random.standard_normal((n, 2))
    return x, y.astype(np.float32)


def _waves(random, n):
    label = random.integers(0, 2, n)
    time = np.arange(32)
    phase = random.uniform(0, 2 * np.pi, (n, 1))
    wave = np.sqrt(2) * np.sin(2 * np.pi * np.where(label, 0.2, 0.1)[:, None] * time + phase)
    return (wave + 0.3 * random.standard_normal((n, 32)))[:, :, None], label.astype(np.int32)

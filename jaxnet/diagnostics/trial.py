"""A short run that is looked at closely: the same step as `training.fit`, with a report every few steps."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import data as data_module
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.layer_report import LayerReport, layer_report
from jaxnet.layers.layer import Layer
from jaxnet.optimizers import _members
from jaxnet.optimizers.base import Optimizer
from jaxnet.training import pairs
from jaxnet.training import state as states
from jaxnet.training.feed import finite
from jaxnet.training.history import History
from jaxnet.training.run import Epoch
from jaxnet.training.step import make_step, scalar

LOOKS = 20
"""How many records a run gives."""

PROBE = 256
"""Samples in the batch of the reports."""

EVALUATED = 1024
"""The most samples of the training and of the validation set on which the loss is followed."""


class Trial(NamedTuple):
    """A run that was looked at.

    Attributes:
      history: a record a look, with "training_loss" (of a part of the training set, in evaluation) besides the usual.
      reports: a `LayerReport` a look, the first before any step.
      best: params and state at the look with the lowest validation loss.
      last: params and state at the end.
    """

    history: History
    reports: list[LayerReport]
    best: tuple[Any, Any]
    last: tuple[Any, Any]


@dataclasses.dataclass(eq=False)
class Task:
    """What is trained, on what; the data are on the host, checked and finite. Its programs are compiled once."""

    net: Layer
    loss: Loss
    optimizer: Any
    regularizer: Any
    train: tuple[Any, Any]
    validation: tuple[Any, Any]
    batch_size: int
    key: Any

    def __post_init__(self):
        # Compiled for this task alone, and gone with it: nothing outside of it holds the network or the loss.
        self.begin, self.advance = jax.jit(self._begin), jax.jit(self._advance)
        self.look, self.apply = jax.jit(self._look), jax.jit(self._apply)

    def run(self, steps: int, *, factor: float = 1.0, share: float = 1.0) -> Trial:
        """Trains for a share of ``steps``, with the optimizer's rate multiplied by ``factor``."""
        size = max(steps // LOOKS, 1)
        rows = self.orders(size * LOOKS)
        shown = (_first(self.train, PROBE), _first(self.train, EVALUATED), _first(self.validation, EVALUATED))
        factors = np.full(size, factor, np.float32)
        train_state = self.begin(self.key)
        reports, history = [jax.device_get(self.look(train_state, factors[0], *shown)[0])], History()
        best, lowest = (train_state.params, train_state.state), math.inf
        for number in range(round(LOOKS * share)):
            batches = self.batches(rows[number * size : (number + 1) * size])
            train_state, measured = self.advance(train_state, factors, batches)
            report, *losses = jax.device_get(self.look(train_state, factors[0], *shown))
            reports.append(report)
            history.records.append(_record(number + 1, int(train_state.step), jax.device_get(measured), *losses))
            if float(losses[1]) < lowest:
                best, lowest = (train_state.params, train_state.state), float(losses[1])
        return Trial(history, reports, best, (train_state.params, train_state.state))

    def losses(self, factors: np.ndarray) -> np.ndarray:
        """Those of a run in which every step has a factor of its own on the optimizer's rate."""
        batches = self.batches(self.orders(len(factors)))
        return np.asarray(self.advance(self.begin(self.key), factors, batches)[1]["loss"], np.float64)

    def predict(self, params: Any, state: Any, x: np.ndarray) -> np.ndarray:
        """The network's outputs on many samples, in evaluation, by batches of one size."""
        parts = [x[first : first + PROBE] for first in range(0, len(x), PROBE)]
        filled = (jnp.asarray(np.resize(part, (PROBE, *x.shape[1:]))) for part in parts)
        outputs = [np.asarray(self.apply(params, state, batch)) for batch in filled]
        return np.concatenate([output[: len(part)] for output, part in zip(outputs, parts, strict=True)])

    def orders(self, steps: int) -> np.ndarray:
        """Which samples each step takes: epoch after epoch, what does not fill a batch left out."""
        samples, size = _samples(self.train), self.batch_size
        filled = samples // size * size
        epochs = range(-(-steps * size // filled))
        picked = [data_module.epoch_order(samples, epoch=epoch)[:filled] for epoch in epochs]
        return np.concatenate(picked).reshape(-1, size)[:steps]

    def batches(self, rows: np.ndarray) -> Any:
        """The samples of these numbers."""
        return jax.tree.map(lambda leaf: leaf[rows], self.train)

    def _begin(self, key):
        return states.init(self.net, self.optimizer, pairs.of_size(1, self.train[0]), key)

    def _advance(self, train_state, factors, batches):
        def step(train_state, inputs):
            factor, batch = inputs
            optimizer = _scaled(self.optimizer, factor)
            return make_step(self.net, self.loss, optimizer, regularizer=self.regularizer)(train_state, batch)

        return jax.lax.scan(step, train_state, (factors, batches))

    def _look(self, train_state, factor, probe, watched, held_out):
        params, state = train_state.params, train_state.state

        def evaluated(x, target):
            return scalar("the loss", self.loss(self._apply(params, state, x), target))

        report = layer_report(
            self.net, self.loss, params, state, probe, optimizer=_scaled(self.optimizer, factor),
            opt_state=train_state.opt_state, key=jax.random.fold_in(train_state.key, train_state.step),
        )  # fmt: skip
        return report, evaluated(*watched), evaluated(*held_out)

    def _apply(self, params, state, x):
        return self.net.apply(params, state, x, train=False)[0]


def _scaled(optimizer: Any, factor: Any) -> Optimizer:
    """``optimizer`` with its updates multiplied by ``factor``, which may be traced: so its rate is."""

    def update(updates, state, params=None, **extra):
        updates, state = _members.updated(optimizer, updates, state, params, extra)
        return jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates), state

    return Optimizer(optimizer.init, update)


def _record(number: int, step: int, measured: dict[str, Any], training_loss: Any, validation_loss: Any) -> Any:
    epoch = Epoch()
    epoch.add({name: measured[name] for name in ("loss", "grad_norm")}, 1)
    record = {"epoch": number, "step": step, **epoch.means(), "skipped": int((~finite(measured)).sum())}
    return record | {"training_loss": float(training_loss), "validation_loss": float(validation_loss)}


def _samples(data: Any) -> int:
    return len(jax.tree.leaves(data)[0])


def _first(data: Any, most: int) -> Any:
    # A power of two, so that a few samples more or less do not compile the programs again.
    count = min(2 ** int(math.log2(_samples(data))), most)
    return jax.tree.map(lambda leaf: leaf[:count], data)

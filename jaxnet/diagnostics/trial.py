"""A short run that is looked at closely: the same step as `training.fit`, with a report every few steps."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics.layer_report import LayerReport, layer_report
from jaxnet.diagnostics.rate_range_test import orders, scaled
from jaxnet.layers.layer import Layer
from jaxnet.training import state as states
from jaxnet.training.history import History
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


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, on what; the data are on the host, checked and finite. Its programs are compiled once."""

    net: Layer
    loss: Callable[[Any, Any], jax.Array]
    optimizer: Any
    regularizer: Any
    train: tuple[Any, Any]
    validation: tuple[Any, Any]
    batch_size: int
    key: Any

    def run(self, steps: int, *, factor: float = 1.0, share: float = 1.0) -> Trial:
        """Trains for a share of ``steps``, with the optimizer's rate multiplied by ``factor``."""
        size = max(steps // LOOKS, 1)
        rows = orders(_samples(self.train), self.batch_size, size * LOOKS)
        probe = _first(self.train, PROBE)
        watched = _first(self.train, EVALUATED)
        held_out = _first(self.validation, EVALUATED)
        train_state = self._begin(self.key)
        multiplier = jnp.float32(factor)
        look = self._look(train_state, multiplier, probe, watched, held_out)
        reports, history = [jax.device_get(look[0])], History()
        best, lowest = (train_state.params, train_state.state), math.inf
        for number in range(round(LOOKS * share)):
            picked = rows[number * size : (number + 1) * size]
            batches = jax.tree.map(lambda leaf, picked=picked: leaf[picked], self.train)
            train_state, measured = self._advance(train_state, multiplier, batches)
            report, *losses = jax.device_get(self._look(train_state, multiplier, probe, watched, held_out))
            reports.append(report)
            history.records.append(_record(number + 1, int(train_state.step), jax.device_get(measured), *losses))
            if float(losses[1]) < lowest:
                best, lowest = (train_state.params, train_state.state), float(losses[1])
        return Trial(history, reports, best, (train_state.params, train_state.state))

    def predict(self, params: Any, state: Any, x: np.ndarray) -> np.ndarray:
        """The network's outputs on many samples, in evaluation, by batches of one size."""
        parts = [x[first : first + PROBE] for first in range(0, len(x), PROBE)]
        filled = (jnp.asarray(np.resize(part, (PROBE, *x.shape[1:]))) for part in parts)
        outputs = [np.asarray(self._apply(params, state, batch)) for batch in filled]
        return np.concatenate([output[: len(part)] for output, part in zip(outputs, parts, strict=True)])

    # Each is compiled for this task alone, and gone with it: nothing outside of it holds the network or the loss.

    @functools.cached_property
    def _begin(self) -> Callable[..., Any]:
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), self.train[0])
        return jax.jit(lambda key: states.init(self.net, self.optimizer, example, key))

    @functools.cached_property
    def _advance(self) -> Callable[..., Any]:
        @jax.jit
        def advance(train_state, factor, batches):
            optimizer = scaled(self.optimizer, factor)
            step = make_step(self.net, self.loss, optimizer, regularizer=self.regularizer)
            return jax.lax.scan(step, train_state, batches)

        return advance

    @functools.cached_property
    def _look(self) -> Callable[..., Any]:
        net, loss = self.net, self.loss

        @jax.jit
        def look(train_state, factor, probe, watched, held_out):
            params, state = train_state.params, train_state.state
            optimizer = scaled(self.optimizer, factor)
            key = jax.random.fold_in(train_state.key, train_state.step)

            def evaluated(x, target):
                return scalar("diagnose", "the loss", loss(net.apply(params, state, x, train=False)[0], target))

            report = layer_report(
                net, loss, params, state, probe, optimizer=optimizer, opt_state=train_state.opt_state, key=key
            )
            return report, evaluated(*watched), evaluated(*held_out)

        return look

    @functools.cached_property
    def _apply(self) -> Callable[..., Any]:
        return jax.jit(lambda params, state, x: self.net.apply(params, state, x, train=False)[0])


def _record(number: int, step: int, measured: dict[str, Any], training_loss: Any, validation_loss: Any) -> Any:
    loss = np.asarray(measured["loss"], np.float64)
    norm = np.asarray(measured["grad_norm"], np.float64)
    finite = np.isfinite(loss) & np.isfinite(norm)
    usable = loss[finite] if finite.any() else np.array([math.nan])
    return {
        "epoch": number,
        "step": step,
        "loss": float(usable.mean()),
        "loss_deviation": float(usable.std()),
        "grad_norm": float(norm[finite].mean()) if finite.any() else math.nan,
        "skipped": int((~finite).sum()),
        "training_loss": float(training_loss),
        "validation_loss": float(validation_loss),
    }


def _samples(data: Any) -> int:
    return len(jax.tree.leaves(data)[0])


def _first(data: Any, most: int) -> Any:
    # A power of two, so that a few samples more or less do not compile the programs again.
    count = min(2 ** int(math.log2(_samples(data))), most)
    return jax.tree.map(lambda leaf: leaf[:count], data)

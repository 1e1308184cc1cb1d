"""A short run that is looked at closely: the same step as `training.fit`, with a report every few steps."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import data as data_module
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.layer_report import LayerReport, layer_report
from jaxnet.layers.layer import Layer
from jaxnet.optimizers import _members, _rates
from jaxnet.optimizers.base import Optimizer
from jaxnet.training import pairs
from jaxnet.training import state as states
from jaxnet.training.feed import finite
from jaxnet.training.history import History
from jaxnet.training.reestimate import reestimate
from jaxnet.training.run import Epoch
from jaxnet.training.step import make_step, scalar

LOOKS = 20
"""How many records a run gives."""

PROBE = 256
"""Samples in the batch of the reports."""

EVALUATED = 1024
"""The most samples of the training and of the validation set on which the loss is followed."""


class Outcome(NamedTuple):
    """How a run without reports ended.

    Attributes:
      training: the loss of the training set, in evaluation.
      validation: the lowest validation loss.
      score: accuracy or R2 on the validation set, where that was the lowest; NaN if the targets have neither.
      baseline: the loss of the best constant prediction, of this run's loss and targets.
      steps: of the run.
      same: whether the losses are in the same units as the run's.
      last: params and state at the end, if they are kept.
    """

    training: float
    validation: float
    score: float
    baseline: float
    steps: int
    same: bool
    last: tuple[Any, Any] | None

    @property
    def share(self) -> float:
        """What is left of the best constant prediction's loss."""
        return self.training / self.baseline if math.isfinite(self.training) else math.inf


class Trial(NamedTuple):
    """A run that was looked at.

    Attributes:
      history: a record a look, with "training_loss" (of a part of the training set, in evaluation) besides the usual.
      reports: a `LayerReport` a look, the first before any step.
      best: params and state at the look with the lowest validation loss.
      last: params and state at the end.
      score: accuracy or R2 on the validation set, with the best; NaN if the targets have neither.
    """

    history: History
    reports: list[LayerReport]
    best: tuple[Any, Any]
    last: tuple[Any, Any]
    score: float


@dataclasses.dataclass(eq=False)
class Task:
    """What is trained, on what; the data are on the host, checked and finite. Its programs are compiled once.

    ``score`` is a function of predictions and targets, which tells two values apart at ``threshold``; ``factor`` is on
    the optimizer's rate;
    ``reestimated`` says that the averages of norms are made anew at the end.
    """

    net: Layer
    loss: Loss
    optimizer: Any
    regularizer: Any
    train: tuple[Any, Any]
    validation: tuple[Any, Any]
    batch_size: int
    key: Any
    score: Callable[[Any, Any], jax.Array] | None = None
    threshold: float | None = None
    factor: float = 1.0
    reestimated: bool = False

    def __post_init__(self):
        # Compiled for this task alone, and gone with it: nothing outside of it holds the network or the loss.
        self.begin, self.advance = jax.jit(self._begin), jax.jit(self._advance)
        self.look, self.evaluate, self.apply = map(jax.jit, (self._look, self._evaluate, self._apply))

    def changed(self, **changes: Any) -> "Task":
        """The same task but for its data, its factor or how it begins, which leave its programs as they are."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def run(self, steps: int) -> Trial:
        """Trains, with a report at every look."""
        probe, factor = _first(self.train, PROBE), np.float32(self.factor)
        start = self.begin(self.key)
        reports, history = [jax.device_get(self.look(start, factor, probe))], History()
        best, lowest, score = (start.params, start.state), math.inf, math.nan
        for number, train_state, measured, (training, validation, scored) in self._looks(start, steps, LOOKS):
            reports.append(jax.device_get(self.look(train_state, factor, probe)))
            history.records.append(_record(number + 1, int(train_state.step), measured, training, validation))
            if validation < lowest:
                best, lowest, score = (train_state.params, train_state.state), validation, scored
            start = train_state
        return Trial(history, reports, best, (start.params, start.state), score)

    def outcome(self, steps: int, looks: int, baseline: float, same: bool = True) -> Outcome:
        """Trains for the first ``looks`` parts of ``steps``, and says only how it ends."""
        start, lowest, score, training, taken = self.begin(self.key), math.inf, math.nan, math.nan, 0
        for _, state, _, (loss, validation, scored) in self._looks(start, steps, looks):
            start, training, taken = state, loss, int(state.step)
            if validation < lowest:
                lowest, score = validation, scored
        params, kept = start.params, start.state
        if self.reestimated:
            kept = reestimate(self.net, params, kept, self.train, batch_size=self.batch_size)
            watched, held_out = _first(self.train, EVALUATED), _first(self.validation, EVALUATED)
            training, lowest, score = map(float, jax.device_get(self.evaluate(params, kept, watched, held_out)))
        return Outcome(training, lowest, score, baseline, taken, same, (params, kept))

    def _looks(self, train_state: Any, steps: int, looks: int) -> Iterator[tuple[int, Any, Any, tuple[float, ...]]]:
        size = max(steps // LOOKS, 1)
        rows = self.orders(size * looks)
        factors = np.full(size, self.factor, np.float32)
        watched, held_out = _first(self.train, EVALUATED), _first(self.validation, EVALUATED)
        for number in range(looks):
            batches = self.batches(rows[number * size : (number + 1) * size])
            train_state, measured = self.advance(train_state, factors, batches)
            values = jax.device_get(self.evaluate(train_state.params, train_state.state, watched, held_out))
            yield number, train_state, jax.device_get(measured), tuple(map(float, values))

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

    def _look(self, train_state, factor, probe):
        return layer_report(
            self.net, self.loss, train_state.params, train_state.state, probe,
            optimizer=_scaled(self.optimizer, factor), opt_state=train_state.opt_state,
            key=jax.random.fold_in(train_state.key, train_state.step),
        )  # fmt: skip

    def _evaluate(self, params, state, watched, held_out):
        predicted, held = (self._apply(params, state, x) for x, _ in (watched, held_out))
        losses = (scalar("the loss", self.loss(p, y)) for p, y in ((predicted, watched[1]), (held, held_out[1])))
        return *losses, jnp.nan if self.score is None else self.score(held, held_out[1])

    def _apply(self, params, state, x):
        return self.net.apply(params, state, x, train=False)[0]


def _scaled(optimizer: Any, factor: Any) -> Optimizer:
    """``optimizer`` with its updates multiplied by ``factor``, which may be traced: so its rate is."""

    def update(updates, state, params=None, **extra):
        updates, state = _members.updated(optimizer, updates, state, params, extra)
        return jax.tree.map(lambda u: u * jnp.asarray(factor, u.dtype), updates), state

    def rate(before, after):
        return _rates.joined([_rates.known(optimizer, before, after), _rates.Rate({}, factor)])

    return _rates.saying(Optimizer(optimizer.init, update), rate)


def _record(number: int, step: int, measured: dict[str, Any], training_loss: Any, validation_loss: Any) -> Any:
    epoch = Epoch()
    told = [name for name in measured if name in ("loss", "grad_norm") or name.startswith("learning_rate")]
    epoch.add({name: measured[name] for name in told}, 1)
    record = {"epoch": number, "step": step, **epoch.means(), "skipped": int((~finite(measured)).sum())}
    return record | {"training_loss": float(training_loss), "validation_loss": float(validation_loss)}


def _samples(data: Any) -> int:
    return len(jax.tree.leaves(data)[0])


def _first(data: Any, most: int) -> Any:
    # A power of two, so that a few samples more or less do not compile the programs again.
    count = min(2 ** int(math.log2(_samples(data))), most)
    return jax.tree.map(lambda leaf: leaf[:count], data)

"""What rules look at: each fact is measured once, when the first rule asks for it."""

import math
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.anatomy import Anatomy
from jaxnet.diagnostics.baseline import constant_loss
from jaxnet.diagnostics.changes import changed
from jaxnet.diagnostics.free_output import FreeOutput
from jaxnet.diagnostics.samples import Samples
from jaxnet.diagnostics.score import targets
from jaxnet.diagnostics.suspect_labels import NEIGHBOURS, suspect_labels
from jaxnet.diagnostics.trial import LOOKS, Outcome, Task, Trial
from jaxnet.diagnostics.updates import Updates, updates
from jaxnet.diagnostics.verdict import Remedy, remedy
from jaxnet.diagnostics.witnesses import FEWEST as WITNESSES
from jaxnet.diagnostics.witnesses import explained
from jaxnet.errors import DataError
from jaxnet.optimizers import _members
from jaxnet.training.history import History

FACTORS = (0.001, 0.01, 0.1, 10.0, 100.0, 1000.0)
"""Other rates that a run which did not train is tried with, as factors on its own."""

SMALLEST = 1e-7
"""The factor down to which it is gone where each smaller rate is the best so far."""

TRIED = 0.25
"""The share of the steps for which each other rate, and each remedy, is tried."""

FEWEST = 60
"""The steps that a try takes at least, if the run has so many."""

AUDITED = 4096
"""The most samples whose labels are looked at."""


class BelowZero(DataError):
    """A loss is below 0."""


class Curves:
    """What learning curves tell.

    Attributes:
      batch_size: of the run, if it is known.
      baseline: the loss of the best constant prediction, if it is known.
      loss: of the training set, in evaluation if that was measured.
      validation: the validation loss; empty if there is none.
      skipped: how many steps of each record were not finite.
      steps_a_record: of the last record.
      first: the first loss that is finite.
      start: the loss of a network that has learned nothing, by which those below are divided.
      end, validation_end: the median loss of the last sixth.
      left: the share of the loss that is left in the end.
      gap: validation loss minus training loss, in the end.
      fall: by how much the loss fell over the last third.
      deviation: of the loss from batch to batch, in the end.
      ending: where the loss ends, in words.

    Raises:
      DataError: fewer than three records, or losses of which ratios say nothing.
    """

    def __init__(self, history: History, baseline: float | None = None, batch_size: int | None = None):
        def column(name, otherwise):
            return history[name] if name in history.names else np.asarray(otherwise)

        if len(history) < 3:
            raise DataError(f"at least three records are needed to see a curve, got {len(history)}; train longer")
        self.history, self.baseline, self.batch_size = history, baseline, batch_size
        self.loss = history["training_loss" if "training_loss" in history.names else "loss"]
        self.validation = column("validation_loss", [])
        positive(self.loss, self.validation)
        self.first = next((float(loss) for loss in self.loss if np.isfinite(loss)), math.nan)
        if baseline is None and self.first == 0:
            raise DataError(
                "the loss starts at 0, and ratios of losses need positive ones; add a constant, or give a baseline"
            )
        self.start = self.first if baseline is None else baseline
        self.skipped = column("skipped", np.zeros(len(history)))
        self.steps_a_record = np.diff(column("step", [0, self.skipped.max()]))[-1]
        self.end, self.validation_end = (
            float(np.median(curve[-max(len(history) // 6, 1) :])) if curve.size else math.nan
            for curve in (self.loss, self.validation)
        )
        self.left, self.gap = self.end / self.start, (self.validation_end - self.end) / self.start
        before = self.loss[-max(len(history) // 3, 1) - 1 :][:2]
        self.fall = (float(np.median(before)) - self.end) / self.start  # of Python's floats: Inf - Inf is no warning
        self.deviation = column("loss_deviation", [0.0])[-1] / self.start
        of = "the best constant prediction" if baseline else "its start"
        self.ending = f"the loss ends at {self.left:.0%} of {of} ({self.end:.3g})"


class Facts(Curves):
    """What a short run tells, and what more can be tried.

    Attributes:
      given, held_out: the caller's samples, and those of validation.
      x, target: of the samples that are trained on.
      trial: the run.
      before, after: what its layers did before the first step, and at the end.
      final: the last training loss; infinite where it is no number.
      trained: whether the run has learned its training set.
      free: the end of the network, on a few samples.
      kind: of the targets.
      shifted: whether the loss falls below 0.
      lowest: what was taken off the loss, so that it is 0 at its lowest.
    """

    shifted, lowest = False, 0.0

    def __init__(self, task: Task, steps: int, given: Samples, train: Samples, held_out: Samples, **of_curves: Any):
        self.free: FreeOutput = of_curves.pop("free")
        self.task, self.steps, self.given, self.train, self.held_out = task, steps, given, train, held_out
        self.x, self.target = train.pair
        self.kind = targets(self.target)
        self.outcomes: dict[tuple[str, Any, int], Outcome | None] = {}
        self.look_at(task.run(steps), **of_curves)

    def look_at(self, trial: Trial, **of_curves: Any) -> None:
        """Reads a run."""
        self.trial = trial
        super().__init__(trial.history, **of_curves)
        self.before, *_, self.after = trial.reports
        self.left = self.left if math.isfinite(self.left) else math.inf
        last = self.history[-1]["training_loss"]
        self.final = last if math.isfinite(last) else math.inf
        self.trained = self.final <= limits.TRAINED * self.start

    @cached_property
    def learned(self) -> bool:
        """Whether the run has trained, and halved a lucky draw's loss too."""
        return self.trained and self.final <= limits.TRAINED * float(self.before.loss)

    @property
    def looks(self) -> int:
        """The looks that a try takes."""
        return min(max(math.ceil(LOOKS * TRIED), math.ceil(LOOKS * FEWEST / self.steps)), LOOKS)

    @cached_property
    def rates(self) -> dict[float, float]:
        """By factor on the rate, the training loss after a part of the steps; empty if the run trained.

        It has not if it halved a lucky draw's loss no more than the best constant prediction's.
        """
        if self.learned:
            return {}
        ends = {factor: self._at(factor) for factor in FACTORS}
        while (smallest := min(ends)) > SMALLEST and self._is_best(ends, smallest):
            ends[smallest / 10] = self._at(smallest / 10)
        return ends

    def _is_best(self, ends: dict[float, float], factor: float) -> bool:
        return ends[factor] == min(ends.values()) and not ends[factor] <= limits.TRAINED * self.start

    def _at(self, factor: float) -> float:
        outcome = self.tried(remedy("scale_rate", factor))
        return outcome.training if outcome and math.isfinite(outcome.training) else math.inf

    def tried(self, cure: Remedy, looks: int | None = None) -> Outcome | None:
        """How a short run with a remedy ends; None if the library cannot carry it out."""
        looks = looks or self.looks
        key = (cure.action, cure.value, looks)
        if key not in self.outcomes:
            other = changed(self.task, cure)
            if other is None:
                self.outcomes[key] = None
            else:
                same = other.loss is self.task.loss and other.train[1] is self.task.train[1]
                baseline = self.start if same else constant_loss(other.net, other.loss, other.train)
                self.outcomes[key] = other.outcome(self.steps, looks, baseline, same)._replace(last=None)
        return self.outcomes[key]

    @property
    def wanting(self) -> bool:
        """Whether so much of a loss is left, of its own or of other samples, that more may be to be had."""
        return max(self.left, self._own) > limits.LEFT

    def mends(self, outcome: Outcome) -> bool:
        """Whether a run gets much further than this one, and for other samples too: no more is learned by heart."""
        enough = limits.OTHER_RATE * self.left if self.left > limits.LEFT else limits.LEFT
        held_out = outcome.validation / outcome.baseline
        return outcome.share <= min(enough, limits.TRAINED) and held_out <= max(limits.HELPS * self._own, limits.LEFT)

    def generalizes(self, outcome: Outcome) -> bool:
        """Whether a run that learns gets much further than this one for other samples, if not for its own."""
        held_out = outcome.validation / outcome.baseline
        return outcome.share <= limits.TRAINED and held_out <= limits.OTHER_RATE * self._own

    def gains(self, outcome: Outcome, share: float) -> bool:
        """Whether a run ends below this share of the lowest loss of this one's last third, and other samples gain."""
        lowest = _lowest(self.loss[-max(len(self.loss) // 3, 1) :]) / self.start
        return outcome.share <= share * lowest and outcome.validation / outcome.baseline <= self._own

    def further(self, outcome: Outcome, share: float) -> tuple[bool, bool]:
        """Whether training and validation end above this share of what this run had left after as many steps."""
        taken = max(int(np.searchsorted(self.history["step"], outcome.steps, side="right")), 1)
        training, validation = _lowest(self.loss[taken - 1 : taken]), _lowest(self.validation[:taken])
        return (
            outcome.share > share * training / self.start,
            outcome.validation / outcome.baseline > share * validation / self.start,
        )

    def hurts(self, outcome: Outcome) -> bool:
        """Whether a run ends clearly worse than this one after as many steps, for its own and for other samples."""
        return all(self.further(outcome, 1 / limits.HELPS))

    @cached_property
    def updates(self) -> Updates | None:
        """What the optimizer made of the gradients; None where the looks do not tell."""
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.trial.last[0]))
        return updates(self.trial.reports, self.history, self.steps, self.start, size)

    @property
    def _own(self) -> float:
        """What is left of the validation loss where it was lowest."""
        return _lowest(self.validation) / self.start

    @cached_property
    def floor(self) -> float:
        """The lowest loss that the output can reach, as a share of the best constant prediction's for as many samples.

        NaN where that cannot be asked.
        """
        return self.free.floor() / self.free.baseline(self.task.net, self.x)

    def against(self, outcome: Outcome) -> str:
        """What an outcome has for the run's end, in words."""
        score = f"{self.kind.name} of validation {self.trial.score:.2f} to {outcome.score:.2f}, "
        there = math.isfinite(self.trial.score) and math.isfinite(outcome.score)
        if outcome.same:
            losses = f"loss {self.final:.3g} to {outcome.training:.3g}"
        else:
            losses = f"loss {self.left:.0%} to {outcome.share:.0%} of the best constant prediction's"
        return f"{losses}, {score if there else ''}in {outcome.steps} steps{self._of(outcome.steps)}"

    def _of(self, steps: int) -> str:
        return "" if steps >= self.steps else f" against {self.steps}"

    @cached_property
    def penalty(self) -> float:
        """The regularizer of a fresh network."""
        return float(self.task.regularizer(self.task.begin(self.task.key).params))

    @cached_property
    def decay(self) -> float:
        """The share of the weights that the optimizer takes off in a step in which the gradient is 0."""
        params = self.task.begin(self.task.key).params
        optimizer = self.task.optimizer

        @jax.jit
        def norms(params):
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, _ = _members.updated(optimizer, zeros, optimizer.init(params), params, {})
            return [
                jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
                for tree in (updates, params)
            ]

        try:
            moved, norm = map(float, norms(params))
        except Exception:  # an optimizer that asks for more than a gradient
            return 0.0
        return moved / norm if norm > 0 and math.isfinite(moved) else 0.0

    @cached_property
    def held_out_baseline(self) -> float:
        """The loss of the best constant prediction for the validation set itself."""
        return constant_loss(self.task.net, self.task.loss, self.held_out.pair)

    @cached_property
    def witnesses(self) -> tuple[float, float] | None:
        """What a sample's neighbours, and a linear fit, explain of the targets; None where neither can be asked."""
        x, target = self.x, self.target
        if not isinstance(x, np.ndarray) or not isinstance(target, np.ndarray) or not is_floating(x):
            return None
        if self.kind.kind not in ("classes", "one hot", "two values", "shares", "numbers") or len(x) < WITNESSES:
            return None
        if self.kind.kind == "classes" and target.ndim > 1:
            return None
        return explained(x[:AUDITED], target[:AUDITED], self.kind.kind == "classes")

    @property
    def parts(self) -> Anatomy:
        """What the network is made of."""
        return self.free.parts

    @cached_property
    def suspects(self) -> tuple[list[int], int]:
        """The caller's numbers of the samples of a classification whose labels are suspect, and of how many."""
        x, labels = self.x, self.target
        if not isinstance(x, np.ndarray) or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
            return [], 0
        x, labels = x[:AUDITED], labels[:AUDITED]
        if labels.ndim != 1 or len(labels) < 10 * NEIGHBOURS or labels.min() < 0:  # else the nearest are not near
            return [], 0
        predicted = self.task.predict(*self.trial.best, x)
        if predicted.ndim != 2 or predicted.shape[1] <= labels.max():
            return [], 0
        found = suspect_labels(x, labels, predicted.argmax(-1))
        return sorted(self.train.numbers[found].tolist()), len(labels)


def _lowest(curve: np.ndarray) -> float:
    """Of what is finite; else infinite."""
    return float(np.min(curve[np.isfinite(curve)], initial=math.inf))


def positive(*curves: np.ndarray) -> None:
    """Refuses losses below 0, of which ratios say nothing."""
    for curve in curves:
        if np.any(curve < 0):
            raise BelowZero(
                f"a loss of {float(np.nanmin(curve)):.3g} is below 0, and ratios of losses need positive ones; a "
                f"cross-entropy is below 0 only of targets outside 0 to 1: mend them; to another loss add a constant"
            )

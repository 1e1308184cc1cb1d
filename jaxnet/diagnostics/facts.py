"""What rules look at: each fact is measured once, when the first rule asks for it."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics.samples import Samples
from jaxnet.diagnostics.suspect_labels import NEIGHBOURS, suspect_labels
from jaxnet.diagnostics.trial import Task
from jaxnet.errors import DataError
from jaxnet.training.history import History

FACTORS = (0.001, 0.01, 0.1, 10.0, 100.0, 1000.0)
"""Other rates that a run which did not train is tried with, as factors on its own."""

TRIED = 0.25
"""The share of the steps for which each other rate is tried."""

AUDITED = 4096
"""The most samples whose labels are looked at."""


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
      final: the last training loss.
      trained: whether the run has learned its training set.
    """

    def __init__(self, task: Task, steps: int, given: Samples, train: Samples, held_out: Samples, **of_curves: Any):
        self.task, self.steps, self.given, self.train, self.held_out = task, steps, given, train, held_out
        self.x, self.target = train.pair
        self.trial = task.run(steps)
        super().__init__(self.trial.history, **of_curves)
        self.before, *_, self.after = self.trial.reports
        self.final = self.history[-1]["training_loss"]
        self.trained = self.final <= limits.TRAINED * self.start

    @cached_property
    def rates(self) -> dict[float, float]:
        """By factor on the rate, the training loss after a part of the steps; empty if the run trained.

        It has not if it halved a lucky draw's loss no more than the best constant prediction's.
        """
        if self.trained and self.final <= limits.TRAINED * float(self.before.loss):
            return {}
        runs = {factor: self.task.run(self.steps, factor=factor, share=TRIED) for factor in FACTORS}
        ends = {factor: run.history[-1]["training_loss"] for factor, run in runs.items()}
        return {factor: end if math.isfinite(end) else math.inf for factor, end in ends.items()}

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


def positive(*curves: np.ndarray) -> None:
    """Refuses losses below 0, of which ratios say nothing."""
    for curve in curves:
        if np.any(curve < 0):
            raise DataError(
                f"a loss of {float(np.nanmin(curve)):.3g} is below 0, and ratios of losses need positive ones; "
                f"add a constant to the loss"
            )

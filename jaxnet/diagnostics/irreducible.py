"""Losses that keep a part whatever is predicted: soft targets, label smoothing, distillation."""

import copy
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics import thresholds as limits
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.free_output import SAME, FreeOutput
from jaxnet.diagnostics.rules.outputs import wrong_output
from jaxnet.diagnostics.trial import EVALUATED
from jaxnet.training.history import History


def without_floor(facts: Facts) -> Facts:
    """The facts of a run that has not trained less the part of its loss that no prediction takes away.

    The facts as they are where the loss has no such part, or the output is what keeps it high.
    """
    if facts.trained or facts.shifted or not facts.floor > limits.LEFT or wrong_output(facts):
        return facts
    task = facts.task
    free = FreeOutput.of(task.net, task.loss, *task.train, samples=EVALUATED)
    lowest, baseline = free.floor(), free.baseline(task.net, facts.x)
    near = free.agreeing + SAME * max(baseline - free.agreeing, 0.0)
    if not (free.certain and free.has_gradient and (free.natural or lowest <= near)):
        return facts
    if not limits.LEFT * baseline < lowest < limits.CONSTANT * baseline:
        return facts
    shift = lowest / baseline * facts.start
    free.loss, free.shift = less(task.loss, shift), shift
    return _lowered(facts, free, shift)


def less(loss: Loss, shift: float) -> Loss:
    """A loss with its lowest value taken off; it is never below 0, and its gradient is that of ``loss``."""

    def shifted(prediction, target):
        value = loss(prediction, target) - shift
        return jnp.where(value < 0, value - jax.lax.stop_gradient(value), value)

    return shifted


def _lowered(facts: Facts, free: FreeOutput, shift: float) -> Facts:
    """The same run, with its losses less ``shift``."""
    columns = ("loss", "training_loss", "validation_loss")
    trial = facts.trial._replace(
        history=History(
            [record | {name: _less(record[name], shift) for name in columns} for record in facts.history.records]
        ),
        reports=[
            dataclasses.replace(report, loss=np.maximum(report.loss - shift, 0)) for report in facts.trial.reports
        ],
    )
    task = dataclasses.replace(facts.task, loss=free.loss)
    lowered = copy.copy(facts)
    for name in [name for name in vars(lowered) if name in ("floor", "learned", "rates", "held_out_baseline")]:
        del vars(lowered)[name]  # what was measured of the loss as it was given
    lowered.free, lowered.task, lowered.lowest, lowered.outcomes = free, task, shift, {}
    lowered.look_at(trial, baseline=facts.start - shift, batch_size=facts.batch_size)
    vars(lowered)["floor"] = 0.0
    return lowered


def _less(value: float, shift: float) -> float:
    return max(value - shift, 0.0) if math.isfinite(value) else value

"""What the optimizer makes of the gradients: how much of the loss its updates can have taken off (4.4.1)."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxnet.diagnostics import thresholds as limits
from jaxnet.training.history import History


class Updates(NamedTuple):
    r"""Of the second half of a run.

    To first order an update of norm u takes at most :math:`|g| u` off the loss, and weights that move by their own
    length along the gradient take off :math:`|g| |w|`: both summed over layers.

    Attributes:
      reach: what all the updates can have taken off at most, as a share of the best constant prediction's loss.
      pull: what weights that move by their own length would, by the median.
      ratio: update over weight in the layer where it is largest, by the median.
      norm, highest: the norm of an update in the end, and where it was largest.
      gradient: the norm of the gradient in the end, before any clip.
      rates: the learning rate at each record, as the optimizer says it; empty if it does not.
      fallen: whether the rate, or if that is not known an update, has become a small part of what it was.
      cut: whether an update is a small part of what any rule makes of such a gradient at this rate.
    """

    reach: float
    pull: float
    ratio: float
    norm: float
    highest: float
    gradient: float
    rates: np.ndarray
    fallen: bool
    cut: bool

    @property
    def rising(self) -> bool:
        """Whether the rate is highest at the end, and was a small part of that."""
        return self.rates.size > 0 and self.rates[-1] == self.rates.max() > limits.FALLEN * self.rates[0]


def updates(reports: list[Any], history: History, steps: int, start: float, size: int) -> Updates | None:
    """What the reports of a run say of its updates.

    None where one is not finite, or where weights move further than what the looks saw of updates can move them: those
    of several gradients averaged are 0 at most steps.

    Args:
      reports: of its layers, the first before any step.
      history: with a record a look.
      steps: of the run.
      start: the loss of the best constant prediction.
      size: the number of parameters.
    """
    gradient, weight, ratio = (
        np.stack([np.nan_to_num(np.asarray(getattr(report, name), np.float64), posinf=np.inf) for report in reports])
        for name in ("parameter_gradient", "weight_norm", "update_ratio")
    )
    with np.errstate(invalid="ignore"):  # of 0 times Inf
        update = ratio * weight
    a_look = steps / (len(reports) - 1)
    late = slice(len(reports) // 2, None)
    if not (np.isfinite(gradient).all() and np.isfinite(update).all()):
        return None
    further = np.abs(np.diff(weight[late], axis=0)) > 2 * a_look * update[late].max(0) + 1e-5 * weight[late][1:]
    if further.any():
        return None
    norms, gradients = (np.sqrt(np.square(of).sum(1)) for of in (update, gradient))
    rates = _rates(history)
    cut = False
    if rates.size:
        fallen = limits.FALLEN * rates[-1] < rates.max()
        of_a_rule = rates[-1] * min(gradients[-1], math.sqrt(size))  # SGD's, or that of signs
        cut = limits.FALLEN**2 * norms[-1] < of_a_rule
    else:
        # An update may fall with the gradient, and a part of it as that grows.
        parts = norms / np.maximum(gradients, 1e-30)
        fallen = norms[-1] == 0 or all(limits.FALLEN * of[-1] < of.max() for of in (norms, parts))
    return Updates(
        reach=float((gradient * update)[late].sum(1).mean()) * steps / 2 / start,
        pull=float(np.median((gradient * weight)[late].sum(1))) / start,
        ratio=float(np.median(ratio[late].max(1))),
        norm=float(norms[-1]),
        highest=float(norms.max()),
        gradient=float(gradients[-1]),
        rates=rates,
        fallen=bool(fallen),
        cut=bool(cut),
    )


def _rates(history: History) -> np.ndarray:
    """The learning rates of a history, of several groups the largest."""
    columns = [history[name] for name in history.names if name.startswith("learning_rate")]
    rates = np.max(columns, axis=0) if columns else np.array([])
    return rates if all(map(math.isfinite, rates)) else np.array([])

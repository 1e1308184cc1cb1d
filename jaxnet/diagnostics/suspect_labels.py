"""Labels that are probably wrong: two witnesses that learn in different ways both contradict them."""

from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import DataError

NEIGHBOURS = 15
"""Samples that vote. With 40 % of the labels wrong at random, 15 of 4 classes outvote the right one once in 100."""


def suspect_labels(x: Any, labels: Any, predicted: Any) -> np.ndarray:
    """Finds the samples whose label both a network and the sample's neighbours contradict, with the same class.

    A network that has not yet learned its samples by heart gets many wrong labels right (Arpit et al. 2017), but so
    it contradicts labels where it is merely too small. A vote of the nearest other samples errs elsewhere: where both
    agree on another class, the label is suspect. It needs data whose neighbours mostly share a class.

    Args:
      x: inputs, (samples, ...), floating point; features are standardized first.
      labels: integers, (samples,).
      predicted: the network's classes, (samples,).

    Returns:
      The suspect samples' indices, ascending.

    Raises:
      DataError: arrays of different lengths, or fewer than 16 samples.

    Example:
      >>> import numpy as np
      >>> from jaxnet import diagnostics
      >>> x = np.repeat([[0.0], [1.0]], 20, axis=0) + np.linspace(0, 0.1, 40)[:, None]
      >>> right = np.repeat([0, 1], 20)
      >>> given = right.copy()
      >>> given[3] = 1
      >>> diagnostics.suspect_labels(x, given, predicted=right)
      array([3])

    Source: after confident learning, Northcutt et al. 2021, arXiv 1911.00068, with neighbours as the second model.
    """
    who = "suspect_labels"
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    x = np.asarray(x, np.float32).reshape(len(labels), -1) if len(x) == len(labels) else np.empty((0, 0))
    if not len(x) == len(predicted) == len(labels) or len(labels) <= NEIGHBOURS:
        raise DataError(
            f"{who}: x, labels and predicted must be of one length above {NEIGHBOURS}, got {len(x)}, {len(labels)} and "
            f"{len(predicted)}"
        )
    checks.integer(who, "the smallest label", labels.min(), minimum=0)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    squares = (x * x).sum(1)
    votes = np.empty(len(x), labels.dtype)
    for first in range(0, len(x), 512):
        rows = slice(first, first + 512)
        distance = squares[None] - 2 * x[rows] @ x.T
        distance[np.arange(len(distance)), np.arange(first, first + len(distance))] = np.inf  # not its own witness
        near = labels[np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]]
        votes[rows] = [np.bincount(row).argmax() for row in near]
    return np.flatnonzero((votes == predicted) & (votes != labels))

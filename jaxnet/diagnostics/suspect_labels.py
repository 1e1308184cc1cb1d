"""Labels that are probably wrong: two witnesses that learn in different ways both contradict them."""

from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import DataError, named

NEIGHBOURS = 15
"""Samples that vote. With 40 % of the labels wrong at random, 15 of 4 classes outvote the right one once in 100."""

SKILL = 0.15
"""Share of the errors of always naming the commonest class that the network must avoid to be a witness. Of two equal
classes with 40 % of the labels wrong the best network avoids 20 %, of four 47 %."""

FEATURES = 4096
"""The most features by which neighbours are found, evenly spread; as many as `diagnose` looks at samples."""


@named("suspect_labels")
def suspect_labels(x: Any, labels: Any, predicted: Any) -> np.ndarray:
    """Finds the samples whose label both a network and the sample's neighbours contradict, with the same class.

    A network that has not yet learned its samples by heart gets many wrong labels right (Arpit et al. 2017), but so
    it contradicts labels where it is merely too small. A vote of the nearest other samples errs elsewhere: where both
    agree on another class, the label is suspect. It needs data whose neighbours mostly share a class. Classes that
    overlap look the same as wrong labels: look at the samples before any is dropped.

    Nothing is suspect if the network hardly beats always naming the commonest class, or if the suspects are more than
    half of a class: then a class is rare or hard, and not mislabelled.

    Args:
      x: inputs, (samples, ...), floating point; features are standardized first.
      labels: integers, (samples,).
      predicted: the network's classes, (samples,).

    Returns:
      The suspect samples' indices, integers (suspects,), ascending.

    Raises:
      DataError: arrays of different lengths, masked ones, or fewer than 16 samples.
      ConfigError: a label below 0, or one that is no integer.

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
    labels, predicted = checks.unmasked("labels", labels), checks.unmasked("predicted", predicted)
    x = checks.unmasked("x", x)
    x = x.reshape(len(labels), -1) if len(x) == len(labels) > 0 else np.empty((0, 1))
    x = x[:, :: -(-x.shape[1] // FEATURES)].astype(np.float32)
    if not len(x) == len(predicted) == len(labels) or len(labels) <= NEIGHBOURS:
        raise DataError(
            f"x, labels and predicted must be of one length above {NEIGHBOURS}, got {len(x)}, {len(labels)} and "
            f"{len(predicted)}"
        )
    checks.integer("the smallest label", labels.min(), minimum=0)
    commonest = np.bincount(labels).max() / len(labels)
    if np.mean(predicted != labels) > (1 - SKILL) * (1 - commonest):
        return np.array([], int)
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
    suspects = np.flatnonzero((votes == predicted) & (votes != labels))
    of_class = np.bincount(labels[suspects], minlength=labels.max() + 1)
    return suspects if (2 * of_class <= np.bincount(labels)).all() else np.array([], int)

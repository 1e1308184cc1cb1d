"""Whether anything simple tells targets from inputs: a sample's neighbours, and a straight line."""

import numpy as np

NEIGHBOURS = 5
"""Samples that vote."""

FEWEST = 45
"""Of fewer samples, what chance gives, 3 / sqrt(samples), hides what neighbours and lines explain."""

FEATURES = 1024
"""The most features that are looked at, evenly spread."""

SAMPLES = 2048
"""The most samples."""


def explained(x: np.ndarray, target: np.ndarray, classes: bool) -> tuple[float, float]:
    """The share of a constant prediction's squared error that neighbours avoid, and that a linear fit avoids.

    Neighbours are others than the sample, and the fit is made on one half and asked on the other. What chance gives
    is taken off: three standard errors.

    Args:
      x: (samples, ...).
      target: (samples, ...), or integer labels, (samples,), if ``classes``.
      classes: whether the targets are labels.
    """
    x = x[:SAMPLES].reshape(min(len(x), SAMPLES), -1)
    x = x[:, :: -(-x.shape[1] // FEATURES)].astype(np.float64)
    target = target[:SAMPLES]
    y = (target[:, None] == np.unique(target)).astype(np.float64) if classes else target.reshape(len(x), -1)
    y = y.astype(np.float64)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    chance = 3 / np.sqrt(len(x))
    squares = (x * x).sum(1)
    distance = squares[:, None] + squares[None] - 2 * x @ x.T
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    total = np.square(y - y.mean(0)).sum()
    others = (y.sum(0) - y) / (len(y) - 1)  # without the sample, or its own mean would tell against it
    agree = ((y - others) * (y[near].mean(1) - others)).sum() / max(total, 1e-300)
    half = len(x) // 2
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    ridge = 0.1 * half * np.eye(ones.shape[1])
    fit = np.linalg.solve(ones[:half].T @ ones[:half] + ridge, ones[:half].T @ (y[:half] - y[:half].mean(0)))
    told, rest = ones[half:] @ fit, y[half:] - y[:half].mean(0)
    line = (told * rest).sum() / np.sqrt(max((told * told).sum() * (rest * rest).sum(), 1e-300))
    return float(agree - chance), float(line * abs(line) - (chance * np.sqrt(2)) ** 2)

"""Data with a fault in them."""

import numpy as np

from benchmarks.diagnosis.real import Arrays, standardized
from benchmarks.diagnosis.sound import on


def shuffled(data: tuple[Arrays, Arrays]) -> dict[str, Arrays]:
    """Targets in another order than their inputs."""
    random = np.random.default_rng(1)
    return {
        name: (x, y[random.permutation(len(y))])
        for name, (x, y) in zip(("train", "validation"), data, strict=True)
    }  # fmt: skip


def sorted_by_label(name: str) -> dict[str, Arrays]:
    """A table sorted by its targets, and split at the end."""
    (x, y), (held_x, held_y) = standardized(name)
    x, y = np.concatenate([x, held_x]), np.concatenate([y, held_y])
    order = np.argsort(y, kind="stable")
    x, y, kept = x[order], y[order], len(x) * 7 // 10
    return {"train": (x[:kept], y[:kept]), "validation": (x[kept:], y[kept:])}


def standardized_by_hand(data: tuple[Arrays, Arrays]) -> dict[str, Arrays]:
    """Features divided by their deviation, where it is 0 too."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return on(data, x=lambda x: (x - x.mean(0)) / x.std(0))


def some_missing(data: tuple[Arrays, Arrays]) -> dict[str, Arrays]:
    """Three values of one feature are NaN."""
    (x, y), held_out = data
    x = x.copy()
    x[[3, 40, 77], 5] = np.nan
    return {"train": (x, y), "validation": held_out}


def log_of_zero(data: tuple[Arrays, Arrays]) -> dict[str, Arrays]:
    """With the logarithms of three features, which are minus infinity of 0."""
    with np.errstate(divide="ignore"):
        return on(data, x=lambda x: np.concatenate([x, np.log(np.maximum(x[:, :3], 0).round(1))], 1))

"""The data of the programs: scikit-learn's that need no download, and two series of the UCR archive in aeon's wheel."""

import functools
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


@functools.cache
def tables(name: str) -> tuple[Arrays, Arrays]:
    """Training and validation set of "digits", "iris", "wine", "cancer" or "diabetes", in the units that it comes in.

    Every fourth sample of a fixed random order is of validation. Images lie flat. Labels are int32, targets of a
    regression (samples, 1).
    """
    from sklearn import datasets

    load: Any = {
        "digits": datasets.load_digits, "iris": datasets.load_iris, "wine": datasets.load_wine,
        "cancer": datasets.load_breast_cancer, "diabetes": functools.partial(datasets.load_diabetes, scaled=False),
    }[name]  # fmt: skip
    x, y = load(return_X_y=True)
    y = y.astype(np.float32)[:, None] if name == "diabetes" else y.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    held_out, kept = order[::4], np.delete(order, np.s_[::4])
    x = x.astype(np.float32)
    return (x[kept], y[kept]), (x[held_out], y[held_out])


@functools.cache
def series(name: str) -> tuple[Arrays, Arrays]:
    """Both parts of "ItalyPowerDemand" or "OSULeaf": (samples, time, 1), and classes."""
    from benchmarks.training.problems import _read

    train, test = (_read(f"{name}/{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    return train, test


@functools.cache
def standardized(name: str) -> tuple[Arrays, Arrays]:
    """A table with every feature, and every target of a regression, of mean 0 and deviation 1."""
    (x, y), (held_x, held_y) = tables(name)

    def scaled(values, by):
        deviation = by.std(0)
        return (values - by.mean(0)) / np.where(deviation > 0, deviation, 1)

    if y.dtype == np.float32:
        y, held_y = scaled(y, y), scaled(held_y, y)
    return (scaled(x, x), y), (scaled(held_x, x), held_y)

"""What is trained: real data, and networks as data, from which every library builds its own layers."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnet import data

Weights = dict[str, dict[str, np.ndarray]]
"""Name of a layer -> its leaves, in our own names and layout."""

RATE = 1e-3
"""Adam's learning rate, everywhere."""


class Dense(NamedTuple):
    """A dense layer, whose input is ``positions`` x ``channels`` numbers, flattened in this order."""

    name: str
    channels: int
    units: int
    positions: int = 1


class Conv(NamedTuple):
    """A convolution of an odd size that keeps the length."""

    name: str
    channels: int
    filters: int
    size: int


class BatchNorm(NamedTuple):
    """Batch normalization, the old average weighing 0.9."""

    name: str
    channels: int


class Relu(NamedTuple):
    """max(x, 0)."""


class Pool(NamedTuple):
    """The means of windows of ``size`` positions."""

    size: int


class Mean(NamedTuple):
    """The mean over all positions."""


class Flatten(NamedTuple):
    """All numbers of an example in one axis."""


class Residual(NamedTuple):
    """branch(x) + x."""

    branch: "Parts"


Part = Dense | Conv | BatchNorm | Relu | Pool | Mean | Flatten | Residual
Parts = tuple[Part, ...]
Arrays = tuple[np.ndarray, np.ndarray]


class Problem(NamedTuple):
    """A network, what it is trained on, and what it is tested on.

    Attributes:
      name: of the problem.
      parts: the network, from x to logits.
      batch_size: examples a step.
      train: x, float32 (examples, features) or (examples, length, channels), and labels, int32.
      held_out: the same, to measure the accuracy on.
      goal: the accuracy to reach.
      seed: of the first weights and of the order of examples.
    """

    name: str
    parts: Parts
    batch_size: int
    train: Arrays
    held_out: Arrays
    goal: float
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps an epoch; what does not fill a batch is left out, other samples each epoch."""
        return len(self.train[0]) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The samples of each batch of an epoch, int32 ``(steps, batch_size)``: those that `fit` draws."""
        order = data.epoch_order(len(self.train[0]), seed=self.seed, epoch=epoch)
        return order[: self.steps * self.batch_size].reshape(self.steps, self.batch_size).astype(np.int32)

    def weights(self) -> Weights:
        """The weights that every library starts from."""
        return initial_weights(self.parts, self.seed)

    def one_step(self) -> "Problem":
        """The same with one batch of data, so that an epoch is one step."""
        return self._replace(train=(self.train[0][: self.batch_size], self.train[1][: self.batch_size]))


def forward(parts: Parts, x: Any, layer: Callable[[Any, Any], Any]) -> Any:
    """Runs a network, each part but the residual ones with ``layer(part, x)``."""
    for part in parts:
        x = forward(part.branch, x, layer) + x if isinstance(part, Residual) else layer(part, x)
    return x


def named(parts: Parts) -> Iterator[Dense | Conv | BatchNorm]:
    """The parts that have weights, in the order of computation."""
    for part in parts:
        if isinstance(part, Residual):
            yield from named(part.branch)
        elif isinstance(part, (Dense, Conv, BatchNorm)):
            yield part


def initial_weights(parts: Parts, seed: int) -> Weights:
    """He's normal kernels, biases of 0."""
    rng = np.random.default_rng(seed)

    def draw(part):
        if isinstance(part, BatchNorm):
            return {"scale": np.ones(part.channels, np.float32), "offset": np.zeros(part.channels, np.float32)}
        if isinstance(part, Dense):
            shape = (part.positions * part.channels, part.units)
        else:
            shape = (part.size, part.channels, part.filters)
        kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}

    return {part.name: draw(part) for part in named(parts)}


def digits_mlp() -> Problem:
    """scikit-learn's digits, 64 -> 128 -> 128 -> 10."""
    parts = (
        Dense("first", 64, 128), Relu(), Dense("second", 128, 128), Relu(), Dense("last", 128, 10),
    )  # fmt: skip
    train, held_out = _digits(rows=False)
    return Problem("digits MLP", parts, 64, train, held_out, 0.97)


def digits_conv() -> Problem:
    """The digits' rows in time and columns as channels: the network of examples/digits.py, without its dropout."""

    def block(i, channels):
        return (Conv(f"conv{i}", channels, 64, 3), BatchNorm(f"norm{i}", 64), Relu())

    parts = (
        *block(0, 8), Residual(block(1, 64)), Residual(block(2, 64)), Pool(2), Flatten(), Dense("last", 64, 10, 4),
    )  # fmt: skip
    train, held_out = _digits(rows=True)
    return Problem("digits conv", parts, 64, train, held_out, 0.98)


def italy_power_demand() -> Problem:
    """Days of Italy's electrical power demand, 24 hours each: winter or summer. 67 to train, 1,029 to test."""
    return _series("ItalyPowerDemand", 0.95)


def osu_leaf() -> Problem:
    """Outlines of the leaves of six kinds of trees, 427 points each. 200 to train, 242 to test."""
    return _series("OSULeaf", 0.9)


PROBLEMS: dict[str, tuple[Callable[[], Problem], str]] = {
    "digits-mlp": (digits_mlp, "sklearn"),
    "digits-conv": (digits_conv, "sklearn"),
    "italy": (italy_power_demand, "aeon"),
    "osuleaf": (osu_leaf, "aeon"),
}
"""Name on the command line -> the function that makes the problem, and the package that brings its data."""


def load(names: list[str]) -> tuple[dict[str, Problem], list[str]]:
    """The problems whose data are here, and why the others are not."""
    found, missing = {}, []
    for name in names:
        make, package = PROBLEMS[name]
        if importlib.util.find_spec(package):
            found[name] = make()
        else:
            missing.append(f"{name}: its data are in {package}, which is not installed")
    return found, missing


def _digits(*, rows: bool) -> tuple[Arrays, Arrays]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape((-1, 8, 8) if rows else (-1, 64)) / 8 - 1).astype(np.float32)  # 0..16 to -1..1
    train, validation, _ = data.split(images, labels.astype(np.int32), seed=0, stratify=labels)
    return tuple(train), tuple(validation)


def _series(name: str, goal: float) -> Problem:
    train, test = (_read(f"{name}/{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    return Problem(name, _cnn(int(train[1].max()) + 1), 16, train, test, goal)


def _cnn(classes: int) -> Parts:
    """Three convolutions and a mean over time: the fully convolutional network of Wang et al. 2017, narrower."""
    parts: list[Part] = []
    channels = 1
    for i, (filters, size) in enumerate([(32, 7), (64, 5), (64, 3)]):
        parts += [Conv(f"conv{i}", channels, filters, size), BatchNorm(f"norm{i}", filters), Relu()]
        channels = filters
    return (*parts, Mean(), Dense("last", channels, classes))


def _read(file: str) -> Arrays:
    """One part of a data set of the UCR archive, from the wheel of aeon, without importing it (and numba, pandas...).

    A line is a series and its class: ``0.1,0.2,...:1``.
    """
    spec = importlib.util.find_spec("aeon")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "datasets" / "data" / file).read_text()
    examples = [line.split(":") for line in text.splitlines() if line and line[0] not in "#@"]
    x = np.array([series.split(",") for series, _ in examples], np.float32)[:, :, None]
    return x, np.array([int(label) - 1 for _, label in examples], np.int32)


class Epoch(NamedTuple):
    """What an epoch gave: the mean loss of its steps, and the accuracy on the held-out examples, if asked for."""

    loss: float
    accuracy: float | None


Contestant = Callable[[int], Epoch]
"""Trains for so many more epochs, and returns the last. The first call compiles."""


def channels_first(part: Dense, kernel: np.ndarray) -> np.ndarray:
    """A dense kernel for inputs that were flattened channels first."""
    return kernel.reshape(part.positions, part.channels, -1).swapaxes(0, 1).reshape(kernel.shape)


def laid_out(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """Signals channels last, as ours are, or first."""
    return x if channels_last or x.ndim < 3 else np.ascontiguousarray(x.swapaxes(1, 2))

"""What is trained, as data: the same records build our network and PyTorch's."""

from typing import NamedTuple

import numpy as np

EDGE = 28


class Conv(NamedTuple):
    """A square convolution without a bias; a stride divides the size of the image by that, and 1 keeps it."""

    filters: int
    channels: int
    size: int = 3
    stride: int = 1

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return (self.size - self.stride + 1) // 2


class BatchNorm(NamedTuple):
    channels: int


class Relu(NamedTuple):
    pass


class Patches(NamedTuple):
    """Squares of an image with one channel, side by side, each as one position with its pixels as channels."""

    size: int


class MaxPool(NamedTuple):
    size: int


class Flatten(NamedTuple):
    pass


class Dense(NamedTuple):
    units: int
    inputs: int


class Residual(NamedTuple):
    """x + branch(x)."""

    branch: tuple["Part", ...]


class Scale(NamedTuple):
    """The logits times a constant."""

    factor: float


Part = Conv | BatchNorm | Relu | Patches | MaxPool | Flatten | Dense | Residual | Scale
Parts = tuple[Part, ...]


class Recipe(NamedTuple):
    """A network and all of its training.

    Attributes:
      parts: the network.
      rate: the peak of the learning rate: it rises from a fifth of it in a straight line, and falls to 0 in another.
      epochs: how long.
      batch_size: images a step; what does not fill a batch is left for the next epoch.
      evaluations: an epoch: how often the clock stops to look at the test images.
      optimizer: "sgd", with Nesterov's momentum, or "adam".
      rise: the share of the steps in which the rate rises; None for a rate that never changes.
      momentum: of sgd.
      decay: the weight decay, of all parameters; added to the gradient.
      smoothing: of the labels.
      shift: crops are moved by up to so many pixels, in both directions.
      flip: whether images are mirrored every other epoch, half of them first in the first.
      views: evaluate each test image as it is (1), or as the mean of the logits of it and of its mirror image (2).
      average: the decay a step of a moving average of the weights, which is what is evaluated then; 0 for none.
    """

    parts: Parts
    rate: float
    epochs: float
    batch_size: int = 1000
    evaluations: int = 1
    optimizer: str = "sgd"
    rise: float | None = 0.2
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    views: int = 1
    average: float = 0.0

    def chunk(self, images: int) -> int:
        """Steps between two evaluations."""
        return images // self.batch_size // self.evaluations

    def chunks(self) -> int:
        """How many of them there are."""
        return max(1, round(self.epochs * self.evaluations))

    def rates(self, steps: int) -> np.ndarray:
        """The learning rate of each step."""
        at = np.arange(steps)
        if self.rise is None:
            return np.full(steps, self.rate, np.float32)
        top = self.rise * steps
        return (self.rate * np.interp(at, [0, top, steps], [0.2, 1.0, 0.0])).astype(np.float32)


def block(channels: int, filters: int) -> Parts:
    """Two convolutions, and half the size."""
    first = (Conv(filters, channels), MaxPool(2), BatchNorm(filters), Relu())
    return (*first, Conv(filters, filters), BatchNorm(filters), Relu())


def pools(stem: int, widths: tuple[int, int, int]) -> Parts:
    """Three blocks after a stem: 28, 14, 7, 3 pixels."""
    a, b, c = widths
    first = (Conv(stem, 1), BatchNorm(stem), Relu())
    return (*first, *block(stem, a), *block(a, b), *block(b, c), MaxPool(3), Flatten(), Dense(10, c), Scale(1 / 8))


def resnet9(a: int, b: int, c: int) -> Parts:
    """As in "How to train your ResNet": two of three stages have a residual block."""

    def stage(channels, filters):
        return (Conv(filters, channels), MaxPool(2), BatchNorm(filters), Relu())

    def residual(n):
        return Residual((Conv(n, n), BatchNorm(n), Relu()) * 2)

    stem = (Conv(a // 2, 1), BatchNorm(a // 2), Relu())
    trunk = (*stage(a // 2, a), residual(a), *stage(a, b), *stage(b, c), residual(c))
    return (*stem, *trunk, MaxPool(3), Flatten(), Dense(10, c), Scale(1 / 8))


def of_patches(features: int, units: int) -> Parts:
    """The same product for each of 49 patches, then a dense layer over all: matrix products alone."""
    first = (Patches(4), Conv(features, 16, 1), Relu(), Flatten())
    return (*first, Dense(units, 49 * features), Relu(), Dense(10, units))


MLP: Parts = (Flatten(), Dense(256, EDGE**2), Relu(), Dense(10, 256))
PLAIN: Parts = (
    *(Conv(32, 1), Relu(), MaxPool(2), Conv(64, 32), Relu(), MaxPool(2)),
    *(Flatten(), Dense(128, 49 * 64), Relu(), Dense(10, 128)),
)
AUGMENTED = {"shift": 2, "flip": True, "views": 2, "smoothing": 0.1, "decay": 1e-3}

RECIPES: dict[str, Recipe] = {
    "90": Recipe(of_patches(64, 128), rate=3e-3, epochs=4, batch_size=128, evaluations=2, optimizer="adam", decay=0.0),
    "94": Recipe(pools(32, (64, 256, 256)), rate=0.8, epochs=10, **AUGMENTED),
    "94 narrow": Recipe(pools(32, (64, 128, 128)), rate=0.8, epochs=12, **AUGMENTED),
    "94 wide": Recipe(pools(32, (128, 384, 512)), rate=0.8, epochs=8, **AUGMENTED),
    "94 ResNet-9": Recipe(resnet9(64, 128, 256), rate=0.8, epochs=10, **AUGMENTED),
    "MLP": Recipe(MLP, rate=1e-3, epochs=10, batch_size=120, optimizer="adam", rise=None, decay=0.0),
    "plain CNN": Recipe(PLAIN, rate=1e-3, epochs=8, batch_size=120, optimizer="adam", rise=None, decay=0.0),
}
"""By the target, in percent, that they are made for; and the simple ones beside."""

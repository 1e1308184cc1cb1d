"""Fashion-MNIST as its Debian package has it: four gzipped idx files."""

import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""Where ``apt install dataset-fashion-mnist`` puts it."""
MEAN, DEVIATION = 72.94, 90.02
"""Of the training images' pixels, 0 to 255."""
HOW = f"""\
On Debian and Ubuntu, without rights of the administrator:
  apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion-mnist
  python -m benchmarks speedrun --data fashion-mnist
or `apt install dataset-fashion-mnist`, which needs no --data: it is looked for in {INSTALLED}."""


class Images(NamedTuple):
    """The data set, on the host.

    Attributes:
      train: (60000, 28, 28), uint8.
      train_labels: (60000,), int32, from 0 to 9.
      test: (10000, 28, 28), uint8.
      test_labels: (10000,), int32.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load(directory: Path | None = None) -> Images:
    """Reads the four files, wherever they lie below ``directory``.

    Raises:
      SystemExit: one of them is not there; says how to get them.
    """
    directory = directory or INSTALLED

    def one(name):
        found = sorted(directory.rglob(name))
        if not found:
            raise SystemExit(f"there is no {name} below {directory}.\n{HOW}")
        return read_idx(found[0])

    train, test = one("train-images-idx3-ubyte.gz"), one("t10k-images-idx3-ubyte.gz")
    labels = [one(f"{part}-labels-idx1-ubyte.gz").astype(np.int32) for part in ("train", "t10k")]
    return Images(train, labels[0], test, labels[1])


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes: 0, 0, 8 (for uint8), the number of axes; each axis as a big-endian int32; the values.

    Raises:
      ValueError: it is no such file, or has another length than it says.
    """
    content = gzip.decompress(path.read_bytes())
    axes = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">i4", axes, 4) if len(content) >= 4 * (1 + axes) else ()
    values = content[4 * (1 + axes) :]
    if not axes or math.prod(shape) != len(values):
        raise ValueError(f"{path} is no idx file of bytes: its header says the shape {tuple(map(int, shape))}")
    return np.frombuffer(values, np.uint8).reshape(shape)

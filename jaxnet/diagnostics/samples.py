"""Data as they are given to a diagnosis: unchecked, since what is wrong with them is a finding."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet import data as data_module
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.errors import DataError
from jaxnet.training.step import pair


class Samples(NamedTuple):
    """The finite ones of some samples, on the host, in a random order.

    Attributes:
      pair: ``(x, target)``.
      numbers: the caller's numbers of these.
      bad: the numbers of those that hold NaN or Inf.
    """

    pair: Any
    numbers: np.ndarray
    bad: np.ndarray

    def part(self, which: slice) -> "Samples":
        """Some of the samples."""
        return Samples(jax.tree.map(lambda leaf: leaf[which], self.pair), self.numbers[which], np.array([], int))


def usable(data: Any, which: str = "") -> Samples:
    """Sorts out what is not finite.

    Raises:
      DataError: arrays of different lengths, or fewer than four finite samples.
    """
    leaves, treedef = jax.tree.flatten(pair(data))
    leaves = [checks.host_array("data", np.asarray(incoming.host("data", leaf))) for leaf in leaves]
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if len(lengths) != 1:
        raise DataError(f"x and target must hold one entry a sample, got lengths {sorted(lengths)}")
    finite = np.ones(lengths.pop(), bool)
    for leaf in filter(is_floating, leaves):
        finite &= np.isfinite(leaf.astype(np.float32)).reshape(len(leaf), -1).all(1)
    numbers = data_module.epoch_order(len(finite))
    numbers = numbers[finite[numbers]]
    if len(numbers) < 4:
        raise DataError(f"at least four samples{which} without NaN or Inf are needed, got {len(numbers)}")
    return Samples(jax.tree.unflatten(treedef, [leaf[numbers] for leaf in leaves]), numbers, np.flatnonzero(~finite))

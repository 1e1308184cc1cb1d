"""Data as they are given to a diagnosis: unchecked, since what is wrong with them is a finding."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet import data as data_module
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.refusals import gathered, refused, said, without_samples
from jaxnet.diagnostics.verdict import remedy
from jaxnet.errors import DataError, JaxnetError
from jaxnet.training.step import pair

MOST = 8192
"""The most samples that are taken from an iterable of batches."""


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
    """Sorts out what is not finite; of an iterable of batches, the first samples.

    Raises:
      Refusal: what are no arrays, arrays of different lengths, or fewer than four finite samples.
    """
    try:
        leaves, treedef = jax.tree.flatten(pair(gathered(data, MOST)))
        leaves = [checks.host_array("data", np.asarray(incoming.host("data", leaf))) for leaf in leaves]
    except JaxnetError as error:
        if isinstance(error, DataError) and "empty" in str(error):
            raise without_samples(0, 0, which, np.array([])) from error
        raise refused(
            "wrong_input", f"the data{which} cannot be read: {said(error)}", "They are no arrays of numbers",
            remedy("as_arrays", how="a pair (x, target) of arrays, or an iterable of such batches"),
        ) from error  # fmt: skip
    lengths = [len(leaf) if leaf.ndim else 0 for leaf in leaves]
    if len(set(lengths)) != 1:
        raise refused(
            "wrong_target", f"the arrays of x and target{which} hold {', '.join(map(str, lengths))} samples",
            "One of them was cut, split or read otherwise than the other",
            remedy("as_arrays", how="x and target with one entry a sample each, in the same order"),
        )  # fmt: skip
    finite, bad_columns = np.ones(lengths[0], bool), np.array([], int)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        fine = np.isfinite(leaf.astype(np.float32) if is_floating(leaf) else leaf).reshape(len(leaf), -1)
        finite &= fine.all(1)
        if leaf is leaves[0] and leaf.ndim == 2:
            bad_columns = np.flatnonzero(~fine.any(0))
    numbers = data_module.epoch_order(len(finite)) if len(finite) else np.array([], int)
    numbers = numbers[finite[numbers]]
    if len(numbers) < 4:
        raise without_samples(len(numbers), len(finite), which, bad_columns)
    return Samples(jax.tree.unflatten(treedef, [leaf[numbers] for leaf in leaves]), numbers, np.flatnonzero(~finite))

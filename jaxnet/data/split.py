"""Samples in parts, none twice and none lost: to train, to validate and to test; and folds that take turns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.data._usable import Arrays, columns_of, generator_of
from jaxnet.errors import ConfigError, DataError, named


@named("split")
def split(
    *arrays: Any,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    stratify: Any = None,
    groups: Any = None,
) -> tuple[Arrays, ...]:
    """Splits samples at random into a set to train, one to validate and one to test: none twice, none lost.

    Sizes are rounded to whole samples by largest remainder, and every part with a fraction above 0 gets at least one.
    Groups are not cut: the largest are placed first, each where most is missing, so that sizes come as near to the
    fractions as the groups allow.

    Args:
      *arrays: one or more arrays with one entry a sample on the first axis; all are split alike. Or an integer, the
        number of samples: then the parts are their indices.
      fractions: the share of each part, summing to 1; any number of parts.
      seed: integer from 0 to 2**64 - 1.
      stratify: a class a sample, of shape (samples,), numbers or words: each part gets its share of every class, to
        within one sample (of parts whose fraction is worth at least one); with groups, as nearly as they allow.
      groups: a group a sample, such as the speaker or the patient, of shape (samples,): no group is in two parts.

    Returns:
      One entry a part: an array if one was given, else a tuple of arrays in the order given; of a number, int64
      indices.

    Raises:
      ConfigError: fractions that are negative or do not sum to 1, or a bad seed.
      DataError: no samples, fewer samples or groups than parts, or arrays of different lengths.
      DTypeError: something that is no numeric array.

    Example:
      >>> import numpy as np
      >>> from jaxnet import data
      >>> train, validation, test = data.split(np.arange(100))
      >>> len(train), len(validation), len(test)
      (70, 10, 20)
      >>> speakers = ["ann", "bob", "cy", "dee"] * 5
      >>> train, test = data.split(20, fractions=(0.75, 0.25), groups=speakers)
      >>> {speakers[i] for i in train} & {speakers[i] for i in test}
      set()

    Source: chapter 4.6.1.
    """
    columns = columns_of(arrays, call="split") if not _is_count(arrays) else [_indices(arrays[0])]
    if not isinstance(fractions, Sequence):
        raise ConfigError(f"fractions must be a sequence, one share a part, got {words.came(fractions)}")
    shares = [checks.number("fractions", f, low=0, high=1) for f in fractions]
    if not shares or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"fractions must sum to 1, got {tuple(fractions)} with sum {sum(shares):g}")
    parts = _parts(len(columns[0]), shares, seed, stratify, groups)
    picked = [tuple(column[part] for column in columns) for part in parts]
    return tuple(part if len(columns) > 1 else part[0] for part in picked)


@named("kfold")
def kfold(
    samples: int, k: int = 5, *, seed: int = 0, stratify: Any = None, groups: Any = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits samples at random into k folds, each of which validates once while the others train.

    Args:
      samples: how many there are.
      k: folds, at least 2; their sizes differ by one sample at most, unless groups make them.
      seed: integer from 0 to 2**64 - 1.
      stratify: as of `split`.
      groups: as of `split`; at least k of them.

    Returns:
      k pairs of sorted int64 indices, ``(train, validation)``.

    Raises:
      ConfigError: fewer than 2 folds, or a bad seed.
      DataError: fewer samples or groups than folds, or not one class or group a sample.

    Example:
      >>> from jaxnet import data
      >>> for train, validation in data.kfold(5, 2):
      ...     print(len(train), len(validation))
      2 3
      3 2

    Source: chapter 4.6.1.
    """
    samples, k = checks.integer("samples", samples, minimum=1), checks.integer("k", k, minimum=2)
    folds = [np.sort(fold) for fold in _parts(samples, [1 / k] * k, seed, stratify, groups)]
    return [(np.sort(np.concatenate(folds[:i] + folds[i + 1 :])), fold) for i, fold in enumerate(folds)]


def _is_count(arrays: Sequence[Any]) -> bool:
    return len(arrays) == 1 and isinstance(arrays[0], (int, np.integer)) and not isinstance(arrays[0], bool)


def _indices(samples: Any) -> np.ndarray:
    return np.arange(checks.integer("the number of samples", samples, minimum=1))


def _parts(samples: int, shares: list[float], seed: int, stratify: Any, groups: Any) -> list[np.ndarray]:
    """The indices of the samples in each part."""
    generator = generator_of(seed)
    filled = sum(share > 0 for share in shares)
    if samples < filled:
        raise DataError(f"{samples} samples cannot fill {filled} parts; give fewer parts")
    classes = None if stratify is None else _codes("stratify", stratify, samples)
    if groups is not None:
        return _grouped(generator, _codes("groups", groups, samples), classes, shares)
    if classes is not None:
        return _stratified(generator, classes, shares)
    return np.split(generator.permutation(samples), np.cumsum(_apportion(samples, shares))[:-1])


def _codes(name: str, given: Any, samples: int) -> np.ndarray:
    """Numbers from 0 for what stands for each sample, a class or a group."""
    values = checks.unmasked(name, np.asanyarray(given))
    if values.shape != (samples,):
        what = "class" if name == "stratify" else "group"
        raise DataError(f"{name} must have one {what} a sample, shape ({samples},), got {values.shape}")
    each = np.asarray(given, object)  # in a list of words, NumPy would make a word of NaN
    try:
        codes, gaps = np.unique(values, return_inverse=True)[1], np.flatnonzero(each != each)
    except TypeError as error:
        raise DataError(f"{name} must hold numbers or words, one kind without gaps ({error})") from None
    if gaps.size:
        raise DataError(f"{name} has a gap, {each[gaps[0]]} at index {gaps[0]}; fill it, or drop that sample")
    return codes


def _apportion(n: int, shares: Sequence[float]) -> np.ndarray:
    """Whole numbers in proportion to ``shares`` with sum n, by largest remainder; none 0 whose share is not."""
    exact = n * np.asarray(shares)
    counts = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[i] += 1
    for i in np.flatnonzero((counts == 0) & (exact > 0)):
        counts[counts.argmax()] -= 1
        counts[i] = 1
    return counts


def _stratified(generator: np.random.Generator, classes: np.ndarray, shares: Sequence[float]) -> list[np.ndarray]:
    """Rounds the table of exact counts, class by part, so that both classes and parts keep their sizes."""
    sizes = np.bincount(classes)
    exact = np.outer(sizes, shares)
    table = np.floor(exact + 1e-9).astype(int)
    missing = _apportion(len(classes), shares) - table.sum(0)
    for c in generator.permutation(len(sizes)):
        # What is left of a class goes, one sample each, to the parts that miss most (Gale and Ryser's construction).
        left = sizes[c] - table[c].sum()
        parts = np.lexsort((table[c] - exact[c], -missing))[:left]
        table[c, parts] += 1
        missing[parts] -= 1
    while missing.any():  # only where a part was given its one sample
        full, short = missing.argmin(), missing.argmax()
        c = np.where(table[:, full] > 0, table[:, full] - exact[:, full], -np.inf).argmax()
        table[c, full] -= 1
        table[c, short] += 1
        missing[full] += 1
        missing[short] -= 1
    shuffled = generator.permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    part = np.repeat(np.tile(np.arange(len(shares)), len(sizes)), table.ravel())
    return [generator.permutation(by_class[part == k]) for k in range(len(shares))]


def _grouped(
    generator: np.random.Generator, groups: np.ndarray, classes: np.ndarray | None, shares: list[float]
) -> list[np.ndarray]:
    """Places whole groups, the largest first, each where most is missing of what it holds, class by class."""
    classes = np.zeros_like(groups) if classes is None else classes
    table = np.zeros((groups.max() + 1, classes.max() + 1))
    np.add.at(table, (groups, classes), 1)
    filled = [part for part, share in enumerate(shares) if share > 0]
    if len(table) < len(filled):
        raise DataError(f"{len(table)} groups cannot fill {len(filled)} parts; give fewer parts")
    missing = np.outer(shares, table.sum(0))
    held = table / table.sum(0)  # so that a rare class weighs as much as a common one
    order = generator.permutation(len(table))
    part_of, empty = np.empty(len(table), int), set(filled)
    for left, group in enumerate(order[np.argsort(-table[order].sum(1), kind="stable")]):
        among = sorted(empty) if len(table) - left == len(empty) else filled
        part = among[int(np.argmax(missing[among] @ held[group]))]
        missing[part] -= table[group]
        part_of[group] = part
        empty.discard(part)
    parts = part_of[groups]
    return [generator.permutation(np.flatnonzero(parts == part)) for part in range(len(shares))]

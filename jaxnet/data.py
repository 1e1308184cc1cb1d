"""Data on the host (4.6.1): a split into three sets, and batches of one of them.

Order is drawn by NumPy's Philox generator from an integer seed, so the same seed gives the same split and the same
batches with every version of JAX, on every device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet.errors import ConfigError, DataError, DTypeError, named

Arrays = np.ndarray | tuple[np.ndarray, ...]
"""One array, or several whose first axes count the same samples."""


@named("split")
def split(
    *arrays: Any,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    stratify: Any = None,
) -> tuple[Arrays, ...]:
    """Splits samples at random into a set to train, one to validate and one to test: none twice, none lost.

    Sizes are rounded to whole samples by largest remainder, and every part with a fraction above 0 gets at least one.

    Args:
      *arrays: one or more arrays with one entry a sample on the first axis; all are split alike.
      fractions: the share of each part, summing to 1; any number of parts.
      seed: integer from 0 to 2**64 - 1.
      stratify: a class a sample, of shape (samples,): each part gets its share of every class, to within one sample
        (of parts whose fraction is worth at least one).

    Returns:
      One entry a part: an array if one was given, else a tuple of arrays in the order given.

    Raises:
      ConfigError: fractions that are negative or do not sum to 1, or a bad seed.
      DataError: no samples, fewer than parts, or arrays of different lengths.
      DTypeError: something that is no numeric array.

    Example:
      >>> import numpy as np
      >>> from jaxnet import data
      >>> train, validation, test = data.split(np.arange(100))
      >>> len(train), len(validation), len(test)
      (70, 10, 20)

    Source: chapter 4.6.1.
    """
    columns = _columns(arrays, call="split")
    if not isinstance(fractions, Sequence):
        raise ConfigError(f"fractions must be a sequence, one share a part, got {fractions!r}")
    shares = [checks.number("fractions", f, low=0, high=1) for f in fractions]
    if not shares or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"fractions must sum to 1, got {tuple(fractions)} with sum {sum(shares):g}")
    generator = _generator(seed)
    n = len(columns[0])
    if n < sum(share > 0 for share in shares):
        raise DataError(f"{n} samples cannot fill {sum(share > 0 for share in shares)} parts; give fewer parts")
    if stratify is None:
        bounds = np.cumsum(_apportion(n, shares))[:-1]
        parts = np.split(generator.permutation(n), bounds)
    else:
        (classes,) = _columns((stratify,), ("stratify",))
        if classes.shape != (n,):
            raise DataError(f"stratify must have one class a sample, shape ({n},), got {classes.shape}")
        parts = _stratified(generator, classes, shares)
    picked = [tuple(column[part] for column in columns) for part in parts]
    return tuple(part if len(columns) > 1 else part[0] for part in picked)


@named("batches")
def batches(
    *arrays: Any,
    batch_size: int,
    seed: int = 0,
    epochs: int = 1,
    first_epoch: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    replacement: bool = False,
) -> Iterator[Arrays]:
    """Yields batches, every sample once an epoch in a new order (Algorithm 2's Sample).

    All checks are made at the call, before the first batch. The order of epoch e depends on ``seed`` and e alone, so
    ``first_epoch`` takes up a run where it was left.

    Args:
      *arrays: one or more arrays with one entry a sample on the first axis; a batch takes the same samples of each.
      batch_size: B, samples a batch.
      seed: integer from 0 to 2**64 - 1.
      epochs: how often to go through the samples.
      first_epoch: number of the first of these epochs.
      shuffle: draw a new order each epoch; else keep the one given.
      drop_last: drop the last batch of an epoch if it is smaller; else yield it.
      replacement: draw each sample of an epoch independently, so that some come twice and some not at all.

    Returns:
      An iterator over batches: an array if one was given, else a tuple of arrays in the order given.

    Raises:
      ConfigError: sizes below 1, a bad seed, or ``replacement`` without ``shuffle``.
      DataError: no samples, arrays of different lengths, a NaN or an Inf, or a batch larger than all samples that
        would be dropped.
      DTypeError: something that is no numeric array.

    Warns:
      UserWarning: 64-bit floats while 64-bit types are disabled, which are rounded to 32.

    Example:
      >>> import numpy as np
      >>> from jaxnet import data
      >>> [len(x) for x in data.batches(np.arange(10), batch_size=4)]
      [4, 4, 2]

    Source: chapter 4.4.1, algorithm 2; 4.6.1.
    """
    columns = _columns(arrays, call="batches")
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    epochs = checks.integer("epochs", epochs, minimum=1)
    first_epoch = checks.integer("first_epoch", first_epoch, minimum=0)
    _generator(seed)
    for name, value in (("shuffle", shuffle), ("drop_last", drop_last), ("replacement", replacement)):
        checks.flag(name, value)
    if replacement and not shuffle:
        raise ConfigError("replacement draws samples at random, so shuffle must be True")
    n = len(columns[0])
    if drop_last:
        must_fill(batch_size, n, ", or drop_last=False")
    columns = usable(columns)
    stop = n - n % batch_size if drop_last else n

    def generate():
        for epoch in range(first_epoch, first_epoch + epochs):
            order = epoch_order(n, seed=seed, epoch=epoch, shuffle=shuffle, replacement=replacement)
            for start in range(0, stop, batch_size):
                index = order[start : start + batch_size]
                yield tuple(column[index] for column in columns) if len(columns) > 1 else columns[0][index]

    return generate()


@named("epoch_order")
def epoch_order(
    samples: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = True, replacement: bool = False
) -> np.ndarray:
    """Returns the order in which `batches` goes through the samples in one epoch, an int64 index a sample.

    Example:
      >>> from jaxnet import data
      >>> sorted(data.epoch_order(5, seed=1, epoch=3).tolist())
      [0, 1, 2, 3, 4]

    Source: chapter 4.4.1, algorithm 2's Sample.
    """
    generator = _generator(seed, epoch)
    if replacement:
        return generator.integers(samples, size=samples)
    return generator.permutation(samples) if shuffle else np.arange(samples)


def usable(arrays: Sequence[Any], names: Sequence[str] | None = None) -> list[np.ndarray]:
    """The arrays on the host, ready to train on: equally many and finite, in dtypes that JAX keeps.

    Raises:
      DataError: no samples, arrays of different lengths, a NaN, an Inf, or a mask.
      DTypeError: something that is no numeric array.

    Warns:
      UserWarning: once, of all that is rounded to 32 bits.
    """
    names = names or [f"array {i}" for i in range(len(arrays))]
    narrowed: dict[str, np.dtype] = {}
    given = _columns(arrays, names)
    columns = [checks.host_array(name, column, narrowed) for name, column in zip(names, given, strict=True)]
    for name, column in zip(names, columns, strict=True):
        check_finite(name, column)
    checks.warn_of_narrowed(narrowed)
    return columns


def _columns(arrays: Sequence[Any], names: Sequence[str] | None = None, *, call: str = "") -> list[np.ndarray]:
    if not arrays:
        raise DataError("at least one array is needed, got none")
    if names is None:  # by a loader's door, where a tree would be stacked, or taken for one array
        names = [f"array {i}" for i in range(len(arrays))]
        for name, given in zip(names, arrays, strict=True):
            if isinstance(given, dict) or (
                isinstance(given, tuple) and any(hasattr(entry, "shape") for entry in given)
            ):
                raise DTypeError(
                    f"{name} is a {type(given).__name__} of arrays; give its arrays one by one, as in "
                    f"{call}(tokens, mask, target), and put those of each part together again"
                )
    columns = [np.asarray(incoming.host(name, given)) for name, given in zip(names, arrays, strict=True)]
    check_lengths(columns, names)
    return columns


def check_lengths(columns: Sequence[Any], names: Sequence[str]) -> None:
    """Refuses arrays without samples, or of different numbers of them."""
    for name, column in zip(names, columns, strict=True):
        if not column.ndim:
            raise DataError(f"{name} is a scalar; samples lie along the first axis")
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(
            f"the arrays have {', '.join(map(str, lengths))} samples; each needs one entry a sample on its first axis"
        )
    if not lengths[0]:
        raise DataError(f"the data are empty, shape {columns[0].shape}")


def must_fill(batch_size: int, samples: int, otherwise: str = "") -> None:
    """Refuses a batch larger than all samples, where what does not fill one is left out."""
    if batch_size > samples:
        raise DataError(
            f"a batch of {batch_size} does not fill from {samples} samples, so nothing would be trained; use a "
            f"batch_size of at most {samples}{otherwise}"
        )


def check_finite(name: str, column: np.ndarray) -> None:
    """Refuses a NaN and an Inf, and says where it is."""
    if column.dtype.kind in "iub":
        return
    finite = np.isfinite(column)
    if not finite.all():
        where = tuple(int(k) for k in np.argwhere(~finite)[0])
        raise DataError(
            f"{name} holds {column[where]} at index {where} ({int((~finite).sum())} such values); one "
            f"spoils all that is computed with it: drop those samples, or replace the values"
        )


def _generator(seed: int, *more: int) -> np.random.Generator:
    seed = checks.integer("seed", seed, minimum=0)
    if seed >= 2**64:
        raise ConfigError(f"seed must be below 2**64, got {seed}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=more)))


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
    _, codes, sizes = np.unique(classes, return_inverse=True, return_counts=True)
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
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    part = np.repeat(np.tile(np.arange(len(shares)), len(sizes)), table.ravel())
    return [generator.permutation(by_class[part == k]) for k in range(len(shares))]

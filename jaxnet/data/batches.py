"""Batches of arrays, every sample once an epoch in a new order."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet.data._usable import Arrays, columns_of, generator_of, must_fill, usable
from jaxnet.errors import ConfigError, named


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
    columns = columns_of(arrays, call="batches")
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    epochs = checks.integer("epochs", epochs, minimum=1)
    first_epoch = checks.integer("first_epoch", first_epoch, minimum=0)
    generator_of(seed)
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

    Args:
      samples: how many there are.
      seed: integer from 0 to 2**64 - 1.
      epoch: the epoch's number, from 0.
      shuffle: draw an order; else the one given.
      replacement: draw each index independently.

    Raises:
      ConfigError: a bad seed.

    Example:
      >>> from jaxnet import data
      >>> sorted(data.epoch_order(5, seed=1, epoch=3).tolist())
      [0, 1, 2, 3, 4]

    Source: chapter 4.4.1, algorithm 2's Sample.
    """
    generator = generator_of(seed, epoch)
    if replacement:
        return generator.integers(samples, size=samples)
    return generator.permutation(samples) if shuffle else np.arange(samples)

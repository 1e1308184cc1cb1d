"""Batches of arrays that are larger than memory: read by blocks, shuffled by blocks and in a buffer."""

import dataclasses
import mmap
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet.data._resumable import Resumable
from jaxnet.data._usable import check_lengths, generator_of, must_fill
from jaxnet.errors import ConfigError, named

BLOCK_BYTES, BUFFER_BYTES = 2**20, 2**26
"""What is read at once, and what is in memory, unless it is said."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """What `blocks` returns: a function from an epoch's number, from 0, to its batches, as `training.fit` takes it.

    Its iterators have ``get_state`` and ``set_state``; ``len`` gives the batches of an epoch.

    Attributes:
      arrays: what is read.
      samples: how many there are.
      batch_size: samples a batch.
      seed: of the orders.
      shuffle: whether each epoch has an order of its own.
      drop_last: whether a smaller last batch is left out.
      block: consecutive samples that are read at once.
      buffer: samples that are shuffled together.
    """

    arrays: tuple[Any, ...] = dataclasses.field(repr=False)
    samples: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    block: int
    buffer: int

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch."""
        return Resumable(lambda first: self._batches(epoch, first))

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches these ones."""
        names = ("samples", "batch_size", "seed", "shuffle", "drop_last", "block", "buffer")
        return {name: getattr(self, name) for name in names}

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        """The batches from a number on."""
        size, start, passed = self.batch_size, first * self.batch_size, 0
        rest: Any = None  # samples of one filling of the buffer that do not fill a batch
        for number, members in enumerate(self._fillings(epoch)):
            count = sum(stop - begin for begin, stop in members)
            passed += count
            if passed <= start:
                continue
            held = jax.tree.map(lambda leaf, members=members: _read(leaf, members), self.arrays)
            rows = np.arange(count)
            if self.shuffle:
                rows = generator_of(self.seed, epoch, 1 + number).permutation(count)
            rows = rows[max(0, start - passed + count) :]
            while len(rows):
                taken = rows[: size - (0 if rest is None else _length(rest))]
                rows = rows[len(taken) :]
                batch = jax.tree.map(lambda leaf, taken=taken, held=held: leaf[taken], held)
                if rest is not None:
                    batch = jax.tree.map(lambda a, b: np.concatenate([a, b]), rest, batch)
                rest = batch if _length(batch) < size else None
                if rest is None:
                    yield batch if len(batch) > 1 else batch[0]
                del batch
            del held  # before the next is read
        if rest is not None and not self.drop_last:
            yield rest if len(rest) > 1 else rest[0]

    def _fillings(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """The blocks, begin and end, that are in memory together, one list after the other."""
        blocks = -(-self.samples // self.block)
        order = generator_of(self.seed, epoch, 0).permutation(blocks) if self.shuffle else np.arange(blocks)
        several = max(1, self.buffer // self.block)
        for first in range(0, blocks, several):
            chosen = order[first : first + several].tolist()
            yield [(one * self.block, min((one + 1) * self.block, self.samples)) for one in chosen]


@named("blocks")
def blocks(
    *arrays: Any,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    block: int | None = None,
    buffer: int | None = None,
) -> Blocks:
    """Batches of arrays larger than memory: memory maps, arrays of HDF5 or Zarr, what is read by slices from a disk.

    An epoch goes through all blocks of consecutive samples, in a new order. As many as fill the buffer are read, their
    samples are shuffled together, and batches are cut from them. So memory holds the buffer and a few batches, a disk
    reads long pieces, and samples that stand in one block of the file come in one buffer: a file that is sorted, by its
    classes say, wants blocks that are small beside the buffer, or to be shuffled once.

    Args:
      *arrays: x and target, each an array with one sample an entry of its first axis, or a tree of such arrays.
      batch_size: B, samples a batch.
      seed: integer from 0 to 2**64 - 1; with the epoch's number it gives the order.
      shuffle: draw a new order each epoch; else read from the beginning to the end.
      drop_last: leave out the samples that do not fill a batch, at the end of an epoch. What is measured or predicted
        from, a validation set, is read whole and in its order in any case.
      block: samples read at once; unless given, what makes 1 MiB.
      buffer: samples in memory; unless given, what makes 64 MiB.

    Returns:
      `Blocks`, what `training.fit` takes as data; its batches are tuples, or arrays where one was given.

    Raises:
      ConfigError: a size, a seed or a flag that is none, or a buffer smaller than a block.
      DataError: no samples, arrays of different lengths, or fewer samples than a batch.
      DTypeError: something that is no numeric array.

    Example:
      >>> import os, tempfile
      >>> import numpy as np
      >>> from jaxnet import data
      >>> directory = tempfile.TemporaryDirectory()
      >>> path = os.path.join(directory.name, "x.npy")
      >>> np.save(path, np.arange(10))
      >>> x = np.load(path, mmap_mode="r")
      >>> loader = data.blocks(x, batch_size=4, block=2, buffer=4, drop_last=False)
      >>> [len(batch) for batch in loader(epoch=0)]
      [4, 4, 2]
      >>> directory.cleanup()
    """
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    generator_of(seed)
    shuffle, drop_last = checks.flag("shuffle", shuffle), checks.flag("drop_last", drop_last)
    if not arrays:
        raise ConfigError("blocks needs arrays to read, blocks(x, target, batch_size=32)")
    held = jax.tree.map(
        _sliceable, arrays, is_leaf=lambda node: node is not arrays and incoming.is_nested_numbers(node)
    )
    leaves = jax.tree.leaves(held)
    check_lengths(leaves, [f"array {i}" for i in range(len(leaves))])
    samples = leaves[0].shape[0]
    if drop_last:
        must_fill(batch_size, samples, ", or drop_last=False")
    each = max(1, sum(leaf.dtype.itemsize * int(np.prod(leaf.shape[1:])) for leaf in leaves))
    if buffer is None:
        buffer = max(BUFFER_BYTES // each, block or 1)
    buffer = checks.integer("buffer", buffer, minimum=1)
    block = min(max(1, BLOCK_BYTES // each), buffer) if block is None else checks.integer("block", block, minimum=1)
    if buffer < block:
        raise ConfigError(f"the buffer must hold a block of {block} samples at least, got {buffer}")
    return Blocks(held, samples, batch_size, seed, shuffle, drop_last, block, buffer)


def _sliceable(leaf: Any) -> Any:
    """What is read from where it is by slices, as it is; anything else as an array."""
    if isinstance(leaf, np.ma.MaskedArray):
        leaf = checks.unmasked("an array", leaf)
    if isinstance(getattr(leaf, "dtype", None), np.dtype) and hasattr(leaf, "shape") and hasattr(leaf, "__getitem__"):
        if not checks.is_numeric(leaf.dtype):
            checks.host_array("an array", np.empty(0, leaf.dtype))  # which says why
        return leaf
    return np.asarray(incoming.host("an array", leaf))


def _length(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def _read(leaf: Any, blocks: list[tuple[int, int]]) -> np.ndarray:
    """Blocks of an array, one after the other, in memory."""
    array, at = np.empty((sum(stop - start for start, stop in blocks), *leaf.shape[1:]), leaf.dtype), 0
    for start, stop in blocks:
        array[at : at + stop - start] = leaf[start:stop]
        at += stop - start
        _let_go(leaf)
    return array


def _let_go(leaf: Any) -> None:
    """Has a memory map's pages count no longer as this process's memory; the file keeps what they hold."""
    mode = None
    while leaf is not None and not isinstance(leaf, mmap.mmap):
        mode = getattr(leaf, "mode", mode)
        leaf = getattr(leaf, "base", None)
    if leaf is not None and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):  # not "c", a private copy
        leaf.madvise(mmap.MADV_DONTNEED)

"""Batches of examples that are read one by one, by index."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet.data._pick import picks
from jaxnet.data._resumable import Resumable
from jaxnet.data._usable import generator_of, must_fill
from jaxnet.data.batches import epoch_order
from jaxnet.errors import ConfigError, DataError, named


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What `examples` returns: a function from an epoch's number, from 0, to its batches, as `training.fit` takes it.

    Its iterators have ``get_state`` and ``set_state``; ``len`` gives the batches of an epoch.

    Attributes:
      source: what is read.
      batch_size: samples a batch.
      seed: of the orders.
      shuffle: whether each epoch has an order of its own.
      drop_last: whether a smaller last batch is left out.
      pick: what makes an example of what was read.
    """

    source: Any = dataclasses.field(repr=False)
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    pick: Any

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch."""
        return Resumable(lambda first: self._batches(epoch, first))

    def __len__(self) -> int:
        full, rest = divmod(len(self.source), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches these ones."""
        names = ("batch_size", "seed", "shuffle", "drop_last")
        return {"samples": len(self.source), **{name: getattr(self, name) for name in names}}

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        order = epoch_order(len(self.source), seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        pick = picks(self.pick)
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            rows = order[start : start + self.batch_size].tolist()
            many = getattr(self.source, "__getitems__", None)  # of PyTorch and Hugging Face: several at once
            read = many(rows) if many else [self.source[row] for row in rows]
            yield _stacked([pick(example) for example in read], rows)


@named("examples")
def examples(
    source: Any, *, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = True, pick: Any = None
) -> Examples:
    """Batches of a data set that gives one example ``(x, target)`` by index: a list, or one of PyTorch, Grain, Hugging
    Face or your own.

    Only the examples of the batches under way are in memory. The order is that of `epoch_order`, which a resumed run
    goes on with, without reading what was trained on.

    Args:
      source: what has ``len(source)`` and ``source[i]``, or ``source.__getitems__([i, j])``.
      batch_size: B, examples a batch.
      seed: of the order, an integer from 0 to 2**64 - 1.
      shuffle: draw a new order each epoch.
      drop_last: leave out the examples that do not fill a batch. What is measured or predicted from, a validation set,
        is read whole and in its order in any case.
      pick: what of an example is x and what the target, where it is no pair: two names, as ``("image", "label")``
        of examples that are dicts, or a function from an example to ``(x, target)``, which may also decode it.

    Returns:
      `Examples`, what `training.fit` takes as data.

    Raises:
      ConfigError: what cannot be read by index, or a size, a seed, a flag or a pick that is none.
      DataError: no examples, or fewer than a batch; while they are read, examples that are built differently.
      DTypeError: while they are read, what is no array of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import data, layers, losses, optimizers, training
      >>> listed = [((i / 8, 1.0), [i / 4]) for i in range(16)]
      >>> batches = data.examples(listed, batch_size=4)
      >>> fit = training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), batches, epochs=2, progress=False)
      >>> fit.history[-1]["step"]
      8
    """
    if hasattr(source, "columns") or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise ConfigError(
            f"examples are read by index, source[i] and len(source), got {type(source).__name__}; of a table take "
            f"data.columns; batches of what can only be iterated are made by its library: "
            f"torch.utils.data.DataLoader(source, batch_size=...), or source.batch(...)"
        )
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    generator_of(seed)
    shuffle, drop_last = checks.flag("shuffle", shuffle), checks.flag("drop_last", drop_last)
    if not len(source):
        raise DataError("the data hold no example")
    if drop_last:
        must_fill(batch_size, len(source), ", or drop_last=False")
    picks(pick)
    return Examples(source, batch_size, seed, shuffle, drop_last, pick)


def _stacked(read: list[Any], rows: list[int]) -> Any:
    """Examples as a batch; a list of numbers is one array."""
    flat = [
        jax.tree.flatten(one, is_leaf=lambda node, top=one: node is not top and incoming.is_nested_numbers(node))
        for one in read
    ]
    for (_, treedef), row in zip(flat, rows, strict=True):
        if treedef != flat[0][1]:
            raise DataError(f"example {row} is built as {treedef}, and example {rows[0]} as {flat[0][1]}")
    leaves = []
    for position, column in enumerate(zip(*(leaves for leaves, _ in flat), strict=True)):
        arrays = [
            np.asarray(incoming.host(f"leaf {position} of example {row}", leaf))
            for row, leaf in zip(rows, column, strict=True)
        ]
        for array, row in zip(arrays, rows, strict=True):
            if array.shape != arrays[0].shape:
                raise DataError(
                    f"example {row} has an array of shape {array.shape}, and example {rows[0]} of {arrays[0].shape}; "
                    f"cut or pad them to one shape, pick=lambda example: ..."
                )
        stacked = np.stack(arrays)
        python = isinstance(column[0], (float, complex)) and not isinstance(column[0], np.generic)
        leaves.append(stacked.astype(jax.dtypes.canonicalize_dtype(stacked.dtype)) if python else stacked)
    return jax.tree.unflatten(flat[0][1], leaves)

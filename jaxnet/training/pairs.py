"""What a user gives to train on or to measure, as a pair of arrays ``(x, target)``: whole data, or one batch.

Of three, ``(x, target, weights)``, the third goes beside the target (`weighted.Weighted`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _incoming as incoming
from jaxnet import _words as words
from jaxnet import data as data_module
from jaxnet.errors import ConfigError, DataError, DTypeError, named
from jaxnet.training import weighted
from jaxnet.training.step import pair
from jaxnet.training.weighted import Weighted


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """What `arrays` returns: checked arrays on the host, and how they are made into batches."""

    x: Any = dataclasses.field(repr=False)
    target: Any = dataclasses.field(repr=False)
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool

    @property
    def pair(self) -> tuple[Any, Any]:
        """``(x, target)``; the target with its weights, if it has some."""
        return self.x, self.target

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(jax.tree.leaves(self.x)[0])

    @property
    def first(self) -> tuple[Any, Any]:
        """What can be looked at before training: all of it, where of an iterable it is the first batch."""
        return self.pair

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches of a run these ones, as far as it can be said."""
        names = ("samples", "batch_size", "seed", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}


@named("arrays")
def arrays(
    x: Any,
    target: Any,
    weights: Any = None,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Arrays:
    """Arrays to train on in batches; ``(x, target)`` with `fit`'s ``batch_size`` is the short form.

    Args:
      x: an array with one example an entry of its first axis, or a tree of such arrays, of any library.
      target: as x.
      weights: what each example counts, or each entry of its target: numbers from 0 or a mask, whose first axis is the
        examples'. The loss and the metrics are given them, ``loss(prediction, target, weights=weights)``; a batch
        counts by their sum in all means. ``(x, target, weights)`` is the short form, and so is such a batch of a
        loader.
      batch_size: B, examples a step; of a validation set, examples at once.
      seed: of the order, an integer that gives one order with every version of JAX (`data.epoch_order`).
      shuffle: draw a new order each epoch.
      drop_last: leave out the samples that do not fill a batch, others each epoch; else a smaller last batch is
        trained on with a second program, and counts by its size in the epoch's means.

    Returns:
      What `fit` and `train` take as ``data``, and `fit` as ``validation``.

    Raises:
      ConfigError: a size, a seed or a flag that is none.
      DataError: empty or non-finite data, unequal lengths; from `fit`, a batch larger than data of which the rest is
        dropped.
      DTypeError: what is no array of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x = jnp.linspace(-1, 1, 60)[:, None]
      >>> data = training.arrays(x, 2 * x, batch_size=16, drop_last=False, seed=1)
      >>> fit = training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), data, epochs=1, progress=False)
      >>> fit.history[0]["step"]
      4
    """
    data = (x, target) if weights is None else (x, target, weights)
    return batched(data, batch_size, seed, shuffle, drop_last)


def batched(data: Any, batch_size: Any, seed: Any = 0, shuffle: Any = True, drop_last: Any = True) -> Arrays:
    """`arrays` of a pair, for a door of another name."""
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    seed = checks.integer("seed", seed, minimum=0)
    shuffle, drop_last = checks.flag("shuffle", shuffle), checks.flag("drop_last", drop_last)
    return Arrays(*checked(data), batch_size, seed, shuffle, drop_last)


def checked(data: Any) -> tuple[Any, Any]:
    """``(x, target)``, each an array or a tree of arrays, on the host and checked: finite, and equally many."""
    data = weighted.paired(data)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ConfigError(f"data must be a pair of arrays (x, target), got {_came(data)}")
    names, leaves, treedef = _flat(data)
    found = jax.tree.unflatten(treedef, data_module.usable(leaves, names))
    weighted.check(found[1])
    return found


def checked_where_they_are(data: tuple[Any, ...]) -> tuple[Any, Any]:
    """`checked`, but JAX's own stay on their device, where nothing has yet looked for NaN and Inf."""
    data = weighted.paired(data)
    if len(data) != 2 or not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data)):
        return checked(data)
    names, leaves, _ = _flat(data)
    data_module.check_lengths(leaves, names)
    return pair(data)


def batch(given: Any, narrowed: dict[str, np.dtype], first: Any = None) -> tuple[Any, Any]:
    """A batch ``(x, target)``, as loaders of any library yield it, in dtypes that JAX keeps.

    Args:
      narrowed: takes the names and dtypes of what is rounded to 32 bits.
      first: the shapes and dtypes of its loader's first batch, as which it must be built.
    """
    names, leaves, treedef = _flat(given)
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        leaf = incoming.host(name, leaf)
        leaves[i] = leaf if isinstance(leaf, jax.Array) else checks.host_array(name, leaf, narrowed)
    batch = jax.tree.unflatten(treedef, leaves)
    if first is not None:
        _must_be_alike(batch, first)
    lengths = [len(leaf) if leaf.ndim else None for leaf in leaves]
    if len(set(lengths)) > 1 or None in lengths:
        each = ", ".join(f"{name} {leaf.shape}" for name, leaf in zip(names, leaves, strict=True))
        hint = "; are these single examples? Then data.examples(..., batch_size=32) makes batches of them"
        raise DataError(
            f"the arrays of a batch must have one entry an example on their first axes, got the shapes {each}"
            f"{hint if first is None else ''}"
        )
    return pair(batch)


def structs(batch: Any) -> Any:
    """The shapes and dtypes of a batch, without its arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)


def _must_be_alike(batch: tuple[Any, Any], first: tuple[Any, Any]) -> None:
    """Refuses a batch of another tree, other dtypes or other numbers of axes than the first one of its loader."""
    trees = [jax.tree.structure(pair) for pair in (batch, first)]
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(pair)] for pair in (batch, first)]
    axes = [[len(leaf.shape) for leaf in jax.tree.leaves(pair)] for pair in (batch, first)]
    for (came, was), one in ((trees, "structure"), (dtypes, "dtype"), (axes, "number of axes")):
        if came != was:
            came, was = (f"x {checks.describe(x)}, target {checks.describe(target)}" for x, target in (batch, first))
            raise DataError(f"the batch is {came}, and the first one was {was}; have the loader give one {one}")


def other_shapes(batch: tuple[Any, Any], first: tuple[Any, Any]) -> str:
    """Which arrays of a batch have other sizes than those of the first one, but for the number of examples."""
    leaves, firsts = jax.tree_util.tree_leaves_with_path(batch), jax.tree.leaves(first)
    found = [
        f"{leaf_name(path)} has shape {leaf.shape}, and had {was.shape} in the first batch"
        for (path, leaf), was in zip(leaves, firsts, strict=True)
        if leaf.shape[1:] != was.shape[1:]
    ]
    return " and ".join(found)


def of_size(size: int, tree: Any) -> Any:
    """The shapes and dtypes of so many examples as those in a tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), tree)


def size(batch: Any) -> int:
    """The examples of a batch: the length of its first array's first axis, or one where it has none."""
    leaves = jax.tree.leaves(batch)
    return leaves[0].shape[0] if leaves and leaves[0].ndim else 1


def _flat(given: Any) -> tuple[list[str], list[Any], Any]:
    """The leaves of a pair, nested lists of numbers among them, with their names; and its structure."""
    given = weighted.paired(given)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        pair(given)  # which says what came
    given = tuple(given)
    found, treedef = jax.tree_util.tree_flatten_with_path(
        given, is_leaf=lambda node: node is not given and incoming.is_nested_numbers(node)
    )
    names = [leaf_name(path) for path, _ in found]
    if "x" not in (name[:1] for name in names):
        raise DTypeError(f"x must be an array or a tree of arrays, got {words.came(given[0])}")
    return names, [leaf for _, leaf in found], treedef


def leaf_name(path: Any) -> str:
    """A leaf of a pair by its path: ``x``, ``target['left']``, or ``weights``."""
    name, path = ("x", "target")[path[0].idx], path[1:]
    if name == "target" and path and getattr(path[0], "name", None) in Weighted._fields:
        name, path = path[0].name, path[1:]
    return name + jax.tree_util.keystr(path)


def iterable(data: Any) -> Any:
    """``data``, if batches can be read from it: an iterable of them, or a function from the epoch to one."""
    holder = isinstance(data, (str, bytes, Mapping)) or hasattr(data, "__array__") or hasattr(data, "__dlpack__")
    two_arrays = (
        isinstance(data, (tuple, list)) and len(data) in (2, 3) and all(hasattr(part, "shape") for part in data)
    )
    if holder or two_arrays or not (callable(data) or hasattr(data, "__iter__")):
        raise ConfigError(
            f"data must be arrays (x, target), an iterable of batches, or a function from the epoch to one; "
            f"got {_came(data)}"
        )
    return data


def _came(data: Any) -> str:
    """What came in the place of data, and what was probably meant."""
    kind, hint = type(data).__name__, ""
    if isinstance(data, (str, bytes)):
        hint = "load the file first, numpy.load(path)"
    elif isinstance(data, Mapping):
        x, target = [repr(name) for name in (*data, "x", "target")][:2]
        hint = f"give the pair (data[{x}], data[{target}])"
    elif hasattr(data, "columns"):
        hint = "give the pair of its columns, data.columns(table, target=...)"
    elif hasattr(data, "dtype"):
        hint = "to reproduce x itself, give (x, x)"
    elif isinstance(data, float) and 0 < data < 1:
        kind = f"{data:g}"
        hint = f"to set that part aside, train, validation = data.split(x, target, fractions=({1 - data:g}, {data:g}))"
    elif isinstance(data, list) and len(data) == 2:
        kind, hint = "a list of two arrays", "a pair of arrays is a tuple, (x, target)"
    elif isinstance(data, tuple) and len(data) == 2:  # to `stream`, whose data are batches
        kind, hint = "a pair of arrays", "give it in the place of a stream, or training.arrays"
    elif isinstance(data, (tuple, list)):
        kind = f"a {kind} of {len(data)}"
        hint = "several inputs are one tree, ((a, b), target)" if len(data) > 3 else ""
        hint = "to reproduce x itself, give (x, x)" if len(data) == 1 else hint
    elif hasattr(data, "__getitem__"):
        hint = "of a data set that is read by index, data.examples(data, batch_size=32) makes batches"
    return f"{kind}; {hint}" if hint else kind

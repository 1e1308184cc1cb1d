"""What a user gives to train on or to measure: arrays with the size of a batch, or batches."""

import dataclasses
from typing import Any

import jax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, named
from jaxnet.training import pairs
from jaxnet.training.sources import Source


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
        """``(x, target)``."""
        return self.x, self.target

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(jax.tree.leaves(self.x)[0])

    @property
    def example(self) -> Any:
        """The shape and dtype of one x."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), self.x)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches of a run these ones, as far as it can be said."""
        names = ("samples", "batch_size", "seed", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """What `stream` returns: an iterable of batches, or a function from the epoch to one, and how many are an epoch."""

    batches: Any
    steps_per_epoch: int | None


@named("arrays")
def arrays(
    x: Any, target: Any, *, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = True
) -> Arrays:
    """Arrays to train on in batches; ``(x, target)`` with `fit`'s ``batch_size`` is the short form.

    Args:
      x: an array with one example an entry of its first axis, or a tree of such arrays, of any library.
      target: as x.
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

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x = jnp.linspace(-1, 1, 60)[:, None]
      >>> data = training.arrays(x, 2 * x, batch_size=16, drop_last=False, seed=1)
      >>> fit = training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), data, epochs=1, progress=False)
      >>> fit.history[0]["step"]
      4
    """
    return _arrays((x, target), batch_size, seed, shuffle, drop_last)


def _arrays(data: Any, batch_size: Any, seed: Any = 0, shuffle: Any = True, drop_last: Any = True) -> Arrays:
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    seed = checks.integer("seed", seed, minimum=0)
    shuffle, drop_last = checks.flag("shuffle", shuffle), checks.flag("drop_last", drop_last)
    return Arrays(*pairs.arrays(data), batch_size, seed, shuffle, drop_last)


@named("stream")
def stream(batches: Any, *, steps_per_epoch: int | None = None) -> Stream:
    """Batches to train on or to measure; where an epoch is all that the iterable holds, itself is the short form.

    Args:
      batches: an iterable of batches ``(x, target)``, a loader or a list, read anew each epoch; or a function from the
        epoch's number, from 0, to an iterable. An iterator with ``get_state`` and ``set_state`` (Grain's) resumes
        without reading again.
      steps_per_epoch: batches an epoch, of what does not end. An iterator is read on from epoch to epoch; a list too,
        and begun again where it ends, but as a validation set anew each time, so that the same examples are measured.

    Returns:
      What `fit` and `train` take as ``data``, `fit` as ``validation``, and `make_evaluate`'s function as ``data``.

    Raises:
      ConfigError: what batches cannot be read from, or a number that is none.

    Example:
      >>> import itertools
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x = jnp.linspace(-1, 1, 16)[:, None]
      >>> data = training.stream(itertools.repeat((x, 2 * x)), steps_per_epoch=5)
      >>> fit = training.fit(layers.dense(1), losses.mse, optimizers.sgd(0.1), data, epochs=2, progress=False)
      >>> fit.history[-1]["step"]
      10
    """
    if isinstance(batches, (tuple, list)) and len(batches) == 2 and all(hasattr(part, "shape") for part in batches):
        raise ConfigError(
            "data must be an iterable of batches (x, target), or a function from the epoch to one, got a pair "
            "of arrays; give (x, target) in its place, or training.arrays"
        )
    source = Source(batches, steps_per_epoch)
    return Stream(batches, source.steps)


def given(data: Any, batch_size: Any = None, *, epochs: int = 1, goes_on: bool = True) -> Arrays | Source:
    """What stands at a door as data, checked: arrays, or batches as they are read.

    Args:
      batch_size: of the short form of arrays.
      epochs: how often it will be read.
      goes_on: as of `Source`.
    """
    if isinstance(data, tuple):
        if batch_size is None:
            raise ConfigError("arrays are trained on in batches: give batch_size")
        return _arrays(data, batch_size)
    if batch_size is not None:
        what = (
            "training.arrays has a batch_size of its own"
            if isinstance(data, Arrays)
            else "an iterable makes its own batches"
        )
        raise ConfigError(f"{what}, so batch_size must not be given")
    if not isinstance(data, (Arrays, Source)):
        source = data if isinstance(data, Stream) else Stream(data, None)
        data = Source(source.batches, source.steps_per_epoch, goes_on=goes_on)
    if isinstance(data, Source):
        data.must_last(epochs)
    return data

"""What stands as data at a door; and iterables of batches as a run reads them: by epochs, from where it stopped."""

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet.data import Blocks, Examples
from jaxnet.data._pick import picks
from jaxnet.errors import ConfigError, DataError, JaxnetError, innermost, named
from jaxnet.training import pairs
from jaxnet.training.pairs import Arrays

_LASTING = (
    "give a list, a function from the epoch to an iterable, or training.stream(data, steps_per_epoch=...) of an "
    "iterator that lasts"
)

_END = object()
"""In the place of a batch where there is none; a loader may yield anything else, which is then refused."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """What `stream` returns: an iterable of batches, or a function from the epoch to one, and how many are an epoch."""

    batches: Any
    steps_per_epoch: int | None = None
    pick: Any = None


@named("stream")
def stream(batches: Any, *, steps_per_epoch: int | None = None, pick: Any = None) -> Stream:
    """Batches to train on or to measure; where an epoch is all that the iterable holds, itself is the short form.

    Args:
      batches: an iterable of batches ``(x, target)``, or ``(x, target, weights)`` (`arrays`), a loader or a list, read
        anew each epoch; or a function from the epoch's number, from 0, to an iterable. An iterator with ``get_state``
        and ``set_state`` (Grain's), and a loader with ``state_dict`` and ``load_state_dict`` (torchdata's, Hugging
        Face's) resume without reading again; one with ``set_epoch``, or whose ``sampler`` has it, is told each epoch
        (but with ``steps_per_epoch``, whose epochs are not the loader's).
      steps_per_epoch: batches an epoch, of what does not end. An iterator is read on from epoch to epoch; a list too,
        and begun again where it ends, but as a validation set anew each time, so that the same examples are measured.
      pick: what of a batch is x and what the target, where it is no pair: two names, as ``("image", "label")`` of
        batches that are dicts (a third for weights), or a function from what the loader yields to ``(x, target)``.

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
    source = Source(batches, steps_per_epoch, pick=pick)
    return Stream(batches, source.steps, pick)


def given(data: Any, batch_size: Any = None, *, epochs: int = 1, goes_on: bool = True) -> "Arrays | Source":
    """What stands at a door as data, checked: arrays, or batches as they are read.

    Args:
      batch_size: of the short form of arrays.
      epochs: how often it will be read.
      goes_on: as of `Source`.
    """
    if isinstance(data, tuple):
        if batch_size is None:
            raise ConfigError("arrays are trained on in batches: give batch_size")
        return pairs.batched(data, batch_size)
    if batch_size is not None:
        if isinstance(data, Arrays):
            raise ConfigError("training.arrays has a batch_size of its own, so batch_size must not be given")
        if not isinstance(data, Stream):
            pairs.iterable(data)
        raise ConfigError(
            "an iterable makes its own batches, so batch_size must not be given; of single examples, "
            f"data.examples(data, batch_size={batch_size}) makes them"
        )
    if not isinstance(data, (Arrays, Source)):
        source = data if isinstance(data, Stream) else Stream(data)
        data = Source(source.batches, source.steps_per_epoch, pick=source.pick, goes_on=goes_on)
    if isinstance(data, Source):
        data.must_last(epochs)
    return data


def in_full(data: Any) -> Any:
    """Data to measure or to predict from: of `data.blocks` and `data.examples` all samples, in their order."""
    if isinstance(data, Stream):
        return dataclasses.replace(data, batches=in_full(data.batches))
    return dataclasses.replace(data, shuffle=False, drop_last=False) if isinstance(data, (Blocks, Examples)) else data


class Source:
    """An iterable of batches, read anew each epoch; or a function from the epoch to one; or an iterator, read on.

    Args:
      steps: batches an epoch, of what does not end or is read on.
      pick: as of `stream`.
      goes_on: whether an epoch of ``steps`` goes on in a list where the last one stopped, or begins it anew.

    Attributes:
      picked: what ``pick`` makes of what the loader gave as a batch.
      passing: what the batches of an epoch go through as they are read.
    """

    def __init__(self, data: Any, steps: int | None, *, pick: Any = None, goes_on: bool = True):
        self.who = innermost()  # by the time that a batch is read, it may be another
        self._goes_on = goes_on
        self._data = pairs.iterable(data)
        if callable(data):
            _takes_the_epoch(data)
        self.steps = None if steps is None else checks.integer("steps_per_epoch", steps, minimum=1)
        self.pick, self.picked = pick, picks(pick)
        self._running: Iterator[Any] | None = None
        self._first: tuple[Any, Iterator[Any], Any] | None = None
        self._like: Any = None  # the shapes and dtypes of the first batch
        self._held: int | None = None  # batches of the epoch before
        self._begun = False
        self.passing: Callable[[Iterator[Any]], Iterator[Any]] = lambda batches: batches

    def must_last(self, epochs: int) -> None:
        """Refuses, before the first epoch, what a later one will find empty."""
        if epochs > 1 and self.steps is None and hasattr(self._data, "__next__") and not callable(self._data):
            raise DataError(
                f"the data are an iterator, which is read only once, and there are {epochs} epochs; {_LASTING}"
            )

    @property
    def first(self) -> tuple[Any, Any]:
        """The first batch, in dtypes that JAX keeps, which is looked at and not lost."""
        if self._first is None:
            loader, iterator = self._opened(0)
            batch = next(self._read(iterator, 0, 0), _END)
            if batch is _END:
                raise DataError("the data held no batch")
            self._first = (loader, iterator, batch)
        return self.batch(0, 0, self._first[2], {})

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches of a run these ones, as far as it can be said."""
        ours = self._data.settings if isinstance(self._data, (Blocks, Examples)) else {}
        return {"steps_per_epoch": self.steps, **ours}

    def at(self, epoch: int, batch: int) -> named:
        """The door of a batch."""
        return named(f"{self.who}: {self._place(epoch, batch)}")

    def batch(self, epoch: int, number: int, came: Any, narrowed: dict[str, np.dtype]) -> tuple[Any, Any]:
        """A pair ``(x, target)`` of what the loader gave as a batch, which is built as the first one was.

        Args:
          narrowed: takes the names and dtypes of what is rounded to 32 bits.
        """
        with self.at(epoch, number):
            try:
                batch = self.pair(came, narrowed)
            except Exception as error:
                if not isinstance(error, JaxnetError):
                    error.add_note(f"{self.who or 'jaxnet'}: pick raised this for {self._place(epoch, number)}")
                raise
            if self._like is None:
                self._like = pairs.structs(batch)
        return batch

    def pair(self, came: Any, narrowed: dict[str, np.dtype]) -> tuple[Any, Any]:
        """`batch`, which says of none where it was."""
        return pairs.batch(self.picked(came), narrowed, self._like)

    @contextlib.contextmanager
    def where_it_is_odd(self, epoch: int, number: int, batch: Any) -> Iterator[None]:
        """Where what computes with a batch refuses it, and its shape is not the first one's, says which it is."""
        try:
            yield
        except (TypeError, ValueError) as error:
            odd = pairs.other_shapes(batch, self._like)
            if not odd:
                raise
            with self.at(epoch, number):
                raise DataError(
                    f"{odd}, which cannot be computed with ({error}); have the loader pad or cut it, or leave it out"
                ) from error

    def epoch(self, epoch: int, start: int, position: Any) -> tuple[Iterator[Any], Callable[[], Any] | None, int]:
        """The batches of an epoch, what tells their loader's position, if it can, and how many to skip to ``start``."""
        first = self._first
        self._first = None
        if first is not None and (epoch == 0 or first[1] is self._running):
            loader, iterator, batch = first
            batches: Any = itertools.chain([batch], iterator)  # which does not close the iterator at its end
        else:
            loader, iterator = self._opened(epoch)
            batches = iterator
        runs_on, begins = iterator is self._running, not self._begun
        self._begun = True
        # What an earlier process has trained on already, where nothing better is known.
        skip = start + (epoch * self.steps if self.steps and runs_on and begins else 0)
        get_state, set_state = _position(iterator, "get_state", "set_state")  # Grain's
        if get_state:
            if position is not None and (begins if runs_on else start > 0):
                set_state(position)
                batches, skip = iterator, 0
        else:
            get_state, set_state = _position(loader, "state_dict", "load_state_dict")
            if position is not None and begins and (start > 0 or not callable(self._data)):
                set_state(position)
                batches, skip = self._resumed(loader, runs_on, start), 0
        return self.passing(self._read(iter(batches), epoch, start - skip)), get_state, skip

    def whole_epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch, ``steps`` of them if that was given, for a reader that does not fetch ahead."""
        batches, _, skip = self.epoch(epoch, 0, None)
        count = 0
        for batch in itertools.islice(batches, skip, None if self.steps is None else skip + self.steps):
            yield batch
            count += 1
        self.must_suffice(epoch, count)

    def must_suffice(self, epoch: int, count: int) -> None:
        """Refuses an epoch that held fewer batches than it had to, or another number of them than the one before."""
        if not count:
            which = "the data" if self.who == "evaluate" else f"epoch {epoch + 1}"
            why = "; an iterator is read only once"
            if self.steps is not None:
                why = f", and steps_per_epoch={self.steps} were wanted; an iterator is read on, and this one has ended"
            raise DataError(f"{which} held no batch{why}: {_LASTING}")
        if self.steps is not None and count < self.steps:
            raise DataError(f"the data ended after {count} batches of an epoch of steps_per_epoch={self.steps}")
        if self._held not in (None, count) and self.steps is None and not callable(self._data):
            raise DataError(
                f"the loader ended after {count} batches of epoch {epoch + 1}, and the epoch before held {self._held}: "
                f"has it lost any? Where epochs differ by themselves, give a function, lambda epoch: loader"
            )
        self._held = count

    def _place(self, epoch: int, batch: int) -> str:
        return f"batch {batch}" if self.who == "evaluate" else f"epoch {epoch + 1}, batch {batch}"

    def _read(self, batches: Iterator[Any], epoch: int, number: int) -> Iterator[Any]:
        """The batches, of which ``number`` is the first; what the loader raises says for which one."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if isinstance(error, ValueError) and "generator already executing" in str(error):
                    raise DataError(
                        "the loader is still at work for a run that was stopped while it waited; make a new one"
                    ) from error
                place = self._place(epoch, number) if number >= 0 else "what was trained on before, read again"
                error.add_note(f"{self.who or 'jaxnet'}: the loader raised this for {place}")
                raise
            yield batch
            number += 1

    def _opened(self, epoch: int) -> tuple[Any, Any]:
        """The loader of an epoch, and the iterator over its batches."""
        data = self._data
        if callable(data):
            loader: Any = data(epoch)
            if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
                raise ConfigError(f"data({epoch}) must return an iterable of batches, got {type(loader).__name__}")
            return loader, iter(loader)
        once = hasattr(data, "__next__")
        if once or (self.steps is not None and self._goes_on):
            if self._running is None:  # one iterator for all epochs; a list is begun again where it ends
                self._running = data if once else _cycle(data)
            return data, self._running
        for part in (data, getattr(data, "sampler", None)):
            getattr(part, "set_epoch", lambda epoch: None)(epoch)
        return data, iter(data)

    def _resumed(self, loader: Any, runs_on: bool, start: int) -> Iterator[Any]:
        """The batches of a loader that was put where it had stopped; at its end, before an epoch, those of the next."""
        if runs_on:
            self._running = batches = loader if hasattr(loader, "__next__") else _cycle(loader)
            return batches
        batches = iter(loader)
        if start:
            return batches
        first = list(itertools.islice(batches, 1))
        return itertools.chain(first, batches) if first else iter(loader)


def _takes_the_epoch(data: Any) -> None:
    try:
        inspect.signature(data).bind(0)
    except TypeError as error:
        raise ConfigError(
            f"data that are a function must take the epoch's number, from 0 ({error}); lambda epoch: ..."
        ) from None
    except ValueError:  # it has no signature
        pass


def _position(loader: Any, get: str, put: str) -> tuple[Any, Any]:
    """What tells the position of a loader, and what sets it; None, where it has none."""
    has = hasattr(loader, get) and hasattr(loader, put)
    return (getattr(loader, get), getattr(loader, put)) if has else (None, None)


def _cycle(data: Any) -> Iterator[Any]:
    """Begins again where the data end; a loader that was put at its end holds nothing the first time."""
    empty = 0
    while empty < 2:
        empty += 1
        for batch in data:
            empty = 0
            yield batch

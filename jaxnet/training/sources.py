"""What stands as data at a door; and iterables of batches as a run reads them: by epochs, from where it stopped."""

import contextlib
import contextvars
import dataclasses
import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DataError, innermost, named
from jaxnet.training import pairs
from jaxnet.training.pairs import Arrays

AHEAD = 2
"""Batches fetched before they are needed."""

_LASTING = (
    "give a list, a function from the epoch to an iterable, or training.stream(data, steps_per_epoch=...) of an "
    "iterator that lasts"
)

_END = object()
"""What comes after the last batch; a loader may yield anything else, which is then refused."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """What `stream` returns: an iterable of batches, or a function from the epoch to one, and how many are an epoch."""

    batches: Any
    steps_per_epoch: int | None


@named("stream")
def stream(batches: Any, *, steps_per_epoch: int | None = None) -> Stream:
    """Batches to train on or to measure; where an epoch is all that the iterable holds, itself is the short form.

    Args:
      batches: an iterable of batches ``(x, target)``, or ``(x, target, weights)`` (`arrays`), a loader or a list, read
        anew each epoch; or a function from the epoch's number, from 0, to an iterable. An iterator with ``get_state``
        and ``set_state`` (Grain's) resumes without reading again.
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
    source = Source(batches, steps_per_epoch)
    return Stream(batches, source.steps)


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


class Source:
    """An iterable of batches, read anew each epoch; or a function from the epoch to one; or an iterator, read on.

    Args:
      steps: batches an epoch, of what does not end or is read on.
      goes_on: whether an epoch of ``steps`` goes on in a list where the last one stopped, or begins it anew.
    """

    def __init__(self, data: Any, steps: int | None, *, goes_on: bool = True):
        self.who = innermost()  # by the time that a batch is read, it may be another
        self._goes_on = goes_on
        self._data = pairs.iterable(data)
        if callable(data):
            _takes_the_epoch(data)
        self.steps = None if steps is None else checks.integer("steps_per_epoch", steps, minimum=1)
        self._running: Iterator[Any] | None = None
        self._first: tuple[Iterator[Any], Any] | None = None
        self._begun = False

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
            iterator = self._iterator(0)
            batch = _next(iterator)
            if batch is _END:
                raise DataError("the data held no batch")
            self._first = (iterator, batch)
        with self.at(0, 0):
            return pairs.batch(self._first[1], {})

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the batches of a run these ones, as far as it can be said."""
        return {"steps_per_epoch": self.steps}

    def at(self, epoch: int, batch: int) -> named:
        """The door of a batch."""
        of = "" if self.who == "evaluate" else f"epoch {epoch + 1}, "
        return named(f"{self.who}: {of}batch {batch}")

    def epoch(self, epoch: int, start: int, position: Any) -> tuple[Iterator[Any], Callable[[], Any] | None, int]:
        """The batches of an epoch, what tells the iterator's position, if it can, and how many to skip to ``start``."""
        if self._first is not None and (epoch == 0 or self._first[0] is self._running):
            iterator: Any = self._first[0]
            batches = itertools.chain([self._first[1]], iterator)  # which does not close the iterator at its end
        else:
            iterator = batches = self._iterator(epoch)
        self._first = None
        runs_on, skip = iterator is self._running, 0
        if position is not None and hasattr(iterator, "set_state") and (not self._begun if runs_on else start > 0):
            iterator.set_state(position)
            batches = iterator
        else:
            # What an earlier process has trained on already.
            skip = start + (epoch * self.steps if self.steps and runs_on and not self._begun else 0)
        self._begun = True
        return batches, getattr(iterator, "get_state", None), skip

    def whole_epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch, ``steps`` of them if that was given, for a reader that does not fetch ahead."""
        batches, _, skip = self.epoch(epoch, 0, None)
        count = 0
        for batch in itertools.islice(batches, skip, None if self.steps is None else skip + self.steps):
            yield batch
            count += 1
        self.must_suffice(epoch, count)

    def must_suffice(self, epoch: int, count: int) -> None:
        """Refuses an epoch that held fewer batches than it had to."""
        if not count:
            which = "the data" if self.who == "evaluate" else f"epoch {epoch + 1}"
            why = "; an iterator is read only once"
            if self.steps is not None:
                why = f", and steps_per_epoch={self.steps} were wanted; an iterator is read on, and this one has ended"
            raise DataError(f"{which} held no batch{why}: {_LASTING}")
        if self.steps is not None and count < self.steps:
            raise DataError(f"the data ended after {count} batches of an epoch of steps_per_epoch={self.steps}")

    def _iterator(self, epoch: int) -> Any:
        if callable(self._data):
            batches: Any = self._data(epoch)
            if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
                raise ConfigError(f"data({epoch}) must return an iterable of batches, got {type(batches).__name__}")
            return iter(batches)
        once = hasattr(self._data, "__next__")
        if not once and (self.steps is None or not self._goes_on):
            return iter(self._data)
        if self._running is None:  # one iterator for all epochs; a list is begun again where it ends
            self._running = self._data if once else _cycle(self._data)
        return self._running


def _takes_the_epoch(data: Any) -> None:
    try:
        inspect.signature(data).bind(0)
    except TypeError as error:
        raise ConfigError(
            f"data that are a function must take the epoch's number, from 0 ({error}); lambda epoch: ..."
        ) from None
    except ValueError:  # it has no signature
        pass


def _next(batches: Iterator[Any]) -> Any:
    """The next batch, or `_END`."""
    try:
        return next(batches, _END)
    except ValueError as error:
        if "generator already executing" not in str(error):
            raise
        raise DataError(
            "the loader is still at work for a run that was stopped while it waited; make a new one"
        ) from error


def _cycle(data: Any) -> Iterator[Any]:
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            return


def _callers_jax() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What gives another thread JAX's settings of this one, which JAX keeps for every thread apart.

    A setting is carried if it differs in the other thread, and if a context manager of its name is public. The thread
    guard stays here: it would take the other thread for the one to be kept to.
    """
    settings, mesh = jax.config.values, jax.sharding.get_mesh()
    abstract_mesh = jax.sharding.get_abstract_mesh()

    def enter() -> contextlib.AbstractContextManager[Any]:
        stack: Any = contextlib.ExitStack()
        here = jax.config.values
        for name in sorted(settings):  # transfer_guard before those of one direction, which it sets too
            manager: Any = getattr(jax, name.removeprefix("jax_"), None)
            if settings[name] != here[name] and callable(manager) and name != "jax_thread_guard":
                stack.enter_context(manager(settings[name]))
        if mesh != jax.sharding.get_mesh():
            stack.enter_context(jax.set_mesh(mesh))
        if abstract_mesh != jax.sharding.get_abstract_mesh():
            stack.enter_context(jax.sharding.use_abstract_mesh(abstract_mesh))
        return stack

    return enter


def ahead(
    batches: Iterator[Any], get_state: Callable[[], Any] | None, skip: int, limit: int | None,
    place: Callable[[int, Any], Any], stop: Callable[[], bool],
) -> Generator[tuple[Any, Any], None, None]:  # fmt: skip
    """Fetches and places batches in a thread, a few ahead; each with the position of its iterator after it.

    The thread sees the caller's settings, JAX's and those in context variables (NumPy's error state).
    """
    fetched: queue.Queue[Any] = queue.Queue(AHEAD)
    stopped, settings = threading.Event(), _callers_jax()

    def put(item):
        """Whether it was put; not, if nobody will take it."""
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                fetched.put(item, timeout=0.1)
                return True
        return False

    def fetch():
        try:
            with settings():
                for _ in range(skip):
                    if stopped.is_set():
                        return
                    _next(batches)
                for number in itertools.count() if limit is None else range(limit):
                    batch = _next(batches)
                    if batch is _END:
                        break
                    if not put((place(number, batch), get_state() if get_state else None)):
                        return
            put(_END)
        except BaseException as error:  # it belongs to the thread that waits
            put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(fetch,), daemon=True)
    thread.start()
    patience: float | None = 1.0  # a loader that blocks would keep a run from ending; its thread ends with the process
    try:
        while not stop():  # also while a loader keeps the run waiting
            try:
                item = fetched.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is _END:
                patience = None
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(patience)

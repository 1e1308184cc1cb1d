"""Iterables of batches as a run reads them: epoch by epoch, from where it stopped, fetched ahead."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DataError
from jaxnet.training.step import pair

AHEAD = 2
"""Batches fetched before they are needed."""


class Source:
    """An iterable of batches, read anew each epoch; or a function from the epoch to one; or an iterator, read on."""

    def __init__(self, data: Any, steps_per_epoch: int | None):
        who = "fit"
        if not callable(data) and not hasattr(data, "__iter__"):
            raise ConfigError(
                f"{who}: data must be arrays (x, target), an iterable of batches, or a function from the epoch to one; "
                f"got {type(data).__name__}"
            )
        self.steps = None
        if steps_per_epoch is not None:
            self.steps = checks.integer(who, "steps_per_epoch", steps_per_epoch, minimum=1)
        self._data: Any = data
        self._running: Iterator[Any] | None = None
        self._first: tuple[Iterator[Any], Any] | None = None
        self._begun = False

    @property
    def example(self) -> Any:
        """Shapes and dtypes of the first batch, which is looked at and not lost."""
        if self._first is None:
            iterator = self._iterator(0)
            batch = next(iterator, None)
            if batch is None:
                raise DataError("fit: the data held no batch")
            self._first = (iterator, pair("fit", batch))
        batch = self._first[1]
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), checks.array("fit", "a batch", a).dtype), batch)

    def epoch(self, epoch: int, start: int, position: Any) -> tuple[Iterator[Any], Callable[[], Any] | None]:
        """The batches of an epoch from ``start`` on, and what tells the iterator's position, if it can."""
        if self._first is not None and (epoch == 0 or self._first[0] is self._running):
            iterator: Any = self._first[0]
            batches = itertools.chain([self._first[1]], iterator)  # which does not close the iterator at its end
        else:
            iterator = batches = self._iterator(epoch)
        self._first = None
        runs_on = iterator is self._running
        if position is not None and hasattr(iterator, "set_state") and (not self._begun if runs_on else start > 0):
            iterator.set_state(position)
            batches = iterator
        else:
            # What an earlier process has trained on already.
            before = epoch * self.steps if self.steps and runs_on and not self._begun else 0
            for _ in range(before + start):
                next(batches, None)
        self._begun = True
        return batches, getattr(iterator, "get_state", None)

    def _iterator(self, epoch: int) -> Any:
        if callable(self._data):
            batches: Any = self._data(epoch)
            return iter(batches)
        once = hasattr(self._data, "__next__")
        if not once and self.steps is None:
            return iter(self._data)
        if self._running is None:  # one iterator for all epochs; a list is begun again where it ends
            self._running = self._data if once else _cycle(self._data)
        return self._running


def _cycle(data: Any) -> Iterator[Any]:
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            return


class Ahead:
    """Fetches and places batches in a thread, a few ahead; each with the position of its iterator after it."""

    def __init__(
        self, batches: Iterator[Any], get_state: Callable[[], Any] | None, limit: int | None, place: Any, stop: Any
    ):
        self._queue: queue.Queue[Any] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._stop_asked = stop
        self._arguments = (batches, get_state, limit, place)
        self._thread = threading.Thread(target=self._fetch, daemon=True)

    def _fetch(self) -> None:
        batches, get_state, limit, place = self._arguments
        try:
            fetched = 0
            while limit is None or fetched < limit:
                batch = next(batches, None)
                if batch is None:
                    break
                fetched += 1
                if not self._put((place(batch), get_state() if get_state else None)):
                    return
            self._put(None)
        except BaseException as error:  # it belongs to the thread that waits
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> Iterator[Any]:
        self._thread.start()
        return self._items()

    def _items(self) -> Iterator[Any]:
        while (item := self._next()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _next(self) -> Any:
        """The next item; None at the end, or if the run is to stop while a loader keeps it waiting."""
        while not self._stop_asked():
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._stop.set()
        # A loader that blocks would keep a run from ending; as a daemon, its thread does not keep the process.
        self._thread.join(None if kind is None and not self._stop_asked() else 1.0)

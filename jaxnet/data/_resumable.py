"""An iterator over the batches of an epoch that can say where it is, and begin there."""

from collections.abc import Callable, Iterator
from typing import Any


class Resumable:
    """Batches of an epoch, made by a function from the number of the first one; its state is the number of the next."""

    def __init__(self, batches: Callable[[int], Iterator[Any]]):
        self._from, self._next = batches, 0
        self._batches = batches(0)

    def __iter__(self) -> "Resumable":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._next += 1
        return batch

    def get_state(self) -> int:
        """How many batches were given."""
        return self._next

    def set_state(self, state: int) -> None:
        """Goes on after so many batches."""
        self._next, self._batches = state, self._from(state)

"""Batches fetched in a thread before they are needed, under the settings of the thread that needs them."""

import contextlib
import contextvars
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from jaxnet.training import positions

AHEAD = 2
"""Batches fetched before they are needed."""

_END = object()
"""What comes after the last batch; a loader may yield anything else, which is then refused."""


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
                    next(batches, _END)
                for number in itertools.count() if limit is None else range(limit):
                    batch = next(batches, _END)
                    if batch is _END:
                        break
                    position = positions.of_its_own(get_state()) if get_state else None
                    if not put((place(number, batch), position)):
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

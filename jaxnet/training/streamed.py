"""How batches from an iterable feed a run: fetched ahead, one step a dispatch, looked at some steps at once."""

import contextlib
import time
import zlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import devices, feed, pairs
from jaxnet.training.ahead import ahead
from jaxnet.training.devices import Place
from jaxnet.training.feed import IN_FLIGHT, Progress
from jaxnet.training.sources import Source
from jaxnet.training.state import sound
from jaxnet.training.step import Step
from jaxnet.training.update import passed_over

WINDOW = 32
"""Steps after which to look at them, if they do not take `feed.TARGET_SECONDS`."""

MANY_SHAPES = 16
"""Shapes of batches that are worth a warning, since compiling each may take longer than all training with it."""


class Streamed:
    """Batches from an iterable, fetched ahead, one step a dispatch."""

    in_order = True  # a resumed run relies on the data's own order

    def __init__(self, step: Step, source: Source, place: Place):
        if jax.process_count() > 1 and source.steps is None:
            raise ConfigError(
                "several processes must train on equally many batches each epoch; give training.stream(data, "
                "steps_per_epoch=...): what the one with the fewest has"
            )
        self.source, self.place = source, place
        self.steps = source.steps
        self.recent: dict[int, Any] = {}
        self._program = place.compiled(step)
        self._shapes: set[Any] = set()
        self._warned = False
        self.stop: Callable[[], bool] = lambda: False

    @property
    def example(self) -> Any:
        """Shapes and dtypes of a batch, of all processes together, which is looked at and not lost."""
        many = jax.process_count()
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((a.shape[0] * many, *a.shape[1:]) if a.ndim else (), a.dtype),
            self.source.first,
        )

    def batch(self, epoch: int, step: int) -> tuple[Any, str]:
        """A batch of the last few, None if it is none of them, and what to call it."""
        del epoch
        batch = self.recent.get(step)
        if jax.process_count() > 1:
            batch = multihost_utils.process_allgather(batch, tiled=True)
        return batch, "see error.batch"

    def epoch(self, train_state: Any, epoch: int, start: int, position: Any = None) -> Generator[Progress, None, None]:
        """Trains on an epoch from its step ``start`` on; yields after every few steps."""
        batches, get_state, skip = self.source.epoch(epoch, start, position)
        done, compile_seconds, began = start, 0.0, time.perf_counter()
        before, window = train_state, []  # the steps that are not looked at yet, and what it takes to do them again
        alone = jax.process_count() == 1  # several processes must yield at the same steps
        limit = None if self.steps is None else self.steps - start
        narrowed: dict[str, np.dtype] = {}
        failure: Exception | None = None

        def place(number, batch):
            batch = self.source.batch(epoch, start + number, batch, narrowed)
            with self.source.at(epoch, start + number):
                batch, mesh = jax.tree.map(devices.of_its_own, batch), self.place.mesh
                return jax.device_put(batch) if mesh is None else devices.place_local_batch(batch, mesh)

        def look():
            after, measured = self._without_bad_updates(before, train_state, window)
            columns = {name: np.array([m[name] for m in measured]) for name in measured[0]}
            return Progress(after, done, columns, np.array([size for _, _, size in window]), compile_seconds, position)

        with contextlib.closing(ahead(batches, get_state, skip, limit, place, self.stop)) as fetched:
            try:
                for batch, position_after in fetched:
                    if narrowed and not self._warned:  # not in the thread, so that it names the caller's line
                        checks.warn_of_narrowed(narrowed)
                        self._warned = True
                    with self.source.where_it_is_odd(epoch, done, batch):
                        train_state, metrics, seconds = self._step(train_state, batch)
                    compile_seconds += seconds
                    self.recent[done] = batch
                    window.append((metrics, batch if self.place.undoes else None, pairs.size(batch)))
                    done, position = done + 1, position_after
                    if len(window) % IN_FLIGHT == 0:
                        jax.block_until_ready(metrics)
                    late = time.perf_counter() - began > feed.TARGET_SECONDS
                    if (alone and late) or len(window) == (WINDOW if alone else IN_FLIGHT):
                        progress = look()
                        yield progress
                        before = train_state = progress.train_state
                        window, began, compile_seconds = [], time.perf_counter(), 0.0
                        self.recent = {k: v for k, v in self.recent.items() if k > done - 2 * IN_FLIGHT}
            except Exception as error:  # of the loader; the steps that were taken are not lost with it
                failure = error
        if window:
            yield look()
        if failure is not None:
            raise failure
        if not self.stop():
            self.source.must_suffice(epoch, done)

    def _step(self, train_state: Any, batch: Any) -> tuple[Any, Any, float]:
        """Takes a step; returns also what it measured, and of the first of its shape how long it took to compile."""
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(batch))
        if shapes in self._shapes:
            return *self._program(train_state, batch), 0.0
        self._agree_on(shapes)
        began = time.perf_counter()
        train_state, metrics = self._program(train_state, batch)
        self._shapes.add(shapes)
        if len(self._shapes) == MANY_SHAPES:
            checks.warn(
                f"the batches had {MANY_SHAPES} shapes so far, and each compiles a program of its own: pad them to few"
            )
        jax.block_until_ready(metrics)
        return train_state, metrics, time.perf_counter() - began

    def _without_bad_updates(self, before: Any, after: Any, window: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
        """The state after a window of steps, without updates that are not finite, and what the steps measured."""
        measured = jax.device_get([metrics for metrics, _, _ in window])
        if not self.place.undoes or sound(after):
            return after, measured
        for i, (_, batch, _) in enumerate(window):
            after, metrics = self._program(before, batch)
            bad = not sound(after)
            measured[i] = {"skipped": np.float32(0), **jax.device_get(metrics)} | ({"skipped": 1.0} if bad else {})
            before = passed_over(before) if bad else after
        return before, measured

    def _agree_on(self, shapes: Any) -> None:
        """Over several processes: refuses batches that are not of one shape, which the others could not know of."""
        if jax.process_count() == 1:
            return
        if self._shapes:
            raise DataError(
                f"over several processes all batches have the shapes of the first, {next(iter(self._shapes))}, "
                f"got {shapes}; drop or fill a last smaller batch"
            )
        devices.agree("the shape of the first batch", zlib.crc32(repr(shapes).encode()), f"here it is {shapes}")

"""How arrays feed a run: they stay on the device, and the program draws batches from them, many steps a dispatch."""

import functools
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import data as data_module
from jaxnet.training import devices, pairs
from jaxnet.training.devices import Place
from jaxnet.training.pairs import Arrays
from jaxnet.training.state import sound
from jaxnet.training.step import Step
from jaxnet.training.update import passed_over

TARGET_SECONDS = 0.1
"""How long one dispatch should compute: long enough to cost nothing, short enough to stop and report at once."""

IN_FLIGHT = 8
"""Steps dispatched before waiting. With virtual devices on few cores, 40 unawaited steps deadlock in a collective."""


class Progress(NamedTuple):
    """What a dispatch has done.

    Attributes:
      train_state: after it.
      steps: steps done in this epoch.
      measured: by name, a float a step.
      sizes: the examples of each of these steps, or one number for all.
      compile_seconds: of this, how long it took to compile.
      position: of an iterator that can say where it is.
    """

    train_state: Any
    steps: int
    measured: dict[str, np.ndarray]
    sizes: np.ndarray | int
    compile_seconds: float = 0.0
    position: Any = None


def finite(measured: dict[str, np.ndarray]) -> np.ndarray:
    """Which steps were finite, by the losses and the gradients' norms that they measured, of both players of a GAN."""
    names = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")
    return np.logical_and.reduce([np.isfinite(measured[name]) for name in names if name in measured])


def taken(measured: dict[str, np.ndarray]) -> np.ndarray:
    """Which steps have changed anything: those that were finite, and that nothing inside the optimizer has skipped."""
    return finite(measured) & (measured["skipped"] == 0) if "skipped" in measured else finite(measured)


class Resident:
    """Arrays on the device, sampled inside the compiled program, many steps a dispatch.

    The number of steps is an argument of one program, so no number compiles anew.

    Given a step without its guard too, dispatches run that, and keep the state that they began with. Where one met a
    step that was not finite, those before it are taken again, and it is left to the guarded one. So each step is
    computed by the same program whatever the dispatches' lengths, and a run has the same bits on a device whose
    arithmetic has a fixed order.

    A state that is kept also undoes an update that is not finite although the loss and the gradient are: the
    parameters stay spoiled, so one look a dispatch finds it.
    """

    in_order = False  # a resumed run draws its batches itself
    stop: Callable[[], bool] = staticmethod(lambda: False)  # nothing here keeps a run waiting

    def __init__(self, step: Step, arrays: Arrays, place: Place, *, unguarded: Step | None = None):
        self.arrays, self.place = arrays, place
        self.full, rest = divmod(arrays.samples, arrays.batch_size)
        self.rest, self.dropped = (0, rest) if arrays.drop_last else (rest, 0)
        self.steps = self.full + bool(self.rest)
        if arrays.drop_last:
            data_module.must_fill(arrays.batch_size, arrays.samples, ", or drop_last=False")
        if place.mesh is not None:
            for size in {arrays.batch_size if self.full else 0, self.rest} - {0}:
                devices.batch_fits(place.mesh, size)
        devices.must_agree("the data", arrays.pair)
        self.data = devices.everywhere(arrays.pair, place.mesh)
        self._programs = {"guarded": place.compiled(self._steps(step))}
        if unguarded is not None and place.keeps:
            self._programs["unguarded"] = place.compiled(self._steps(unguarded))
        self._fast = list(self._programs)[-1]
        self._compiled: set[tuple[str, int]] = set()
        self._count, self._epoch = 1, 0
        self._rows = functools.lru_cache(maxsize=2)(self._place_rows)

    def _steps(self, step: Step) -> Callable[..., Any]:
        step = jax.jit(step)  # traced once for what it measures and for the loop

        def steps(train_state, data, rows, start, stop):
            def body(i, carry):
                train_state, measured = carry
                batch = jax.tree.map(lambda leaf: leaf[rows[i]], data)
                if self.place.mesh is not None:
                    batch = jax.lax.with_sharding_constraint(batch, devices.over_batch(self.place.mesh))
                train_state, metrics = step(train_state, batch)
                return train_state, {name: measured[name].at[i].set(value) for name, value in metrics.items()}

            _, metrics = jax.eval_shape(step, train_state, pairs.of_size(rows.shape[1], data))
            empty = {name: jnp.zeros(rows.shape[0], value.dtype) for name, value in metrics.items()}
            return jax.lax.fori_loop(start, stop, body, (train_state, empty))

        return steps

    @property
    def example(self) -> Any:
        """Shapes and dtypes of a batch."""
        return pairs.of_size(self.arrays.batch_size if self.full else self.rest, self.data)

    def _place_rows(self, epoch: int) -> tuple[jax.Array, jax.Array]:
        """The order of an epoch on the device, sent once an epoch: a row a batch, and the row of a smaller last one."""
        order, size = self._order(epoch), self.arrays.batch_size
        whole, last = order[: self.full * size].reshape(self.full, size), order[self.full * size :][None, : self.rest]
        return devices.everywhere((whole, last), self.place.mesh)

    def _order(self, epoch: int) -> np.ndarray:
        arrays = self.arrays
        order = data_module.epoch_order(arrays.samples, seed=arrays.seed, epoch=epoch, shuffle=arrays.shuffle)
        return order.astype(np.int32)

    def samples(self, epoch: int, step: int) -> np.ndarray:
        """The indices of the samples in a batch."""
        return self._order(epoch)[step * self.arrays.batch_size : (step + 1) * self.arrays.batch_size]

    def batch(self, epoch: int, step: int) -> tuple[Any, str]:
        """A batch, and what to call it."""
        rows = self.samples(epoch, step)
        batch = jax.tree.map(lambda leaf: np.asarray(leaf[rows]), self.data)
        return batch, f"samples {rows[:8].tolist()}{'...' if len(rows) > 8 else ''}"

    def epoch(self, train_state: Any, epoch: int, start: int, position: Any = None) -> Generator[Progress, None, None]:
        """Trains on an epoch from its step ``start`` on; yields after every dispatch."""
        del position
        self._epoch, done = epoch, start
        rows, last = self._rows(epoch if self.arrays.shuffle else 0)
        while done < self.full:
            progress = self._dispatch(train_state, rows, done, min(done + self._count, self.full))
            train_state, done = progress.train_state, progress.steps
            yield progress
        if self.rest and done == self.full:
            yield self._dispatch(train_state, last, 0, 1)._replace(steps=self.steps)

    def _dispatch(self, train_state: Any, rows: jax.Array, start: int, stop: int) -> Progress:
        began = time.perf_counter()
        after, measured, compiling = self._run(self._fast, train_state, rows, start, stop)
        if jax.process_count() > 1:
            self._count = IN_FLIGHT  # the same on all processes, whatever their clocks say
        elif not compiling and rows.shape[1] == self.arrays.batch_size:
            faster = TARGET_SECONDS / max(time.perf_counter() - began, 1e-6) * (stop - start)
            self._count = max(1, min(int(faster), 4 * self._count))
        if self._well(after, measured):
            return Progress(after, stop, measured, rows.shape[1], compiling)
        good = finite(measured)
        stop = stop if good.all() else start + int(np.argmin(good)) + 1
        done = self._up_to_a_bad_step(train_state, rows, start, stop)
        return done._replace(compile_seconds=compiling + done.compile_seconds)

    def _well(self, after: Any, measured: dict[str, np.ndarray]) -> bool:
        """Whether steps can stay as they were taken."""
        guarded = self._fast == "guarded" or finite(measured).all()
        return bool(guarded) and not (self.place.undoes and not sound(after))

    def _up_to_a_bad_step(self, train_state: Any, rows: jax.Array, start: int, stop: int) -> Progress:
        """The steps up to the first that cannot stay as it was taken, which is left to the guard.

        It is the last, as far as was measured; else halving finds it. If its update spoils the parameters nevertheless,
        it is passed over. On a device whose sums have no order, another step may be the first now, or none.
        """
        self._count = IN_FLIGHT if jax.process_count() > 1 else 1  # short dispatches, until all is well again
        parts, middle = [], stop - 1
        while stop - start > 1:
            after, measured, _ = self._run(self._fast, train_state, rows, start, middle)
            if self._well(after, measured):
                train_state, start = after, middle
                parts.append(measured)
            else:
                stop = middle
            middle = (start + stop) // 2
        after, measured, compiling = self._run("guarded", train_state, rows, start, stop)
        if self.place.undoes and not sound(after):
            after, measured = passed_over(train_state), measured | {"skipped": np.ones(1, np.float32)}
        parts.append(measured)
        nothing = [np.zeros(len(part["loss"]), np.float32) for part in parts]  # of "skipped", which not all measure
        measured = {
            name: np.concatenate([part.get(name, none) for part, none in zip(parts, nothing, strict=True)])
            for name in measured
        }
        return Progress(after, stop, measured, rows.shape[1], compiling)

    def _run(
        self, which: str, train_state: Any, rows: jax.Array, start: int, stop: int
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """Takes steps; returns also what they measured, and of a program's first call how long it took."""
        began = time.perf_counter()
        train_state, measured = self._programs[which](train_state, self.data, rows, np.int32(start), np.int32(stop))
        if self.arrays.shuffle:
            self._rows(self._epoch + 1)  # drawn and sent while the device computes
        measured = {name: np.asarray(values)[start:stop] for name, values in measured.items()}
        program = which, rows.shape[1]
        first = program not in self._compiled
        self._compiled.add(program)
        return train_state, measured, time.perf_counter() - began if first else 0.0

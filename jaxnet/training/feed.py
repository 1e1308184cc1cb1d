"""Where a run's batches come from: arrays that stay on the device, or any iterable of batches."""

import functools
import time
import zlib
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxnet import _checks_named as checks
from jaxnet import data as data_module
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import nans, pairs, processes, sharding
from jaxnet.training.sources import Ahead, Source
from jaxnet.training.state import sound
from jaxnet.training.step import Step, passed_over

TARGET_SECONDS = 0.1
"""How long one dispatch should compute: long enough to cost nothing, short enough to stop and report at once."""

WINDOW = 32
"""Steps of a stream after which to look at them, if they do not take `TARGET_SECONDS`."""

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
    step that was not finite, it runs again from there up to that step, which is then left to the guarded one. So each
    step is computed by the same program whatever the dispatches' lengths, and a run has the same bits on a device whose
    arithmetic has a fixed order.

    A state that is kept also undoes an update that is not finite although the loss and the gradient are: the
    parameters stay spoiled, so one look a dispatch finds it, and halving the dispatch finds the step.
    """

    in_order = False  # a resumed run draws its batches itself

    def __init__(
        self,
        step: Step,
        data: Any,
        *,
        unguarded: Step | None = None,
        keeps: bool,
        watches: bool,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        mesh: Mesh | None,
        placement: Any = None,
    ):
        who = "fit"
        self.batch_size = checks.integer(who, "batch_size", batch_size, minimum=1)
        seed = checks.integer(who, "seed", seed, minimum=0)
        self.shuffle = checks.flag(who, "shuffle", shuffle)
        data = pairs.arrays(who, data)
        self.samples = len(jax.tree.leaves(data)[0])
        checks.flag(who, "drop_last", drop_last)
        if drop_last and self.batch_size > self.samples:
            raise DataError(
                f"{who}: a batch of {batch_size} from {self.samples} samples would be dropped, so nothing would be "
                f"trained; use a batch_size of at most {self.samples}, or drop_last=False"
            )
        self.full, rest = divmod(self.samples, self.batch_size)
        self.rest = 0 if drop_last else rest
        self.dropped = rest if drop_last else 0
        self.steps = self.full + bool(self.rest)
        self.mesh = mesh
        if mesh is not None:
            for size in {self.batch_size if self.full else 0, self.rest} - {0}:
                sharding.batch_fits(who, mesh, size)
            data = sharding.place(who, "the data", data, jax.tree.map(lambda _: sharding.replicated(mesh), data))
        self.data = jax.tree.map(jnp.asarray, data)
        self.description = {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": seed,
            "shuffle": shuffle,
            "drop_last": drop_last,
        }
        outputs = _outputs(mesh, placement)
        self._undoes = keeps and watches
        self.stop: Callable[[], bool] = lambda: False  # nothing here keeps a run waiting
        self._programs = {"guarded": nans.compiled(self._steps(step), donate_argnums=() if keeps else 0, **outputs)}
        if unguarded is not None and keeps:
            self._programs["unguarded"] = nans.compiled(self._steps(unguarded), **outputs)
        self._compiled: set[tuple[str, int]] = set()
        self._count = 1
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: data_module.epoch_order(self.samples, seed=seed, epoch=epoch, shuffle=shuffle).astype(
                np.int32
            )
        )
        self._rows = functools.lru_cache(maxsize=2)(self._place_rows)

    def _steps(self, step: Step) -> Callable[..., Any]:
        step = jax.jit(step)  # traced once for what it measures and for the loop

        def steps(train_state, data, rows, start, stop):
            def body(i, carry):
                train_state, measured = carry
                batch = jax.tree.map(lambda leaf: leaf[rows[i]], data)
                if self.mesh is not None:
                    batch = jax.lax.with_sharding_constraint(batch, sharding.over_batch(self.mesh))
                train_state, metrics = step(train_state, batch)
                return train_state, {name: measured[name].at[i].set(value) for name, value in metrics.items()}

            example = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((rows.shape[1], *leaf.shape[1:]), leaf.dtype), data
            )
            _, metrics = jax.eval_shape(step, train_state, example)
            empty = {name: jnp.zeros(rows.shape[0], value.dtype) for name, value in metrics.items()}
            return jax.lax.fori_loop(start, stop, body, (train_state, empty))

        return steps

    @property
    def example(self) -> Any:
        """Shapes and dtypes of a batch."""
        size = self.batch_size if self.full else self.rest
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), self.data)

    def _place_rows(self, epoch: int) -> tuple[jax.Array, jax.Array]:
        """The order of an epoch on the device, sent once an epoch: a row a batch, and the row of a smaller last one."""
        order, whole = self._order(epoch), self.full * self.batch_size
        parts = order[:whole].reshape(self.full, self.batch_size), order[whole : whole + self.rest][None]
        if self.mesh is None:
            return jnp.asarray(parts[0]), jnp.asarray(parts[1])
        everywhere = sharding.replicated(self.mesh)
        return sharding.put(parts[0], everywhere), sharding.put(parts[1], everywhere)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """The indices of the samples in a batch."""
        return self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, train_state: Any, epoch: int, start: int, position: Any = None) -> Generator[Progress, None, None]:
        """Trains on an epoch from its step ``start`` on; yields after every dispatch."""
        del position
        rows, last = self._rows(epoch if self.shuffle else 0)
        done = start
        while done < self.full:
            progress = self._dispatch(train_state, rows, done, min(done + self._count, self.full), epoch)
            train_state, done = progress.train_state, progress.steps
            yield progress
        if self.rest and done == self.full:
            progress = self._dispatch(train_state, last, 0, 1, epoch)
            yield progress._replace(steps=self.steps)

    def _dispatch(self, train_state: Any, rows: jax.Array, start: int, stop: int, epoch: int) -> Progress:
        began = time.perf_counter()
        which = "unguarded" if "unguarded" in self._programs else "guarded"
        after, measured, compiling = self._run(which, train_state, rows, start, stop, epoch)
        if jax.process_count() > 1:
            self._count = IN_FLIGHT  # the same on all processes, whatever their clocks say
        elif not compiling and rows.shape[1] == self.batch_size:
            faster = TARGET_SECONDS / max(time.perf_counter() - began, 1e-6) * (stop - start)
            self._count = max(1, min(int(faster), 4 * self._count))
        good = finite(measured)
        parts = [measured]
        if which == "unguarded" and not good.all():
            stop, after, parts = self._up_to_a_bad_one(train_state, rows, start, start + int(np.argmin(good)), epoch)
        if self._undoes and not sound(after):
            return self._without_a_bad_update(which, train_state, rows, start, stop, epoch, measured)._replace(
                compile_seconds=compiling
            )
        if which == "unguarded" and not good.all():
            after, measured, seconds = self._run("guarded", after, rows, stop, stop + 1, epoch)
            parts.append(measured)
            stop, compiling = stop + 1, compiling + seconds
            measured = {name: np.concatenate([part[name] for part in parts]) for name in measured}
        return Progress(after, stop, measured, rows.shape[1], compiling)

    def _up_to_a_bad_one(
        self, train_state: Any, rows: jax.Array, start: int, stop: int, epoch: int
    ) -> tuple[int, Any, list[dict[str, np.ndarray]]]:
        """The first step that is not finite, the state before it, and what the steps up to there measured."""
        # It ends this dispatch; the next ones are short until all is well again.
        self._count = IN_FLIGHT if jax.process_count() > 1 else 1
        parts = []
        while start < stop:
            after, measured, _ = self._run("unguarded", train_state, rows, start, stop, epoch)
            good = finite(measured)
            if good.all():
                train_state, start = after, stop
                parts = [measured]
            else:  # on a device whose sums have no order, another step may be the first bad one now
                stop = start + int(np.argmin(good))
        return stop, train_state, parts

    def _without_a_bad_update(
        self, which: str, train_state: Any, rows: jax.Array, start: int, stop: int, epoch: int, measured: Any
    ) -> Progress:
        """The steps from ``start`` up to the one whose update spoils the parameters, which is passed over."""
        self._count = IN_FLIGHT if jax.process_count() > 1 else 1
        low, high = start, stop  # the parameters are finite after the steps up to low, and not up to high
        while high - low > 1:
            middle = (low + high) // 2
            after, _, _ = self._run(which, train_state, rows, low, middle, epoch)
            if sound(after):
                train_state, low = after, middle
            else:
                high = middle
        taken = {name: values[: high - start] for name, values in measured.items()}
        skipped = np.zeros(high - start, np.float32) if "skipped" not in taken else taken["skipped"].copy()
        skipped[-1] = 1
        return Progress(passed_over(train_state), high, taken | {"skipped": skipped}, rows.shape[1])

    def _run(
        self, which: str, train_state: Any, rows: jax.Array, start: int, stop: int, epoch: int
    ) -> tuple[Any, dict[str, np.ndarray], float]:
        """Takes steps; returns also what they measured, and of a program's first call how long it took."""
        began = time.perf_counter()
        train_state, measured = self._programs[which](train_state, self.data, rows, np.int32(start), np.int32(stop))
        if self.shuffle:
            self._rows(epoch + 1)  # drawn and sent while the device computes
        measured = {name: np.asarray(values)[start:stop] for name, values in measured.items()}
        program = which, rows.shape[1]
        first = program not in self._compiled
        self._compiled.add(program)
        return train_state, measured, time.perf_counter() - began if first else 0.0


class Stream:
    """Batches from an iterable, fetched ahead, one step a dispatch."""

    in_order = True  # a resumed run relies on the data's own order

    def __init__(
        self, step: Step, source: Source, *, keeps: bool, watches: bool, mesh: Mesh | None, placement: Any = None
    ):
        if jax.process_count() > 1 and source.steps is None:
            raise ConfigError(
                "fit: several processes must train on equally many batches each epoch; give steps_per_epoch, which is "
                "what the one with the fewest has"
            )
        self.source, self.mesh = source, mesh
        self.steps, self.dropped = source.steps, 0
        self.description = {"steps_per_epoch": source.steps}
        self.recent: dict[int, Any] = {}
        self._undoes = keeps and watches
        self._program = nans.compiled(step, donate_argnums=() if keeps else 0, **_outputs(mesh, placement))
        self._shapes: set[Any] = set()
        self._warned = False
        self.stop: Callable[[], bool] = lambda: False

    @property
    def example(self) -> Any:
        """Shapes and dtypes of a batch, of all processes together, which is looked at and not lost."""
        return jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct((leaf.shape[0] * jax.process_count(), *leaf.shape[1:]), leaf.dtype)
                if leaf.ndim
                else leaf
            ),
            self.source.example,
        )

    def epoch(self, train_state: Any, epoch: int, start: int, position: Any = None) -> Generator[Progress, None, None]:
        """Trains on an epoch from its step ``start`` on; yields after every few steps."""
        batches, get_state, skip = self.source.epoch(epoch, start, position)
        done, compile_seconds, began = start, 0.0, time.perf_counter()
        alone = jax.process_count() == 1  # several processes must yield at the same steps
        window = _Window(train_state)
        limit = None if self.steps is None else self.steps - start
        narrowed: dict[str, np.dtype] = {}
        failure: Exception | None = None

        def place(number, batch):
            return self._placed(self.source.at(epoch, start + number), batch, narrowed)

        def finished():
            train_state, measured = self._sound(window)
            return Progress(train_state, done, measured, np.array(window.sizes), compile_seconds, position)

        with Ahead(batches, get_state, skip, limit, place, self.stop) as fetched:
            try:
                for batch, position_after in fetched:
                    if narrowed and not self._warned:  # not in the thread, so that it names the caller's line
                        checks.warn_of_narrowed("fit", narrowed)
                        self._warned = True
                    shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(batch))
                    if shapes not in self._shapes:
                        self._agree_on(shapes)
                    clock = time.perf_counter()
                    train_state, metrics = self._program(train_state, batch)
                    if shapes not in self._shapes:
                        self._shapes.add(shapes)
                        jax.block_until_ready(metrics)
                        compile_seconds += time.perf_counter() - clock
                    self.recent[done] = batch
                    window.add(train_state, metrics, batch if self._undoes else None, pairs.size(batch))
                    done, position = done + 1, position_after
                    if len(window.measured) % IN_FLIGHT == 0:
                        jax.block_until_ready(metrics)
                    late = time.perf_counter() - began > TARGET_SECONDS
                    if (alone and late) or len(window.measured) == (WINDOW if alone else IN_FLIGHT):
                        progress = finished()
                        train_state = progress.train_state
                        yield progress
                        window, began, compile_seconds = _Window(train_state), time.perf_counter(), 0.0
                        self.recent = {k: v for k, v in self.recent.items() if k > done - 2 * IN_FLIGHT}
            except Exception as error:  # of the loader; the steps that were taken are not lost with it
                failure = error
        if window.measured:
            yield finished()
        if failure is not None:
            raise failure
        if not self.stop():
            self.source.must_suffice(epoch, done)

    def _sound(self, window: "_Window") -> tuple[Any, dict[str, np.ndarray]]:
        """The state after a window of steps, without updates that are not finite, and what the steps measured."""
        measured = jax.device_get(window.measured)
        if not self._undoes or sound(window.after):
            return window.after, _columns(measured)
        train_state = window.before
        for i, batch in enumerate(window.batches):
            after, metrics = self._program(train_state, batch)
            measured[i] = {"skipped": np.float32(0), **jax.device_get(metrics)}
            if sound(after):
                train_state = after
            else:
                train_state = passed_over(train_state)
                measured[i]["skipped"] = np.float32(1)
        return train_state, _columns(measured)

    def _agree_on(self, shapes: Any) -> None:
        """Over several processes: refuses batches that are not of one shape, which the others could not know of."""
        if jax.process_count() == 1:
            return
        if self._shapes:
            raise DataError(
                f"fit: over several processes all batches have the shapes of the first, {next(iter(self._shapes))}, "
                f"got {shapes}; drop or fill a last smaller batch"
            )
        processes.agree(
            "fit", "the shape of the first batch", zlib.crc32(repr(shapes).encode()), f"here it is {shapes}"
        )

    def _placed(self, who: str, batch: Any, narrowed: dict[str, np.dtype]) -> Any:
        batch = pairs.batch(who, batch, narrowed)
        if self.mesh is None:
            return jax.device_put(batch)
        return sharding.place_local_batch(who, batch, self.mesh)


def _outputs(mesh: Mesh | None, placement: Any) -> dict[str, Any]:
    """Where a program's results live: the state where it was, what was measured on every device."""
    return {} if mesh is None else {"out_shardings": (placement, sharding.replicated(mesh))}


class _Window:
    """The steps of a stream that are not looked at yet, and what it takes to do them again."""

    def __init__(self, train_state: Any):
        self.before = self.after = train_state
        self.measured: list[dict[str, Any]] = []
        self.batches: list[Any] = []
        self.sizes: list[int] = []

    def add(self, train_state: Any, measured: dict[str, Any], batch: Any, size: int) -> None:
        """Takes in a step."""
        self.after = train_state
        self.measured.append(measured)
        self.batches.append(batch)
        self.sizes.append(size)


def _columns(measured: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([m[name] for m in measured]) for name in measured[0]}

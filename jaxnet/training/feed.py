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

from jaxnet import _checks as checks
from jaxnet import data as data_module
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import nans, pairs, processes, sharding
from jaxnet.training.sources import Ahead, Source
from jaxnet.training.step import Step

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
    """Which steps were finite, by the losses and the gradients' norms that they measured (of both players of a GAN)."""
    names = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")
    return np.logical_and.reduce([np.isfinite(measured[name]) for name in names if name in measured])


class Resident:
    """Arrays on the device, sampled inside the compiled program, many steps a dispatch.

    The number of steps is an argument of one program, so no number compiles anew.

    Given a step without its guard too, dispatches run that, and keep the state that they began with. Where one met a
    step that was not finite, it runs again from there up to that step, which is then left to the guarded one. So each
    step is computed by the same program whatever the dispatches' lengths, and a run has the same bits on a device whose
    arithmetic has a fixed order.
    """

    in_order = False  # a resumed run draws its batches itself

    def __init__(
        self,
        step: Step,
        data: Any,
        *,
        unguarded: Step | None = None,
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
        self._programs = {"guarded": nans.compiled(self._steps(step), donate_argnums=0, **outputs)}
        if unguarded is not None:
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
        if which == "guarded" or good.all():
            return Progress(after, stop, measured, rows.shape[1], compiling)
        # The first bad step ends this dispatch; the next ones are short until all is well again.
        self._count = IN_FLIGHT if jax.process_count() > 1 else 1
        stop = bad = start + int(np.argmin(good))
        parts = []
        while start < stop:
            after, measured, _ = self._run("unguarded", train_state, rows, start, stop, epoch)
            good = finite(measured)
            if good.all():
                train_state, start = after, stop
                parts = [measured]
            else:  # on a device whose sums have no order, another step may be the first bad one now
                stop = bad = start + int(np.argmin(good))
        train_state, measured, seconds = self._run("guarded", train_state, rows, bad, bad + 1, epoch)
        parts.append(measured)
        together = {name: np.concatenate([part[name] for part in parts]) for name in measured}
        return Progress(train_state, bad + 1, together, rows.shape[1], compiling + seconds)

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

    def __init__(self, step: Step, source: Source, *, mesh: Mesh | None, placement: Any = None):
        if jax.process_count() > 1 and source.steps is None:
            raise ConfigError(
                "fit: several processes must train on equally many batches each epoch; give steps_per_epoch, which is "
                "what the one with the fewest has"
            )
        self.source, self.mesh = source, mesh
        self.steps, self.dropped = source.steps, 0
        self.description = {"steps_per_epoch": source.steps}
        self.recent: dict[int, Any] = {}
        self._program = nans.compiled(step, donate_argnums=0, **_outputs(mesh, placement))
        self._shapes: set[Any] = set()
        self._warned = False

    def epoch(self, train_state: Any, epoch: int, start: int, position: Any = None) -> Generator[Progress, None, None]:
        """Trains on an epoch from its step ``start`` on; yields after every few steps."""
        batches, get_state = self.source.epoch(epoch, start, position)
        done, pending, sizes, began = start, [], [], time.perf_counter()
        compile_seconds, alone = 0.0, jax.process_count() == 1  # several processes must yield at the same steps
        limit = None if self.steps is None else self.steps - start
        narrowed: dict[str, np.dtype] = {}

        def place(number, batch):
            return self._placed(self.source.at(epoch, start + number), batch, narrowed)

        with Ahead(batches, get_state, limit, place) as fetched:
            for batch, position in fetched:
                if narrowed and not self._warned:  # here, and not in the thread, so that it names the caller's line
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
                self.recent = {k: v for k, v in self.recent.items() if k > done - 2 * IN_FLIGHT} | {done: batch}
                pending.append(metrics)
                sizes.append(pairs.size(batch))
                done += 1
                if len(pending) == IN_FLIGHT or (alone and time.perf_counter() - began > TARGET_SECONDS):
                    yield Progress(train_state, done, _columns(pending), np.array(sizes), compile_seconds, position)
                    pending, sizes, began, compile_seconds = [], [], time.perf_counter(), 0.0
        if pending:
            yield Progress(train_state, done, _columns(pending), np.array(sizes), compile_seconds, position)
        self.source.must_suffice(epoch, done)

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


def _columns(metrics: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    host = jax.device_get(metrics)
    return {name: np.array([m[name] for m in host]) for name in host[0]}

"""The loop around a training step: epochs, reports, early stopping, checkpoints, exact resume."""

import contextlib
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, NonFiniteError
from jaxnet.training import early_stopping as stopping
from jaxnet.training import processes, sharding
from jaxnet.training.checkpoint import read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, Resident, Stream, finite
from jaxnet.training.history import History, Record, line
from jaxnet.training.interrupts import Interrupts
from jaxnet.training.sources import Source
from jaxnet.training.state import MOST_BYTES_KEPT, copied, nbytes
from jaxnet.training.step import Step

_USUAL_CAUSES = (
    "Lower the learning rate, clip the gradient (optimizers.clip_by_global_norm), or look for log(0), 0/0 and overflow "
    "in the loss"
)

SAVE_SHARE = 0.05
"""The most of the time that saving checkpoints may take."""


class Trained(NamedTuple):
    """What `train` returns.

    Attributes:
      train_state: after the last step.
      best: of the best epoch, what ``weights`` gave; of the last one, if nothing was watched.
      best_epoch: its number from 1, or 0 if nothing was watched.
      history: the records of all epochs.
    """

    train_state: Any
    best: Any
    best_epoch: int
    history: History


def train(
    step: Step,
    train_state: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    weights: Callable[[Any], Any] | None = None,
    early_stopping: stopping.EarlyStopping | int | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_seconds: float = 10.0,
    callbacks: Sequence[Callable[[Record, Any], Any]] = (),
    log: str | os.PathLike[str] | None = None,
    mesh: Any = None,
    shard_parameters: bool = False,
    max_skipped: int = 20,
    progress: bool | Callable[[str], Any] = True,
    explain: Callable[[Any], str] | None = None,
    unguarded: Step | None = None,
) -> Trained:
    """Runs any training step over data, epoch by epoch; `fit` is this loop around `make_step`'s function.

    The step may be of any kind, as long as its state has the fields ``step`` and ``guard`` of a `TrainState`; so has
    the state of two players (`make_gan_step`). All other arguments are those of `fit`.

    Args:
      step: ``(train_state, (x, target)) -> (train_state, metrics)``, pure; "loss" must be one of the metrics.
      train_state: the state to begin with. It is copied first, and remains yours.
      data: arrays ``(x, target)``, an iterable of batches, or a function from the epoch (from 0) to one.
      evaluate: ``train_state -> {name: number}``, called after every epoch; its columns get ``validation_`` before
        their names.
      weights: ``train_state -> tree``, what is kept of the best epoch; ``(params, state)`` unless given.
      explain: ``batch -> str``, called with a batch that gave NaN, to say what is wrong with it.
      unguarded: the same step without its guard (``make_step(..., guard=False)``), which arrays are trained with where
        the state is small; from the first step of a dispatch that is not finite on, ``step`` does it again. A guarded
        update waits for all gradients, a fifth of the time of the smallest networks.

    Returns:
      A `Trained`.

    Raises:
      ConfigError: arguments that make no sense, or a checkpoint of a run with other settings.
      DataError: empty or non-finite data, unequal lengths, a batch larger than the data or one that does not fit the
        mesh.
      NonFiniteError: ``max_skipped`` steps in a row were not finite; ``error.train_state`` is the last good one.
      CheckpointError: a checkpoint that is damaged or belongs to another network or optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> net, optimizer = layers.dense(1), optimizers.adam(0.1)
      >>> x = jnp.linspace(-1, 1, 64)[:, None]
      >>> step = training.make_step(net, losses.mse, optimizer)
      >>> state = training.init(net, optimizer, x, 0)
      >>> result = training.train(step, state, (x, 2 * x), epochs=30, batch_size=16, progress=False)
      >>> bool(result.history["loss"][-1] < 1e-2)
      True
    """
    who = "fit"
    epochs = checks.integer(who, "epochs", epochs, minimum=1)
    max_skipped = checks.integer(who, "max_skipped", max_skipped, minimum=1)
    checkpoint_seconds = checks.number(who, "checkpoint_seconds", checkpoint_seconds, low=0)
    callbacks = [checks.function(who, "callbacks", callback) for callback in callbacks]
    for name in ("step", "guard"):
        if not hasattr(train_state, name):
            raise ConfigError(f"{who}: the train state lacks the field {name!r}; begin with training.init")
    stop_early = stopping.checked(who, early_stopping, evaluate is not None)
    weights = weights or _params_and_state
    placement = None
    if mesh is not None:
        mesh = sharding.automatic(who, mesh)
    processes.must_take_part(who, mesh)
    if mesh is not None:
        placement = sharding.of_parameters(
            mesh, train_state, sharded=checks.flag(who, "shard_parameters", shard_parameters)
        )
        train_state = sharding.place(who, "the state to begin with", train_state, placement)
    elif shard_parameters:
        raise ConfigError(f"{who}: shard_parameters needs mesh, the devices to share them among")
    train_state = copied(train_state)  # which is donated to the first step

    if isinstance(data, tuple):
        if batch_size is None or steps_per_epoch is not None:
            raise ConfigError(f"{who}: arrays are trained on in batches: give batch_size, and no steps_per_epoch")
        feed: Resident | Stream = Resident(
            step, data, unguarded=unguarded if nbytes(train_state) <= MOST_BYTES_KEPT else None, batch_size=batch_size,
            seed=seed, shuffle=shuffle, drop_last=drop_last, mesh=mesh, placement=placement,
        )  # fmt: skip
    else:
        if batch_size is not None:
            raise ConfigError(f"{who}: an iterable makes its own batches, so batch_size must not be given")
        source = data if isinstance(data, Source) else Source(data, steps_per_epoch)
        feed = Stream(step, source, mesh=mesh, placement=placement)
    settings = json.dumps([epochs, max_skipped, checkpoint is not None, evaluate is not None, feed.description])
    processes.agree(who, "the call", zlib.crc32(settings.encode()), f"all must make the same, here: {settings}")

    report = _Report(progress, epochs, feed)
    run = _Run(train_state, weights, stop_early)
    saver = _Saver(checkpoint, checkpoint_seconds)
    if saver.checkpoints is not None:
        run.restore(saver.checkpoints, feed.description)
        processes.agree(
            who, "the checkpoint", int(run.train_state.step),
            f"all must see one file system, and {saver.checkpoints.directory} is not on one",
        )  # fmt: skip
        if run.step_of_epoch or len(run.history):
            report.say(
                f"resumed from {saver.checkpoints.directory}: epoch {len(run.history)} of {epochs} is done"
                + (f", and {run.step_of_epoch} steps of the next" if run.step_of_epoch else "")
            )
    with Interrupts(enabled=saver.checkpoints is not None) as interrupts, sharding.in_use(mesh):
        while len(run.history) < epochs and not run.finished:
            with contextlib.closing(
                feed.epoch(run.train_state, len(run.history), run.step_of_epoch, run.position)
            ) as dispatches:
                for done in dispatches:
                    run.take(done)
                    report.step(run, done)
                    _guard(run, feed, max_skipped, saver, explain)
                    if saver.checkpoints is None:
                        continue
                    stop, due = processes.any_process(interrupts.received is not None, saver.due())
                    if stop or (due and done.steps != feed.steps):
                        saver.save(run, feed.description)
                    if stop:
                        report.close()
                        _leave(interrupts.received or "another process's signal", saver, run)
            run.end_epoch(evaluate, callbacks)
            run.finished, due = processes.any_process(run.finished, saver.due())
            report.epoch(run)
            if log is not None and jax.process_index() == 0:
                run.history.save(log)
            if due or run.finished or len(run.history) == epochs:
                saver.save(run, feed.description)
    report.close()
    if run.finished and run.best is not None:
        report.say(f"stopped early: no {run.best.monitor} better than epoch {run.best.epoch}'s {run.best.value:.4g}")
    kept = run.best_weights if run.best is not None else weights(run.train_state)
    return Trained(run.train_state, kept, run.best.epoch if run.best is not None else 0, run.history)


def _params_and_state(train_state: Any) -> Any:
    return train_state.params, train_state.state


class _Run:
    """What changes in a run, and so what a checkpoint holds."""

    def __init__(self, train_state: Any, weights: Any, early_stopping: stopping.EarlyStopping | None):
        self.train_state = train_state
        self.weights = weights
        self.history = History()
        self.step_of_epoch = 0
        self.position: Any = None
        self.totals: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.skipped = 0
        self.in_row = self.longest_row = 0
        self.finished = False
        self.patience = math.inf if early_stopping is None else early_stopping.patience
        self.best: stopping.Best | None = None
        self.best_weights: Any = ()
        if early_stopping is not None:
            self.best = stopping.Best(early_stopping.monitor, early_stopping.mode, early_stopping.minimum_change)
        if self.best is not None:
            self.best_weights = copied(weights(train_state))
        self._clock = time.perf_counter()

    def take(self, done: Progress) -> None:
        """Takes in what a dispatch has done."""
        self.train_state, self.step_of_epoch, self.position = done.train_state, done.steps, done.position
        now = time.perf_counter()
        self.seconds += now - self._clock - done.compile_seconds
        self._clock = now
        for name, values in done.measured.items():
            total = self.totals.setdefault(name, [0, 0.0, 0.0])
            for value in values.tolist():  # one after the other, so that the sum does not depend on the dispatches
                if math.isfinite(value):
                    total[0] += 1
                    total[1] += value
                    total[2] += value * value
        good_steps = finite(done.measured)
        self.skipped += int((~good_steps).sum())
        self.longest_row = 0
        for good in good_steps.tolist():  # within a dispatch too, so that its length does not decide
            self.in_row = 0 if good else self.in_row + 1
            self.longest_row = max(self.longest_row, self.in_row)

    def end_epoch(self, evaluate: Any, callbacks: Iterable[Any]) -> None:
        """Closes an epoch with its record."""
        means = {name: total / count if count else math.nan for name, (count, total, _) in self.totals.items()}
        count, total, squares = self.totals["loss"]
        deviation = math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else math.nan
        record: Record = {"epoch": len(self.history) + 1, "step": int(self.train_state.step), "loss": math.nan, **means}
        record["loss_deviation"] = deviation
        record["skipped"] = self.skipped
        if evaluate is not None:
            measured = evaluate(self.train_state)
            names = sorted(measured, key=lambda name: name != "loss")  # the loss first; else in their order
            record |= {f"validation_{name}": float(measured[name]) for name in names}
        record["seconds"] = self.seconds
        record["steps_per_second"] = self.step_of_epoch / max(self.seconds, 1e-9)
        self.history.records.append(record)
        if self.best is not None:
            if self.best.improved(record):
                self.best_weights = copied(self.weights(self.train_state))
            self.finished = self.best.waited >= self.patience
        for callback in callbacks:
            self.finished |= callback(record, self.train_state) is True
        self.step_of_epoch, self.position, self.totals, self.skipped, self.seconds = 0, None, {}, 0, 0.0
        self._clock = time.perf_counter()

    @property
    def saved(self) -> Any:
        """The arrays of a checkpoint."""
        return {"train_state": self.train_state, "best": self.best_weights}

    def metadata(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What else a checkpoint holds, as JSON."""
        return {
            "settings": settings,
            "history": self.history.records,
            "step_of_epoch": self.step_of_epoch,
            "position": _as_json(self.position),
            "totals": self.totals,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "finished": self.finished,
            "best": None if self.best is None else self.best.save(),
        }

    def restore(self, checkpoints: Checkpoints, settings: dict[str, Any]) -> None:
        """Takes up the newest checkpoint, if there is one."""
        latest = checkpoints.latest()
        if latest is None:
            return
        metadata = read_metadata(latest)
        before = metadata.get("settings", {})
        if before != settings:
            names = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
            listed = ", ".join(f"{k} {before.get(k)!r}, now {settings.get(k)!r}" for k in names)
            raise ConfigError(
                f"fit: the run in {checkpoints.directory} had other settings ({listed}), so it would not be the same "
                f"run going on; restore them, or give another directory"
            )
        if (metadata["best"] is None) != (self.best is None):
            had, has = ("no", "one") if metadata["best"] is None else ("an", "none")
            raise ConfigError(
                f"fit: the run in {checkpoints.directory} had {had} early_stopping, and this call has {has}; give the "
                f"same, or another directory"
            )
        restored = checkpoints.restore(self.saved)
        assert restored is not None
        tree = restored[0]
        self.train_state = tree["train_state"]
        self.in_row = int(self.train_state.guard.in_row)
        self.best_weights = tree["best"]
        self.history = History(metadata["history"])
        self.step_of_epoch = metadata["step_of_epoch"]
        self.position = _from_json(metadata["position"])
        self.totals = metadata["totals"]
        self.skipped, self.seconds, self.finished = metadata["skipped"], metadata["seconds"], metadata["finished"]
        if self.best is not None:
            self.best.restore(metadata["best"])
            self.finished = self.best.waited >= self.patience


class _Saver:
    """When to save, and where."""

    def __init__(self, checkpoint: Any, seconds: float):
        if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
            checkpoint = Checkpoints(checkpoint)
        self.checkpoints: Checkpoints | None = checkpoint
        self.seconds = seconds
        self._last = time.perf_counter()
        self._cost = 0.0
        self._saved: tuple[int, int] | None = None

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another, by this process's clock."""
        age = time.perf_counter() - self._last
        return self.checkpoints is not None and age > max(self.seconds, self._cost / SAVE_SHARE)

    def save(self, run: _Run, settings: dict[str, Any]) -> None:
        """Saves now."""
        step = int(run.train_state.step)
        if self.checkpoints is None or self._saved == (step, len(run.history)):
            return
        began = time.perf_counter()
        metric = None
        if run.best is not None and not run.step_of_epoch and len(run.history):
            value = run.history[-1][run.best.monitor]
            metric = value if run.best.mode == "min" else -value
        # Of what every process has whole, the first writes its copy; pieces are written by those who have them.
        tree = jax.tree.map(sharding.own_copy, run.saved)
        in_pieces = not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))
        if in_pieces or jax.process_index() == 0:
            self.checkpoints.save(step, tree, metadata=run.metadata(settings), metric=metric)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint")  # once it is there, all may end
        self._saved = (step, len(run.history))
        self._last = time.perf_counter()
        self._cost = self._last - began


def _guard(run: _Run, feed: Resident | Stream, max_skipped: int, saver: _Saver, explain: Any) -> None:
    """Ends the run when nothing but non-finite steps came for too long."""
    if run.longest_row < max_skipped:
        return
    guard = run.train_state.guard
    last = int(guard.step)
    step_of_epoch = run.step_of_epoch - (int(run.train_state.step) - last)
    params = jax.tree_util.tree_leaves_with_path(getattr(run.train_state, "params", ()))
    leaf = int(guard.leaf)
    where = f"the gradient of {jax.tree_util.keystr(params[leaf][0])}" if 0 <= leaf < len(params) else "the loss"
    if isinstance(feed, Resident):
        rows = feed.batch(len(run.history), step_of_epoch)
        batch = jax.tree.map(lambda a: np.asarray(a[rows]), feed.data)
        which = f"samples {rows[:8].tolist()}{'...' if len(rows) > 8 else ''}"
    else:
        batch, which = feed.recent.get(step_of_epoch), "see error.batch"
        if jax.process_count() > 1:
            batch = multihost_utils.process_allgather(batch, tiled=True)
    cause = explain(batch) if explain is not None and batch is not None else ""
    error = NonFiniteError(
        f"fit: {run.longest_row} steps in a row were not finite; the last was step {last} "
        f"(epoch {len(run.history) + 1}, batch {step_of_epoch}: {which}); the first value that was not "
        f"finite is {where}. {cause or _USUAL_CAUSES}. "
        f"None of them has changed the parameters, which are in error.train_state"
        + (f", and saved in {saver.checkpoints.directory}" if saver.checkpoints is not None else "")
    )
    saver.save(run, feed.description)
    error.train_state, error.batch = run.train_state, batch  # type: ignore[attr-defined]
    raise error


def _leave(signal_name: str, saver: _Saver, run: _Run) -> None:
    assert saver.checkpoints is not None
    if jax.process_index() == 0:
        print(
            f"{signal_name}: saved at step {int(run.train_state.step)} in {saver.checkpoints.directory}; "
            f"the same command goes on from there",
            flush=True,
        )
    raise SystemExit(0)


class _Report:
    """Lines for people, and a bar where there is a terminal."""

    def __init__(self, progress: bool | Callable[[str], Any], epochs: int, feed: Resident | Stream):
        self._write: Callable[[str], Any] | None = None
        self._bar: Any = None
        self._epochs = epochs
        self._began = time.perf_counter()
        self._first: int | None = None
        if not callable(progress):
            checks.flag("fit", "progress", progress)
        if not progress or jax.process_index() > 0:
            return
        self._write = progress if callable(progress) else _print
        if progress is True and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                self._bar = tqdm(total=feed.steps, leave=False, unit="step")
                self._write = tqdm.write
        if feed.dropped:
            self.say(
                f"{feed.dropped} of {feed.samples} samples do not fill a batch and are left out, others each epoch"  # type: ignore[union-attr]
                if feed.shuffle  # type: ignore[union-attr]
                else f"the last {feed.dropped} of {feed.samples} samples do not fill a batch and are never trained on"  # type: ignore[union-attr]
            )

    def say(self, text: str) -> None:
        """Writes a line."""
        if self._write is not None:
            self._write(text)

    def step(self, run: _Run, done: Progress) -> None:
        """Moves the bar."""
        if self._first is None:
            self._first, self._began = len(run.history), time.perf_counter()
        if done.compile_seconds:
            self.say(f"compiled the step in {done.compile_seconds:.2g} s")
        if self._bar is not None:
            self._bar.n = done.steps
            self._bar.set_description(f"epoch {len(run.history) + 1}/{self._epochs}", refresh=False)
            self._bar.set_postfix(loss=f"{done.measured['loss'][-1]:.4g}", refresh=False)
            self._bar.refresh()

    def epoch(self, run: _Run) -> None:
        """Writes an epoch's line."""
        if self._write is None:
            return
        done = len(run.history)
        left = (time.perf_counter() - self._began) / (done - (self._first or 0)) * (self._epochs - done)
        self.say(line(run.history[-1], self._epochs, left))

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _print(text: str) -> None:
    print(text, flush=True)


def _as_json(position: Any) -> Any:
    """An iterator's position, JSON or bytes, as JSON."""
    return {"bytes": position.hex()} if isinstance(position, bytes) else {"json": position}


def _from_json(saved: Any) -> Any:
    return bytes.fromhex(saved["bytes"]) if "bytes" in saved else saved["json"]

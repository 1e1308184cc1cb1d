"""The loop around a training step: epochs, reports, early stopping, checkpoints, exact resume."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, NonFiniteError
from jaxnet.training import early_stopping as stopping
from jaxnet.training import processes, sharding
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Resident, Stream
from jaxnet.training.history import History, Record
from jaxnet.training.interrupts import Interrupts
from jaxnet.training.report import Report
from jaxnet.training.run import Run, Saver
from jaxnet.training.sources import Source
from jaxnet.training.state import MOST_BYTES_KEPT, copied, nbytes
from jaxnet.training.step import Step

_USUAL_CAUSES = (
    "Lower the learning rate, clip the gradient (optimizers.clip_by_global_norm), or look for log(0), 0/0 and overflow "
    "in the loss"
)


_NO_LEAF = "the loss, or the sum of all gradients' squares"


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
    evaluate: Callable[..., dict[str, float]] | None = None,
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
        their names. One that has an argument ``epoch`` is given the epoch's number, from 0.
      weights: ``train_state -> tree``, what is kept of the best epoch; ``(params, state)`` unless given.
      explain: ``batch -> str``, called with a batch that gave NaN, to say what is wrong with it.
      unguarded: the same step without its guard (``make_step(..., guard=False)``), which arrays are trained with where
        the state is small; from the first step of a dispatch that is not finite on, ``step`` does it again. A guarded
        update waits for all gradients, which the smallest networks feel.

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
        source.must_last(epochs)
        feed = Stream(step, source, mesh=mesh, placement=placement)
    settings = json.dumps([epochs, max_skipped, checkpoint is not None, evaluate is not None, feed.description])
    processes.agree(who, "the call", zlib.crc32(settings.encode()), f"all must make the same, here: {settings}")

    report = Report(progress, epochs, feed)
    run = Run(train_state, weights, stop_early)
    saver = Saver(checkpoint, checkpoint_seconds)
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
                + ("; nothing is left to train: take another directory to train anew" if run.done(epochs) else "")
                + ("; the data must come in the same order again" if feed.in_order and run.position is None else "")
            )
    with Interrupts(enabled=saver.checkpoints is not None) as interrupts, sharding.in_use(mesh):
        while not run.done(epochs):
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
            if run.ends_here(epochs) and run.in_row == int(run.train_state.step):  # nothing was ever learned
                _guard(run, feed, run.in_row, saver, explain)
            run.end_epoch(evaluate, callbacks)
            run.finished, due = processes.any_process(run.finished, saver.due())
            report.epoch(run)
            if log is not None and jax.process_index() == 0:
                run.history.save(log)
            if due or run.finished or len(run.history) == epochs:
                saver.save(run, feed.description)
        (stop,) = processes.any_process(interrupts.received is not None)
        if stop:  # it came with the last epoch's validation or callbacks
            report.close()
            _leave(interrupts.received or "another process's signal", saver, run)
    report.close()
    if run.finished and run.best is not None:
        report.say(f"stopped early: no {run.best.monitor} better than epoch {run.best.epoch}'s {run.best.value:.4g}")
    kept = run.best_weights if run.best is not None else weights(run.train_state)
    return Trained(run.train_state, kept, run.best.epoch if run.best is not None else 0, run.history)


def _params_and_state(train_state: Any) -> Any:
    return train_state.params, train_state.state


def _guard(run: Run, feed: Resident | Stream, max_skipped: int, saver: Saver, explain: Any) -> None:
    """Ends the run when nothing but non-finite steps came for too long."""
    if run.longest_row < max_skipped:
        return
    guard = run.train_state.guard
    last = int(guard.step)
    step_of_epoch = run.step_of_epoch - (int(run.train_state.step) - last)
    params = jax.tree_util.tree_leaves_with_path(getattr(run.train_state, "params", ()))
    leaf = int(guard.leaf)
    where = f"the gradient of {jax.tree_util.keystr(params[leaf][0])}" if 0 <= leaf < len(params) else _NO_LEAF
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


def _leave(signal_name: str, saver: Saver, run: Run) -> None:
    assert saver.checkpoints is not None
    if jax.process_index() == 0:
        print(
            f"{signal_name}: saved at step {int(run.train_state.step)} in {saver.checkpoints.directory}; "
            f"the same command goes on from there",
            flush=True,
        )
    raise SystemExit(0)

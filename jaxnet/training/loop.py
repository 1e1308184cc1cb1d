"""The loop around a training step: epochs, reports, early stopping, checkpoints, exact resume."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet import _checks_named as checks
from jaxnet.errors import CheckpointError, ConfigError, JaxnetError, NonFiniteError
from jaxnet.training import early_stopping as stopping
from jaxnet.training import identity as identities
from jaxnet.training import processes, sharding
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Resident, Stream
from jaxnet.training.history import History, Record
from jaxnet.training.interrupts import ENDED, Interrupts, ending
from jaxnet.training.report import Report
from jaxnet.training.run import HOW, Run, Saver
from jaxnet.training.sources import Source
from jaxnet.training.state import MOST_BYTES_KEPT, copied, nbytes, sound
from jaxnet.training.step import COLUMNS, Step

_USUAL_CAUSES = (
    "Lower the learning rate, clip the gradient (optimizers.clip_by_global_norm), or look for log(0), 0/0 and overflow "
    "in the loss"
)


_UPDATE = "the optimizer's update (loss and gradient were finite)"
_UPDATE_CAUSES = (
    "Look at the learning rate (does a schedule divide by zero?), at the optimizer's eps, and at parameters near the "
    "end of their dtype's range"
)
_STAYS = (
    "a skipped step leaves the optimizer's count where it was, so a schedule that is not finite at one count stays "
    "there: the first of these steps was {}"
)
_OURS = [name for name in COLUMNS if name not in ("loss", "penalty", "grad_norm", "skipped")]
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
    resume: str = "same",
    identity: Mapping[str, str] | None = None,
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
      identity: more of what makes this run this one, by name: where a text differs from that of the run in the
        directory, that run is not taken up. The step's program and ``train_state`` are part of it anyway. What your
        data are, say a checksum, can only come from you.
      explain: ``batch -> str``, called with a batch that gave NaN, to say what is wrong with it.
      unguarded: the same step without its guard (``make_step(..., guard=False)``), which arrays are trained with where
        the state is small; from the first step of a dispatch that is not finite on, ``step`` does it again. A guarded
        update waits for all gradients, which the smallest networks feel.

    Returns:
      A `Trained`.

    Raises:
      ConfigError: arguments that make no sense, or a checkpoint of a run with other settings or another identity.
      DataError: empty or non-finite data, unequal lengths, a batch larger than the data or one that does not fit the
        mesh.
      NonFiniteError: ``max_skipped`` steps in a row were not finite; ``error.train_state`` is the last good one.
      CheckpointError: a checkpoint that is damaged or belongs to another network or optimizer, or a directory that
        cannot be written or is in use.
      KeyboardInterrupt: Ctrl-C, when the steps under way are done (a second one at once).
      SystemExit: SIGTERM, if there is a checkpoint, with status 143.

    Whatever is raised once training has begun, also by a callback, a loader or ``evaluate``, carries the state so far
    as ``error.train_state`` and the records as ``error.history``; with ``checkpoint`` it is saved first.

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
        if not hasattr(train_state, name) or not (hasattr(train_state, "_replace") or is_dataclass(train_state)):
            raise ConfigError(
                f"{who}: the train state must be a named tuple or a dataclass with the fields step and guard, got "
                f"{type(train_state).__name__}; begin with training.init"
            )
    stop_early = stopping.checked(who, early_stopping, evaluate is not None)
    checks.choice(who, "resume", resume, ("same", "anyway"))
    monitor = None if stop_early is None else stop_early.monitor
    step, unguarded = _checked(who, step, monitor), None if unguarded is None else _checked(who, unguarded, monitor)
    weights = weights or _params_and_state
    start = identities.of_start(train_state) if checkpoint is not None else {}  # before it is spread over processes
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

    keeps = nbytes(train_state) <= MOST_BYTES_KEPT
    with sharding.in_use(mesh):
        watches = sound(train_state)  # parameters that are not finite from the beginning are meant so, as masks are
    if isinstance(data, tuple):
        if batch_size is None or steps_per_epoch is not None:
            raise ConfigError(f"{who}: arrays are trained on in batches: give batch_size, and no steps_per_epoch")
        feed: Resident | Stream = Resident(
            step, data, unguarded=unguarded, keeps=keeps, watches=watches, batch_size=batch_size, seed=seed,
            shuffle=shuffle, drop_last=drop_last, mesh=mesh, placement=placement,
        )  # fmt: skip
    else:
        if batch_size is not None:
            raise ConfigError(f"{who}: an iterable makes its own batches, so batch_size must not be given")
        source = data if isinstance(data, Source) else Source(data, steps_per_epoch)
        source.must_last(epochs)
        feed = Stream(step, source, keeps=keeps, watches=watches, mesh=mesh, placement=placement)
    settings = json.dumps([epochs, max_skipped, checkpoint is not None, evaluate is not None, feed.description])
    processes.agree(who, "the call", zlib.crc32(settings.encode()), f"all must make the same, here: {settings}")

    report = Report(progress, epochs, feed)
    run = Run(train_state, weights, stop_early, watches=watches and not keeps)
    saver = Saver(checkpoint, checkpoint_seconds, feed.description, log)
    with saver:
        if saver.checkpoints is not None:
            batch = identities.as_before(feed.example, saver.batch_before())
            saver.batch = identities.shapes(batch)
            saver.identity = start | identities.of_step(step, train_state, batch) | dict(identity or {})
            other = run.restore(saver, anyway=resume == "anyway")
            processes.agree(
                who, "the checkpoint", int(run.train_state.step),
                f"all must see one file system, and {saver.checkpoints.directory} is not on one",
            )  # fmt: skip
            (differs,) = processes.any_process(bool(other) and resume == "same")
            if differs:
                raise ConfigError(
                    f"{who}: the run in {saver.checkpoints.directory} is another one than this call's: what differs is "
                    f"{other or 'on another process'}; restore it; {HOW}"
                )
            if run.step_of_epoch or len(run.history):
                report.say(
                    f"resumed from {saver.checkpoints.directory}: epoch {len(run.history)} of {epochs} is done"
                    + (f", and {run.step_of_epoch} steps of the next" if run.step_of_epoch else "")
                    + ("; nothing is left to train: take another directory to train anew" if run.done(epochs) else "")
                    + ("; the data must come in the same order again" if feed.in_order and run.position is None else "")
                )
        saver.begin(run.history)
        with (
            Interrupts(sigterm=saver.checkpoints is not None) as interrupts,
            _keeping(run, saver, report),
            sharding.in_use(mesh),
        ):
            # Of several processes, one that left a blocked loader by itself would keep the others waiting.
            feed.stop = lambda: interrupts.received is not None and jax.process_count() == 1
            while not run.done(epochs):
                with contextlib.closing(
                    feed.epoch(run.train_state, len(run.history), run.step_of_epoch, run.position)
                ) as dispatches:
                    for done in dispatches:
                        run.take(done)
                        report.step(run, done)
                        _guard(run, feed, max_skipped, saver, explain)
                        run.must_be_sound(saver.checkpoints, now=False)
                        due = _stop_or_due(interrupts, saver)
                        if due and done.steps != feed.steps:
                            saver.save(run)
                _stop_or_due(interrupts, saver)  # for a signal that came while a loader kept the run waiting
                if run.ends_here(epochs) and run.in_row == int(run.train_state.step):  # nothing was ever learned
                    _guard(run, feed, run.in_row, saver, explain)
                run.end_epoch(evaluate and interrupts.at_once(evaluate), callbacks)
                run.finished, due = processes.any_process(run.finished, saver.due())
                report.epoch(run)
                saver.record(run)
                if due or run.finished or len(run.history) == epochs:
                    saver.save(run)
            _stop_or_due(interrupts, saver)  # for a signal that came with the last epoch's validation or callbacks
            run.must_be_sound(saver.checkpoints, now=True)
    report.close()
    if run.finished and run.best is not None:
        report.say(f"stopped early: no {run.best.monitor} better than epoch {run.best.epoch}'s {run.best.value:.4g}")
    kept = run.best_weights if run.best is not None else copied(weights(run.train_state))
    return Trained(run.train_state, kept, run.best.epoch if run.best is not None else 0, run.history)


def _params_and_state(train_state: Any) -> Any:
    return train_state.params, train_state.state


def _checked(who: str, step: Step, monitor: str | None) -> Step:
    """The step, which looks at the names that it measures while it is traced."""

    def checked(train_state, batch):
        train_state, metrics = step(train_state, batch)
        if "loss" not in metrics:
            raise ConfigError(f"{who}: the step must measure 'loss', and it measures {', '.join(metrics) or 'nothing'}")
        taken = [n for n in metrics if n in _OURS or n.startswith("validation_")]
        if taken:
            raise ConfigError(
                f"{who}: the step measures {', '.join(map(repr, taken))}, and the history has columns of its own "
                f"of that name; use another"
            )
        if monitor is not None and not monitor.startswith("validation_"):
            stopping.check_column(who, monitor, [*metrics, *_OURS])
        return train_state, metrics

    return checked


def _stop_or_due(interrupts: Interrupts, saver: Saver) -> bool:
    """Raises what a signal, here or on another process, ends the run with; else, whether to save."""
    names = tuple(ENDED)
    *stops, due = processes.any_process(*[interrupts.received == name for name in names], saver.due())
    if any(stops):
        raise ending(names[stops.index(True)], "")
    return due


@contextlib.contextmanager
def _keeping(run: Run, saver: Saver, report: Report) -> Iterator[None]:
    """Whatever ends the run early, the state so far is saved if it can be, and is on the error."""
    begun = int(run.train_state.step)
    try:
        yield
    except BaseException as error:
        report.close()
        signalled: str | None = getattr(error, "signal_name", None)
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(run.train_state)) or hasattr(error, "train_state"):
            raise
        step = int(run.train_state.step)
        if step == begun and not signalled:  # nothing was done that could be lost
            raise
        where = f"step {step} (epoch {len(run.history) + 1})"
        on = (
            f"stopped at {where}; the state is in error.train_state: take its params and state as start=, or give "
            f"checkpoint= to have the same call go on where it was"
        )
        # Of several processes an error may have come to one alone, and saving is done by all together; a second Ctrl-C
        # wants no saving.
        save = bool(signalled) or (jax.process_count() == 1 and not isinstance(error, KeyboardInterrupt))
        if saver.checkpoints is not None and save and not isinstance(error, CheckpointError):
            try:
                saver.save(run)
                on = f"saved at {where} in {saver.checkpoints.directory}; the same call goes on from there"
            except (JaxnetError, OSError) as refused:
                on = f"stopped at {where}, and that could not be saved, but is in error.train_state: {refused}"
        elif saver.checkpoints is not None and saver.checkpoints.paths():
            on = (
                f"stopped at {where}; the same call goes on from the newest checkpoint in {saver.checkpoints.directory}"
            )
        if signalled:
            if jax.process_index() == 0:
                print(f"{signalled}: {on}", flush=True)
            error = ending(signalled, f"fit: {on}")
        error.train_state, error.history = run.train_state, run.history  # type: ignore[attr-defined]
        if signalled:
            raise error from None
        error.add_note(f"fit: {on}")
        raise


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
    if run.spoiled_by_update:
        where = _UPDATE
    if isinstance(feed, Resident):
        rows = feed.batch(len(run.history), step_of_epoch)
        batch = jax.tree.map(lambda a: np.asarray(a[rows]), feed.data)
        which = f"samples {rows[:8].tolist()}{'...' if len(rows) > 8 else ''}"
    else:
        batch, which = feed.recent.get(step_of_epoch), "see error.batch"
        if jax.process_count() > 1:
            batch = multihost_utils.process_allgather(batch, tiled=True)
    cause = f"{_UPDATE_CAUSES} ({_STAYS.format(last - run.in_row + 1)})" if run.spoiled_by_update else ""
    if not cause and explain is not None and batch is not None:
        cause = explain(batch)
    error = NonFiniteError(
        f"fit: {run.longest_row} steps in a row were not finite; the last was step {last} "
        f"(epoch {len(run.history) + 1}, batch {step_of_epoch}: {which}); the first value that was not "
        f"finite is {where}. {cause or _USUAL_CAUSES}. "
        f"None of them has changed the parameters, which are in error.train_state"
        + (f", and saved in {saver.checkpoints.directory}" if saver.checkpoints is not None else "")
    )
    try:
        saver.save(run)
    except CheckpointError as refused:
        error.add_note(f"It could not be saved: {refused}")
    error.train_state, error.history, error.batch = (  # type: ignore[attr-defined]
        run.train_state, run.history, batch,
    )  # fmt: skip
    raise error

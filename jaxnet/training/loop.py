"""The loop around a training step: epochs, reports, early stopping, checkpoints, exact resume."""

import contextlib
import functools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, named
from jaxnet.optimizers import plateau
from jaxnet.training import callbacks as calls
from jaxnet.training import devices, keeping, sources
from jaxnet.training import early_stopping as stopping
from jaxnet.training import identity as identities
from jaxnet.training.divergence import must_learn
from jaxnet.training.feed import Resident
from jaxnet.training.history import History, Record
from jaxnet.training.interrupts import ENDED, Interrupts, ending
from jaxnet.training.pairs import Arrays
from jaxnet.training.report import Report
from jaxnet.training.run import Run
from jaxnet.training.state import no_train_state
from jaxnet.training.step import COLUMNS, MEASURED, Step
from jaxnet.training.streamed import Streamed

_OURS = [name for name in COLUMNS if name not in MEASURED]


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


@named("fit")
def train(
    step: Step,
    train_state: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    evaluate: Callable[..., dict[str, float]] | None = None,
    weights: Callable[[Any], Any] | None = None,
    early_stopping: stopping.EarlyStopping | int | None = None,
    keep: keeping.Keep | str | os.PathLike[str] | None = None,
    mesh: jax.sharding.Mesh | devices.Sharded | None = None,
    callbacks: Sequence[Callable[[Record, Any], Any]] = (),
    progress: bool | Callable[[str], Any] = True,
    max_skipped: int = 20,
    explain: Callable[[Any], str] | None = None,
    unguarded: Step | None = None,
) -> Trained:
    """Runs any training step over data, epoch by epoch; `fit` is this loop around `make_step`'s function.

    The step may be of any kind, as long as its state has the fields ``step`` and ``guard`` of a `TrainState`; so has
    the state of two players (`make_gan_step`). All other arguments are those of `fit`.

    Args:
      step: ``(train_state, (x, target)) -> (train_state, metrics)``, pure; "loss" must be one of the metrics.
      train_state: the state to begin with. It is copied first, and remains yours.
      evaluate: ``train_state -> {name: number}``, called after every epoch; its columns get ``validation_`` before
        their names. One that has an argument ``epoch`` is given the epoch's number, from 0.
      weights: ``train_state -> tree``, what is kept of the best epoch; ``(params, state)`` unless given. Of an
        optimizer that averages it may give `optimizers.averaged`, and so may ``evaluate``.
      max_skipped: non-finite steps in a row at which the run ends.
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
      DTypeError: data that are no arrays of numbers, or a loss that is not real.
      ShapeError: data that do not fit the network, or a loss that is no scalar.
      NonFiniteError: ``max_skipped`` steps in a row were not finite; ``error.train_state`` is the last good one.
      CheckpointError: a checkpoint that is damaged or belongs to another network or optimizer, or a directory that
        cannot be written or is in use.
      KeyboardInterrupt: Ctrl-C, when the steps under way are done (a second one at once).
      SystemExit: SIGTERM, if there is a checkpoint, with status 143.

    Whatever is raised once training has begun, also by a callback, a loader or ``evaluate``, carries the state so far
    as ``error.train_state`` and the records as ``error.history``; with ``keep`` it is saved first.

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

    Source: chapter 4.4.1, algorithm 2; 4.6.
    """
    epochs = checks.integer("epochs", epochs, minimum=1)
    max_skipped = checks.integer("max_skipped", max_skipped, minimum=1)
    callbacks = calls.checked(callbacks)
    _check_state(train_state)
    stop_early = stopping.checked(early_stopping, evaluate is not None)
    of = functools.partial(_checked, stop_early=stop_early, evaluate=evaluate, train_state=train_state)
    step, unguarded = of(step), unguarded and of(unguarded)
    of_steps = calls.of_steps(callbacks)
    keep, data = keeping.given(keep), sources.given(data, batch_size, epochs=epochs)

    # Where everything lives, and from where batches come.
    start = {} if keep.checkpoints is None else identities.of_start(train_state)  # before it is spread over processes
    place, train_state = devices.placed(mesh, train_state)  # a copy, which the first step may consume
    feed = Resident(step, data, place, unguarded=unguarded) if isinstance(data, Arrays) else Streamed(step, data, place)
    call = json.dumps([epochs, max_skipped, keep.checkpoints is not None, evaluate is not None, data.settings])
    devices.agree("the call", zlib.crc32(call.encode()), f"all must make the same, here: {call}")

    report = Report(progress, epochs, feed)
    run = Run(
        train_state,
        weights or (lambda state: (state.params, state.state)),
        stop_early,
        watches=place.watches and not place.keeps,
    )
    with keeping.Saver(keep, data.settings) as saver:
        if saver.resume(run, start, step, feed):
            report.resumed(run, saver.checkpoints)
        saver.begin(run.history)
        with (
            calls.closed(callbacks),
            Interrupts(sigterm=saver.checkpoints is not None) as interrupts,
            keeping.ended_early(run, saver, report.close),
            devices.in_use(place.mesh),
        ):
            # Of several processes, one that left a blocked loader by itself would keep the others waiting.
            feed.stop = lambda: interrupts.received is not None and jax.process_count() == 1
            while not run.done(epochs):
                dispatches = feed.epoch(run.train_state, len(run.history), run.epoch.step_of_epoch, run.position)
                with contextlib.closing(dispatches):
                    for done in dispatches:
                        run.take(done)
                        report.step(run, done)
                        must_learn(run, feed, saver, max_skipped, explain)
                        run.must_be_sound(saver.checkpoints, now=False)
                        run.shown(done, of_steps)
                        due = _stop_or_due(interrupts, saver, run)
                        if run.finished:
                            break
                        if due and done.steps != feed.steps:
                            saver.save(run)
                _stop_or_due(interrupts, saver, run)  # for a signal that came while a loader kept the run waiting
                if run.ends_here(epochs) and run.in_row == int(run.train_state.step):  # nothing was ever learned
                    must_learn(run, feed, saver, run.in_row, explain)

                run.end_epoch(evaluate and interrupts.at_once(evaluate), callbacks)
                run.finished, due = devices.any_process(run.finished, saver.due())
                report.epoch(run)
                saver.record(run)
                if due or run.done(epochs):
                    saver.save(run)
            saver.written(run)
            _stop_or_due(interrupts, saver, run)  # for a signal that came with the last epoch's validation or callbacks
            run.must_be_sound(saver.checkpoints, now=True)
    report.end(run)
    return Trained(run.train_state, run.kept, 0 if run.best is None else run.best.epoch, run.history)


def _check_state(train_state: Any) -> None:
    fields = all(hasattr(train_state, name) for name in ("step", "guard"))
    if not fields or not (hasattr(train_state, "_replace") or is_dataclass(train_state)):
        raise ConfigError(
            f"the train state must be a named tuple or a dataclass with the fields step and guard, "
            f"{no_train_state(train_state)}"
        )


def _checked(step: Step, stop_early: stopping.EarlyStopping | None, evaluate: Any, train_state: Any) -> Step:
    """The step, which looks at the names that it measures while it is traced."""
    watched = dict.fromkeys(plateau.monitors(train_state), "reduce_on_plateau")
    if stop_early is not None:
        watched[stop_early.monitor] = "early stopping"

    def checked(train_state, batch):
        train_state, metrics = step(train_state, batch)
        if "loss" not in metrics:
            raise ConfigError(f"the step must measure 'loss', and it measures {', '.join(metrics) or 'nothing'}")
        taken = [n for n in metrics if n in _OURS or n.startswith("validation_")]
        if taken:
            raise ConfigError(
                f"the step measures {', '.join(map(repr, taken))}, and the history has columns of its own "
                f"of that name; use another"
            )
        validated = [f"validation_{name}" for name in getattr(evaluate, "names", ())]
        for name, who in watched.items():
            if validated or evaluate is None or not name.startswith("validation_"):
                stopping.check_column(name, [*metrics, *validated, *_OURS], who)
        stopping.check_mode(stop_early)
        return train_state, metrics

    return checked


def _stop_or_due(interrupts: Interrupts, saver: keeping.Saver, run: Run) -> bool:
    """Raises what a signal, here or on another process, ends the run with; else, whether to save.

    A run that a callback has ended on one process is at its end on all, whatever callbacks the others were given.
    """
    names = tuple(ENDED)
    flags = [interrupts.received == name for name in names]
    *stops, due, run.finished = devices.any_process(*flags, saver.due(), run.finished)
    if any(stops):
        raise ending(names[stops.index(True)], "")
    return due

"""The state of a run: what changes from dispatch to dispatch, and what of it a checkpoint holds."""

import contextlib
import functools
import inspect
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnet import _checks_named as checks
from jaxnet.errors import CheckpointError, ConfigError, NonFiniteError
from jaxnet.training import _atomic, identity, processes, sharding
from jaxnet.training import early_stopping as stopping
from jaxnet.training.checkpoint import read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, finite, taken
from jaxnet.training.history import History, Log, Record
from jaxnet.training.state import copied, sound

HOW = "to go on all the same, give resume='anyway'; to begin afresh, another directory"

SAVE_SHARE = 0.05
"""The most of the time that saving checkpoints may take."""

HISTORY = "history.jsonl"
"""The file beside a run's checkpoints to which its records are appended."""


class Run:
    """What changes in a run, and so what a checkpoint holds."""

    def __init__(
        self, train_state: Any, weights: Any, early_stopping: stopping.EarlyStopping | None, *, watches: bool = False
    ):
        self.train_state = train_state
        self.weights = weights
        self.history = History()
        self.step_of_epoch = 0
        self.position: Any = None
        self.totals: dict[str, dict[str, list[float]]] = {}  # by name, and by the size of the batch
        self.seconds = 0.0
        self.skipped = 0
        self.in_row = self.longest_row = 0
        self.spoiled_by_update = False
        self._watches = watches
        self._looked, self._look_cost = time.perf_counter(), 0.0
        self.finished = False
        self.patience = math.inf if early_stopping is None else early_stopping.patience
        self.best: stopping.Best | None = None
        self.best_weights: Any = ()
        if early_stopping is not None:
            self.best = stopping.Best(early_stopping.monitor, early_stopping.mode, early_stopping.minimum_change)
        if self.best is not None:
            self.best_weights = copied(weights(train_state))
        self._clock = time.perf_counter()

    def done(self, epochs: int) -> bool:
        """Whether nothing is left to do."""
        return len(self.history) >= epochs or self.finished

    def ends_here(self, epochs: int) -> bool:
        """Whether the epoch at hand is the last, if it brings nothing better."""
        return len(self.history) + 1 >= epochs or (self.best is not None and self.best.waited + 1 >= self.patience)

    def take(self, done: Progress) -> None:
        """Takes in what a dispatch has done."""
        self.train_state, self.step_of_epoch, self.position = done.train_state, done.steps, done.position
        now = time.perf_counter()
        self.seconds += now - self._clock - done.compile_seconds
        self._clock = now
        for name, values in done.measured.items():
            if name == "skipped":  # counted, not averaged
                continue
            totals = self.totals.setdefault(name, {})
            sizes = [done.sizes] if isinstance(done.sizes, int) else done.sizes.tolist()
            each = {size: totals.setdefault(str(size), [0, 0.0, 0.0]) for size in sizes}
            # One after the other, so that the sum does not depend on the dispatches.
            for value, size in zip(values.tolist(), itertools.cycle(sizes)):
                if math.isfinite(value):
                    total = each[size]
                    total[0] += 1
                    total[1] += value
                    total[2] += value * value
        good_steps = taken(done.measured)
        self.skipped += int((~good_steps).sum())
        bad = np.flatnonzero(~good_steps)
        if bad.size:  # of the last one
            self.spoiled_by_update = bool(finite(done.measured)[bad[-1]])
        self.longest_row = 0
        for good in good_steps.tolist():  # within a dispatch too, so that its length does not decide
            self.in_row = 0 if good else self.in_row + 1
            self.longest_row = max(self.longest_row, self.in_row)

    def must_be_sound(self, checkpoints: Checkpoints | None, *, now: bool) -> None:
        """Ends a run whose parameters an update has spoiled: what the feed cannot undo, since the state is too large.

        Args:
          checkpoints: where the run is saved.
          now: whether to look in any case, and not only if it costs at most a hundredth of the time.

        Raises:
          NonFiniteError: they are not finite.
        """
        began = time.perf_counter()
        if not self._watches or not (
            now or (jax.process_count() == 1 and began - self._looked > 100 * self._look_cost)
        ):
            return
        well = sound(self.train_state)
        self._looked = time.perf_counter()
        self._look_cost = self._looked - began
        if well:
            return
        step = int(self.train_state.step)
        error = NonFiniteError(
            f"fit: the parameters are not finite after step {step} (epoch {len(self.history) + 1}), although loss and "
            f"gradient were, as far as the step measures them: an update of the optimizer was not. Look at the "
            f"learning rate up to here (does a schedule divide by zero?), at eps, and wrap the optimizer in "
            f"optimizers.skip_nonfinite, which looks at every update. The state in error.train_state is the spoiled one"
            + (f"; the newest checkpoint in {checkpoints.directory} is finite" if checkpoints is not None else "")
        )
        error.train_state, error.history = self.train_state, self.history  # type: ignore[attr-defined]
        raise error

    def end_epoch(self, evaluate: Any, callbacks: Iterable[Any]) -> None:
        """Closes an epoch with its record."""
        means = {name: moments(totals)[0] for name, totals in self.totals.items()}
        mean, square = moments(self.totals["loss"])
        deviation = math.sqrt(max(square - mean**2, 0.0))
        record: Record = {"epoch": len(self.history) + 1, "step": int(self.train_state.step), "loss": math.nan, **means}
        record["loss_deviation"] = deviation
        record["skipped"] = self.skipped
        if evaluate is not None:
            takes_epoch = "epoch" in inspect.signature(evaluate).parameters
            measured = evaluate(self.train_state, **({"epoch": len(self.history)} if takes_epoch else {}))
            names = sorted(measured, key=lambda name: name != "loss")  # the loss first; else in their order
            record |= {f"validation_{name}": float(measured[name]) for name in names}
        record["seconds"] = self.seconds
        record["steps_per_second"] = self.step_of_epoch / max(self.seconds, 1e-9)
        if self.best is not None:
            if self.best.improved(record):
                self.best_weights = copied(self.weights(self.train_state))
            self.finished = self.best.waited >= self.patience
        self.history.records.append(record)
        # The epoch is over: what the callbacks raise finds a run that can be saved and taken up.
        self.step_of_epoch, self.totals, self.skipped, self.seconds = 0, {}, 0, 0.0
        for callback in callbacks:
            self.finished |= _is_true(callback(record, self.train_state))
        self._clock = time.perf_counter()

    @property
    def saved(self) -> Any:
        """The arrays of a checkpoint."""
        return {"train_state": self.train_state, "best": self.best_weights}

    def metadata(self, settings: dict[str, Any], identity_: dict[str, str]) -> dict[str, Any]:
        """What else a checkpoint holds, as JSON, besides the history's seal (`history.Log`)."""
        return {
            "settings": settings,
            "identity": identity_,
            "step_of_epoch": self.step_of_epoch,
            # Of several processes each has its own, and the first one alone writes this: they read again instead.
            "position": _as_json(self.position if jax.process_count() == 1 else None),
            "totals": self.totals,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "finished": self.finished,
            "patience": self.patience,
            "best": None if self.best is None else self.best.save(),
        }

    def restore(self, saver: "Saver", *, anyway: bool) -> str:
        """Takes up the newest checkpoint, if there is one and it fits; returns what of its identity differs."""
        checkpoints = saver.checkpoints
        assert checkpoints is not None
        latest = checkpoints.latest()
        if latest is None:
            return ""
        metadata = read_metadata(latest)
        before = metadata.get("settings", {})
        if before != saver.settings and not anyway:
            raise ConfigError(
                f"fit: the run in {checkpoints.directory} had other settings ({differences(before, saver.settings)}), "
                f"so it would not be the same run going on; restore them; {HOW}"
            )
        if (metadata["best"] is None) != (self.best is None):
            had, has = ("no", "one") if metadata["best"] is None else ("an", "none")
            raise ConfigError(
                f"fit: the run in {checkpoints.directory} had {had} early_stopping, and this call has {has}; give the "
                f"same, or another directory"
            )
        if self.best is not None:
            had, has = ((best["monitor"], best["mode"]) for best in (metadata["best"], self.best.save()))
            if had != has:
                raise ConfigError(
                    f"fit: the run in {checkpoints.directory} watched {had[0]} ({had[1]}), and this call watches "
                    f"{has[0]} ({has[1]}), so its best says nothing; watch the same, or give another directory"
                )
        try:
            restored = checkpoints.restore(self.saved)
        except CheckpointError as error:
            if "does not fit" not in error.message:
                raise
            raise CheckpointError(
                f"fit: the run in {checkpoints.directory} is of another network or another kind of optimizer than this "
                f"call's, so that it cannot go on; give another directory, and to begin there with its weights, where "
                f"the network is the same, start=training.load_best({str(checkpoints.directory)!r}, net, x): "
                f"{error.message}"
            ) from error
        assert restored is not None
        tree = restored[0]
        self.train_state = tree["train_state"]
        self.in_row = int(self.train_state.guard.in_row)
        self.best_weights = tree["best"]
        self.history = _history(checkpoints, metadata["history"])
        self.step_of_epoch = metadata["step_of_epoch"]
        self.position = _from_json(metadata["position"])
        self.totals = metadata["totals"]
        self.skipped, self.seconds, self.finished = metadata["skipped"], metadata["seconds"], metadata["finished"]
        if before != saver.settings:  # its place within an epoch says nothing in another order of the data
            self.step_of_epoch, self.position, self.totals, self.skipped, self.seconds = 0, None, {}, 0, 0.0
        if self.best is not None:
            self.best.restore(metadata["best"])
            by_callback = self.finished and self.best.waited < metadata["patience"]
            self.finished = by_callback or self.best.waited >= self.patience  # which may be another patience now
        return identity.differences(metadata.get("identity", {}), saver.identity)


def moments(totals: dict[str, list[float]]) -> tuple[float, float]:
    """The mean over an epoch's samples, and that of the squares, from count, sum and sum of squares a batch size."""
    totals = {size: sums for size, sums in totals.items() if sums[0]}
    if not totals:
        return math.nan, math.nan
    largest = max(map(int, totals))  # of which the others are parts, so that nothing is rounded where all are equal
    count, total, squares = (sum(int(size) / largest * sums[i] for size, sums in totals.items()) for i in range(3))
    return total / count, squares / count


class Saver:
    """When to save, and where; and the files that the run holds while it is entered."""

    def __init__(self, checkpoint: Any, seconds: float, settings: dict[str, Any], log: Any = None):
        if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
            checkpoint = Checkpoints(checks.path("fit", "checkpoint", checkpoint))
        self.checkpoints: Checkpoints | None = checkpoint
        self.seconds = seconds
        self.settings = settings
        self.identity: dict[str, str] = {}
        self.batch: list[Any] = []
        self._log = None if log is None else Log(checks.path("fit", "log", log))
        self._kept = None if checkpoint is None else Log(checkpoint.directory / HISTORY)
        if self._log and self._kept and os.path.realpath(self._log.path) == os.path.realpath(self._kept.path):
            self._log = None  # one file is both
        self._held = contextlib.ExitStack()
        self._last = time.perf_counter()
        self._cost = 0.0
        self._saved: tuple[int, int] | None = None

    def __enter__(self) -> "Saver":
        """Holds the directory for this run alone; refuses one that another run holds, or that cannot be written."""
        if self.checkpoints is not None:
            directory = self.checkpoints.directory
            _on_the_first(lambda: self._held.enter_context(_atomic.held(directory)), "checkpoint", directory)
        if self._log is not None:
            _on_the_first(functools.partial(_atomic.try_file, self._log.path), "log", self._log.path)
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.close()

    def batch_before(self) -> list[Any] | None:
        """The shapes of the batch by which the run in the directory has fingerprinted its program, if there is one."""
        latest = self.checkpoints.latest() if self.checkpoints is not None else None
        return None if latest is None else read_metadata(latest).get("batch")

    def begin(self, history: History) -> None:
        """Writes to the files what is restored; from here on `record` appends to them."""
        for name, log in (("checkpoint", self._kept), ("log", self._log)):
            if log is not None:
                self._held.callback(log.close)
                _on_the_first(functools.partial(log.begin, history), name, log.path)

    def record(self, run: Run) -> None:
        """Appends the epochs that came since to the files."""
        for log in (self._kept, self._log):
            if log is not None:
                self._attempt(functools.partial(log.append, run.history), run, log.path)

    def _attempt(self, do: Callable[[], Any], run: Run, place: Path) -> None:
        """Writes in the middle of a run; if a disk refuses, the error says what is left and holds the state."""
        error: CheckpointError | None = None
        try:
            do()
        except (OSError, CheckpointError) as cause:
            text = getattr(cause, "message", f"fit: cannot write {place}: {getattr(cause, 'strerror', cause)}")
            if self.checkpoints is not None:
                text += ". What was saved before is whole: once that is mended, the same call goes on from the newest"
            step = int(run.train_state.step)
            error = CheckpointError(f"{text}. The state after step {step} is in error.train_state")
            error.train_state = run.train_state  # type: ignore[attr-defined]
            error.__cause__ = cause
        _all_or_none(error, place)

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another, by this process's clock."""
        age = time.perf_counter() - self._last
        return self.checkpoints is not None and age > max(self.seconds, self._cost / SAVE_SHARE)

    def save(self, run: Run) -> None:
        """Saves now."""
        step = int(run.train_state.step)
        if self.checkpoints is None or self._saved == (step, len(run.history)):
            return
        run.must_be_sound(self.checkpoints, now=True)
        began = time.perf_counter()
        metric = None
        if run.best is not None and not run.step_of_epoch and len(run.history):
            value = run.history[-1][run.best.monitor]
            metric = value if run.best.mode == "min" else -value
        # Of what every process has whole, the first writes its copy; pieces are written by those who have them.
        tree = jax.tree.map(sharding.own_copy, run.saved)
        in_pieces = not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))
        checkpoints, kept = self.checkpoints, self._kept
        assert kept is not None
        self.record(run)
        self._attempt(kept.sync, run, kept.path)  # it is on the disk before the checkpoint that stands for a part of it

        def save():
            if in_pieces or jax.process_index() == 0:
                metadata = run.metadata(self.settings, self.identity) | {"history": kept.seal, "batch": self.batch}
                checkpoints.save(step, tree, metadata=metadata, metric=metric)

        self._attempt(save, run, checkpoints.directory)  # once it is there, all may end
        self._saved = (step, len(run.history))
        self._last = time.perf_counter()
        self._cost = self._last - began


def _is_true(answer: Any) -> bool:
    """Whether a callback asks to end the run: with True, of Python, NumPy or JAX."""
    truths = isinstance(answer, (bool, np.bool_)) or getattr(answer, "dtype", None) == np.dtype(bool)
    return truths and np.shape(answer) == () and bool(answer)


def _on_the_first(do: Callable[[], Any], name: str, place: Path) -> None:
    """Has the first process open what only one may; where it cannot, all raise, before anything is trained."""
    error: CheckpointError | ConfigError | None = None
    if jax.process_index() == 0:
        try:
            do()
        except BlockingIOError as cause:
            error = CheckpointError(
                f"fit: another run uses {place}: {cause.strerror}; two would mix their checkpoints: wait for its end, "
                f"stop it, or give checkpoint= another directory"
            )
        except OSError as cause:
            kind = CheckpointError if name == "checkpoint" else ConfigError
            error = kind(
                f"fit: cannot write {place}: {cause.strerror or cause}; nothing was trained yet: mend that, or give "
                f"{name}= a place on a disk with room, where you may write"
            )
            error.__cause__ = cause
    _all_or_none(error, place)


def _all_or_none(error: Exception | None, place: Path) -> None:
    """Raises on all processes what went wrong on one, so that none waits for it."""
    (failed,) = processes.any_process(error is not None)
    if failed:
        raise error or CheckpointError(f"fit: another process cannot write {place}; its error says why")


def _history(checkpoints: Checkpoints, seal: dict[str, int]) -> History:
    """The history up to the newest checkpoint, which has its seal."""
    place = checkpoints.directory / HISTORY
    try:
        return Log.read(place, seal)
    except CheckpointError as error:
        older, newer = [], []
        for path in reversed(checkpoints.paths()):
            with contextlib.suppress(CheckpointError, KeyError):
                Log.read(place, read_metadata(path)["history"])
                older = [f"or delete {', '.join(newer)} to fall back to {path.name}"]
                break
            newer.append(path.name)
        cures = [
            "put a copy of it back (the file of log= has the same lines)",
            *older,
            f"or begin anew from the weights, in another directory: start=training.load_best("
            f"{str(checkpoints.directory)!r}, net, x)",
        ]
        raise CheckpointError(f"fit: {error.message}; {', '.join(cures)}") from error


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the settings of a run and those of its continuation."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def _as_json(position: Any) -> Any:
    """An iterator's position, JSON or bytes, as JSON."""
    return {"bytes": position.hex()} if isinstance(position, bytes) else {"json": position}


def _from_json(saved: Any) -> Any:
    return bytes.fromhex(saved["bytes"]) if "bytes" in saved else saved["json"]

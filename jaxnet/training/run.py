"""The state of a run: what changes from dispatch to dispatch, and what of it a checkpoint holds."""

import contextlib
import inspect
import itertools
import math
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxnet.errors import CheckpointError, ConfigError, NonFiniteError
from jaxnet.training import early_stopping as stopping
from jaxnet.training.checkpoint import read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, finite, taken
from jaxnet.training.history import History, Log, Record
from jaxnet.training.state import copied, sound

HOW = "to go on all the same, give keep=training.keep(..., resume='anyway'); to begin afresh, another directory"

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
        self.best = None if early_stopping is None else stopping.Best(early_stopping)
        self.best_weights: Any = () if self.best is None else copied(weights(train_state))
        self._clock = time.perf_counter()

    def done(self, epochs: int) -> bool:
        """Whether nothing is left to do."""
        return len(self.history) >= epochs or self.finished

    def ends_here(self, epochs: int) -> bool:
        """Whether the epoch at hand is the last, if it brings nothing better."""
        last = len(self.history) + 1 >= epochs
        return last or (self.best is not None and self.best.waited + 1 >= self.best.watch.patience)

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
            f"the parameters are not finite after step {step} (epoch {len(self.history) + 1}), although loss and "
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
            self.finished = self.best.patience_ended
        self.history.records.append(record)
        # The epoch is over: what the callbacks raise finds a run that can be saved and taken up.
        self.step_of_epoch, self.totals, self.skipped, self.seconds = 0, {}, 0, 0.0
        for callback in callbacks:
            self.finished |= _is_true(callback(record, self.train_state))
        self._clock = time.perf_counter()

    @property
    def kept(self) -> Any:
        """The best weights, or the last if nothing was watched."""
        return copied(self.weights(self.train_state)) if self.best is None else self.best_weights

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
            "patience": None if self.best is None else self.best.watch.patience,
            "best": None if self.best is None else self.best.save(),
        }

    def restore(
        self, checkpoints: Checkpoints, metadata: dict[str, Any], settings: dict[str, Any], *, anyway: bool
    ) -> None:
        """Takes up the newest checkpoint, which has this metadata, if it fits."""
        if "best" not in metadata:
            raise CheckpointError(f"{checkpoints.directory} holds checkpoints of no run of fit; give another directory")
        before = metadata.get("settings", {})
        if before != settings and not anyway:
            raise ConfigError(
                f"the run in {checkpoints.directory} had other settings ({differences(before, settings)}), "
                f"so it would not be the same run going on; restore them; {HOW}"
            )
        if (metadata["best"] is None) != (self.best is None):
            had, has = ("no", "one") if metadata["best"] is None else ("an", "none")
            raise ConfigError(
                f"the run in {checkpoints.directory} had {had} early_stopping, and this call has {has}; give the "
                f"same, or another directory"
            )
        if self.best is not None:
            had, has = ((best["monitor"], best["mode"]) for best in (metadata["best"], self.best.save()))
            if had != has:
                raise ConfigError(
                    f"the run in {checkpoints.directory} watched {had[0]} ({had[1]}), and this call watches "
                    f"{has[0]} ({has[1]}), so its best says nothing; watch the same, or give another directory"
                )
        try:
            restored = checkpoints.restore(self.saved)
        except CheckpointError as error:
            if "does not fit" not in error.message:
                raise
            raise CheckpointError(
                f"the run in {checkpoints.directory} is of another network or another kind of optimizer than this "
                f"call's, so that it cannot go on; give another directory, and to begin there with its weights, where "
                f"the network is the same, training.pretrained(net, *training.load_best("
                f"{str(checkpoints.directory)!r}, net, x)): {error.message}"
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
        if before != settings:  # its place within an epoch says nothing in another order of the data
            self.step_of_epoch, self.position, self.totals, self.skipped, self.seconds = 0, None, {}, 0, 0.0
        if self.best is not None:
            self.best.restore(metadata["best"])
            by_callback = self.finished and self.best.waited < metadata["patience"]
            self.finished = by_callback or self.best.patience_ended  # which may be another patience now


def moments(totals: dict[str, list[float]]) -> tuple[float, float]:
    """The mean over an epoch's samples, and that of the squares, from count, sum and sum of squares a batch size."""
    totals = {size: sums for size, sums in totals.items() if sums[0]}
    if not totals:
        return math.nan, math.nan
    largest = max(map(int, totals))  # of which the others are parts, so that nothing is rounded where all are equal
    count, total, squares = (sum(int(size) / largest * sums[i] for size, sums in totals.items()) for i in range(3))
    return total / count, squares / count


def _is_true(answer: Any) -> bool:
    """Whether a callback asks to end the run: with True, of Python, NumPy or JAX."""
    truths = isinstance(answer, (bool, np.bool_)) or getattr(answer, "dtype", None) == np.dtype(bool)
    return truths and np.shape(answer) == () and bool(answer)


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
            "put a copy of it back (the file of keep's log= has the same lines)",
            *older,
            f"or begin anew from the weights, in another directory: training.pretrained(net, *training.load_best("
            f"{str(checkpoints.directory)!r}, net, x))",
        ]
        raise CheckpointError(f"{error.message}; {', '.join(cures)}") from error


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the settings of a run and those of its continuation."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def _as_json(position: Any) -> Any:
    """An iterator's position, JSON or bytes, as JSON."""
    return {"bytes": position.hex()} if isinstance(position, bytes) else {"json": position}


def _from_json(saved: Any) -> Any:
    return bytes.fromhex(saved["bytes"]) if "bytes" in saved else saved["json"]

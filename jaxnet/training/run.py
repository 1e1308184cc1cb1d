"""The state of a run: what changes from dispatch to dispatch, and what of it a checkpoint holds."""

import inspect
import math
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet.errors import ConfigError
from jaxnet.training import early_stopping as stopping
from jaxnet.training import sharding
from jaxnet.training.checkpoint import read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, finite
from jaxnet.training.history import History, Record
from jaxnet.training.state import copied

SAVE_SHARE = 0.05
"""The most of the time that saving checkpoints may take."""


class Run:
    """What changes in a run, and so what a checkpoint holds."""

    def __init__(self, train_state: Any, weights: Any, early_stopping: stopping.EarlyStopping | None):
        self.train_state = train_state
        self.weights = weights
        self.history = History()
        self.step_of_epoch = 0
        self.position: Any = None
        self.totals: dict[str, dict[str, list[float]]] = {}  # by name, and by the size of the batch
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
            totals = self.totals.setdefault(name, {})
            # One after the other, so that the sum does not depend on the dispatches.
            for value, size in zip(values.tolist(), np.broadcast_to(done.sizes, values.shape).tolist(), strict=True):
                if math.isfinite(value):
                    total = totals.setdefault(str(size), [0, 0.0, 0.0])
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
        self.history.records.append(record)
        if self.best is not None:
            if self.best.improved(record):
                self.best_weights = copied(self.weights(self.train_state))
            self.finished = self.best.waited >= self.patience
        for callback in callbacks:
            self.finished |= callback(record, self.train_state) is True
        self.step_of_epoch, self.totals, self.skipped, self.seconds = 0, {}, 0, 0.0
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
            # Of several processes each has its own, and the first one alone writes this: they read again instead.
            "position": _as_json(self.position if jax.process_count() == 1 else None),
            "totals": self.totals,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "finished": self.finished,
            "patience": self.patience,
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
            raise ConfigError(
                f"fit: the run in {checkpoints.directory} had other settings ({differences(before, settings)}), so it "
                f"would not be the same "
                f"run going on; restore them, or give another directory"
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
            by_callback = self.finished and self.best.waited < metadata["patience"]
            self.finished = by_callback or self.best.waited >= self.patience  # which may be another patience now


def moments(totals: dict[str, list[float]]) -> tuple[float, float]:
    """The mean over an epoch's samples, and that of the squares, from count, sum and sum of squares a batch size."""
    if not totals:
        return math.nan, math.nan
    largest = max(map(int, totals))  # of which the others are parts, so that nothing is rounded where all are equal
    count, total, squares = (sum(int(size) / largest * sums[i] for size, sums in totals.items()) for i in range(3))
    return total / count, squares / count


class Saver:
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

    def save(self, run: Run, settings: dict[str, Any]) -> None:
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


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the settings of a run and those of its continuation."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def _as_json(position: Any) -> Any:
    """An iterator's position, JSON or bytes, as JSON."""
    return {"bytes": position.hex()} if isinstance(position, bytes) else {"json": position}


def _from_json(saved: Any) -> Any:
    return bytes.fromhex(saved["bytes"]) if "bytes" in saved else saved["json"]

"""The state of a run: what changes from dispatch to dispatch, and what of it a checkpoint holds."""

import contextlib
import dataclasses
import inspect
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnet.errors import CheckpointError, ConfigError, NonFiniteError
from jaxnet.optimizers import plateau
from jaxnet.training import callbacks as calls
from jaxnet.training import early_stopping as stopping
from jaxnet.training import positions
from jaxnet.training.checkpoint import read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, finite, taken
from jaxnet.training.history import History, Log, Record
from jaxnet.training.state import copied, sound

HISTORY = "history.jsonl"
"""The file beside a run's checkpoints to which its records are appended."""


@dataclasses.dataclass
class Epoch:
    """What was done of an epoch; all of it is JSON, and stands in a checkpoint as it is.

    Attributes:
      step_of_epoch: steps done.
      totals: by name, and by the size of the batch: the count, the sum, and the sum of the squares, of what is finite;
        each step by its weight where it measured one, under the size 1.
      skipped: steps that changed nothing.
      seconds: spent, without compiling.
    """

    step_of_epoch: int = 0
    totals: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0

    def add(self, measured: dict[str, np.ndarray], sizes: np.ndarray | int) -> None:
        """Takes in what steps have measured on batches of these sizes."""
        each_size: list[int] = [sizes] if isinstance(sizes, int) else sizes.tolist()
        weights = [1]
        if "weight" in measured:
            each_size, weights = [1], measured["weight"].tolist()
        for name, values in measured.items():
            if name in ("skipped", "weight"):  # counted, not averaged
                continue
            totals = self.totals.setdefault(name, {})
            each = {size: totals.setdefault(str(size), [0, 0.0, 0.0]) for size in each_size}
            # One after the other, so that the sum does not depend on the dispatches.
            for value, size, weight in zip(values.tolist(), itertools.cycle(each_size), itertools.cycle(weights)):
                if math.isfinite(value) and math.isfinite(weight):  # of a NaN among weights there is a rate to measure
                    total = each[size]
                    total[0] += weight
                    total[1] += weight * value
                    total[2] += weight * value * value

    def means(self) -> dict[str, float]:
        """Of all that was measured, and the deviation of the loss."""
        mean, square = moments(self.totals["loss"])
        means = {name: moments(totals)[0] for name, totals in self.totals.items()}
        return {"loss": mean, **means, "loss_deviation": math.sqrt(max(square - mean**2, 0.0))}


class Run:
    """What changes in a run, and so what a checkpoint holds."""

    def __init__(
        self, train_state: Any, weights: Any, early_stopping: stopping.EarlyStopping | None, *, watches: bool = False
    ):
        self.train_state, self.weights = train_state, weights
        self.history, self.epoch = History(), Epoch()
        self.position: Any = None
        self.in_row = self.longest_row = 0
        self.spoiled_by_update = self.finished = False
        self.best = None if early_stopping is None else stopping.Best(early_stopping)
        self._saves_weights = getattr(weights, "saved", False)  # although no epoch is the best
        watched = self.best is not None or self._saves_weights
        self.best_weights: Any = copied(weights(train_state)) if watched else ()
        self._weights_of = -1
        self._watches = watches
        self._looked, self._look_cost = time.perf_counter(), 0.0
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
        self.train_state, self.epoch.step_of_epoch, self.position = done.train_state, done.steps, done.position
        now = time.perf_counter()
        self.epoch.seconds += now - self._clock - done.compile_seconds
        self._clock = now
        self.epoch.add(done.measured, done.sizes)
        good_steps = taken(done.measured)
        bad = np.flatnonzero(~good_steps)
        self.epoch.skipped += bad.size
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
        raise self.left_on(error)

    def left_on(self, error: BaseException) -> BaseException:
        """An error that ends the run, with the state and the records so far on it."""
        error.train_state, error.history = self.train_state, self.history  # type: ignore[attr-defined]
        return error

    def shown(self, done: Progress, functions: Sequence[Any]) -> None:
        """Has functions look at what a dispatch has measured (`callbacks.per_step`)."""
        if not functions:
            return
        last = int(self.train_state.step)
        measured = {"step": np.arange(last - len(done.measured["loss"]), last) + 1, **done.measured}
        for function in functions:
            self.finished |= calls.ends(function(measured, self.train_state))

    def end_epoch(self, evaluate: Any, callbacks: Iterable[Any]) -> None:
        """Closes an epoch with its record."""
        record: Record = {"epoch": len(self.history) + 1, "step": int(self.train_state.step), **self.epoch.means()}
        record["skipped"] = self.epoch.skipped
        if evaluate is not None:
            takes_epoch = "epoch" in inspect.signature(evaluate).parameters
            measured = evaluate(self.train_state, **({"epoch": len(self.history)} if takes_epoch else {}))
            names = sorted(measured, key=lambda name: name != "loss")  # the loss first; else in their order
            record |= {f"validation_{name}": float(measured[name]) for name in names}
        record["seconds"] = self.epoch.seconds
        record["steps_per_second"] = self.epoch.step_of_epoch / max(self.epoch.seconds, 1e-9)
        if self.best is not None:
            if self.best.improved(record):
                self.best_weights = copied(self.weights(self.train_state))
            self.finished |= self.best.patience_ended
        if plateau.monitors(self.train_state):
            self.train_state = plateau.observe(self.train_state, record)
        self.history.records.append(record)
        # The epoch is over: what the callbacks raise finds a run that can be saved and taken up.
        self.epoch = Epoch()
        for callback in callbacks:
            self.finished |= calls.ends(callback(record, self.train_state))
            calls.as_numbers(record)
        self._clock = time.perf_counter()

    @property
    def kept(self) -> Any:
        """The best weights, or the last if nothing was watched."""
        if self.best is None and not self._saves_weights:
            return copied(self.weights(self.train_state))
        step = int(self.train_state.step)
        if self.best is None and self._weights_of != step:
            self.best_weights, self._weights_of = copied(self.weights(self.train_state)), step
        return self.best_weights

    @property
    def saved(self) -> Any:
        """The arrays of a checkpoint."""
        return {"train_state": self.train_state, "best": self.kept if self._saves_weights else self.best_weights}

    @property
    def metadata(self) -> dict[str, Any]:
        """What else a checkpoint holds of it, as JSON, besides the history's seal (`history.Log`)."""
        return dataclasses.asdict(self.epoch) | {
            # Of several processes each has its own, and the first one alone writes this: they read again instead.
            "position": positions.as_json(self.position if jax.process_count() == 1 else None),
            "finished": self.finished,
            "weights": self._saves_weights,
            "best": None if self.best is None else self.best.save(),
        }

    def restore(self, checkpoints: Checkpoints, metadata: dict[str, Any], *, in_place: bool) -> None:
        """Takes up the newest checkpoint, which has this metadata, if it fits.

        Args:
          in_place: whether the data come as they came to it. Else its place within an epoch says nothing.
        """
        if "best" not in metadata:
            raise CheckpointError(f"{checkpoints.directory} holds checkpoints of no run of fit; give another directory")
        had, has = (_watched(best) for best in (metadata["best"], self.best and self.best.save()))
        if had != has:
            raise ConfigError(
                f"the run in {checkpoints.directory} watched {had}, and this call watches {has}, so its best says "
                f"nothing; give the same early_stopping, or another directory"
            )
        try:
            restored = checkpoints.restore(self.saved)
        except CheckpointError as error:
            if "does not fit" not in error.message:
                raise
            raise CheckpointError(
                f"the run in {checkpoints.directory} is of another network or another kind of optimizer than this "
                f"call's, or freezes other parameters, so that it cannot go on; give another directory, and to begin "
                f"there with its weights, where the network is the same, training.pretrained(net, *training.load_best("
                f"{str(checkpoints.directory)!r}, net, x)): {error.message}"
            ) from error
        assert restored is not None
        self.train_state, self.best_weights = restored[0]["train_state"], restored[0]["best"]
        self._weights_of = int(self.train_state.step)
        self.in_row = int(self.train_state.guard.in_row)
        self.history = _history(checkpoints, metadata["history"])
        self.finished = metadata["finished"]
        if in_place:
            self.epoch = Epoch(**{field.name: metadata[field.name] for field in dataclasses.fields(Epoch)})
            self.position = positions.from_json(metadata["position"])
        if self.best is not None:
            self.best.restore(metadata["best"])
            patience = metadata["best"].get("patience", metadata.get("patience"))  # beside it, in older checkpoints
            by_callback = self.finished and self.best.waited < patience
            self.finished = by_callback or self.best.patience_ended  # which may be another patience now


def _watched(best: dict[str, Any] | None) -> str:
    """What early stopping goes by, as `stopping.Best` saves it."""
    return f"{best['monitor']} ({best['mode']})" if best else "nothing (no early_stopping)"


def moments(totals: dict[str, list[float]]) -> tuple[float, float]:
    """The mean over an epoch's samples, and that of the squares, from count, sum and sum of squares a batch size."""
    totals = {size: sums for size, sums in totals.items() if sums[0]}
    if not totals:
        return math.nan, math.nan
    largest = max(map(int, totals))  # of which the others are parts, so that nothing is rounded where all are equal
    count, total, squares = (sum(int(size) / largest * sums[i] for size, sums in totals.items()) for i in range(3))
    return total / count, squares / count


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

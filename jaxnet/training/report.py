"""What a run says: lines for people, and a bar where there is a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxnet import _checks as checks
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.feed import Progress, Resident
from jaxnet.training.history import line
from jaxnet.training.run import Run
from jaxnet.training.streamed import Streamed


class Report:
    """Lines for people, and a bar where there is a terminal."""

    def __init__(self, progress: bool | Callable[[str], Any], epochs: int, feed: Resident | Streamed):
        self._write: Callable[[str], Any] | None = None
        self._bar: Any = None
        self._epochs, self._in_order = epochs, feed.in_order
        self._began = time.perf_counter()
        self._first: int | None = None
        if not callable(progress):
            checks.flag("progress", progress)
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
        if isinstance(feed, Resident) and feed.dropped:
            samples = feed.arrays.samples
            self.say(
                f"{feed.dropped} of {samples} samples do not fill a batch and are left out, others each epoch"
                if feed.arrays.shuffle
                else f"the last {feed.dropped} of {samples} samples do not fill a batch and are never trained on"
            )

    def say(self, text: str) -> None:
        """Writes a line."""
        if self._write is not None:
            self._write(text)

    def step(self, run: Run, done: Progress) -> None:
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

    def epoch(self, run: Run) -> None:
        """Writes an epoch's line."""
        if self._write is None:
            return
        done = len(run.history)
        left = (time.perf_counter() - self._began) / (done - (self._first or 0)) * (self._epochs - done)
        self.say(line(run.history[-1], self._epochs, left))

    def resumed(self, run: Run, checkpoints: Checkpoints | None) -> None:
        """Says from where the run goes on."""
        assert checkpoints is not None
        self.say(
            f"resumed from {checkpoints.directory}: epoch {len(run.history)} of {self._epochs} is done"
            + (f", and {run.epoch.step_of_epoch} steps of the next" if run.epoch.step_of_epoch else "")
            + ("; nothing is left to train: take another directory to train anew" if run.done(self._epochs) else "")
            + ("; the data must come in the same order again" if self._in_order and run.position is None else "")
        )

    def end(self, run: Run) -> None:
        """Says why it ended, if there is more to say than that all epochs are done."""
        self.close()
        if run.finished and run.best is not None:
            best = run.best
            self.say(f"stopped early: no {best.watch.monitor} better than epoch {best.epoch}'s {best.value:.4g}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _print(text: str) -> None:
    print(text, flush=True)

"""What a run measures, written to TensorBoard, Weights & Biases or trackio: one callback each."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _optional as optional
from jaxnet.errors import ConfigError, named

Write = Callable[[int, dict[str, float]], Any]
"""``(step, values by name)``."""


class Tracker:
    """A callback, of `wandb` say, that writes every epoch's record, and what every n-th step has measured.

    The writer is opened by the first record, of the first process alone, and closed when the run ends, however it does.

    Args:
      begin: opens the writer: ``() -> (write, end)``.
      every: of how many steps one is written; 0 for none.
    """

    def __init__(self, begin: Callable[[], tuple[Write, Callable[[], Any]]], every: int):
        self._begin, self._every = begin, checks.integer("every", every, minimum=0)
        self._open: tuple[Write, Callable[[], Any]] | None = None

    def _write(self, step: int, values: dict[str, float]) -> None:
        if jax.process_index() > 0:
            return
        if self._open is None:
            self._open = self._begin()
        self._open[0](step, values)

    def on_steps(self, measured: dict[str, np.ndarray], train_state: Any) -> None:
        """Writes the steps of a dispatch whose numbers ``every`` divides."""
        del train_state
        numbers = measured["step"]
        for i in np.flatnonzero(numbers % self._every == 0) if self._every else ():
            values = {f"step/{name}": float(column[i]) for name, column in measured.items() if name != "step"}
            self._write(int(numbers[i]), values)

    def __call__(self, record: dict[str, float], train_state: Any) -> None:
        """Writes an epoch."""
        del train_state
        values = {f"epoch/{name}": float(value) for name, value in record.items() if name not in ("epoch", "step")}
        self._write(int(record["step"]), {"epoch": float(record["epoch"]), **values})

    def close(self) -> None:
        """Ends what it has written; another run begins anew."""
        if self._open is not None:
            self._open[1]()
            self._open = None


@named("tensorboard")
def tensorboard(directory: str | os.PathLike[str], *, every: int = 100) -> Tracker:
    """A callback that writes a run for TensorBoard; ``tensorboard --logdir DIRECTORY`` shows it.

    An epoch's columns are ``epoch/loss``, ``epoch/validation_loss``, ... and those of the steps ``step/loss``, ..., all
    over the number of the step.

    Args:
      directory: for its files, one directory a run.
      every: of how many steps one is written; 0 writes epochs alone.

    Returns:
      What `fit` and `train` take among their ``callbacks``.

    Raises:
      DependencyError: tensorboard is not installed; ``pip install tensorboard``, which needs no TensorFlow.
      ConfigError: what is no path or number.

    Example:
      >>> from jaxnet import training
      >>> callbacks = [training.tensorboard("logs/1")]  # doctest: +SKIP
    """
    path = checks.path("directory", directory)
    summary = optional.load("training.tensorboard", "tensorboard.summary")

    def begin():
        writer = summary.Writer(str(path))

        def write(step, values):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return write, writer.close

    return Tracker(begin, every)


@named("wandb")
def wandb(run: Any = None, *, every: int = 100, **options: Any) -> Tracker:
    """A callback that writes a run to Weights & Biases, with the names of `tensorboard`.

    Args:
      run: one that you have begun, and end yourself; None begins one, ``wandb.init(**options)``, and ends it.
      every: of how many steps one is written; 0 writes epochs alone.
      **options: of ``wandb.init``: ``project=``, ``config=``, ``mode="offline"``, ...

    Returns:
      What `fit` and `train` take among their ``callbacks``.

    Raises:
      DependencyError: wandb is not installed; ``pip install wandb``.
      ConfigError: what is no number, or options of a run that there is.

    Example:
      >>> from jaxnet import training
      >>> class Run:  # in the place of what ``wandb.init(project="digits")`` returns
      ...     def log(self, values, step):
      ...         print(step, values)
      >>> callback = training.wandb(Run(), every=0)
      >>> callback({"epoch": 1, "step": 20, "loss": 0.5}, None)  # as `fit` does
      20 {'epoch': 1.0, 'epoch/loss': 0.5}
    """
    library = optional.load("training.wandb", "wandb") if run is None else None
    return _of_run(library, run, every, options)


@named("trackio")
def trackio(run: Any = None, *, every: int = 100, **options: Any) -> Tracker:
    """A callback that writes a run to trackio, with the names of `tensorboard`; ``trackio show`` shows it.

    Args:
      run: one that you have begun, and end yourself; None begins one, ``trackio.init(**options)``, and ends it.
      every: of how many steps one is written; 0 writes epochs alone.
      **options: of ``trackio.init``: ``project=``, ``name=``, ``config=``, ...

    Returns:
      What `fit` and `train` take among their ``callbacks``.

    Raises:
      DependencyError: trackio is not installed; ``pip install trackio``.
      ConfigError: what is no number, or options of a run that there is.

    Example:
      >>> import numpy as np
      >>> from jaxnet import training
      >>> class Run:  # in the place of what ``trackio.init(project="digits")`` returns
      ...     def log(self, values, step):
      ...         print(step, values)
      >>> callback = training.trackio(Run(), every=10)
      >>> callback.on_steps({"step": np.array([19, 20]), "loss": np.array([0.6, 0.5])}, None)  # as `fit` does
      20 {'step/loss': 0.5}
    """
    library = optional.load("training.trackio", "trackio") if run is None else None
    return _of_run(library, run, every, options)


def _of_run(library: Any, run: Any, every: int, options: dict[str, Any]) -> Tracker:
    """Of a library whose ``init`` begins a run with ``log(values, step=)`` and ``finish()``."""
    if run is not None and options:
        raise ConfigError(f"a run that is there needs no {', '.join(options)}: they are for the one that is begun here")

    def begin():
        begun = library.init(**options) if run is None else run
        return lambda step, values: begun.log(values, step=step), (begun.finish if run is None else lambda: None)

    return Tracker(begin, every)

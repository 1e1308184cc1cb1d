"""The checkpoints of a run: the last few, and the best."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import CheckpointError, ConfigError, named
from jaxnet.layers.layer import Params, State, as_layer
from jaxnet.training import _file, _spread
from jaxnet.training.checkpoint import jsonable, load, opened, read, read_metadata, save

# Without an ending: the directories of older versions, of which all that reads them says that they are no checkpoints.
_NAME = re.compile(r"(\d{6,})-step-(\d+)(\.safetensors)?")


class Checkpoints:
    """A directory of checkpoints that keeps the last ``keep`` and the best, to stop and resume from.

    Each is a file that `load` reads, named by a number that counts the saves and by its step, such as
    ``000012-step-600.safetensors``. The last is the one that was saved last, also after a run went back and took other
    steps. A step that is saved again takes the place of the older one.

    A killed process cannot damage a checkpoint (see `save`). If the newest is damaged nevertheless, a disk or a person
    did it, and `latest` and `restore` raise and say which it is, instead of taking the one before without being asked:
    that would repeat a part of the run unnoticed, and prune what could have been repaired. Deleting it falls back.

    A run of `fit` keeps two more files there: ``history.jsonl``, the records of its epochs, to which it appends, and
    ``.lock``, which it holds while it trains.

    Args:
      directory: where they lie; made by the first save.
      keep: how many of the last to keep, at least 1.
      keep_best: whether to keep the one with the lowest metric too.

    Raises:
      ConfigError: a bad ``directory``, ``keep`` or ``keep_best``.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet.training import Checkpoints
      >>> directory = tempfile.TemporaryDirectory()
      >>> checkpoints = Checkpoints(directory.name, keep=1)
      >>> for step, loss in [(10, 0.5), (20, 0.3), (30, 0.4), (40, float("nan"))]:
      ...     path = checkpoints.save(step, {"weight": jnp.full(2, step)}, metric=loss)
      >>> checkpoints.latest().name, checkpoints.best().name
      ('000004-step-40.safetensors', '000002-step-20.safetensors')
      >>> checkpoints.restore({"weight": jnp.zeros(2, int)})
      ({'weight': Array([40, 40], dtype=int32)}, {'step': 40, 'metric': nan})
      >>> directory.cleanup()
    """

    @named("Checkpoints")
    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3, keep_best: bool = True):
        self.directory = checks.path("directory", directory)
        self.keep = checks.integer("keep", keep, minimum=1)
        self.keep_best = checks.flag("keep_best", keep_best)

    @named("Checkpoints.save")
    def save(
        self, step: int, tree: Any, *, metadata: dict[str, Any] | None = None, metric: float | None = None
    ) -> Path:
        """Saves a checkpoint, then removes those that are neither among the last nor the best.

        Args:
          step: how many steps were taken.
          tree: as for `save`. Where several processes train, either its arrays lie on the devices of all and all call
            this, or the first process alone does.
          metadata: as for `save`; ``step`` and ``metric`` are added to it.
          metric: lower is better, such as the loss on the validation set; NaN and infinities are never the best.

        Returns:
          Its path.

        Raises:
          ConfigError: a negative step, a metric that is no number, or what `save` refuses.
          CheckpointError, DTypeError, DataError: see `save`; older checkpoints are unharmed.
        """
        step = checks.integer("step", step, minimum=0)
        metadata = jsonable(metadata)
        for name in ("step", "metric"):
            if name in metadata:
                raise ConfigError(f"metadata[{name!r}] is set from the argument {name}; use another name")
        metadata = metadata | {"step": step, "metric": _metric(metric)}
        older = self.paths()
        number = 1 + max((_numbers(path)[0] for path in older), default=0)
        path = save(self.directory / f"{number:06d}-step-{step}.safetensors", tree, metadata=metadata)
        if jax.process_index() == 0:
            self._prune(older, path)
        return path

    def paths(self) -> list[Path]:
        """All of them, in the order in which they were saved."""
        if not self.directory.is_dir():
            return []
        return sorted((path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)), key=_numbers)

    @named("Checkpoints.latest")
    def latest(self) -> Path | None:
        """The newest checkpoint, or None if there are none.

        Raises:
          CheckpointError: it is damaged (its header, or its size; `restore` checks all).
        """
        with self._newest() as (path, _):
            return path

    @named("Checkpoints.best")
    def best(self) -> Path | None:
        """The checkpoint with the lowest metric (of equals, the oldest), or None if none has a finite one.

        Raises:
          CheckpointError: one is damaged, so that its metric is not known; deleting it chooses among the others.
        """
        rated = [(metric, path) for path in self.paths() if (metric := _stored_metric(path)) is not None]
        return min(rated, key=lambda pair: pair[0])[1] if rated else None

    @named("Checkpoints.restore")
    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Loads the newest checkpoint.

        Args:
          like: as for `load`.

        Returns:
          The tree and its metadata, with ``step`` and ``metric`` in it; None if there are no checkpoints.

        Raises:
          CheckpointError: it is damaged, or does not fit.
        """
        with self._newest() as (_, file):
            return None if file is None else (read(file, like), file.description["metadata"])

    def _prune(self, older: list[Path], new: Path) -> None:
        others = [path for path in older if _numbers(path)[1] != _numbers(new)[1]]
        kept = {new, *others[max(0, len(others) - self.keep + 1) :]}
        if self.keep_best:
            rated = []
            for path in [*others, new]:
                try:
                    metric = _stored_metric(path)
                    rated += [(metric, path)] if metric is not None else []
                except CheckpointError:
                    kept.add(path)  # it may be the best, and repaired: `best` tells of it
            kept |= {min(rated, key=lambda pair: pair[0])[1]} if rated else set()
        for path in older:
            if path not in kept and path.is_file():
                path.unlink(missing_ok=True)
        _spread.sweep(self.directory)

    @contextmanager
    def _newest(self) -> Iterator[tuple[Path, _file.File] | tuple[None, None]]:
        """The path of the newest checkpoint, and it, open; an error says what there is to fall back to."""
        paths = self.paths()
        if not paths:
            yield None, None
            return
        try:
            with opened(paths[-1]) as file:
                yield paths[-1], file
        except CheckpointError as error:
            if "does not fit" in error.message:  # which is no damage
                raise
            fallback = f"the one before, {paths[-2].name}" if len(paths) > 1 else "a new start"
            raise CheckpointError(
                f"{error.message}. This is the newest checkpoint; delete {paths[-1]} to fall back to {fallback}"
            ) from error


@named("load_best")
def load_best(directory: str | os.PathLike[str] | Checkpoints, net: Any, x: Any) -> tuple[Params, State]:
    """Loads the weights of a run of `fit` out of its ``keep`` directory, whether it has ended or not.

    They are those of the best epoch if the run had early stopping, else those of the last step that was saved; the
    averages, where the optimizer averages (`optimizers.averaged`).

    Args:
      directory: what was given to `fit` as ``keep``.
      net: the network that was trained.
      x: an example input, or its `jax.ShapeDtypeStruct`.

    Returns:
      The pair ``(params, state)``, as `fit` returns it.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or one of another network.
      ConfigError: what is no path or no network.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> directory, x, net = tempfile.TemporaryDirectory(), jnp.ones((8, 3)), layers.dense(1)
      >>> fit = training.fit(
      ...     net, losses.mse, optimizers.sgd(0.1), (x, x[:, :1]), epochs=1, batch_size=4, progress=False,
      ...     keep=directory.name,
      ... )
      >>> params, state = training.load_best(directory.name, net, x)
      >>> bool((params["kernel"] == fit.params["kernel"]).all())
      True
      >>> directory.cleanup()
    """
    net = as_layer(net, "net")
    if not isinstance(directory, Checkpoints):
        directory = Checkpoints(checks.path("directory", directory))
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), x))
    while True:
        newest = directory.paths()[-1:]
        try:
            latest, under_params, under_state = weights_of(directory)
            return load(latest, params, under=under_params), load(latest, state, under=under_state)
        except CheckpointError:
            if directory.paths()[-1:] == newest:  # else the run is under way, and a newer one is in its place
                raise


def weights_of(directory: Checkpoints) -> tuple[Path, str, str]:
    """The newest checkpoint of a run, and the places in it of the params and the state of `load_best`."""
    latest = directory.latest()
    if latest is None:
        raise CheckpointError(
            f"{directory.directory} holds no checkpoint; wanted the directory that a run of fit had as keep="
        )
    metadata = read_metadata(latest)
    if metadata.get("best") is not None or metadata.get("weights"):
        return latest, "best/0", "best/1"
    return latest, "train_state/params", "train_state/state"


def _numbers(path: Path) -> tuple[int, ...]:
    """The number and the step in a checkpoint's name."""
    return tuple(map(int, re.findall(r"\d+", path.name)))


def _metric(metric: Any) -> float | None:
    if metric is None:
        return None
    try:
        if isinstance(metric, (str, bytes, bool)) or np.ndim(metric):
            raise TypeError
        return float(metric)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metric must be a number, lower is better, got {words.came(metric)}") from error


def _stored_metric(path: Path) -> float | None:
    """The metric, if it is finite."""
    try:
        metric = read_metadata(path).get("metric")
    except CheckpointError as error:
        raise CheckpointError(f"{error.message}. Delete {path} to choose among the others") from error
    return metric if isinstance(metric, (int, float)) and math.isfinite(metric) else None

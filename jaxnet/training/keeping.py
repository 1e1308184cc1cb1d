"""How a run is kept: where, how often, and what makes it the run that goes on."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import CheckpointError, ConfigError, named
from jaxnet.training import _atomic, devices
from jaxnet.training import identity as identities
from jaxnet.training.beside import Beside
from jaxnet.training.checkpoint import gathered, read_metadata
from jaxnet.training.checkpoints import Checkpoints
from jaxnet.training.history import History, Log
from jaxnet.training.interrupts import ending
from jaxnet.training.run import HISTORY, Run

SAVE_SHARE = 0.05
"""The most of the time that the training may wait for checkpoints."""


class Keep(NamedTuple):
    """What `keep` returns."""

    checkpoints: Checkpoints | None
    seconds: float
    resume: str
    identity: Mapping[str, str]
    log: Path | None


@named("keep")
def keep(
    directory: str | os.PathLike[str] | None = None,
    *,
    seconds: float = 10.0,
    last: int = 3,
    best: bool = True,
    resume: str = "same",
    identity: Mapping[str, str] | None = None,
    log: str | os.PathLike[str] | None = None,
) -> Keep:
    """How a run is kept; a directory alone is the short form, ``keep="run"``.

    The run is saved every few seconds, at Ctrl-C and at SIGTERM, and the same call takes it up where it stopped.

    Args:
      directory: for the checkpoints; it is tried before the first step, and no other run may use it meanwhile. None
        saves no checkpoints.
      seconds: how much work may be lost when the machine dies. The state is copied to the host's memory and written
        while the training goes on, one checkpoint at a time; for the copies it waits at most a twentieth of the
        time, and with several processes, which write before they go on, for the writing too.
      last: how many of the last checkpoints to keep (`Checkpoints`).
      best: whether to keep the best one too.
      resume: "same" goes on only with a run of the same program, optimizer, start, key, batches and order as this
        call's, and else says what differs; "anyway" with any that fits.
      identity: more of what makes this run this one, by name: where a text differs from that of the run in the
        directory, that run is not taken up. What your data are, say a checksum, can only come from you.
      log: a file to write the history to, a JSON line an epoch.

    Returns:
      What `fit` and `train` take as ``keep``.

    Raises:
      ConfigError: what is no path, number, choice or text.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> directory, x = tempfile.TemporaryDirectory(), jnp.ones((8, 3))
      >>> fit = training.fit(
      ...     layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, x[:, :1]), epochs=1, batch_size=4, progress=False,
      ...     keep=training.keep(directory.name, last=1, identity={"data": "ones"}),
      ... )
      >>> "history.jsonl" in os.listdir(directory.name)
      True
      >>> directory.cleanup()
    """
    directory = None if directory is None else checks.path("directory", directory)
    last, best = checks.integer("last", last, minimum=1), checks.flag("best", best)
    checkpoints = None if directory is None else Checkpoints(directory, keep=last, keep_best=best)
    seconds = checks.number("seconds", seconds, low=0)
    checks.choice("resume", resume, ("same", "anyway"))
    log = None if log is None else checks.path("log", log)
    identity = {} if identity is None else identity
    if not isinstance(identity, Mapping) or not all(
        isinstance(text, str) for item in identity.items() for text in item
    ):
        raise ConfigError(f"identity must be texts by name, such as {{'data': checksum}}, got {words.came(identity)}")
    if found := sorted({*identities.NAMES, *identities.MADE} & {*identity}):
        raise ConfigError(f"identity names {', '.join(found)}, which are found out by themselves; use other names")
    return Keep(checkpoints, seconds, resume, dict(identity), log)


def given(value: Any) -> Keep:
    """``keep`` as given by a user: a `Keep`, a directory, or None."""
    return value if isinstance(value, Keep) else keep(value)


class Saver:
    """When to save a run, and where; and the files that it holds while it is entered."""

    def __init__(self, keep: Keep, settings: dict[str, Any]):
        self.checkpoints, self.settings = keep.checkpoints, settings
        self.identity: dict[str, str] = {}
        self.batch: list[Any] = []
        self._keep = keep
        self._log = None if keep.log is None else Log(keep.log)
        self._kept = None if self.checkpoints is None else Log(self.checkpoints.directory / HISTORY)
        if self._log and self._kept and os.path.realpath(self._log.path) == os.path.realpath(self._kept.path):
            self._log = None  # one file is both
        self._held = contextlib.ExitStack()
        self._last = time.perf_counter()
        self._cost = 0.0
        self._saved: tuple[int, int] | None = None
        self._writer, self._copies = Beside(), {}

    def __enter__(self) -> "Saver":
        """Holds the directory for this run alone; refuses one that another run holds, or that cannot be written."""
        if self.checkpoints is not None:
            directory = self.checkpoints.directory
            _on_the_first(lambda: self._held.enter_context(_atomic.held(directory)), "keep", directory)
        if self._log is not None:
            _on_the_first(functools.partial(_atomic.try_file, self._log.path), "log", self._log.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and self._writer.busy:
            print("waiting for the checkpoint that is being written; what was saved before is whole", flush=True)
        try:
            self._writer.end()  # before another run may have the directory
        finally:
            self._held.close()

    def resume(self, run: Run, start: dict[str, str], step: Any, feed: Any) -> bool:
        """Takes up the run in the directory, if there is one; refuses one that is another than this call's.

        Args:
          run: at its beginning.
          start: the identity of what it begins with (`identity.of_start`).
          step: its step.
          feed: of which the batches have the shapes and dtypes ``feed.example``.

        Returns:
          Whether there was one.
        """
        if self.checkpoints is None:
            return False
        latest = self.checkpoints.latest()
        metadata = {} if latest is None else read_metadata(latest)
        batch = identities.as_before(feed.example, metadata.get("batch"))
        self.batch = identities.shapes(batch)
        self.identity = start | identities.of_step(step, run.train_state, batch) | dict(self._keep.identity)
        other = ""
        if metadata:
            run.restore(self.checkpoints, metadata, in_place=metadata.get("settings") == self.settings)
            other = identities.differences(metadata, {"settings": self.settings, "identity": self.identity})
        directory = self.checkpoints.directory
        hint = f"all must see one file system, and {directory} is not on one"
        devices.agree("the checkpoint", int(run.train_state.step), hint)
        (differs,) = devices.any_process(bool(other) and self._keep.resume == "same")
        if differs:
            raise ConfigError(
                f"the run in {directory} is another one than this call's: what differs is "
                f"{other or 'on another process'}; restore it; to go on all the same, give "
                f"keep=training.keep(..., resume='anyway'); to begin afresh, another directory"
            )
        return bool(run.epoch.step_of_epoch or len(run.history))

    def begin(self, history: History) -> None:
        """Writes to the files what is restored; from here on `record` appends to them."""
        for name, log in (("keep", self._kept), ("log", self._log)):
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
        with _all_or_none(place):
            try:
                do()
            except (OSError, CheckpointError) as cause:
                text = getattr(cause, "message", f"cannot write {place}: {getattr(cause, 'strerror', cause)}")
                if self.checkpoints is not None:
                    text += ". What was saved before is whole: once that is mended, the same call goes on from the "
                    text += "newest"
                step = int(run.train_state.step)
                error = CheckpointError(f"{text}. The state after step {step} is in error.train_state")
                raise run.left_on(error) from cause

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another, by this process's clock, or could not be written."""
        age = time.perf_counter() - self._last
        old = self.checkpoints is not None and age > max(self._keep.seconds, self._cost / SAVE_SHARE)
        return self._writer.failed or (old and not self._writer.busy)

    def written(self, run: Run) -> None:
        """Waits until what was saved is on the disk; raises what kept it from that."""
        if self.checkpoints is not None and jax.process_count() == 1:  # several write before they go on
            try:
                self._attempt(self._writer.wait, run, self.checkpoints.directory)
            except BaseException:
                self._saved = None
                raise

    def save(self, run: Run) -> None:
        """Saves now; after it the state may be given away, and `written` waits until it is on the disk."""
        began = time.perf_counter()
        self.written(run)
        waited = time.perf_counter() - began
        step = int(run.train_state.step)
        if self.checkpoints is None or self._saved == (step, len(run.history)):
            return
        run.must_be_sound(self.checkpoints, now=True)
        began = time.perf_counter() - waited
        metric = None
        if run.best is not None and not run.epoch.step_of_epoch and len(run.history):
            value = run.history[-1][run.best.watch.monitor]
            metric = -value if run.best.watch.mode == "max" else value
        # Of what every process has whole, the first writes its copy; pieces are written by those who have them.
        tree = jax.tree.map(devices.own_copy, run.saved)
        in_pieces = not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))
        checkpoints, kept = self.checkpoints, self._kept
        assert kept is not None
        self.record(run)
        this = {"settings": self.settings, "identity": self.identity, "batch": self.batch, "history": kept.seal}
        metadata = run.metadata | this

        def sync():  # the history is on the disk before the checkpoint that stands for a part of it
            try:
                kept.sync()
            except OSError as cause:
                raise CheckpointError(f"cannot write {kept.path}: {cause.strerror or cause}") from cause

        if jax.process_count() == 1:
            tree = gathered(tree, self._copies)
            self._writer.start(lambda: (sync(), checkpoints.save(step, tree, metadata=metadata, metric=metric)))
        else:  # written by all together, who must not be in the middle of a step
            self._attempt(sync, run, kept.path)

            def save():
                if in_pieces or jax.process_index() == 0:
                    checkpoints.save(step, tree, metadata=metadata, metric=metric)

            self._attempt(save, run, checkpoints.directory)  # once it is there, all may end
        self._saved = (step, len(run.history))
        self._last = time.perf_counter()
        self._cost = self._last - began

    def left(self, run: Run, *, save: bool) -> str:
        """Saves a run that ends early, if it is to and can be; says where it is and how it goes on."""
        where = f"step {int(run.train_state.step)} (epoch {len(run.history) + 1})"
        if self.checkpoints is not None and save:
            try:
                self.save(run)
                self.written(run)
                return f"saved at {where} in {self.checkpoints.directory}; the same call goes on from there"
            except Exception as refused:  # of the memory, too: the state is what must not be lost
                return f"stopped at {where}, and that could not be saved, but is in error.train_state: {refused}"
        if self.checkpoints is not None and self.checkpoints.paths():
            newest = f"the newest checkpoint in {self.checkpoints.directory}"
            return f"stopped at {where}; the same call goes on from {newest}"
        return (
            f"stopped at {where}; the state is in error.train_state: train on from its weights, "
            f"training.pretrained(net, params, state), or give keep= to have the same call go on where it was"
        )


@contextlib.contextmanager
def ended_early(run: Run, saver: Saver, close: Callable[[], Any]) -> Iterator[None]:
    """Whatever ends the run early, the state so far is saved if it can be, and is on the error."""
    begun = int(run.train_state.step)
    try:
        yield
    except BaseException as error:
        close()
        signalled: str | None = getattr(error, "signal_name", None)
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(run.train_state)) or hasattr(error, "train_state"):
            raise
        if int(run.train_state.step) == begun and not signalled:  # nothing was done that could be lost
            raise
        # Of several processes an error may have come to one alone, and saving is done by all together; a second Ctrl-C
        # wants no saving.
        save = bool(signalled) or (jax.process_count() == 1 and not isinstance(error, KeyboardInterrupt))
        on = saver.left(run, save=save and not isinstance(error, CheckpointError))
        if signalled:
            if jax.process_index() == 0:
                print(f"{signalled}: {on}", flush=True)
            error = ending(signalled, f"fit: {on}")
        run.left_on(error)
        if signalled:
            raise error from None
        error.add_note(f"fit: {on}")
        raise


def _on_the_first(do: Callable[[], Any], name: str, place: Path) -> None:
    """Has the first process open what only one may; where it cannot, all raise, before anything is trained."""
    with _all_or_none(place):
        if jax.process_index() > 0:
            return
        try:
            do()
        except BlockingIOError as cause:
            raise CheckpointError(
                f"another run uses {place}: {cause.strerror}; two would mix their checkpoints: wait for its end, "
                f"stop it, or give keep= another directory"
            ) from None
        except OSError as cause:
            kind, argument = (CheckpointError, "keep=") if name == "keep" else (ConfigError, "training.keep(log=...)")
            raise kind(
                f"cannot write {place}: {cause.strerror or cause}; nothing was trained yet: mend that, or give "
                f"{argument} a place on a disk with room, where you may write"
            ) from cause


def _all_or_none(place: Path) -> contextlib.AbstractContextManager[None]:
    """Raises on all processes what goes wrong on one, so that none waits for it."""
    return devices.together(CheckpointError(f"another process cannot write {place}; its error says why"))

"""What a run's checkpoints cost it: the same training saved every few seconds, in three ways, and not saved at all."""

import contextlib
import functools
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import layers, optimizers, training
from jaxnet.training import keeping
from jaxnet.training.beside import Beside
from jaxnet.training.keeping import Saver

EVERY = 10.0  # seconds from one checkpoint to the next, of which the share is told


def shares(mebibytes: int, directory: Path, *, epochs: int, every: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Trains with a state of this size, epochs of about a quarter of a second, saved ``every`` few seconds.

    Yields:
      A way, and of it ``saves``; ``waits``, seconds that the training waited in the call that saves; ``longer``,
      seconds by which a save made it longer in all; and ``share``, what that is of the time at one save every 10 s.
    """
    steps = 6 if mebibytes < 256 else 1
    ways: dict[str, Callable[..., Any]] = {"beside": _ours}
    if importlib.util.find_spec("orbax") is not None:
        ways["orbax"] = _orbax
    ways["in turn"] = _ours_in_turn
    some = 24
    usual = _trained(mebibytes, steps, some, []) / (some - 1 - some // 4) * (epochs - 1 - epochs // 4)
    for way, saved in ways.items():
        waits: list[float] = []
        train = functools.partial(_trained, mebibytes, steps, epochs, waits=waits)
        took = saved(waits, directory / way, every, train)
        shutil.rmtree(directory / way)
        longer = (took - usual) / max(len(waits), 1)
        wait = float(np.mean(waits or [np.nan]))
        yield way, {"saves": len(waits), "waits": wait, "longer": longer, "share": longer / EVERY}


def _trained(
    mebibytes: int, steps: int, epochs: int, callbacks: list[Any], keep: Any = None, waits: list[float] | None = None
) -> float:
    """Seconds from the end of the first quarter of the epochs, in which the first save falls, to that of the last."""
    count = mebibytes * 2**20 // 4 // 8
    net = layers.stateless(
        lambda key, x: [jax.random.normal(key, (count,)) for key in jax.random.split(key, 8)], lambda params, x: x
    )
    state = training.init(net, optimizers.sgd(0.1), jnp.ones((1, 512)), 0)
    weight = jnp.eye(512) * 0.999

    def step(state, batch):
        y = batch[0]
        for _ in range(16):
            y = jnp.tanh(y @ weight)
        loss = jnp.mean(y)
        params = jax.tree.map(lambda leaf: leaf * 0.9999 + 1e-9 * loss, state.params)
        return state._replace(params=params, step=state.step + 1), {"loss": loss}

    ends: list[float] = []

    def ended(record, _):
        ends.append(time.perf_counter())
        if waits and record["epoch"] == 1 + epochs // 4:
            waits.clear()

    x = np.ones((256 * steps, 512), np.float32)
    training.train(
        step, state, (x, x[:, :1]), epochs=epochs, batch_size=256, keep=keep, progress=False,
        callbacks=[*callbacks, ended],
    )  # fmt: skip
    return ends[-1] - ends[epochs // 4]


@contextlib.contextmanager
def _timed(kind: Any, name: str, waits: list[float]) -> Iterator[None]:
    """Notes how long each call of a method takes, but the last, at the end of the run."""
    method, limit = getattr(kind, name), keeping.SAVE_SHARE
    keeping.SAVE_SHARE = float("inf")  # as often as asked

    def timed(*arguments, **options):
        began = time.perf_counter()
        result = method(*arguments, **options)
        waits.append(time.perf_counter() - began)
        return result

    setattr(kind, name, timed)
    try:
        yield
    finally:
        setattr(kind, name, method)
        waits.pop()
        keeping.SAVE_SHARE = limit


def _ours(waits: list[float], place: Path, every: float, trained: Callable[..., float]) -> float:
    with _timed(Saver, "save", waits):
        return trained([], training.keep(place, seconds=every, last=1, best=False))


def _ours_in_turn(waits: list[float], place: Path, every: float, trained: Callable[..., float]) -> float:
    start = Beside.start
    Beside.start = lambda self, do: do()  # type: ignore[method-assign]
    try:
        return _ours(waits, place, every, trained)
    finally:
        Beside.start = start  # type: ignore[method-assign]


def _orbax(waits: list[float], place: Path, every: float, trained: Callable[..., float]) -> float:
    import orbax.checkpoint as ocp

    last = [time.perf_counter()]
    with ocp.CheckpointManager(place, options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:

        def save(record, state):
            if time.perf_counter() - last[0] > every and len(waits) < 4:  # enough of those that take seconds each
                began = time.perf_counter()
                manager.save(int(state.step), args=ocp.args.StandardSave({"params": state.params, "step": state.step}))
                last[0] = time.perf_counter()  # from its end on, as ours
                waits.append(last[0] - began)

        took = trained([save], None)
        manager.wait_until_finished()
    return took

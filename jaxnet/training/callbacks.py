"""Functions that a run calls: after every epoch, and after every dispatch of steps."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, named


class PerStep:
    """What `per_step` returns: nothing after an epoch, and ``on_steps`` after every dispatch."""

    def __init__(self, function: Callable[[dict[str, np.ndarray], Any], Any]):
        self.on_steps = function

    def __call__(self, record: Any, train_state: Any) -> None:
        """Nothing."""


@named("per_step")
def per_step(function: Callable[[dict[str, np.ndarray], Any], Any]) -> PerStep:
    """A callback that is given what every step has measured, a dispatch at once.

    Steps are not stopped one by one to be looked at: arrays are trained on many steps a dispatch (of about a tenth of a
    second), streams up to 32, and what they have measured comes to the host in any case. So this costs what the
    function costs, once a dispatch. It sees every step; the state is the one after the last of them.

    Args:
      function: ``(measured, train_state)``, where ``measured`` are arrays by name, an entry a step: "step", their
        numbers from 1, "loss", "grad_norm", the metrics, "learning_rate" and "skipped". True ends the run, and its
        epoch, at once.

    Returns:
      What `fit` and `train` take among their ``callbacks``.

    Raises:
      ConfigError: no function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x, seen = jnp.linspace(-1, 1, 64)[:, None], []
      >>> def watch(measured, train_state):
      ...     seen.extend(zip(measured["step"], measured["loss"]))
      ...     return measured["step"][-1] >= 6
      >>> fit = training.fit(
      ...     layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, 2 * x), epochs=9, batch_size=16, progress=False,
      ...     callbacks=[training.per_step(watch)],
      ... )
      >>> len(seen) == fit.history[-1]["step"] < 36
      True
    """
    return PerStep(checks.takes("function", function, "measured", "train_state"))


def checked(callbacks: Any) -> list[Callable[..., Any]]:
    """The functions to call after every epoch, if they take what they will be given."""
    if not isinstance(callbacks, Iterable):
        raise ConfigError(f"callbacks must be a list of functions, got {words.came(callbacks)}; callbacks=[...]")
    return [checks.takes("callbacks", one, "record", "train_state") for one in callbacks]


def of_steps(callbacks: Sequence[Any]) -> list[Callable[[dict[str, np.ndarray], Any], Any]]:
    """Those functions that are called after every dispatch."""
    return [callback.on_steps for callback in callbacks if hasattr(callback, "on_steps")]


@contextlib.contextmanager
def closed(callbacks: Sequence[Any]) -> Iterator[None]:
    """Closes those that have a ``close`` when the run ends, however it does."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            if hasattr(callback, "close"):
                stack.callback(callback.close)
        yield


def ends(answer: Any) -> bool:
    """Whether a callback asks to end the run: with True, of Python, NumPy or JAX."""
    truths = isinstance(answer, (bool, np.bool_)) or getattr(answer, "dtype", None) == np.dtype(bool)
    return truths and np.shape(answer) == () and bool(answer)


def as_numbers(record: dict[str, Any]) -> None:
    """Makes what callbacks have put in a record numbers of Python; refuses what is none."""
    for name, value in record.items():
        if type(value) in (int, float):
            continue
        try:
            record[name] = value.item() if np.shape(value) == () and hasattr(value, "item") else float(value)
        except (TypeError, ValueError) as error:
            del record[name]  # without it the run can be saved
            raise ConfigError(
                f"a callback has put {name!r} in the record of epoch {record.get('epoch')}, a {type(value).__name__} "
                f"of shape {np.shape(value)}; the history keeps a number an epoch, such as float(x.mean())"
            ) from error

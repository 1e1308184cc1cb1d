"""The errors that jaxnet raises: who refused, what came, what was wanted, and one hint.

Every class also inherits the built-in exception that a caller would expect, so ``except ValueError``
catches a `ShapeError`. Containers add their position as an error passes through them, so the message
of a layer deep inside a network begins with the path to it.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax.errors

from jaxnet import _words as words

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DTypeError",
    "DataError",
    "DependencyError",
    "JaxnetError",
    "NonFiniteError",
    "ShapeError",
]

P = ParamSpec("P")
T = TypeVar("T")


class JaxnetError(Exception):
    """The base of every error that jaxnet raises on purpose.

    Args:
      message: what was wanted, what came, and a hint.

    Attributes:
      who: the function or layer that refused, as `named` says at its door.
      path: the containers around the place of the error, outermost first.

    Example:
      >>> from jaxnet import errors
      >>> try:
      ...     with errors.located("chain[2]"):
      ...         raise errors.ShapeError("dense: got 3 features, the kernel was made for 4")
      ... except ValueError as error:
      ...     print(error)
      chain[2]: dense: got 3 features, the kernel was made for 4
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message
        self.who = ""
        self.path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ": ".join(filter(None, ("/".join(self.path), self.who, self.message)))


class ShapeError(JaxnetError, ValueError):
    """An array has a shape that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mse(jnp.ones(3), jnp.ones(4))
      Traceback (most recent call last):
      jaxnet.errors.ShapeError: mse: prediction (3,) and target (4,) must have one shape; they are never broadcast
    """


class DTypeError(JaxnetError, TypeError):
    """An argument is no array, or its element type does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.mse(jnp.ones(3), "ones")
      Traceback (most recent call last):
      jaxnet.errors.DTypeError: mse: target must be an array, got str; pass a jax or numpy array
    """


class ConfigError(JaxnetError, ValueError):
    """A hyperparameter is nonsense, or a call lacks what the configuration needs.

    Example:
      >>> from jaxnet import layers
      >>> layers.dense(0)
      Traceback (most recent call last):
      jaxnet.errors.ConfigError: dense: units must be an integer >= 1, got 0
    """


class DataError(JaxnetError, ValueError):
    """The data themselves are wrong: empty, of unequal lengths, a label that is no class.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.softmax_cross_entropy(jnp.ones((1, 3)), jnp.array([3]))
      Traceback (most recent call last):
      jaxnet.errors.DataError: softmax_cross_entropy: label 3 at index 0 is no class; there are 3, 0 to 2 ...
    """


class NonFiniteError(JaxnetError, ValueError):
    """Training met NaN or Inf, and cannot go on from there.

    Example:
      >>> from jaxnet import errors
      >>> issubclass(errors.NonFiniteError, ValueError)  # so `except ValueError` catches it
      True
    """


class CheckpointError(JaxnetError, ValueError):
    """A file of saved arrays is damaged, or does not fit what it is loaded into.

    Example:
      >>> from jaxnet import training
      >>> training.load("nowhere.safetensors", {})
      Traceback (most recent call last):
      jaxnet.errors.CheckpointError: load: nowhere.safetensors does not exist; wanted the file that ...
    """


class DependencyError(JaxnetError, ImportError):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A library that one feature alone needs is not installed. Its ``path`` is ours, no file's as in ImportError.

    Example:
      >>> from jaxnet import errors
      >>> issubclass(errors.DependencyError, ImportError)  # so `except ImportError` catches it
      True
    """


class named:
    """At the door of a function or layer, as a decorator or in a ``with``: errors from inside say that it refused.

    The innermost door counts: what a layer refuses is not its container's. Of arguments that the function does not
    take, Python's own words are followed by how it is called; ``miscalled`` says instead what is wrong with them.

    Example:
      >>> from jaxnet import errors
      >>> @errors.named("dense")
      ... def dense(units):
      ...     raise errors.ConfigError(f"units must be an integer >= 1, got {units}")
      >>> dense(0)
      Traceback (most recent call last):
      jaxnet.errors.ConfigError: dense: units must be an integer >= 1, got 0
    """

    def __init__(self, who: str, miscalled: Callable[..., str] | None = None):
        self.who = who
        self.miscalled = miscalled

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, JaxnetError):
            error.who = error.who or self.who

    # Not contextlib's: a call costs a fifth, and `_checks.warn` finds the user's line, past no frames but ours.
    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def door(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except JaxnetError as error:
                error.who = error.who or self.who
                raise
            except TypeError as error:
                # Where Python could not bind the arguments, no frame of the function is in the traceback, but maybe
                # that of what it wraps, which has its signature.
                bound = error.__traceback__ is None or error.__traceback__.tb_next is not None
                if bound and (self.miscalled is not None or _binds(function, args, kwargs)):
                    raise
                if self.miscalled is None:
                    raise TypeError(words.not_bound(function, error, args, kwargs)) from None
                said = ConfigError(self.miscalled(*args, **kwargs))
                said.who = self.who
                raise said from None

        return door


def _binds(function: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether a function that others may wrap takes these arguments; one that wraps none did, since it was entered."""
    try:
        if hasattr(function, "__wrapped__"):
            inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        pass
    return True


def innermost() -> str:
    """The name of the innermost door around the caller, for warnings, which pass no door; "" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "door" and frame.f_code.co_filename == __file__:
            return frame.f_locals["self"].who
        frame = frame.f_back
    return ""


class located:
    """Prefixes the path of any `JaxnetError` that passes through a ``with`` with ``place``.

    Any other exception gets a note that says the path, and ends in ``name``, what is at the innermost place.
    """

    def __init__(self, place: str, name: str = ""):
        self.place, self.name = place, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, JaxnetError):
            error.path = (self.place, *error.path)
        elif isinstance(error, Exception):
            _note(error, self.place, self.name)


_IN = "jaxnet: in "


def _note(error: Exception, place: str, name: str) -> None:
    """One note a path: the places outside are put before the innermost."""
    notes = getattr(error, "__notes__", [])
    for i, note in enumerate(notes):
        if note.startswith(_IN):
            notes[i] = f"{_IN}{place}/{note.removeprefix(_IN)}"
            return
    error.add_note(f"{_IN}{place}{f': {name}' if name else ''}")
    if isinstance(error, OF_VALUES):
        read_values(error, name or "it")


OF_VALUES = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
"""What JAX raises where NumPy, or Python, asks a traced array for its numbers."""


def read_values(error: Exception, name: str) -> None:
    """Adds to one of `OF_VALUES` which function it was, and what to write."""
    error.add_note(
        f"jaxnet: {name} reads numbers, and there are none yet while its program is made; write jax.numpy for numpy, "
        f"jnp.where(condition, a, b) for an if, and leave out float()"
    )

"""The errors that jaxnet raises: who refused, what came, what was wanted, and one hint.

Every class also inherits the built-in exception that a caller would expect, so ``except ValueError``
catches a `ShapeError`. Containers add their position as an error passes through them, so the message
of a layer deep inside a network begins with the path to it.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

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
    """An array has a shape that does not fit."""


class DTypeError(JaxnetError, TypeError):
    """An argument is no array, or its element type does not fit."""


class ConfigError(JaxnetError, ValueError):
    """A hyperparameter is nonsense, or a call lacks what the configuration needs."""


class DataError(JaxnetError, ValueError):
    """The data themselves are wrong: empty, of unequal lengths, a label that is no class."""


class NonFiniteError(JaxnetError, ValueError):
    """Training met NaN or Inf, and cannot go on from there."""


class CheckpointError(JaxnetError, ValueError):
    """A file of saved arrays is damaged, or does not fit what it is loaded into."""


class DependencyError(JaxnetError, ImportError):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A library that one feature alone needs is not installed. Its ``path`` is ours, no file's as in ImportError."""


class named:
    """At the door of a function or layer, as a decorator or in a ``with``: errors from inside say that it refused.

    The innermost door counts: what a layer refuses is not its container's.

    Example:
      >>> from jaxnet import errors
      >>> @errors.named("dense")
      ... def dense(units):
      ...     raise errors.ConfigError(f"units must be an integer >= 1, got {units}")
      >>> dense(0)
      Traceback (most recent call last):
      jaxnet.errors.ConfigError: dense: units must be an integer >= 1, got 0
    """

    def __init__(self, who: str):
        self.who = who

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

        return door


def innermost() -> str:
    """The name of the innermost door around the caller, for warnings, which pass no door; "" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "door" and frame.f_code.co_filename == __file__:
            return frame.f_locals["self"].who
        frame = frame.f_back
    return ""


class located:
    """Prefixes the path of any `JaxnetError` that passes through a ``with`` with ``place``."""

    def __init__(self, place: str):
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, JaxnetError):
            error.path = (self.place, *error.path)

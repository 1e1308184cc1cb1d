"""Checks of functions, and of which arguments they take."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxnet import _words as words
from jaxnet.errors import ConfigError


def function(name: str, value: Any) -> Any:
    """``value``, which must be callable."""
    if not callable(value):
        raise ConfigError(words.no_function(name, value))
    return value


def accepts(f: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called so; of one without a signature that is not known, and it is believed."""
    try:
        signature(f).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        pass
    return True


def signature(f: Callable[..., Any]) -> inspect.Signature:
    """A function's own signature: a decorator may take other arguments than what it says that it wraps."""
    f = inspect.unwrap(f, stop=inspect.isfunction)  # of `jax.jit`'s and its like, what they wrap
    return inspect.signature(f, follow_wrapped=False)


def takes(name: str, value: Any, *args: str, **kwargs: Any) -> Any:
    """``value``, which must be a function of these arguments."""
    if not accepts(function(name, value), *args, **kwargs):
        wanted = ", ".join([*args, *["*"] * bool(kwargs), *kwargs])
        raise ConfigError(f"{name} must take ({wanted}), got a function of {signature(value)}")
    return value

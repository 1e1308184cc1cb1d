"""Optimizers inside others: what counts as one, and how its ``update`` is called."""

import inspect
import re
from typing import Any

from jaxnet import _words as words
from jaxnet.errors import ConfigError
from jaxnet.optimizers.base import Optimizer


def member(value: Any) -> Any:
    """``value``, an (init, update) pair, ours or optax's; a plain tuple of the two becomes an `Optimizer`."""
    if is_plain_pair(value):
        return Optimizer(*value)
    if isinstance(value, type) or not (
        callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    ):
        raise ConfigError(words.no_optimizer(value))
    return value


def is_plain_pair(value: Any) -> bool:
    """Whether ``value`` is a tuple or list of two functions."""
    return type(value) in (tuple, list) and len(value) == 2 and all(map(callable, value))


def updated(optimizer: Any, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]) -> Any:
    """``optimizer.update(updates, state, params)``, with those of the extra arguments that it takes.

    Raises:
      ConfigError: it needs an extra argument that the caller did not give.
    """
    try:
        return optimizer.update(updates, state, params, **_taken(optimizer.update, extra_args))
    except TypeError as error:
        missing = re.search(
            r"update\w*\(\) missing \d+ required (?:keyword-only|positional) arguments?: (.*)$", str(error)
        )
        if missing is None:
            raise
        raise ConfigError(
            f"an optimizer inside needs {missing[1].replace(chr(39), '')}, and this update got "
            f"{', '.join(extra_args) or 'no extra arguments'}; call update(gradients, state, params, value=loss, ...). "
            f"optax.chain hands them to optax's own members only: there use jaxnet.optimizers.chain"
        ) from error


def _taken(update: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that an ``update`` takes: all, those that it names after the first three, or none."""
    try:
        parameters = inspect.signature(update).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return extra_args
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, p in list(parameters.items())[3:] if p.kind in by_name]
    return {name: extra_args[name] for name in names if name in extra_args}

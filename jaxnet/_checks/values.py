"""Checks of what a call is told: numbers, flags, choices, paths and keys."""

import math
import numbers
import operator
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _words as words
from jaxnet.errors import ConfigError


def integer(name: str, value: Any, *, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``; bools, floats, strings and tracers are refused."""
    wanted = f"{name} must be an integer >= {minimum}, got "
    if isinstance(value, (bool, np.bool_)):
        raise ConfigError(wanted + words.came(value))
    try:
        result = operator.index(value)
    except TypeError as error:
        raise ConfigError(
            f"{wanted}{words.came(value)}; sizes are Python integers, known before anything is traced"
        ) from error
    if result < minimum:
        raise ConfigError(wanted + words.came(value))
    return result


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """``value`` as a finite float between ``low`` and ``high``; ends count unless they are open."""
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    wanted = f"{name} must be a finite number in {interval}, got "
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
        raise ConfigError(wanted + words.came(value))
    result = float(value)
    too_low = result <= low if open_low else result < low
    too_high = result >= high if open_high else result > high
    if not math.isfinite(result) or too_low or too_high:
        raise ConfigError(wanted + words.came(value))
    return result


def flag(name: str, value: Any) -> bool:
    """``value``, which must be a Python bool: it decides what is traced."""
    if not isinstance(value, bool):
        kind = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ConfigError(
            f"{name} must be True or False, got {kind}; it decides what is compiled, so under jit "
            f"write it in the call (or name it in static_argnames)"
        )
    return value


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """``value``, which must be one of ``options``."""
    if value not in options:
        near = [one for one in options if isinstance(value, str) and one.lower() == value.strip().lower()]
        hint = f"; write {near[0]!r}" if near else ""
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, options))}, got {words.came(value)}{hint}")
    return value


def path(name: str, value: Any) -> Path:
    """``value`` as a local path, ``~`` expanded; what would silently become a strange file of that name is refused."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be a path, a string or a pathlib.Path, got {words.came(value)}")
    if not text or "\0" in text:
        hint = "no file system has NUL in a name" if text else "for the current directory give '.'"
        raise ConfigError(f"{name} must be a path, got {text!r}; {hint}")
    if scheme := re.match(r"(?i)file:|[a-z][a-z0-9+.-]+:/", text):
        hint = "the bucket's folder where it is mounted, or a local one, and copy it afterwards"
        if scheme[0].lower() == "file:":
            bare = re.sub("^file:(//(localhost)?(?=/))?", "", text, flags=re.IGNORECASE)
            hint = f"it without its beginning: {bare!r}"
        raise ConfigError(f"{name} must be a path on this machine's file systems, got {text!r}; give {hint}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(f"{name}: there is no home for {text!r}; write the path in full, from '/'")
    return Path(expanded)


def key(value: Any) -> Any:
    """One PRNG key: a typed key, a raw uint32 key, or an integer seed from 0 to 2**32 - 1."""
    hint = "pass jax.random.key(seed), or an integer seed from 0 to 2**32 - 1"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not 0 <= value < 2**32:
            raise ConfigError(f"seed {value} is outside 0..2**32 - 1, where it would silently wrap; {hint}")
        return jax.random.key(np.uint32(value))
    dtype = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if dtype is None or shape is None:
        raise ConfigError(f"key must be a JAX PRNG key, got {words.came(value)}; {hint}")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return value
    if not typed and dtype == jnp.uint32 and len(shape) == 1 and shape[0] in (2, 4):
        return jnp.asarray(value)
    if typed or dtype == jnp.uint32:
        raise ConfigError(f"key must be one key, got an array of keys of shape {shape}; pick one, or use vmap")
    raise ConfigError(f"key must be a JAX PRNG key, got {dtype} of shape {shape}; {hint}")

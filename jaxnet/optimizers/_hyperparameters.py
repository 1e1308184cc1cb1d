"""Hyperparameters: numbers, scalar arrays, or schedules; checked where a rule is made, read at every step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError


def scalar(name: str, value: Any, *, schedule: bool = True, **interval: Any) -> Any:
    """``value``: a number >= 0 in the interval of `checks.number`, a scalar array (traced or not), or a schedule."""
    wanted = "a float, a scalar array" + (", or a schedule: a function from step to value" if schedule else "")
    if callable(value):
        if not schedule:
            raise ConfigError(f"{name} takes no schedule, got {words.came(value)}; pass {wanted}")
        return value
    number = value
    if isinstance(value, (jax.Array, np.ndarray)):
        if value.shape != ():
            raise ConfigError(
                f"{name} must be one number, got an array of shape {value.shape}; pass {wanted}. "
                f"To try several values at once, jax.vmap over one; to give groups of parameters values of their "
                f"own, use one optimizer per group (optax.partition)"
            )
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            raise ConfigError(f"{name} must be a real number, got dtype {value.dtype}; pass {wanted}")
        if isinstance(value, Tracer):
            return value
        number = value.item()
    if words.are_arrays(value) and not hasattr(value, "shape"):
        what = words.came(value)
        raise ConfigError(f"{name} must be one number, got {what}; parameters come after it: optimizer.init(params)")
    try:
        number = checks.number(name, number, low=0.0, **interval)
    except ConfigError as error:
        raise ConfigError(f"{error.message}; pass {wanted}") from None
    return value if isinstance(value, jax.Array) else number


def scalars(**values: Any) -> dict[str, Any]:
    """`scalar` of each, by name."""
    return {name: scalar(name, value) for name, value in values.items()}


def decays(**values: Any) -> dict[str, Any]:
    """`scalar` in [0, 1) of each, by name."""
    return {name: scalar(name, value, high=1.0, open_high=True) for name, value in values.items()}


def at(name: str, value: Any, count: jax.Array) -> Any:
    """The hyperparameter at step ``count``: a schedule is called, anything else is what it is.

    A NumPy number becomes a Python float, which takes the dtype of what it meets and imposes none.
    """
    if not callable(value):
        return value
    result: Any = value(count)
    if not isinstance(result, (int, float, jax.Array, np.ndarray, np.generic)):
        raise ConfigError(f"the schedule for {name} must return a number, got {words.came(result)}")
    if np.shape(result) != ():
        raise ConfigError(f"the schedule for {name} must return one number per step, got shape {np.shape(result)}")
    if not isinstance(result, Tracer) and not (math.isfinite(result) and float(result) >= 0):
        raise ConfigError(f"the schedule for {name} returned {result}; it must return finite numbers >= 0")
    return result if isinstance(result, jax.Array) else float(result)


def not_both_zero(eps: Any, eps_root: Any) -> None:
    """Refuses a denominator that is 0 where the gradient is."""
    if all(not callable(e) and not isinstance(e, Tracer) and float(e) == 0 for e in (eps, eps_root)):
        raise ConfigError(
            "eps and eps_root are both 0, and a zero gradient would give 0 / 0 = NaN; "
            "make one of them positive, for example eps=1e-8"
        )


def float_dtype(name: str, value: Any) -> Any:
    """``value`` as a floating-point (or complex) dtype that JAX has here, or None."""
    if value is None:
        return None
    try:
        dtype = jax.dtypes.canonicalize_dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise ConfigError(
            f"{name} must be a floating-point dtype such as jnp.float32, or None, got {words.came(value)}"
        )
    return dtype

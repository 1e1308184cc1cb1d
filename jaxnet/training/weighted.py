"""What each target counts: the weights of a batch ``(x, target, weights)``, and the functions that take them."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import OF_VALUES, ConfigError, DataError, DTypeError, read_values


class Weighted(NamedTuple):
    """A target and what it counts; a batch ``(x, target, weights)`` goes on as ``(x, (target, weights))``.

    Attributes:
      target: an array or a tree of arrays.
      weights: numbers from 0 or a mask, of the target's first axis or axes.
    """

    target: Any
    weights: Any


def paired(batch: Any) -> Any:
    """A batch of three, or data, as a pair, with the third beside the target; anything else as it is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 3:
        return batch[0], Weighted(batch[1], batch[2])
    return batch


def check(target: Any) -> None:
    """Refuses weights that are none; their values where they lie on the host."""
    if not isinstance(target, Weighted):
        return
    weights = target.weights
    hint = "of (x, target, weights) the third are weights; several inputs are one tree, ((a, b), target)"
    if not hasattr(weights, "dtype"):
        raise DTypeError(f"weights must be one array, got {type(weights).__name__}; {hint}")
    if weights.dtype != bool and not jnp.issubdtype(weights.dtype, jnp.floating):
        raise DTypeError(f"weights must be floating point or bools, got {weights.dtype} {weights.shape}; {hint}")
    if isinstance(weights, np.ndarray) and (weights < 0).any():
        where = tuple(int(i) for i in np.argwhere(weights < 0)[0])
        raise DataError(f"weights must not be negative, got {weights[where]} at index {where}")


def applied(what: str, f: Callable[..., Any], *arguments: Any) -> Any:
    """What a loss, a metric or a count gives for ``(prediction, target)``; with the target's weights, if it has some.

    Raises:
      ConfigError: it has, and the function takes none.
    """
    *before, target = arguments
    weights = {}
    if isinstance(target, Weighted):
        target, weights = target.target, {"weights": target.weights}
    if weights and not takes_weights(f):
        name = getattr(f, "__name__", type(f).__name__).strip("<>")
        given = ", ".join(("prediction", "target")[-len(arguments) :])
        raise ConfigError(
            f"the data have weights, and {what}, {name}, takes none; give one that does, as those of jaxnet.losses and "
            f"jaxnet.metrics do: {name}({given}, weights=weights)"
        )
    try:
        return f(*before, target, **weights)
    except OF_VALUES as error:
        read_values(error, what)
        raise


def of_pair(name: str, value: Any) -> Any:
    """``value``, which must be a function of a prediction and a target, and maybe of weights."""
    if checks.accepts(checks.function(name, value), None, None, weights=None):
        return value
    return checks.takes(name, value, "prediction", "target")


def takes_weights(f: Callable[..., Any]) -> bool:
    """Whether a function has an argument of that name."""
    try:
        parameters = inspect.signature(f).parameters
    except (TypeError, ValueError):
        return False
    return "weights" in parameters or any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def counted(count: Callable[..., Any] | None, target: Any) -> jax.Array | None:
    """What the mean over these targets counts: of ``count``, else the sum of their weights; None of as many as it has.

    A scalar of at least float32.
    """
    if count is not None:
        number = jnp.asarray(applied("the count", count, target))
        if number.shape or jnp.iscomplexobj(number):
            raise ConfigError(f"count must return one real number, got {number.dtype} {number.shape}; take jnp.sum")
        return _wide(number)
    if not isinstance(target, Weighted):
        return None
    return jnp.sum(_wide(jnp.asarray(target.weights)))


def _wide(x: jax.Array) -> jax.Array:
    # Counts in the widest floats that there are.
    return x.astype(at_least_float32(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else float)

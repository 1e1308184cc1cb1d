"""A learning rate that falls where a measure no longer improves."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import ConfigError, named
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._hyperparameters import scalar
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.base import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReduceOnPlateauState:
    """The state of `reduce_on_plateau`.

    Attributes:
      scale: what updates are multiplied by, a scalar of at least float32, like ``best`` and ``value``.
      best: the best value so far.
      plateau_count: values in a row that were no better, an int32 scalar.
      cooldown_count: values that are still not looked at, an int32 scalar.
      count: values in ``value``, an int32 scalar.
      value: their mean.
      monitor: what they are, where `observe` gives them; static.
    """

    scale: jax.Array
    best: jax.Array
    plateau_count: jax.Array
    cooldown_count: jax.Array
    count: jax.Array
    value: jax.Array
    monitor: str | None = dataclasses.field(metadata={"static": True})


@door
def reduce_on_plateau(
    factor: ArrayLike = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: float = 0.0,
    *,
    monitor: str | None = None,
    mode: str = "min",
) -> Optimizer:
    r"""Multiplies updates by a scale that falls by a factor after ``patience`` values in a row without a better one.

    .. math::
      \text{better:}\quad v < v_{\text{best}} - r\, |v_{\text{best}}| - a, \qquad
      s \leftarrow \max(f\, s,\; s_{\min}) \ \text{after}\ p\ \text{values without one}

    The values are a measure of an epoch, given by its name in the history, and `fit` and `sweep` hand them over::

        optimizers.chain(optimizers.adam(1e-3), optimizers.reduce_on_plateau(patience=3, monitor="validation_loss"))

    (in a loop of your own, `observe` does); or, without a name, the losses of the steps, each the mean of
    ``accumulation_size``. All that it knows is in the state, so that a run resumes exactly. In the history,
    "learning_rate" has the scale in it.

    Args:
      factor: f, in (0, 1).
      patience: p, at least 1; `torch.optim.lr_scheduler.ReduceLROnPlateau` reduces one value later.
      rtol: r, in [0, 1).
      atol: a, at least 0; not both of them 0.
      cooldown: values not looked at after the scale has fallen.
      accumulation_size: steps whose losses are one value; without ``monitor``.
      min_scale: the least scale.
      monitor: the column of the history to watch; None for the steps' losses.
      mode: "min" if less is better, "max" if more is: then better is more than :math:`v_{best} + r |v_{best}| + a`.

    Returns:
      An `Optimizer` whose state is a `ReduceOnPlateauState`.

    Raises:
      ConfigError: a number outside its interval, an ``accumulation_size`` with a ``monitor``; from ``update``, a call
        without ``value=`` where the steps' losses are watched.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import chain, reduce_on_plateau, sgd
      >>> optimizer = chain(sgd(1.0), reduce_on_plateau(0.5, patience=2))
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for loss in (3.0, 2.0, 2.0, 2.0):
      ...     updates, state = optimizer.update(jnp.ones(1), state, value=loss)
      ...     print(updates)
      [-1.]
      [-1.]
      [-1.]
      [-0.5]

    Source: `optax.contrib.reduce_on_plateau`, with its names; `torch.optim.lr_scheduler.ReduceLROnPlateau`. Both take
    :math:`(1 - r) v_{best} - a`, which is above a best value below 0.
    """
    factor = scalar("factor", factor, high=1.0, open_low=True, open_high=True, schedule=False)
    patience = checks.integer("patience", patience, minimum=1)
    rtol, atol = checks.number("rtol", rtol, low=0, high=1, open_high=True), checks.number("atol", atol, low=0)
    cooldown = checks.integer("cooldown", cooldown, minimum=0)
    size = checks.integer("accumulation_size", accumulation_size, minimum=1)
    min_scale = checks.number("min_scale", min_scale, low=0, high=1)
    checks.choice("mode", mode, ("min", "max"))
    if not rtol and not atol:
        raise ConfigError("rtol and atol are both 0, and a rounding would be an improvement; make one of them positive")
    if monitor is not None and (not isinstance(monitor, str) or size != 1):
        raise ConfigError(
            f"monitor must be the name of a column of the history, such as 'validation_loss', which comes once an "
            f"epoch, got {words.came(monitor)} with accumulation_size={size}"
        )
    sign = 1 if mode == "min" else -1

    def init(params):
        trees.parameters(params)
        dtype = at_least_float32(*[jnp.asarray(p).dtype for p in jax.tree.leaves(params)])
        zero = lambda: jnp.zeros([], jnp.int32)  # noqa: E731 (arrays of their own, which can be donated)
        best = jnp.asarray(sign * jnp.inf, dtype)
        return ReduceOnPlateauState(
            jnp.ones([], dtype), best, zero(), zero(), zero(), jnp.zeros([], dtype), monitor=monitor
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        trees.state_is(state, ReduceOnPlateauState)
        trees.gradients(updates, params)
        if monitor is None:
            if value is None:
                raise ConfigError("the loss of the step is watched: call update(gradients, state, params, value=loss)")
            before, count = state.count.astype(state.value.dtype), state.count + 1
            total = state.value * before + jnp.asarray(value).astype(state.value.dtype)
            state = dataclasses.replace(state, count=count, value=total / count.astype(state.value.dtype))
        judged = _judged(state)
        state = jax.tree.map(lambda new, old: jnp.where(state.count == size, new, old), judged, state)
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state

    def _judged(state):
        part = jnp.where(state.best < 0, 1 + sign * rtol, 1 - sign * rtol)
        bound = state.best * part - sign * atol
        better = state.value < bound if mode == "min" else state.value > bound
        cooling = state.cooldown_count > 0
        waited = jnp.where(better | cooling, 0, state.plateau_count + 1)
        falls = waited == patience
        scale = jnp.where(falls, jnp.maximum(state.scale * factor, min_scale).astype(state.scale.dtype), state.scale)
        return dataclasses.replace(
            state,
            scale=scale,
            best=jnp.where(better, state.value, state.best),
            plateau_count=jnp.where(falls, 0, waited),
            cooldown_count=jnp.where(falls, cooldown, jnp.maximum(state.cooldown_count - 1, 0)),
            count=jnp.zeros_like(state.count),
            value=jnp.zeros_like(state.value),
        )

    return rates.saying(Optimizer(init, update), lambda before, after: rates.Rate({}, after.scale))


@named("observe")
def observe(state: Any, values: Mapping[str, Any]) -> Any:
    """Tells what was measured to every `reduce_on_plateau` with a ``monitor`` inside, once an epoch; `fit` does so.

    Args:
      state: an optimizer's state, or any tree with it.
      values: numbers or scalar arrays by name, such as ``{"validation_loss": 0.3}``.

    Returns:
      The state, in which the next update will find them.

    Raises:
      ConfigError: one that is watched is not among them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import observe, reduce_on_plateau
      >>> optimizer = reduce_on_plateau(0.5, patience=1, monitor="error")
      >>> state = optimizer.init(jnp.ones(1))
      >>> for error in (0.2, 0.3):
      ...     updates, state = optimizer.update(jnp.ones(1), observe(state, {"error": error}))
      ...     print(updates)
      [1.]
      [0.5]

    Source: see `reduce_on_plateau`.
    """

    def told(node):
        if not _watches(node):
            return node
        if node.monitor not in values:
            raise ConfigError(
                f"reduce_on_plateau watches {node.monitor!r}, and there is only {', '.join(values) or 'nothing'}"
            )
        value = jnp.full_like(node.value, values[node.monitor])
        return dataclasses.replace(node, value=value, count=jnp.full_like(node.count, 1))

    return jax.tree.map(told, state, is_leaf=_watches)


def monitors(state: Any) -> list[str]:
    """The measures that are watched inside a tree."""
    nodes = filter(_watches, jax.tree.leaves(state, is_leaf=_watches))
    return list(dict.fromkeys(node.monitor for node in nodes))


def _watches(node: Any) -> bool:
    return isinstance(node, ReduceOnPlateauState) and node.monitor is not None

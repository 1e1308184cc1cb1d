"""The exponential moving average of the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import copies, next_count
from jaxnet.optimizers._hyperparameters import at, decays
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.averaged import over_held
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import each, over_leaves, where


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
      inner_state: the state of the optimizer inside.
      count: steps taken, an int32 scalar.
      weight: the sum of the weights with which parameters are in the average, a float32 scalar that goes to 1.
      average: the average, in at least float32; a tree like the parameters.
    """

    inner_state: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: jax.Array
    average: Any

    def averaged(self, params: Any) -> Any:
        """The average."""
        return over_held(lambda average, p: average, self.average, params)


@door
def ema(optimizer: Any, decay: ScalarOrSchedule = 0.999, *, debias: bool = True) -> Optimizer:
    r"""Keeps the exponential moving average of the weights beside those that are trained.

    .. math::
      \bar\theta_i = \frac{\sum_{j=1}^i \beta^{i-j}\, \theta_j}{\sum_{j=1}^i \beta^{i-j}}

    It trains nothing otherwise than ``optimizer`` does. `averaged` gives the average, and `training.fit` evaluates,
    keeps and returns it.

    Without ``debias`` the average begins as the parameters that ``init`` saw, and
    :math:`\bar\theta_i = \beta \bar\theta_{i-1} + (1 - \beta) \theta_i`: they count for :math:`\beta^i` of it, which
    is a part of 0.37 after :math:`1 / (1 - \beta)` steps. A warm-up is a schedule for ``decay``, such as
    ``lambda step: jnp.minimum(0.999, (1 + step) / (10 + step))``.

    Args:
      optimizer: the inner optimizer, ours or optax's. Updates must be applied as this returns them, so it is the
        outermost but for `skip_nonfinite`, `master_copy` and another average.
      decay: :math:`\beta` in [0, 1), a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      debias: whether the parameters after the first step are the first in the average.

    Returns:
      An `Optimizer` whose state is an `EmaState`, which costs one more copy of the parameters, float32 where they have
      16 bits.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = optimizers.ema(optimizers.sgd(1.0), decay=0.5)
      >>> params = jnp.zeros(1)
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.full(1, -3.0), state, params)
      ...     params = optimizers.apply_updates(params, updates)
      >>> params, optimizers.averaged(state, params)  # (0.5 * 3 + 6) / 1.5
      (Array([6.], dtype=float32), Array([5.], dtype=float32))

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging; the correction is Adam's,
    arXiv 1412.6980.
    """
    optimizer = member(optimizer)
    decay = decays(decay=decay)["decay"]
    checks.flag("debias", debias)

    def init(params):
        trees.parameters(params)
        weight = jnp.float32(0.0 if debias else 1.0)
        return EmaState(optimizer.init(params), jnp.zeros([], jnp.int32), weight, copies(params))

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, EmaState)
        trees.need_params(params, "the average of the weights")
        trees.same_tree("the average in the state", state.average, "the parameters", params)
        updates, inner = updated(optimizer, updates, state.inner_state, params, extra_args)
        beta = at("decay", decay, state.count)
        new = jnp.asarray(1 - beta, jnp.float32)
        weight = jnp.asarray(beta, jnp.float32) * state.weight + new
        part = jnp.where(weight > 0, new / jnp.where(weight > 0, weight, jnp.float32(1)), jnp.float32(0))
        average = moved(state.average, params, updates, part)
        return updates, EmaState(inner, next_count(state.count), weight, average)

    return rates.as_inside(Optimizer(init, update), optimizer, "inner_state")


def moved(average: Any, params: Any, updates: Any, part: jax.Array) -> Any:
    """The average moved by a part of the way to the updated parameters; for a part of 1 it is these to the bit."""

    def move(u, p, average):
        p = each(lambda x, y: x.astype(y.dtype), p + u, average)
        return [where(part == 1, p, average + part * (p - average))]

    (after,) = over_leaves(move, updates, params, average)
    return after

"""Stochastic gradient descent, plain, with momentum, or with Nesterov's momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.optimizers import _checks
from jaxnet.optimizers._arithmetic import each, map_columns, next_count, plus, scaled, zeros_like
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule


class SgdState(NamedTuple):
    """The state of `sgd`.

    Attributes:
      count: steps taken, an int32 scalar.
      trace: the momentum, shaped like the parameters, or None without momentum.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: Any


@made
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Optimizer:
    r"""Stochastic gradient descent (algorithms 1 and 2; the batch size is the only difference).

    .. math::
      t_i = g_i + \mu\, t_{i-1}, \qquad
      \theta_i = \theta_{i-1} - \eta\, t_i
      \quad\text{or, with Nesterov's momentum,}\quad
      \theta_i = \theta_{i-1} - \eta\, (g_i + \mu\, t_i)

    and without momentum :math:`\theta_i = \theta_{i-1} - \eta\, g_i`. For weight decay, which adds
    :math:`\lambda \theta` to the gradient, put `add_decayed_weights` in front:
    ``chain(add_decayed_weights(1e-4), sgd(0.1, momentum=0.9))``.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      momentum: :math:`\mu` in [0, 1), or None for no momentum and no memory spent on it.
      nesterov: whether to look ahead by one momentum step; needs ``momentum``.
      accumulator_dtype: the dtype the momentum is kept in; None for the parameters' own, at least float32.

    Returns:
      An `Optimizer` whose state is an `SgdState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = sgd(0.1, momentum=0.9)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([1.0, -2.0]), state)
      >>> updates
      Array([-0.1,  0.2], dtype=float32)

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
    """
    learning_rate = _checks.scalar("sgd", "learning_rate", learning_rate)
    if momentum is not None:
        momentum = _checks.scalar("sgd", "momentum", momentum, high=1.0, open_high=True)
    _checks.flag("sgd", "nesterov", nesterov)
    if nesterov and momentum is None:
        raise ConfigError("sgd: nesterov=True without momentum does nothing; pass momentum, for example 0.9")
    accumulator_dtype = _checks.float_dtype("sgd", "accumulator_dtype", accumulator_dtype)

    def init(params):
        _checks.parameters("sgd", params, accumulator_dtype)
        trace = None if momentum is None else zeros_like(params, accumulator_dtype)
        return SgdState(jnp.zeros([], jnp.int32), trace)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is("sgd", state, SgdState)
        _checks.kept("sgd", "momentum", state.trace, momentum is not None)
        _checks.gradients("sgd", updates, params, state.trace)
        rate = _checks.at("sgd", "learning_rate", learning_rate, state.count)
        decay = None if momentum is None else _checks.at("sgd", "momentum", momentum, state.count)

        def rule(g, t):
            if decay is None:
                return each(lambda x: scaled(-rate, x), g), None
            t = each(lambda x, y: plus(x, scaled(decay, y)), g, t)
            step = each(lambda x, y: plus(x, scaled(decay, y)), g, t) if nesterov else t
            if accumulator_dtype is not None:
                t = each(lambda x: x.astype(accumulator_dtype), t)
            return each(lambda x: scaled(-rate, x), step), t

        updates, trace = map_columns(rule, updates, state.trace)
        return updates, SgdState(next_count(state.count), trace)

    return Optimizer(init, update)

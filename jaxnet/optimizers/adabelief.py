"""AdaBelief."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._made import made
from jaxnet.optimizers import _checks
from jaxnet.optimizers._arithmetic import (
    abs_squared,
    each,
    map_columns,
    moving_average,
    next_count,
    promoted,
    scalar_like,
    scaled,
    unbiased,
    zeros_like,
)
from jaxnet.optimizers.adam import first_moment_unbiased
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule


class AdaBeliefState(NamedTuple):
    """The state of `adabelief`.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the mean gradient, shaped like the parameters.
      nu: the mean squared distance of the gradient from it, with the epsilons of all steps.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any


@made
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
) -> Optimizer:
    r"""AdaBelief: long steps where the gradient is what its mean predicted, short ones where it is not.

    .. math::
      m_i = \beta_1 m_{i-1} + (1 - \beta_1) g_i, \quad
      s_i = \beta_2 s_{i-1} + (1 - \beta_2) |g_i - m_i|^2 + \bar\varepsilon, \quad
      \theta_i = \theta_{i-1} - \eta\, \frac{\hat m_i}{\sqrt{\hat s_i} + \varepsilon}

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: :math:`\varepsilon \ge 0`, outside the root.
      eps_root: :math:`\bar\varepsilon \ge 0`, which every step adds; one of the two must be positive.
      nesterov: whether the first moment looks ahead by one step.

    Returns:
      An `Optimizer` whose state is an `AdaBeliefState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adabelief(1e-3)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> updates, state = optimizer.update(jnp.ones(1), state)
      >>> updates.round(5)
      Array([-0.00111], dtype=float32)

    Source: Zhuang et al., AdaBelief optimizer, arXiv 2010.07468, algorithm 2.
    """
    who = "adabelief"
    learning_rate = _checks.scalar(who, "learning_rate", learning_rate)
    b1 = _checks.scalar(who, "b1", b1, high=1.0, open_high=True)
    b2 = _checks.scalar(who, "b2", b2, high=1.0, open_high=True)
    eps, eps_root = _checks.scalar(who, "eps", eps), _checks.scalar(who, "eps_root", eps_root)
    _checks.not_both_zero(who, eps, eps_root)
    _checks.flag(who, "nesterov", nesterov)

    def init(params):
        _checks.parameters(who, params)
        return AdaBeliefState(jnp.zeros([], jnp.int32), zeros_like(params), zeros_like(params))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is(who, state, AdaBeliefState)
        _checks.gradients(who, updates, params, state.mu)
        rate, beta1, beta2, epsilon, epsilon_root = (
            _checks.at(who, name, value, state.count)
            for name, value in (
                ("learning_rate", learning_rate),
                ("b1", b1),
                ("b2", b2),
                ("eps", eps),
                ("eps_root", eps_root),
            )
        )
        this = next_count(state.count)

        def direction(m_hat, v_hat):
            root = jnp.sqrt(v_hat)
            m_hat, denominator = promoted(m_hat, root + scalar_like(epsilon, root))
            return m_hat / denominator

        def rule(g, m, v):
            m = each(lambda x, y: moving_average(beta1, y, x), g, m)
            error = each(lambda x, y: x - y, g, m)
            v = each(lambda x, y: moving_average(beta2, y, abs_squared(x)), error, v)
            v = each(lambda x: x + scalar_like(epsilon_root, x), v)
            m_hat = first_moment_unbiased(m, g, beta1, this, nesterov)
            u = each(direction, m_hat, unbiased(v, beta2, this))
            return each(lambda x: scaled(-rate, x), u), m, v

        updates, mu, nu = map_columns(rule, updates, state.mu, state.nu)
        return updates, AdaBeliefState(this, mu, nu)

    return Optimizer(init, update)

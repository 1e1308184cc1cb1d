"""AdaBelief."""

from typing import Any, NamedTuple

import jax

from jaxnet.optimizers._rule import door, rule
from jaxnet.optimizers.adam import kept, moments, unbiased_mean
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import abs_squared, sqrt, unbiased


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


@door
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

    def step(g, s, learning_rate, b1, b2, eps, eps_root):
        m = (1 - b1) * g + b1 * s.mu
        v = (1 - b2) * abs_squared(g - m) + b2 * s.nu + eps_root
        u = unbiased_mean(m, g, b1, s.count, nesterov) / (sqrt(unbiased(v, b2, s.count)) + eps)
        return -learning_rate * u, s._replace(mu=m, nu=v)

    return rule(AdaBeliefState, step, moments(learning_rate, b1, b2, eps, eps_root, nesterov), kept())

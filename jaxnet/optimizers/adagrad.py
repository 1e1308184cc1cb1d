"""AdaGrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._made import made
from jaxnet.optimizers import _checks
from jaxnet.optimizers._arithmetic import (
    abs_squared,
    each,
    full_like,
    map_columns,
    next_count,
    plus,
    scalar_like,
    scaled,
)
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule


class AdagradState(NamedTuple):
    """The state of `adagrad`.

    Attributes:
      count: steps taken, an int32 scalar.
      sum_of_squares: the squared gradients so far, summed, shaped like the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum_of_squares: Any


@made
def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: ScalarOrSchedule = 0.1,
    eps: ScalarOrSchedule = 1e-7,
) -> Optimizer:
    r"""AdaGrad: each parameter's step shrinks with the gradients it has seen.

    .. math::
      s_i = s_{i-1} + |g_i|^2, \qquad
      \theta_i = \theta_{i-1} - \eta\, \frac{g_i}{\sqrt{s_i + \varepsilon}}
      \quad (\text{no step where } s_i = 0)

    PyTorch adds its epsilon outside the root and starts from :math:`s_0 = 0`.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      initial_accumulator_value: :math:`s_0 \ge 0`, a number.
      eps: :math:`\varepsilon \ge 0`, added inside the root.

    Returns:
      An `Optimizer` whose state is an `AdagradState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adagrad(1.0, initial_accumulator_value=0.0)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([4.0, 0.0]), state)
      >>> updates
      Array([-1., -0.], dtype=float32)

    Source: Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 12, 2011.
    """
    learning_rate = _checks.scalar("adagrad", "learning_rate", learning_rate)
    start = _checks.scalar("adagrad", "initial_accumulator_value", initial_accumulator_value, schedule=False)
    eps = _checks.scalar("adagrad", "eps", eps)

    def init(params):
        _checks.parameters("adagrad", params)
        return AdagradState(jnp.zeros([], jnp.int32), full_like(params, start))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is("adagrad", state, AdagradState)
        _checks.gradients("adagrad", updates, params, state.sum_of_squares)
        rate = _checks.at("adagrad", "learning_rate", learning_rate, state.count)
        epsilon = _checks.at("adagrad", "eps", eps, state.count)

        def inverse_root(s):
            return jnp.where(s > 0, jax.lax.rsqrt(s + scalar_like(epsilon, s)), jnp.zeros((), s.dtype))

        def rule(g, s):
            s = each(lambda x, y: plus(abs_squared(x), y), g, s)
            direction = each(lambda x, y: x * y, each(inverse_root, s), g)
            return each(lambda x: scaled(-rate, x), direction), s

        updates, sums = map_columns(rule, updates, state.sum_of_squares)
        return updates, AdagradState(next_count(state.count), sums)

    return Optimizer(init, update)

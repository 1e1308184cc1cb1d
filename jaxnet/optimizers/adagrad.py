"""AdaGrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.optimizers._hyperparameters import scalar, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import abs_squared, each, rsqrt


class AdagradState(NamedTuple):
    """The state of `adagrad`.

    Attributes:
      count: steps taken, an int32 scalar.
      sum_of_squares: the squared gradients so far, summed, shaped like the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sum_of_squares: Any


@door
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
    start = scalar("initial_accumulator_value", initial_accumulator_value, schedule=False)

    def step(g, s, learning_rate, eps):
        total = abs_squared(g) + s.sum_of_squares
        scale = each(lambda t, r: jnp.where(t > 0, r, jnp.zeros((), t.dtype)), total, rsqrt(total + eps))
        return -learning_rate * (scale * g), s._replace(sum_of_squares=total)

    return rule(AdagradState, step, scalars(learning_rate=learning_rate, eps=eps), {"sum_of_squares": Kept(start)})

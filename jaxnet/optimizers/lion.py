"""Lion: the sign of a momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.optimizers._hyperparameters import decays, float_dtype, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.decay import checked_decay, decayed
from jaxnet.optimizers.vectors import each


class LionState(NamedTuple):
    """The state of `lion`.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the momentum, shaped like the parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any


@door
def lion(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
) -> Optimizer:
    r"""Lion: every parameter moves by the same amount, in the direction of a momentum.

    .. math::
      u_i = \operatorname{sign}((1 - \beta_1) g_i + \beta_1 m_{i-1}), \quad
      m_i = (1 - \beta_2) g_i + \beta_2 m_{i-1}, \quad
      \theta_i = \theta_{i-1} - \eta (u_i + \lambda \theta_{i-1})

    Rates are 3 to 10 times smaller than Adam's, and the decay as much larger; half of Adam's memory.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1: :math:`\beta_1` in [0, 1), how much of the momentum is in the direction.
      b2: :math:`\beta_2` in [0, 1), the decay of the momentum.
      mu_dtype: the dtype that the momentum is kept in; None for the parameters' own, at least float32.
      weight_decay: :math:`\lambda \ge 0`, a float, a scalar array, or a schedule.
      mask: which parameters decay, as in `adamw`.

    Returns:
      An `Optimizer` whose state is a `LionState`.

    Raises:
      ConfigError: a concrete argument makes no sense, a mask chooses no leaf, or ``update`` is called without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = lion(0.1, weight_decay=0.0)
      >>> params = jnp.zeros(3)
      >>> optimizer.update(jnp.array([5.0, -0.01, 0.0]), optimizer.init(params), params)[0]
      Array([-0.1,  0.1, -0. ], dtype=float32)

    Source: Chen et al., Symbolic discovery of optimization algorithms, arXiv 2302.06675.
    """

    def step(g, s, params, learning_rate, weight_decay, b1, b2):
        u = each(jnp.sign, (1 - b1) * g + b1 * s.mu)
        m = (1 - b2) * g + b2 * s.mu
        return -learning_rate * decayed(u, params, weight_decay, mask), s._replace(mu=m)

    numbers = scalars(learning_rate=learning_rate) | decays(b1=b1, b2=b2) | checked_decay(weight_decay, mask)
    kept = {"mu": Kept(dtype=float_dtype("mu_dtype", mu_dtype))}
    return rule(LionState, step, numbers, kept, needs_params="weight decay")

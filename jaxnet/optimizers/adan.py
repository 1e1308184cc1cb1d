"""Adan: Adam whose momentum looks ahead by the change of the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.optimizers._hyperparameters import decays, not_both_zero, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.decay import checked_decay, decayed
from jaxnet.optimizers.vectors import abs_squared, each, sqrt, unbiased


class AdanState(NamedTuple):
    """The state of `adan`; its trees are shaped like the parameters, and not corrected for their start at 0.

    Attributes:
      count: steps taken, an int32 scalar.
      m: the mean gradient.
      v: the mean change of the gradient.
      n: the mean squared gradient, one step ahead.
      g: the last gradient.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    m: Any
    v: Any
    n: Any
    g: Any


@door
def adan(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> Optimizer:
    r"""Adan: Nesterov's momentum of gradient and second moment, by the change of the gradient.

    .. math::
      d_i = g_i - g_{i-1}, \quad
      m_i = \beta_1 m_{i-1} + (1 - \beta_1) g_i, \quad
      v_i = \beta_2 v_{i-1} + (1 - \beta_2) d_i, \quad
      n_i = \beta_3 n_{i-1} + (1 - \beta_3) |g_i + \beta_2 d_i|^2

    .. math::
      \theta_i = \theta_{i-1} - \eta \left( \frac{\hat m_i + \beta_2 \hat v_i}
        {\sqrt{\hat n_i + \bar\varepsilon} + \varepsilon} + \lambda \theta_{i-1} \right)

    with :math:`d_1 = 0` and averages that are corrected for their start at 0, as Adam's. Rates are 5 to 10 times
    Adam's; twice its memory.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1: :math:`\beta_1` in [0, 1), the decay of the mean gradient.
      b2: :math:`\beta_2` in [0, 1), the decay of its mean change. (The paper's betas are 1 minus these; `optax.adan`
        takes :math:`1 - \beta_2` for the factor of the change, where the paper and its authors' program have this.)
      b3: :math:`\beta_3` in [0, 1), the decay of the second moment.
      eps: :math:`\varepsilon \ge 0`, added outside the root.
      eps_root: :math:`\bar\varepsilon \ge 0`, added inside the root; one of the two must be positive.
      weight_decay: :math:`\lambda \ge 0`, decoupled as in `adamw`. (The paper divides by :math:`1 + \eta \lambda`.)
      mask: which parameters decay, as in `adamw`.

    Returns:
      An `Optimizer` whose state is an `AdanState`.

    Raises:
      ConfigError: a concrete argument makes no sense, a mask chooses no leaf, or ``update`` is called without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adan(1.0)
      >>> params = jnp.zeros(3)
      >>> optimizer.update(jnp.array([4.0, -0.5, 0.0]), optimizer.init(params), params)[0].round(2)
      Array([-1.,  1., -0.], dtype=float32)

    Source: Xie et al., Adan: adaptive Nesterov momentum algorithm, arXiv 2208.06677.
    """
    numbers = scalars(learning_rate=learning_rate, eps=eps, eps_root=eps_root) | decays(b1=b1, b2=b2, b3=b3)
    numbers |= checked_decay(weight_decay, mask)
    not_both_zero(numbers["eps"], numbers["eps_root"])

    def step(g, s, params, learning_rate, b1, b2, b3, eps, eps_root, weight_decay):
        d = each(lambda x: jnp.where(s.count == 1, jnp.zeros_like(x), x), g - s.g)
        m = (1 - b1) * g + b1 * s.m
        v = (1 - b2) * d + b2 * s.v
        n = (1 - b3) * abs_squared(g + b2 * d) + b3 * s.n
        ahead = unbiased(m, b1, s.count) + b2 * unbiased(v, b2, s.count)
        u = ahead / (sqrt(unbiased(n, b3, s.count) + eps_root) + eps)
        return -learning_rate * decayed(u, params, weight_decay, mask), s._replace(m=m, v=v, n=n, g=g)

    return rule(AdanState, step, numbers, {name: Kept() for name in "mvng"}, needs_params="weight decay")

"""Adam, and the direction that AdamW and AngularGrad share with it."""

from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet.optimizers._arithmetic import next_count
from jaxnet.optimizers._hyperparameters import decays, float_dtype, not_both_zero, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import Vector, abs_squared, sqrt, unbiased


class AdamState(NamedTuple):
    """The state of `adam` and of `adamw`.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the first moment, not corrected for its start at 0, shaped like the parameters.
      nu: the second moment, likewise.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any


@door
def adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Optimizer:
    r"""Adam: momentum, with a step of its own for every parameter (the intended form of algorithm 3).

    .. math::
      m_i = \beta_1 m_{i-1} + (1 - \beta_1) g_i, \quad
      v_i = \beta_2 v_{i-1} + (1 - \beta_2) |g_i|^2, \quad
      \theta_i = \theta_{i-1} - \eta\,
        \frac{m_i / (1 - \beta_1^i)}{\sqrt{v_i / (1 - \beta_2^i) + \bar\varepsilon} + \varepsilon}

    The chapter's algorithm 3 puts its :math:`\varepsilon` inside the root: that is
    ``adam(rate, eps=0, eps_root=1e-8)``. As printed it also feeds the corrected moments back into the
    averages, which overflows float32 at step 20; docs/optimizers.md shows it.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1: :math:`\beta_1` in [0, 1), the decay of the first moment.
      b2: :math:`\beta_2` in [0, 1), the decay of the second moment.
      eps: :math:`\varepsilon \ge 0`, added outside the root.
      eps_root: :math:`\bar\varepsilon \ge 0`, added inside the root; one of the two must be positive.
      mu_dtype: the dtype that the first moment is kept in; None for the parameters' own, at least float32.
      nesterov: whether the first moment looks ahead by one step (NAdam).

    Returns:
      An `Optimizer` whose state is an `AdamState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adam(1e-3)
      >>> state = optimizer.init({"w": jnp.zeros(3)})
      >>> updates, state = optimizer.update({"w": jnp.array([5.0, -0.01, 0.0])}, state)
      >>> updates["w"].round(6)
      Array([-0.001,  0.001, -0.   ], dtype=float32)

    Source: Kingma & Ba, Adam: a method for stochastic optimization, arXiv 1412.6980, algorithm 1; with
    ``nesterov``, Dozat, Incorporating Nesterov momentum into Adam, ICLR workshop 2016.
    """

    def step(g, s, learning_rate, **numbers):
        u, s = direction(g, s, nesterov=nesterov, **numbers)
        return -learning_rate * u, s

    return rule(AdamState, step, moments(learning_rate, b1, b2, eps, eps_root, nesterov), kept(mu_dtype))


def moments(
    learning_rate: Any, b1: Any, b2: Any, eps: Any, eps_root: Any = 0.0, nesterov: Any = False
) -> dict[str, Any]:
    """The hyperparameters of Adam, checked."""
    numbers = scalars(learning_rate=learning_rate, eps=eps, eps_root=eps_root) | decays(b1=b1, b2=b2)
    not_both_zero(numbers["eps"], numbers["eps_root"])
    checks.flag("nesterov", nesterov)
    return numbers


def kept(mu_dtype: Any = None) -> dict[str, Kept]:
    """The trees of Adam's state."""
    return {"mu": Kept(dtype=float_dtype("mu_dtype", mu_dtype)), "nu": Kept()}


def direction(
    g: Vector, s: Any, b1: Any, b2: Any, eps: Any, eps_root: Any, nesterov: bool = False
) -> tuple[Vector, Any]:
    """Adam's step for a rate of -1, and the state with the new moments."""
    m = (1 - b1) * g + b1 * s.mu
    v = (1 - b2) * abs_squared(g) + b2 * s.nu
    m_hat = unbiased_mean(m, g, b1, s.count, nesterov)
    return m_hat / (sqrt(unbiased(v, b2, s.count) + eps_root) + eps), s._replace(mu=m, nu=v)


def unbiased_mean(m: Vector, g: Vector, b1: Any, count: jax.Array, nesterov: bool) -> Vector:
    """The corrected first moment, one step further along the gradient with ``nesterov``."""
    if not nesterov:
        return unbiased(m, b1, count)
    return b1 * unbiased(m, b1, next_count(count)) + (1 - b1) * unbiased(g, b1, count)

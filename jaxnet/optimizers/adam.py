"""Adam, and the moments and direction that AdamW shares with it."""

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
    plus,
    promoted,
    scalar_like,
    scaled,
    unbiased,
    zeros_like,
)
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule


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


@made
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
    learning_rate = _checks.scalar("adam", "learning_rate", learning_rate)
    moments = Moments("adam", b1, b2, eps, eps_root, mu_dtype, nesterov)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is("adam", state, AdamState)
        _checks.gradients("adam", updates, params, state.mu)
        rate = _checks.at("adam", "learning_rate", learning_rate, state.count)
        step = moments.at(state.count)

        def rule(g, m, v):
            direction, m, v = step(g, m, v)
            return each(lambda x: scaled(-rate, x), direction), m, v

        updates, mu, nu = map_columns(rule, updates, state.mu, state.nu)
        return updates, AdamState(next_count(state.count), mu, nu)

    return Optimizer(moments.init, update)


class Moments:
    """Adam's two moments: their hyperparameters, their first state, and one leaf's step."""

    def __init__(self, who, b1, b2, eps, eps_root, mu_dtype, nesterov):
        self.who = who
        self.b1 = _checks.scalar(who, "b1", b1, high=1.0, open_high=True)
        self.b2 = _checks.scalar(who, "b2", b2, high=1.0, open_high=True)
        self.eps = _checks.scalar(who, "eps", eps)
        self.eps_root = _checks.scalar(who, "eps_root", eps_root)
        _checks.not_both_zero(who, self.eps, self.eps_root)
        self.mu_dtype = _checks.float_dtype(who, "mu_dtype", mu_dtype)
        self.nesterov = _checks.flag(who, "nesterov", nesterov)

    def init(self, params):
        _checks.parameters(self.who, params, self.mu_dtype)
        return AdamState(jnp.zeros([], jnp.int32), zeros_like(params, self.mu_dtype), zeros_like(params))

    def at(self, count):
        """The rule ``(g, m, v) -> (direction, m, v)`` over lists of leaves, for the step after ``count`` steps."""
        b1, b2, eps, eps_root = (
            _checks.at(self.who, name, getattr(self, name), count) for name in ("b1", "b2", "eps", "eps_root")
        )

        def direction(m_hat, v_hat):
            root = jnp.sqrt(v_hat + scalar_like(eps_root, v_hat))
            m_hat, denominator = promoted(m_hat, root + scalar_like(eps, root))
            return m_hat / denominator

        def step(g, m, v):
            new_m = each(lambda x, y: moving_average(b1, y, x), g, m)
            new_v = each(lambda x, y: moving_average(b2, y, abs_squared(x)), g, v)
            this = next_count(count)
            m_hat = first_moment_unbiased(new_m, g, b1, this, self.nesterov)
            u = each(direction, m_hat, unbiased(new_v, b2, this))
            if self.mu_dtype is not None:
                new_m = each(lambda x: x.astype(self.mu_dtype), new_m)
            return u, new_m, each(lambda x, y: x.astype(jnp.asarray(y).dtype), new_v, v)

        return step


def first_moment_unbiased(m, g, b1, count, nesterov):
    """The corrected first moments, one step further along the gradient with ``nesterov``."""
    if not nesterov:
        return unbiased(m, b1, count)
    ahead = unbiased(m, b1, next_count(count))
    return each(lambda x, y: plus(scaled(b1, x), scaled(1 - b1, y)), ahead, unbiased(g, b1, count))

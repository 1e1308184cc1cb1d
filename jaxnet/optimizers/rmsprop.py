"""RMSProp."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.optimizers import _checks
from jaxnet.optimizers._arithmetic import (
    abs_squared,
    each,
    full_like,
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


class RmspropState(NamedTuple):
    """The state of `rmsprop`; what a configuration does not keep is None.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the mean gradient (``centered``), shaped like the parameters.
      nu: the mean squared gradient.
      trace: the momentum.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any
    trace: Any


@made
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Optimizer:
    r"""RMSProp: the gradient divided by a running root mean square of itself.

    .. math::
      v_i = \rho\, v_{i-1} + (1 - \rho) |g_i|^2, \qquad
      u_i = -\eta\, \frac{g_i}{\sqrt{v_i - |\bar g_i|^2 + \varepsilon}}, \qquad
      \theta_i = \theta_{i-1} + u_i + \mu\, t_{i-1}, \quad t_i = u_i + \mu\, t_{i-1}

    where the mean :math:`\bar g_i` is subtracted only if ``centered``, and the momentum collects steps,
    learning rate included.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      decay: :math:`\rho` in [0, 1).
      eps: :math:`\varepsilon > 0`.
      initial_scale: :math:`v_0 \ge 0`, a number.
      eps_in_sqrt: whether epsilon stands inside the root, as above, or is added to it (PyTorch).
      centered: whether to divide by the deviation instead of the root mean square.
      momentum: :math:`\mu` in [0, 1), or None.
      nesterov: whether to look ahead by one momentum step; needs ``momentum``.
      bias_correction: whether to correct the means for their start at 0, as Adam does.

    Returns:
      An `Optimizer` whose state is an `RmspropState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = rmsprop(0.1, decay=0.75)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([4.0, -1.0]), state)
      >>> updates
      Array([-0.2,  0.2], dtype=float32)

    Source: Hinton, Neural networks for machine learning, lecture 6e, 2012; centered form: Graves, arXiv 1308.0850.
    """
    who = "rmsprop"
    learning_rate = _checks.scalar(who, "learning_rate", learning_rate)
    decay = _checks.scalar(who, "decay", decay, high=1.0, open_high=True)
    eps = _checks.scalar(who, "eps", eps, open_low=True)
    start = _checks.scalar(who, "initial_scale", initial_scale, schedule=False)
    if momentum is not None:
        momentum = _checks.scalar(who, "momentum", momentum, high=1.0, open_high=True)
    for name, value in (
        ("eps_in_sqrt", eps_in_sqrt),
        ("centered", centered),
        ("nesterov", nesterov),
        ("bias_correction", bias_correction),
    ):
        _checks.flag(who, name, value)
    if nesterov and momentum is None:
        raise ConfigError("rmsprop: nesterov=True without momentum does nothing; pass momentum, for example 0.9")

    def init(params):
        _checks.parameters(who, params)
        return RmspropState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like(params) if centered else None,
            nu=full_like(params, start),
            trace=None if momentum is None else zeros_like(params),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is(who, state, RmspropState)
        _checks.kept(who, "mean (centered)", state.mu, centered)
        _checks.kept(who, "momentum", state.trace, momentum is not None)
        _checks.gradients(who, updates, params, state.nu)
        rate, rho, epsilon, beta = (
            _checks.at(who, name, value, state.count)
            for name, value in (
                ("learning_rate", learning_rate),
                ("decay", decay),
                ("eps", eps),
                ("momentum", momentum),
            )
        )
        this = next_count(state.count)

        def variance(second, mean):
            second, squared_mean = promoted(second, abs_squared(mean))
            return second - squared_mean

        def scale(x):
            # A variance below 0 is a rounding error, whose root would be NaN for good.
            if eps_in_sqrt:
                total = x + scalar_like(epsilon, x)
                return jax.lax.rsqrt(_where_positive(total, scalar_like(epsilon, x)) if centered else total)
            root = jnp.sqrt(_where_positive(x, 0.0) if centered else x)
            return 1 / (root + scalar_like(epsilon, root))

        def rule(g, m, v, t):
            m = each(lambda x, y: moving_average(rho, y, x), g, m) if centered else None
            v = each(lambda x, y: moving_average(rho, y, abs_squared(x)), g, v)
            m_hat = unbiased(m, rho, this) if bias_correction and m is not None else m
            v_hat = unbiased(v, rho, this) if bias_correction else v
            if m_hat is not None:
                v_hat = each(variance, v_hat, m_hat)
            step = each(lambda x, y: scaled(-rate, x * y), each(scale, v_hat), g)
            if beta is None:
                return step, m, v, None
            t = each(lambda x, y: plus(x, scaled(beta, y)), step, t)
            return each(lambda x, y: plus(x, scaled(beta, y)), step, t) if nesterov else t, m, v, t

        updates, mu, nu, trace = map_columns(rule, updates, state.mu, state.nu, state.trace)
        return updates, RmspropState(this, mu, nu, trace)

    return Optimizer(init, update)


def _where_positive(x: jax.Array, otherwise: Any) -> jax.Array:
    """``x`` where it is positive or complex, ``otherwise`` elsewhere."""
    return x if jnp.iscomplexobj(x) else jnp.where(x > 0, x, otherwise)

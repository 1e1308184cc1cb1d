"""RMSProp."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.optimizers._arithmetic import scalar_like
from jaxnet.optimizers._hyperparameters import decays, scalar, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.sgd import checked_momentum, with_momentum
from jaxnet.optimizers.vectors import Vector, abs_squared, each, rsqrt, sqrt, unbiased


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


@door
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
    for name, value in (("eps_in_sqrt", eps_in_sqrt), ("centered", centered), ("bias_correction", bias_correction)):
        checks.flag(name, value)
    numbers = {
        **scalars(learning_rate=learning_rate),
        **decays(decay=decay),
        "eps": scalar("eps", eps, open_low=True),
        **checked_momentum(momentum, nesterov),
    }

    def corrected(average, decay, count):
        return unbiased(average, decay, count) if bias_correction else average

    def inverse_root(v, eps):
        if eps_in_sqrt:
            return rsqrt(_where_positive(v + eps, eps) if centered else v + eps)
        return 1 / (sqrt(_where_positive(v, 0.0) if centered else v) + eps)

    def step(g, s, learning_rate, decay, eps, momentum):
        m = (1 - decay) * g + decay * s.mu if centered else None
        v = (1 - decay) * abs_squared(g) + decay * s.nu
        variance = corrected(v, decay, s.count)
        if m is not None:
            variance = variance - abs_squared(corrected(m, decay, s.count))
        u = -learning_rate * (inverse_root(variance, eps) * g)
        u, trace = with_momentum(u, s.trace, momentum, nesterov)
        return u, s._replace(mu=m, nu=v, trace=trace)

    trees = {
        "mu": Kept(called="mean (centered)", wanted=centered),
        "nu": Kept(scalar("initial_scale", initial_scale, schedule=False)),
        "trace": Kept(called="momentum", wanted=momentum is not None),
    }
    return rule(RmspropState, step, numbers, trees)


def _where_positive(v: Vector, otherwise: Any) -> Vector:
    """``v`` where it is positive or complex, else ``otherwise``.

    A variance below 0 is a rounding error, whose root would be NaN for good.
    """
    return each(lambda x: x if jnp.iscomplexobj(x) else jnp.where(x > 0, x, scalar_like(otherwise, x)), v)

"""Stochastic gradient descent, plain, with momentum, or with Nesterov's momentum."""

from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError
from jaxnet.optimizers._hyperparameters import decays, float_dtype, scalars
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import Vector


class SgdState(NamedTuple):
    """The state of `sgd`.

    Attributes:
      count: steps taken, an int32 scalar.
      trace: the momentum, shaped like the parameters, or None without momentum.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    trace: Any


@door
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Optimizer:
    r"""Stochastic gradient descent (algorithms 1 and 2; the batch size is the only difference).

    .. math::
      t_i = g_i + \mu\, t_{i-1}, \qquad
      \theta_i = \theta_{i-1} - \eta\, t_i
      \quad\text{or, with Nesterov's momentum,}\quad
      \theta_i = \theta_{i-1} - \eta\, (g_i + \mu\, t_i)

    and without momentum :math:`\theta_i = \theta_{i-1} - \eta\, g_i`. For weight decay, which adds
    :math:`\lambda \theta` to the gradient, put `add_decayed_weights` in front:
    ``chain(add_decayed_weights(1e-4), sgd(0.1, momentum=0.9))``.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      momentum: :math:`\mu` in [0, 1), or None for no momentum and no memory spent on it.
      nesterov: whether to look ahead by one momentum step; needs ``momentum``.
      accumulator_dtype: the dtype the momentum is kept in; None for the parameters' own, at least float32.

    Returns:
      An `Optimizer` whose state is an `SgdState`.

    Raises:
      ConfigError: a concrete argument makes no sense.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = sgd(0.1, momentum=0.9)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([1.0, -2.0]), state)
      >>> updates
      Array([-0.1,  0.2], dtype=float32)

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
    """
    numbers = scalars(learning_rate=learning_rate) | checked_momentum(momentum, nesterov)
    dtype = float_dtype("accumulator_dtype", accumulator_dtype)

    def step(g, s, learning_rate, momentum):
        u, trace = with_momentum(g, s.trace, momentum, nesterov)
        return -learning_rate * u, s._replace(trace=trace)

    trace = Kept(dtype=dtype, called="momentum", wanted=momentum is not None)
    return rule(SgdState, step, numbers, {"trace": trace})


def checked_momentum(momentum: Any, nesterov: bool) -> dict[str, Any]:
    """The momentum by name, which may be None."""
    checks.flag("nesterov", nesterov)
    if nesterov and momentum is None:
        raise ConfigError("nesterov=True without momentum does nothing; pass momentum, for example 0.9")
    return {"momentum": None} if momentum is None else decays(momentum=momentum)


def with_momentum(u: Vector, trace: Any, momentum: Any, nesterov: bool) -> tuple[Vector, Any]:
    """``u`` and what the momentum adds to it, and the new momentum."""
    if momentum is None:
        return u, None
    trace = u + momentum * trace
    return (u + momentum * trace if nesterov else trace), trace

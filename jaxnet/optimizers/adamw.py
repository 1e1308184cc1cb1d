"""AdamW: Adam with weight decay that the second moment does not scale."""

from typing import Any

from jaxnet.optimizers._rule import door, rule
from jaxnet.optimizers.adam import AdamState, direction, kept, moments
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.decay import checked_decay, decayed


@door
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> Optimizer:
    r"""Adam with decoupled weight decay.

    .. math::
      \theta_i = \theta_{i-1} - \eta \left(
        \frac{\hat m_i}{\sqrt{\hat v_i + \bar\varepsilon} + \varepsilon} + \lambda\, \theta_{i-1} \right)

    with the moments of `adam`. The decay is multiplied by the learning rate, as in PyTorch and optax.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1, b2, eps, eps_root, mu_dtype, nesterov: as in `adam`.
      weight_decay: :math:`\lambda \ge 0`, a float, a scalar array, or a schedule.
      mask: which parameters decay, as in `paths.select`, such as ``"*kernel"``; or, as in optax, a function from the
        parameters to a tree of bools. None for all.

    Returns:
      An `Optimizer` whose state is an `AdamState`, so that a run can change between `adam` and `adamw`.

    Raises:
      ConfigError: a concrete argument makes no sense, a mask chooses no leaf, or ``update`` is called without the
        parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> optimizer = adamw(0.1, weight_decay=0.5, mask="*kernel")
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
      >>> updates["bias"], updates["kernel"][0]
      (Array([-0., -0.], dtype=float32), Array([-0.05, -0.05], dtype=float32))

    Source: Loshchilov & Hutter, Decoupled weight decay regularization, arXiv 1711.05101.
    """
    numbers = moments(learning_rate, b1, b2, eps, eps_root, nesterov) | checked_decay(weight_decay, mask)

    def step(g, s, params, learning_rate, weight_decay, **numbers):
        u, s = direction(g, s, nesterov=nesterov, **numbers)
        return -learning_rate * decayed(u, params, weight_decay, mask), s

    return rule(AdamState, step, numbers, kept(mu_dtype), needs_params="weight decay")

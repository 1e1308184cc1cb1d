"""AngularGrad, by the rule of its paper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.errors import DTypeError
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.adam import direction, kept, moments
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import each


class AngularGradState(NamedTuple):
    """The state of `angulargrad`.

    Attributes:
      count: steps taken, an int32 scalar.
      mu: the first moment, shaped like the parameters.
      nu: the second moment.
      previous_gradient: the gradient of the last step, 0 before the first.
      angle: the angle of the last step in radians, in [0, pi/2]; pi/2 before the first.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any
    previous_gradient: Any
    angle: Any


@door
def angulargrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    variant: str = "cos",
) -> Optimizer:
    r"""AngularGrad: Adam whose step is scaled by the angle between successive gradients.

    .. math::
      A_i = \arctan \left| \frac{g_i - g_{i-1}}{1 + g_i\, g_{i-1}} \right|, \quad
      A_{\min} = \min(A_{i-1}, A_i), \quad
      \varphi_i = \tfrac12 \tanh |\angle(A_{\min})| + \tfrac12, \quad
      \theta_i = \theta_{i-1} - \eta\, \varphi_i\, \frac{\hat m_i}{\sqrt{\hat v_i} + \varepsilon}

    where :math:`\angle` is the cosine or the tangent and the moments are Adam's, all elementwise. So
    :math:`\varphi` lies in [1/2, 1]: the cosine variant takes the longest steps where the gradient stays
    as it is, the tangent variant where it turns.

    Where :math:`1 + g_i g_{i-1} = 0` the lines are perpendicular and :math:`A_i = \pi/2`; the quotient is
    never formed. :math:`A_{i-1}` is the last step's angle, not the smallest so far, and :math:`A_0` is
    :math:`\pi/2`, which no minimum takes.
    The authors' released code does not follow this rule: docs/optimizers.md says how it differs.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule from step (0, 1, ...) to value.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: :math:`\varepsilon > 0`, outside the root.
      variant: "cos" or "tan".

    Returns:
      An `Optimizer` whose state is an `AngularGradState`.

    Raises:
      ConfigError: a concrete argument makes no sense.
      DTypeError: a parameter is complex; the angle of the paper is defined for real gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = angulargrad(0.1, variant="tan")
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([1.0, 0.0]), state)
      >>> updates.round(4), state.angle.round(4)
      (Array([-0.0881, -0.    ], dtype=float32), Array([0.7854, 0.    ], dtype=float32))

    Source: Roy et al., AngularGrad: a new optimization technique for angular convergence of convolutional
    neural networks, arXiv 2105.10190.
    """
    trigonometric = {"cos": jnp.cos, "tan": jnp.tan}[checks.choice("variant", variant, ("cos", "tan"))]

    def angle_between(g, previous):
        # atan2 of the two parts: exact where the denominator is 0, and never inf or NaN on the way.
        return jnp.arctan2(jnp.abs(g - previous), jnp.abs(1 + g * previous)).astype(previous.dtype)

    def coefficient(angle, previous):
        # tan just beyond pi/2, where float32 rounds it, is a large negative number: hence the paper's |.|.
        return jnp.tanh(jnp.abs(trigonometric(jnp.minimum(previous, angle)))) * 0.5 + 0.5

    def step(g, s, learning_rate, **numbers):
        u, s = direction(g, s, **numbers)
        angle = each(angle_between, g, s.previous_gradient)
        u = each(coefficient, angle, s.angle) * u
        return -learning_rate * u, s._replace(previous_gradient=g, angle=angle)

    trees = kept() | {"previous_gradient": Kept(), "angle": Kept(jnp.pi / 2)}
    optimizer = rule(AngularGradState, step, moments(learning_rate, b1, b2, eps), trees)

    def init(params):
        state = optimizer.init(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if jnp.iscomplexobj(leaf):
                raise DTypeError(f"the parameter at {jax.tree_util.keystr(path)} is complex, it must be real")
        return state

    return optimizer._replace(init=init)

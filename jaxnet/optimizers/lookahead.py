"""Lookahead, over the parameter tree as it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import copies
from jaxnet.optimizers._hyperparameters import scalar
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.averaged import over_held
from jaxnet.optimizers.base import Optimizer
from jaxnet.optimizers.vectors import each, over_leaves, where


class LookaheadState(NamedTuple):
    """The state of `lookahead`.

    Attributes:
      fast_state: the state of the optimizer inside.
      steps_since_sync: steps since fast and slow weights were last equal, an int32 scalar.
      slow: the slow weights, the ones to evaluate and to keep; a tree like the parameters, in at least float32.
    """

    fast_state: Any
    steps_since_sync: jax.Array
    slow: Any

    def averaged(self, params: Any) -> Any:
        """The slow weights."""
        return over_held(lambda slow, p: slow, self.slow, params)


@door
def lookahead(fast_optimizer: Any, sync_period: int, slow_step_size: ArrayLike, reset_state: bool = False) -> Optimizer:
    r"""Lookahead: k steps forward, one step back.

    .. math::
      \theta_{t,i} = \theta_{t,i-1} + A(\theta_{t,i-1}), \quad i = 1 \ldots k, \qquad
      \phi_t = \phi_{t-1} + \alpha\, (\theta_{t,k} - \phi_{t-1}), \qquad
      \theta_{t+1,0} = \phi_t

    The parameters that are trained are the fast weights :math:`\theta`; the slow weights :math:`\phi` are in
    the state. So the training loop is the same as with any other optimizer, the loss never sees a pair of
    trees, and evaluation takes ``state.slow``, which `averaged` finds and `training.fit` returns. (`optax.lookahead`
    wants its parameters as a ``LookaheadParams`` pair.) After every k-th step the two trees are equal bit for bit
    (16-bit parameters are the rounding of their slow weights, which are float32); that needs the updates to be applied
    as they are, so this is the outermost transformation but for `skip_nonfinite` and `master_copy`.

    Args:
      fast_optimizer: the inner optimizer A, ours or optax's.
      sync_period: k >= 1, a Python integer.
      slow_step_size: :math:`\alpha` in (0, 1], a float or a scalar array.
      reset_state: whether the inner optimizer starts afresh after every synchronization.

    Returns:
      An `Optimizer` whose state is a `LookaheadState`, which costs one more copy of the parameters.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import apply_updates, sgd
      >>> optimizer = lookahead(sgd(1.0), sync_period=2, slow_step_size=0.5)
      >>> params = jnp.array([0.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.array([-1.0]), state, params)
      ...     params = apply_updates(params, updates)
      ...     print(params, state.slow)
      [1.] [0.]
      [1.] [1.]

    Source: Zhang et al., Lookahead optimizer: k steps forward, 1 step back, arXiv 1907.08610.
    """
    fast_optimizer = member(fast_optimizer)
    sync_period = checks.integer("sync_period", sync_period, minimum=1)
    alpha = scalar("slow_step_size", slow_step_size, high=1.0, open_low=True, schedule=False)
    checks.flag("reset_state", reset_state)

    def init(params):
        trees.parameters(params)
        return LookaheadState(fast_optimizer.init(params), jnp.zeros([], jnp.int32), copies(params))

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, LookaheadState)
        trees.need_params(params, "the pull towards the slow weights")
        trees.same_tree("the slow weights in the state", state.slow, "the parameters", params)
        trees.gradients(updates, params)
        updates, fast_state = updated(fast_optimizer, updates, state.fast_state, params, extra_args)
        sync = state.steps_since_sync == sync_period - 1

        def blend(u, p, slow):
            change = p + u - slow
            target = slow + alpha * change
            u = where(sync, target - p, u)
            # What apply_updates will make of it, so that fast and slow never drift apart by roundings.
            landed = each(lambda x, y: x.astype(y.dtype), p + u, slow)
            return u, where(sync, landed, slow)

        updates, slow = over_leaves(blend, updates, params, state.slow)
        if reset_state:
            fresh = fast_optimizer.init(params)
            fast_state = jax.tree.map(lambda new, old: jnp.where(sync, new, old), fresh, fast_state)
        steps = (state.steps_since_sync + 1) % sync_period
        return updates, LookaheadState(fast_state, steps, slow)

    return rates.as_inside(Optimizer(init, update), fast_optimizer, "fast_state")

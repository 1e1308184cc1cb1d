"""Schedule-free: an average of the steps in place of a falling learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import copies, next_count, promoted, scalar_like
from jaxnet.optimizers._hyperparameters import at, decays, float_dtype, scalar, scalars
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import Kept, door, rule
from jaxnet.optimizers.averaged import over_held
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.chain import chain
from jaxnet.optimizers.decay import add_decayed_weights, checked_decay, decayed
from jaxnet.optimizers.rmsprop import RmspropState
from jaxnet.optimizers.sgd import sgd
from jaxnet.optimizers.vectors import abs_squared, each, over_leaves, sqrt, unbiased


class ScheduleFreeState(NamedTuple):
    """The state of `schedule_free`, and of `schedule_free_sgd` and `schedule_free_adamw`.

    Attributes:
      b1: how much of the average is in the parameters, a scalar.
      weight_sum: the sum of the weights in the average so far, a scalar.
      step_count: steps taken, an int32 scalar.
      max_lr: the largest learning rate so far, a scalar.
      base_optimizer_state: the state of the optimizer inside.
      z: what the optimizer inside moves, a tree like the parameters, at least float32.
    """

    b1: jax.Array
    weight_sum: jax.Array
    step_count: jax.Array
    max_lr: jax.Array
    base_optimizer_state: Any
    z: Any

    def averaged(self, params: Any) -> Any:
        """x, from y and z."""

        def x(z, y):
            y, z = promoted(y, z)
            return y + scalar_like(1 / self.b1 - 1, y) * (y - z)

        return over_held(x, self.z, params)


@door
def schedule_free(
    base_optimizer: Any,
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: Any = None,
) -> Optimizer:
    r"""Averages the steps of an optimizer, which then needs no falling learning rate and no end that is set before.

    .. math::
      y_i = (1 - \beta_1) z_i + \beta_1 x_i, \quad
      z_{i+1} = z_i + A(\nabla f(y_i)), \quad
      x_{i+1} = (1 - c_i) x_i + c_i z_{i+1}, \quad
      c_i = \frac{\hat\eta_i^p}{\sum_{j \le i} \hat\eta_j^p}, \quad
      \hat\eta_i = \max_{j \le i} \eta_j

    The parameters that are trained are y, where the gradient is taken. **Those to evaluate and to keep are x**, which
    `averaged` gives. A must be without momentum, which the average replaces. As the updates must be applied as they
    are, this is the outermost transformation but for `skip_nonfinite` and `master_copy`. The latter is for parameters
    of 16 bits, whose rounding is in x otherwise.

    Args:
      base_optimizer: the optimizer A, ours or optax's, which has the learning rate in it.
      learning_rate: :math:`\eta`, a float, a scalar array, or a schedule (a warm-up); it only weighs the average.
      b1: :math:`\beta_1` in (0, 1].
      weight_lr_power: :math:`p \ge 0`.
      state_dtype: the dtype that z is kept in; None for the parameters' own, at least float32.

    Returns:
      An `Optimizer` whose state is a `ScheduleFreeState`, which costs one more copy of the parameters.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = schedule_free(optimizers.lion(0.25, b1=0.0, weight_decay=0.0), 0.25, b1=0.5)
      >>> params = jnp.array([1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(params, state, params)
      ...     params = optimizers.apply_updates(params, updates)
      >>> print(params, optimizers.averaged(state, params), state.z)
      [0.5625] [0.625] [0.5]

    Source: Defazio et al., The road less scheduled, arXiv 2405.15682; `optax.contrib.schedule_free`, where the weight
    takes the learning rate of the step after the one that A takes.
    """
    return _around(base_optimizer, scalar("learning_rate", learning_rate), b1, weight_lr_power, state_dtype)


@door
def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: ArrayLike = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: Any = None,
) -> Optimizer:
    r"""`schedule_free` around `sgd`: :math:`z_{i+1} = z_i - \eta\,(\nabla f(y_i) + \lambda y_i)`.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule; 10 to 50 times that of SGD with
        momentum.
      warmup_steps: over how many steps the rate rises to ``learning_rate``: that of step i = 0, 1, ... is
        :math:`\min(1, (i + 1) / T)` of it. None for no warm-up.
      b1: :math:`\beta_1` in (0, 1]; 0.95 or 0.98 in long runs.
      weight_decay: :math:`\lambda \ge 0`, at y.
      weight_lr_power: :math:`p \ge 0`.
      state_dtype: the dtype that z is kept in; None for the parameters' own, at least float32.

    Returns:
      An `Optimizer` whose state is a `ScheduleFreeState`.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = schedule_free_sgd(0.5, b1=0.5)
      >>> params = jnp.array([1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(params, state, params)
      ...     params = optimizers.apply_updates(params, updates)
      ...     print(params, optimizers.averaged(state, params))
      [0.5] [0.5]
      [0.3125] [0.375]

    Source: Defazio et al., arXiv 2405.15682; `optax.contrib.schedule_free_sgd`, the package ``schedulefree``.
    """
    rate = _warmed(learning_rate, warmup_steps)
    return _around(chain(add_decayed_weights(weight_decay), sgd(rate)), rate, b1, weight_lr_power, state_dtype)


@door
def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: ArrayLike = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: Any = None,
) -> Optimizer:
    r"""`schedule_free` around AdamW, whose first moment the average replaces.

    .. math::
      v_i = \beta_2 v_{i-1} + (1 - \beta_2) |g_i|^2, \quad
      z_{i+1} = z_i - \eta \left( \frac{g_i}{\sqrt{v_i / (1 - \beta_2^i)} + \varepsilon} + \lambda y_i \right)

    As much memory as `adamw`.

    Args:
      learning_rate: :math:`\eta \ge 0`, a float, a scalar array, or a schedule; up to 10 times Adam's.
      warmup_steps: over how many steps the rate rises to ``learning_rate``, as in `schedule_free_sgd`.
      b1: :math:`\beta_1` in (0, 1]; 0.95 or 0.98 in long runs.
      b2: :math:`\beta_2` in [0, 1), the decay of the second moment.
      eps: :math:`\varepsilon > 0`.
      weight_decay: :math:`\lambda \ge 0`, at y.
      weight_lr_power: :math:`p \ge 0`.
      state_dtype: the dtype that z is kept in; None for the parameters' own, at least float32.

    Returns:
      An `Optimizer` whose state is a `ScheduleFreeState`.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = schedule_free_adamw(0.1, warmup_steps=2)
      >>> params = jnp.array([1.0, -1.0])
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params)
      >>> updates.round(4)
      Array([-0.05,  0.05], dtype=float32)

    Source: Defazio et al., arXiv 2405.15682; `optax.contrib.schedule_free_adamw`, the package ``schedulefree``.
    """
    rate = _warmed(learning_rate, warmup_steps)

    def step(g, s, params, learning_rate, b2, eps, weight_decay):
        v = (1 - b2) * abs_squared(g) + b2 * s.nu
        u = g / (sqrt(unbiased(v, b2, s.count)) + eps)
        return -learning_rate * decayed(u, params, weight_decay, None), s._replace(nu=v)

    numbers = scalars(learning_rate=rate) | decays(b2=b2) | checked_decay(weight_decay, None)
    numbers["eps"] = scalar("eps", eps, open_low=True)
    kept = {"mu": Kept(wanted=False), "nu": Kept(), "trace": Kept(wanted=False)}
    base = rule(RmspropState, step, numbers, kept, needs_params="weight decay")
    return _around(base, rate, b1, weight_lr_power, state_dtype)


def _around(base_optimizer: Any, rate: Any, b1: Any, power: Any, state_dtype: Any) -> Optimizer:
    base_optimizer = member(base_optimizer)
    b1 = scalar("b1", b1, high=1.0, open_low=True, schedule=False)
    power = scalar("weight_lr_power", power, schedule=False)
    state_dtype = float_dtype("state_dtype", state_dtype)

    def init(params):
        trees.parameters(params, state_dtype)
        z = copies(params, state_dtype)
        dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(z)]
        real = max([jnp.dtype(jnp.float32), *dtypes], key=lambda dtype: dtype.itemsize)
        numbers = jnp.zeros([], real), jnp.zeros([], jnp.int32), jnp.zeros([], real)
        return ScheduleFreeState(jnp.asarray(b1).astype(real), *numbers, base_optimizer.init(params), z)

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, ScheduleFreeState)
        trees.need_params(params, "the average")
        trees.same_tree("z in the state", state.z, "the parameters", params, dtypes=False)
        trees.gradients(updates, params)
        updates, base_state = updated(base_optimizer, updates, state.base_optimizer_state, params, extra_args)
        now = jnp.asarray(at("learning_rate", rate, state.step_count)).astype(state.max_lr.dtype)
        max_lr = jnp.maximum(state.max_lr, now)
        weight = max_lr ** scalar_like(power, max_lr)
        weight_sum = state.weight_sum + weight
        c = weight / jnp.maximum(weight_sum, jnp.finfo(weight_sum.dtype).tiny)  # 0 as long as all rates were 0
        share = 1 - scalar_like(b1, c) * (1 - c)

        def move(u, y, z):
            # What the equations say of y once x is put in: without it nothing is divided by b1. The step comes from z's
            # two values: XLA would write u, which both need, to an array of its own.
            moved = z + u
            return c * (z - y) + share * (moved - z), each(lambda new, old: new.astype(old.dtype), moved, z)

        updates, z = over_leaves(move, updates, params, state.z)
        return updates, ScheduleFreeState(state.b1, weight_sum, next_count(state.step_count), max_lr, base_state, z)

    def said(before, after):
        del after
        return rates.Rate({"": at("learning_rate", rate, before.step_count)})

    return rates.saying(Optimizer(init, update), said)


def _warmed(learning_rate: Any, warmup_steps: Any) -> Any:
    rate = scalar("learning_rate", learning_rate)
    if warmup_steps is None:
        return rate
    steps = checks.integer("warmup_steps", warmup_steps, minimum=1)

    def schedule(count):
        with jax.numpy_dtype_promotion("standard"):
            return at("learning_rate", rate, count) * jnp.minimum(
                1.0, jnp.asarray(count + 1, jnp.result_type(float)) / steps
            )

    return schedule

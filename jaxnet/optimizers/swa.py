"""Stochastic weight averaging: the mean of the weights at some steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import copies, next_count
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.averaged import over_held
from jaxnet.optimizers.base import Optimizer
from jaxnet.optimizers.ema import moved


class SwaState(NamedTuple):
    """The state of `swa`.

    Attributes:
      inner_state: the state of the optimizer inside.
      count: steps taken, an int32 scalar.
      taken: how many steps' parameters are in the mean, an int32 scalar.
      average: their mean, in at least float32; a tree like the parameters.
    """

    inner_state: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    taken: jax.Array
    average: Any

    def averaged(self, params: Any) -> Any:
        """The mean; the parameters as long as there is none."""
        return over_held(lambda mean, p: jnp.where(self.taken > 0, mean, p.astype(mean.dtype)), self.average, params)


@door
def swa(optimizer: Any, start: int, every: int = 1) -> Optimizer:
    r"""Keeps the mean of the weights after some steps, all with the same weight, beside those that are trained.

    .. math::
      \bar\theta = \frac{1}{n} \sum_{k=0}^{n-1} \theta_{\text{start} + k\, \text{every}}

    It trains nothing otherwise than ``optimizer`` does: give that a rate that stays high from ``start`` on, or one
    that goes up and down with the period ``every``, so that the weights differ. `averaged` gives the mean, and
    `training.fit` evaluates, keeps and returns it, with the statistics of batch norms made anew
    (`training.reestimate`); up to the step ``start`` they are the parameters themselves.

    Args:
      optimizer: the inner optimizer, ours or optax's. Updates must be applied as this returns them, so it is the
        outermost but for `skip_nonfinite`, `master_copy` and another average.
      start: the first step, counted from 1, after which the parameters are taken; three quarters of the run are usual.
      every: steps from one taking to the next; those of an epoch are usual.

    Returns:
      An `Optimizer` whose state is a `SwaState`, which costs one more copy of the parameters, float32 where they have
      16 bits.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = optimizers.swa(optimizers.sgd(1.0), start=2, every=2)
      >>> params = jnp.zeros(1)
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     updates, state = optimizer.update(jnp.full(1, -1.0), state, params)
      ...     params = optimizers.apply_updates(params, updates)
      >>> params, optimizers.averaged(state, params)  # of 2 and 4
      (Array([5.], dtype=float32), Array([3.], dtype=float32))

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization, arXiv 1803.05407.
    """
    optimizer = member(optimizer)
    start, every = (checks.integer(*one, minimum=1) for one in (("start", start), ("every", every)))

    def init(params):
        trees.parameters(params)
        return SwaState(optimizer.init(params), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), copies(params))

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, SwaState)
        trees.need_params(params, "the mean of the weights")
        trees.same_tree("the mean in the state", state.average, "the parameters", params)
        updates, inner = updated(optimizer, updates, state.inner_state, params, extra_args)
        count = next_count(state.count)
        now = (count >= start) & ((count - start) % every == 0)
        taken = jnp.where(now, next_count(state.taken), state.taken)
        part = jnp.where(now, 1 / jnp.maximum(taken, 1).astype(jnp.float32), jnp.float32(0))
        average = moved(state.average, params, updates, part)
        return updates, SwaState(inner, count, taken, average)

    return rates.as_inside(Optimizer(init, update), optimizer, "inner_state")

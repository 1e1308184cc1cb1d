"""Steps that a non-finite gradient would spoil are not taken, and counted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import next_count
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.base import Optimizer, apply_updates


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`, with the names of `optax.ApplyIfFiniteState`.

    Attributes:
      notfinite_count: steps skipped in a row, up to now, an int32 scalar.
      last_finite: whether the last step was taken, a bool scalar.
      total_notfinite: steps skipped in all, an int32 scalar.
      inner_state: the state of the optimizer inside.
    """

    notfinite_count: jax.Array
    last_finite: jax.Array
    total_notfinite: jax.Array
    inner_state: Any


@door
def skip_nonfinite(optimizer: Any) -> Optimizer:
    r"""Leaves parameters and state as they were where a step would bring in an Inf or a NaN, and counts it.

    .. math::
      (\theta, s) \leftarrow
        \begin{cases}
          (\theta + u, s') & \text{if } g, u \text{ are finite, and } \theta + u, s' \text{ where } \theta, s
            \text{ are} \\
          (\theta, s) & \text{else}
        \end{cases}

    A step is skipped if a gradient is not finite, if an update is not, or if an entry that was finite would not be any
    more by it: of a parameter that overflows by the addition, or of the inner state (a gradient of 1e20 has no finite
    square in float32; one such second moment freezes its parameter for good). Without ``params`` the addition is not
    looked at. It is skipped as a whole: parameters
    and inner state stay bit for bit, only the counts move. `optax.apply_if_finite` lets the NaN through after some
    number of them; this never does. Watch ``notfinite_count``, and stop when it grows.

    Args:
      optimizer: the inner optimizer, ours or optax's; a whole `chain` with its clipping.

    Returns:
      An `Optimizer` whose state is a `SkipNonfiniteState`.

    Raises:
      ConfigError: ``optimizer`` is no optimizer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import adam, apply_updates
      >>> optimizer = skip_nonfinite(adam(1e-3))
      >>> params = jnp.array([1.0, 2.0])
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), state, params)
      >>> apply_updates(params, updates), int(state.total_notfinite)
      (Array([1., 2.], dtype=float32), 1)

    Source: loss scaling's rule, Micikevicius et al., Mixed precision training, arXiv 1710.03740, section 3.2.
    """
    optimizer = member(optimizer)

    def init(params):
        zero = jnp.zeros([], jnp.int32)
        return SkipNonfiniteState(zero, jnp.array(True), jnp.zeros([], jnp.int32), optimizer.init(params))

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, SkipNonfiniteState)
        grads, old = updates, state.inner_state
        updates, new = updated(optimizer, grads, old, params, extra_args)
        finite = _all(
            [jnp.all(jnp.isfinite(x)) for x in _inexact(grads) + _inexact(updates)]
            + [
                jnp.all(jnp.isfinite(x) | ~jnp.isfinite(y))
                for x, y in [*zip(_inexact(new), _inexact(old), strict=True), *_moved(params, updates)]
            ]
        )
        # -0.0, not 0.0: x + -0.0 is x for every x, while -0.0 + 0.0 would turn a parameter of -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.full_like(u, -0.0)), updates)
        inner = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
        zero = jnp.zeros([], jnp.int32)
        return updates, SkipNonfiniteState(
            notfinite_count=jnp.where(finite, zero, next_count(state.notfinite_count)),
            last_finite=finite,
            total_notfinite=jnp.where(finite, state.total_notfinite, next_count(state.total_notfinite)),
            inner_state=inner,
        )

    return rates.as_inside(Optimizer(init, update), optimizer, "inner_state")


def _inexact(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact)]


def _moved(params: Any, updates: Any) -> list[tuple[jax.Array, Any]]:
    """The parameters after and before the step, which may overflow by the addition: to float16, 65,520 is Inf."""
    return [] if params is None else list(zip(_inexact(apply_updates(params, updates)), _inexact(params), strict=True))


def skipped(state: Any) -> jax.Array | None:
    """The steps skipped in all by every `skip_nonfinite` (or `optax.apply_if_finite`) in an optimizer's state.

    None if there is none. A training step compares it before and after an update.
    """

    def counts(node):
        return hasattr(node, "total_notfinite") and hasattr(node, "inner_state")

    total = None
    for node in jax.tree.leaves(state, is_leaf=counts):
        if counts(node):
            inner = skipped(node.inner_state)
            one = node.total_notfinite if inner is None else node.total_notfinite + inner
            total = one if total is None else total + one
    return total


def _all(flags: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack(flags)) if flags else jnp.array(True)

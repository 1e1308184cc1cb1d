"""Master weights: 16-bit parameters that learn in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import wide, wide_dtype
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.averaged import averaged, averages, over_held
from jaxnet.optimizers.base import Optimizer, apply_updates


class MasterCopyState(NamedTuple):
    """The state of `master_copy`.

    Attributes:
      master: the float32 copy of every parameter of less than 32 bits, of its shape; None in the place of the others.
      inner_state: the state of the optimizer inside.
    """

    master: Any
    inner_state: Any

    @property
    def averages(self) -> bool:
        """Whether the optimizer inside averages."""
        return averages(self.inner_state)

    def averaged(self, params: Any) -> Any:
        """What the optimizer inside averages, of the copy."""
        return averaged(self.inner_state, over_held(lambda m, p: _followed(p, m), self.master, params))


@door
def master_copy(optimizer: Any) -> Optimizer:
    r"""Keeps a float32 copy of 16-bit parameters, and lets the optimizer move that (master weights).

    .. math::
      \Theta_i = \Theta_{i-1} + A(\nabla, \Theta_{i-1}) \ \text{in float32}, \qquad
      \theta_i = \operatorname{round}_{16}(\Theta_i)

    A step below half a unit in the last place of a parameter rounds away: bfloat16 has 8 bits, so a weight of 1 never
    takes a step of 0.001, however many there are. The copy adds them up. The parameters are at every step the
    copy's rounding, exactly, and the copy is what float32 training on the same gradients gives. (Where a parameter
    falls in one step to less than an 8,000th, there may be no float32 update that leads to it; then the copy gives way,
    by one float32 unit of the old value.)

    Parameters of 32 bits and more need no copy and get none. Parameters that something else has changed are taken as
    they are, and the copy follows. So put it outermost, ``master_copy(chain(clip, adam))``,
    ``master_copy(lookahead(...))``; only `skip_nonfinite` goes around it, or inside. Where the parameters may be
    float32, `layers.mixed_precision` computes in 16 bits at the same memory.

    Args:
      optimizer: the inner optimizer, ours or optax's; it sees float32 gradients and the float32 copy.

    Returns:
      An `Optimizer` whose state is a `MasterCopyState`. Its updates are float32: `apply_updates` (or optax's) rounds
      once.

    Raises:
      ConfigError: ``optimizer`` is no optimizer, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import apply_updates, sgd
      >>> for optimizer in (sgd(1.0), master_copy(sgd(1.0))):
      ...     params = jnp.ones(1, jnp.bfloat16)
      ...     state = optimizer.init(params)
      ...     for _ in range(400):
      ...         updates, state = optimizer.update(jnp.full(1, 1e-3, jnp.bfloat16), state, params)
      ...         params = apply_updates(params, updates)
      ...     print(params)
      [1]
      [0.601562]

    Source: Micikevicius et al., Mixed precision training, arXiv 1710.03740, section 3.1.
    """
    optimizer = member(optimizer)

    def init(params):
        trees.parameters(params)
        master = jax.tree.map(lambda p: wide(p) if _narrow(p) else None, params)
        return MasterCopyState(master, optimizer.init(jax.tree.map(wide, params)))

    def update(updates, state, params=None, **extra_args):
        trees.state_is(state, MasterCopyState)
        trees.need_params(params, "the rounding of the float32 copy")
        trees.gradients(updates, params)
        before = jax.tree.map(lambda p, m: p if m is None else _followed(p, m), params, state.master)
        changes, inner = updated(optimizer, jax.tree.map(wide, updates), state.inner_state, before, extra_args)

        def move(p, m, change, after):
            return (change, None) if m is None else _step(p, after)

        moved = jax.tree.map(move, params, state.master, changes, apply_updates(before, changes))
        updates, master = (jax.tree.map(lambda _, pair, i=i: pair[i], params, moved) for i in (0, 1))
        return updates, MasterCopyState(master, inner)

    return rates.as_inside(Optimizer(init, update), optimizer, "inner_state")


def keeps_master(state: Any) -> bool:
    """Whether an optimizer's state holds a `MasterCopyState`."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, MasterCopyState))
    return any(isinstance(node, MasterCopyState) for node in nodes)


def _narrow(p: Any) -> bool:
    dtype = jnp.asarray(p).dtype
    return wide_dtype(dtype) != dtype


def _followed(p: jax.Array, master: jax.Array) -> jax.Array:
    """The master copy, and the parameter itself where something else has changed it."""
    return jnp.where(_rounds_to(master, p), master, wide(p))


def _step(p: jax.Array, master: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The update that takes ``p`` to the rounded ``master``, and the master that this is the rounding of.

    Both are multiples of the float32 unit of the larger. Their difference is one too, so it is exact, and the sum with
    it; unless it needs a 25th bit, where a small target lies beyond 0 from a ``p`` that was rounded up to a power of 2.
    """
    p_wide, target = wide(p), master.astype(p.dtype)
    # -0.0 where nothing is to move: it leaves a parameter of -0.0, and one of Inf, as it is.
    change = jnp.where(_rounds_to(master, p), jnp.full_like(p_wide, -0.0), wide(target) - p_wide)
    landed = p_wide + change
    return change, jnp.where(_rounds_to(landed, target), master, landed)


def _rounds_to(x: jax.Array, p: jax.Array) -> jax.Array:
    """Whether ``x`` in the dtype of ``p`` is ``p``, seen by the bits: XLA may leave out a rounding between floats."""
    integer = jnp.uint8 if p.dtype.itemsize == 1 else jnp.uint16
    a, b = (jax.lax.bitcast_convert_type(y, integer) for y in (x.astype(p.dtype), p))
    return (a == b) | ((a | b) << 1 == 0)  # 0 and -0 are one number

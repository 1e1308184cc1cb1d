"""What becomes of a gradient: an update that is taken if all is finite, and else nothing changes but the counts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._dtypes import at_least_float32
from jaxnet.optimizers import _members
from jaxnet.optimizers._arithmetic import wide, wide_dtype
from jaxnet.optimizers.base import apply_updates, conjugate
from jaxnet.optimizers.skip_nonfinite import skipped
from jaxnet.training.state import Guard, LossScale, all_finite

GROWTH_INTERVAL = 2000
"""Finite steps after which the loss scale doubles (the default of PyTorch's and TensorFlow's scalers)."""


class Taken(NamedTuple):
    """What an update gave.

    Attributes:
      params: the parameters after it.
      opt_state: the optimizer's state.
      state: the network's state.
      skipped: whether nothing was changed, a bool scalar.
      norm: the gradient's norm.
      leaf: the first leaf of the gradient that is not finite, -1 if all are, int32.
    """

    params: Any
    opt_state: Any
    state: Any
    skipped: jax.Array
    norm: jax.Array
    leaf: jax.Array


def take_step(optimizer: Any, loss: jax.Array, grads: Any, params: Any, opt_state: Any, states: tuple[Any, Any], *,
    guard: bool | str, value: jax.Array, value_fn: Callable[[Any], jax.Array],
) -> Taken:  # fmt: skip
    """Updates parameters if the loss and the gradient are finite (or without a guard in any case), else keeps all.

    Args:
      guard: as of `make_step`.
      loss: what must be finite too.
      grads: as `jax.grad` gives them, in the parameters' dtypes or wider.
      states: the network's state after the step, and before it.
      value: what is minimized, for optimizers that ask for it.
      value_fn: the same as a function of the parameters.
    """
    squares, total = squares_of(grads)
    norm = jnp.sqrt(total)
    narrow = conjugate(jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params))

    def take():
        extra = {"value": value, "grad": narrow, "value_fn": value_fn}
        updates, after = _members.updated(optimizer, narrow, opt_state, params, extra)
        before, now = skipped(opt_state), skipped(after)
        inside = jnp.bool(False) if before is None or now is None else now > before
        taken = apply_updates(params, updates), after, new, inside
        return jax.lax.cond(all_finite(taken[0]), lambda: taken, keep) if guard == "update" else taken

    def keep():
        return params, opt_state, [old[i] for i in moved], jnp.bool(True)

    leaves, treedef = jax.tree.flatten(states[0])
    old = treedef.flatten_up_to(states[1])
    # What the network has handed on as it was (the weights of a frozen part, without accumulation) need not be chosen,
    # nor copied.
    moved = [i for i, (a, b) in enumerate(zip(leaves, old, strict=True)) if a is not b]
    new = [leaves[i] for i in moved]
    if not guard:
        learned, moments, _, inside = take()
        return Taken(learned, moments, states[0], inside, norm, jnp.int32(-1))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    bad = ~jnp.isfinite(jnp.stack(squares or [jnp.float32(0)]))
    leaf = jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)
    learned, moments, kept, nothing = jax.lax.cond(finite, take, keep)
    for i, value in zip(moved, kept, strict=True):
        leaves[i] = value
    return Taken(learned, moments, treedef.unflatten(leaves), nothing, norm, leaf)


def squares_of(grads: Any) -> tuple[list[jax.Array], jax.Array]:
    """The squared norm of every leaf, and of all, in float32, or float64 if a leaf is."""
    squares = [_square(g) for g in jax.tree.leaves(grads)]
    wide = at_least_float32(*[square.dtype for square in squares])
    squares = [square.astype(wide) for square in squares]
    return squares, sum(squares, start=jnp.zeros((), wide))


def _square(g: jax.Array) -> jax.Array:
    """The sum of |g|^2."""
    parts = (g.real, g.imag) if jnp.iscomplexobj(g) else (g,)
    flat = [part.astype(at_least_float32(part.dtype)).ravel() for part in parts]
    return sum((jnp.vdot(part, part) for part in flat[1:]), start=jnp.vdot(flat[0], flat[0]))


def counted(guard: Guard, finite: jax.Array, leaf: jax.Array, step: jax.Array) -> Guard:
    """The guard's counts after a step."""
    return Guard(
        in_row=jnp.where(finite, 0, guard.in_row + 1),
        total=guard.total + (~finite).astype(jnp.int32),
        leaf=jnp.where(finite, guard.leaf, leaf),
        step=jnp.where(finite, guard.step, step),
    )


@jax.jit
def passed_over(train_state: Any) -> Any:
    """The state after a step whose update is not taken: counted, and else as it is."""
    guard = counted(train_state.guard, jnp.bool(False), jnp.int32(-1), train_state.step)
    replace = getattr(train_state, "_replace", None) or functools.partial(dataclasses.replace, train_state)
    return replace(step=train_state.step + 1, guard=guard)


def unscaled(grads: Any, scale: jax.Array | None) -> Any:
    """The gradients of a loss that was multiplied by a scale, in at least float32."""
    if scale is None:
        return grads
    return jax.tree.map(lambda g: wide(g) / scale.astype(wide_dtype(g.dtype)), grads)


def rescaled(scale: LossScale | tuple[()], finite: jax.Array) -> LossScale | tuple[()]:
    """The loss scale after a step: half of it where that was not finite, twice it after `GROWTH_INTERVAL` that were."""
    if not scale:
        return ()
    grown = finite & (scale.good_steps + 1 >= GROWTH_INTERVAL)
    value = jnp.where(finite, jnp.where(grown, scale.value * 2, scale.value), scale.value / 2)
    # Beyond float32's range the scale itself would be Inf, or 0.
    value = jnp.clip(value, jnp.float32(2.0**-126), jnp.float32(2.0**127))
    return LossScale(value, jnp.where(finite & ~grown, scale.good_steps + 1, 0))

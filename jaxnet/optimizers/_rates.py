"""The learning rate of an optimizer as it is at a step: of a rule that says it, in whatever it is wrapped.

A rule's ``update`` says it by its attribute ``rate``, a function of the optimizer's state before the step and after it
to a `Rate`; what wraps optimizers hands on theirs. Of optax's, a state of `optax.inject_hyperparams` says it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet._dtypes import at_least_float32
from jaxnet.optimizers.base import Optimizer


class Rate(NamedTuple):
    """What is known of it.

    Attributes:
      rules: the rates that rules were given, by the names of their groups, "" where there are none.
      factor: what others multiply updates by, None if none does.
    """

    rules: dict[str, Any]
    factor: Any = None


def saying(optimizer: Optimizer, rate: Callable[[Any, Any], Rate]) -> Optimizer:
    """The optimizer, whose ``update`` says its rate."""
    optimizer.update.rate = rate  # type: ignore[attr-defined]
    return optimizer


def as_inside(optimizer: Optimizer, inside: Any, field: str) -> Optimizer:
    """An optimizer around another, whose state is a field of its own, with the rate of that."""

    def rate(before, after):
        return known(inside, getattr(before, field), getattr(after, field))

    return saying(optimizer, rate)


def columns(optimizer: Any, before: Any, after: Any, of: str = "learning_rate") -> dict[str, jax.Array]:
    """The learning rates of a step as they are measured: by name, scalars of at least float32.

    Args:
      before: the optimizer's state before the step, which counts the steps as the schedules do.
      after: the state after it.
      of: the name, before that of a group.
    """
    found = known(optimizer, before, after)
    return {" ".join(filter(None, (of, group))): _product(rule, found.factor) for group, rule in found.rules.items()}


def known(optimizer: Any, before: Any, after: Any) -> Rate:
    """What an optimizer says of its rate."""
    own = getattr(optimizer.update, "rate", None)
    return _in_states(after) if own is None else own(before, after)


def joined(rates: list[Rate]) -> Rate:
    """Of several one after the other: the last rule's, by all that multiplies."""
    rules = [rate.rules for rate in rates if rate.rules]
    factor = None
    for one in [rate.factor for rate in rates if rate.factor is not None]:
        factor = one if factor is None else _product(factor, one)
    return Rate(rules[-1] if rules else {}, factor)


def _in_states(state: Any) -> Rate:
    """Of optax's `inject_hyperparams` and `contrib.reduce_on_plateau`, by the fields of their states."""

    def says(node):
        return hasattr(node, "hyperparams") or hasattr(node, "plateau_count")

    found = []
    for node in jax.tree.leaves(state, is_leaf=says):
        if hasattr(node, "plateau_count"):
            found.append(Rate({}, node.scale))
        elif hasattr(node, "hyperparams"):
            own = node.hyperparams.get("learning_rate")
            found += [Rate({} if own is None else {"": own}), _in_states(node.inner_state)]
    return joined(found)


def _product(a: Any, b: Any) -> jax.Array:
    numbers = [jnp.asarray(number) for number in (a, b) if number is not None]
    dtype = at_least_float32(*[number.dtype for number in numbers if jnp.issubdtype(number.dtype, jnp.floating)])
    result = numbers[0].astype(dtype)
    return result * numbers[1].astype(dtype) if len(numbers) > 1 else result

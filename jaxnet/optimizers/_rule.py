"""What every rule repeats, said once: its door, its state, its schedules, its checks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax.numpy as jnp

from jaxnet._made import made
from jaxnet.errors import ConfigError, named
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import full_like, next_count
from jaxnet.optimizers._hyperparameters import at
from jaxnet.optimizers.base import EmptyState, Optimizer
from jaxnet.optimizers.vectors import Vector, each, over_leaves

P = ParamSpec("P")


def door(constructor: Callable[P, Optimizer]) -> Callable[P, Optimizer]:
    """A constructor whose name stands in the errors of the call, of ``init`` and of ``update``; they can be pickled."""
    one = named(constructor.__name__)
    inside = one(constructor)

    @functools.wraps(constructor)
    def call(*args: P.args, **kwargs: P.kwargs) -> Optimizer:
        init, update = inside(*args, **kwargs)
        return Optimizer(one(init), one(update))

    return made(call)


class Kept(NamedTuple):
    """A tree that a state keeps beside the parameters, such as a moment.

    Attributes:
      start: the number that it is full of before the first step.
      dtype: what it is kept in; None for the parameters' own dtypes, at least float32.
      called: its name in errors, for one that not every configuration keeps.
      wanted: whether this configuration keeps it; if not, it is None.
    """

    start: Any = 0.0
    dtype: Any = None
    called: str = ""
    wanted: bool = True


def rule(
    state_type: Any,
    step: Callable[..., tuple[Vector, Any]],
    hyperparameters: dict[str, Any],
    kept: dict[str, Kept],
    needs_params: str = "",
) -> Optimizer:
    """The optimizer whose every step is an equation over vectors.

    Args:
      state_type: a named tuple of ``count`` and the trees in ``kept``.
      step: ``step(g, state, **hyperparameters) -> (updates, state)``: the gradient and the trees of the state are
        vectors, the count is that of this step (1, 2, ...), the hyperparameters are numbers.
      hyperparameters: the values and schedules, as `_hyperparameters.scalar` returned them.
      kept: the trees of the state, by name.
      needs_params: what ``step`` needs the parameters for; it then gets the tree, as ``params``.
    """

    def init(params):
        asked = [tree.dtype for tree in kept.values() if tree.dtype is not None]
        trees.parameters(params, *asked)
        begun = {n: full_like(params, tree.start, tree.dtype) if tree.wanted else None for n, tree in kept.items()}
        return state_type(count=jnp.zeros([], jnp.int32), **begun)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        trees.state_is(state, state_type)
        old = [getattr(state, name) for name in kept]
        for (name, tree), one in zip(kept.items(), old, strict=True):
            _as_configured(tree.called or name, tree.wanted, one)
        if needs_params:
            trees.need_params(params, needs_params)
        trees.gradients(updates, params, next((one for one in old if one is not None), None))
        numbers = {name: at(name, value, state.count) for name, value in hyperparameters.items()}
        given = {"params": params} if needs_params else {}
        count = next_count(state.count)

        def over(g, *vectors):
            before = state._replace(count=count, **dict(zip(kept, vectors, strict=True)))
            change, after = step(g, before, **numbers, **given)
            new = [getattr(after, name) for name in kept]
            return change, *map(_as_kept, kept.values(), vectors, new)

        updates, *new = over_leaves(over, updates, *old)
        return updates, state._replace(count=count, **dict(zip(kept, new, strict=True)))

    def rate(before, after):
        del after
        return rates.Rate({"": at("learning_rate", hyperparameters["learning_rate"], before.count)})

    optimizer = Optimizer(init, update)
    return rates.saying(optimizer, rate) if "learning_rate" in hyperparameters else optimizer


def stateless(change: Callable[[Vector], Vector]) -> Optimizer:
    """The optimizer that remembers nothing, from what it makes of the gradients."""

    def init(params):
        trees.parameters(params)
        return EmptyState()

    def update(updates, state, params=None, **extra_args):
        del extra_args
        trees.state_is(state, EmptyState)
        trees.gradients(updates, params)
        return *over_leaves(lambda g: [change(g)], updates), state

    return Optimizer(init, update)


def _as_configured(called: str, wanted: bool, value: Any) -> None:
    """Refuses a state that was made by the same rule in another configuration."""
    if (value is not None) != wanted:
        raise ConfigError(
            f"this state holds {'no' if wanted else 'a'} {called}, and this optimizer "
            f"{'keeps one' if wanted else 'keeps none'}; make the state with this optimizer's init"
        )


def _as_kept(tree: Kept, old: Vector | None, new: Vector) -> Vector | None:
    """In the dtype that was asked for, or that the tree had."""
    if old is None:
        return None
    return each(lambda x, y: x.astype(jnp.asarray(y).dtype if tree.dtype is None else tree.dtype), new, old)

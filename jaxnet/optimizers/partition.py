"""Groups of parameters, each with an optimizer of its own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _words as words
from jaxnet.errors import ConfigError, located, named
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.base import Optimizer
from jaxnet.paths import check_labels, labelled, parted


@door
def partition(groups: Any, labels: Any = None) -> Optimizer:
    r"""Gives parts of the parameters optimizers of their own: other rates, other rules, or none.

    .. math:: u_j = A_{k(j)}(g)_j, \qquad k(j) = \min \{k : \text{group } k \text{ chooses leaf } j\}

    Args:
      groups: a mapping from which leaves, as in `paths.select`, to their optimizer, of this library or of optax; or
        pairs of the two, where what chooses is a tree. A leaf belongs to the first group that chooses it. None
        for an optimizer leaves the group as it is. With ``labels``, a mapping from labels to optimizers.
      labels: a tree with a leaf's label in its place, as `optax.partition` takes it: a prefix of the parameters is
        enough, whose label is that of all below it; or a function from the parameters to such a tree.

    Returns:
      An `Optimizer` whose state is the tuple of the groups' states. Each sees a tree with None in place of the leaves
      of the others, so norms and clipping inside are of the group alone.

    Raises:
      ConfigError: no groups, a member that is no optimizer, a pattern that fits no leaf, a leaf in no group, a label
        without an optimizer, a tree of labels that lacks one of the groups, parameters in `ravel`'s layout, or a state
        of other groups. A function may choose none: matrices, say, where there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = optimizers.partition({"0": None, "*/bias": optimizers.sgd(0.5), "*": optimizers.sgd(0.1)})
      >>> params = ({"kernel": jnp.ones(1)}, {"bias": jnp.ones(1), "kernel": jnp.ones(1)})
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> updates
      ({'kernel': Array([0.], dtype=float32)},
       {'bias': Array([-0.5], dtype=float32), 'kernel': Array([-0.1], dtype=float32)})
      >>> labels = ("still", {"bias": "fast", "kernel": "slow"})
      >>> rules = {"still": None, "fast": optimizers.sgd(0.5), "slow": optimizers.sgd(0.1)}
      >>> optimizer = optimizers.partition(rules, labels)  # the same

    Source: the parameter groups of PyTorch; `optax.partition`.
    """
    pairs = list(groups.items()) if isinstance(groups, Mapping) else groups if isinstance(groups, (list, tuple)) else ()
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ConfigError(
            f"groups must map which leaves to their optimizer, got {words.came(groups)}; for example "
            f"{{'0/*': sgd(1e-3), '*': adam(1e-3)}}"
        )
    cases = []
    for which, one in pairs:
        with named(f"partition[{which!r}]"):
            cases.append((which, None if one is None else member(one)))
    if labels is not None and not isinstance(groups, Mapping):
        raise ConfigError(f"with labels, groups must map labels to optimizers, got {words.came(groups)}")
    if labels is not None and not callable(labels):
        check_labels(labels, groups, every=True)

    def parts(tree):
        return parted(tree, cases) if labels is None else labelled(tree, labels, list(groups))

    def init(params):
        if hasattr(params, "unravel"):
            raise ConfigError("parameters in flat layout have no leaves to choose from; keep the tree (no ravel)")
        trees.parameters(params)
        return tuple(
            () if one is None else _in_group(which, one.init)(_those(mine, params))
            for (which, one), mine in zip(cases, parts(params), strict=True)
        )

    def update(updates, state, params=None, **extra_args):
        if type(state) not in (tuple, list) or len(state) != len(cases):
            raise ConfigError(
                f"this state is not a tuple of the states of {len(cases)} groups; pass the state that this "
                f"optimizer's init or last update returned"
            )
        trees.gradients(updates, params)
        total, states = jax.tree.map(jnp.zeros_like, updates), []
        for (which, one), mine, its_state in zip(cases, parts(updates), state, strict=True):
            if one is not None:
                its_params = None if params is None else _those(mine, params)
                change = _in_group(which, updated)
                its_updates, its_state = change(one, _those(mine, updates), its_state, its_params, extra_args)
                total = jax.tree.map(lambda new, old: old if new is None else new, its_updates, total, is_leaf=_is_none)
            states.append(its_state)
        return total, tuple(states)

    def rate(before, after):
        groups = {}
        for i, ((which, one), *states) in enumerate(zip(cases, before, after, strict=True)):
            name = which if isinstance(which, str) else str(i)
            groups |= {} if one is None else rates.columns(one, *states, of=name)
        return rates.Rate(groups)

    return rates.saying(Optimizer(init, update), rate)


def _those(mine: Any, tree: Any) -> Any:
    return jax.tree.map(lambda on, leaf: leaf if on else None, mine, tree)


def _is_none(value: Any) -> bool:
    return value is None


def _in_group(which: Any, function: Any) -> Any:
    def call(*args):
        with located(f"partition[{which!r}]"):
            return function(*args)

    return call

"""Leaves that are not learned: kept out of all that a step does with parameters, for they are a part of the network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _words as words
from jaxnet.errors import ConfigError
from jaxnet.layers.inside import looked_into, rebuilt
from jaxnet.layers.layer import Layer, Params, State
from jaxnet.paths import Which, checked, listed, select, text


def mask(params: Params, freeze: Which) -> Any:
    """A tree of bools: which leaves are frozen; some must be, and not all."""
    if hasattr(params, "unravel"):
        raise ConfigError(
            "parameters in flat layout have no leaves to freeze; keep the tree (no layers.raveled), or freeze a part "
            "and ravel the rest: chain(layers.frozen(backbone, params, state), layers.raveled(head))"
        )
    frozen = select(params, checked("freeze", freeze))
    flags = jax.tree.leaves(frozen)
    if not any(flags) or all(flags):
        names = listed([text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
        raise ConfigError(
            f"freeze={words.came(freeze)} chooses "
            f"{'all leaves, and none is left to learn' if any(flags) else 'no leaf'}; the paths are {names}"
        )
    return frozen


def learned(params: Params, freeze: Which | None) -> Params:
    """The parameters that the optimizer sees: None in the place of those that are frozen."""
    if freeze is None:
        return params
    return jax.tree.map(lambda frozen, leaf: None if frozen else leaf, mask(params, freeze), params)


def freezing(make: Callable[[Any], Any], net: Layer, freeze: Which, optimizer: Any) -> Any:
    """The step that ``make`` makes of a network, of which it sees as parameters only what is not frozen."""

    def step(train_state, batch):
        if not hasattr(train_state, "params"):
            return make(net)(train_state, batch)  # which refuses it
        frozen = mask(train_state.params, freeze)
        part = learned(train_state.params, freeze)
        rest = jax.tree.map(lambda frozen, leaf: leaf if frozen else None, frozen, train_state.params)
        running = in_evaluation(net, frozen)

        def apply(params, state, x, *, train, key=None):
            return running.apply(_whole(params, rest), state, x, train=train, key=key)

        try:
            after, measured = make(net._replace(apply=apply))(train_state._replace(params=part), batch)
        except (ValueError, TypeError) as error:
            _made_for_them(optimizer, part, train_state.opt_state, error)
            raise
        guard = after.guard._replace(leaf=_counted_in_all(frozen, after.guard.leaf, measured["skipped"]))
        return after._replace(params=_whole(after.params, rest), guard=guard), measured

    return step


def as_trained(net: Layer, params: Params, freeze: Which | None) -> Layer:
    """The network as a step with this ``freeze`` runs it."""
    return net if freeze is None else in_evaluation(net, mask(params, freeze))


def in_evaluation(net: Layer, frozen: Any) -> Layer:
    """The network with each part in evaluation, its state kept, all of whose parameters are frozen."""
    flags = jax.tree.leaves(frozen)
    if flags and all(flags):
        return _kept(net)
    parts = looked_into(net)
    if any(flags) and net.about.parts and not parts:
        raise ConfigError(
            f"in a {net.name} some leaves are frozen, and no part of it can be put in evaluation: others cannot "
            f"go into it; freeze all of it, or give the network inside it (not layers.watched, nor layers.raveled)"
        )
    if not any(flags) or not parts:
        return net
    if net.about.trees != "apart":
        trees = [frozen]
    else:
        trees = [frozen[label] for label, _ in parts] if isinstance(frozen, dict) else frozen
    return rebuilt(net, (in_evaluation(part, tree) for (_, part), tree in zip(parts, trees, strict=True)))


def _kept(layer: Layer) -> Layer:
    def apply(params, state, x, *, train, key=None):
        del train, key
        return layer.apply(params, state, x, train=False)[0], state

    return layer._replace(apply=apply).described(parts=(), rebuild=None, statistics=None)


def _whole(learned: Params, rest: Any) -> Params:
    return jax.tree.map(lambda a, b: b if a is None else a, learned, rest, is_leaf=lambda leaf: leaf is None)


def _made_for_them(optimizer: Any, part: Params, opt_state: State, error: Exception) -> None:
    """Says so where a step fails since the optimizer's state is for other leaves."""
    wanted, came = jax.tree.structure(jax.eval_shape(optimizer.init, part)), jax.tree.structure(opt_state)
    if wanted != came:
        raise ConfigError(
            "the optimizer's state was made for other leaves than those that learn; give training.init the same "
            "freeze= as the step"
        ) from error


def _counted_in_all(frozen: Any, leaf: jax.Array, skipped: jax.Array) -> jax.Array:
    """The number among all leaves of one that a step has just counted among those that learn."""
    places = jnp.asarray([i for i, one in enumerate(jax.tree.leaves(frozen)) if not one], jnp.int32)
    return jnp.where((skipped > 0) & (leaf >= 0), places[leaf], leaf)

"""Composition: chain, residual, parallel. Each splits its key over its parts and pairs them strictly with params."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import _words as words
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError, located, named
from jaxnet.layers.layer import (
    Around,
    Layer,
    applied,
    as_layer,
    entered,
    initialized,
    layer,
    output_struct,
    parameterless,
    ran,
)
from jaxnet.layers.protocol import of_x_alone


@made
def chain(*parts: Layer | Callable[..., Any]) -> Layer:
    """Composes layers one after the other: f(x) = g_L(... g_2(g_1(x))), eq. 4.24.

    Args:
      *parts: layers, and bare callables (``jnp.tanh``, ``activations.relu``) as layers without parameters.

    Returns:
      A layer whose params and state are tuples with one entry a part.

    Raises:
      ConfigError: no parts, a part that is neither a layer nor callable, or params, or a state, of another network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import activations, layers
      >>> net = layers.chain(layers.dense(16), activations.relu, layers.dense(3))
      >>> params, state = net.init(0, jnp.ones((1, 5)))
      >>> params[2]["kernel"].shape
      (16, 3)

    Source: chapter 4.5, eq. 4.24.
    """
    if not parts:
        raise ConfigError("at least one part is needed, got none; the identity is chain(lambda x: x)")
    return composed("chain", _members("chain", parts), lambda outputs: outputs[-1], chain, in_a_row=True)


@made
def residual(branch: Layer | Callable[..., Any], shortcut: Layer | Callable[..., Any] | None = None) -> Layer:
    """Adds a layer's input to its output, y = branch(x) + shortcut(x), so that gradients have a way around it.

    Tuples, dicts and other pytrees are added entry by entry. Of what only goes along in them (integers, bools, keys)
    the shortcut's is passed on.

    Args:
      branch: the layer to go around.
      shortcut: what the input passes through on its way around, for example ``layers.conv(filters, 1)`` where the
        number of channels changes; the identity unless given.

    Returns:
      A layer whose params and state are dicts with the keys ``branch`` and ``shortcut``.

    Raises:
      ConfigError: a part that is neither a layer nor callable.
      ShapeError: the two outputs differ in structure or shape; they are never broadcast.
      DTypeError: they differ in dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> block = layers.residual(layers.conv(8, 3, padding="same"))
      >>> params, state = block.init(0, jnp.ones((1, 16, 8)))
      >>> block.apply(params, state, jnp.ones((2, 16, 8)), train=False)[0].shape
      (2, 16, 8)

    Source: chapter 4.6.3; He et al. 2015, arXiv 1512.03385.
    """
    around = parameterless(_same, "identity") if shortcut is None else as_layer(shortcut)
    members = {"branch": as_layer(branch), "shortcut": around}
    both = composed("residual", members, _branch_and_shortcut, residual, labelled=True)

    def init(key, x):
        params, state = both.init(key, x)
        output_struct(both, params, state, checks.structs(x))  # refuses what does not add up
        return params, state

    return both._replace(init=entered("residual", init, "init"))


@made
def parallel(*branches: Layer | Callable[..., Any], combine: Callable[[Sequence[Any]], Any] | str = "tuple") -> Layer:
    """Applies several layers to the same input: y = (f_1(x), f_2(x), ...), or what ``combine`` makes of them.

    Args:
      *branches: the layers.
      combine: what becomes of the outputs: "tuple" (as they are), "concatenate" (along the channels), "sum",
        "mean", or a function of the list of outputs.

    Returns:
      A layer whose params and state are tuples with one entry a branch.

    Raises:
      ConfigError: no branches, or an unknown ``combine``.
      ShapeError: outputs that must be of one shape, or of one shape but for the channels, are not.
      DTypeError: outputs to be combined differ in dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.parallel(
      ...     layers.conv(4, 3, padding="same"), layers.conv(4, 5, padding="same"), combine="concatenate")
      >>> params, state = net.init(0, jnp.ones((1, 16, 2)))
      >>> net.apply(params, state, jnp.ones((2, 16, 2)), train=False)[0].shape
      (2, 16, 8)
    """
    if not branches:
        raise ConfigError("at least one branch is needed, got none")
    if not callable(combine):
        checks.choice("combine", combine, tuple(_COMBINE))
    join = combine if callable(combine) else _COMBINE[combine]

    def rebuild(*parts):
        return parallel(*parts, combine=combine)

    return composed("parallel", _members("parallel", branches), join, rebuild, waits=not callable(combine))


def _same(x: Any) -> Any:
    return x


def _branch_and_shortcut(outputs: Sequence[Any]) -> Any:
    return _added(*outputs)


def _added(branch: Any, shortcut: Any) -> Any:
    """branch + shortcut, leaf by leaf."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(branch)
    if structure != jax.tree.structure(shortcut):
        raise ShapeError(
            f"the branch gives {checks.describe(branch)} and the shortcut {checks.describe(shortcut)}; "
            f"they must have one structure: let the branch give all that it gets, or give a shortcut that takes the "
            f"same parts; a parallel gives one array with combine='sum' or 'concatenate'"
        )
    total = []
    for (path, y), bypass in zip(leaves, jax.tree.leaves(shortcut), strict=True):
        place = jax.tree_util.keystr(path)
        if jnp.shape(y) != jnp.shape(bypass):
            raise ShapeError(
                f"the branch gives {jnp.shape(y)} and the shortcut {jnp.shape(bypass)}"
                f"{f' at {place}' if place else ''}; keep the shape in the branch (padding='same', as many filters as "
                f"channels), or give a shortcut such as layers.conv(filters, 1)"
            )
        with named(f"residual{place}"):
            checks.same_dtype(branch=y, shortcut=bypass)
        adds = not place or jnp.issubdtype(y.dtype, jnp.inexact)
        total.append(y + bypass if adds else bypass)
    return structure.unflatten(total)


def _arrays(outputs):
    for i, y in enumerate(outputs):
        if not hasattr(y, "shape"):
            raise ShapeError(
                f"to be combined, each branch must give one array, but [{i}] gives {checks.describe(y)}; "
                f"keep combine='tuple', or give a function of the list of outputs"
            )
    checks.same_dtype(**{f"[{i}]": y for i, y in enumerate(outputs)})
    return [y.shape for y in outputs]


def _concatenate(outputs):
    shapes = _arrays(outputs)
    if len({shape[:-1] for shape in shapes}) > 1:
        raise ShapeError(
            f"outputs to concatenate may differ in channels alone, got shapes {', '.join(map(str, shapes))}"
        )
    return jnp.concatenate(outputs, axis=-1)


def _sum(outputs):
    shapes = _arrays(outputs)
    if len(set(shapes)) > 1:
        raise ShapeError(f"outputs to add must have one shape, got {', '.join(map(str, shapes))}")
    total = outputs[0]
    for y in outputs[1:]:
        total = total + y
    return total


def _mean(outputs):
    total = _sum(outputs)
    return total / jnp.asarray(len(outputs), total.dtype)


_COMBINE: dict[str, Callable[[Sequence[Any]], Any]] = {
    "tuple": tuple,
    "concatenate": _concatenate,
    "sum": _sum,
    "mean": _mean,
}


def _members(name: str, parts: Sequence[Any]) -> dict[str, Layer]:
    members = {}
    for i, part in enumerate(parts):
        with named(f"{name}[{i}]"):
            members[str(i)] = as_layer(part)
            of_x_alone(part)
    return members


def composed(
    name: str,
    members: dict[str, Layer],
    join: Callable[[list[Any]], Any],
    rebuild: Callable[..., Layer],
    *,
    in_a_row: bool = False,
    labelled: bool = False,
    waits: bool = True,
) -> Layer:
    """All members on one input, or ``in_a_row`` each on the output of the one before.

    ``join`` makes the output of theirs; fed piece by piece, of what all have so far, if it ``waits``. Params and state
    are tuples with one entry a member, or dicts by label.
    """
    places = [f"{name}.{label}" if labelled else f"{name}[{label}]" for label in members]
    parts = tuple(members.values())

    def pack(values):
        return dict(zip(members, values, strict=True)) if labelled else tuple(values)

    def entries(which, tree):
        if labelled and isinstance(tree, dict) and tree.keys() == members.keys():
            return [tree[label] for label in members]
        if not labelled and isinstance(tree, (tuple, list)) and len(tree) == len(members):
            return tree
        raise ConfigError(_misfit(which, tree, members, labelled))

    def init(key, x):
        drawn = []
        for place, member, part_key in zip(places, parts, drawing.split(checks.key(key), len(parts)), strict=True):
            with located(place, member.name):
                params, state = initialized(member.init(part_key, x))
                x = output_struct(member, params, state, x) if in_a_row else x
            drawn.append((params, state))
        all_params, all_states = zip(*drawn, strict=True)
        return pack(all_params), pack(all_states)

    def apply(params, state, x, *, train, key):
        params, state = entries("params", params), entries("state", state)
        keys = _keys(key, len(parts))
        outputs, states = [], []
        for place, member, p, s, part_key in zip(places, parts, params, state, keys, strict=True):
            with applied(place, member):
                y, s = ran(member.apply(p, s, x, train=train, key=part_key))
            x, outputs = (y, [y]) if in_a_row else (x, [*outputs, y])
            states.append(s)
        return join(outputs), pack(states)

    def apart(*parts):
        return composed(name, dict(zip(members, parts, strict=True)), tuple, rebuild, labelled=labelled)

    stream = None if in_a_row or join is tuple else Around(apart, join, waits)
    return layer(name, init, apply, parts=tuple(members.items()), rebuild=rebuild, stream=stream)


def _keys(key: Any, n: int) -> Sequence[Any]:
    if key is None:
        return [None] * n
    with jax.named_scope("keys"):
        return list(jax.random.split(checks.key(key), n))


def _misfit(which: str, tree: Any, members: dict[str, Layer], labelled: bool) -> str:
    """What to say of params, or of a state, that are another network's."""
    if labelled:
        got = f"a dict of {', '.join(map(str, tree))}" if isinstance(tree, dict) else words.came(tree)
        return f"{which} must be a dict of {', '.join(members)}, got {got}; pass what this layer's init returned"
    got = f"{type(tree).__name__} of {len(tree)}" if isinstance(tree, (tuple, list, dict)) else words.came(tree)
    wanted = f"a tuple of {len(members)}, one entry a part"
    return f"{which} must be {wanted}, got {got}; pass what this network's init returned"

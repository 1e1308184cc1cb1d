"""Composition: chain, residual, parallel. Each splits its key over its parts and pairs them strictly with params."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks_named as checks
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError, located
from jaxnet.layers.layer import Layer, applied, as_layer, output_struct, stateless


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
    who = "chain"
    if not parts:
        raise ConfigError("chain: at least one part is needed, got none; the identity is chain(lambda x: x)")
    members = [as_layer(part, f"chain[{i}]") for i, part in enumerate(parts)]

    def init(key, x):
        keys = jax.random.split(checks.key(who, key), len(members))
        x = checks.structs(who, x)
        params, state = [], []
        for i, (member, part_key) in enumerate(zip(members, keys, strict=True)):
            with located(f"chain[{i}]"):
                part_params, part_state = member.init(part_key, x)
                x = output_struct(member, part_params, part_state, x)
            params.append(part_params)
            state.append(part_state)
        return tuple(params), tuple(state)

    def apply(params, state, x, *, train, key=None):
        checks.flag(who, "train", train)
        _check_parts(who, "params", params, len(members))
        _check_parts(who, "state", state, len(members))
        states = []
        for i, (member, p, s, k) in enumerate(zip(members, params, state, _keys(who, key, len(members)), strict=True)):
            with applied(f"chain[{i}]", member):
                x, s = member.apply(p, s, x, train=train, key=k)
            states.append(s)
        return x, tuple(states)

    return Layer(init, apply, who, tuple((str(i), m) for i, m in enumerate(members)), chain)


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
    who = "residual"
    around = _identity() if shortcut is None else as_layer(shortcut, who)
    both = _side_by_side(who, {"branch": as_layer(branch, who), "shortcut": around})

    def init(key, x):
        params, state = both.init(key, x)
        jax.eval_shape(lambda p, s, v: apply(p, s, v, train=False), params, state, checks.structs(who, x))
        return params, state

    def apply(params, state, x, *, train, key=None):
        outputs, state = both.apply(params, state, x, train=train, key=key)
        return _added(outputs["branch"], outputs["shortcut"]), state

    return Layer(init, apply, who, both.parts, residual)


@made
def parallel(*branches: Layer | Callable[..., Any], combine: Callable[[Sequence[Any]], Any] | str = "tuple") -> Layer:
    """Applies several layers to the same input.

    Args:
      *branches: the layers.
      combine: what becomes of the outputs: "tuple" (as they are), "concatenate" (along the channels), "sum",
        "mean", or a function of the list of outputs.

    Returns:
      A layer whose params and state are tuples with one entry a branch.

    Raises:
      ConfigError: no branches, or an unknown ``combine``.
      ShapeError: outputs that must be of one shape, or of one shape but for the channels, are not.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.parallel(
      ...     layers.conv(4, 3, padding="same"), layers.conv(4, 5, padding="same"), combine="concatenate")
      >>> params, state = net.init(0, jnp.ones((1, 16, 2)))
      >>> net.apply(params, state, jnp.ones((2, 16, 2)), train=False)[0].shape
      (2, 16, 8)
    """
    who = "parallel"
    if not branches:
        raise ConfigError("parallel: at least one branch is needed, got none")
    if not callable(combine):
        checks.choice(who, "combine", combine, tuple(_COMBINE))
    join = combine if callable(combine) else _COMBINE[combine]
    members = _side_by_side(who, {str(i): as_layer(b, f"{who}[{i}]") for i, b in enumerate(branches)}, labelled=False)

    def apply(params, state, x, *, train, key=None):
        outputs, state = members.apply(params, state, x, train=train, key=key)
        return join(outputs), state

    def rebuild(*parts):
        return parallel(*parts, combine=combine)

    return Layer(members.init, apply, who, members.parts, rebuild)


@made
def _identity() -> Layer:
    return stateless(lambda key, x: (), lambda params, x: x, name="identity")


def _added(branch: Any, shortcut: Any) -> Any:
    """branch + shortcut, leaf by leaf."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(branch)
    if structure != jax.tree.structure(shortcut):
        raise ShapeError(
            f"residual: the branch gives {checks.describe(branch)} and the shortcut {checks.describe(shortcut)}; "
            f"they must have one structure: let the branch give all that it gets, or give a shortcut that takes the "
            f"same parts; a parallel gives one array with combine='sum' or 'concatenate'"
        )
    total = []
    for (path, y), bypass in zip(leaves, jax.tree.leaves(shortcut), strict=True):
        place = jax.tree_util.keystr(path)
        if jnp.shape(y) != jnp.shape(bypass):
            raise ShapeError(
                f"residual: the branch gives {jnp.shape(y)} and the shortcut {jnp.shape(bypass)}"
                f"{f' at {place}' if place else ''}; keep the shape in the branch (padding='same', as many filters as "
                f"channels), or give a shortcut such as layers.conv(filters, 1)"
            )
        checks.same_dtype(f"residual{place}", branch=y, shortcut=bypass)
        adds = not place or jnp.issubdtype(y.dtype, jnp.inexact)
        total.append(y + bypass if adds else bypass)
    return structure.unflatten(total)


def _arrays(outputs):
    for i, y in enumerate(outputs):
        if not hasattr(y, "shape"):
            raise ShapeError(
                f"parallel: to be combined, each branch must give one array, but [{i}] gives {checks.describe(y)}; "
                f"keep combine='tuple', or give a function of the list of outputs"
            )
    checks.same_dtype("parallel", **{f"[{i}]": y for i, y in enumerate(outputs)})
    return [y.shape for y in outputs]


def _concatenate(outputs):
    shapes = _arrays(outputs)
    if len({shape[:-1] for shape in shapes}) > 1:
        raise ShapeError(
            f"parallel: outputs to concatenate may differ in channels alone, got shapes {', '.join(map(str, shapes))}"
        )
    return jnp.concatenate(outputs, axis=-1)


def _sum(outputs):
    shapes = _arrays(outputs)
    if len(set(shapes)) > 1:
        raise ShapeError(f"parallel: outputs to add must have one shape, got {', '.join(map(str, shapes))}")
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


def _side_by_side(who: str, members: dict[str, Layer], *, labelled: bool = True) -> Layer:
    """All members on one input; outputs, params and state are dicts by label, or tuples."""
    labels = tuple(members)

    def pack(values):
        return dict(zip(labels, values, strict=True)) if labelled else tuple(values)

    def unpack(name, tree):
        if not labelled:
            _check_parts(who, name, tree, len(labels))
            return tree
        if not isinstance(tree, dict) or set(tree) != set(labels):
            got = f"a dict of {', '.join(map(str, tree))}" if isinstance(tree, dict) else type(tree).__name__
            raise ConfigError(
                f"{who}: {name} must be a dict of {', '.join(labels)}, got {got}; pass what this layer's init returned"
            )
        return [tree[label] for label in labels]

    def place(label):
        return f"{who}.{label}" if labelled else f"{who}[{label}]"

    def init(key, x):
        keys = jax.random.split(checks.key(who, key), len(labels))
        params, state = [], []
        for label, part_key in zip(labels, keys, strict=True):
            with located(place(label)):
                part_params, part_state = members[label].init(part_key, x)
            params.append(part_params)
            state.append(part_state)
        return pack(params), pack(state)

    def apply(params, state, x, *, train, key=None):
        checks.flag(who, "train", train)
        outputs, states = [], []
        keys = _keys(who, key, len(labels))
        for label, p, s, k in zip(labels, unpack("params", params), unpack("state", state), keys, strict=True):
            with applied(place(label), members[label]):
                y, s = members[label].apply(p, s, x, train=train, key=k)
            outputs.append(y)
            states.append(s)
        return pack(outputs), pack(states)

    return Layer(init, apply, who, tuple(members.items()))


def _keys(who: str, key: Any, n: int) -> Iterator[Any]:
    if key is None:
        return iter([None] * n)
    with jax.named_scope("keys"):
        return iter(list(jax.random.split(checks.key(who, key), n)))


def _check_parts(who: str, name: str, tree: Any, n: int) -> None:
    if not isinstance(tree, (tuple, list)) or len(tree) != n:
        got = f"{type(tree).__name__} of {len(tree)}" if isinstance(tree, (tuple, list, dict)) else type(tree).__name__
        raise ConfigError(
            f"{who}: {name} must be a tuple of {n}, one entry a part, got {got}; pass what this network's init returned"
        )

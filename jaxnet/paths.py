"""The parts of a tree by name: ``"0/branch/kernel"`` is the kernel of the branch of the first part of a chain.

One way to say which leaves are meant, wherever some of them are: a pattern of their paths, or of those that are not
meant, several patterns, a function of a leaf's path and the leaf, or a tree of bools.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from jaxnet import _words as words
from jaxnet.errors import ConfigError

__all__ = ["paths", "select"]

Which = str | Sequence[str] | Callable[[str, Any], bool] | Any
"""Which leaves: see `select`."""

_LISTED = 12  # paths in a message


def paths(tree: Any) -> Any:
    """The tree with every leaf's path in its place.

    Args:
      tree: any pytree.

    Returns:
      ``tree`` with a string in place of every leaf; a tree that is one leaf has the path "".

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> from jaxnet.paths import paths
      >>> params, state = layers.chain(layers.dense(2), jnp.tanh, layers.dense(1, bias=False)).init(0, jnp.ones((1, 3)))
      >>> paths(params)
      ({'bias': '0/bias', 'kernel': '0/kernel'}, (), {'kernel': '2/kernel'})
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: text(path), tree)


def text(path: Sequence[Any]) -> str:
    """A path of JAX's as one string, its steps apart by "/"."""
    return "/".join(str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))) for step in path)


def select(tree: Any, which: Which) -> Any:
    """A tree of bools: which leaves are meant.

    Args:
      tree: parameters, or any other pytree of arrays.
      which: a pattern of paths, such as ``"0/*"``, ``"*/bias"`` or ``"*"``, where ``*`` stands for anything, ``/``
        too, ``?`` for one character and ``[0-3]`` for one of some, and a path alone also stands for all below it;
        several patterns, of which one must fit; before a pattern, "!" leaves out what fits it, of what others choose or
        of all; a function ``(path, leaf) -> bool``; or a tree of bools, of which a prefix of the tree is enough.

    Returns:
      ``tree`` with a bool in place of every leaf.

    Raises:
      ConfigError: a pattern that fits no leaf, or what is none of these.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.paths import select
      >>> params = {"body": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": jnp.ones(3)}
      >>> select(params, "body")
      {'body': {'bias': True, 'kernel': True}, 'head': False}
      >>> select(params, ["*bias", "head"])
      {'body': {'bias': True, 'kernel': False}, 'head': True}
      >>> select(params, "!head")
      {'body': {'bias': True, 'kernel': True}, 'head': False}
      >>> select(params, lambda path, leaf: leaf.ndim > 1)
      {'body': {'bias': False, 'kernel': True}, 'head': False}
    """
    if _are_patterns(which):
        several: Any = which
        return _by_patterns(tree, [which] if isinstance(which, str) else list(several))
    if callable(which):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _bool(which(text(path), leaf), text(path)), tree)
    return _spread(tree, which)


def chosen(tree: Any, which: Which) -> Any:
    """As `select`, where a function that chooses nothing is refused, as a pattern is that fits nothing.

    Raises:
      ConfigError: as `select`; a function that says False of every leaf.
    """
    flags = select(tree, which)
    return some(flags) if callable(which) else flags


def some(flags: Any) -> Any:
    """A tree of bools that a function made, refused if all of several are False.

    Raises:
      ConfigError: no leaf was chosen.
    """
    if jax.tree.leaves(flags) and not any(jax.tree.leaves(flags)):
        raise ConfigError(
            f"the function chooses no leaf, and so would do nothing; it was asked of "
            f"{listed(jax.tree.leaves(paths(flags)))}"
        )
    return flags


def checked(called: str, which: Which) -> Which:
    """``which`` as it came, refused as far as that can be without a tree.

    Raises:
      ConfigError: it is nothing that `select` takes.
    """
    if not callable(which) and not _are_patterns(which):
        for path, leaf in jax.tree_util.tree_leaves_with_path(which):
            if not _is_bool(leaf):
                at = "" if not path or hasattr(which, "init") else f" with {words.came(leaf)} at {text(path)}"
                raise ConfigError(
                    f"{called} must be a tree of bools, patterns of paths, or a function of path and leaf, got "
                    f"{words.came(which)}{at}{_as_pattern(which)}"
                )
    return which


def _as_pattern(which: Any) -> str:
    """How to choose what stands where a choice is wanted."""
    if isinstance(which, int):
        return f"; all of a chain's part {which} is {str(which)!r}"
    if hasattr(which, "init"):
        return "; give its place in the network, such as '0', all of a chain's first part"
    return ""


def _are_patterns(which: Any) -> bool:
    several = isinstance(which, (list, tuple)) and len(which) > 0
    return isinstance(which, str) or (several and all(isinstance(one, str) for one in which))


def _by_patterns(tree: Any, patterns: list[str]) -> Any:
    every = [text(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for pattern in patterns:
        if every and not any(_fits(path, pattern.removeprefix("!")) for path in every):
            raise ConfigError(
                f"the pattern {pattern!r} fits no leaf; the paths are {listed(every)}{_left_out(tree, pattern)}; '*' "
                f"stands for anything"
            )
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]

    def chosen(path, _):
        one = text(path)
        return any(_fits(one, pattern) for pattern in wanted) and not any(_fits(one, pattern) for pattern in without)

    return jax.tree_util.tree_map_with_path(chosen, tree)


def _left_out(tree: Any, pattern: str) -> str:
    """Says so where a pattern fits what a tree has None in the place of."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
    if not any(leaf is None and _fits(text(path), pattern.removeprefix("!")) for path, leaf in leaves):
        return ""
    return "; what it fits is left out here, as freeze= leaves out what does not learn: take the pattern away"


def _fits(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def _spread(tree: Any, which: Any, called: str = "bools", read: Callable[[Any], Any] | None = None) -> Any:
    """The tree with what stands for a leaf in a prefix of the tree in its place."""
    read = read or _bool
    try:
        return jax.tree.map(lambda value, below: jax.tree.map(lambda _: read(value), below), which, tree)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"a tree of {called} must be a prefix of the tree, got {words.came(which)} for "
            f"{words.came(tree)}; or give a pattern of paths, such as '0/*', or a function of path and leaf"
        ) from error


def _is_bool(value: Any) -> bool:
    arrays = isinstance(value, (np.ndarray, np.generic, jax.Array))
    return isinstance(value, bool) or (arrays and value.dtype == np.bool_ and value.shape == ())


def _bool(value: Any, path: str = "") -> bool:
    if _is_bool(value):
        return bool(value)
    place = f" for {path}" if path else ""
    raise ConfigError(f"leaves are chosen by True or False, got {words.came(value)}{place}")


def listed(names: Sequence[str]) -> str:
    """The names, of many the first."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def parted(tree: Any, cases: Sequence[tuple[Which, Any]] | Mapping[Which, Any]) -> list[Any]:
    """For every case a tree of bools: each leaf belongs to the first case that chooses it.

    Raises:
      ConfigError: a leaf that none chooses, or a pattern of leaves that all belong to cases before; as `select`.
    """
    taken = jax.tree.map(lambda _: False, tree)
    parts = []
    for which, _ in cases.items() if isinstance(cases, Mapping) else cases:
        meant = select(tree, which)  # a function may choose none, such as matrices where there are none
        mine = jax.tree.map(lambda on, gone: on and not gone, meant, taken)
        if isinstance(which, str) and which != "*" and any(jax.tree.leaves(meant)) and not any(jax.tree.leaves(mine)):
            raise ConfigError(f"all that {which!r} chooses belongs to cases before it; put it before them")
        taken = jax.tree.map(lambda gone, on: gone or on, taken, mine)
        parts.append(mine)
    left = [text(path) for path, gone in jax.tree_util.tree_leaves_with_path(taken) if not gone]
    if left:
        raise ConfigError(f"no case is for {listed(left)}; end with '*', which is for all the rest")
    return parts


def labelled(tree: Any, labels: Any, names: Sequence[Any]) -> list[Any]:
    """For every name a tree of bools: which leaves have it as their label.

    Raises:
      ConfigError: labels that are no prefix of the tree; as `check_labels`, but that names may have no leaf.
    """
    labels = labels(tree) if callable(labels) else labels
    check_labels(labels, names)
    of_leaves = _spread(tree, labels, "labels", lambda label: label)
    return [jax.tree.map(lambda label, name=name: label == name, of_leaves) for name in names]


def check_labels(labels: Any, names: Iterable[Any], every: bool = False) -> None:
    """Refuses a tree of labels that has one that is no name; with ``every``, also one that lacks a name.

    Raises:
      ConfigError: so.
    """
    left, there = set(names), ", ".join(map(repr, names))
    for path, label in jax.tree_util.tree_leaves_with_path(labels):
        if not isinstance(label, Hashable) or label not in names:
            place = f" of {text(path)}" if path else ""
            raise ConfigError(f"the label {label!r}{place} is for no group; the groups are {there}")
        left.discard(label)
    if every and left:
        raise ConfigError(
            f"no leaf has the label {', '.join(sorted(map(repr, left)))}; take the group away, or label some leaf"
        )

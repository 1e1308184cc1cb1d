"""Checks of what ``init`` and ``update`` are given: parameters, gradients, states. They cost nothing at run time."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from jaxnet.optimizers._arithmetic import wide_dtype

_LISTED = 8  # paths per kind in a message; a whole foreign network would fill the screen


def state_is(state: Any, wanted: type) -> None:
    """Refuses the state of another optimizer; any that holds nothing is an empty one."""
    empty = not getattr(wanted, "_fields", ()) and not jax.tree.leaves(state)
    if not (empty or isinstance(state, wanted)):
        came = "None" if state is None else f"{type(state).__module__}.{type(state).__qualname__}"
        raise ConfigError(
            f"this state is not {'an' if wanted.__name__[0] in 'AEIO' else 'a'} {wanted.__name__}, "
            f"it is {came}; pass the state that this optimizer's init or last update returned"
        )


def need_params(params: Any, why: str) -> None:
    """Refuses a call without parameters, where the rule needs them."""
    if params is None:
        raise ConfigError(f"{why} needs the parameters; call update(gradients, state, params)")


def parameters(params: Any, kept_in: Any = None) -> None:
    """Refuses trees with leaves that no gradient can train, or whose moments the dtype ``kept_in`` cannot hold."""
    _no_masks("the parameters", params)
    _floating("the parameters", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf) and kept_in is not None and not jnp.issubdtype(kept_in, jnp.complexfloating):
            raise DTypeError(
                f"the parameter at {_name(path)} is complex, and its momentum would lose its imaginary part in "
                f"{kept_in}; leave the accumulator's dtype out, or partition the tree"
            )


def gradients(grads: Any, params: Any, accumulator: Any = None) -> None:
    """Checks the gradients against the parameters, and against what the state holds for them."""
    if params is not None:
        same_tree("the gradients", grads, "the parameters", params)
    else:
        _no_masks("the gradients", grads)
        _floating("the gradients", grads)
    if accumulator is not None:
        same_tree("the gradients", grads, "the optimizer's state", accumulator, dtypes=False)


def _floating(name: str, tree: Any) -> None:
    bad = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        described = _described(leaf)
        if described is None:
            bad.append(f"{_name(path)}: {type(leaf).__name__} {leaf!r}")
        elif not jnp.issubdtype(described[1], jnp.inexact):
            bad.append(f"{_name(path)}: {described[1]} of shape {described[0]}")
    if bad:
        raise DTypeError(
            f"every leaf of {name} must be a floating-point array, got {_listing(bad)}; "
            f"keep other things outside the tree that is trained, or put None in their place"
        )


def same_tree(name: str, tree: Any, other_name: str, other: Any, *, dtypes: bool = True) -> None:
    """Refuses two trees of different structure, shapes or dtypes, listing every path that differs.

    Where ``other`` has less than 32 bits, ``tree`` may have float32: what is computed for 16 bits is that wide.
    """

    def fault(leaf, wanted):
        a, b = _described(leaf), _described(wanted)
        if a is None or b is None or a[0] != b[0]:
            return "of another shape", f"{_text(leaf)} for {_text(wanted)}"
        fits = not dtypes or a[1] == b[1] or (jnp.issubdtype(b[1], jnp.inexact) and a[1] == wide_dtype(b[1]))
        return None if fits else ("of another dtype", f"{a[1]} for {b[1]}")

    _no_masks(name, tree)
    _no_masks(other_name, other)
    (leaves, treedef), (other_leaves, other_treedef) = jax.tree.flatten(tree), jax.tree.flatten(other)
    if treedef == other_treedef and not any(map(fault, leaves, other_leaves)):
        return
    mine, theirs = _by_path(tree), _by_path(other)
    found = defaultdict(list)
    found["missing"] = [f"{path} {_text(theirs[path])}" for path in theirs if path not in mine]
    found["unexpected"] = [f"{path} {_text(mine[path])}" for path in mine if path not in theirs]
    for path in theirs:
        if path in mine and (one := fault(mine[path], theirs[path])):
            found[one[0]].append(f"{path}: {one[1]}")
    kinds = [kind for kind in ("missing", "unexpected", "of another shape", "of another dtype") if found[kind]]
    listed = [f"{kind}: {_listing(found[kind])}" for kind in kinds]
    message = f"{name} do not fit {other_name}; " + "; ".join(
        listed or [f"containers differ: {treedef} for {other_treedef}"]
    )
    if kinds == ["of another dtype"]:
        raise DTypeError(f"{message}; cast them: jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)")
    raise ShapeError(f"{message}; differentiate with respect to the tree that init saw")


def first_of_two(updates: Any, params: Any) -> None:
    """Refuses, in the place of the updates, both that ``update`` returns, or the second of them, a state."""
    wanted = jax.tree.structure(params)
    if not isinstance(updates, tuple) or not updates or jax.tree.structure(updates) == wanted:
        return
    states = any(hasattr(one, "_fields") for one in (updates, *updates)) and not hasattr(params, "_fields")
    if states or (len(updates) == 2 and jax.tree.structure(updates[0]) == wanted):
        came = "a state" if states else "both"
        raise ShapeError(
            f"the updates must be a tree like the parameters, got {came} that an optimizer returned; give the first "
            f"of the two: updates, opt_state = optimizer.update(gradients, opt_state, params)"
        )


def _described(leaf: Any) -> tuple[tuple[int, ...], Any] | None:
    """Shape and dtype of a leaf that is an array or a number, else None."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), leaf.dtype
    if isinstance(leaf, bool):
        return (), np.dtype(bool)
    return ((), jnp.result_type(leaf)) if isinstance(leaf, (int, float, complex)) else None


def _no_masks(name: str, tree: Any) -> None:
    """Refuses masked arrays, whose masks nothing here would see."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, np.ma.MaskedArray):
            checks.unmasked(f"{_name(path)} of {name}", leaf)


def _by_path(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the leaf"


def _text(leaf: Any) -> str:
    described = _described(leaf)
    return f"a {type(leaf).__name__}" if described is None else f"{described[1]}{list(described[0])}"


def _listing(items: list[str]) -> str:
    rest = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")

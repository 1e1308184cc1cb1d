"""Checks that optimizers share: hyperparameters where a rule is made, trees where it is traced.

None of them costs anything at run time.
"""

import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet import _checks_named as _checks
from jaxnet._checks_named import choice, flag, integer
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from jaxnet.optimizers._arithmetic import wide_dtype

__all__ = [
    "at",
    "choice",
    "flag",
    "float_dtype",
    "gradients",
    "integer",
    "kept",
    "need_params",
    "not_both_zero",
    "optimizer",
    "parameters",
    "same_tree",
    "scalar",
    "state_is",
    "stateless",
    "updated",
]

_LISTED = 8  # paths per kind in a message; a whole foreign network would fill the screen


def scalar(
    who: str,
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    schedule: bool = True,
) -> Any:
    """``value``, a hyperparameter: a number in the interval, a scalar array (traced or not), or a schedule."""
    wanted = "a float, a scalar array" + (", or a schedule: a function from step to value" if schedule else "")
    if callable(value):
        if not schedule:
            raise ConfigError(f"{who}: {name} takes no schedule, got {value!r}; pass {wanted}")
        return value
    if isinstance(value, (jax.Array, np.ndarray)):
        _scalar_array(who, name, value, wanted)
        if isinstance(value, Tracer):
            return value
        number = _number(who, name, value.item(), low, high, open_low, open_high, wanted)
        return value if isinstance(value, jax.Array) else number
    return _number(who, name, value, low, high, open_low, open_high, wanted)


def _number(who, name, value, low, high, open_low, open_high, wanted) -> float:
    try:
        return _checks.number(who, name, value, low=low, high=high, open_low=open_low, open_high=open_high)
    except ConfigError as error:
        raise ConfigError(f"{error.message}; pass {wanted}") from None


def _scalar_array(who: str, name: str, value: Any, wanted: str) -> None:
    if value.shape != ():
        raise ConfigError(
            f"{who}: {name} must be one number, got an array of shape {value.shape}; pass {wanted}. "
            f"To try several values at once, jax.vmap over one; to give groups of parameters values of their "
            f"own, use one optimizer per group (optax.partition)"
        )
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise ConfigError(f"{who}: {name} must be a real number, got dtype {value.dtype}; pass {wanted}")


def at(who: str, name: str, value: Any, count: jax.Array) -> Any:
    """The hyperparameter at step ``count``: a schedule is called, anything else is what it is.

    A NumPy number becomes a Python float, which takes the dtype of what it meets and imposes none.
    """
    if not callable(value):
        return value
    result: Any = value(count)
    if not isinstance(result, (int, float, jax.Array, np.ndarray, np.generic)):
        raise ConfigError(f"{who}: the schedule for {name} must return a number, got {result!r}")
    if np.shape(result) != ():
        raise ConfigError(
            f"{who}: the schedule for {name} must return one number per step, got shape {np.shape(result)}"
        )
    if not isinstance(result, Tracer) and not (math.isfinite(result) and float(result) >= 0):
        raise ConfigError(f"{who}: the schedule for {name} returned {result}; it must return finite numbers >= 0")
    return result if isinstance(result, jax.Array) else float(result)


def not_both_zero(who: str, eps: Any, eps_root: Any) -> None:
    """Refuses a denominator that is 0 where the gradient is."""
    if all(not callable(e) and not isinstance(e, Tracer) and float(e) == 0 for e in (eps, eps_root)):
        raise ConfigError(
            f"{who}: eps and eps_root are both 0, and a zero gradient would give 0 / 0 = NaN; "
            f"make one of them positive, for example eps=1e-8"
        )


def float_dtype(who: str, name: str, value: Any) -> Any:
    """``value`` as a floating-point (or complex) dtype that JAX has here, or None."""
    if value is None:
        return None
    try:
        dtype = jax.dtypes.canonicalize_dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise ConfigError(f"{who}: {name} must be a floating-point dtype such as jnp.float32, or None, got {value!r}")
    return dtype


def optimizer(who: str, value: Any) -> Any:
    """``value``, an (init, update) pair, ours or optax's; a plain tuple of the two becomes an `Optimizer`."""
    if is_plain_pair(value):
        from jaxnet.optimizers.base import Optimizer  # which needs these checks

        return Optimizer(*value)
    if isinstance(value, type) or not (
        callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
    ):
        hint = f"; call it first: {value.__name__}(...)" if inspect.isfunction(value) else ""
        raise ConfigError(f"{who}: an optimizer is a pair with init and update, got {value!r}{hint}")
    return value


def is_plain_pair(value: Any) -> bool:
    """Whether ``value`` is a tuple or list of two functions."""
    return type(value) in (tuple, list) and len(value) == 2 and all(map(callable, value))


def updated(who: str, optimizer: Any, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]) -> Any:
    """``optimizer.update(updates, state, params)``, with those of the extra arguments that it takes.

    Raises:
      ConfigError: it needs an extra argument that the caller did not give.
    """
    try:
        return optimizer.update(updates, state, params, **_taken(optimizer.update, extra_args))
    except TypeError as error:
        missing = re.search(
            r"update\w*\(\) missing \d+ required (?:keyword-only|positional) arguments?: (.*)$", str(error)
        )
        if missing is None:
            raise
        raise ConfigError(
            f"{who}: an optimizer inside needs {missing[1].replace(chr(39), '')}, and this update got "
            f"{', '.join(extra_args) or 'no extra arguments'}; call update(gradients, state, params, value=loss, ...). "
            f"optax.chain hands them to optax's own members only: there use jaxnet.optimizers.chain"
        ) from error


def _taken(update: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that an ``update`` takes: all, those that it names after the first three, or none."""
    try:
        parameters = inspect.signature(update).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return extra_args
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    first = list(parameters)[:3]
    named = {name for name, p in parameters.items() if p.kind in by_name and name not in first}
    return {name: value for name, value in extra_args.items() if name in named}


def state_is(who: str, state: Any, wanted: type) -> None:
    """Refuses the state of another optimizer."""
    if not isinstance(state, wanted):
        came = "None" if state is None else f"{type(state).__module__}.{type(state).__qualname__}"
        raise ConfigError(
            f"{who}: this state is not {'an' if wanted.__name__[0] in 'AEIO' else 'a'} {wanted.__name__}, "
            f"it is {came}; pass the state that this optimizer's init or last update returned"
        )


def stateless(who: str, state: Any) -> None:
    """Refuses a state that holds something, where the transformation has none."""
    if jax.tree.leaves(state):
        raise ConfigError(
            f"{who}: this state is not an EmptyState, it is {type(state).__module__}.{type(state).__qualname__}; "
            f"pass the state that this optimizer's init or last update returned"
        )


def need_params(who: str, params: Any, why: str) -> None:
    """Refuses a call without parameters, where the rule needs them."""
    if params is None:
        raise ConfigError(f"{who}: {why} needs the parameters; call update(gradients, state, params)")


def _described(leaf: Any) -> tuple[tuple[int, ...], Any] | None:
    """Shape and dtype of a leaf that is an array or a number, else None."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), leaf.dtype
    if isinstance(leaf, (float, complex)):
        return (), jnp.result_type(leaf)
    if isinstance(leaf, int):
        return (), np.dtype(bool) if isinstance(leaf, bool) else jnp.result_type(leaf)
    return None


def parameters(who: str, params: Any, kept_in: Any = None) -> None:
    """Refuses trees with leaves that no gradient can train, or whose moments the dtype ``kept_in`` cannot hold."""
    bad = []
    _no_masks(who, "the parameters", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        described = _described(leaf)
        if described is None:
            bad.append(f"{_name(path)}: {type(leaf).__name__} {leaf!r}")
        elif not jnp.issubdtype(described[1], jnp.inexact):
            bad.append(f"{_name(path)}: {described[1]} of shape {described[0]}")
        elif jnp.iscomplexobj(leaf) and kept_in is not None and not jnp.issubdtype(kept_in, jnp.complexfloating):
            raise DTypeError(
                f"{who}: the parameter at {_name(path)} is complex, and its momentum would lose its imaginary part in "
                f"{kept_in}; leave the accumulator's dtype out, or partition the tree"
            )
    if bad:
        raise DTypeError(
            f"{who}: every leaf of the parameters must be a floating-point array, got {_listing(bad)}; "
            f"keep other things outside the tree that is trained, or put None in their place"
        )


def gradients(who: str, grads: Any, params: Any, accumulator: Any = None) -> None:
    """Checks the gradients against the parameters, and against what the state holds for them."""
    if params is not None:
        same_tree(who, "the gradients", grads, "the parameters", params)
    else:
        _no_masks(who, "the gradients", grads)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            described = _described(leaf)
            if described is None or not jnp.issubdtype(described[1], jnp.inexact):
                what = type(leaf).__name__ if described is None else str(described[1])
                raise DTypeError(f"{who}: the gradient at {_name(path)} must be a floating-point array, got {what}")
    if accumulator is not None:
        same_tree(who, "the gradients", grads, "the optimizer's state", accumulator, dtypes=False)


def same_tree(who: str, name: str, tree: Any, other_name: str, other: Any, *, dtypes: bool = True) -> None:
    """Refuses two trees of different structure, shapes or dtypes, listing every path that differs.

    Where ``other`` has less than 32 bits, ``tree`` may have float32: what is computed for 16 bits is that wide.
    """

    def dtypes_fit(a, b):
        return not dtypes or a == b or (jnp.issubdtype(b, jnp.inexact) and a == wide_dtype(b))

    _no_masks(who, name, tree)
    _no_masks(who, other_name, other)
    leaves, treedef = jax.tree.flatten(tree)
    other_leaves, other_treedef = jax.tree.flatten(other)
    if treedef == other_treedef and all(
        a is not None and b is not None and a[0] == b[0] and dtypes_fit(a[1], b[1])
        for a, b in zip(map(_described, leaves), map(_described, other_leaves), strict=True)
    ):
        return
    mine, theirs = _by_path(tree), _by_path(other)
    missing = [f"{p} {_text(theirs[p])}" for p in theirs if p not in mine]
    unexpected = [f"{p} {_text(mine[p])}" for p in mine if p not in theirs]
    pairs = [(p, _described(mine[p]), _described(theirs[p])) for p in theirs if p in mine]
    shapes = [f"{p}: {_text(mine[p])} for {_text(theirs[p])}" for p, a, b in pairs if not a or not b or a[0] != b[0]]
    types = [f"{p}: {a[1]} for {b[1]}" for p, a, b in pairs if a and b and a[0] == b[0] and not dtypes_fit(a[1], b[1])]
    found = [
        f"{kind}: {_listing(paths)}"
        for kind, paths in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another dtype", types),
        )
        if paths
    ]
    if not found:
        found = [f"containers differ: {treedef} for {other_treedef}"]
    message = f"{who}: {name} do not fit {other_name}; " + "; ".join(found)
    if types and not (missing or unexpected or shapes):
        raise DTypeError(f"{message}; cast them: jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)")
    raise ShapeError(f"{message}; differentiate with respect to the tree that init saw")


def _no_masks(who: str, name: str, tree: Any) -> None:
    """Refuses masked arrays, whose masks nothing here would see."""
    if any(isinstance(leaf, np.ma.MaskedArray) for leaf in jax.tree.leaves(tree)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, np.ma.MaskedArray):
                _checks.unmasked(who, f"{_name(path)} of {name}", leaf)


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


def kept(who: str, name: str, value: Any, wanted: bool) -> None:
    """Refuses a state that was made by the same rule in another configuration."""
    if (value is not None) != wanted:
        raise ConfigError(
            f"{who}: this state holds {'no' if wanted else 'a'} {name}, and this optimizer "
            f"{'keeps one' if wanted else 'keeps none'}; make the state with this optimizer's init"
        )

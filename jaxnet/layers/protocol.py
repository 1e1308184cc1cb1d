"""What is said of functions that do not keep the protocol of a layer, and of calls that do not."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DTypeError, JaxnetError, named

NO_KEY = (
    "training draws random numbers and no key came; call "
    "net.apply(params, state, x, train=True, key=jax.random.key(seed)), with a new key every step"
)


def entered(name: str, function: Callable[..., Any], which: str) -> Callable[..., Any]:
    """The ``which``, init or apply, of a layer behind its door, which says of a wrong call what is missing in it."""
    return named(name, _wrong_init if which == "init" else _wrong_apply)(function)


def _wrong_init(*args: Any, **kwargs: Any) -> str:
    missing = [name for name in ("key", "x")[len(args) :] if name not in kwargs]
    if missing == ["x"] and not _is_key(args[0] if args else kwargs["key"]):
        missing = ["key"]
    hint = "call net.init(jax.random.key(seed), x) with an example input x, or its shape and dtype"
    return f"init takes (key, x), {_fault(('key', 'x'), missing, args, kwargs)}; {hint}"


def _wrong_apply(*args: Any, **kwargs: Any) -> str:
    ordered, by_name = ("params", "state", "x"), ("train", "key")
    given = len(args) + sum(name in kwargs for name in ordered)
    missing = [f"{3 - given} of params, state and x"] if given < 3 else []
    missing += [] if "train" in kwargs else ["train"]
    hint = "call y, state = net.apply(params, state, x, train=False), or train=True and key= in training"
    fault = _fault(ordered, missing, args, kwargs, by_name)
    return f"apply takes (params, state, x, *, train, key=None), {fault}; {hint}"


def _fault(ordered: Sequence[str], missing: list[str], args: Any, kwargs: Any, by_name: Sequence[str] = ()) -> str:
    unknown = [repr(name) for name in kwargs if name not in (*ordered, *by_name)]
    if unknown:
        return f"got {', '.join(unknown)}, which it does not take"
    if len(args) > len(ordered):
        return f"got {len(args)} arguments without a name"
    twice = [name for name in ordered[: len(args)] if name in kwargs]
    return f"got {twice[0]} twice" if twice else f"and {' and '.join(missing)} did not come"


def _is_key(value: Any) -> bool:
    try:
        checks.key(value)
    except JaxnetError:
        return False
    return True


def of_x_alone(part: Any) -> None:
    """Refuses a function, or a class, that a container cannot call with x."""
    if callable(part) and not checks.accepts(part, None):
        hint = "make it a layer by layers.layer or layers.stateless, or one of x alone by functools.partial"
        if isinstance(part, type):
            hint = "it is a class; make a layer of your own by layers.layer(name, init, apply)"
        came = f"{name_of(part)}({', '.join(checks.signature(part).parameters)})"
        raise ConfigError(f"a part must be a layer or a function of its input x, got {came}; {hint}")


def name_of(f: Any) -> str:
    """The name of a layer that a function makes."""
    f = getattr(f, "func", f)  # functools.partial
    name = getattr(f, "__name__", type(f).__name__)
    return "function" if name == "<lambda>" else name


def initialized(drawn: Any) -> tuple[Any, Any]:
    """What an ``init`` returned, if it is two things, trees of arrays (or of numbers, which training refuses)."""
    if not (isinstance(drawn, tuple) and len(drawn) == 2):
        hint = "return params, (), or make a layer without state by layers.stateless, whose init returns params alone"
        raise ConfigError(f"init must return two things, (params, state), got {_came(drawn)}; {hint}")
    for which, tree in zip(("params", "state"), drawn, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not _is_number(leaf):
                hint = "what is no number belongs to the function that makes the layer, not to its arrays"
                raise DTypeError(f"init gives {_kind(leaf)} at {which}{jax.tree_util.keystr(path)}, no array; {hint}")
    return drawn


def own(params: Any, key: Any) -> Any:
    """What the ``init`` of a `stateless` returned, if it is not what it was given: then it is no init."""
    for leaf in jax.tree.leaves(params):
        if leaf is key or isinstance(leaf, jax.ShapeDtypeStruct):
            came = "the key" if leaf is key else "the shape and dtype of x"
            raise ConfigError(f"init must return params, and returned {came} itself; the order is (init, f)")
    return params


def ran(applied: Any) -> tuple[Any, Any]:
    """What an ``apply`` returned, if it is two things."""
    if not (isinstance(applied, tuple) and len(applied) == 2):
        hint = "return y, state, or make a layer without state by layers.stateless, whose function returns y alone"
        raise ConfigError(f"apply must return two things, (y, state), got {_came(applied)}; {hint}")
    return applied


def _came(returned: Any) -> str:
    """What came in the place of two things; of a tuple or a list each entry, empty ones too."""
    if not isinstance(returned, (tuple, list)):
        return checks.describe(returned)
    listed = "; ".join("()" if isinstance(one, tuple) and not one else checks.describe(one) for one in returned)
    kind = "a list, no tuple," if isinstance(returned, list) else "a tuple"
    return f"{kind} of {len(returned)}" + (f" ({listed})" if listed else "")


def whole(applied: tuple[Any, Any], state: Any) -> Any:
    """The output among what an ``apply`` returned, if it is in its place and holds arrays alone."""
    y, new = applied
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if not _is_number(leaf):
            place = jax.tree_util.keystr(path)
            hint = "give an array, or a pytree of arrays; of a class, an instance that is called with x"
            raise DTypeError(f"the output{place} is {_kind(leaf)}, no array; {hint}")
    refuse_swapped(y, new, state)
    return y


def refuse_swapped(y: Any, new: Any, state: Any) -> None:
    """Refuses ``(state, y)``, where it can be told."""
    if same_structs(y, state) and not same_structs(new, state):
        came = f"{checks.describe(y)} and {checks.describe(new)}"
        raise ConfigError(
            f"apply must return (y, state), and returned {came}, where the state was {checks.describe(state)}: if "
            f"that is (state, y), return y, state; else keep the state's structure, shapes and dtypes"
        )


def same_structs(a: Any, b: Any) -> bool:
    """Whether two trees have one structure, with the same shapes and dtypes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        struct(one) == struct(other) for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def struct(leaf: Any) -> Any:
    """The shape and dtype that an array, or a number, has under `jax.jit`; of anything else, its type."""
    return (tuple(jnp.shape(leaf)), jnp.result_type(leaf)) if _is_number(leaf) else type(leaf)


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return checks.is_numeric(leaf.dtype)
    return (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) or isinstance(leaf, (bool, int, float, complex))


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}" if isinstance(leaf, (np.ndarray, np.generic)) else type(leaf).__name__


def drew(key: Any, train: bool, error: TypeError) -> None:
    """Says so where a layer failed since no key came; JAX's own words for it name no layer."""
    if key is None and "PRNG key" in str(error):
        if train:
            raise ConfigError(NO_KEY) from error
        raise ConfigError(
            "evaluation draws random numbers and no key came; draw them in training alone, if train, or give key= here "
            "too"
        ) from error


def read_values(error: Exception) -> None:
    """Says so where an ``init`` failed since it looked for x's values."""
    if "ShapeDtypeStruct" in str(error) and not isinstance(error, JaxnetError):
        raise ConfigError(
            "init reads the values of x, of which only shape and dtype come, a jax.ShapeDtypeStruct; take x.shape and "
            "x.dtype, and give values to the function that makes the layer"
        ) from error


def took_a_pair(params: Any, error: Exception) -> None:
    """Says so where a function of params failed since they are ``(params, ())``."""
    pair = isinstance(params, tuple) and len(params) == 2 and isinstance(params[1], tuple) and not params[1]
    told = any(text in str(error) for text in ("tuple indices must be", "'tuple' object has no attribute"))
    if pair and told and not isinstance(error, JaxnetError):
        raise ConfigError(
            "the params are (params, ()), and f fails on them; the init of a stateless returns params alone, without "
            "the (), or make the layer by layers.layer"
        ) from error

"""Checks of arrays, of their shapes and dtypes, and of trees of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnet import _words as words
from jaxnet._checks.host import host_array
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError


def array(name: str, value: Any) -> jax.Array:
    """``value`` as a JAX array of any dtype; refuses what NumPy can hold and JAX cannot."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return jnp.asarray(host_array(name, value))
    if isinstance(value, (bool, int, float, complex)):
        try:
            return jnp.asarray(value)
        except OverflowError:
            raise DataError(f"{name} = {value} does not fit JAX's integers; pass a float") from None
    raise DTypeError(f"{name} must be an array, got {_kind(value)}; {_to_array(value)}")


def _kind(value: Any) -> str:
    """What a value that is no array is, in a few words."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return f"a dict of {', '.join(value)}" if value else "an empty dict"
    if isinstance(value, tuple) and all(_is_array(entry) for entry in value):
        return f"a tuple of {len(value)}"
    return type(value).__name__


def _to_array(value: Any) -> str:
    """How to make one array of a value that is none."""
    if isinstance(value, tuple) and value and _is_array(value[0]):
        if len(value) == 2 and not _is_array(value[1]):
            return "a layer's apply returns two things: output, state = net.apply(...)"
        return (
            "take a part with a function before it, such as lambda x: x[0]; a parallel gives one array with "
            "combine='concatenate'"
        )
    if isinstance(value, dict) and value:
        return f"take a part with a function before it, such as lambda x: x[{next(iter(value))!r}]"
    if isinstance(value, (list, tuple)):
        return "pass one array, numpy.asarray(...); its rows must have one length"
    return "pass a jax or numpy array"


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def floating(name: str, value: ArrayLike) -> jax.Array:
    """``value`` as a floating-point array."""
    result = array(name, value)
    _must_be_floating(name, result.dtype)
    return result


def _must_be_floating(name: str, dtype: np.dtype) -> None:
    if jnp.issubdtype(dtype, jnp.floating):
        return
    cure = f"convert with {name if name.isidentifier() else 'x'}.astype('float32')"
    if dtype in (jnp.int8, jnp.int16, jnp.uint8, jnp.uint16):
        cure += f" / {jnp.iinfo(dtype).max + 1} ({dtype} arithmetic would wrap)"
    elif jnp.issubdtype(dtype, jax.dtypes.prng_key):
        cure = "a PRNG key is passed as key="
    elif jnp.issubdtype(dtype, jnp.complexfloating):
        cure = "take its parts apart, jax.numpy.concatenate([x.real, x.imag], -1)"
    elif jnp.issubdtype(dtype, jnp.integer) and name == "x":
        cure += ", or, of tokens, look their rows up in a table first"
    raise DTypeError(f"{name} must be floating point, got {dtype}; {cure}")


def shape_struct(value: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that ``init`` needs of its example input, an array or a `jax.ShapeDtypeStruct`."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return value
    if isinstance(value, tuple) and value and all(isinstance(size, int) for size in value):
        raise DTypeError(
            f"x must be an example input or its shape and dtype, got {value}; "
            f"pass jax.ShapeDtypeStruct({value}, jax.numpy.float32)"
        )
    result = array("x", value)
    return jax.ShapeDtypeStruct(result.shape, result.dtype)


def structs(value: Any) -> Any:
    """`shape_struct` of every array in a pytree; numbers and lists of them are no pytree, but an array not yet made."""
    flat, _ = jax.tree_util.tree_flatten_with_path(value)
    if not any(_is_array(leaf) for _, leaf in flat):
        shape_struct(value)  # which refuses it, and knows the cure for shapes, for rows of numbers and for nothing
    for path, leaf in flat:
        if not _is_array(leaf):
            raise DTypeError(f"x{jax.tree_util.keystr(path)} must be an array, got {_kind(leaf)}; {_to_array(leaf)}")
    mapped = jax.tree.map(shape_struct, value)
    return {name: mapped[name] for name in value} if type(value) is dict else mapped  # in the user's order


def describe(tree: Any) -> str:
    """The dtypes and shapes of a pytree of arrays, for errors."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
        return f"{tree.dtype} {tuple(tree.shape)}" if hasattr(tree, "shape") else type(tree).__name__
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    inside = ", ".join(f"{jax.tree_util.keystr(path)} {describe(leaf)}" for path, leaf in leaves)
    return f"a {type(tree).__name__} of {inside or 'nothing'}"


def floating_struct(value: Any) -> jax.ShapeDtypeStruct:
    """`shape_struct` of an input that must be floating point, since parameters take its dtype."""
    struct = shape_struct(value)
    _must_be_floating("x", struct.dtype)
    return struct


def same_dtype(**arrays: jax.Array) -> None:
    """Refuses arrays of different dtypes: under mixed precision the policy casts, nothing else does."""
    if len({a.dtype for a in arrays.values()}) > 1:
        listing = ", ".join(f"{name} {a.dtype}" for name, a in arrays.items())
        hint = "cast the input, or let layers.mixed_precision cast for the whole network"
        raise DTypeError(f"dtypes differ: {listing}; {hint}")


def rank(name: str, value: Any, wanted: int, layout: str, hint: str = "") -> None:
    """Refuses an array whose rank is not ``wanted``."""
    if len(value.shape) != wanted:
        if name == "x" and len(value.shape) == wanted - 1:
            hint = "; a single example is x[None], a single channel x[..., None]"
        raise ShapeError(f"{name} must have {wanted} axes {layout}, got shape {tuple(value.shape)}{hint}")


def leaves(tree: Any, *names: str, tree_name: str = "params") -> tuple[jax.Array, ...]:
    """The arrays of a layer's params (or state), a dict of exactly ``names``; anything else is another layer's."""
    if not isinstance(tree, dict) or set(tree) != set(names):
        got = (
            f"a dict of {', '.join(sorted(map(str, tree))) or 'nothing'}"
            if isinstance(tree, dict)
            else words.came(tree)
        )
        raise ConfigError(
            f"{tree_name} must be a dict of {', '.join(names)}, got {got}; pass what this layer's init returned"
        )
    return tuple(array(name, tree[name]) for name in names)


def nothing(name: str, value: Any) -> None:
    """Refuses params or a state where a layer has none."""
    if not isinstance(value, tuple) or value:
        raise ConfigError(f"{name} must be (), got {words.came(value)}; pass what this layer's init returned")

"""Checks at the doors: constructors check Python numbers, `apply` checks shapes and dtypes at trace time.

None of them costs anything at run time. Each returns its argument in canonical form, or raises an error that says what
was wanted, what came, and one hint. Who refused is said by the door around it, `errors.named`.
"""

import inspect
import math
import numbers
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnet import _words as words
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError, innermost


def integer(name: str, value: Any, *, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``; bools, floats, strings and tracers are refused."""
    wanted = f"{name} must be an integer >= {minimum}, got "
    if isinstance(value, (bool, np.bool_)):
        raise ConfigError(wanted + words.came(value))
    try:
        result = operator.index(value)
    except TypeError as error:
        raise ConfigError(
            f"{wanted}{words.came(value)}; sizes are Python integers, known before anything is traced"
        ) from error
    if result < minimum:
        raise ConfigError(wanted + words.came(value))
    return result


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """``value`` as a finite float between ``low`` and ``high``; ends count unless they are open."""
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    wanted = f"{name} must be a finite number in {interval}, got "
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
        raise ConfigError(wanted + words.came(value))
    result = float(value)
    too_low = result <= low if open_low else result < low
    too_high = result >= high if open_high else result > high
    if not math.isfinite(result) or too_low or too_high:
        raise ConfigError(wanted + words.came(value))
    return result


def flag(name: str, value: Any) -> bool:
    """``value``, which must be a Python bool: it decides what is traced."""
    if not isinstance(value, bool):
        kind = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ConfigError(
            f"{name} must be True or False, got {kind}; it decides what is compiled, so under jit "
            f"write it in the call (or name it in static_argnames)"
        )
    return value


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """``value``, which must be one of ``options``."""
    if value not in options:
        near = [one for one in options if isinstance(value, str) and one.lower() == value.strip().lower()]
        hint = f"; write {near[0]!r}" if near else ""
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, options))}, got {words.came(value)}{hint}")
    return value


def function(name: str, value: Any) -> Any:
    """``value``, which must be callable."""
    if not callable(value):
        raise ConfigError(words.no_function(name, value))
    return value


def accepts(f: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called so; of one without a signature that is not known, and it is believed."""
    try:
        signature(f).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        pass
    return True


def signature(f: Callable[..., Any]) -> inspect.Signature:
    """A function's own signature: a decorator may take other arguments than what it says that it wraps."""
    f = inspect.unwrap(f, stop=inspect.isfunction)  # of `jax.jit`'s and its like, what they wrap
    return inspect.signature(f, follow_wrapped=False)


def takes(name: str, value: Any, *args: str, **kwargs: Any) -> Any:
    """``value``, which must be a function of these arguments."""
    if not accepts(function(name, value), *args, **kwargs):
        wanted = ", ".join([*args, *["*"] * bool(kwargs), *kwargs])
        raise ConfigError(f"{name} must take ({wanted}), got a function of {signature(value)}")
    return value


def path(name: str, value: Any) -> Path:
    """``value`` as a local path, ``~`` expanded; what would silently become a strange file of that name is refused."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be a path, a string or a pathlib.Path, got {words.came(value)}")
    if not text or "\0" in text:
        hint = "no file system has NUL in a name" if text else "for the current directory give '.'"
        raise ConfigError(f"{name} must be a path, got {text!r}; {hint}")
    if scheme := re.match(r"(?i)file:|[a-z][a-z0-9+.-]+:/", text):
        hint = "the bucket's folder where it is mounted, or a local one, and copy it afterwards"
        if scheme[0].lower() == "file:":
            bare = re.sub("^file:(//(localhost)?(?=/))?", "", text, flags=re.IGNORECASE)
            hint = f"it without its beginning: {bare!r}"
        raise ConfigError(f"{name} must be a path on this machine's file systems, got {text!r}; give {hint}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(f"{name}: there is no home for {text!r}; write the path in full, from '/'")
    return Path(expanded)


def key(value: Any) -> Any:
    """One PRNG key: a typed key, a raw uint32 key, or an integer seed from 0 to 2**32 - 1."""
    hint = "pass jax.random.key(seed), or an integer seed from 0 to 2**32 - 1"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not 0 <= value < 2**32:
            raise ConfigError(f"seed {value} is outside 0..2**32 - 1, where it would silently wrap; {hint}")
        return jax.random.key(np.uint32(value))
    dtype = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if dtype is None or shape is None:
        raise ConfigError(f"key must be a JAX PRNG key, got {words.came(value)}; {hint}")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return value
    if not typed and dtype == jnp.uint32 and len(shape) == 1 and shape[0] in (2, 4):
        return jnp.asarray(value)
    if typed or dtype == jnp.uint32:
        raise ConfigError(f"key must be one key, got an array of keys of shape {shape}; pick one, or use vmap")
    raise ConfigError(f"key must be a JAX PRNG key, got {dtype} of shape {shape}; {hint}")


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


def host_array(name: str, value: np.ndarray | np.generic, narrowed: dict[str, np.dtype] | None = None) -> np.ndarray:
    """``value`` in the dtype that JAX will give it, refusing what would change without a word.

    Args:
      narrowed: takes the names and dtypes of what is rounded to 32 bits, for one `warn_of_narrowed` later on; without
        it the warning comes at once.

    Raises:
      DTypeError: the dtype is no number (objects, strings), or is in the other byte order.
      DataError: 64-bit integers that do not fit the 32 bits JAX keeps, or a mask that would be lost.

    Warns:
      UserWarning: float64 values while 64-bit types are disabled; JAX would round them to float32.
    """
    value = unmasked(name, value)
    dtype = value.dtype
    if not dtype.isnative:
        raise DTypeError(
            f"{name} has byte order {dtype.str!r}, which JAX cannot read; "
            f"convert with .astype({dtype.newbyteorder('=').name!r})"
        )
    if not is_numeric(dtype):
        cure = "build one rectangular numeric array, for example numpy.stack(rows).astype('float32')"
        if dtype.kind in "UST" or (dtype.kind == "O" and all(isinstance(entry, str) for entry in np.ravel(value))):
            cure = "number the classes, data.classes(names).encode(names)"
        cure = words.of_no_numbers(name, value, f"{name}.astype('float32')", f"{name}.astype('int32')") or cure
        raise DTypeError(f"{name} has dtype {dtype}, which is no number; {cure}")
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if canonical == dtype:
        return np.asarray(value)
    if dtype.kind in "iu":
        limits = np.iinfo(canonical)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise DataError(
                f"{name} holds {dtype} values up to {value.max()}, which do not fit {canonical}; "
                f"enable 64-bit types with jax.config.update('jax_enable_x64', True)"
            )
    elif narrowed is None:
        warn_of_narrowed({name: dtype})
    else:
        narrowed[name] = dtype
    return np.asarray(value).astype(canonical)


def warn_of_narrowed(narrowed: dict[str, np.dtype]) -> None:
    """Warns once of all arrays that are rounded to JAX's 32 bits."""
    if not narrowed:
        return
    dtypes = sorted({str(dtype) for dtype in narrowed.values()})
    canonical = " and ".join(sorted({jax.dtypes.canonicalize_dtype(dtype).name for dtype in narrowed.values()}))
    which = f"{' and '.join(narrowed)} {'is' if len(narrowed) == 1 else 'are'} {' and '.join(dtypes)}"
    warn(
        f"{which}, and JAX computes in {canonical} here; convert it yourself with "
        f".astype({canonical!r}), or enable 64-bit types with jax.config.update('jax_enable_x64', True)"
    )


_LIBRARIES = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, jax.__file__))


def warn(message: str) -> None:
    """A `UserWarning` in the name of the innermost door, at the innermost line that is neither ours nor JAX's."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    who = innermost()
    warnings.warn(f"{who}: {message}" if who else message, stacklevel=level)


def unmasked(name: str, value: np.ndarray | np.generic) -> np.ndarray:
    """``value`` as a plain NumPy array; one with masked entries is refused, since nothing here would see the mask."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{name} is a masked array with {np.ma.count_masked(value)} of {value.size} entries masked, and the mask "
            f"would be lost; fill them with .filled(value), or drop those samples"
        )
    return np.asarray(value)


def is_numeric(dtype: np.dtype) -> bool:
    """Whether JAX can compute with ``dtype``: numbers in this machine's byte order, bools and bfloat16 among them."""
    extended = jnp.issubdtype(dtype, np.inexact) or jnp.issubdtype(dtype, np.integer)  # bfloat16's kind is V in NumPy
    return dtype.isnative and (dtype.kind in "biufc" or extended)


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

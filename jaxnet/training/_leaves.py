"""The leaves of a tree by the names of their places, such as params/0/kernel, and what a checkpoint says of each."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, DTypeError
from jaxnet.training._file import quoted
from jaxnet.training.state import is_key


def by_name(argument: str, tree: Any) -> dict[str, Any]:
    """The leaves of an argument, each an array or a `jax.ShapeDtypeStruct`."""
    if words.is_made_of_functions(tree):
        hint = "give the trees that its init returned, of a network (params, state)"
        raise ConfigError(f"{argument} must be a tree of arrays, got {words.came(tree)}; {hint}")
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        where = f"{argument}[{name!r}]"
        if name in found:
            raise ConfigError(f"two leaves of {argument} are named {name!r}; rename a key that contains '/'")
        if name == "__metadata__" or not name.isprintable():
            raise ConfigError(f"no leaf can be named {name!r} in a file of safetensors; rename the key")
        if isinstance(leaf, jax.core.Tracer):
            raise DTypeError(f"{where} is a traced value; call this outside of jit, grad and vmap")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise DTypeError(
                f"{where} is no array but {type(leaf).__name__}; put it into metadata, or make it one with "
                f"numpy.asarray"
            )
        if not is_key(leaf) and not checks.is_numeric(np.dtype(leaf.dtype)):
            raise DTypeError(
                f"{where} has dtype {leaf.dtype}; wanted numbers in this machine's byte order, for example "
                f"x.astype('float32')"
            )
        if isinstance(leaf, np.ma.MaskedArray):
            raise DTypeError(f"{where} is a masked array, whose mask would be lost; save its data and its mask")
        found[name] = leaf
    return found


def implementation(key: Any) -> Any:
    """The name of a key's generator, also of a `jax.ShapeDtypeStruct`'s."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def data(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the numbers that stand for a leaf."""
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def entry(leaf: Any) -> dict[str, Any]:
    """What the file says of a leaf; that of ``like`` must be the same."""
    kind = f"key<{implementation(leaf)}>" if is_key(leaf) else "array"
    struct = data(leaf)
    return {"kind": kind, "dtype": struct.dtype.name, "shape": list(struct.shape)}


def same(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a stored leaf is of a wanted `entry`."""
    return all(stored.get(field) == value for field, value in wanted.items())


def misfits(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """All that is not the same in two trees of entries, in lines."""
    different = [
        f"{quoted(name)} is {_text(stored[name])} in the file, {_text(wanted[name])} in the tree"
        for name in wanted
        if name in stored and not same(stored[name], wanted[name])
    ]
    return [
        *listed("missing from the file", [quoted(name) for name in wanted if name not in stored]),
        *listed("in the file alone", [quoted(name) for name in stored if name not in wanted]),
        *listed("different", different, "; "),
    ]


def places(names: Iterable[str]) -> list[str]:
    """What may be given as ``under``, the widest first."""
    parts = [name.split("/") for name in names]
    found = dict.fromkeys("/".join(part[:depth]) for part in parts for depth in range(1, len(part)))
    return sorted(found, key=lambda place: place.count("/"))


def listed(what: str, items: list[str], separator: str = ", ") -> list[str]:
    """One line of how many there are and which, or none."""
    more = f"{separator}and {len(items) - 10} more" if len(items) > 10 else ""
    return [f"{len(items)} {what}: {separator.join(items[:10])}{more}"] if items else []


def _text(leaf: dict[str, Any]) -> str:
    kind = "" if leaf.get("kind") == "array" else f"{leaf.get('kind')} of "
    shape = leaf.get("shape")
    numbers = tuple(shape) if isinstance(shape, list) else shape
    text = f"{kind}{leaf.get('dtype')} {numbers}"
    return text if len(text) <= 100 and text.isprintable() else quoted(text)

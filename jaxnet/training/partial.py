"""A part of a checkpoint into a part of a tree: a backbone under a new head, under other names, in another dtype."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet import paths
from jaxnet.errors import CheckpointError, ConfigError, DTypeError, named
from jaxnet.training import _file, _leaves
from jaxnet.training.checkpoint import opened, placed, read_leaves, wanted_leaves
from jaxnet.training.checkpoints import Checkpoints, weights_of


class Loaded(NamedTuple):
    """What `load_partial` has done, by the names of leaves.

    Attributes:
      loaded: of the tree, with what each was called in the file.
      kept: of the tree, which are as they were given.
      unused: of the file, below ``under``, which nothing has taken.
      cast: of the tree, with what was made of them, such as "float32 to bfloat16".
    """

    loaded: dict[str, str]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    cast: dict[str, str]


@named("load_partial")
def load_partial(
    path: str | os.PathLike[str],
    like: Any,
    only: paths.Which = "*",
    *,
    under: str | None = None,
    rename: Mapping[str, str] | None = None,
    cast: bool = False,
) -> tuple[Any, Loaded]:
    """Loads some leaves of a tree from a checkpoint, and leaves the others as they are.

    What ``only`` chooses must all be there, in the same shapes and dtypes; nothing is left out because it does not fit.

    Args:
      path: the file that `save` wrote; or the ``keep`` directory of a run of `fit`, of which its newest checkpoint is
        meant.
      like: the tree to load into, such as the params that ``net.init`` gave. Leaves that are not chosen are handed on,
        so that they must be arrays.
      only: which leaves of ``like`` to load, as `paths.select` takes it: ``"0/*"``, several patterns, or a function
        ``(path, leaf) -> bool``. All unless given.
      under: the place of ``like`` in the tree that was saved, as for `load`. Of a run's directory it may be "params",
        which is the default there, or "state": those that `load_best` gives.
      rename: where names differ, those of ``like`` to those of the file, of leaves or of all below a place, as
        ``{"0": "encoder/1"}``; of several that begin a name, the longest counts, and "" begins every name.
      cast: whether to round floating-point (or complex) arrays of the file to the dtype of ``like``, or to widen them.

    Returns:
      The tree, and a `Loaded`.

    Raises:
      CheckpointError: chosen leaves that the file does not have, or has in other shapes or dtypes, all of them at once;
        a cast under which a finite value overflows; no checkpoint, or a damaged one.
      ConfigError: a pattern that fits no leaf, an ``only`` that chooses none, or a ``rename`` that changes no name.
      DTypeError: a leaf that is not loaded and no array.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> directory, x = tempfile.TemporaryDirectory(), jnp.ones((1, 3))
      >>> old, _ = layers.chain(layers.dense(4), layers.dense(10)).init(0, x)
      >>> path = training.save(f"{directory.name}/old", {"encoder": old})
      >>> new, _ = layers.chain(layers.dense(4), layers.dense(2)).init(1, x)
      >>> new, report = training.load_partial(path, new, "0/*", rename={"": "encoder"})
      >>> report
      Loaded(loaded={'0/bias': 'encoder/0/bias', '0/kernel': 'encoder/0/kernel'}, kept=('1/bias', '1/kernel'),
             unused=('encoder/1/bias', 'encoder/1/kernel'), cast={})
      >>> bool((new[0]["kernel"] == old[0]["kernel"]).all())
      True
      >>> directory.cleanup()
    """
    checks.flag("cast", cast)
    place, under = _place(path, under)
    leaves = wanted_leaves(like)
    chosen = dict(zip(leaves, jax.tree.leaves(paths.select(like, only)), strict=True))
    for name, leaf in leaves.items():
        if not chosen[name] and isinstance(leaf, jax.ShapeDtypeStruct):
            raise DTypeError(
                f"like[{name!r}] is a shape and a dtype alone, and nothing is loaded into it; give the arrays that "
                f"init makes"
            )
    wanted = {name: leaf for name, leaf in leaves.items() if chosen[name]}
    if leaves and not wanted:
        raise ConfigError(f"only chooses no leaf, so nothing would be loaded; the paths are {paths.listed([*leaves])}")
    names = _names_in_file(list(wanted), under, rename)
    with opened(place) as file:
        entries = file.description["leaves"]
        stored = {name: _as_stored(entries.get(names[name], {}), leaf, cast) for name, leaf in wanted.items()}
        _must_fit(file, wanted, stored, names, under)
        read = read_leaves(file, [(names[name], leaf) for name, leaf in stored.items()])
    found, casts = dict(leaves), {}
    for (name, array), leaf in zip(zip(stored, read, strict=True), wanted.values(), strict=True):
        found[name] = array
        if stored[name] is not leaf:
            found[name] = placed(_cast(file.path, name, array, leaf.dtype), leaf)
            casts[name] = f"{array.dtype} to {leaf.dtype}"
    taken = set(names.values())
    unused = tuple(name for name in entries if _is_below(name, under) and name not in taken)
    kept = tuple(name for name in leaves if name not in wanted)
    return jax.tree.unflatten(jax.tree.structure(like), found.values()), Loaded(names, kept, unused, casts)


def _place(path: Any, under: Any) -> tuple[Any, str]:
    """The file, and the place in its tree."""
    if under is not None and not isinstance(under, str):
        raise ConfigError(f"under must be a place such as 'train_state/params', got {words.came(under)}")
    place = checks.path("path", path)
    if place.is_dir():
        place, params, state = weights_of(Checkpoints(place))
        under = {None: params, "params": params, "state": state}.get(under, under)
    return place, (under or "").strip("/")


def _is_below(name: str, place: str) -> bool:
    return not place or name == place or name.startswith(f"{place}/")


def _names_in_file(names: list[str], under: str, rename: Any) -> dict[str, str]:
    rename = {} if rename is None else rename
    if not isinstance(rename, Mapping) or not all(isinstance(text, str) for item in rename.items() for text in item):
        raise ConfigError(
            f"rename must map places of like to those of the file, {{'0': 'encoder/1'}}, got {words.came(rename)}"
        )
    mapping, used, found = {old.strip("/"): new for old, new in rename.items()}, set(), {}
    for name in names:
        parts = name.split("/")
        begin = next((n for n in range(len(parts), -1, -1) if "/".join(parts[:n]) in mapping), None)
        whole = [under, name]
        if begin is not None:
            used.add(head := "/".join(parts[:begin]))
            whole = [under, mapping[head].strip("/"), "/".join(parts[begin:])]
        found[name] = "/".join(part for part in whole if part)
    if left := [repr(old) for old in mapping if old not in used]:
        raise ConfigError(
            f"rename changes {', '.join(left)} nowhere; it maps names of like to those of the file, and those to load "
            f"are {paths.listed(names)}"
        )
    return found


def _as_stored(entry: dict[str, Any], leaf: Any, cast: bool) -> Any:
    """What to read for a leaf: one like it, or where it is to be cast, one of the dtype that the file has."""
    if cast and _is_castable(entry, leaf):
        return np.broadcast_to(np.zeros((), jnp.dtype(entry["dtype"])), leaf.shape)
    return leaf


def _is_castable(entry: dict[str, Any], leaf: Any) -> bool:
    """Whether two dtypes differ, and are both floating point, or both complex."""
    try:
        stored = jnp.dtype(entry["dtype"])
    except (KeyError, TypeError):
        return False
    kinds = (jnp.floating, jnp.complexfloating)
    of_a_kind = any(jnp.issubdtype(stored, kind) and jnp.issubdtype(leaf.dtype, kind) for kind in kinds)
    return of_a_kind and stored != leaf.dtype and entry.get("kind") == "array"


def _must_fit(file: _file.File, leaves: dict[str, Any], stored: Any, names: dict[str, str], under: str) -> None:
    entries = file.description["leaves"]
    labels = {name: name if name == names[name] else f"{name} (of {names[name]})" for name in leaves}
    there = {labels[name]: entries[names[name]] for name in leaves if names[name] in entries}
    lines = _leaves.misfits(there, {labels[name]: _leaves.entry(leaf) for name, leaf in stored.items()})
    if not lines:
        return
    if len(there) < len(leaves):
        below = [name for name in entries if _is_below(name, under)] or list(entries)
        lines += _leaves.listed("in the file", [_file.quoted(name) for name in below])
        lines.append("give the place of the tree in the file as under=, other names as rename={'ours': 'the file's'}")
    if any(_is_castable(entries.get(names[name], {}), stored[name]) for name in leaves):
        lines.append("to have dtypes changed, give cast=True")
    lines.append("what is to stay as it is, a head of another size, is left out with only=")
    raise CheckpointError("\n  ".join([f"{file.path} does not fit what is to be loaded:", *lines]))


def _cast(path: Any, name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    # NumPy's own types as they are, JAX's 16 and 8 bits as float32.
    before, after = (np.isfinite(a if a.dtype.kind in "fc" else a.astype(np.float32)) for a in (array, found))
    if (before & ~after).any():
        raise CheckpointError(f"{_file.quoted(name)} of {path} holds values beyond the range of {np.dtype(dtype)}")
    return found

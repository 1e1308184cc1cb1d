"""A checkpoint: any pytree of arrays in one file, whole or absent, checked when it is read.

The file is one of safetensors (see `_file`): its arrays are named by their places in the tree, such as params/0/kernel.
Nothing in it is code, and no name in it is ever used as a path. Arrays that lie on the devices of several hosts are in
files beside it (see `_spread`).
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError, named
from jaxnet.training import _file, _leaves, _spread
from jaxnet.training.state import is_key


@named("save")
def save(path: str | os.PathLike[str], tree: Any, *, metadata: dict[str, Any] | None = None) -> Path:
    """Saves a pytree of arrays as one file, which is whole or absent whenever the process is killed.

    It is written under a temporary name, forced to disk and renamed. A checkpoint that is there already is replaced
    in one step: at every moment, ``path`` is the old one or the new one. Temporaries that killed processes left
    beside it are removed; those of processes that are still saving are left alone.

    With arrays on the devices of several hosts, every process must call it, and all must see the same file system;
    of arrays that each process has for itself, those of the first are saved. Without, the first alone should call it.

    Args:
      path: the file to be; its parents are made.
      tree: JAX arrays of any dtype, typed PRNG keys among them, and NumPy arrays, whose dtypes are kept (float64, too,
        whatever JAX is set to). Python numbers are refused, since what comes back could not be what was saved: put
        them into ``metadata``, or make them arrays.
      metadata: a dict for `json.dumps`: it comes back as JSON has it, with lists for tuples and strings for keys.

    Returns:
      ``path``.

    Raises:
      DTypeError: a leaf that is no array, or of a dtype that is no number.
      DataError: an array that was donated or deleted.
      ConfigError: metadata that are not JSON, two leaves whose places have the same name, or what is no path.
      CheckpointError: ``path`` exists and is no checkpoint, or the file system refused; no checkpoint is harmed.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from jaxnet.training import load, read_metadata, save
      >>> directory = tempfile.TemporaryDirectory()
      >>> path = save(f"{directory.name}/run", {"kernel": jnp.ones((2, 3))}, metadata={"step": 7})
      >>> load(path, {"kernel": jnp.zeros((2, 3))})["kernel"].sum(), read_metadata(path)["step"]
      (Array(6., dtype=float32), 7)
      >>> directory.cleanup()

    Source: the file of arrays: https://huggingface.co/docs/safetensors.
    """
    if isinstance(tree, (str, os.PathLike)):
        raise ConfigError(f"tree must be a tree of arrays, got {words.came(tree)}; the order is (path, tree)")
    found = tree if isinstance(tree, Gathered) else gathered(tree)
    path = checks.path("path", path)
    place = Path(os.path.realpath(path))
    description = {"jax": jax.__version__, "metadata": jsonable(metadata), "leaves": found.entries}
    _check_replaceable(place)
    try:
        if found.spread:
            _spread.write(place, found.spread, _on_host(found.here), description)
        else:
            _file.write(place, _on_host(found.here), description)
            _spread.sweep(place.parent, place.name)  # the parts of what was there
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; what lies there is whole, or as it was before"
        ) from error
    return path


class Gathered(NamedTuple):
    """A tree to save, checked.

    Attributes:
      entries: what the file says of each leaf.
      here: the arrays that this process has whole.
      spread: those over several hosts.
    """

    entries: dict[str, Any]
    here: dict[str, Any]
    spread: dict[str, jax.Array]


def gathered(tree: Any, copies: dict[str, np.ndarray] | None = None) -> Gathered:
    """What `save` makes of its tree first.

    Args:
      copies: has all arrays copied to the host's memory, so that ``tree`` may be given away while they are written; and
        holds these copies. What it holds already is written over: memory that is new costs several times the copying.
    """
    leaves = _leaves.by_name("tree", tree)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise DTypeError(f"tree[{name!r}] is a shape and a dtype, but no array; save what it describes")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise DataError(
                f"tree[{name!r}] was donated to a compiled function, or deleted, so its numbers are gone; "
                f"save what the step returned instead of what was given to it"
            )
    arrays = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items()}
    spread = {name: array for name, array in arrays.items() if _over_hosts(array)}
    here = {name: array for name, array in arrays.items() if name not in spread}
    entries = {
        name: _leaves.entry(leaf) | ({"spread": True} if name in spread else {}) for name, leaf in leaves.items()
    }
    if copies is not None:
        here = {name: _of_its_own(here[name], array, copies, name) for name, array in _on_host(here).items()}
    return Gathered(entries, here, spread)


@named("load")
def load(path: str | os.PathLike[str], like: Any, *, under: str = "") -> Any:
    """Loads the arrays of a checkpoint by name into the structure of ``like``.

    Every name, shape and dtype must be that of ``like``, and every checksum right; nothing is cast, left out or
    loaded by its position. Nothing that the file holds is ever run.

    Args:
      path: the file that `save` wrote.
      like: the tree that was saved, or one of its structure: arrays, or `jax.ShapeDtypeStruct` (`jax.eval_shape` of an
        ``init``), with a sharding or without.
      under: the place in the saved tree of the part that is wanted, such as ``"train_state/params"``: ``like`` is then
        that part alone. Everything unless given.

    Returns:
      The tree: on the devices and in the sharding of ``like``, where that says so, else JAX's default; NumPy arrays
      where ``like`` has NumPy's.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or one that does not fit; all names that do not fit are listed.
      ConfigError: a 64-bit JAX array is wanted while JAX has them disabled; or what is no path.
      DTypeError: a leaf of ``like`` is no array.

    Example:
      >>> import tempfile
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet.training import load, save
      >>> directory = tempfile.TemporaryDirectory()
      >>> path = save(f"{directory.name}/run", {"bias": jnp.ones(2), "kernel": jnp.ones((2, 3))})
      >>> load(path, {"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 4))})
      Traceback (most recent call last):
      jaxnet.errors.CheckpointError: load: ... does not fit the tree that it is loaded into:
        1 different: 'kernel' is float32 (2, 3) in the file, float32 (2, 4) in the tree
      >>> load(path, jnp.zeros(2), under="bias")
      Array([1., 1.], dtype=float32)
      >>> directory.cleanup()
    """
    with opened(path) as file:
        return read(file, like, under)


@named("read_metadata")
def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``metadata`` that a checkpoint was saved with; no array is read.

    Args:
      path: the file that `save` wrote.

    Returns:
      The dict.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
      ConfigError: what is no path.

    Example:
      >>> import tempfile
      >>> from jaxnet.training import read_metadata, save
      >>> directory = tempfile.TemporaryDirectory()
      >>> read_metadata(save(f"{directory.name}/run", (), metadata={"epoch": 3}))
      {'epoch': 3}
      >>> directory.cleanup()
    """
    with opened(path) as file:
        return file.description["metadata"]


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[_file.File]:
    """Opens a checkpoint, whose header must be sound and whose size right."""
    path = checks.path("path", path)
    place = Path(os.path.realpath(path))
    wanted = "wanted the file that jaxnet.training.save wrote"
    if place.is_dir():
        old = (place / "manifest.json").exists()
        hint = "of older versions of jaxnet" if old else "; of a run's directory, training.Checkpoints knows the latest"
        raise CheckpointError(f"{path} is a directory{' ' if old else ', no checkpoint'}{hint}; {wanted}")
    if not place.exists():
        raise CheckpointError(f"{path} does not exist; {wanted}")
    with _file.opened(place) as file:
        yield file


def read(file: _file.File, like: Any, under: str = "") -> Any:
    """The arrays of an open checkpoint, checked and placed like those of ``like``, in its structure."""
    return jax.tree.unflatten(jax.tree.structure(like), read_leaves(file, list(_fitting(file, like, under).items())))


def read_leaves(file: _file.File, leaves: list[tuple[str, Any]]) -> list[Any]:
    """Arrays of an open checkpoint by their names, each placed like a leaf of the kind, shape and dtype that it has."""
    stored, found = file.description["leaves"], []
    pieces: Any
    some = any("spread" in stored[name] for name, _ in leaves)
    with _spread.reader(file) if some else contextlib.nullcontext() as pieces:
        for name, leaf in leaves:
            struct = _leaves.data(leaf)
            spread = "spread" in stored[name]
            found.append(placed(pieces(name, struct) if spread else file.read(name, struct.dtype, struct.shape), leaf))
    return found


def wanted_leaves(like: Any) -> dict[str, Any]:
    """The leaves to load into, by name, if JAX can hold what is wanted there."""
    leaves = _leaves.by_name("like", like)
    for name, leaf in leaves.items():
        if not _is_host(leaf) and not is_key(leaf):
            canonical = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if canonical != leaf.dtype:
                raise ConfigError(
                    f"like[{name!r}] is {leaf.dtype}, and JAX would make it {canonical}; enable 64-bit "
                    f"types with jax.config.update('jax_enable_x64', True), or have a NumPy array there"
                )
    return leaves


def _fitting(file: _file.File, like: Any, under: str) -> dict[str, Any]:
    """The leaves of ``like`` by name, if those stored ``under`` a place have the same names, shapes and dtypes."""
    if not isinstance(under, str):
        raise ConfigError(f"under must be a place such as 'train_state/params', got {words.came(under)}")
    under = under.strip("/")
    leaves = wanted_leaves(like)
    if under:
        alone = jax.tree_util.treedef_is_leaf(jax.tree.structure(like))  # a key can be "" too
        leaves = {under if alone else f"{under}/{name}": leaf for name, leaf in leaves.items()}
    wanted = {name: _leaves.entry(leaf) for name, leaf in leaves.items()}
    entries = file.description["leaves"]
    places = _leaves.places(entries)
    part = {name: entry for name, entry in entries.items() if f"{name}/".startswith(under and f"{under}/")}
    if leaves and not part and under:
        there = "".join(_leaves.listed("places", [_file.quoted(place) for place in places]))
        raise CheckpointError(f"{file.path} has nothing under {under!r}; it has {there}")
    lines = _leaves.misfits(part, wanted)
    if lines and wanted and not under:
        fits = [
            _file.quoted(place)
            for place in places
            if all(_leaves.same(entries.get(f"{place}/{name}", {}), entry) for name, entry in wanted.items())
        ]
        lines += [f"but it fits a part: give under={' or under='.join(fits[:3])}"] if fits else []
    if lines:
        raise CheckpointError("\n  ".join([f"{file.path} does not fit the tree that it is loaded into:", *lines]))
    return leaves


def _is_host(like: Any) -> bool:
    return isinstance(like, (np.ndarray, np.generic))


def placed(array: Any, like: Any) -> Any:
    """An array, or what reads one by slices, where ``like`` says that it belongs."""
    struct, placed = _leaves.data(like), array
    somewhere = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    if somewhere and like.sharding is not None:
        # Of a key, it also places the data: the axis that they have more comes last.
        placed = jax.make_array_from_callback(struct.shape, like.sharding, lambda index: array[index])
    else:
        if not isinstance(array, np.ndarray):
            placed = array[(slice(None),) * struct.ndim]
        placed = placed if _is_host(like) else jnp.asarray(placed)
    return jax.random.wrap_key_data(placed, impl=_leaves.implementation(like)) if is_key(like) else placed


def _over_hosts(array: Any) -> bool:
    return isinstance(array, jax.Array) and not array.is_fully_addressable and array.size > 0


def _on_host(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    filled = {name: array if array.size else np.zeros(array.shape, array.dtype) for name, array in arrays.items()}
    return {name: np.asarray(array) for name, array in jax.device_get(filled).items()}


def _of_its_own(array: Any, host: np.ndarray, copies: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What was gathered of an array; copied where that is the array's own memory, which a CPU's may be."""
    if isinstance(array, jax.Array) and all(device.platform != "cpu" for device in array.devices()):
        return host
    before = copies.get(name)
    if before is None or (before.shape, before.dtype) != (host.shape, host.dtype):
        copies[name] = np.array(host)
    else:
        np.copyto(before, host)
    return copies[name]


def jsonable(metadata: Any) -> dict[str, Any]:
    """``metadata``, if JSON can keep them."""
    if metadata is None:
        return {}
    hint = "it is kept as JSON: dicts with string keys, lists, strings, numbers, booleans and None"
    if not isinstance(metadata, dict):
        raise ConfigError(f"metadata must be a dict, got {type(metadata).__name__}; {hint}")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"metadata cannot be kept: {error}; {hint}") from error
    return metadata


def _check_replaceable(place: Path) -> None:
    if os.path.lexists(place) and not (place.is_file() and _file.is_ours(place)):
        raise CheckpointError(f"{place} exists and is no checkpoint, so it is not replaced; give another path")

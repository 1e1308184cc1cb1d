"""A checkpoint: any pytree of arrays in one directory, whole or absent, checked when it is read.

    path/
      manifest.json        what the arrays are, their checksums and its own, the caller's metadata
      arrays.safetensors   the arrays, each named by its place in the tree, such as params/0/kernel
      orbax/               arrays that lie on the devices of several hosts, if there are any, stored by Orbax

Nothing in it is code, and no name in it is ever used as a path.
"""

import contextlib
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks_named as checks
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError
from jaxnet.training import _atomic, _manifest, _orbax

MANIFEST, ARRAYS, ORBAX = "manifest.json", "arrays.safetensors", "orbax"
_LISTED = 10  # names in a message
# What every version of safetensors stores under a type of its own. Other types are stored as their bytes, on one more
# axis of uint8.
_CODES = {"bool": "BOOL", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_CODES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_MAX_HEADER = 100_000_000  # safetensors' own limit


def save(path: str | os.PathLike[str], tree: Any, *, metadata: dict[str, Any] | None = None) -> Path:
    """Saves a pytree of arrays as one directory, which is whole or absent whenever the process is killed.

    It is written under a temporary name, forced to disk and renamed. A checkpoint that is there already is replaced
    in one step: at every moment, ``path`` is the old one or the new one. Temporaries that killed processes left
    beside it are removed; those of processes that are still saving are left alone.

    With arrays on the devices of several hosts, every process must call it, and all must see the same file system;
    of arrays that each process has for itself, those of the first are saved. Without, the first alone should call it.

    Args:
      path: the directory to be; its parents are made.
      tree: JAX arrays of any dtype, typed PRNG keys among them, and NumPy arrays, whose dtypes are kept (float64, too,
        whatever JAX is set to). Python numbers are refused, since what comes back could not be what was saved: put
        them into ``metadata``, or make them arrays.
      metadata: a dict for `json.dumps`: it comes back as JSON has it, with lists for tuples and strings for keys.

    Returns:
      ``path``.

    Raises:
      DTypeError: a leaf that is no array, or of a dtype that is no number.
      DataError: an array that was donated or deleted.
      ConfigError: metadata that are not JSON, or two leaves whose places have the same name.
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
    who = "save"
    leaves = _named(who, "tree", tree)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise DTypeError(f"{who}: tree[{name!r}] is a shape and a dtype, but no array; save what it describes")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise DataError(
                f"{who}: tree[{name!r}] was donated to a compiled function, or deleted, so its numbers are gone; "
                f"save what the step returned instead of what was given to it"
            )
    manifest = {
        "format": _manifest.FORMAT,
        "version": _manifest.VERSION,
        "jax": jax.__version__,
        "file": {},
        "leaves": {name: _entry(leaf) for name, leaf in leaves.items()},
        "metadata": _jsonable(who, metadata),
    }
    place = Path(os.path.realpath(checks.path(who, "path", path)))
    arrays = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}
    spread = {name: array for name, array in arrays.items() if _over_hosts(array)}
    here = {name: array for name, array in arrays.items() if name not in spread}
    try:
        _check_replaceable(who, place)
        if spread:
            _write_over_hosts(place, here, spread, manifest)
        else:
            with _atomic.replacing(place) as directory:
                _write(directory, here, manifest)
    except OSError as error:
        raise CheckpointError(
            f"{who}: cannot write {path}: {error.strerror or error}; what lies there is whole, or as it was before"
        ) from error
    return checks.path(who, "path", path)


def load(path: str | os.PathLike[str], like: Any, *, under: str = "") -> Any:
    """Loads the arrays of a checkpoint by name into the structure of ``like``.

    Every name, shape and dtype must be that of ``like``, and every checksum right; nothing is cast, left out or
    loaded by its position. Nothing that the directory holds is ever run.

    Args:
      path: the directory that `save` wrote.
      like: the tree that was saved, or one of its structure: arrays, or `jax.ShapeDtypeStruct` (`jax.eval_shape` of an
        ``init``), with a sharding or without.
      under: the place in the saved tree of the part that is wanted, such as ``"train_state/params"``: ``like`` is then
        that part alone. Everything unless given.

    Returns:
      The tree: on the devices and in the sharding of ``like``, where that says so, else JAX's default; NumPy arrays
      where ``like`` has NumPy's.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or one that does not fit; all names that do not fit are listed.
      ConfigError: a 64-bit JAX array is wanted while JAX has them disabled.
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
    stored = Stored("load", path)
    leaves = stored.fit(like, under)
    return stored.read(leaves, jax.tree.structure(like))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``metadata`` that a checkpoint was saved with; no array is read.

    Args:
      path: the directory that `save` wrote.

    Returns:
      The dict.

    Raises:
      CheckpointError: no checkpoint, or a damaged one.

    Example:
      >>> import tempfile
      >>> from jaxnet.training import read_metadata, save
      >>> directory = tempfile.TemporaryDirectory()
      >>> read_metadata(save(f"{directory.name}/run", (), metadata={"epoch": 3}))
      {'epoch': 3}
      >>> directory.cleanup()
    """
    return Stored("read_metadata", path).manifest["metadata"]


class Stored:
    """A checkpoint on disk whose manifest is sound, and whose file of arrays has the right size and header.

    Args:
      who: the function that reads it, for messages.
      path: its directory.

    Attributes:
      manifest: as `_manifest.read` gives it.
    """

    def __init__(self, who: str, path: str | os.PathLike[str]):
        self.who = who
        path = checks.path(who, "path", path)
        self.path = _atomic.current(Path(os.path.realpath(path)))
        if not self.path.is_dir():
            kind = "is a file" if self.path.exists() else "does not exist"
            raise CheckpointError(f"{who}: {path} {kind}; wanted the directory that jaxnet.training.save wrote")
        if not (self.path / MANIFEST).exists():
            raise CheckpointError(f"{who}: {path} is no checkpoint of jaxnet: it holds no {MANIFEST}")
        with self._telling():
            self.manifest = _manifest.read(self.path / MANIFEST)
            file, self._header = _outline(self.path / ARRAYS)
            if self.manifest["file"] != file:
                raise CheckpointError(f"{self.path / ARRAYS} is damaged: its size or header is not what was saved")

    def fit(self, like: Any, under: str = "") -> dict[str, Any]:
        """The leaves of ``like`` by name, if those stored ``under`` a place have the same names, shapes and dtypes."""
        if not isinstance(under, str):
            raise ConfigError(f"{self.who}: under must be a place such as 'train_state/params', got {under!r}")
        under = under.strip("/")
        leaves = _named(self.who, "like", like)
        for name, leaf in leaves.items():
            if not isinstance(leaf, (np.ndarray, np.generic)) and not _is_key(leaf):
                canonical = jax.dtypes.canonicalize_dtype(leaf.dtype)
                if canonical != leaf.dtype:
                    raise ConfigError(
                        f"{self.who}: like[{name!r}] is {leaf.dtype}, and JAX would make it {canonical}; enable 64-bit "
                        f"types with jax.config.update('jax_enable_x64', True), or have a NumPy array there"
                    )
        if under:
            leaves = {f"{under}/{name}" if name else under: leaf for name, leaf in leaves.items()}
        wanted = {name: _entry(leaf) for name, leaf in leaves.items()}
        everything = self.manifest["leaves"]
        stored = {name: entry for name, entry in everything.items() if f"{name}/".startswith(under and f"{under}/")}
        if leaves and not stored and under:
            places = _listed("places", [_short(place) for place in _places(everything)], ", ")
            raise CheckpointError(f"{self.who}: {self.path} has nothing under {under!r}; it has {''.join(places)}")
        different = [
            f"{_short(name)} is {_text(stored[name])} in the file, {_text(wanted[name])} in the tree"
            for name in wanted
            if name in stored and not _same(stored[name], wanted[name])
        ]
        complaints = [
            *_listed("missing from the file", [_short(name) for name in wanted if name not in stored], ", "),
            *_listed("in the file alone", [_short(name) for name in stored if name not in wanted], ", "),
            *_listed("different", different, "; "),
        ]
        if complaints:
            fits = [] if under else [_short(place) for place in _places(everything) if _fits(wanted, everything, place)]
            complaints += [f"but it fits a part: give under={' or under='.join(fits[:3])}"] if fits else []
            lines = "".join(f"\n  {line}" for line in complaints)
            raise CheckpointError(f"{self.who}: {self.path} does not fit the tree that it is loaded into:{lines}")
        return leaves

    def read(self, leaves: dict[str, Any], structure: Any) -> Any:
        """The arrays, checked and placed like ``leaves`` (which `fit` gave), in a tree of ``structure``."""
        with self._telling():
            spread = {name: leaf for name, leaf in leaves.items() if "orbax" in self.manifest["leaves"][name]}
            found = dict(self._read({name: leaf for name, leaf in leaves.items() if name not in spread}))
            found |= self._read_over_hosts(spread)
        return jax.tree.unflatten(structure, [_as_key(found[name], leaf) for name, leaf in leaves.items()])

    def _read(self, leaves: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        from safetensors import SafetensorError, safe_open

        file = self.path / ARRAYS
        layout = {name: _layout(leaf) for name, leaf in leaves.items()}
        header = {name: entry for name, entry in self._header.items() if name != "__metadata__"}
        outline = {n: (e.get("dtype"), e.get("shape")) for n, e in header.items() if isinstance(e, dict)}
        names = {name for name, entry in self.manifest["leaves"].items() if "orbax" not in entry}
        same = all(outline.get(n) == (code, list(shape)) for n, (code, shape) in layout.items())
        if not same or set(outline) != names or len(outline) != len(header):
            raise CheckpointError(f"{file} is damaged: it holds other arrays than {MANIFEST} says")
        try:
            with safe_open(file, framework="np") as arrays:
                for name, leaf in leaves.items():
                    raw = arrays.get_tensor(name)
                    if self.manifest["leaves"][name].get("crc32") != _crc32(raw):
                        raise CheckpointError(f"{file} is damaged: {_short(name)} does not have its checksum")
                    data = _data(leaf)
                    yield name, _placed(raw.reshape(-1).view(data.dtype).reshape(data.shape), leaf)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged: {str(error)[:200]}") from error

    def _read_over_hosts(self, leaves: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        items = {name: str(self.manifest["leaves"][name]["orbax"]) for name in leaves}
        likes = {items[name]: _orbax_like(leaf) for name, leaf in leaves.items()}
        if len(likes) != len(leaves) or not all(re.fullmatch("[0-9]{1,9}", item) for item in likes):
            raise CheckpointError(f"{self.path / MANIFEST} is damaged: it does not number the arrays in {ORBAX}")
        if likes:
            _orbax.check(self.path / ORBAX, self.manifest.get("orbax"))
        there = sum("orbax" in entry for entry in self.manifest["leaves"].values())
        found = _orbax.read(self.path / ORBAX, likes, part=len(likes) < there) if likes else {}
        for name, leaf in leaves.items():
            data, array = _data(leaf), found[items[name]]
            if array.shape != data.shape or array.dtype != data.dtype:
                raise CheckpointError(f"{self.path / ORBAX} is damaged: {_short(name)} is not what {MANIFEST} says")
            yield name, array if _host(leaf) or _sharding(leaf) else jnp.asarray(np.asarray(array))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            if error.message.startswith(f"{self.who}: "):
                raise
            raise CheckpointError(f"{self.who}: {error.message}") from error


def _named(who: str, argument: str, tree: Any) -> dict[str, Any]:
    """The leaves by the names of their places, each an array or a `jax.ShapeDtypeStruct`."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        where = f"{argument}[{name!r}]"
        if name in found:
            raise ConfigError(f"{who}: two leaves of {argument} are named {name!r}; rename a key that contains '/'")
        if name == "__metadata__" or not name.isprintable():
            raise ConfigError(f"{who}: no leaf can be named {name!r} in a file of safetensors; rename the key")
        if isinstance(leaf, jax.core.Tracer):
            raise DTypeError(f"{who}: {where} is a traced value; call {who} outside of jit, grad and vmap")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise DTypeError(
                f"{who}: {where} is no array but {type(leaf).__name__}; put it into metadata, or make it one with "
                f"numpy.asarray"
            )
        if not _is_key(leaf) and not checks.is_numeric(np.dtype(leaf.dtype)):
            raise DTypeError(
                f"{who}: {where} has dtype {leaf.dtype}; wanted numbers in this machine's byte order, for example "
                f"x.astype('float32')"
            )
        if isinstance(leaf, np.ma.MaskedArray):
            raise DTypeError(f"{who}: {where} is a masked array, whose mask would be lost; save its data and its mask")
        found[name] = leaf
    return found


def _entry(leaf: Any) -> dict[str, Any]:
    """What the manifest says of a leaf; that of ``like`` must be the same."""
    kind = f"key<{_implementation(leaf)}>" if _is_key(leaf) else "array"
    data = _data(leaf)
    return {"kind": kind, "dtype": data.dtype.name, "shape": list(data.shape)}


def _same(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(stored.get(field) == value for field, value in wanted.items())


def _fits(wanted: dict[str, Any], stored: dict[str, Any], under: str) -> bool:
    """Whether all leaves are there ``under`` a place."""
    places = {name: stored.get(f"{under}/{name}") for name in wanted}
    return bool(wanted) and all(entry is not None and _same(entry, wanted[name]) for name, entry in places.items())


def _places(names: Iterable[str]) -> list[str]:
    """What may be given as ``under``, the widest first."""
    parts = [name.split("/") for name in names]
    found = dict.fromkeys("/".join(part[:depth]) for part in parts for depth in range(1, len(part)))
    return sorted(found, key=lambda place: place.count("/"))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _implementation(key: Any) -> Any:
    """The name of a key's generator, also of a `jax.ShapeDtypeStruct`'s."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def _data(leaf: Any) -> Any:
    """Shape and dtype of the numbers that stand for a leaf."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _layout(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """The type and shape under which safetensors stores a leaf."""
    data = _data(leaf)
    code = _CODES.get(data.dtype.name)
    return (code, data.shape) if code else ("U8", (*data.shape, data.dtype.itemsize))


def _crc32(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"


def _jsonable(who: str, metadata: Any) -> dict[str, Any]:
    if metadata is None:
        return {}
    hint = "it is kept as JSON: dicts with string keys, lists, strings, numbers, booleans and None"
    if not isinstance(metadata, dict):
        raise ConfigError(f"{who}: metadata must be a dict, got {type(metadata).__name__}; {hint}")
    try:
        _manifest.json.dumps(metadata).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{who}: metadata cannot be kept: {error}; {hint}") from error
    return metadata


def _check_replaceable(who: str, place: Path) -> None:
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        names = ["a file"]
    if not set(names) <= {MANIFEST, ARRAYS, ORBAX}:
        raise CheckpointError(f"{who}: {place} exists and is no checkpoint, so it is not replaced; give another path")


def _over_hosts(array: Any) -> bool:
    return isinstance(array, jax.Array) and not array.is_fully_addressable and array.size > 0  # Orbax has no empty ones


def _write(directory: Path, arrays: dict[str, Any], manifest: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    flat = {}
    filled = {name: array if array.size else np.zeros(array.shape, array.dtype) for name, array in arrays.items()}
    for name, array in jax.device_get(filled).items():
        array = np.asarray(array, order="C")  # safetensors 0.8.0 writes other orders wrongly (its issue 825)
        code, shape = _layout(array)
        flat[name] = array if code != "U8" else array.reshape(-1).view(np.uint8).reshape(shape)
        manifest["leaves"][name]["crc32"] = _crc32(array)
    try:
        save_file(flat, directory / ARRAYS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    manifest["file"] = _outline(directory / ARRAYS)[0]
    _manifest.write(directory / MANIFEST, manifest)
    shutil.copymode(directory / MANIFEST, directory / ARRAYS)  # safetensors 0.8.0 lets none but the owner read it


def _write_over_hosts(place: Path, here: dict[str, Any], spread: dict[str, Any], manifest: dict[str, Any]) -> None:
    first = jax.process_index() == 0
    parts = {}
    for i, (name, array) in enumerate(spread.items()):  # numbers, since Orbax makes paths of its names
        parts[str(i)] = array
        manifest["leaves"][name]["orbax"] = str(i)
    trouble: Exception | None = None
    try:
        with contextlib.ExitStack() as stack:
            directory, failure = None, OSError("the first process could not begin to write")
            if first:
                try:
                    directory = stack.enter_context(_atomic.replacing(place))
                except OSError as error:
                    failure = error
            name = _orbax.share(directory.name if directory else "")
            if not name:
                raise failure
            directory = place.parent / name
            _orbax.write(directory / ORBAX, parts)
            if first:
                _, manifest["orbax"] = _orbax.checksums(directory / ORBAX)
                _write(directory, here, manifest)
    except (OSError, CheckpointError) as error:
        trouble = error
    if not _orbax.all_well(trouble is None):  # once it is there, all may go on; and none waits for one that failed
        raise trouble or OSError("the first process could not write it")


def _outline(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the manifest says of a file of safetensors, and its parsed header."""
    with _manifest.open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = opened.read(8)
        count = int.from_bytes(length, "little")
        if len(length) < 8 or count > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{file} is truncated, or no file of safetensors")
        raw = opened.read(count)
    return {"size": size, "header_crc32": f"{zlib.crc32(length + raw):08x}"}, _manifest.parse(raw, file)


def _host(like: Any) -> bool:
    return isinstance(like, (np.ndarray, np.generic))


def _sharding(like: Any) -> Any:
    """Where ``like`` says that its array belongs; None if anywhere."""
    return like.sharding if isinstance(like, jax.ShapeDtypeStruct) or like.committed else None


def _placed(array: np.ndarray, like: Any) -> Any:
    if _host(like):
        return array
    sharding = _sharding(like)  # of a key, it also places the data: the axis that they have more comes last
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _orbax_like(like: Any) -> Any:
    """What tells Orbax to do the same."""
    data = _data(like)
    if _host(like) or _sharding(like) is None:
        return np.broadcast_to(np.zeros((), data.dtype), data.shape)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_sharding(like))


def _as_key(array: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(array, impl=_implementation(like)) if _is_key(like) else array


def _listed(what: str, items: list[str], separator: str) -> list[str]:
    more = f"{separator}and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"{len(items)} {what}: {separator.join(items[:_LISTED])}{more}"] if items else []


def _short(value: Any) -> str:
    """What a file says, in a message: quoted, since it may be hostile, and not too long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _text(entry: dict[str, Any]) -> str:
    kind = "" if entry.get("kind") == "array" else f"{entry.get('kind')} of "
    shape = entry.get("shape")
    numbers = tuple(shape) if isinstance(shape, list) else shape
    text = f"{kind}{entry.get('dtype')} {numbers}"
    return text if len(text) <= 100 and text.isprintable() else _short(text)

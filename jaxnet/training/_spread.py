"""Arrays that lie on the devices of several hosts: each writes its pieces to a file of its own, the first an index.

    run                            the index, a checkpoint as any other, without the arrays that are in pieces
    run.part-0-0123456789abcdef    the pieces that process 0 has, each named as params/0/kernel[0:4,8:16]
    run.part-1-0123456789abcdef

The index is written last, and names its parts by a token that no other save has. So until it is there, the checkpoint
that was there before has all of its own; and parts that no index names are nobody's.
"""

import contextlib
import math
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnet.errors import CheckpointError
from jaxnet.training import _file, devices

_PART = re.compile(r"(?P<name>.+)\.part-\d+-(?P<token>[0-9a-f]{16})", re.DOTALL)


def write(path: Path, arrays: dict[str, jax.Array], here: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Writes a checkpoint of several hosts; every process must call it, on a shared file system.

    Args:
      path: the index to be.
      arrays: the arrays in pieces.
      here: the other arrays; the first process's are written.
      description: as for `_file.write`; of all leaves.

    Raises:
      OSError: a file system refused, on any of the processes.
    """
    first = jax.process_index() == 0
    # The name too is the first process's: what another one lists of the directory may be older.
    mine = np.frombuffer((secrets.token_hex(8) + path.name).encode().ljust(300, b"\0"), np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes().rstrip(b"\0").decode()
    token, path = sent[:16], path.with_name(sent[16:])
    pieces, leaves = _pieces(arrays)
    part = {"leaves": leaves, "metadata": {}, "token": token, "part": jax.process_index()}
    index = {"parts": {"token": token, "count": jax.process_count()}}
    try:
        with _together():
            _file.write(_part(path, token, jax.process_index()), pieces, part)
        with _together():
            if first:
                _file.write(path, here, description | index)
    finally:
        if first:
            sweep(path.parent, path.name)


def _pieces(arrays: dict[str, jax.Array]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What this process has to write, and what is to be known of it: of each piece, one device has the first copy."""
    found, leaves = {}, {}
    for name, array in arrays.items():
        for shard in (shard for shard in array.addressable_shards if shard.replica_id == 0):
            spans = [part.indices(size)[:2] for part, size in zip(shard.index, array.shape, strict=True)]
            key = f"{name}[{','.join(f'{begin}:{end}' for begin, end in spans)}]"
            found[key] = shard.data
            leaves[key] = {"of": name, "dtype": array.dtype.name, "spans": spans}
    return jax.device_get(found), leaves


@contextlib.contextmanager
def reader(index: _file.File) -> Iterator[Callable[[str, jax.ShapeDtypeStruct], Any]]:
    """Opens the parts that an index names: gives what reads an array of a name, a function of a tuple of slices.

    Of several processes all must enter it, and all raise if one cannot read what it needs.

    Raises:
      CheckpointError: a part is missing, damaged, or another's.
    """
    with _together(), contextlib.ExitStack() as stack:
        match index.description.get("parts"):
            case {"token": str(token), "count": int(count)} if (
                re.fullmatch("[0-9a-f]{16}", token) and 0 < count < 2**20
            ):
                pass
            case _:
                raise index.damaged("it does not name its parts")
        pieces: dict[Any, list[Any]] = {}
        for number in range(count):
            file = stack.enter_context(_file.opened(_part(index.path, token, number)))
            if (file.description.get("token"), file.description.get("part")) != (token, number):
                raise file.damaged(f"it is no part of {index.path.name}")
            for key, leaf in file.description["leaves"].items():
                pieces.setdefault(str(leaf.get("of")), []).append((file, key, leaf.get("spans")))
        yield lambda name, struct: _Pieces(name, pieces.get(name, []), struct)


class _Pieces:
    """An array that is read piece by piece, as far as it is wanted."""

    def __init__(self, name: str, pieces: list[Any], struct: jax.ShapeDtypeStruct):
        self._name, self._pieces, self._struct = name, pieces, struct
        self._found: dict[str, np.ndarray] = {}

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        wanted = [part.indices(size)[:2] for part, size in zip(index, self._struct.shape, strict=True)]
        array = np.empty([end - begin for begin, end in wanted], self._struct.dtype)
        filled = 0
        for file, key, spans in self._pieces:
            if not _are_spans(spans, self._struct.shape):
                raise file.damaged(f"its {_file.quoted(key)} is no piece of {_file.quoted(self._name)}")
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, spans, strict=True)]
            if all(begin < end for begin, end in both):
                if key not in self._found:
                    self._found[key] = file.read(key, self._struct.dtype, tuple(end - begin for begin, end in spans))
                there, here = (
                    tuple(slice(b - start, e - start) for (b, e), (start, _) in zip(both, of, strict=True))
                    for of in (spans, wanted)
                )
                array[here] = self._found[key][there]
                filled += math.prod(end - begin for begin, end in both)
        if filled != array.size:
            raise CheckpointError(f"the parts are damaged: they do not hold all of {_file.quoted(self._name)}")
        return array


def _are_spans(spans: Any, shape: tuple[int, ...]) -> bool:
    """Whether a file names a beginning and an end within each axis."""
    try:
        return all(0 <= int(begin) <= int(end) <= size for (begin, end), size in zip(spans, shape, strict=True))
    except (TypeError, ValueError):
        return False


def sweep(directory: Path, name: str = "") -> None:
    """Removes the parts that no index names any more: of one checkpoint, or of all in a directory.

    They are what was replaced or removed, and what processes left that died as they wrote.
    """
    for part in directory.iterdir():
        found = _PART.fullmatch(part.name)
        if found and name in ("", found["name"]) and not _is_wanted(part.with_name(found["name"]), found["token"]):
            with contextlib.suppress(OSError):
                part.unlink()


def _is_wanted(index: Path, token: str) -> bool:
    try:
        with _file.opened(index) as file:
            parts = file.description.get("parts")
            return isinstance(parts, dict) and parts.get("token") == token
    except CheckpointError:
        return index.exists()  # a damaged one may be repaired


def _part(path: Path, token: str, number: int) -> Path:
    return path.with_name(f"{path.name}.part-{number}-{token}")


def _together() -> contextlib.AbstractContextManager[None]:
    return devices.together(CheckpointError("another process could not go on with it; its error says why"))

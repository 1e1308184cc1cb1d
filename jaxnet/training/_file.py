"""A file of named arrays that describes and seals itself: one of safetensors, with all there is to know in its header.

    8 bytes: how long the header is
    {"__metadata__":{"format":"jaxnet checkpoint","crc32":"89abcdef","description":"..."},
     "params/0/kernel":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]}}
    the arrays

The description is JSON, in a string since safetensors wants strings there:

    {"version": 2, "size": 48, "jax": "0.10.2", "metadata": {},
     "leaves": {"params/0/kernel": {"kind": "array", "dtype": "float32", "shape": [3, 4], "crc32": "01234567"}}}

The header's checksum is the CRC-32 of its length and of all bytes after these digits, and all before must be there byte
for byte, so no bit of the file can flip unseen. Checksums are CRC-32 because they guard against damage, not against
forgery (who can write the arrays can write the checksums): it finds every flip of up to 3 bits and every burst of up to
32, misses other damage once in 2**32, and costs 0.3 ns a byte where SHA-256 costs 0.7, next to 2 ns a byte for writing.

Source: https://huggingface.co/docs/safetensors. The library itself could not hash its header, nor write to our files.
"""

import contextlib
import json
import math
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxnet.errors import CheckpointError
from jaxnet.training import _atomic

VERSION = 2
"""Of the description; what had version 1 was a directory."""

_START = b'{"__metadata__":{"format":"jaxnet checkpoint","crc32":"'
_MAX_HEADER = 100_000_000  # safetensors' own limit; 300,000 arrays
# Types that every version of safetensors knows. Complex numbers are stored as pairs on one more axis, other types as
# their bytes on one more axis of uint8.
_CODES = {"bool": "BOOL", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_CODES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_PAIRS = {"complex64": "F32", "complex128": "F64"}


def write(path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Writes arrays and what is to be known of them, in one step.

    Args:
      path: the file to be.
      arrays: by name.
      description: ``leaves``, a dict by name, and ``metadata`` at least; it is JSON.

    Raises:
      OSError: the file system refused.
      CheckpointError: the header would be larger than one can be.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    tensors, sums, size = {}, {}, 0
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):  # each at a multiple of it
        code, shape = _layout(array.dtype, array.shape)
        tensors[name] = {"dtype": code, "shape": shape, "data_offsets": [size, size + array.nbytes]}
        sums[name] = {"crc32": _crc32(_bytes(array))}
        size += array.nbytes
    leaves = {name: leaf | sums.get(name, {}) for name, leaf in description["leaves"].items()}
    start = header({"version": VERSION, "size": size} | description | {"leaves": leaves}, tensors.items())
    if len(start) > _MAX_HEADER:
        raise CheckpointError(
            f"the header would take {len(start):,} bytes, and {_MAX_HEADER:,} are allowed; "
            f"metadata are for small things: save large ones as arrays"
        )
    with _atomic.replacing(path) as file:
        for part in (start, *(_bytes(arrays[name]) for name in tensors)):
            _atomic.write_all(file, part)


def header(description: dict[str, Any], tensors: Iterable[tuple[str, Any]]) -> bytes:
    """The beginning of a file, sealed."""
    table = "".join(f",{json.dumps(name)}:{json.dumps(tensor)}" for name, tensor in tensors)
    rest = f'","description":{json.dumps(json.dumps(description))}}}{table}}}'.encode()
    rest += b" " * (-(len(_START) + 8 + len(rest)) % 8)  # so that the arrays are aligned
    length = (len(_START) + 8 + len(rest)).to_bytes(8, "little")
    return length + _START + _crc32(length + rest).encode() + rest


def is_ours(path: Path) -> bool:
    """Whether a file begins as those that `write` wrote, damaged or not."""
    with open_regular(path) as file:
        return file.read(8 + len(_START))[8:] == _START


class File:
    """A file to read, whose header is sound and whose size is right.

    Args:
      path: where it lies.
      file: it, opened.

    Attributes:
      description: what `write` was given, with ``version``, ``size`` and each stored leaf's ``crc32``.

    Raises:
      CheckpointError: it is not what `write` wrote.
    """

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self._file = path, file
        size, length = os.fstat(file.fileno()).st_size, file.read(8)
        count = int.from_bytes(length, "little")
        if len(length) < 8 or count > min(size - 8, _MAX_HEADER):
            hint = ""
            if length.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle
                hint = "; of a file that torch.save wrote, interop.from_torch takes what torch.load reads"
            raise CheckpointError(f"{path} is truncated, or no checkpoint of jaxnet{hint}")
        raw = file.read(count)
        seal, rest = raw[len(_START) :][:8], raw[len(_START) + 8 :]
        if not raw.startswith(_START):
            raise CheckpointError(f"{path} is no checkpoint of jaxnet; wanted the file that jaxnet.training.save wrote")
        if seal != _crc32(length + rest).encode():
            raise CheckpointError(f"{path} is damaged: its header does not have its checksum")
        self._tensors, self._begin = _parse(raw, path), 8 + count
        self.description = found = _parse(self._tensors.pop("__metadata__").get("description"), path)
        if isinstance(found.get("version"), int) and found["version"] > VERSION:
            raise CheckpointError(
                f"{path} has version {found['version']} of the format, and this jaxnet knows {VERSION}: take a newer "
                f"jaxnet"
            )
        leaves = found.get("leaves")
        sound = isinstance(leaves, dict) and all(isinstance(leaf, dict) for leaf in leaves.values())
        if found.get("version") != VERSION or not sound or not isinstance(found.get("metadata"), dict):
            raise CheckpointError(f"{path} is no checkpoint of jaxnet: what describes it is incomplete")
        if found.get("size") != size - self._begin:
            raise CheckpointError(f"{path} is damaged: its size is not what was saved")
        if self._tensors.keys() != {name for name, leaf in leaves.items() if "spread" not in leaf}:  # pyright: ignore
            raise self.damaged("it holds other arrays than its description says")

    def read(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this type and shape, if that is what was saved."""
        leaf, (code, stored) = self.description["leaves"][name], _layout(dtype, shape)
        match self._tensors.get(name):
            case {"dtype": kind, "shape": sizes, "data_offsets": [int(begin), int(end)]} if (
                (kind, sizes) == (code, stored)
                and end - begin == math.prod(shape) * dtype.itemsize
                and 0 <= begin <= end <= self.description["size"]
            ):
                array = np.empty(shape, dtype)
                raw = _bytes(array)
                self._file.seek(self._begin + begin)
                if self._file.readinto(raw) != len(raw) or leaf.get("crc32") != _crc32(raw):  # pyright: ignore
                    raise self.damaged(f"{quoted(name)} does not have its checksum")
                return array
        raise self.damaged(f"its header has another {quoted(name)} than its description")

    def damaged(self, what: str) -> CheckpointError:
        """An error to raise."""
        return CheckpointError(f"{self.path} is damaged: {what}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[File]:
    """Opens a file to read: while entered, what is read is that file, even if another takes its place."""
    with open_regular(path) as file:
        try:
            yield File(path, file)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file to read; a missing one, a pipe or a device, which could block for ever, is a `CheckpointError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"{path} is no regular file")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return os.fdopen(descriptor, "rb")


def _layout(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, list[int]]:
    """The type and shape under which safetensors stores an array."""
    if dtype.name in _PAIRS:
        return _PAIRS[dtype.name], [*shape, 2]
    code = _CODES.get(dtype.name)
    return (code, [*shape]) if code else ("U8", [*shape, dtype.itemsize])


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _crc32(data: Any) -> str:
    return f"{zlib.crc32(data):08x}"


def _parse(raw: Any, source: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("duplicate keys")
        return found

    try:
        found = json.loads(raw, object_pairs_hook=unique)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is damaged, or of another format: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{source} is of another format: it holds no JSON object")
    return found


def quoted(value: Any) -> str:
    """What a file says, in a message: quoted, since it may be hostile, and not too long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

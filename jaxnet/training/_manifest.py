"""The manifest of a checkpoint: a JSON file that says what the arrays are, and ends with its own checksum.

    {
     "format": "jaxnet checkpoint", "version": 1, "jax": "0.10.2",
     "file": {"size": 4096, "header_crc32": "89abcdef"},
     "leaves": {"params/0/kernel": {"kind": "array", "dtype": "float32", "shape": [3, 4], "crc32": "01234567"}},
     "metadata": {},
     "crc32": "76543210"
    }

The last line is the CRC-32 of all bytes before it, and must be there byte for byte, so no bit of the file can flip
unseen. Checksums are CRC-32 because they guard against damage, not against forgery (who can write the arrays can
write the checksums): it finds every flip of up to 3 bits and every burst of up to 32, misses other damage once in
2**32, and costs 0.3 ns a byte where SHA-256 costs 0.7, next to 2 ns a byte for writing.
"""

import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from jaxnet.errors import CheckpointError

FORMAT = "jaxnet checkpoint"
VERSION = 1
_MAX_BYTES = 2**25  # 200,000 leaves
_SEAL = ',\n "crc32": "{:08x}"\n}}\n'


def write(path: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest and its seal."""
    body = json.dumps(manifest, indent=1)[: -len("\n}")].encode()
    if len(body) > _MAX_BYTES:
        raise CheckpointError(
            f"save: the manifest would take {len(body):,} bytes, and {_MAX_BYTES:,} are allowed; "
            f"metadata are for small things: save large ones as arrays"
        )
    path.write_bytes(body + _seal(body))


def read(path: Path) -> dict[str, Any]:
    """Reads a manifest; anything but what `write` wrote is a `CheckpointError`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES + 100:
            raise CheckpointError(f"{path} is damaged, or no manifest: it is larger than one can be")
        raw = file.read()
    body = raw[: -len(_seal(b""))]
    if raw != body + _seal(body):
        raise CheckpointError(f"{path} is damaged: its checksum is not that of its bytes")
    manifest = parse(raw, path)
    version = manifest.get("version")
    if manifest.get("format") != FORMAT or not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} is no manifest of a {FORMAT}")
    if version > VERSION:
        raise CheckpointError(
            f"{path} has version {version} of the format, and this jaxnet knows {VERSION}: take a newer jaxnet"
        )
    leaves = manifest.get("leaves")
    sound = isinstance(leaves, dict) and all(isinstance(entry, dict) for entry in leaves.values())
    if not sound or not isinstance(manifest.get("metadata"), dict) or not isinstance(manifest.get("file"), dict):
        raise CheckpointError(f"{path} is no manifest of a {FORMAT}: entries are missing")
    return manifest


def _seal(body: bytes) -> bytes:
    return _SEAL.format(zlib.crc32(body)).encode()


def parse(raw: bytes, source: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("duplicate keys")
        return found

    try:
        found = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is damaged, or of another format: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{source} is of another format: it holds no JSON object")
    return found


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read; a missing one, a pipe or a device, which could block for ever, is a `CheckpointError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"{path} is no regular file")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return os.fdopen(descriptor, "rb")

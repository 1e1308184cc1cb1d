"""Checkpoints with flipped bits and worse: `load` must refuse them, or read what was saved."""

import copy
import json
import os
import pickle
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.errors import CheckpointError
from jaxnet.training import History, _manifest, load, read_metadata, save
from jaxnet.training.checkpoint import ARRAYS, MANIFEST
from jaxnet.training.history import Log

TREE = {
    "params": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -2], jnp.bfloat16)],
    "again": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
    "mask": np.array([[True], [False]]),
    "spectrum": np.array([1 + 2j, 3], np.complex64),
    "none": np.zeros((0, 3), np.float64),
    "count": np.array(7, np.int32),
}


def flips(count: int, directory: Path, *, seed: int = 0) -> tuple[int, int]:
    """Flips single bits of both files, one at a time: how many `load` refused, of how many."""
    draw = random.Random(seed)
    path = save(directory / "flips", TREE, metadata={"text": "x" * 50})
    bits = [(name, bit) for name in (MANIFEST, ARRAYS) for bit in range(8 * (path / name).stat().st_size)]
    found = 0
    for name, bit in draw.sample(bits, min(count, len(bits))):
        whole = (path / name).read_bytes()
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        found += outcome(path) == "refused"
        (path / name).write_bytes(whole)
    assert outcome(path) == "read"
    return found, min(count, len(bits))


def history_flips(count: int, directory: Path, *, seed: int = 0) -> tuple[int, int]:
    """Flips single bits of a run's history, one at a time: how many were found, of how many."""
    draw, path = random.Random(seed), directory / "flips.jsonl"
    log = Log(path)
    log.begin(History([{"epoch": 1, "step": 8, "loss": 0.5, "validation_loss": float("nan")}] * 5))
    log.close()
    whole, found = path.read_bytes(), 0
    bits = draw.sample(range(8 * len(whole)), min(count, 8 * len(whole)))
    for bit in bits:
        damaged = bytearray(whole + b'{"epoch": 6}\n')  # which came after the checkpoint, and does not count
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            Log.read(path, log.seal)
        except CheckpointError:
            found += 1
    path.write_bytes(whole + b'{"epo')
    assert len(Log.read(path, log.seal)) == 5
    return found, len(bits)


def outcome(path: Path) -> str:
    """What `load` makes of a copy of `TREE`: ``read`` if as saved, ``refused``, or ``wrong``.

    Any exception but `CheckpointError` passes.
    """
    try:
        tree = load(path, TREE)
        read_metadata(path)
    except CheckpointError:
        return "refused"
    return "read" if _same(tree, TREE) else "wrong"


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fuzz(seconds: float, directory: Path, *, seed: int = 0) -> dict[str, int]:
    """Reads checkpoints that were damaged at random, and ones whose checksums were made to fit the damage.

    Returns:
      How many there were of each `outcome`. Where arrays are read, they must be those that were saved: ``wrong`` must
      stay away.
    """
    draw = random.Random(seed)
    path = save(directory / "fuzz", TREE, metadata={"history": [1.5, None, "text", {"deep": [True]}]})
    whole = {name: (path / name).read_bytes() for name in (MANIFEST, ARRAYS)}
    counts = {"read": 0, "refused": 0, "wrong": 0}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        files = dict(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            draw.choice(DAMAGES)(draw, files)
        shutil.rmtree(path)
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
        counts[outcome(path)] += 1
    return counts


def _pick(draw: random.Random, files: dict[str, bytes]) -> tuple[str, bytes]:
    name = draw.choice(sorted(files) or [ARRAYS])
    return name, files.get(name, b"")


def _flip(draw: random.Random, files: dict[str, bytes]) -> None:
    name, content = _pick(draw, files)
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    files[name] = bytes(damaged)


def _cut(draw: random.Random, files: dict[str, bytes]) -> None:
    name, content = _pick(draw, files)
    a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    files[name] = draw.choice((content[:a], content[b:], content[:a] + content[b:], content[:b] + content[a:]))


def _insert(draw: random.Random, files: dict[str, bytes]) -> None:
    name, content = _pick(draw, files)
    a = draw.randrange(len(content) + 1)
    files[name] = content[:a] + draw.randbytes(draw.randint(1, 30)) + content[a:]


def _foreign(draw: random.Random, files: dict[str, bytes]) -> None:
    other = files.get(draw.choice((MANIFEST, ARRAYS)), b"")
    header = draw.choice((b"{}", b'{"a":{"dtype":"F32","shape":[9e99],"data_offsets":[0,4]}}', b"[" * 100_000, b"\xff"))
    files[draw.choice((MANIFEST, ARRAYS))] = draw.choice(
        (
            b"",
            b"null",
            b"[]",
            draw.randbytes(draw.randint(1, 300)),
            pickle.dumps(os.getcwd),
            b"PK\x03\x04" + draw.randbytes(50),
            (2**63 - 1).to_bytes(8, "little") + other,
            len(header).to_bytes(8, "little") + header + draw.randbytes(draw.randint(0, 20)),
            other,
        )
    )


def _drop(draw: random.Random, files: dict[str, bytes]) -> None:
    files.pop(_pick(draw, files)[0], None)


def _mutate(draw: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        changed = dict(value)
        kept = changed.pop(key)
        if draw.random() < 0.8:
            changed[key] = _mutate(draw, kept)
        else:
            changed[draw.choice(("../../x", "", "__metadata__", "orbax", "params/0"))] = kept
        return changed
    if isinstance(value, list) and value and draw.random() < 0.8:
        i = draw.randrange(len(value))
        return [*value[:i], *([_mutate(draw, value[i])] if draw.random() < 0.8 else []), *value[i + 1 :]]
    if isinstance(value, int) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 8, 2**31, 2**63, -(2**64)))
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    pool = (
        None,
        True,
        -1,
        0,
        1e300,
        float("nan"),
        2**70,
        "",
        "U8",
        "F32",
        "float32",
        "object",
        "key<rbg>",
        [],
        {},
        deep,
    )
    return draw.choice(pool)


def _reseal(draw: random.Random, files: dict[str, bytes]) -> None:
    _with_manifest(files, lambda manifest: _mutate(draw, manifest))


def _reheader(draw: random.Random, files: dict[str, bytes]) -> None:
    """Changes the header of the arrays, and makes the manifest's checksums fit."""
    content = files.get(ARRAYS, b"")
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return
    text = json.dumps(_mutate(draw, header)).encode()
    if draw.random() < 0.2 and isinstance(header, dict) and header:  # duplicate keys
        text = text[:-1] + b"," + json.dumps({key: header[key] for key in list(header)[:1]}).encode()[1:]
    start = len(text).to_bytes(8, "little") + text
    files[ARRAYS] = start + content[8 + length :]
    entry = {"size": len(files[ARRAYS]), "header_crc32": f"{_manifest.zlib.crc32(start):08x}"}
    _with_manifest(files, lambda manifest: manifest | {"file": entry} if isinstance(manifest, dict) else manifest)


def _with_manifest(files: dict[str, bytes], change: Callable[[Any], Any]) -> None:
    try:
        manifest = json.loads(files.get(MANIFEST, b""))
    except (ValueError, RecursionError):
        return
    if isinstance(manifest, dict):
        manifest.pop("crc32", None)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, MANIFEST)
        _manifest.write(path, change(copy.deepcopy(manifest)))
        files[MANIFEST] = path.read_bytes()


DAMAGES = (_flip, _cut, _insert, _foreign, _drop, _reseal, _reseal, _reheader, _reheader)

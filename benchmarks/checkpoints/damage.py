"""Checkpoints with flipped bits and worse: `load` must refuse them, or read what was saved."""

import json
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.errors import CheckpointError
from jaxnet.training import History, _file, load, read_metadata, save
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
    """Flips single bits of a checkpoint, one at a time: how many `load` refused, of how many."""
    path = save(directory / "flips", TREE, metadata={"text": "x" * 50})
    whole, found = path.read_bytes(), 0
    bits = random.Random(seed).sample(range(8 * len(whole)), min(count, 8 * len(whole)))
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found += outcome(path) == "refused"
    path.write_bytes(whole)
    assert outcome(path) == "read"
    return found, len(bits)


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
    whole = path.read_bytes()
    counts = {"read": 0, "refused": 0, "wrong": 0}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        content = whole
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            content = draw.choice(DAMAGES)(draw, content)
        path.write_bytes(content)
        counts[outcome(path)] += 1
    return counts


def _flip(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _cut(draw: random.Random, content: bytes) -> bytes:
    a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice((content[:a], content[b:], content[:a] + content[b:], content[:b] + content[a:]))


def _insert(draw: random.Random, content: bytes) -> bytes:
    a = draw.randrange(len(content) + 1)
    return content[:a] + draw.randbytes(draw.randint(1, 30)) + content[a:]


def _foreign(draw: random.Random, content: bytes) -> bytes:
    header = draw.choice((b"{}", b'{"a":{"dtype":"F32","shape":[9e99],"data_offsets":[0,4]}}', b"[" * 100_000, b"\xff"))
    return draw.choice(
        (
            b"",
            b"null",
            b"[]",
            draw.randbytes(draw.randint(1, 300)),
            pickle.dumps(os.getcwd),
            b"PK\x03\x04" + draw.randbytes(50),
            (2**63 - 1).to_bytes(8, "little") + content,
            len(header).to_bytes(8, "little") + header + draw.randbytes(draw.randint(0, 20)),
            content + content,
        )
    )


def _mutate(draw: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        changed = dict(value)
        kept = changed.pop(key)
        if draw.random() < 0.8:
            changed[key] = _mutate(draw, kept)
        else:
            changed[draw.choice(("../../x", "", "__metadata__", "spread", "params/0"))] = kept
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


def _reseal(draw: random.Random, content: bytes) -> bytes:
    """Changes the description, or the table of the arrays, and makes the header's checksum fit."""
    try:
        description, tensors, arrays = unsealed(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content
    if draw.random() < 0.5:
        description = _mutate(draw, description)
    else:
        tensors = _mutate(draw, tensors)
    entries = list(tensors.items()) if isinstance(tensors, dict) else [("a", tensors)]
    return _file.header(description, entries + entries[:1] * (draw.random() < 0.1)) + arrays


def unsealed(content: bytes) -> tuple[Any, Any, bytes]:
    """The description, the table of the arrays, and the arrays of a file."""
    end = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:end])
    return json.loads(tensors.pop("__metadata__")["description"]), tensors, content[end:]


DAMAGES = (_flip, _cut, _insert, _foreign, _reseal, _reseal, _reseal, _reseal)

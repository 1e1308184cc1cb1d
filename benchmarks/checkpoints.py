"""Checkpoints under kill -9, flipped bits and a fuzzer, and how fast they are written and read.

Three ways to save are killed in turns: over one path, over one path on a file system that cannot exchange two
directories, and into a `Checkpoints` that keeps the last three and the best. After every kill, the checkpoint must be
whole: of one step, and that step the last that was reported saved, or the one after it.
"""

import argparse
import copy
import json
import os
import pickle
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from jaxnet.errors import CheckpointError
from jaxnet.training import Checkpoints, _atomic, _manifest, load, read_metadata, save
from jaxnet.training.checkpoint import ARRAYS, MANIFEST

WAYS = ("replace", "aside", "keep")
TREE = {
    "params": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.5, -2], jnp.bfloat16)],
    "again": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
    "mask": np.array([[True], [False]]),
    "spectrum": np.array([1 + 2j, 3], np.complex64),
    "none": np.zeros((0, 3), np.float64),
    "count": np.array(7, np.int32),
}


def kills(count: int, directory: Path, *, mebibytes: float = 2.0, seed: int = 0) -> dict[str, dict[str, int]]:
    """Kills processes that save without pause, at random moments, and reads what they leave.

    Args:
      count: how many kills, shared by the three ways.
      directory: where to.
      mebibytes: the size of a checkpoint.
      seed: of the moments.

    Returns:
      way -> ``kills``, ``readable`` (whole, and of the right step), ``inside`` (kills that left a temporary behind,
      so that hit a save), ``left`` (temporaries after the next save) and ``saves`` (that were reported).
    """
    shares = {way: count // 3 + (i < count % 3) for i, way in enumerate(WAYS)}
    # A process of its own, which forks: with JAX running, this one must not, and a new interpreter a kill is slow.
    code = "import sys; from benchmarks import checkpoints; checkpoints.nursery(*sys.argv[1:])"
    arguments = [json.dumps(shares), str(directory), str(mebibytes), str(seed)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True, timeout=1000, cwd=root
    )
    return json.loads(done.stdout)


def nursery(shares: str, directory: str, mebibytes: str, seed: str) -> None:
    """The process that forks, kills and reads; prints what it found."""
    draw = random.Random(int(seed))
    report = {}
    for way, count in json.loads(shares).items():
        place = Path(directory, way)
        place.mkdir(parents=True)
        record = {"kills": 0, "readable": 0, "inside": 0, "left": 0, "saves": 0}
        saved = 0
        for _ in range(count):
            acknowledged = _killed(way, place, saved, float(mebibytes), draw)
            record["kills"] += 1
            record["saves"] += acknowledged - saved
            record["inside"] += bool(list(place.glob(".*.jaxnet-*")))
            found = _found(way, place, float(mebibytes))
            record["readable"] += found in (acknowledged, acknowledged + 1)
            saved = max(found, acknowledged)
        _saver(way, place, float(mebibytes))(saved + 1)
        record["left"] = len(list(place.glob(".*")))
        report[way] = record
    print(json.dumps(report))


def _killed(way: str, place: Path, saved: int, mebibytes: float, draw: random.Random) -> int:
    """Lets a process save the steps after ``saved`` and kills it; returns the last step that it reported saved."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            saver = _saver(way, place, mebibytes)
            os.write(writer, saved.to_bytes(8, "little"))  # ready
            for step in range(saved + 1, saved + 5000):
                saver(step)
                os.write(writer, step.to_bytes(8, "little"))
        finally:
            os._exit(1)
    os.close(writer)
    select.select([reader], [], [], 60)
    time.sleep(draw.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return int.from_bytes(pipe.read()[-8:], "little")


def _saver(way: str, place: Path, mebibytes: float) -> Callable[[int], Any]:
    if way == "aside":
        _atomic._exchange = lambda a, b: False
    checkpoints = Checkpoints(place)

    def saver(step):
        tree = _filled(step, mebibytes)
        if way == "keep":
            checkpoints.save(step, tree, metric=float(step % 7))
        else:
            save(place / "run", tree, metadata={"step": step})

    return saver


def _filled(step: int, mebibytes: float) -> dict[str, np.ndarray]:
    size = int(mebibytes * 2**20 / 16)
    return {name: np.full(size, step, np.float32) for name in "abcd"}


def _found(way: str, place: Path, mebibytes: float) -> int:
    """The step of the checkpoint, 0 if there is none; -1 if it is damaged."""
    like = _filled(0, mebibytes)
    try:
        if way == "keep":
            checkpoints = Checkpoints(place)
            restored = checkpoints.restore(like)
            if restored is None:
                return 0
            tree, metadata = restored
            checkpoints.best()
        else:
            path = place / "run"
            if not _atomic.current(path).exists():
                return 0
            tree, metadata = load(path, like), read_metadata(path)
    except CheckpointError as error:
        print(f"damaged: {error}", file=sys.stderr)
        return -1
    one = all((leaf == metadata["step"]).all() for leaf in tree.values())
    return metadata["step"] if one else -1


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


def speed(mebibytes: int, directory: Path, *, repetitions: int = 5) -> dict[str, float]:
    """MiB per second: of `save`, of a plain write and fsync of as many bytes, of `load`, of a plain read."""
    tree = {f"layer{i}": jnp.full((mebibytes * 2**20 // 64,), i, jnp.float32) for i in range(16)}
    content = np.ones(mebibytes * 2**20, np.uint8)

    def write():
        with open(directory / "plain", "wb") as file:
            file.write(content.data)
            file.flush()
            os.fsync(file.fileno())

    contestants = {
        "save": lambda: save(directory / "speed", tree),
        "write and fsync": write,
        "load": lambda: load(directory / "speed", tree),
        "read": lambda: (directory / "plain").read_bytes(),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(repetitions + 1):
        for name, run in contestants.items():
            before = time.perf_counter()
            run()
            times[name] += [time.perf_counter() - before] if i else []
    return {name: mebibytes / statistics.median(values) for name, values in times.items()}


def main(argv: list[str]) -> None:
    """Prints what was found and saves it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoints", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 kills, 200 flips, 5 s of fuzzing, 32 MiB")
    options = parser.parse_args(argv)
    count, bits, seconds, mebibytes = (12, 200, 5, 32) if options.quick else (100, 5000, 60, 256)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        rates = speed(mebibytes, directory)
        killed = kills(count, directory)
        found, flipped = flips(bits, directory)
        outcomes = fuzz(seconds, directory)
    rows = [[way, *(str(record[key]) for key in record)] for way, record in killed.items()]
    print(timing.table(["way", *killed["replace"]], rows))
    print("\n" + timing.table(["MiB/s", *rates], [[f"{mebibytes} MiB", *(f"{rate:.0f}" for rate in rates.values())]]))
    print(f"\nsingle flipped bits found: {found}/{flipped}")
    print(f"fuzzed for {seconds} s: {outcomes['refused']} refused, {outcomes['read']} read as saved,", end=" ")
    print(f"{outcomes['wrong']} read wrongly, no other exception")
    results = {"kills": killed, "flips": [found, flipped], "fuzz": outcomes, "mebibytes": mebibytes, "rates": rates}
    print(f"\nwritten to {timing.save('checkpoints', results, partial=options.quick).name}")

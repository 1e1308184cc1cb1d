"""Processes that save without pause are killed, and what they leave is read.

Two ways to save are killed in turns: over one path, and into a `Checkpoints` that keeps the last three and the best.
After every kill, the checkpoint must be whole: of one step, and that step the last that was reported saved, or the one
after it.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.errors import CheckpointError
from jaxnet.training import Checkpoints, load, read_metadata, save

WAYS = ("replace", "keep")


def kills(count: int, directory: Path, *, mebibytes: float = 2.0, seed: int = 0) -> dict[str, dict[str, int]]:
    """Kills processes that save without pause, at random moments, and reads what they leave.

    Args:
      count: how many kills, shared by the ways.
      directory: where to.
      mebibytes: the size of a checkpoint.
      seed: of the moments.

    Returns:
      way -> ``kills``, ``readable`` (whole, and of the right step), ``inside`` (kills that left a temporary behind,
      so that hit a save), ``left`` (temporaries after the next save) and ``saves`` (that were reported).
    """
    shares = {way: count // len(WAYS) + (i < count % len(WAYS)) for i, way in enumerate(WAYS)}
    # A process of its own, which forks: with JAX running, this one must not, and a new interpreter a kill is slow.
    code = "import sys; from benchmarks.checkpoints import kills; kills.nursery(*sys.argv[1:])"
    arguments = [json.dumps(shares), str(directory), str(mebibytes), str(seed)]
    root = Path(__file__).parents[2]
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
            if not path.exists():
                return 0
            tree, metadata = load(path, like), read_metadata(path)
    except CheckpointError as error:
        print(f"damaged: {error}", file=sys.stderr)
        return -1
    one = all((leaf == metadata["step"]).all() for leaf in tree.values())
    return metadata["step"] if one else -1

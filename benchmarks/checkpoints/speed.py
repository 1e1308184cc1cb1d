"""How fast checkpoints are written and read, against plain files."""

import os
import statistics
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxnet.training import load, save


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

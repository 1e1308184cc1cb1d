"""How much memory training on a file takes: loaded, as a memory map, and read by blocks; each in a new process."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.training.processes import peak_bytes

WAYS = {
    "np.load(path)": "loaded",
    'np.load(path, mmap_mode="r")': "mapped",
    "data.blocks of the memory map": "blocks",
    "torch.utils.data.DataLoader, by index, of the memory map": "torch",
}
FEATURES, BATCH = 1024, 64


def write(path: Path, mebibytes: int) -> None:
    """A file of so many MiB of numbers in float32, written piece by piece."""
    samples = mebibytes * 2**20 // (4 * FEATURES)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (samples, FEATURES))
    random = np.random.default_rng(0)
    for start in range(0, samples, 1024):
        piece = file[start : start + 1024]
        piece[:] = random.standard_normal(piece.shape, np.float32)
    file.flush()


def child(way: str, path: str) -> dict[str, float]:
    """Trains in this process for an epoch; what it took above a training on one batch, and how long."""
    from jaxnet import data, layers, losses, optimizers, training

    x: Any = np.load(path, mmap_mode=None if way == "loaded" else "r") if way != "torch" else None
    torch_loader = _torch_loader(path) if way == "torch" else None

    def fit(given: Any, **options: Any) -> None:
        training.fit(layers.dense(1), losses.mse, optimizers.sgd(1e-4), given, epochs=1, progress=False, **options)

    small = np.zeros((BATCH, FEATURES), np.float32), np.zeros((BATCH, 1), np.float32)
    fit(small, batch_size=BATCH)
    fit([small])
    loaded = x.nbytes if way == "loaded" else 0
    before, began = peak_bytes() - loaded, time.perf_counter()
    if torch_loader is not None:
        fit(torch_loader)
    elif way == "blocks":
        fit(data.blocks(x, x[:, :1], batch_size=BATCH))
    else:
        fit((x, x[:, :1]), batch_size=BATCH)
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - began}


def _torch_loader(path: str) -> Any:
    import torch.utils.data

    x = np.load(path, mmap_mode="r")

    class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            row = np.array(x[i])
            return row, row[:1]

    return torch.utils.data.DataLoader(Rows(), batch_size=BATCH, shuffle=True, drop_last=True)


def run(way: str, path: Path) -> dict[str, float] | None:
    """`child` in a process of its own; None where it fails, as without PyTorch."""
    command = [sys.executable, "-m", "benchmarks.memory", way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        print(f"not run: {way}: {(done.stderr.splitlines() or ['no message'])[-1][:100]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table."""
    rows = [
        [way, f"{results[name]['bytes'] / 1e6:.0f}", f"{results[name]['seconds']:.2f}"]
        for way, name in WAYS.items()
        if name in results
    ]
    return timing.table(["an epoch over", "MB at most", "s"], rows)


def main(argv: list[str]) -> None:
    """Prints the table and saves the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a file of 32 MiB in place of 256")
    quick = parser.parse_args(argv).quick
    mebibytes = 32 if quick else 256
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write(path, mebibytes)
        found = {name: run(name, path) for name in WAYS.values()}
    results = {name: record for name, record in found.items() if record is not None}
    print(f"A file of {mebibytes} MiB, in new processes; memory above a training on one batch\n")
    print(report(results))
    print(f"\nwritten to {timing.save('memory', {'mebibytes': mebibytes} | results, partial=quick).name}")


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[1:])))

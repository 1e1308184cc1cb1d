"""Checkpoints under kill -9, flipped bits and a fuzzer, how fast they are written and read, what they cost a run."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.checkpoints import damage, kills, share, speed


def main(argv: list[str]) -> None:
    """Prints what was found and saves it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoints", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 kills, 200 flips, 5 s of fuzzing, 32 MiB")
    parser.add_argument("--share", action="store_true", help="only what they cost a run")
    options = parser.parse_args(argv)
    if not options.share:
        files(options)
    costs(options)


def costs(options: argparse.Namespace) -> None:
    """What saving costs a run with a small state and with a large one."""
    header = ["state", "written", "saves", "s waited a save", "s longer a save", "of the time, every 10 s"]
    print("\n" + timing.table(header, []))
    results: dict[str, Any] = {}
    for mebibytes in (64, 1) if options.quick else (1024, 1):
        every, epochs = (0.5, 16) if mebibytes < 256 else (6, 100)
        with tempfile.TemporaryDirectory() as folder:
            for way, m in share.shares(mebibytes, Path(folder), epochs=epochs, every=every):
                results.setdefault(f"{mebibytes} MiB", {})[way] = m
                numbers = f"{m['saves']} | {m['waits']:.4f} | {m['longer']:.4f} | {m['share']:.2%}"
                print(f"| {mebibytes} MiB | {way} | {numbers} |", flush=True)
                path = timing.save("checkpoints-share", results, partial=options.quick)
                print(f"(written to {path.name})", file=sys.stderr)


def files(options: argparse.Namespace) -> None:
    """How checkpoints take being killed, damaged, written and read."""
    count, bits, seconds, mebibytes = (12, 200, 5, 32) if options.quick else (100, 5000, 60, 256)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        rates = speed.speed(mebibytes, directory)
        killed = kills.kills(count, directory)
        found, flipped = damage.flips(bits, directory)
        lines_found, lines_flipped = damage.history_flips(bits, directory)
        outcomes = damage.fuzz(seconds, directory)
    rows = [[way, *(str(record[key]) for key in record)] for way, record in killed.items()]
    print(timing.table(["way", *killed["replace"]], rows))
    print("\n" + timing.table(["MiB/s", *rates], [[f"{mebibytes} MiB", *(f"{rate:.0f}" for rate in rates.values())]]))
    print(f"\nsingle flipped bits found: {found}/{flipped}, and {lines_found}/{lines_flipped} of a run's history")
    print(f"fuzzed for {seconds} s: {outcomes['refused']} refused, {outcomes['read']} read as saved,", end=" ")
    print(f"{outcomes['wrong']} read wrongly, no other exception")
    flips = {"flips": [found, flipped], "history_flips": [lines_found, lines_flipped]}
    results = {"kills": killed, **flips, "fuzz": outcomes, "mebibytes": mebibytes, "rates": rates}
    print(f"\nwritten to {timing.save('checkpoints', results, partial=options.quick).name}")

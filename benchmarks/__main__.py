"""``python -m benchmarks NAME [--quick]`` runs one benchmark; without a name it lists them.

``python -m benchmarks --reuse-memory NAME`` sets glibc for all contestants as `jaxnet.memory.reuse` does.
"""

import importlib
import os
import pkgutil
import sys
from pathlib import Path

from jaxnet.memory import TUNABLES

HELPERS = {"pages", "timing", "__main__"}


def names() -> list[str]:
    """The benchmarks: modules here that have a ``main(argv)``, a dash for every underscore."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted(name.replace("_", "-") for name in found - HELPERS)


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first argument names."""
    if argv and argv[0] == "--reuse-memory":
        # In the environment, and so in the processes that benchmarks start.
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *argv[1:]])
    if not argv or argv[0] not in names():
        if argv:
            print(f"There is no benchmark {argv[0]!r}.")
        print("usage: python -m benchmarks [--reuse-memory] NAME [--quick]\nNAME is one of: " + ", ".join(names()))
        return 2 if argv else 0
    # Before PyTorch is loaded: after a call its idle OpenMP threads would spin for milliseconds, on the cores that the
    # next contestant needs. On 2 cores that made a JAX program of 2 ms take 3 in its turn; not spinning costs PyTorch
    # up to 5 % on calls of a few ms.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    importlib.import_module(f"benchmarks.{argv[0].replace('-', '_')}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

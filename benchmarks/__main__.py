"""``python -m benchmarks NAME [--quick]`` runs one benchmark; without a name it lists them."""

import importlib
import pkgutil
import sys
from pathlib import Path

HELPERS = {"timing", "__main__"}


def names() -> list[str]:
    """The benchmarks: modules here that have a ``main(argv)``, a dash for every underscore."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted(name.replace("_", "-") for name in found - HELPERS)


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first argument names."""
    if not argv or argv[0] not in names():
        if argv:
            print(f"There is no benchmark {argv[0]!r}.")
        print("usage: python -m benchmarks NAME [--quick]\nNAME is one of: " + ", ".join(names()))
        return 2 if argv else 0
    importlib.import_module(f"benchmarks.{argv[0].replace('-', '_')}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

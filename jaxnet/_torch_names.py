"""PyTorch's names of arrays, and those that a user's model has in their place."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError

Rename = Mapping[str, str] | Callable[[str], str] | None
"""From our names to others: of modules or of arrays in a mapping, of arrays by a function."""


def count_beside(name: str) -> str:
    """The name of the count that PyTorch keeps beside the running variance ``name``; "" beside anything else."""
    *path, last = name.split(".")
    return ".".join((*path, "num_batches_tracked")) if last == "running_var" else ""


_OLDER = {
    "original0": "weight_g",
    "original1": "weight_v",
    "original": "weight_orig",
    "0._u": "weight_u",
    "0._v": "weight_v",
}


def as_given(name: str, given: Mapping[str, Any]) -> str:
    """The name, or if it is not given, the one that PyTorch had for it before there were parametrizations."""
    module, found, which = name.rpartition("parametrizations.weight.")
    older = module + _OLDER.get(which, "")
    return older if found and name not in given and older in given else name


def renamed(names: Iterable[str], rename: Rename) -> dict[str, str]:
    """Our names to the user's."""
    if rename is None:
        return {name: name for name in names}
    if isinstance(rename, Mapping):
        unused = set(rename)

        def function(name):
            places = name.split(".")
            for n in range(len(places), 0, -1):
                if (module := ".".join(places[:n])) in rename:
                    unused.discard(module)
                    return ".".join((rename[module], *places[n:]))
            return name
    else:
        unused, function = set(), checks.function("rename", rename)
    renamed = {name: function(name) for name in names}
    if unused:
        raise ConfigError(
            f"rename replaces {', '.join(map(repr, sorted(unused)))} nowhere; its keys are our names, of arrays "
            f"or of modules: {', '.join(renamed)}"
        )
    ours: dict[str, str] = {}
    for name, new in renamed.items():
        if new in ours:
            raise ConfigError(f"rename gives both {ours[new]} and {name} the name {new!r}")
        ours[new] = name
    return renamed

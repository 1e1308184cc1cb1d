"""jaxnet: everything that learns is a pair of pure functions over pytrees that you own."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxnet import (
    activations,
    data,
    errors,
    initializers,
    kernels,
    layers,
    losses,
    memory,
    optimizers,
    regularizers,
    sizes,
)

if TYPE_CHECKING:
    from jaxnet import backprop, diagnostics, interop, metrics, testing, training

__version__ = "0.1.0"
__all__ = [
    "activations",
    "backprop",
    "data",
    "diagnostics",
    "errors",
    "initializers",
    "interop",
    "kernels",
    "layers",
    "losses",
    "memory",
    "metrics",
    "optimizers",
    "regularizers",
    "sizes",
    "testing",
    "training",
]


def __getattr__(name: str) -> Any:
    # Not every program trains: these are a third of the time that `import jaxnet` would take.
    if name in ("backprop", "diagnostics", "interop", "metrics", "testing", "training"):
        return importlib.import_module(f"jaxnet.{name}")
    raise AttributeError(f"module 'jaxnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

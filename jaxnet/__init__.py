"""jaxnet: everything that learns is a pair of pure functions over pytrees that you own."""

from jaxnet import (
    activations,
    data,
    errors,
    initializers,
    interop,
    kernels,
    layers,
    losses,
    optimizers,
    regularizers,
    sizes,
    testing,
    training,
)

__version__ = "0.1.0"
__all__ = [
    "activations",
    "data",
    "errors",
    "initializers",
    "interop",
    "kernels",
    "layers",
    "losses",
    "optimizers",
    "regularizers",
    "sizes",
    "testing",
    "training",
]

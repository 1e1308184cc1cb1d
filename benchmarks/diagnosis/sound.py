"""Programs that nothing is wrong with, on real data, and what they are put together from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis.real import Arrays, series, standardized, tables
from jaxnet import activations, layers, losses, optimizers

relu, sigmoid, softmax = activations.relu, activations.sigmoid, activations.softmax
CE, MSE = losses.softmax_cross_entropy, losses.mse


class Setup(NamedTuple):
    """What a program trains."""

    net: Any
    loss: Callable[[Any, Any], Any]
    optimizer: Any
    train: Arrays
    validation: Arrays
    steps: int = 500
    batch: int = 32
    regularizer: Any = None


def mlp(*widths: int, act: Any = relu, last: tuple[Any, ...] = (), **options: Any) -> Any:
    """Dense layers with an activation between them, and what follows the last."""
    parts: list[Any] = []
    for width in widths[:-1]:
        parts += [layers.dense(width, **options), *([act] if act else [])]
    return layers.chain(*parts, layers.dense(widths[-1], **options), *last)


def binary(p: Any, y: Any) -> Any:
    """A binary cross-entropy of probabilities, by hand and clipped."""
    p = jnp.clip(p, 1e-7, 1 - 1e-7)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def column(data: tuple[Arrays, Arrays], f: Callable[[Any], Any] = lambda y: y) -> dict[str, Any]:
    """Targets as one column of float32."""
    (x, y), (held_x, held_y) = data
    return {
        "train": (x, np.asarray(f(y), np.float32)[:, None]),
        "validation": (held_x, np.asarray(f(held_y), np.float32)[:, None]),
    }


def on(data: tuple[Arrays, Arrays], x: Any = lambda x: x, y: Any = lambda y: y) -> dict[str, Any]:
    """Data, with a function of the inputs and of the targets."""
    return {name: (x(a), y(b)) for name, (a, b) in zip(("train", "validation"), data, strict=True)}


def digits(**changes: Any) -> Setup:
    """The program on digits that nothing is wrong with."""
    good = Setup(mlp(64, 64, 10), CE, optimizers.adam(1e-3), **on(standardized("digits")))
    return good._replace(**changes)


def iris(**changes: Any) -> Setup:
    """Three flowers."""
    good = Setup(mlp(16, 16, 3), CE, optimizers.adam(1e-2), **on(standardized("iris")), batch=16)
    return good._replace(**changes)


def wine(**changes: Any) -> Setup:
    """Three wines."""
    good = Setup(mlp(32, 3), CE, optimizers.adam(3e-3), **on(standardized("wine")), batch=16)
    return good._replace(**changes)


def cancer(**changes: Any) -> Setup:
    """Two classes, one sigmoid, and a binary cross-entropy by hand."""
    data = column(standardized("cancer"))
    return Setup(mlp(16, 1, last=(sigmoid,)), binary, optimizers.adam(3e-3), **data)._replace(**changes)


def diabetes(**changes: Any) -> Setup:
    """A regression whose noise leaves an R2 of about a half."""
    return Setup(mlp(16, 1), MSE, optimizers.adam(3e-3), *standardized("diabetes"))._replace(**changes)


def value(**changes: Any) -> Setup:
    """The digit as a number, which is no linear function of the image."""
    data = column(standardized("digits"), lambda y: (y - 4.5) / 2.87)
    return Setup(mlp(64, 32, 1), MSE, optimizers.adam(1e-3), **data)._replace(**changes)


def conv(act: Any = relu, classes: int = 6, **changes: Any) -> Setup:
    """Convolutions on outlines of leaves."""
    between = (act,) if act else ()
    net = layers.chain(
        layers.conv(16, 9, strides=3), *between, layers.conv(32, 7, strides=2), *between,
        layers.conv(32, 5, strides=2), *between, layers.global_avg_pool(), layers.dense(classes),
    )  # fmt: skip
    return Setup(net, CE, optimizers.adam(3e-3), *series("OSULeaf"), steps=800)._replace(**changes)


def italy(**changes: Any) -> Setup:
    """Two classes of daily power demand."""
    net = layers.chain(layers.flatten(), mlp(32, 2))
    return Setup(net, CE, optimizers.adam(3e-3), *series("ItalyPowerDemand"), batch=16)._replace(**changes)


def in_units() -> tuple[Arrays, Arrays]:
    """Diabetes with standardized features, and targets as they were measured."""
    (x, _), (held_x, _) = standardized("diabetes")
    (_, y), (_, held_y) = tables("diabetes")
    return (x, y), (held_x, held_y)


def several(data: tuple[Arrays, Arrays]) -> dict[str, Arrays]:
    """Four labels of a digit, none or several of which hold: even, above 4, prime, with a hole."""
    table = np.array([[d % 2 == 0, d > 4, d in (2, 3, 5, 7), d in (0, 4, 6, 8, 9)] for d in range(10)], np.float32)
    return on(data, y=lambda y: table[y])

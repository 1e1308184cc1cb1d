"""Whether the loss takes the targets: asked before training, outside of any compiled program, where it sees them."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.layers.layer import Layer
from jaxnet.training import weighted
from jaxnet.training.weighted import applied

ROWS = 4096
"""Examples that a loss is asked about at once."""

NUMBERS = 2**22
"""Numbers of the targets at once, where an example has many; four times as many of floating point are asked in all."""

FEW = 7
"""Examples with which a loss is traced to see whether it makes a square of them."""

OF_CLASSES = ("jaxnet.losses.cross_entropy", "jaxnet.losses.hinge")
"""Modules of losses that refuse numbers which stand for no class, and for no distribution."""


def check_targets(net: Layer, loss: Any, data: Any) -> None:
    """Asks the loss about the targets, where it refuses labels that are no class and numbers that are no shares.

    It is given a few thousand examples at a time, and nothing is computed. A loss that makes a square of a column of
    predictions and a row of targets gets a warning.
    """
    loss = _bare(loss)
    target = data[1]
    targets = jax.tree.leaves(target.target if isinstance(target, weighted.Weighted) else target)
    if not targets or not len(targets[0]):
        return

    def predict(key, x):
        return net.apply(*net.init(key, x), x, train=False)[0]

    @functools.cache
    def prediction(rows):
        x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), data[0])
        return jax.eval_shape(predict, jax.random.key(0), x)

    whole = all(jnp.issubdtype(target.dtype, jnp.integer) for target in targets)
    if not whole and not _is_of_classes(loss):
        if len(targets) == 1 and targets[0].ndim == 1 and len(targets[0]) >= FEW:
            _warn_of_a_square(loss, lambda: prediction(FEW), targets[0].dtype)
        return
    examples = len(targets[0])
    numbers = max(1, sum(target.size for target in targets) // examples)
    rows = min(max(1, NUMBERS // numbers), ROWS)
    asked = examples if whole else min(examples, max(1, 4 * NUMBERS // numbers))
    for first in range(0, asked, rows):
        some = jax.tree.map(lambda leaf, first=first: jnp.asarray(leaf[first : first + rows]), target)
        predicted = prediction(min(rows, examples - first))
        # It sees the targets, and of the predictions the shape: computed, each of its operations would compile.
        jax.eval_shape(lambda prediction, some=some: applied("the loss", loss, prediction, some), predicted)


def _bare(loss: Any) -> Any:
    """What a loss under jit computes, from which jit would hide the targets."""
    if isinstance(loss, functools.partial):
        return functools.partial(_bare(loss.func), *loss.args, **loss.keywords)
    return _bare(loss.__wrapped__) if hasattr(loss, "lower") and hasattr(loss, "__wrapped__") else loss


def _is_of_classes(loss: Any) -> bool:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(inspect.unwrap(loss), "__module__", "") in OF_CLASSES


def _warn_of_a_square(loss: Any, predict: Callable[[], Any], dtype: Any) -> None:
    """Of predictions (batch, 1) and targets (batch,), if of targets (batch, 1) it makes none."""
    try:
        prediction = predict()
        if getattr(prediction, "shape", ()) != (FEW, 1):
            return
        row, column = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((FEW,), (FEW, 1)))
        squares = _makes_a_square(loss, prediction, row) and not _makes_a_square(loss, prediction, column)
    except Exception:  # a network or a loss that does not take so many: the step will say what
        return
    if squares:
        checks.warn(
            "the loss broadcasts predictions (batch, 1) and targets (batch,) to (batch, batch), and compares each "
            "prediction with all targets; give targets (batch, 1), target[:, None]"
        )


def _makes_a_square(loss: Any, *arguments: Any) -> bool:
    return any(shape[:2] == (FEW, FEW) for shape in _shapes(jax.make_jaxpr(loss)(*arguments).jaxpr))


def _shapes(program: Any) -> Iterator[tuple[int, ...]]:
    """Of all that a program computes, in what it calls too."""
    for line in program.eqns:
        yield from (out.aval.shape for out in line.outvars)
        for value in line.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)

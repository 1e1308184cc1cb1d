"""How good predictions are in numbers that do not depend on the loss: accuracy, or R2."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import is_floating

FEW = 32
"""Whole numbers of which there are no more than these may be classes."""


class Targets(NamedTuple):
    """What the targets of some samples are.

    Attributes:
      kind: "classes" (integers of classes), "one hot" (along the last axis), "two values" (each entry one of two),
        "several" (several labels a sample, 0 or 1 each), "shares" (soft targets, which sum to 1 along the last axis),
        "numbers" or "other".
      values: the distinct values where they are few whole numbers, else none.
    """

    kind: str
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of the score."""
        return "R2" if self.kind == "numbers" else "accuracy"


def targets(target: Any) -> Targets:
    """Looks at targets."""
    if not isinstance(target, np.ndarray) or target.dtype.kind == "O" or not target.size:
        return Targets("other", ())
    values = np.unique(target.astype(np.float64))
    whole = len(values) <= FEW and np.array_equal(values, np.round(values))
    few = tuple(values.tolist()) if whole else ()
    if target.dtype.kind in "iub":
        return Targets("classes", few)
    if not is_floating(target):
        return Targets("other", few)
    if set(few) <= {0.0, 1.0} and few and target[0].size > 1:
        of_classes = target.shape[-1] > 1 and (target.sum(-1) == 1).all()
        return Targets("one hot" if of_classes else "several", few)
    if target.ndim > 1 and target.shape[-1] > 1 and values[0] >= 0:
        sums = target.astype(np.float64).sum(-1)
        if np.allclose(sums, 1, atol=1e-3):
            return Targets("shares", ())
    return Targets("two values" if len(few) == 2 else "numbers", few)


def score_of(found: Targets, threshold: float | None = None) -> Callable[[Any, Any], jax.Array]:
    """A function ``(prediction, target) -> accuracy or R2``; NaN where they do not go together.

    Args:
      found: what the targets are.
      threshold: above which one number stands for the higher of two values; unless given, it goes by the predictions.
    """

    def score(prediction, target):
        nothing = jnp.asarray(jnp.nan, jnp.float32)
        if not is_floating(prediction):
            return nothing
        p = prediction.astype(jnp.float32)
        if found.kind == "classes" and p.ndim == target.ndim + 1:
            if p.shape[-1] > 1:
                return jnp.mean((jnp.argmax(p, -1) == target.astype(jnp.int32)).astype(jnp.float32))
            p = p[..., 0]
        if p.size != target.size:
            return nothing
        p, t = p.reshape(target.shape), target.astype(jnp.float32)
        if found.kind in ("one hot", "shares"):
            return jnp.mean((jnp.argmax(p, -1) == jnp.argmax(t, -1)).astype(jnp.float32))
        if found.kind == "numbers":
            return 1 - jnp.sum(jnp.square(p - t)) / jnp.sum(jnp.square(t - jnp.mean(t, 0, keepdims=True)))
        if 0 < len(found.values) <= 2:
            low, high = min(found.values), max(found.values)
            probabilities = jnp.all((p >= 0) & (p <= 1))
            middle = jnp.where(probabilities, 0.5, 0.0 if low == 0 else (low + high) / 2)
            middle = middle if threshold is None else threshold
            return jnp.mean(((p > middle) == (t > (low + high) / 2)).astype(jnp.float32))
        return nothing

    return score

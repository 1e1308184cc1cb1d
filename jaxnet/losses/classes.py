"""Class targets: integer labels, checked where they can be seen, and distributions."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from jaxnet.losses.common import reduce


def classes(name: str, scores: jax.Array, target: Any, ignore_label: int | None) -> tuple[jax.Array, bool]:
    """The target, checked, and whether it is of integer labels rather than distributions."""
    if not scores.ndim or not scores.shape[-1]:
        raise ShapeError(f"{name} must have the axes (..., classes), got shape {scores.shape}")
    count = scores.shape[-1]
    if ignore_label is not None:
        integral = isinstance(ignore_label, (int, np.integer)) and not isinstance(ignore_label, bool)
        if not integral or not -(2**31) <= ignore_label < 2**31:
            raise ConfigError(f"ignore_label must be an integer of 32 bits, got {ignore_label!r}")
    on_host = isinstance(target, np.ndarray) and target.dtype.kind in "iu"
    if on_host and target.shape == scores.shape[:-1]:
        check_labels(target, count, ignore_label)  # before 64-bit labels are cut to 32 bits
    target = checks.array("target", target)
    if jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape != scores.shape[:-1]:
            hint = "; distributions must be floating point" if target.shape == scores.shape else ""
            raise ShapeError(
                f"integer labels must have shape {scores.shape[:-1]}, one a row of {name} {scores.shape}, "
                f"got {target.shape}{hint}"
            )
        if not on_host:
            check_labels(target, count, ignore_label)
        narrow = jnp.iinfo(target.dtype).bits < 32  # too narrow to count the classes in
        return (target.astype(jnp.int32) if narrow else target), True
    if not jnp.issubdtype(target.dtype, jnp.floating):
        raise DTypeError(f"target must be integer labels or floating-point distributions, got {target.dtype}")
    if target.shape != scores.shape:
        hint = "convert labels with .astype(int)" if target.shape == scores.shape[:-1] else "they are never broadcast"
        raise ShapeError(
            f"floating-point targets are distributions and must have the shape of {name}, {scores.shape}, "
            f"got {target.shape}; {hint}"
        )
    if ignore_label is not None:
        raise ConfigError("ignore_label goes with integer labels; give ignored rows a weight instead")
    check_distribution("target", target)
    return target.astype(scores.dtype), False


def check_labels(labels: Any, classes: int, ignore_label: int | None) -> None:
    """Refuses labels that are no class, where their values can be seen."""
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    values = np.asarray(labels)
    bad = (values < 0) | (values >= classes)
    if ignore_label is not None:
        bad &= values != ignore_label
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"label {values[where]} at index {where if len(where) != 1 else where[0]} is no class; there are "
            f"{classes}, 0 to {classes - 1} ({int(bad.sum())} such labels); to leave examples out pass ignore_label"
        )


def check_distribution(name: str, values: jax.Array, hint: str = "") -> None:
    """Refuses what is no distribution over the last axis, where the values can be seen."""
    if isinstance(values, jax.core.Tracer) or not values.size or not values.ndim:
        return
    p = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    p = p[~np.isnan(p).any(-1)]  # NaN speaks for itself in the loss
    if not p.size:
        return
    tolerance = 4 * float(jnp.finfo(values.dtype).eps) * p.shape[-1] + 1e-3
    if p.min() < -tolerance or np.abs(p.sum(-1) - 1).max() > tolerance:
        worst = p.sum(-1).flat[np.abs(p.sum(-1) - 1).argmax()]
        raise DataError(
            f"{name} must be distributions, values from 0 to 1 that sum to 1 over the last axis; got a minimum "
            f"of {p.min():g} and a sum of {worst:g}{hint}"
        )


def is_class(label: jax.Array, classes: int) -> jax.Array:
    """Whether each label is one of 0..classes - 1."""
    return (label >= 0) & (label < classes)


def one_hot(label: jax.Array, classes: int) -> jax.Array:
    """Whether each class is the label's, along a new last axis."""
    index = lax.broadcasted_iota(label.dtype, (*label.shape, classes), label.ndim)
    return index == label[..., None]


def pick(scores: jax.Array, label: jax.Array) -> jax.Array:
    """scores[label], and 0 for a label that is no class; a masked sum, whose transpose needs no scatter."""
    return jnp.sum(jnp.where(one_hot(label, scores.shape[-1]), scores, 0.0), axis=-1)


def reduce_classes(
    values: jax.Array, scores: jax.Array, label: jax.Array, keep: jax.Array | None, reduction: str
) -> jax.Array:
    """`reduce`, with NaN for labels that are no class, in loss and gradient, and examples not to keep left out."""
    valid = is_class(label, scores.shape[-1])
    if keep is not None:
        valid |= ~keep
    # By way of the scores, so that the gradient is NaN where the loss is flat as well; and 0 / 0 rather than a literal,
    # for XLA on CPU makes anything of the exponential of a literal NaN.
    zero = 0.0 * jnp.sum(jnp.where(valid[..., None], 0.0, scores), axis=-1)
    values = values + zero / valid.astype(values.dtype)
    if keep is None:
        return reduce(values, reduction)
    values = jnp.where(keep, values, 0.0)
    if reduction != "mean":
        return reduce(values, reduction)
    count = jnp.sum(keep, dtype=values.dtype)
    return reduce(values, "sum") / jnp.maximum(count, 1.0)

"""Class targets: integer labels, checked where they can be seen, and distributions."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from jaxnet.losses.common import mean_of, one_row, reduce, weighted

_ONE_OUTPUT = (
    "one output an example is no score of classes: give it two, such as layers.dense(2), or take "
    "losses.sigmoid_cross_entropy of targets (..., 1), whose accuracy is lambda p, t: jnp.mean((p > 0) == (t > 0.5))"
)


def classes(
    name: str, scores: jax.Array, target: Any, ignore_label: int | None, weights: Any = None
) -> tuple[jax.Array, bool]:
    """The target, checked where its weight is not 0, and whether it is of integer labels rather than distributions."""
    counted = seen(weights)
    if not scores.ndim or not scores.shape[-1]:
        raise ShapeError(f"{name} must have the axes (..., classes), got shape {scores.shape}")
    count = scores.shape[-1]
    if ignore_label is not None:
        integral = isinstance(ignore_label, (int, np.integer)) and not isinstance(ignore_label, bool)
        if not integral or not -(2**31) <= ignore_label < 2**31:
            raise ConfigError(f"ignore_label must be an integer of 32 bits, got {words.came(ignore_label)}")
    on_host = isinstance(target, np.ndarray) and target.dtype.kind in "iu"
    if on_host and target.shape == scores.shape[:-1]:
        check_labels(target, count, ignore_label, counted)  # before 64-bit labels are cut to 32 bits
    target = checks.array("target", target)
    if jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape != scores.shape[:-1]:
            hint = "; distributions must be floating point" if target.shape == scores.shape else ""
            if target.shape == (*scores.shape[:-1], 1):
                hint = f"; {_ONE_OUTPUT}" if count == 1 else "; take the only column, target[..., 0]"
            raise ShapeError(
                f"integer labels must have shape {scores.shape[:-1]}, one a row of {name} {scores.shape}, "
                f"got {target.shape}{hint or one_row(scores, target)}"
            )
        if not on_host:
            check_labels(target, count, ignore_label, counted)
        narrow = jnp.iinfo(target.dtype).bits < 32  # too narrow to count the classes in
        return (target.astype(jnp.int32) if narrow else target), True
    if not jnp.issubdtype(target.dtype, jnp.floating):
        cure = "'float32'" if target.shape == scores.shape else "int"
        hint = f"; convert with .astype({cure})" if target.dtype == bool else ""
        raise DTypeError(f"target must be integer labels or floating-point distributions, got {target.dtype}{hint}")
    if target.shape != scores.shape:
        hint = "convert labels with .astype(int)" if target.shape == scores.shape[:-1] else "they are never broadcast"
        raise ShapeError(
            f"floating-point targets are distributions and must have the shape of {name}, {scores.shape}, "
            f"got {target.shape}; {hint}{one_row(scores, target)}"
        )
    if ignore_label is not None:
        raise ConfigError("ignore_label goes with integer labels; give ignored rows a weight instead")
    check_distribution("target", target, f"; {_ONE_OUTPUT}" if count == 1 else "", counted)
    return target.astype(scores.dtype), False


def floating_scores(name: str, scores: Any, target: Any) -> jax.Array:
    """The scores as floats; integers with floats for a target are refused as exchanged."""
    integers, floats = (getattr(one, "dtype", np.dtype(bool)) for one in (scores, target))
    if jnp.issubdtype(integers, jnp.integer) and jnp.issubdtype(floats, jnp.floating):
        raise DTypeError(
            f"{name} must be floating point, got {words.came(scores)}, and for the target {words.came(target)}; if "
            f"they are exchanged, the prediction comes first: ({name}, target)"
        )
    if jnp.issubdtype(integers, jnp.integer) and scores.shape == getattr(target, "shape", None):
        raise DTypeError(
            f"{name} must be floating point, got {words.came(scores)}; give the scores of all classes, not their argmax"
        )
    return checks.floating(name, scores)


def seen(weights: Any) -> np.ndarray | None:
    """Which weights are not 0, where they can be seen; none may be left out where they cannot."""
    if weights is None:
        return None
    return np.zeros((), bool) if isinstance(weights, jax.core.Tracer) else np.asarray(weights) != 0


def over(counted: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What of an array of this shape counts, by the weights of its first axes."""
    fits = counted.shape == shape[: counted.ndim]
    spread = (
        counted.reshape(counted.shape + (1,) * (len(shape) - counted.ndim)) if fits else np.zeros((1,) * len(shape))
    )
    return np.broadcast_to(spread.astype(bool), shape)


def check_labels(labels: Any, classes: int, ignore_label: int | None, counted: np.ndarray | None = None) -> None:
    """Refuses labels that are no class, where their values can be seen."""
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    values = np.asarray(labels)
    bad = (values < 0) | (values >= classes)
    if ignore_label is not None:
        bad &= values != ignore_label
    if counted is not None:
        bad &= over(counted, values.shape)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        hint = "to leave examples out, pass ignore_label, which the cross-entropies and metrics of labels have"
        if classes == 1:
            hint = _ONE_OUTPUT
        elif values.min() == 1 and values.max() == classes:
            hint = f"classes are counted from 0: take target - 1; {hint}"
        raise DataError(
            f"label {values[where]} at index {where if len(where) != 1 else where[0]} is no class; there are "
            f"{classes}, 0 to {classes - 1} ({int(bad.sum())} such labels); {hint}"
        )


def check_distribution(name: str, values: jax.Array, hint: str = "", counted: np.ndarray | None = None) -> None:
    """Refuses what is no distribution over the last axis, where the values can be seen."""
    if isinstance(values, jax.core.Tracer) or not values.size or not values.ndim:
        return
    p = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    if counted is not None:
        p = p[over(counted, values.shape[:-1]).ravel()]
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


class Counts(NamedTuple):
    """Which examples count, and what: None where all count 1.

    Attributes:
      keep: whether each does.
      weight: what each is multiplied by.
      of_class: the weight of its class, which is in its value already.
    """

    keep: jax.Array | None = None
    weight: jax.Array | None = None
    of_class: jax.Array | None = None


def counts(
    scores: jax.Array, target: jax.Array, ignore_label: int | None, weights: Any, class_weights: jax.Array | None
) -> Counts:
    """What each example counts, by its label, by its own weight and, of an integer label, by its class's."""
    keep = None if ignore_label is None else target != ignore_label
    given = weighted(weights, scores.shape[:-1], scores.dtype)
    weight = None
    if given is not None:
        weight = jnp.broadcast_to(given.of_values, scores.shape[:-1])
        keep = weight != 0 if keep is None else keep & (weight != 0)
    of_class = None
    if class_weights is not None and target.ndim < scores.ndim:
        of_class = pick(jnp.broadcast_to(class_weights, scores.shape), target)
    return Counts(keep, weight, of_class)


def weights_of_classes(values: Any, scores: jax.Array) -> jax.Array | None:
    """One weight a class, checked, along the last axis of the scores."""
    if values is None:
        return None
    values = checks.floating("class_weights", values)
    if values.shape != scores.shape[-1:]:
        raise ShapeError(f"class_weights must have shape {scores.shape[-1:]}, one a class, got {values.shape}")
    return values.astype(scores.dtype).reshape((1,) * (scores.ndim - 1) + (-1,))


def reduce_classes(values: jax.Array, scores: jax.Array, label: jax.Array, counts: Counts, reduction: str) -> jax.Array:
    """`reduce_examples`, with NaN for labels that are no class, in loss and gradient."""
    valid = is_class(label, scores.shape[-1])
    if counts.keep is not None:
        valid |= ~counts.keep
    # By way of the scores, so that the gradient is NaN where the loss is flat as well; and 0 / 0 rather than a literal,
    # for XLA on CPU makes anything of the exponential of a literal NaN.
    zero = 0.0 * jnp.sum(jnp.where(valid[..., None], 0.0, scores), axis=-1)
    return reduce_examples(values + zero / valid.astype(values.dtype), counts, reduction)


def reduce_examples(values: jax.Array, counts: Counts, reduction: str) -> jax.Array:
    """`reduce` of the examples to keep; "mean" divides by the sum of what they count."""
    if all(part is None for part in counts):
        return reduce(values, reduction)
    total = jnp.ones_like(values) if counts.of_class is None else counts.of_class
    if counts.keep is not None:
        values, total = jnp.where(counts.keep, values, 0.0), jnp.where(counts.keep, total, 0.0)
    if counts.weight is not None:
        values, total = values * counts.weight, total * counts.weight
    return mean_of(values, total, reduction)

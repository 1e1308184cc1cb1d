"""Metrics: ``metric(prediction, target)``, one number to read, in `training.fit`'s ``metrics``.

Shapes, labels, masks and weights are treated as in `jaxnet.losses`. Options are given with `functools.partial`::

    metrics={"top 5": functools.partial(metrics.top_k_accuracy, k=5)}
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet.errors import ConfigError, DTypeError
from jaxnet.losses.classes import classes, counts, floating_scores, one_hot, pick, reduce_classes, reduce_examples
from jaxnet.losses.common import loss as door
from jaxnet.losses.common import metric, pair, weighted
from jaxnet.losses.regression import mae

__all__ = ["accuracy", "mean_absolute_error", "r2", "top_k_accuracy"]


@door
def accuracy(
    scores: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None, ignore_label: int | None = None
) -> jax.Array:
    """The share of examples whose largest score is that of the right class; of equal scores the first counts.

    Args:
      scores: (..., C), logits or probabilities.
      target: integer labels of shape (...), or distributions (..., C), of which the likeliest class is right.
      weights: what each example counts, numbers or a mask, of shape (...) or its first axes.
      ignore_label: examples with this integer label count 0.

    Returns:
      A scalar from 0 to 1.

    Raises:
      ShapeError, DTypeError, DataError: as `losses.softmax_cross_entropy`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import metrics
      >>> metrics.accuracy(jnp.array([[0.1, 2.0], [3.0, 0.0]]), jnp.array([1, 1]))
      Array(0.5, dtype=float32)
    """
    scores = wide(floating_scores("scores", scores, target))
    target, integer = classes("scores", scores, target, ignore_label, weights)
    counted = counts(scores, target, ignore_label, weights, None)
    guess = jnp.argmax(scores, -1)
    if not integer:
        return reduce_examples((guess == jnp.argmax(target, -1)).astype(scores.dtype), counted, "mean")
    right = pick(one_hot(guess, scores.shape[-1]).astype(scores.dtype), target)
    return reduce_classes(right, scores, target, counted, "mean")


@door
def top_k_accuracy(
    scores: ArrayLike,
    target: ArrayLike,
    *,
    k: int = 5,
    weights: ArrayLike | None = None,
    ignore_label: int | None = None,
) -> jax.Array:
    """The share of examples whose right class has one of the ``k`` largest scores.

    A class with the same score as the right one counts as before it where it comes first, as in `accuracy`.

    Args:
      scores: (..., C), logits or probabilities.
      target: integer labels of shape (...).
      k: how many guesses; at most C.
      weights: as in `accuracy`.
      ignore_label: as in `accuracy`.

    Returns:
      A scalar from 0 to 1.

    Raises:
      ShapeError, DTypeError, DataError: as `losses.softmax_cross_entropy` of labels.
      ConfigError: a ``k`` outside 1..C.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import metrics
      >>> metrics.top_k_accuracy(jnp.array([[0.1, 2.0, 0.5], [3.0, 0.0, 1.0]]), jnp.array([2, 1]), k=2)
      Array(0.5, dtype=float32)
    """
    scores = wide(floating_scores("scores", scores, target))
    target, integer = classes("scores", scores, target, ignore_label, weights)
    if not integer:
        raise DTypeError(f"target must be integer labels of shape {scores.shape[:-1]}, got {target.dtype}")
    if checks.integer("k", k, minimum=1) > scores.shape[-1]:
        raise ConfigError(f"k must be at most the number of classes, {scores.shape[-1]}, got {k}")
    counted = counts(scores, target, ignore_label, weights, None)
    own = pick(scores, target)[..., None]
    index = lax.broadcasted_iota(target.dtype, scores.shape, scores.ndim - 1)
    behind = (scores < own) | ((scores == own) & (index >= target[..., None]))  # NaN is behind nothing
    before = jnp.sum(~behind, -1, dtype=jnp.int32)
    return reduce_classes((before < k).astype(scores.dtype), scores, target, counted, "mean")


@door
def mean_absolute_error(prediction: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The mean of the errors |prediction - target|: `losses.mae` by the name of a metric.

    Args:
      prediction: (batch, ...), floating point.
      target: the same shape.
      weights: what each value counts, numbers or a mask, of that shape or its first axes.

    Returns, Raises: as `losses.mae`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import metrics
      >>> metrics.mean_absolute_error(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0]))
      Array(1., dtype=float32)
    """
    return mae(prediction, target, weights=weights)


@metric
def r2(prediction: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None) -> jax.Array:
    """The share of the targets' variance that is predicted: 1 - sum of (t - y)^2 / sum of (t - mean t)^2.

    1 is perfect, 0 no better than the mean, and there is no lower end. Of several outputs it is the mean of theirs. An
    output whose targets are all equal has 1 if they are met, else 0. `training.fit` measures it on a whole validation
    set; the mean of batches' is another number.

    Args:
      prediction: (batch, ...), floating point.
      target: the same shape.
      weights: as in `mean_absolute_error`. An output of which nothing counts is left out.

    Returns:
      A scalar up to 1.

    Raises:
      ShapeError, DTypeError, DataError: as `losses.mse`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import metrics
      >>> metrics.r2(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0]))
      Array(0.5, dtype=float32)
    """
    prediction, target = pair(prediction, target)
    w = jnp.ones_like(target)
    if (counted := weighted(weights, target.shape, target.dtype)) is not None:
        w = jnp.broadcast_to(counted.of_values, target.shape)
        prediction, target = counted.only(prediction), counted.only(target)
    total = jnp.sum(w, 0)
    safe = jnp.where(total == 0, 1.0, total)
    # The first that counts is taken off first, for targets far from 0 whose deviations are small.
    first = jnp.take_along_axis(target, jnp.argmax(w > 0, axis=0)[None], axis=0)
    shifted = target - first
    centered = shifted - (jnp.sum(w * shifted, 0) / safe)[None]
    missed, varied = (jnp.sum(w * lax.square(e), 0) for e in (target - prediction, centered))
    flat = varied == 0
    share = jnp.where(flat, jnp.where(missed == 0, 1.0, 0.0), 1.0 - missed / jnp.where(flat, 1.0, varied))
    used = (total > 0).astype(share.dtype)
    return jnp.sum(jnp.where(total > 0, share, 0.0)) / jnp.maximum(jnp.sum(used), 1.0)

"""Cross-entropy, eq. 4.19, of logits and of probabilities."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet.losses.classes import check_distribution, classes, pick, reduce_classes
from jaxnet.losses.common import loss, reduce


@loss
def softmax_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy (eq. 4.19) of softmax(logits): - sum over y of p_y log softmax(logits)_y.

    Right to a few units in the last place at any logits, whatever they have in common, where the logarithm of a rounded
    probability is not; of a loss below 1, where the right class is nearly certain, to such units of 1. A logit of
    minus infinity masks a class; with label smoothing, which asks for a share of every class, the loss is then
    infinite.

    Args:
      logits: (..., C), floating point, unnormalized scores.
      target: integer labels of shape (...), or distributions of shape (..., C) and of floating point.
      label_smoothing: moves this share of the target evenly onto all classes, in [0, 1].
      ignore_label: examples with this integer label count for nothing: "mean" divides by the others, and is 0 if
        there are none.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (...) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: labels that are neither integers nor distributions, or integer logits.
      DataError: outside ``jit``: a label outside 0..C-1 that is not ``ignore_label``, or a target that is no
        distribution. Inside ``jit`` such a label gives NaN.
      ConfigError: a smoothing outside [0, 1], an ``ignore_label`` with distributions, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
      Array(1.3863, dtype=float32)

    Source: chapter 4.3.3; label smoothing: Szegedy et al. 2015, arXiv 1512.00567.
    """
    logits = wide(checks.floating("logits", logits))
    smoothing = checks.number("label_smoothing", label_smoothing, low=0, high=1)
    target, integer = classes("logits", logits, target, ignore_label)
    if integer:
        keep = None if ignore_label is None else target != ignore_label
        if keep is not None:  # what an ignored example holds, even NaN, must not reach the gradient
            logits = jnp.where(keep[..., None], logits, 0.0)
        shifted, log_total = _shifted(logits)
        values = log_total - pick(shifted, target)
        if smoothing:
            values = (1 - smoothing) * values + smoothing * (log_total - jnp.mean(shifted, axis=-1))
        return reduce_classes(values, logits, target, keep, reduction)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / logits.shape[-1]
    shifted, log_total = _shifted(logits)
    return reduce(-_expect(target, shifted - log_total[..., None]), reduction)


@loss
def cross_entropy(
    probabilities: ArrayLike, target: ArrayLike, *, ignore_label: int | None = None, reduction: str = "mean"
) -> jax.Array:
    """Cross-entropy, eq. 4.19: - sum over y of p_y log q_y of a predicted distribution q.

    A class with p_y = 0 adds 0, whatever q_y is; one with p_y > 0 and q_y = 0 makes the loss infinite, as the equation
    says. Where q comes from a softmax, `softmax_cross_entropy` of its input keeps the digits and cannot overflow.

    Args:
      probabilities: q, (..., C), floating point, summing to 1 over the last axis.
      target: integer labels of shape (...), or distributions p of shape (..., C).
      ignore_label: examples with this integer label count for nothing.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (...) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: labels that are neither integers nor distributions.
      DataError: outside ``jit``: a label outside 0..C-1 that is not ``ignore_label``, or probabilities that are none
        (did you pass logits?). Inside ``jit`` a bad label gives NaN.
      ConfigError: an ``ignore_label`` with distributions, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.cross_entropy(jnp.array([[0.5, 0.5, 0.0]]), jnp.array([1])).round(4)
      Array(0.6931, dtype=float32)

    Source: chapter 4.3.3.
    """
    probabilities = checks.floating("probabilities", probabilities)
    check_distribution("probabilities", probabilities, "; logits belong in softmax_cross_entropy")
    probabilities = wide(probabilities)
    target, integer = classes("probabilities", probabilities, target, ignore_label)
    if integer:
        keep = None if ignore_label is None else target != ignore_label
        picked = pick(probabilities, target)
        if keep is not None:
            picked = jnp.where(keep, picked, 1.0)
        return reduce_classes(-jnp.log(picked), probabilities, target, keep, reduction)
    counts = target > 0
    return reduce(-_expect(target, jnp.log(jnp.where(counts, probabilities, 1.0))), reduction)


def _shifted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits less their largest, and the logarithm of the sum of their exponentials.

    What all logits have in common is taken off before the logarithm is added, not after: it would cost its digits.
    """
    largest = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = logits - jnp.where(jnp.isfinite(largest), largest, 0.0)
    return shifted, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def _expect(p: jax.Array, values: jax.Array) -> jax.Array:
    """sum of p * values over the last axis, where 0 * inf is 0."""
    counts = p > 0
    return jnp.sum(jnp.where(counts, p * jnp.where(counts, values, 0.0), 0.0), axis=-1)

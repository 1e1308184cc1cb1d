"""Cross-entropy, eq. 4.19, of logits and of probabilities; and the divergence, which is less by the entropy."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet import activations
from jaxnet._dtypes import wide
from jaxnet.errors import DataError, DTypeError, ShapeError
from jaxnet.losses.classes import (
    check_distribution,
    classes,
    counts,
    floating_scores,
    over,
    pick,
    reduce_classes,
    reduce_examples,
    seen,
    weights_of_classes,
)
from jaxnet.losses.common import loss, pair, reduce_weighted, weighted


@loss
def softmax_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_label: int | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy (eq. 4.19) of softmax(logits): L = - sum over y of p_y log softmax(logits)_y.

    Right to a few units in the last place at any logits, whatever they have in common, where the logarithm of a rounded
    probability is not; of a loss below 1, where the right class is nearly certain, to such units of 1. A logit of
    minus infinity masks a class; with label smoothing, which asks for a share of every class, the loss is then
    infinite.

    Args:
      logits: (..., C), floating point, unnormalized scores.
      target: integer labels of shape (...), or distributions of shape (..., C) and of floating point.
      label_smoothing: moves this share of the target evenly onto all classes, in [0, 1].
      class_weights: (C,), what each class's term is multiplied by; "mean" divides by the sum of the labels' weights
        (with distributions, by the number of examples), as in PyTorch.
      weights: what each example counts, numbers from 0 or a mask (True for what is there), of shape (...) or its first
        axes: "mean" divides by their sum, and is 0 where that is 0. What counts 0 changes nothing, not even a NaN or a
        label that is no class, and has gradient 0.
      ignore_label: examples with this integer label count 0.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (...) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: labels that are neither integers nor distributions, or integer logits.
      DataError: outside ``jit``: a label outside 0..C-1 that is not ``ignore_label``, a target that is no
        distribution, or a negative weight. Inside ``jit`` such a label gives NaN.
      ConfigError: a smoothing outside [0, 1], an ``ignore_label`` with distributions, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
      Array(1.3863, dtype=float32)

    Source: chapter 4.3.3; label smoothing: Szegedy et al. 2015, arXiv 1512.00567.
    """
    logits = wide(floating_scores("logits", logits, target))
    smoothing = checks.number("label_smoothing", label_smoothing, low=0, high=1)
    target, integer = classes("logits", logits, target, ignore_label, weights)
    of_classes = weights_of_classes(class_weights, logits)
    counted = counts(logits, target, ignore_label, weights, of_classes)
    if counted.keep is not None:  # what does not count, even NaN, must not reach the gradient
        logits = jnp.where(counted.keep[..., None], logits, 0.0)
    shifted, log_total = _shifted(logits)
    if not integer:
        if smoothing:
            target = (1 - smoothing) * target + smoothing / logits.shape[-1]
        target = target if of_classes is None else target * of_classes
        return reduce_examples(-_expect(target, shifted - log_total[..., None]), counted, reduction)
    values = log_total - pick(shifted, target)
    if counted.of_class is not None:
        values = counted.of_class * values
    if smoothing:
        each = shifted if of_classes is None else of_classes * (shifted - log_total[..., None])
        spread = -jnp.mean(each, axis=-1)
        values = (1 - smoothing) * values + smoothing * (spread + log_total if of_classes is None else spread)
    return reduce_classes(values, logits, target, counted, reduction)


@loss
def cross_entropy(
    probabilities: ArrayLike,
    target: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_label: int | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Cross-entropy, eq. 4.19: L = - sum over y of p_y log q_y of a predicted distribution q.

    A class with p_y = 0 adds 0, whatever q_y is; one with p_y > 0 and q_y = 0 makes the loss infinite, as the equation
    says. Where q comes from a softmax, `softmax_cross_entropy` of its input keeps the digits and cannot overflow.

    Args:
      probabilities: q, (..., C), floating point, summing to 1 over the last axis.
      target: integer labels of shape (...), or distributions p of shape (..., C).
      class_weights: as in `softmax_cross_entropy`.
      weights: as in `softmax_cross_entropy`.
      ignore_label: examples with this integer label count 0.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (...) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: labels that are neither integers nor distributions.
      DataError: outside ``jit``: a label outside 0..C-1 that is not ``ignore_label``, probabilities that are none (did
        you pass logits?), or a negative weight. Inside ``jit`` a bad label gives NaN.
      ConfigError: an ``ignore_label`` with distributions, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.cross_entropy(jnp.array([[0.5, 0.5, 0.0]]), jnp.array([1])).round(4)
      Array(0.6931, dtype=float32)

    Source: chapter 4.3.3.
    """
    probabilities = floating_scores("probabilities", probabilities, target)
    check_distribution("probabilities", probabilities, "; logits belong in softmax_cross_entropy", seen(weights))
    probabilities = wide(probabilities)
    target, integer = classes("probabilities", probabilities, target, ignore_label, weights)
    of_classes = weights_of_classes(class_weights, probabilities)
    counted = counts(probabilities, target, ignore_label, weights, of_classes)
    if counted.keep is not None:
        probabilities = jnp.where(counted.keep[..., None], probabilities, 1.0)
    if not integer:
        log = jnp.log(jnp.where(target > 0, probabilities, 1.0))
        target = target if of_classes is None else target * of_classes
        return reduce_examples(-_expect(target, log), counted, reduction)
    picked = pick(probabilities, target)
    values = -jnp.log(picked if counted.keep is None else jnp.where(counted.keep, picked, 1.0))
    values = values if counted.of_class is None else counted.of_class * values
    return reduce_classes(values, probabilities, target, counted, reduction)


@loss
def kl_divergence(
    logits: ArrayLike, target: ArrayLike, *, weights: ArrayLike | None = None, reduction: str = "mean"
) -> jax.Array:
    """Divergence of a distribution p from q = softmax(logits): D = sum over y of p_y (log p_y - log q_y).

    It is 0 where q = p; `softmax_cross_entropy` of p is more by p's entropy, and has the same gradient by the logits.

    Args:
      logits: (..., C), floating point.
      target: the distributions p, of the same shape, such as a teacher's ``activations.softmax(logits / temperature)``.
      weights: as in `softmax_cross_entropy`.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns, Raises: as `softmax_cross_entropy` of distributions.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.kl_divergence(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])).round(4)
      Array(0.6931, dtype=float32)

    Source: Kullback and Leibler 1951.
    """
    logits = wide(floating_scores("logits", logits, target))
    target, integer = classes("logits", logits, target, None, weights)
    if integer:
        raise DTypeError(f"target must be distributions, floating point of shape {logits.shape}, got {target.dtype}")
    counted = counts(logits, target, None, weights, None)
    if counted.keep is not None:
        logits, target = (jnp.where(counted.keep[..., None], values, 0.0) for values in (logits, target))
    shifted, log_total = _shifted(logits)
    log_p = jnp.log(jnp.where(target > 0, target, 1.0))
    return reduce_examples(_expect(target, log_p - (shifted - log_total[..., None])), counted, reduction)


@loss
def sigmoid_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    positive_weight: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Binary cross-entropy of sigmoid(logits), for two classes or many labels at once: the mean over an example of::

        - w t log sigmoid(l) - (1 - t) log (1 - sigmoid(l))

    Value and derivative keep their digits at any logits.

    Args:
      logits: (batch, ...), floating point; one a label.
      target: the same shape: bools, or numbers t from 0 to 1.
      positive_weight: w, what a label counts that is there: a number, or one a label, (labels,).
      weights: as in `mse`.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, or there is no example.
      DTypeError: not floating point.
      DataError: outside ``jit``: a target outside 0 to 1, or a negative weight.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.sigmoid_cross_entropy(jnp.array([[0.0, 1000.0]]), jnp.array([[True, True]])).round(4)
      Array(0.3466, dtype=float32)

    Source: chapter 4.3.3, of two classes.
    """
    target = checks.array("target", target)
    _must_be_shares(target, seen(weights))  # before it is converted, which in a trace hides its numbers
    if target.dtype == bool or jnp.issubdtype(target.dtype, jnp.integer):
        target = target.astype(jnp.float32)
    logits, target = pair(logits, target)
    counted = weighted(weights, logits.shape, logits.dtype)
    positive = checks.array("positive_weight", positive_weight).astype(logits.dtype)
    if positive.shape not in ((), logits.shape[-1:]):
        raise ShapeError(f"positive_weight must be a number or have shape {logits.shape[-1:]}, got {positive.shape}")
    if counted is not None:
        logits, target = counted.only(logits), counted.only(target)
    positive = positive.reshape((1,) * (logits.ndim - positive.ndim) + positive.shape)
    # Two softpluses, and not one less t l: at t = 1 the derivative would be sigmoid(l) - 1, without a digit.
    # Each where its factor is not 0, since 0 times infinity is not 0.
    there, gone = positive * target * activations.softplus(-logits), (1 - target) * activations.softplus(logits)
    values = jnp.where(~(target <= 0), there, 0.0) + jnp.where(~(target >= 1), gone, 0.0)
    return reduce_weighted(values, counted, reduction)


def _must_be_shares(target: jax.Array, counted: np.ndarray | None) -> None:
    """Refuses what is no probability, where it can be seen and is counted."""
    if isinstance(target, jax.core.Tracer):
        return
    values = np.asarray(target)
    if values.dtype.kind not in "biufV":
        return
    bad = (values < 0) | (values > 1)  # NaN speaks for itself in the loss
    if counted is not None:
        bad &= over(counted, values.shape)
    if not bad.any():
        return
    low, high = (float(f(values.astype(np.float64))) for f in (np.nanmin, np.nanmax))
    cure = "of -1 and 1 take (target + 1) / 2" if low < 0 else "several classes want softmax_cross_entropy"
    raise DataError(f"target must hold bools, or numbers from 0 to 1, got {low:g} to {high:g}; {cure}")


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

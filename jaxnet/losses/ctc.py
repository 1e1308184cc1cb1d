"""Connectionist temporal classification: labels in order, without saying when."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet.errors import DataError, DTypeError, ShapeError
from jaxnet.losses.common import loss, reduce_weighted, weighted

_NEVER = -1e30  # the logarithm of a probability of 0, but finite: from minus infinity, NaN would reach the gradient


@loss
def ctc(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    label_mask: ArrayLike | None = None,
    blank: int = 0,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Minus the logarithm of the probability that the frames spell the labels, over all alignments of the two::

        L = - log sum over paths a that spell the labels of  product over t of  softmax(logits[t])[a[t]]

    Each frame says a class or the blank; repetitions and then blanks are taken away. So of T frames and N labels, of
    which R equal the one before, there are alignments if T >= N + R; without one the loss is infinite, with gradient 0.
    The sum over alignments is one pass over the frames, in logarithms, in at least float32.

    Args:
      logits: (batch, time, C), floating point.
      labels: integers (batch, N), 0 to C - 1 but for the blank.
      mask: (batch, time), True for the frames that are there.
      label_mask: (batch, N), True for the labels that are there, which come first.
      blank: the class that says nothing.
      weights: what each example counts, numbers from 0 or a mask, (batch,): "mean" divides by their sum, and is 0 where
        that is 0. What counts 0 changes nothing, not even a NaN; its labels must be some that can be.
      reduction: "mean" over the examples (PyTorch's also divides each by its number of labels), "sum" of them, or
        "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: logits that are not floating point, labels that are no integers, or a mask that is not of bools.
      DataError: outside ``jit``: a label that is no class or the blank, labels after one that is not there, or more of
        them than the frames can spell. Inside ``jit`` a bad label gives NaN.
      ConfigError: a ``blank`` that is no class, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.ctc(jnp.zeros((1, 2, 3)), jnp.array([[1]])).round(4)  # 3 of 9 paths spell 1: 01, 10 and 11
      Array(1.0986, dtype=float32)

    Source: Graves et al. 2006, Connectionist temporal classification, eq. 6 to 8.
    """
    logits = wide(checks.floating("logits", logits))
    checks.rank("logits", logits, 3, "(batch, time, classes)")
    labels = checks.array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise DTypeError(f"labels must be integers, got {labels.dtype}")
    batch, time, count = logits.shape
    if labels.ndim != 2 or labels.shape[0] != batch or not batch:
        raise ShapeError(f"labels must have the shape (batch, N) with a batch of {batch} > 0, got {labels.shape}")
    if checks.integer("blank", blank, minimum=0) >= count:
        checks.integer("the number of classes", count, minimum=blank + 1)
    there, labelled = _mask("mask", mask, (batch, time)), _mask("label_mask", label_mask, labels.shape)
    counted = weighted(weights, (batch,), logits.dtype)
    logits = logits if counted is None else counted.only(logits)
    labels = labels.astype(jnp.int32) if jnp.iinfo(labels.dtype).bits < 32 else labels
    _check(labels, labelled, there, count, blank)

    valid = jnp.all(~labelled | ((labels >= 0) & (labels < count) & (labels != blank)), 1)
    labels = jnp.where(labelled & (labels >= 0) & (labels < count), labels, blank)
    again = jnp.concatenate([jnp.zeros((batch, 1), bool), labels[:, 1:] == labels[:, :-1]], 1)[:, : labels.shape[1]]
    values = -_log_probability(jnp.where(there[..., None], logits, 0.0), labels, again, labelled, there, blank)
    fits = jnp.sum(there, 1) >= jnp.sum(labelled, 1) + jnp.sum(again & labelled, 1)
    values = jnp.where(fits, values, jnp.inf)
    zero = 0.0 * jnp.sum(jnp.where(valid[:, None, None], 0.0, logits), (1, 2))  # NaN in the gradient as well
    return reduce_weighted(values + zero / valid.astype(values.dtype), counted, reduction)


def _log_probability(
    logits: jax.Array, labels: jax.Array, again: jax.Array, labelled: jax.Array, there: jax.Array, blank: int
) -> jax.Array:
    """The forward recursion over the states blank, label, blank, ..., label, blank."""
    batch, n = labels.shape
    states = 2 * n + 1
    path = jnp.full((batch, states), blank, labels.dtype).at[:, 1::2].set(labels)
    may_skip = jnp.zeros((batch, states), bool).at[:, 3::2].set(~again[:, 1:])
    log_p = jnp.maximum(jax.nn.log_softmax(logits), _NEVER)

    def step(alpha, frame):
        log_p, here = frame
        before = [jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=_NEVER)[:, :states] for by in (1, 2)]
        ways = jnp.stack([alpha, before[0], jnp.where(may_skip, before[1], _NEVER)])
        new = _log_sum(ways, 0) + jnp.take_along_axis(log_p, path, 1)
        return jnp.where(here[:, None], jnp.maximum(new, _NEVER), alpha), None

    start = jnp.full((batch, states), _NEVER, logits.dtype).at[:, 0].set(0.0)
    alpha, _ = lax.scan(step, start, (jnp.moveaxis(log_p, 1, 0), there.T))
    last = 2 * jnp.sum(labelled, 1, dtype=jnp.int32)[:, None]
    index = jnp.arange(states, dtype=jnp.int32)[None]
    return _log_sum(jnp.where((index == last) | (index == last - 1), alpha, _NEVER), 1)


def _log_sum(x: jax.Array, axis: int) -> jax.Array:
    largest = lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    return jnp.squeeze(largest, axis) + jnp.log(jnp.sum(jnp.exp(x - largest), axis))


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> jax.Array:
    if mask is None:
        return jnp.ones(shape, bool)
    mask = checks.array(name, mask)
    if mask.dtype != bool:
        raise DTypeError(f"{name} must be of bools, True for what is there, got {mask.dtype}")
    if mask.shape != shape:
        raise ShapeError(f"{name} must have shape {shape}, got {mask.shape}")
    return mask


def _check(labels: jax.Array, labelled: jax.Array, there: jax.Array, count: int, blank: int) -> None:
    """Refuses what cannot be spelled, where the values can be seen."""
    if any(isinstance(a, jax.core.Tracer) for a in (labels, labelled, there)):
        return
    values, known = np.asarray(labels), np.asarray(labelled)
    if (known[:, 1:] & ~known[:, :-1]).any():
        raise DataError("label_mask must be True first and then False: the labels that are there come first")
    bad = known & ((values < 0) | (values >= count) | (values == blank))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"label {values[where]} at index {where} is the blank or no class; there are {count}, 0 to {count - 1}, of "
            f"which {blank} is the blank; leave labels out with label_mask"
        )
    frames = np.asarray(there).sum(1)
    needed = known.sum(1) + (known[:, 1:] & (values[:, 1:] == values[:, :-1])).sum(1)
    if (needed > frames).any():
        i = int(np.argmax(needed > frames))
        raise DataError(
            f"the labels of example {i} take {needed[i]} frames, one each and one between two that are equal, and "
            f"there are {frames[i]}"
        )

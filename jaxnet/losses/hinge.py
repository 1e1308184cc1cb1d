"""The multi-class hinge loss, eq. 4.21 as it was meant."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet import activations
from jaxnet._dtypes import wide
from jaxnet.errors import DTypeError
from jaxnet.losses.classes import classes, counts, floating_scores, one_hot, pick, reduce_classes
from jaxnet.losses.common import loss


@loss
def hinge(
    scores: ArrayLike,
    label: ArrayLike,
    *,
    margin: float = 1.0,
    variant: str = "weston_watkins",
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Multi-class hinge loss, eq. 4.21 corrected: the true class must lead every other by ``margin``.

    "weston_watkins" adds up the shortfalls, "crammer_singer" takes the largest::

        sum over y' != y of max(0, s_y' - s_y + margin)         max(0, margin + max over y' != y of s_y' - s_y)

    The printed equation has the sign of the scores reversed and the sum inside the maximum: minimizing it drives a
    linear classifier's accuracy to 0. PyTorch's ``multi_margin_loss`` is the first variant divided by C. At a kink the
    derivative is 0; rivals that tie for the largest score share it.

    Args:
      scores: (..., C), floating point.
      label: integer classes of shape (...).
      margin: the lead that costs nothing, above 0.
      variant: "weston_watkins" or "crammer_singer".
      weights: as in `softmax_cross_entropy`.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (...) for "none".

    Raises:
      ShapeError: shapes that do not fit, or no example.
      DTypeError: labels that are no integers.
      DataError: outside ``jit``: a label outside 0..C-1, which inside gives NaN, or a negative weight.
      ConfigError: a margin of 0 or less, an unknown variant or reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.hinge(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]))
      Array(0.5, dtype=float32)

    Source: chapter 4.3.5; Weston and Watkins 1999; Crammer and Singer 2001.
    """
    scores = wide(floating_scores("scores", scores, label))
    margin = checks.number("margin", margin, low=0, open_low=True)
    checks.choice("variant", variant, ("weston_watkins", "crammer_singer"))
    label, integer = classes("scores", scores, label, None, weights)
    if not integer:
        raise DTypeError(f"label must be integers of shape {scores.shape[:-1]}, got {label.dtype} {label.shape}")
    counted = counts(scores, label, None, weights, None)
    if counted.keep is not None:  # what does not count, even NaN, must not reach the gradient
        scores = jnp.where(counted.keep[..., None], scores, 0.0)
    rival = ~one_hot(label, scores.shape[-1])
    lead = scores - pick(scores, label)[..., None] + margin
    if variant == "weston_watkins":
        values = jnp.sum(jnp.where(rival, activations.relu(lead), 0.0), axis=-1)
    else:
        values = activations.relu(jnp.max(jnp.where(rival, lead, -jnp.inf), axis=-1))
    return reduce_classes(values, scores, label, counted, reduction)

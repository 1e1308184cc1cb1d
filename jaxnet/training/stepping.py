"""How the steps of `fit` are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, named


class Stepping(NamedTuple):
    """What `stepping` returns."""

    regularizer: Callable[[Any], jax.Array] | None
    accumulate: int
    loss_scale: float | None
    guard: bool | str
    max_skipped: int


@named("stepping")
def stepping(
    *,
    regularizer: Callable[[Any], jax.Array] | None = None,
    accumulate: int = 1,
    loss_scale: float | None = None,
    guard: bool | str = True,
    max_skipped: int = 20,
) -> Stepping:
    """How the steps of `fit` are made, where it is not the usual way.

    Args:
      regularizer: ``params -> scalar``, added to the loss that is minimized.
      accumulate: parts into which a batch is split to save memory (`make_step`).
      loss_scale: the first factor on the loss, for float16 (`init`); 2.0**15 is usual.
      guard: True, or "update" to look at the updated parameters too (`make_step`).
      max_skipped: non-finite steps in a row to skip before giving up.

    Returns:
      What `fit` takes as ``step``.

    Raises:
      ConfigError: what is no function, number or flag.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, regularizers, training
      >>> x = jnp.linspace(-1, 1, 16)[:, None]
      >>> fit = training.fit(
      ...     layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, 2 * x), epochs=1, batch_size=8, progress=False,
      ...     step=training.stepping(regularizer=regularizers.l2(1e-4), accumulate=2),
      ... )
      >>> "penalty" in fit.history.names
      True
    """
    if regularizer is not None:
        checks.function("regularizer", regularizer)
    if loss_scale is not None:
        loss_scale = checks.number("loss_scale", loss_scale, low=0, open_low=True)
    if guard is not True and guard != "update":
        raise ConfigError(
            f"guard must be True or 'update', got {guard!r}; a step without one is make_step(guard=False), for a loop "
            f"of your own"
        )
    accumulate = checks.integer("accumulate", accumulate, minimum=1)
    max_skipped = checks.integer("max_skipped", max_skipped, minimum=1)
    return Stepping(regularizer, accumulate, loss_scale, guard, max_skipped)

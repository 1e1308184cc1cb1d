"""Weight decay as a transformation of its own."""

import inspect
from typing import Any, NamedTuple

import jax

from jaxnet.errors import ConfigError
from jaxnet.optimizers._arithmetic import promoted, scalar_like, wide
from jaxnet.optimizers._hyperparameters import scalars
from jaxnet.optimizers._rule import door, rule
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule
from jaxnet.optimizers.vectors import Vector, each
from jaxnet.paths import checked, chosen, select, some


class AddDecayedWeightsState(NamedTuple):
    """The state of `add_decayed_weights`.

    Attributes:
      count: steps taken, an int32 scalar.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@door
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None) -> Optimizer:
    r"""Adds a multiple of the parameters to the updates.

    .. math:: g \leftarrow g + \lambda \theta

    In front of a rule it is L2 regularization of :math:`\frac{\lambda}{2} \|\theta\|^2` (PyTorch's
    ``weight_decay`` of SGD and Adam); after the scaling by moments it is decoupled decay, which `adamw` does.

    Args:
      weight_decay: :math:`\lambda \ge 0`, a float, a scalar array, or a schedule from step to value.
      mask: which parameters decay, as in `adamw`.

    Returns:
      An `Optimizer` whose state is an `AddDecayedWeightsState`.

    Raises:
      ConfigError: a concrete argument makes no sense, a mask chooses no leaf, or ``update`` is called without the
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import chain, sgd
      >>> optimizer = chain(add_decayed_weights(0.1), sgd(1.0))
      >>> params = jnp.array([1.0, -2.0])
      >>> optimizer.update(jnp.zeros(2), optimizer.init(params), params)[0]
      Array([-0.1,  0.2], dtype=float32)

    Source: Krogh & Hertz, A simple weight decay can improve generalization, NeurIPS 1991.
    """

    def step(g, s, params, weight_decay):
        return decayed(g, params, weight_decay, mask), s

    return rule(AddDecayedWeightsState, step, checked_decay(weight_decay, mask), {}, needs_params="weight decay")


def checked_decay(weight_decay: Any, mask: Any) -> dict[str, Any]:
    """The weight decay by name; the mask is checked as far as it can be without parameters."""
    if mask is not None:
        checked("mask", mask)
    return scalars(weight_decay=weight_decay)


def decayed(g: Vector, params: Any, decay: Any, mask: Any) -> Vector:
    """``g + decay params`` where the mask is true; a constant decay of 0 leaves no trace in the compiled step."""
    on = Vector(jax.tree.leaves(_spread(mask, params)))
    if isinstance(decay, float) and decay == 0.0:
        return g

    def add(x, p, on):
        x, p = promoted(x, scalar_like(decay, wide(p)) * wide(p)) if on else (x, None)
        return x if p is None else x + p

    return each(add, g, Vector(jax.tree.leaves(params)), on)


def _spread(mask: Any, params: Any) -> Any:
    """One Python bool per parameter."""
    if mask is not None and hasattr(params, "unravel"):
        raise ConfigError(
            "parameters in flat layout have no leaves to mask, only vectors; keep the tree (no ravel, no flat) "
            "for an optimizer with a mask"
        )
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    if callable(mask) and not _of_two(mask):
        return some(select(params, mask(params)))
    return chosen(params, mask)


def _of_two(mask: Any) -> bool:
    """Whether a function takes a path and a leaf; one of optax's takes the parameters."""
    try:
        inspect.signature(mask).bind("", None)
    except (TypeError, ValueError):  # or it has no signature
        return False
    return True

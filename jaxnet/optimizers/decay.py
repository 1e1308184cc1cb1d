"""Weight decay as a transformation of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.optimizers import _checks
from jaxnet.optimizers._arithmetic import next_count, plus, scaled, wide
from jaxnet.optimizers.base import Optimizer, ScalarOrSchedule


class AddDecayedWeightsState(NamedTuple):
    """The state of `add_decayed_weights`: ``count``, the steps taken, an int32 scalar."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@made
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None) -> Optimizer:
    r"""Adds a multiple of the parameters to the updates: :math:`g + \lambda \theta`.

    In front of a rule it is L2 regularization of :math:`\frac{\lambda}{2} \|\theta\|^2` (PyTorch's
    ``weight_decay`` of SGD and Adam); after the scaling by moments it is decoupled decay, which `adamw` does.

    Args:
      weight_decay: :math:`\lambda \ge 0`, a float, a scalar array, or a schedule from step to value.
      mask: which parameters decay: a tree of bools (a prefix of the parameters' tree is enough), or a
        function from the parameters to one. None for all.

    Returns:
      An `Optimizer` whose state is an `AddDecayedWeightsState`.

    Raises:
      ConfigError: a concrete argument makes no sense, or ``update`` is called without the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import chain, sgd
      >>> optimizer = chain(add_decayed_weights(0.1), sgd(1.0))
      >>> params = jnp.array([1.0, -2.0])
      >>> optimizer.update(jnp.zeros(2), optimizer.init(params), params)[0]
      Array([-0.1,  0.2], dtype=float32)

    Source: Krogh & Hertz, A simple weight decay can improve generalization, NeurIPS 1991.
    """
    weight_decay = check_decay("add_decayed_weights", weight_decay, mask)

    def init(params):
        _checks.parameters("add_decayed_weights", params)
        return AddDecayedWeightsState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _checks.state_is("add_decayed_weights", state, AddDecayedWeightsState)
        _checks.need_params("add_decayed_weights", params, "weight decay")
        _checks.gradients("add_decayed_weights", updates, params)
        decay = _checks.at("add_decayed_weights", "weight_decay", weight_decay, state.count)
        decays = mask_leaves("add_decayed_weights", mask, params)
        updates = jax.tree.map(lambda g, p, on: decayed(wide(g), p, decay) if on else wide(g), updates, params, decays)
        return updates, AddDecayedWeightsState(next_count(state.count))

    return Optimizer(init, update)


def check_decay(who: str, weight_decay: Any, mask: Any) -> Any:
    """The checked weight decay; the mask is checked as far as it can be without parameters."""
    if mask is not None and not callable(mask):
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
            if not _is_bool(leaf):
                place = jax.tree_util.keystr(path)
                raise ConfigError(f"{who}: mask must be a tree of bools, got {leaf!r}{f' at {place}' if place else ''}")
    return _checks.scalar(who, "weight_decay", weight_decay)


def decayed(g: jax.Array, p: Any, decay: Any) -> jax.Array:
    """``g + decay p``; a decay that is the constant 0 leaves no trace in the compiled step."""
    if isinstance(decay, float) and decay == 0.0:
        return g
    return plus(g, scaled(decay, wide(p)))


def mask_leaves(who: str, mask: Any, params: Any) -> Any:
    """One Python bool per parameter."""
    if mask is not None and hasattr(params, "unravel"):
        raise ConfigError(
            f"{who}: parameters in flat layout have no leaves to mask, only vectors; keep the tree (no ravel, no flat) "
            f"for an optimizer with a mask"
        )
    tree = True if mask is None else mask(params) if callable(mask) else mask

    def spread(on, subtree):
        if not _is_bool(on):
            raise ConfigError(f"{who}: mask must be a tree of bools, got {on!r}")
        return jax.tree.map(lambda _: bool(on), subtree)

    try:
        return jax.tree.map(spread, tree, params)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{who}: the mask {jax.tree.structure(tree)} is no prefix of the parameters "
            f"{jax.tree.structure(params)}; give it one bool per parameter, or per subtree of them"
        ) from error


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype == np.bool_ and value.shape == ()
    )

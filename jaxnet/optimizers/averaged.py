"""The weights to evaluate, where an optimizer averages those that it trains.

The state of an optimizer that does has a method ``averaged(params)``: the parameters with the averages, in whatever
dtype they are kept, in the place of what it averages; `over_held` makes it. It is found wherever the state lies in
another's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.errors import ShapeError, named
from jaxnet.paths import text


@named("averaged")
def averaged(opt_state: Any, params: Any) -> Any:
    """The weights to evaluate and to keep: of an optimizer that averages, the averages; of any other, the parameters.

    Those that average are `ema`, `swa`, `lookahead` (whose slow weights they are) and `schedule_free`, alone or
    anywhere inside others: in a `chain`, a group of a `partition`, a `master_copy`, a `skip_nonfinite`, or one of
    optax's. Where one of them is inside another, the outer one's averages are meant. `training.fit` evaluates, keeps
    and returns these weights.

    Args:
      opt_state: the optimizer's state.
      params: the parameters that it trains, arrays of any shapes; what is not averaged stays as it is.

    Returns:
      A tree like ``params``, in their dtypes.

    Raises:
      ShapeError: the averages are those of other parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> optimizer = optimizers.lookahead(optimizers.sgd(1.0), sync_period=5, slow_step_size=0.5)
      >>> params = jnp.zeros(2)
      >>> updates, state = optimizer.update(jnp.ones(2), optimizer.init(params), params)
      >>> params = optimizers.apply_updates(params, updates)
      >>> params, optimizers.averaged(state, params)
      (Array([-1., -1.], dtype=float32), Array([0., 0.], dtype=float32))

    Source: those of `ema`, `swa`, `lookahead` and `schedule_free`.
    """
    found = params
    for one in _averaging(opt_state):
        found = one.averaged(found)
    return found if found is params else jax.tree.map(lambda p, average: average.astype(p.dtype), params, found)


def averages(opt_state: Any) -> bool:
    """Whether anything in an optimizer's state averages the parameters."""
    return bool(_averaging(opt_state))


def over_held(f: Callable[..., Any], held: Any, params: Any) -> Any:
    """``f(held, parameter)``, leaf by leaf; where nothing is held, the parameter.

    Args:
      f: of two arrays of one shape, and of the dtypes in which they are kept.
      held: a tree like the parameters, perhaps with None (or optax's ``MaskedNode``) where a leaf is another group's;
        or their flat layout.
      params: the parameters.
    """
    if hasattr(held, "unravel") and not hasattr(params, "unravel"):
        held = held.unravel()

    def one(path, mine, p):
        if _is_hole(mine):
            return p
        if jnp.shape(mine) != jnp.shape(p) or not hasattr(p, "dtype"):
            raise _misfit(f"at {text(path) or 'the leaf'} {_shape(mine)} for {_shape(p)}")
        return f(mine, p)

    try:
        return jax.tree_util.tree_map_with_path(one, held, params, is_leaf=_is_hole)
    except (ValueError, TypeError) as error:
        if isinstance(error, ShapeError):
            raise
        raise _misfit(f"{jax.tree.structure(held)} for {jax.tree.structure(params)}") from error


def _averaging(opt_state: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(opt_state, is_leaf=_averages) if _averages(node)]


def _averages(node: Any) -> bool:
    """Whether it has the method; one that only hands on what is inside it has ``averages`` to say whether that has."""
    return callable(getattr(type(node), "averaged", None)) and getattr(node, "averages", True)


def _is_hole(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def _shape(value: Any) -> str:
    return str(jnp.shape(value)) if hasattr(value, "shape") else type(value).__name__


def _misfit(what: str) -> ShapeError:
    return ShapeError(
        f"the averages in the optimizer's state do not fit the parameters: {what}; give the parameters that this "
        f"optimizer has trained, with the state of its last update"
    )

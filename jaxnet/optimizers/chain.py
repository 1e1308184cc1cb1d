"""Transformations one after the other."""

from typing import Any

from jaxnet.errors import ConfigError, located, named
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers._members import is_plain_pair, member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.averaged import averages
from jaxnet.optimizers.base import Optimizer


@door
def chain(*optimizers: Any) -> Optimizer:
    r"""Applies transformations in order: the updates of one are the gradients of the next.

    .. math:: u_0 = g, \qquad u_k = A_k(u_{k-1}, \theta), \quad k = 1 \ldots n, \qquad \theta \leftarrow \theta + u_n

    Args:
      *optimizers: :math:`A_1 \ldots A_n`, (init, update) pairs, of this library or of optax. Extra keyword arguments
        of ``update`` reach those members that accept them.

    Returns:
      An `Optimizer` whose state is the tuple of the members' states.

    Raises:
      ConfigError: a member is no optimizer; one that averages (`ema`, `lookahead`) stands before another; or a state
        has another number of members.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import clip_by_global_norm, sgd
      >>> optimizer = chain(clip_by_global_norm(1.0), sgd(0.5))
      >>> params = jnp.array([0.0, 0.0])
      >>> optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)[0]
      Array([-0.3, -0.4], dtype=float32)

    Source: the composition of `optax.chain`.
    """
    if not optimizers:
        raise ConfigError("pass at least one optimizer, for example chain(clip_by_global_norm(1.0), adam(1e-3))")
    listed = len(optimizers) == 1 and isinstance(optimizers[0], (list, tuple)) and not hasattr(optimizers[0], "update")
    if listed and not is_plain_pair(optimizers[0]):
        raise ConfigError("pass the optimizers one by one, chain(a, b), not in a list")
    members = [named(f"chain[{i}]")(member)(one) for i, one in enumerate(optimizers)]

    def init(params):
        states = []
        for i, one in enumerate(members):
            with located(f"chain[{i}]"):
                if averages(states):
                    raise ConfigError(
                        "a member before this one averages the parameters that its own updates lead to, and this one "
                        "would lead to others; put the average last, or around all, as in ema(chain(...))"
                    )
                states.append(one.init(params))
        return tuple(states)

    def update(updates, state, params=None, **extra_args):
        if not isinstance(state, (tuple, list)) or hasattr(state, "_fields") or len(state) != len(members):
            came = f"{len(state)} members" if type(state) in (tuple, list) else f"a {type(state).__name__}"
            raise ConfigError(
                f"this state is not a tuple of {len(members)} states, it is {came}; "
                f"pass the state that this chain's init or last update returned"
            )
        states = []
        for i, (one, its_state) in enumerate(zip(members, state, strict=True)):
            with located(f"chain[{i}]"):
                updates, new = updated(one, updates, its_state, params, extra_args)
            states.append(new)
        return updates, tuple(states)

    def rate(before, after):
        return rates.joined([rates.known(*one) for one in zip(members, before, after, strict=True)])

    return rates.saying(Optimizer(init, update), rate)

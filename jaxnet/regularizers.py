"""Regularizers (4.6.2): penalties on weights, and the step that makes weights exactly zero.

Each is made once with its strength and is then a function of the parameters. By default they leave out what is not a
weight: leaves named ``bias``, ``offset``, ``scale`` and ``slope``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet._made import made
from jaxnet._tables import few
from jaxnet.errors import ConfigError, DTypeError, ShapeError, named
from jaxnet.losses.common import absolute
from jaxnet.paths import Which, checked, select, text

__all__ = ["l1", "l2", "proximal_l1", "weights"]

_NOT_WEIGHTS = ("bias", "offset", "scale", "slope")


def weights(path: str, leaf: Any) -> bool:
    """Returns whether a leaf is a weight: not named bias, offset, scale or slope.

    Args:
      path: of the leaf, as in `paths.paths`.
      leaf: not looked at.

    Example:
      >>> from jaxnet import regularizers
      >>> regularizers.weights("0/bias", None), regularizers.weights("0/kernel", None)
      (False, True)
    """
    del leaf
    return path.rpartition("/")[2] not in _NOT_WEIGHTS


@made
def l1(strength: float, *, where: Which = weights) -> Callable[[Any], jax.Array]:
    """Makes the penalty R = strength * sum over i of |w_i|, eq. 4.26; it drives small weights towards zero.

    Its derivative is strength * sign(w), and 0 at w = 0: eq. 4.27 has -strength there, which would push a weight that
    has reached zero away from it. Gradient steps still only oscillate around zero; `proximal_l1` reaches it.

    Args:
      strength: lambda_1, at least 0.
      where: which leaves are penalized, as in `paths.select`.

    Returns:
      ``penalty(params)``, a scalar in at least float32, to add to a loss.

    Raises:
      ConfigError: the strength is negative or no number; from the penalty, if ``where`` picks no leaf.
      DTypeError: from the penalty: a leaf that is picked and not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import regularizers
      >>> penalty = regularizers.l1(0.5)
      >>> penalty({"kernel": jnp.array([1.0, -3.0]), "bias": jnp.array([9.0])})
      Array(2., dtype=float32)

    Source: chapter 4.6.2.
    """
    return _penalty("l1", strength, where, absolute)


@made
def l2(strength: float, *, where: Which = weights) -> Callable[[Any], jax.Array]:
    """Makes the penalty R = strength * sum over i of w_i^2, eq. 4.28; no one-half.

    Its gradient is 2 strength w, eq. 4.29.

    Args:
      strength: lambda_2, at least 0.
      where: which leaves are penalized, as in `paths.select`.

    Returns:
      ``penalty(params)``, a scalar in at least float32, to add to a loss.

    Raises:
      ConfigError: the strength is negative or no number; from the penalty, if ``where`` picks no leaf.
      DTypeError: from the penalty: a leaf that is picked and not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import regularizers
      >>> regularizers.l2(0.5)({"kernel": jnp.array([1.0, -3.0]), "bias": jnp.array([9.0])})
      Array(5., dtype=float32)

    Source: chapter 4.6.2.
    """
    return _penalty("l2", strength, where, lax.square)


@made
def proximal_l1(strength: float, *, where: Which = weights) -> Callable[[Any, float | jax.Array], Any]:
    """Makes the step that shrinks weights by learning_rate * strength and stops at zero (soft thresholding)::

        w <- sign(w) max(|w| - learning_rate * strength, 0)

    Applied after a gradient step on the loss alone it minimizes loss + strength * |w|_1, with zeros that are exact.

    Args:
      strength: lambda_1, at least 0.
      where: which leaves shrink, as in `paths.select`.

    Returns:
      ``step(params, learning_rate) -> params``.

    Raises:
      ConfigError: the strength is negative or no number; from the step, if ``where`` picks no leaf, or the learning
        rate is a negative number.
      DTypeError: from the step: a leaf that is picked and not floating point.
      ShapeError: from the step: a learning rate that is an array of many.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import regularizers
      >>> regularizers.proximal_l1(2.0)({"kernel": jnp.array([0.05, -1.0])}, 0.1)["kernel"]
      Array([ 0. , -0.8], dtype=float32)

    Source: Daubechies et al. 2004, arXiv math/0307152; Parikh and Boyd 2014, Proximal Algorithms, 6.5.2.
    """
    strength = checks.number("strength", strength, low=0)
    checked("where", where)

    @named("proximal_l1")
    def step(params: Any, learning_rate: float | jax.Array) -> Any:
        if isinstance(learning_rate, jax.Array) and learning_rate.shape:
            raise ShapeError(f"learning_rate must be one number, got shape {learning_rate.shape}")
        if not isinstance(learning_rate, jax.core.Tracer):
            value = learning_rate.item() if isinstance(learning_rate, jax.Array) else learning_rate
            learning_rate = checks.number("learning_rate", value, low=0)
        chosen = _choose(params, where)

        def shrink(leaf, picked):
            if not picked:
                return leaf
            leaf = jnp.asarray(leaf)
            wide = leaf.astype(at_least_float32(leaf.dtype))  # the threshold alone may be 0 in float16
            threshold = jnp.asarray(learning_rate, wide.dtype) * jnp.asarray(strength, wide.dtype)
            return (jnp.sign(wide) * jnp.maximum(jnp.abs(wide) - threshold, 0)).astype(leaf.dtype)

        return jax.tree.map(shrink, params, chosen)

    return step


def _penalty(name, strength, where, cost):
    strength = checks.number("strength", strength, low=0)
    checked("where", where)

    @named(name)
    def penalty(params: Any) -> jax.Array:
        chosen = _choose(params, where)
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(chosen), strict=True)
        picked = [jnp.asarray(leaf) for leaf, pick in leaves if pick]
        dtype = at_least_float32(*(leaf.dtype for leaf in picked))
        total = jnp.zeros((), dtype)
        for leaf in picked:
            total = total + jnp.sum(cost(leaf.astype(dtype)))
        return strength * total

    return penalty


def _choose(params: Any, where: Which) -> Any:
    """A tree of bools like ``params``: which leaves to take."""
    if hasattr(params, "unravel"):
        raise ConfigError("raveled parameters have lost their names; pass params.unravel()")
    chosen = select(params, where)
    taken = [(text(path) or "the leaf", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    for (name, leaf), pick in zip(taken, jax.tree.leaves(chosen), strict=True):
        if pick and not jnp.issubdtype((dtype := checks.array(name, leaf).dtype), jnp.floating):
            raise DTypeError(f"leaf {name} is {dtype}; weights are floating point, leave others out with where")
    if not any(jax.tree.leaves(chosen)):
        names = few([name for name, _ in taken], 6, "") or "none"
        raise ConfigError(f"no leaf was picked to penalize, so it would do nothing; the leaves are {names}")
    return chosen

"""A layer applied many times in a row, as one scan over stacked parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError, located
from jaxnet.layers.layer import Layer, applied, as_layer, output_struct
from jaxnet.layers.layer import layer as define
from jaxnet.layers.protocol import same_structs


@made
def repeat(layer: Layer | Callable[..., Any], n: int, *, remat: bool = False) -> Layer:
    """Chains ``n`` copies of a layer, y = f_n(... f_2(f_1(x))), each with parameters of its own, in one `jax.lax.scan`.

    The layer is traced and compiled once, so compile time does not grow with depth.

    Args:
      layer: a layer that keeps the shape and dtype of its input, or of every array in it.
      n: how many copies, at least 1.
      remat: recompute each copy's inner values in the backward pass instead of keeping them: memory for the
        activations falls to one array a copy, for about a third more arithmetic.

    Returns:
      A layer whose params and state are those of ``layer`` with a leading axis, (n, ...).

    Raises:
      ConfigError: ``n`` is no positive integer, or the params are not stacked ``n`` deep.
      ShapeError: the layer changes the shape or dtype of its input.
      DTypeError: an input that is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> deep = layers.repeat(layers.residual(layers.chain(layers.dense(4), jnp.tanh)), 50)
      >>> params, state = deep.init(0, jnp.ones((1, 4)))
      >>> params["branch"][0]["kernel"].shape
      (50, 4, 4)
    """
    inner = as_layer(layer)
    n = checks.integer("n", n, minimum=1)
    checks.flag("remat", remat)

    def init(key, x):
        keys = jax.random.split(checks.key(key), n)
        with located("repeat", inner.name):
            params, state = jax.vmap(lambda k: inner.init(k, x), axis_size=n)(keys)
            copy = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (params, state))
            y = output_struct(inner, copy[0], copy[1], x)
        if not same_structs(x, y):
            raise ShapeError(
                f"the layer turns {checks.describe(x)} into {checks.describe(y)}; only a layer that keeps "
                f"shape and dtype can follow itself. Put what changes the shape before or after the repeat"
            )
        return params, state

    def apply(params, state, x, *, train, key):
        for leaf in jax.tree.leaves((params, state)):
            if jnp.shape(leaf)[:1] != (n,):
                raise ConfigError(
                    f"params and state must be stacked {n} deep, got a leaf of shape {jnp.shape(leaf)}; "
                    f"pass what this layer's init returned"
                )
        keys = None if key is None else jax.random.split(checks.key(key), n)

        def step(x, copy):
            params, state, key = copy
            with applied("repeat", inner):
                y, state = inner.apply(params, state, x, train=train, key=key)
            if not same_structs(x, y):
                raise ShapeError(f"the layer turns {checks.describe(x)} into {checks.describe(y)}; it must keep them")
            return y, state

        if remat:  # inside a scan nothing is shared between iterations, so there is nothing to protect from CSE
            step = jax.checkpoint(step, prevent_cse=False)
        x = jax.tree.map(lambda leaf: checks.array("x", leaf), x)
        return lax.scan(step, x, (params, state, keys), length=n)

    def rebuild(part):
        return repeat(part, n, remat=remat)

    return define("repeat", init, apply, parts=(("layer", inner),), rebuild=rebuild, trees="stacked")

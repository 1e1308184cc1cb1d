"""Layers that only rearrange: flatten and reshape."""

import math

import jax

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.layers.layer import Layer, parameterless

_WHOLE = (
    "it lays all positions of an example out anew, so it needs them all; stream the network up to it, and give the "
    "rest what came out, joined"
)


@made
def flatten() -> Layer:
    """Lays each example out as one vector: (batch, ...) to (batch, product of the rest).

    Returns:
      A layer without params or state.

    Raises:
      ShapeError: the input has no batch axis.
      DTypeError: the input is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layers.flatten().apply((), (), jnp.ones((2, 8, 3)), train=False)[0].shape
      (2, 24)
    """

    def f(x: jax.Array) -> jax.Array:
        x = checks.array("x", x)
        if not x.shape:
            raise ShapeError("x must have the axes (batch, ...), got a scalar")
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    return parameterless(f, "flatten", stream=_WHOLE)


@made
def reshape(*shape: int) -> Layer:
    """Gives each example another shape: (batch, ...) to ``(batch, *shape)``.

    Args:
      *shape: the sizes after the batch axis; one of them may be -1, which is inferred.

    Returns:
      A layer without params or state.

    Raises:
      ConfigError: a size below 1 other than a single -1.
      ShapeError: the example has another number of values.
      DTypeError: the input is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layers.reshape(8, -1).apply((), (), jnp.ones((2, 64)), train=False)[0].shape
      (2, 8, 8)
    """
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    sizes = tuple(s if s == -1 else checks.integer("size", s, minimum=1) for s in shape)
    if sizes.count(-1) > 1:
        raise ConfigError(f"at most one size may be -1, got {sizes}")

    def f(x: jax.Array) -> jax.Array:
        x = checks.array("x", x)
        values, known = math.prod(x.shape[1:]), math.prod(s for s in sizes if s != -1)
        if not x.shape or (values % known if -1 in sizes else values != known):
            raise ShapeError(f"an example of shape {x.shape[1:]} ({values} values) does not fit {sizes}")
        return x.reshape(x.shape[0], *(values // known if s == -1 else s for s in sizes))

    return parameterless(f, "reshape", stream=_WHOLE)

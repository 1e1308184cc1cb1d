"""The parametric rectified linear unit, eq. 4.13 with a slope that is learned."""

import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import activations
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.layers.layer import Layer, stateless


@made
def prelu(slope: float = 0.25, *, per_channel: bool = False) -> Layer:
    """Computes y = x where x > 0 and a x elsewhere, with a learned slope a (eq. 4.13).

    At x = 0 the derivative is a, as the equation's "otherwise" says, and a's own gradient there is 0.

    Args:
      slope: the starting value of a.
      per_channel: one slope for each entry of the last axis, instead of a single one.

    Returns:
      A layer that keeps its input's shape (..., channels), with the param ``slope`` of shape () or (channels,).

    Raises:
      ConfigError: ``slope`` is no finite number.
      ShapeError: other channels than the slopes.
      DTypeError: x is not floating point, or of another dtype than the slopes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.prelu(0.5)
      >>> params, state = layer.init(0, jnp.ones((1, 2)))
      >>> layer.apply(params, state, jnp.array([[-2.0, 3.0]]), train=False)[0]
      Array([[-1.,  3.]], dtype=float32)

    Source: chapter 4.2.1; He et al. 2015, [36].
    """
    slope = checks.number("slope", slope)
    checks.flag("per_channel", per_channel)

    def init(key, x):
        x = checks.floating_struct(x)
        if per_channel and not x.shape:
            raise ShapeError("one slope a channel needs an input with channels, got a scalar")
        return {"slope": jnp.full(x.shape[-1:] if per_channel else (), slope, x.dtype)}

    def f(params, x):
        x = checks.floating("x", x)
        (a,) = checks.leaves(params, "slope")
        wanted = x.shape[-1:] if per_channel else ()
        if a.shape != wanted:
            raise ShapeError(
                f"the slope has shape {a.shape}, an input of shape {x.shape} wants {wanted}; channels come last"
            )
        checks.same_dtype(x=x, slope=a)
        return activations.rectify(x, a.reshape((1,) * (x.ndim - a.ndim) + a.shape))

    return stateless(init, f, name="prelu", torch=(("slope", "weight", jnp.ravel),), stream="pointwise")

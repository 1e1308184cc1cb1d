"""The snake activation: a line with a wave on it, of a frequency that is learned."""

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.layers.layer import Layer, stateless


@made
def snake(alpha: float = 1.0) -> Layer:
    """Computes y = x + sin^2(alpha x) / alpha with a learned alpha a channel: a bias towards periodic signals.

    Smooth; where alpha is 0 it is x, its limit. At the infinities it is x, too. The derivative by an alpha that is
    nearer to 0 than 5e-20 in float32, and not 0, is NaN.

    Args:
      alpha: the starting value; pi / alpha is the period.

    Returns:
      A layer that keeps its input's shape (..., channels), with the param ``alpha`` of shape (channels,).

    Raises:
      ConfigError: ``alpha`` is no finite number.
      ShapeError: other channels than those of ``alpha``.
      DTypeError: x is not floating point, or of another dtype than ``alpha``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.snake()
      >>> params, state = layer.init(0, jnp.ones((1, 2)))
      >>> y, state = layer.apply(params, state, jnp.array([[0.0, jnp.pi / 2]]), train=False)
      >>> round(float(y[0, 1] - jnp.pi / 2), 3)
      1.0

    Source: Ziyin et al. 2020, arXiv 2006.08195; in vocoders Lee et al. 2022, arXiv 2206.04658.
    """
    alpha = checks.number("alpha", alpha)

    def init(key, x):
        x = checks.floating_struct(x)
        if not x.shape:
            raise ShapeError("one alpha a channel needs an input with channels, got a scalar")
        return {"alpha": jnp.full(x.shape[-1:], alpha, x.dtype)}

    def f(params, x):
        x = checks.floating("x", x)
        (alpha,) = checks.leaves(params, "alpha")
        if alpha.shape != x.shape[-1:]:
            raise ShapeError(f"alpha has shape {alpha.shape}, an input of shape {x.shape} wants {x.shape[-1:]}")
        checks.same_dtype(x=x, alpha=alpha)
        return _snake(wide(x), wide(alpha).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)

    return stateless(init, f, name="snake", torch=(("alpha", "alpha", None),), stream="pointwise")


def _snake(x: jax.Array, alpha: jax.Array) -> jax.Array:
    zero = alpha == 0
    phase = alpha * x
    wave = jnp.square(jnp.sin(jnp.where(jnp.isfinite(phase), phase, 0.0))) / jnp.where(zero, 1.0, alpha)
    # At 0 the wave is 0 and its derivative by alpha x^2. The inner choice keeps 0 * inf out of value and gradient.
    inner = jnp.where(zero & jnp.isfinite(x), x, 0.0)
    return x + jnp.where(zero, alpha * inner * inner, wave)

"""Activation functions (4.2), elementwise but for softmax.

Each is numerically right over the whole range of its dtype: the literal eq. 4.14 and 4.15 overflow and give NaN
gradients at large |x|. Each docstring says what the derivative is where the function has a kink.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.errors import ShapeError


def relu(x: ArrayLike) -> jax.Array:
    """Returns max(x, 0), eq. 4.12. The derivative at 0 is 0.

    Args:
      x: any shape, floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.relu(jnp.array([-1.0, 2.0]))
      Array([0., 2.], dtype=float32)

    Source: chapter 4.2.1.
    """
    return jax.nn.relu(checks.floating("relu", "x", x))


def leaky_relu(x: ArrayLike, slope: float = 0.01) -> jax.Array:
    """Returns x where x > 0 and slope * x elsewhere, eq. 4.13. The derivative at 0 is ``slope``.

    (`jax.nn.leaky_relu` has derivative 1 at 0; eq. 4.13 and PyTorch take the other side.)

    Args:
      x: any shape, floating point.
      slope: a, the slope of the negative side.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.leaky_relu(jnp.array([-1.0, 2.0]), 0.5)
      Array([-0.5,  2. ], dtype=float32)

    Source: chapter 4.2.1.
    """
    x = checks.floating("leaky_relu", "x", x)
    return rectify(x, _scalar("leaky_relu", "slope", slope, x))


def rectify(x: jax.Array, slope: jax.Array) -> jax.Array:
    """x where x > 0, slope * x elsewhere; ``slope`` has x's rank, or none, and may be learned."""
    positive = x > 0
    # The inner choice keeps the slope's gradient 0, not 0 * inf, where x is infinite.
    return jnp.where(positive, x, slope * jnp.where(positive, jnp.zeros_like(x), x))


def elu(x: ArrayLike, alpha: float = 1.0) -> jax.Array:
    """Returns x where x > 0 and alpha (e^x - 1) elsewhere. The derivative at 0 is ``alpha``.

    Args:
      x: any shape, floating point.
      alpha: minus the limit at minus infinity.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.elu(jnp.array([-100.0, 2.0]))
      Array([-1.,  2.], dtype=float32)

    Source: chapter 4.2.1; Clevert et al. 2015, [12].
    """
    x = checks.floating("elu", "x", x)
    return jax.nn.elu(x, _scalar("elu", "alpha", alpha, x))


def gelu(x: ArrayLike, *, approximate: bool = False) -> jax.Array:
    """Returns x Phi(x), Phi being the standard normal distribution function. Smooth; the derivative at 0 is 1/2.

    Args:
      x: any shape, floating point.
      approximate: use the paper's tanh approximation, which is off by up to 5e-4.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> print(activations.gelu(jnp.array([0.0, 1.0])))
      [0.         0.84134...]

    Source: chapter 4.2.1; Hendrycks and Gimpel 2016, [37].
    """
    x = checks.floating("gelu", "x", x)
    if not checks.flag("gelu", "approximate", approximate):
        return jax.nn.gelu(x, approximate=False)
    # Beyond 10 the hyperbolic tangent is 1 to the last bit, while x^2 in its derivative overflows at 2e19.
    inner = jnp.clip(x, -10, 10)
    inner = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
    return 0.5 * x * (1 + jnp.tanh(inner))


def sigmoid(x: ArrayLike) -> jax.Array:
    """Returns 1 / (1 + e^-x), eq. 4.14. Smooth; it saturates, with derivative 0, at large |x|.

    Args:
      x: any shape, floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.sigmoid(jnp.array([0.0, 1000.0]))
      Array([0.5, 1. ], dtype=float32)

    Source: chapter 4.2.2.
    """
    return jax.nn.sigmoid(checks.floating("sigmoid", "x", x))


def tanh(x: ArrayLike) -> jax.Array:
    """Returns (e^2x - 1) / (e^2x + 1), eq. 4.15. Smooth; it saturates, with derivative 0, at large |x|.

    Args:
      x: any shape, floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.tanh(jnp.array([0.0, 1000.0]))
      Array([0., 1.], dtype=float32)

    Source: chapter 4.2.3.
    """
    return jnp.tanh(checks.floating("tanh", "x", x))


def softmax(x: ArrayLike, axis: int = -1) -> jax.Array:
    """Returns e^x_i / sum over j of e^x_j, a probability distribution over ``axis``. Smooth.

    For a loss, leave it out: `losses.softmax_cross_entropy` takes the logits and is exact where this rounds to 0.

    Args:
      x: any shape, floating point.
      axis: the axis that sums to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.softmax(jnp.array([1000.0, 1000.0]))
      Array([0.5, 0.5], dtype=float32)
    """
    return jax.nn.softmax(checks.floating("softmax", "x", x), axis=axis)


def _scalar(who: str, name: str, value: Any, x: jax.Array) -> jax.Array:
    """A parameter of an activation in x's dtype: a number, or a scalar array that may be traced."""
    if not isinstance(value, jax.Array):
        value = checks.number(who, name, value)
    elif value.shape:
        raise ShapeError(
            f"{who}: {name} must be one number, got shape {value.shape}; layers.prelu learns one a channel"
        )
    return jnp.asarray(value, x.dtype)

"""Activation functions (4.2), elementwise but for softmax.

Each is right over the whole range of its dtype, and so are its derivatives (but for those of `tanh`, which says how
far): to a few units in the last place, or to what a few such units of x change. At the infinities, but for softmax, glu
and swiglu, they are the limits. The literal eq. 4.14 and 4.15 overflow and give NaN gradients at large |x|. In 16 bits
the arithmetic is in float32, and rounded once. Each docstring says what the derivative is at a kink.
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet import _elementwise as elementwise
from jaxnet import _words as words
from jaxnet._dtypes import at_least_float32, wide
from jaxnet._softmax import exact_softmax
from jaxnet.errors import ShapeError, named

__all__ = ["elu", "gelu", "glu", "leaky_relu", "relu", "sigmoid", "silu", "softmax", "softplus", "swiglu", "tanh"]

P = ParamSpec("P")


def _activation(
    function: Callable[Concatenate[jax.Array, P], jax.Array],
) -> Callable[Concatenate[ArrayLike, P], jax.Array]:
    """A door: x is checked, the function is given it in at least float32, and what it returns is rounded."""

    @named(function.__name__)
    @functools.wraps(function)
    def widened(x: ArrayLike, *args: P.args, **kwargs: P.kwargs) -> jax.Array:
        narrow = checks.floating("x", x)
        return function(wide(narrow), *args, **kwargs).astype(narrow.dtype)

    return widened


@named("relu")
def relu(x: ArrayLike) -> jax.Array:
    """Returns y = max(x, 0), eq. 4.12. The derivative at 0 is 0.

    Args:
      x: any shape, floating point.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.relu(jnp.array([-1.0, 2.0]))
      Array([0., 2.], dtype=float32)

    Source: chapter 4.2.1.
    """
    return jax.nn.relu(checks.floating("x", x))


@_activation
def leaky_relu(x: jax.Array, slope: float = 0.01) -> jax.Array:
    """Returns y = x where x > 0 and slope * x elsewhere, eq. 4.13. The derivative at 0 is ``slope``.

    (`jax.nn.leaky_relu` has derivative 1 at 0; eq. 4.13 and PyTorch take the other side.)

    Args:
      x: any shape, floating point.
      slope: a, the slope of the negative side.

    Raises:
      DTypeError: x is not floating point.
      ConfigError: ``slope`` is no finite number.
      ShapeError: it is an array of many.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.leaky_relu(jnp.array([-1.0, 2.0]), 0.5)
      Array([-0.5,  2. ], dtype=float32)

    Source: chapter 4.2.1.
    """
    return rectify(x, _scalar("slope", slope, x))


def rectify(x: jax.Array, slope: jax.Array) -> jax.Array:
    """x where x > 0, slope * x elsewhere; ``slope`` has x's rank, or none, and may be learned."""
    value = wide(x)
    slope = slope.astype(value.dtype)
    positive = value > 0
    # The inner choice keeps 0 * inf out: of the slope's gradient where x is infinite, and of the value where the slope
    # is 0 as well.
    nothing = positive | ((slope == 0) & jnp.isneginf(value))
    return jnp.where(positive, value, slope * jnp.where(nothing, 0.0, value)).astype(x.dtype)


@_activation
def elu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """Returns y = x where x > 0 and alpha (e^x - 1) elsewhere. The derivative at 0 is ``alpha``.

    Args:
      x: any shape, floating point.
      alpha: minus the limit at minus infinity.

    Raises:
      DTypeError: x is not floating point.
      ConfigError: ``alpha`` is no finite number.
      ShapeError: it is an array of many.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.elu(jnp.array([-100.0, 2.0]))
      Array([-1.,  2.], dtype=float32)

    Source: chapter 4.2.1; Clevert et al. 2015, [12].
    """
    return jnp.where(x > 0, x, _scalar("alpha", alpha, x) * elementwise.expm1_below(x))


@_activation
def gelu(x: jax.Array, *, approximate: bool = False) -> jax.Array:
    """Returns y = x Phi(x), Phi being the standard normal distribution function. Smooth; the derivative at 0 is 1/2.

    Args:
      x: any shape, floating point.
      approximate: use the paper's tanh approximation, which is off by up to 5e-4.

    Raises:
      DTypeError: x is not floating point.
      ConfigError: ``approximate`` is no bool.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> print(activations.gelu(jnp.array([0.0, 1.0])))
      [0.         0.84134...]

    Source: chapter 4.2.1; Hendrycks and Gimpel 2016, [37].
    """
    if checks.flag("approximate", approximate):
        return elementwise.gelu_by_tanh(x)
    return elementwise.gelu(x)


@_activation
def sigmoid(x: jax.Array) -> jax.Array:
    """Returns y = 1 / (1 + e^-x), eq. 4.14. Smooth; it saturates, with derivative 0, at large |x|.

    Args:
      x: any shape, floating point.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.sigmoid(jnp.array([0.0, 1000.0]))
      Array([0.5, 1. ], dtype=float32)

    Source: chapter 4.2.2.
    """
    return elementwise.sigmoid(x)


@_activation
def silu(x: jax.Array) -> jax.Array:
    """Returns y = x sigmoid(x), also called swish. Smooth; the derivative at 0 is 1/2.

    Args:
      x: any shape, floating point.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.silu(jnp.array([0.0, 1000.0]))
      Array([   0., 1000.], dtype=float32)

    Source: Elfwing et al. 2017, arXiv 1702.03118.
    """
    return elementwise.silu(x)


@_activation
def softplus(x: jax.Array) -> jax.Array:
    """Returns y = log(1 + e^x), a smooth `relu` that is positive everywhere. The derivative is `sigmoid`.

    Args:
      x: any shape, floating point.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> print(activations.softplus(jnp.array([0.0, 1000.0])))
      [6.931...e-01 1.000...e+03]

    Source: Dugas et al. 2000, Incorporating second-order functional knowledge for better option pricing.
    """
    return elementwise.softplus(x)


@_activation
def glu(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns y = a sigmoid(b) of the halves (a, b) of ``axis``, the gated linear unit: half as many channels.

    Args:
      x: any shape, floating point, of an even size along ``axis``.
      axis: what is halved.

    Raises:
      DTypeError: x is not floating point.
      ShapeError: ``axis`` is none of x, or of an odd size.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.glu(jnp.array([[3.0, 4.0, 0.0, 1000.0]]))
      Array([[1.5, 4. ]], dtype=float32)

    Source: Dauphin et al. 2016, arXiv 1612.08083.
    """
    a, b = _halves(x, axis)
    return a * elementwise.sigmoid(b)


@_activation
def swiglu(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns y = silu(a) b of the halves (a, b) of ``axis``: the gate comes first, other than in `glu`.

    Args, Raises: as `glu`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.swiglu(jnp.array([[0.0, 1000.0, 3.0, 4.0]]))
      Array([[   0., 4000.]], dtype=float32)

    Source: Shazeer 2020, arXiv 2002.05202.
    """
    a, b = _halves(x, axis)
    return elementwise.silu(a) * b


def _halves(x: jax.Array, axis: int) -> list[jax.Array]:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"axis must be one of the axes of x, which has shape {x.shape}, got {words.came(axis)}")
    if x.shape[axis] % 2:
        raise ShapeError(f"axis {axis} must have an even size, to be halved, got shape {x.shape}")
    return jnp.split(x, 2, axis)


@_activation
def tanh(x: jax.Array) -> jax.Array:
    """Returns y = (e^2x - 1) / (e^2x + 1), eq. 4.15. Smooth; it saturates, with derivative 0, at large |x|.

    The derivative is 1 - y^2, as in PyTorch: right to a few units in the last place of 1 (1e-7 in float32), not of its
    own, and so without a digit beyond |x| = 9 (19 in float64).

    Args:
      x: any shape, floating point.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.tanh(jnp.array([0.0, 1000.0]))
      Array([0., 1.], dtype=float32)

    Source: chapter 4.2.3.
    """
    return jnp.tanh(x)


@_activation
def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns y_i = e^x_i / sum over j of e^x_j, a probability distribution over ``axis``. Smooth.

    For a loss, leave it out: `losses.softmax_cross_entropy` takes the logits and is exact where this rounds to 0.

    Args:
      x: any shape, floating point.
      axis: the axis that sums to 1.

    Raises:
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations
      >>> activations.softmax(jnp.array([1000.0, 1000.0]))
      Array([0.5, 0.5], dtype=float32)

    Source: Bridle 1990, Probabilistic interpretation of feedforward classification network outputs.
    """
    return exact_softmax(x, axis)


def _scalar(name: str, value: Any, x: jax.Array) -> jax.Array:
    """A parameter of an activation, in x's dtype or wider: a number, or a scalar array that may be traced."""
    if not isinstance(value, jax.Array):
        value = checks.number(name, value)
    elif value.shape:
        raise ShapeError(f"{name} must be one number, got shape {value.shape}; layers.prelu learns one a channel")
    return jnp.asarray(value, at_least_float32(x.dtype))

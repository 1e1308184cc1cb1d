"""Dropout (4.6.2): silences units at random during training."""

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet._made import made
from jaxnet.errors import ConfigError
from jaxnet.layers.layer import Layer, layer
from jaxnet.layers.protocol import NO_KEY


@made
def dropout(rate: float) -> Layer:
    """Sets each value to 0 with probability ``rate`` while training, and divides the others by 1 - rate::

        y = m x / (1 - rate),    m = 0 with probability rate, else 1

    The division keeps the mean, so evaluation is the identity ("inverted" dropout).

    Args:
      rate: the probability of being dropped, not kept; in [0, 1]. A rate of 1 gives zeros, with zero gradients.

    Returns:
      A layer that keeps any shape, without params or state, whose ``apply`` needs ``key`` when ``train=True``
      and the rate is above 0.

    Raises:
      ConfigError: the rate is outside [0, 1], or no key came while training.
      DTypeError: x is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> y, _ = layers.dropout(0.5).apply((), (), jnp.ones((1, 1000)), train=True, key=jax.random.key(0))
      >>> sorted(set(y[0].tolist()))
      [0.0, 2.0]

    Source: chapter 4.6.2; Srivastava et al. 2014, [120].
    """
    rate = checks.number("rate", rate, low=0, high=1)

    def apply(params, state, x, *, train, key):
        x = checks.floating("x", x)
        if not train or rate == 0:
            return x, state
        if key is None:
            raise ConfigError(NO_KEY)
        if rate == 1:
            return jnp.zeros_like(x), state
        keep = jax.random.bernoulli(checks.key(key), jnp.float32(1 - rate), x.shape)  # the same under 64 bits
        wide = x.astype(at_least_float32(x.dtype))  # 1 - rate has too few digits in 16 bits
        return jnp.where(keep, (wide / (1 - rate)).astype(x.dtype), jnp.zeros((), x.dtype)), state

    return layer("dropout", None, apply, stream="pointwise")  # in evaluation

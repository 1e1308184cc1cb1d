"""Initializers: starting values whose variance keeps signals and gradients alive through depth (4.6.2, 4.6.3).

Each is a function ``f(key, shape, dtype)``, as in `jax.nn.initializers`, so either library's fits any layer. Ours can
also be told the fans. A layer knows them exactly; the shape alone does not: of a transposed convolution's K taps only
one in S meets a value, and a grouped kernel's shape hides the groups.

Arrays of 16 bits are drawn in float32 and rounded: a bfloat16 draw has 128 values, a mean that is off and cut tails.

The chapter says to divide "the variance by the square root of the sum of input and output connections"; what is
divided by that root is the standard deviation.
"""

from jaxnet.initializers.draw import draw as draw
from jaxnet.initializers.draw import reinitialize
from jaxnet.initializers.plain import Initializer, constant, normal, ones, uniform, zeros
from jaxnet.initializers.variance_scaling import (
    VarianceScaling,
    fans_of_shape,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
)
from jaxnet.initializers.variance_scaling import fan_in as fan_in

__all__ = [
    "Initializer",
    "VarianceScaling",
    "constant",
    "fans_of_shape",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "reinitialize",
    "uniform",
    "zeros",
]

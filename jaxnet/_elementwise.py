"""Elementwise functions with derivatives that keep their digits over the whole range of a dtype."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + e^-x)."""
    return lax.logistic(x)


@jax.custom_jvp
def _bell(x: jax.Array) -> jax.Array:
    """The derivative of `sigmoid`, y (1 - y), with all its digits where y is nearly 1."""
    return lax.logistic(x) * lax.logistic(-x)


sigmoid.defjvps(lambda tangent, _, x: tangent * _bell(x))
_bell.defjvps(lambda tangent, y, x: -tangent * y * jnp.tanh(x / 2))


@jax.custom_jvp
def expm1_below(x: jax.Array) -> jax.Array:
    """e^x - 1 where x is not positive; elsewhere nothing that is used, but finite."""
    return jnp.expm1(jnp.where(x > 0, 0.0, x))


# JAX takes expm1(x) + 1 for the derivative, which is 0 from -18 on in float32.
expm1_below.defjvps(lambda tangent, _, x: tangent * jnp.exp(jnp.where(x > 0, 0.0, x)))


# From here on Phi is 1 to the last bit on one side, and less than any number on the other. Further out, x Phi(x)
# would be 0 * inf, and x^2 overflows.
_FAR = 40.0


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x)."""
    return jnp.maximum(x, -_FAR) * (0.5 * lax.erfc(_far_side(x)))


def _far_side(x: jax.Array) -> jax.Array:
    return -math.sqrt(0.5) * jnp.clip(x, -_FAR, _FAR)


def _gelu_slope(x: jax.Array) -> jax.Array:
    u = _far_side(x)  # one u for both, so that XLA computes the exponential that is inside erfc once
    return 0.5 * lax.erfc(u) - u * (jnp.exp(-lax.square(u)) / math.sqrt(math.pi))


gelu.defjvps(lambda tangent, _, x: tangent * _gelu_slope(x))


def gelu_by_tanh(x: jax.Array) -> jax.Array:
    """The approximation of `gelu` by tanh u."""
    inner = jnp.clip(x, -_FAR, _FAR)
    # (1 + tanh u) / 2 is sigmoid(2 u), which does not cancel where tanh u is nearly -1.
    share = sigmoid(math.sqrt(8 / math.pi) * (inner + 0.044715 * inner**3))
    return jnp.where(x > _FAR, x, inner * share)


# Beyond 1,000 the sigmoid is 0 or 1 in any dtype, and times an infinite x it would be NaN.
@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """x sigmoid(x)."""
    return jnp.maximum(x, -1e3) * lax.logistic(x)


@jax.custom_jvp
def _silu_slope(x: jax.Array) -> jax.Array:
    return lax.logistic(x) * (1 + jnp.clip(x, -1e3, 1e3) * lax.logistic(-x))


silu.defjvps(lambda tangent, _, x: tangent * _silu_slope(x))
_silu_slope.defjvps(lambda tangent, _, x: tangent * _bell(x) * (2 - jnp.clip(x, -1e3, 1e3) * jnp.tanh(x / 2)))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + e^x)."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, _, x: tangent * sigmoid(x))

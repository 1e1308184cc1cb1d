"""The dense matrix of a linear layer, eq. 4.8."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, ShapeError, named
from jaxnet.layers.layer import Layer, Params, State, as_layer


@named("as_matrix")
def as_matrix(layer: Layer, params: Params, x: Any, *, state: State = ()) -> jax.Array:
    """Writes a linear layer as the matrix W of y = W x + b (eq. 4.1); of a convolution it is Toeplitz (eq. 4.8).

    Rows and columns are ordered as in eq. 4.8: channel by channel, each channel's values in order. So a convolution's
    matrix is made of blocks ``W[o * D_out:(o + 1) * D_out, c * D_in:(c + 1) * D_in]``, one for each kernel, with one
    value along each diagonal. Biases and ``padding_value`` are in b.

    Args:
      layer: any layer that is linear (affine) in evaluation: dense, conv, conv_transpose with any hyperparameters,
        avg_pool, a chain of them.
      params: its parameters.
      x: an example input with a batch of one, ``(1, *lengths, C_in)``, or its `jax.ShapeDtypeStruct`.
      state: its state.

    Returns:
      W of shape (C_out * D_out, C_in * D_in).

    Raises:
      ConfigError: the layer is not linear.
      ShapeError: the batch of ``x`` is not one.
      DTypeError: x is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.conv(1, 2, bias=False)
      >>> layers.as_matrix(layer, {"kernel": jnp.array([[[3.0]], [[5.0]]])}, jnp.ones((1, 4, 1)))
      Array([[3., 5., 0., 0.],
             [0., 3., 5., 0.],
             [0., 0., 3., 5.]], dtype=float32)

    Source: chapter 4.1.2.
    """
    layer = as_layer(layer)
    struct = checks.floating_struct(x)
    if len(struct.shape) < 2 or struct.shape[0] != 1:
        raise ShapeError(f"x must have the axes (1, ..., channels), a batch of one, got shape {struct.shape}")
    example = struct.shape[1:]
    size = math.prod(example)

    @jax.jit
    def measured(params, state, key):
        def f(column):  # one example, channel by channel
            values = jnp.moveaxis(column.reshape(example[-1], *example[:-1]), 0, -1)
            y = layer.apply(params, state, values[None], train=False)[0]
            return jnp.moveaxis(y[0], -1, 0).reshape(-1)

        offset, derivative = jax.linearize(f, jnp.zeros((size,), struct.dtype))
        matrix = jax.vmap(derivative, out_axes=1)(jnp.eye(size, dtype=struct.dtype))
        probe, linear = jax.random.normal(key, (size,), struct.dtype), jnp.array(True)
        for point in (probe, -2 * probe):
            moved = f(point) - offset
            expected = jnp.matmul(matrix, point, precision="highest")
            slack = jnp.sqrt(jnp.finfo(struct.dtype).eps) * (jnp.abs(matrix) @ jnp.abs(point) + jnp.abs(offset))
            linear &= jnp.all(jnp.abs(moved - expected) <= slack + jnp.finfo(struct.dtype).tiny)
        return matrix, linear

    matrix, linear = measured(params, state, jax.random.key(0))
    if not linear:
        raise ConfigError(f"{layer.name} is not linear, so no matrix does what it does")
    return matrix

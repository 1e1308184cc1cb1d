"""PyTorch's kernel layouts in ours."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.errors import ShapeError


def conv_kernel_from_torch(weight: ArrayLike) -> jax.Array:
    """Returns our convolution kernel ``(*K, C_in / g, C_out)`` for PyTorch's ``(C_out, C_in / g, *K)``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_kernel_from_torch(jnp.zeros((8, 3, 5))).shape
      (5, 3, 8)
    """
    who = "conv_kernel_from_torch"
    weight = _weight(who, weight, "(C_out, C_in / g, *K)")
    return jnp.moveaxis(weight, (0, 1), (-1, -2))


def conv_transpose_kernel_from_torch(weight: ArrayLike, *, groups: int = 1) -> jax.Array:
    """Returns our transposed kernel ``(*K, C_in / g, C_out)`` for PyTorch's ``(C_in, C_out / g, *K)``.

    PyTorch's layer is the transpose of a convolution, so its taps run the other way: they are flipped here.
    Its padding converts with `sizes.torch_padding`.

    Raises:
      ShapeError: ``groups`` does not divide C_in.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_transpose_kernel_from_torch(jnp.zeros((6, 4, 5)), groups=2).shape
      (5, 3, 8)
    """
    who = "conv_transpose_kernel_from_torch"
    weight = _weight(who, weight, "(C_in, C_out / g, *K)")
    groups = checks.integer(who, "groups", groups, minimum=1)
    channels, filters_per_group, *taps = weight.shape
    if channels % groups:
        raise ShapeError(f"{who}: groups={groups} must divide the {channels} input channels of weight {weight.shape}")
    flipped = jnp.flip(weight, range(2, weight.ndim))
    grouped = flipped.reshape(groups, channels // groups, filters_per_group, *taps)
    # (g, C_in / g, C_out / g, *K) -> (*K, C_in / g, g, C_out / g)
    arranged = jnp.moveaxis(grouped, (1, 0, 2), (-3, -2, -1))
    return arranged.reshape(*taps, channels // groups, groups * filters_per_group)


def _weight(who: str, weight: ArrayLike, layout: str) -> jax.Array:
    weight = checks.array(who, "weight", weight)
    if weight.ndim < 3:
        raise ShapeError(f"{who}: weight must have the axes {layout}, got shape {weight.shape}")
    return weight

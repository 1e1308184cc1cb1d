"""PyTorch's kernel layouts in ours, and ours in PyTorch's."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet.errors import ShapeError, named


@named("conv_kernel_from_torch")
def conv_kernel_from_torch(weight: ArrayLike) -> jax.Array:
    """Returns our convolution kernel ``(*K, C_in / g, C_out)`` for PyTorch's ``(C_out, C_in / g, *K)``.

    Args:
      weight: of ``torch.nn.Conv1d``, ``Conv2d`` or ``Conv3d``.

    Raises:
      ShapeError: fewer than three axes.
      DTypeError: no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_kernel_from_torch(jnp.zeros((8, 3, 5))).shape
      (5, 3, 8)
    """
    weight = _kernel("weight", weight, "(C_out, C_in / g, *K)")
    return jnp.moveaxis(weight, (0, 1), (-1, -2))


@named("conv_transpose_kernel_from_torch")
def conv_transpose_kernel_from_torch(weight: ArrayLike, *, groups: int = 1) -> jax.Array:
    """Returns our transposed kernel ``(*K, C_in / g, C_out)`` for PyTorch's ``(C_in, C_out / g, *K)``.

    PyTorch's layer is the transpose of a convolution, so its taps run the other way: they are flipped here.
    Its padding converts with `sizes.torch_padding`.

    Args:
      weight: of ``torch.nn.ConvTranspose1d``, 2d or 3d.
      groups: g.

    Raises:
      ShapeError: ``groups`` does not divide C_in, or fewer than three axes.
      ConfigError: ``groups`` is no positive integer.
      DTypeError: no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_transpose_kernel_from_torch(jnp.zeros((6, 4, 5)), groups=2).shape
      (5, 3, 8)
    """
    weight = _kernel("weight", weight, "(C_in, C_out / g, *K)")
    groups = checks.integer("groups", groups, minimum=1)
    channels, filters_per_group, *taps = weight.shape
    if channels % groups:
        raise ShapeError(f"groups={groups} must divide the {channels} input channels of weight {weight.shape}")
    flipped = jnp.flip(weight, range(2, weight.ndim))
    grouped = flipped.reshape(groups, channels // groups, filters_per_group, *taps)
    # (g, C_in / g, C_out / g, *K) -> (*K, C_in / g, g, C_out / g)
    arranged = jnp.moveaxis(grouped, (1, 0, 2), (-3, -2, -1))
    return arranged.reshape(*taps, channels // groups, groups * filters_per_group)


@named("conv_kernel_to_torch")
def conv_kernel_to_torch(kernel: ArrayLike) -> jax.Array:
    """Returns PyTorch's ``(C_out, C_in / g, *K)`` for our convolution kernel ``(*K, C_in / g, C_out)``.

    Args:
      kernel: of `conv`.

    Raises:
      ShapeError: fewer than three axes.
      DTypeError: no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_kernel_to_torch(jnp.zeros((5, 3, 8))).shape
      (8, 3, 5)
    """
    kernel = _kernel("kernel", kernel, "(*K, C_in / g, C_out)")
    return jnp.moveaxis(kernel, (-1, -2), (0, 1))


@named("conv_transpose_kernel_to_torch")
def conv_transpose_kernel_to_torch(kernel: ArrayLike, *, groups: int = 1) -> jax.Array:
    """Returns PyTorch's ``(C_in, C_out / g, *K)`` for our transposed kernel ``(*K, C_in / g, C_out)``.

    The inverse of `conv_transpose_kernel_from_torch`: the taps are flipped.

    Args:
      kernel: of `conv_transpose`.
      groups: g.

    Raises:
      ShapeError: ``groups`` does not divide C_out, or fewer than three axes.
      ConfigError: ``groups`` is no positive integer.
      DTypeError: no array.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> kernels.conv_transpose_kernel_to_torch(jnp.zeros((5, 3, 8)), groups=2).shape
      (6, 4, 5)
    """
    kernel = _kernel("kernel", kernel, "(*K, C_in / g, C_out)")
    groups = checks.integer("groups", groups, minimum=1)
    *taps, channels_per_group, filters = kernel.shape
    if filters % groups:
        raise ShapeError(f"groups={groups} must divide the {filters} filters of kernel {kernel.shape}")
    flipped = jnp.flip(kernel, range(len(taps)))
    grouped = flipped.reshape(*taps, channels_per_group, groups, filters // groups)
    # (*K, C_in / g, g, C_out / g) -> (g, C_in / g, C_out / g, *K)
    arranged = jnp.moveaxis(grouped, (-3, -2, -1), (1, 0, 2))
    return arranged.reshape(groups * channels_per_group, filters // groups, *taps)


def _kernel(name: str, kernel: ArrayLike, layout: str) -> jax.Array:
    kernel = checks.array(name, kernel)
    if kernel.ndim < 3:
        raise ShapeError(f"{name} must have the axes {layout}, got shape {kernel.shape}")
    return kernel

"""Parameters and multiply-adds of layers, from their sizes: eq. 4.3 and 4.7."""

import math

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, named


@named("dense_parameters")
def dense_parameters(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Returns a dense layer's parameter count, eq. 4.3: N_out (N_in + [bias]).

    Args:
      inputs: N_in.
      outputs: N_out.
      bias: whether there is one value an output more.

    Raises:
      ConfigError: ``inputs`` or ``outputs`` is no positive integer.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.dense_parameters(6, 5)  # figure 4.2's second hidden layer
      35
    """
    inputs = checks.integer("inputs", inputs, minimum=1)
    return checks.integer("outputs", outputs, minimum=1) * (inputs + checks.flag("bias", bias))


@named("conv_parameters")
def conv_parameters(
    in_channels: int, filters: int, kernel_size: int | tuple[int, ...], *, groups: int = 1, bias: bool = True
) -> int:
    """Returns a (transposed) convolution's parameter count, eq. 4.7 with groups: C_out (C_in / g K + [bias]).

    Args:
      in_channels: C_in.
      filters: C_out.
      kernel_size: K, a tuple for several dimensions.
      groups: g.
      bias: whether there is one value a filter more.

    Raises:
      ConfigError: a hyperparameter out of range, or ``groups`` that do not divide the channels and the filters.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_parameters(16, 64, 41, groups=4)
      10560
    """
    taps = [
        checks.integer("kernel_size", k, minimum=1)
        for k in (kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,))
    ]
    weights = _per_group(in_channels, filters, groups) * math.prod(taps)
    return filters * (weights + checks.flag("bias", bias))


@named("conv_multiply_adds")
def conv_multiply_adds(out_length: int, in_channels: int, filters: int, kernel_size: int, *, groups: int = 1) -> int:
    """Returns a convolution's multiply-adds for one example: D_out C_out (C_in / g) K; padding is counted.

    A transposed convolution needs as many with D_in for D_out: each input meets each tap once.

    Args:
      out_length: D_out, positions of the output.
      in_channels: C_in.
      filters: C_out.
      kernel_size: K, taps of the kernel.
      groups: g.

    Raises:
      ConfigError: a hyperparameter out of range, or ``groups`` that do not divide the channels and the filters.

    Example:
      >>> from jaxnet import sizes
      >>> sizes.conv_multiply_adds(8, 2, 4, 3)
      192
    """
    out_length = checks.integer("out_length", out_length, minimum=0)
    kernel_size = checks.integer("kernel_size", kernel_size, minimum=1)
    return out_length * filters * _per_group(in_channels, filters, groups) * kernel_size


def _per_group(in_channels: int, filters: int, groups: int) -> int:
    """C_in / g, if the groups divide the channels and the filters."""
    in_channels = checks.integer("in_channels", in_channels, minimum=1)
    filters = checks.integer("filters", filters, minimum=1)
    groups = checks.integer("groups", groups, minimum=1)
    if in_channels % groups or filters % groups:
        raise ConfigError(
            f"groups={groups} must divide both the {in_channels} input channels and the {filters} filters"
        )
    return in_channels // groups

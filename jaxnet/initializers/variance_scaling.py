"""Initializers that keep the variance of the signal, or of the gradient, from layer to layer: they ask for the fans."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet.errors import ShapeError, named


class VarianceScaling(NamedTuple):
    """Draws with variance Var(w) = scale / fan, the fan being the inputs, the outputs or their mean.

    Called as ``f(key, shape, dtype)`` it takes the fans from the shape ``(*K, in, out)``: in * K and out * K. A layer
    passes ``fans=(fan_in, fan_out)``, which know strides and groups too.

    Attributes:
      scale: the variance times the fan.
      mode: which fan: "fan_in" keeps the forward signal's variance, "fan_out" the gradient's, "fan_avg" weighs both.
      distribution: "normal" or "uniform".

    Raises:
      ConfigError: from a call: a ``scale`` of 0 or less, an unknown ``mode`` or ``distribution``.
      ShapeError: from a call without ``fans``: as `fans_of_shape`.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.VarianceScaling(2.0, "fan_in", "normal") == initializers.he_normal()
      True

    Source: He et al. 2015, [36]; Glorot and Bengio 2010, [29].
    """

    scale: float
    mode: Literal["fan_in", "fan_out", "fan_avg"]
    distribution: Literal["normal", "uniform"]

    @named("VarianceScaling")
    def __call__(
        self, key: Any, shape: Sequence[int], dtype: Any = jnp.float32, *, fans: tuple[float, float] | None = None
    ) -> jax.Array:
        scale = checks.number("scale", self.scale, low=0, open_low=True)
        checks.choice("mode", self.mode, ("fan_in", "fan_out", "fan_avg"))
        checks.choice("distribution", self.distribution, ("normal", "uniform"))
        fan_in, fan_out = fans_of_shape(shape) if fans is None else fans
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        stddev = math.sqrt(scale / fan)
        key = checks.key(key)
        if self.distribution == "normal":
            return drawing.normal(key, shape, dtype, stddev)
        return drawing.uniform(key, shape, dtype, math.sqrt(3) * stddev)


def lecun_normal() -> VarianceScaling:
    """Returns the initializer w ~ N(0, 1 / fan_in), which keeps the variance of a linear layer's input.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> round(float(initializers.lecun_normal()(jax.random.key(0), (400, 300)).std()), 2)  # 1 / sqrt(400)
      0.05

    Source: LeCun et al. 1998, Efficient BackProp.
    """
    return VarianceScaling(1.0, "fan_in", "normal")


def lecun_uniform() -> VarianceScaling:
    """Returns the initializer w ~ U[-b, b) with b = sqrt(3 / fan_in): `lecun_normal`'s bounded sibling.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> float(initializers.lecun_uniform()(jax.random.key(0), (3, 4)).max()) <= 1.0  # sqrt(3 / 3)
      True

    Source: LeCun et al. 1998, Efficient BackProp.
    """
    return VarianceScaling(1.0, "fan_in", "uniform")


def glorot_normal() -> VarianceScaling:
    """Returns the initializer w ~ N(0, 2 / (fan_in + fan_out)).

    It is a compromise between the forward and the backward signal.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> round(float(initializers.glorot_normal()(jax.random.key(0), (500, 300)).std()), 2)  # sqrt(2 / 800)
      0.05

    Source: chapter 4.6.3; Glorot and Bengio 2010, [29].
    """
    return VarianceScaling(1.0, "fan_avg", "normal")


def glorot_uniform() -> VarianceScaling:
    """Returns the initializer w ~ U[-b, b) with b = sqrt(6 / (fan_in + fan_out)): `glorot_normal`'s bounded sibling.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> float(initializers.glorot_uniform()(jax.random.key(0), (3, 3)).max()) <= 1.0  # sqrt(6 / (3 + 3))
      True

    Source: chapter 4.6.3; Glorot and Bengio 2010, [29].
    """
    return VarianceScaling(1.0, "fan_avg", "uniform")


def he_normal(slope: float = 0.0) -> VarianceScaling:
    """Returns the initializer w ~ N(0, 2 / ((1 + slope^2) fan_in)), which keeps the variance through rectifiers.

    A rectifier keeps (1 + slope^2) / 2 of a symmetric signal's second moment.

    Args:
      slope: the rectifier's slope for negative inputs: 0 for relu, a for leaky_relu and prelu.

    Raises:
      ConfigError: ``slope`` is no finite number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> round(float(initializers.he_normal()(jax.random.key(0), (800, 300)).std()), 2)  # sqrt(2 / 800)
      0.05

    Source: chapter 4.6.3; He et al. 2015, [36], eq. 12 and 15.
    """
    return VarianceScaling(_he(slope), "fan_in", "normal")


def he_uniform(slope: float = 0.0) -> VarianceScaling:
    """Returns the initializer w ~ U[-b, b) with b = sqrt(6 / ((1 + slope^2) fan_in)): `he_normal`'s bounded sibling.

    Args:
      slope: the rectifier's slope for negative inputs.

    Raises:
      ConfigError: ``slope`` is no finite number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> float(initializers.he_uniform()(jax.random.key(0), (6, 4)).max()) <= 1.0  # sqrt(6 / 6)
      True

    Source: chapter 4.6.3; He et al. 2015, [36].
    """
    return VarianceScaling(_he(slope), "fan_in", "uniform")


@named("initializer")
def fans_of_shape(shape: Sequence[int]) -> tuple[float, float]:
    """Returns (fan_in, fan_out) = (K in, K out) of a plain kernel ``(*K, in, out)``, K being the number of taps.

    Args:
      shape: of the kernel.

    Raises:
      ShapeError: fewer than two axes, or an empty one.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.fans_of_shape((5, 3, 8))
      (15, 40)
    """
    if len(shape) < 2 or 0 in shape:
        raise ShapeError(
            f"variance scaling needs a shape (*kernel_size, in, out) without zeros, got {tuple(shape)}; "
            f"use zeros, ones, constant, normal or uniform for a bias"
        )
    taps = math.prod(shape[:-2])
    return shape[-2] * taps, shape[-1] * taps


def fan_in(shape: Sequence[int]) -> float:
    """Returns how many inputs reach one output through a plain kernel ``(*K, in, out)``."""
    return fans_of_shape(shape)[0]


@named("he")
def _he(slope: float) -> float:
    return 2.0 / (1.0 + checks.number("slope", slope) ** 2)

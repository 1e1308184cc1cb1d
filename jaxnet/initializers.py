"""Initializers: starting values whose variance keeps signals and gradients alive through depth (4.6.2, 4.6.3).

Each is a function ``f(key, shape, dtype)``, as in `jax.nn.initializers`, so either library's fits any layer. Ours can
also be told the fans. A layer knows them exactly; the shape alone does not: of a transposed convolution's K taps only
one in S meets a value, and a grouped kernel's shape hides the groups.

Arrays of 16 bits are drawn in float32 and rounded: a bfloat16 draw has 128 values, a mean that is off and cut tails.

The chapter says to divide "the variance by the square root of the sum of input and output connections"; what is
divided by that root is the standard deviation.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet._made import made
from jaxnet.errors import ShapeError, named
from jaxnet.paths import Which, chosen

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


class Initializer(Protocol):
    """Draws an array: ``f(key, shape, dtype)``.

    For parameters of 16 bits a layer asks for float32 and rounds what comes.

    Example: one of your own.
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> def halves(key, shape, dtype):
      ...     return jnp.full(shape, 0.5, dtype)
      >>> layers.dense(2, kernel_init=halves).init(0, jnp.ones((1, 1)))[0]["kernel"]
      Array([[0.5, 0.5]], dtype=float32)
    """

    def __call__(self, key: Any, shape: Any, dtype: Any, /) -> jax.Array: ...


def zeros(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns zeros, w = 0; needs no key.

    Args:
      key: unused, may be None.
      shape: of the array, such as (features,).
      dtype: of the array.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.zeros(None, (2,))
      Array([0., 0.], dtype=float32)
    """
    del key
    return jnp.zeros(shape, dtype)


def ones(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns ones, w = 1; needs no key.

    Args:
      key: unused, may be None.
      shape: of the array, such as (features,).
      dtype: of the array.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.ones(None, (2,))
      Array([1., 1.], dtype=float32)
    """
    del key
    return jnp.ones(shape, dtype)


@made
def constant(value: float) -> Initializer:
    """Returns an initializer that fills with ``value``: w = value.

    Args:
      value: of every entry.

    Raises:
      ConfigError: ``value`` is no finite number.

    Example:
      >>> from jaxnet import initializers
      >>> initializers.constant(0.25)(None, (2,), "float32")
      Array([0.25, 0.25], dtype=float32)
    """
    value = checks.number("value", value)
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, value, dtype)


@made
def normal(stddev: float) -> Initializer:
    """Returns an initializer that draws from a normal distribution: w ~ N(0, stddev^2).

    Args:
      stddev: the standard deviation, at least 0.

    Raises:
      ConfigError: ``stddev`` is negative or no number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> initializers.normal(0.02)(jax.random.key(0), (3, 4), "float32").shape
      (3, 4)
    """
    stddev = checks.number("stddev", stddev, low=0)
    return named("normal")(lambda key, shape, dtype=jnp.float32: _normal(checks.key(key), shape, dtype, stddev))


@made
def uniform(bound: float) -> Initializer:
    """Returns an initializer that draws evenly: w ~ U[-bound, bound), of standard deviation bound / sqrt(3).

    In 16 bits, which are rounded, the upper bound is drawn too.

    Args:
      bound: the largest magnitude, at least 0.

    Raises:
      ConfigError: ``bound`` is negative or no number.

    Example:
      >>> import jax
      >>> from jaxnet import initializers
      >>> initializers.uniform(0.1)(jax.random.key(0), (3, 4), "float32").shape
      (3, 4)
    """
    bound = checks.number("bound", bound, low=0)
    return named("uniform")(lambda key, shape, dtype=jnp.float32: _uniform(checks.key(key), shape, dtype, bound))


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
            return _normal(key, shape, dtype, stddev)
        return _uniform(key, shape, dtype, math.sqrt(3) * stddev)


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


@named("initializer")
def draw(initializer: Initializer, key: Any, shape: Sequence[int], dtype: Any, fans: tuple[float, float]) -> jax.Array:
    """Draws from any initializer, in at least float32, telling the fans to those that can be told.

    Raises:
      ShapeError: the initializer returned another shape.
    """
    wide = _drawn_in(dtype)
    if isinstance(initializer, VarianceScaling):
        result = initializer(key, shape, wide, fans=fans)
    else:
        result = jnp.asarray(initializer(key, tuple(shape), wide))
    if result.shape != tuple(shape):
        raise ShapeError(f"asked for shape {tuple(shape)}, got {result.shape} from {initializer!r}")
    return result.astype(dtype)


@named("reinitialize")
def reinitialize(params: Any, which: Which, initializer: Initializer, key: Any) -> Any:
    """Draws some leaves of parameters anew, from an initializer of this library, of JAX or of yours.

    Args:
      params: a tree of arrays.
      which: which leaves, as in `paths.select`, such as ``"*kernel"`` or ``"3/*"``.
      initializer: ``f(key, shape, dtype)``. One that asks for the fans gets those of the shape (`fans_of_shape`), which
        knows nothing of groups and strides; a layer's ``kernel_init`` does.
      key: a PRNG key or a seed; each leaf has a key of its own, whatever else is chosen.

    Returns:
      A tree like ``params``; what is not chosen is as it was.

    Raises:
      ConfigError: a pattern that fits no leaf, or a function that chooses none.
      ShapeError: a leaf without fans, for an initializer that asks for them; or what comes is of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import initializers, layers
      >>> params, state = layers.chain(layers.dense(3), jnp.tanh, layers.dense(1)).init(0, jnp.ones((1, 2)))
      >>> initializers.reinitialize(params, "2/kernel", initializers.zeros, 0)[2]["kernel"].sum()
      Array(0., dtype=float32)
    """
    checks.function("initializer", initializer)
    keys, flags = checks.key(key), jax.tree.leaves(chosen(params, which))
    leaves, treedef = jax.tree.flatten(params)
    for i, (leaf, on) in enumerate(zip(leaves, flags, strict=True)):
        if on:
            asked = isinstance(initializer, VarianceScaling)
            fans = fans_of_shape(leaf.shape) if asked else (1, 1)
            leaves[i] = draw(initializer, jax.random.fold_in(keys, i), leaf.shape, leaf.dtype, fans)
    return treedef.unflatten(leaves)


@named("he")
def _he(slope: float) -> float:
    return 2.0 / (1.0 + checks.number("slope", slope) ** 2)


def _drawn_in(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _normal(key: Any, shape: Sequence[int], dtype: Any, stddev: float) -> jax.Array:
    return drawing.normal(key, shape, _drawn_in(dtype), stddev).astype(dtype)


def _uniform(key: Any, shape: Sequence[int], dtype: Any, bound: float) -> jax.Array:
    return drawing.uniform(key, shape, _drawn_in(dtype), bound).astype(dtype)

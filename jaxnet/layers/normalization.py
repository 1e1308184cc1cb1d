"""Batch and layer normalization: keep a layer's input near mean 0 and variance 1 (4.6.3)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet._made import made
from jaxnet._mesh import varying
from jaxnet._symbolic import is_below
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.layers.layer import Layer, layer, stateless


@made
def batch_norm(
    *,
    decay: float = 0.9,
    epsilon: float = 1e-5,
    scale: bool = True,
    offset: bool = True,
    axis_name: str | tuple[str, ...] | None = None,
) -> Layer:
    """Normalizes each channel over the batch and all positions: y = (x - mean) / sqrt(variance + epsilon).

    In training the mean and the (biased, divided by n) variance are the batch's, and the state moves towards them::

        average <- decay * average + (1 - decay) * batch statistic

    ``decay`` is the weight of the old average: PyTorch's momentum is 1 - decay. The variance that enters the average
    is the unbiased one (divided by n - 1), as in PyTorch. In evaluation the averages normalize. The averages start at
    mean 0 and variance 1.

    Of the values at each sample's first position, the nearest to 0 in their range is taken off each channel first,
    which changes no deviation and leaves of a constant channel exact zeros. Then the variance is computed in two
    passes, mean of (x - mean)^2: the one-pass form loses all digits where the mean is large. Statistics are in
    float32, or wider if x is.

    Over a mesh, `training.fit` and `jax.jit` see the whole batch, and so do the statistics. Inside a `jax.shard_map`
    or `jax.pmap` of your own the layer sees one device's part: ``axis_name`` says over which axes the batch is divided.

    Args:
      decay: weight of the old average, in [0, 1).
      epsilon: added to the variance, so that a constant channel gives 0.
      scale: whether to learn a factor a channel.
      offset: whether to learn a shift a channel.
      axis_name: the axis, or axes, of your own `jax.shard_map`, `jax.pmap` or `jax.vmap` over which the batch is
        divided: the statistics are those of all parts together. () takes each part's own, on purpose.

    Returns:
      A layer that keeps the shape (batch, ..., channels), with params ``scale`` and ``offset`` and state ``mean`` and
      ``variance``, each of shape (channels,).

    Raises:
      ConfigError: ``decay`` or ``epsilon`` out of range; training on one device's part of a batch without an
        ``axis_name``, or with one that is no axis there.
      ShapeError: other channels, or training on one value a channel, whose variance says nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.batch_norm()
      >>> params, state = norm.init(0, jnp.ones((1, 3)))
      >>> y, state = norm.apply(params, state, jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]), train=True)
      >>> state["mean"]
      Array([0.2, 0.3, 0.4], dtype=float32)

    Source: chapter 4.6.3; Ioffe and Szegedy 2015, [44].
    """
    decay = checks.number("decay", decay, low=0, high=1, open_high=True)
    epsilon = checks.number("epsilon", epsilon, low=0, open_low=True)
    checks.flag("scale", scale)
    checks.flag("offset", offset)
    parts = _axis_names(axis_name)

    def init(key, x):
        del key
        x = checks.floating_struct(x)
        shape, wide = (_channels(x.shape),), at_least_float32(x.dtype)
        return _params(shape, x.dtype, scale, offset), {
            "mean": jnp.zeros(shape, wide),
            "variance": jnp.ones(shape, wide),
        }

    def apply(params, state, x, *, train, key):
        del key
        x = checks.floating("x", x)
        learned = checks.leaves(params, *_names(scale, offset))
        mean, variance = checks.leaves(state, "mean", "variance", tree_name="state")
        _fits(x, mean, variance, *learned)
        wide = x.astype(at_least_float32(x.dtype))
        if train:
            if axis_name is None:
                _whole_batch(x)
            n = x.size // max(x.shape[-1], 1) * _number(parts)
            if is_below(n, 2):
                raise ShapeError(
                    f"training needs at least two values a channel, got one (input {x.shape}), whose "
                    f"variance is 0 whatever it is; use a larger batch, or layer_norm"
                )
            axes = tuple(range(x.ndim - 1))
            sample = _sample(wide, axes, 1, parts)
            wide = wide - sample
            shifted_mean = _over_parts(lax.pmean, jnp.mean(wide, axes), parts)
            centered = wide - _last(shifted_mean, x.ndim)
            batch_mean = sample.reshape(-1) + shifted_mean
            batch_variance = _over_parts(lax.pmean, jnp.mean(lax.square(centered), axes), parts)
            new = jax.tree.map(
                lambda old, batch: decay * old + (1 - decay) * lax.stop_gradient(batch).astype(old.dtype),
                {"mean": mean, "variance": variance},
                {"mean": batch_mean, "variance": batch_variance * jnp.asarray(n / (n - 1), wide.dtype)},
            )
        else:
            batch_variance = variance.astype(wide.dtype)
            centered = wide - _last(mean.astype(wide.dtype), x.ndim)
            new = state
        return _affine(centered, lax.rsqrt(batch_variance + epsilon), params, x.dtype), new

    torch = (*_TORCH, ("mean", "running_mean", None), ("variance", "running_var", None))
    return layer("batch_norm", init, apply, torch=torch, normalizes=True, stream="pointwise")


@made
def layer_norm(*, epsilon: float = 1e-5, scale: bool = True, offset: bool = True) -> Layer:
    """Normalizes the channels of each position: y = (x - mean) / sqrt(variance + epsilon) over the last axis.

    Nothing depends on the batch, so training and evaluation are alike. The variance is the biased one, computed as
    `batch_norm` does (the value taken off first is from the range of the first 8 channels), in float32, or wider if x
    is: where all channels are equal, y is exactly the offset.

    Args:
      epsilon: added to the variance.
      scale: whether to learn a factor a channel.
      offset: whether to learn a shift a channel.

    Returns:
      A layer that keeps the shape (..., channels), with params ``scale`` and ``offset`` of shape (channels,).

    Raises:
      ConfigError: ``epsilon`` out of range.
      ShapeError: other channels than the parameters'.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.layer_norm()
      >>> params, state = norm.init(0, jnp.ones((1, 2)))
      >>> norm.apply(params, state, jnp.array([[1.0, 3.0]]), train=False)[0].round(3)
      Array([[-1.,  1.]], dtype=float32)

    Source: Ba et al. 2016, arXiv 1607.06450.
    """
    epsilon = checks.number("epsilon", epsilon, low=0, open_low=True)
    checks.flag("scale", scale)
    checks.flag("offset", offset)

    def f(params, x):
        x = checks.floating("x", x)
        _channels(x.shape)
        _fits(x, *checks.leaves(params, *_names(scale, offset)))
        wide = x.astype(at_least_float32(x.dtype))
        wide = wide - _sample(wide, (x.ndim - 1,), 8)
        centered = wide - jnp.mean(wide, -1, keepdims=True)
        variance = jnp.mean(lax.square(centered), -1, keepdims=True)
        return _affine(centered, lax.rsqrt(variance + epsilon), params, x.dtype)

    def init(key, x):
        x = checks.floating_struct(x)
        return _params((_channels(x.shape),), x.dtype, scale, offset)

    return stateless(init, f, name="layer_norm", torch=_TORCH, normalizes=True, stream="pointwise")


_TORCH = (("scale", "weight", None), ("offset", "bias", None))


def _sample(x: jax.Array, axes: tuple[int, ...], count: int, parts: tuple[str, ...] = ()) -> jax.Array:
    """What is nearest to 0 in the range of some values along ``axes``, without a gradient: no outlier, if one is among.

    The values are ``count`` along each axis, which cost nothing, and all along the batch and along an axis that is in
    pieces on several devices: each device can find the ends of the range in its piece.
    """
    x = lax.stop_gradient(x)
    in_pieces = jax.typeof(x).sharding.spec
    few = {axis for axis in axes if axis and in_pieces[axis] is None}
    picked = x[tuple(slice(0, count if axis in few else None) for axis in range(x.ndim))]
    low = _over_parts(lax.pmin, jnp.min(picked, axes, keepdims=True), parts)
    high = _over_parts(lax.pmax, jnp.max(picked, axes, keepdims=True), parts)
    return jnp.clip(0.0, low, high)


def _axis_names(axis_name: Any) -> tuple[str, ...]:
    names = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"axis_name must be a name or a tuple of names, got {axis_name!r}; axis_name='data' for "
            f"statistics over the axis 'data' of your jax.shard_map, jax.pmap or jax.vmap"
        )
    return names


def _number(parts: tuple[str, ...]) -> int:
    """Into how many parts the batch is divided."""
    try:
        return math.prod(lax.axis_size(name) for name in parts)
    except NameError:
        raise ConfigError(
            f"axis_name={parts!r} is no axis here; it names axes of a jax.shard_map, jax.pmap or jax.vmap "
            f"around the training step; where there is none, as in training.fit(mesh=...), leave axis_name out"
        ) from None


def _over_parts(collective: Callable[..., jax.Array], value: jax.Array, parts: tuple[str, ...]) -> jax.Array:
    return collective(value, parts) if parts else value


def _whole_batch(x: jax.Array) -> None:
    """Refuses one device's part of a batch, where it can be told."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return
    divided = [name for name in manual if name in varying(x)]
    if not divided and not varying(lax.axis_index(manual[0])):  # check_vma=False: nothing is known of x
        divided = manual
    if divided:
        name = repr(divided[0]) if len(divided) == 1 else repr(tuple(divided))
        raise ConfigError(
            f"inside shard_map or pmap, each device has its own part of x along {name}, and the statistics "
            f"would be of that part alone; batch_norm(axis_name={name}) takes those of the whole batch, name the axes "
            f"over which the batch is divided; axis_name=() takes each part's own"
        )


def _names(scale: bool, offset: bool) -> tuple[str, ...]:
    return ("scale",) * scale + ("offset",) * offset


def _params(shape, dtype, scale, offset):
    return {name: (jnp.ones if name == "scale" else jnp.zeros)(shape, dtype) for name in _names(scale, offset)}


def _last(values: jax.Array, ndim: int) -> jax.Array:
    return values.reshape((1,) * (ndim - 1) + (-1,))


def _channels(shape: tuple[int, ...]) -> int:
    if len(shape) < 2 or not shape[-1]:
        raise ShapeError(f"x must have the axes (batch, ..., channels), got shape {shape}")
    return shape[-1]


def _fits(x: jax.Array, *vectors: jax.Array) -> None:
    channels = _channels(x.shape)
    for vector in vectors:
        if vector.shape != (channels,):
            raise ShapeError(
                f"the input has {channels} channels, the layer was made for {vector.shape[-1:]} "
                f"(input {x.shape}); channels come last"
            )


def _affine(centered: jax.Array, factor: jax.Array, params: dict[str, Any], dtype: Any) -> jax.Array:
    if factor.ndim == 1:
        factor = _last(factor, centered.ndim)
    if "scale" in params:
        factor = factor * _last(params["scale"].astype(centered.dtype), centered.ndim)
    y = centered * factor
    if "offset" in params:
        y = y + _last(params["offset"].astype(centered.dtype), centered.ndim)
    return y.astype(dtype)

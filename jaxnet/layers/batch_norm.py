"""Batch normalization: keep each channel near mean 0 and variance 1 over the batch (4.6.3)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._dtypes import at_least_float32, wide
from jaxnet._made import made
from jaxnet._mesh import varying
from jaxnet._symbolic import is_below
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.kernels.normalize import normalize, over_parts
from jaxnet.layers import normalization as norms
from jaxnet.layers.layer import Layer, layer


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

    An input ``(x, mask)`` gives ``(y, mask)``: the mask has a boolean for each position, True for what is there. What
    is masked enters no statistic, whatever it is, and its output is 0. Where less than two values a channel are left,
    the averages stay as they were.

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
      ShapeError: other channels, a mask of another shape, or training on one value a channel, whose variance says
        nothing.
      DTypeError: x is not floating point, or a mask that is not boolean.

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
    epsilon = norms.check(epsilon, scale, offset)
    parts = _axis_names(axis_name)

    def init(key, x):
        del key
        x = checks.floating_struct(norms.unpacked(x)[0])
        shape, dtype = (norms.channels(x.shape),), at_least_float32(x.dtype)
        return norms.drawn(x, scale, offset), {"mean": jnp.zeros(shape, dtype), "variance": jnp.ones(shape, dtype)}

    def apply(params, state, x, *, train, key):
        del key
        x, mask = norms.unpacked(x)
        x = checks.floating("x", x)
        learned = checks.leaves(params, *norms.names(scale, offset))
        mean, variance = checks.leaves(state, "mean", "variance", tree_name="state")
        norms.fits(x, mean, variance, *learned)
        if train:
            if axis_name is None:
                _whole_batch(x)
            n = _values(x, mask, parts)
            there = None if mask is None else mask[..., None]
            axes = tuple(range(x.ndim - 1))
            y, *statistics = normalize(x, axes, epsilon=epsilon, mask=there, parts=parts)
            batch_mean, batch_variance = (lax.stop_gradient(one.reshape(-1)) for one in statistics)
            new = _moved(decay, state, batch_mean, batch_variance, n)
        else:
            y = wide(x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x)))
            factor = lax.rsqrt(variance.astype(y.dtype) + epsilon)
            y = (y - norms.last(mean.astype(y.dtype), x.ndim)) * norms.last(factor, x.ndim)
            new = state
        return norms.masked(norms.affine(y, params, x.dtype), mask), new

    torch = (*norms.TORCH, ("mean", "running_mean", None), ("variance", "running_var", None))
    alone = functools.partial(batch_norm, decay=0.0, epsilon=epsilon, scale=scale, offset=offset, axis_name=axis_name)
    return layer("batch_norm", init, apply, torch=torch, normalizes=True, stream="pointwise", statistics=alone)


def _values(x: jax.Array, mask: jax.Array | None, parts: tuple[str, ...]) -> Any:
    """How many values a channel has, of those that count; fewer than two, where that can be told, are refused."""
    n = x.size // max(x.shape[-1], 1) * _number(parts)
    if is_below(n, 2):
        raise ShapeError(
            f"training needs at least two values a channel, got {n} (input {x.shape}), whose "
            f"variance is 0 whatever it is; use a larger batch, or layer_norm"
        )
    if mask is None:
        return n
    return over_parts(lax.psum, jnp.sum(mask, dtype=at_least_float32(x.dtype)), parts)


def _moved(decay: float, state: dict[str, jax.Array], mean: jax.Array, variance: jax.Array, n: Any) -> Any:
    """The averages a step further; of fewer than two values, which only a mask can leave, as they were."""
    if isinstance(n, jax.Array):
        factor, weight = n / jnp.maximum(n - 1, 1), jnp.where(n < 2, 1.0, decay)
    else:
        factor, weight = jnp.asarray(n / (n - 1), variance.dtype), decay
    return jax.tree.map(
        lambda old, batch: weight * old + (1 - weight) * batch.astype(old.dtype),
        {"mean": state["mean"], "variance": state["variance"]},
        {"mean": mean, "variance": variance * factor},
    )


def _axis_names(axis_name: Any) -> tuple[str, ...]:
    names = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"axis_name must be a name or a tuple of names, got {words.came(axis_name)}; axis_name='data' for "
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

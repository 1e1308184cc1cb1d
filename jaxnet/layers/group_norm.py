"""Group normalization: each example's channels brought to mean 0 and variance 1, in groups, over all positions."""

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.kernels.normalize import normalize
from jaxnet.layers import normalization as norms
from jaxnet.layers.layer import Layer, stateless


@made
def group_norm(groups: int, *, epsilon: float = 1e-5, scale: bool = True, offset: bool = True) -> Layer:
    """Normalizes each example in groups of channels: y = (x - mean) / sqrt(variance + epsilon), over all positions.

    The channels of a group, ``channels / groups`` of them, stand side by side. Nothing depends on the other examples,
    so training and evaluation are alike. The statistics are computed as `batch_norm` does, in float32, or wider if x
    is.

    An input ``(x, mask)`` gives ``(y, mask)``: the mask has a boolean for each position, True for what is there. What
    is masked enters no statistic, whatever it is, and its output is 0.

    Args:
      groups: the number of groups; 1 for all channels together.
      epsilon: added to the variance.
      scale: whether to learn a factor a channel.
      offset: whether to learn a shift a channel.

    Returns:
      A layer that keeps the shape (batch, ..., channels), with params ``scale`` and ``offset`` of shape (channels,).

    Raises:
      ConfigError: ``groups`` is no positive integer, ``epsilon`` out of range.
      ShapeError: the groups do not divide the channels, other channels than the parameters', a mask of another shape.
      DTypeError: x is not floating point, or a mask that is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.group_norm(2)
      >>> params, state = norm.init(0, jnp.ones((1, 3, 4)))
      >>> norm.apply(params, state, jnp.array([[[1.0, 3.0, 5.0, 9.0]]]), train=False)[0].round(3)
      Array([[[-1.,  1., -1.,  1.]]], dtype=float32)

    Source: Wu and He 2018, arXiv 1803.08494.
    """
    groups = checks.integer("groups", groups, minimum=1)
    return _grouped("group_norm", groups, norms.check(epsilon, scale, offset), scale, offset)


@made
def instance_norm(*, epsilon: float = 1e-5, scale: bool = True, offset: bool = True) -> Layer:
    """Normalizes each channel of each example: y = (x - mean) / sqrt(variance + epsilon), over all positions.

    It is `group_norm` with as many groups as channels, and takes a mask as it does. PyTorch's has no scale and offset
    unless asked for with ``affine=True``.

    Args:
      epsilon: added to the variance.
      scale: whether to learn a factor a channel.
      offset: whether to learn a shift a channel.

    Returns:
      A layer that keeps the shape (batch, positions, ..., channels), with params ``scale`` and ``offset`` of shape
      (channels,).

    Raises:
      ConfigError: ``epsilon`` out of range.
      ShapeError: no positions, other channels than the parameters', a mask of another shape.
      DTypeError: x is not floating point, or a mask that is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.instance_norm(scale=False, offset=False)
      >>> x = jnp.array([[[1.0, 2.0], [3.0, 6.0], [77.0, 77.0]]])
      >>> y, mask = norm.apply({}, (), (x, jnp.array([[True, True, False]])), train=False)[0]
      >>> y.round(3)
      Array([[[-1., -1.],
              [ 1.,  1.],
              [ 0.,  0.]]], dtype=float32)

    Source: Ulyanov et al. 2016, arXiv 1607.08022.
    """
    return _grouped("instance_norm", None, norms.check(epsilon, scale, offset), scale, offset)


def _grouped(name: str, groups: int | None, epsilon: float, scale: bool, offset: bool) -> Layer:
    def init(key, x):
        x = checks.floating_struct(norms.unpacked(x)[0])
        _size(groups, x.shape)
        return norms.drawn(x, scale, offset)

    def f(params, x):
        x, mask = norms.unpacked(x)
        x = checks.floating("x", x)
        size = _size(groups, x.shape)
        norms.fits(x, *checks.leaves(params, *norms.names(scale, offset)))
        axes, apart = tuple(range(1, x.ndim - 1)), None if size == 1 else x.shape[-1] // size
        there = None if mask is None else mask[..., None]
        y = normalize(x, axes, epsilon=epsilon, groups=apart, mask=there).y
        return norms.masked(norms.affine(y, params, x.dtype), mask)

    stream = "its statistics are of all positions, those to come too; layer_norm and rms_norm are of one"
    return stateless(init, f, name=name, torch=norms.TORCH, normalizes=True, stream=stream)


def _size(groups: int | None, shape: tuple[int, ...]) -> int:
    """How many channels a group has."""
    channels = norms.channels(shape)
    if groups is None:
        if len(shape) < 3:
            raise ShapeError(
                f"x must have the axes (batch, positions, ..., channels), got shape {tuple(shape)}, in which each "
                f"channel is one number; layer_norm is for these"
            )
        return 1
    if channels % groups:
        raise ShapeError(f"{groups} groups do not divide {channels} channels (input {tuple(shape)}); take a divisor")
    return channels // groups

"""Layer normalization: each position's channels brought to mean 0 and variance 1."""

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.kernels.normalize import normalize
from jaxnet.layers import normalization as norms
from jaxnet.layers.layer import Layer, stateless


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
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.layer_norm()
      >>> params, state = norm.init(0, jnp.ones((1, 2)))
      >>> norm.apply(params, state, jnp.array([[1.0, 3.0]]), train=False)[0].round(3)
      Array([[-1.,  1.]], dtype=float32)

    Source: Ba et al. 2016, arXiv 1607.06450.
    """
    epsilon = norms.check(epsilon, scale, offset)

    def init(key, x):
        return norms.drawn(checks.floating_struct(x), scale, offset)

    def f(params, x):
        x = checks.floating("x", x)
        norms.channels(x.shape)
        norms.fits(x, *checks.leaves(params, *norms.names(scale, offset)))
        return norms.affine(normalize(x, (x.ndim - 1,), epsilon=epsilon).y, params, x.dtype)

    return stateless(init, f, name="layer_norm", torch=norms.TORCH, normalizes=True, stream="pointwise")

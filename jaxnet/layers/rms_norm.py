"""Root mean square normalization: layer normalization without the mean."""

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.kernels.normalize import normalize
from jaxnet.layers import normalization as norms
from jaxnet.layers.layer import Layer, stateless


@made
def rms_norm(*, epsilon: float = 1e-6, scale: bool = True) -> Layer:
    """Divides the channels of each position by their root mean square: y = x / sqrt(mean(x^2) + epsilon).

    Nothing depends on the batch, so training and evaluation are alike. The mean of the squares is over the last axis,
    in float32, or wider if x is.

    Args:
      epsilon: added to the mean of the squares. PyTorch's default is the spacing of x's dtype at 1.
      scale: whether to learn a factor a channel.

    Returns:
      A layer that keeps the shape (..., channels), with the param ``scale`` of shape (channels,).

    Raises:
      ConfigError: ``epsilon`` out of range.
      ShapeError: other channels than the parameter's.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> norm = layers.rms_norm()
      >>> params, state = norm.init(0, jnp.ones((1, 2)))
      >>> y, state = norm.apply(params, state, jnp.array([[1.0, 7.0]]), train=False)
      >>> [round(float(value), 3) for value in y[0]]
      [0.2, 1.4]

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    epsilon = norms.check(epsilon, scale, False)

    def init(key, x):
        return norms.drawn(checks.floating_struct(x), scale, False)

    def f(params, x):
        x = checks.floating("x", x)
        norms.channels(x.shape)
        norms.fits(x, *checks.leaves(params, *norms.names(scale, False)))
        return norms.affine(normalize(x, (x.ndim - 1,), epsilon=epsilon, centered=False).y, params, x.dtype)

    return stateless(init, f, name="rms_norm", torch=norms.TORCH, normalizes=True, stream="pointwise")

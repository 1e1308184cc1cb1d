"""How noisy a batch's gradient is, and so from which batch size on more samples a step are hardly worth it (4.6.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.diagnostics._arrays import Loss
from jaxnet.errors import DataError, named
from jaxnet.layers.layer import as_layer
from jaxnet.optimizers._arithmetic import wide, wide_dtype
from jaxnet.training.step import pair
from jaxnet.training.update import squares_of
from jaxnet.training.weighted import of_pair


class NoiseScale(NamedTuple):
    """What `noise_scale` returns.

    Attributes:
      batch_size: the noise scale trace(Sigma) / |G|^2: the batch size, in samples, at which noise and gradient are
        equally strong. Far below it, twice the batch allows nearly twice the rate; far above it, nothing is gained. Inf
        where the estimate of |G|^2 is not positive: the samples' gradients then say nothing in common.
      gradient_square: the estimate of |G|^2, the squared norm of the gradient over all data.
      noise: the estimate of trace(Sigma), the summed variances of one sample's gradient.
    """

    batch_size: Any
    gradient_square: Any
    noise: Any


@named("noise_scale")
def noise_scale(
    net: Any, loss: Loss, params: Any, state: Any, batch: Any, *, parts: int = 16, key: Any = None
) -> NoiseScale:
    """Estimates the gradient noise scale from one large batch, cut into parts; works inside ``jit``.

    With b samples a part, B = b * parts, g_i the gradients of the parts and g their mean, both unbiased::

        noise           = (mean |g_i|^2 - |g|^2) / (1 / b - 1 / B)
        gradient_square = (B |g|^2 - b mean |g_i|^2) / (B - b)

    The estimate is itself noisy: give thousands of samples, or average ``noise`` and ``gradient_square``, not their
    quotient, over several batches.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``, a mean over examples.
      params: the parameters at which to measure. The scale grows as training goes on.
      state: the network's state.
      batch: ``(x, target)``, arrays (batch, ...) or trees of such.
      parts: into how many equal parts to cut the batch.
      key: for layers that draw random numbers in training.

    Returns:
      A `NoiseScale` of scalars in float32, or in float64 where a gradient is.

    Raises:
      ConfigError: fewer than two parts, what is no network or loss, or a batch that is no pair.
      DataError: an empty batch, or ``parts`` does not divide it, or exceeds it.
      DTypeError: a batch that is no arrays of numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses
      >>> x = jax.random.normal(jax.random.key(0), (512, 4))
      >>> net = layers.dense(1)
      >>> params, state = net.init(0, x)
      >>> found = diagnostics.noise_scale(net, losses.mse, params, state, (x, x[:, :1] + 1))
      >>> bool(1 < found.batch_size < 30)
      True

    Source: McCandlish et al. 2018, arXiv 1812.06162, eq. 2.9 and appendix A.1; chapter 4.6.2, [58].
    """
    net = as_layer(net, "net")
    of_pair("loss", loss)
    parts = checks.integer("parts", parts, minimum=2)
    batch = jax.tree.map(lambda leaf: checks.array("batch", leaf), pair(batch))
    size = jax.tree.leaves(batch)[0].shape[0]
    if size < parts:
        raise DataError(f"parts={parts} need a batch of at least {parts} samples, got {size}; cut it into fewer")
    if size % parts:
        raise DataError(f"parts={parts} must divide the batch of {size}; cut it to {size - size % parts} samples")
    small = size // parts
    keys = None if key is None else jax.random.split(checks.key(key), parts)

    def objective(params, batch, key):
        return loss(net.apply(params, state, batch[0], train=True, key=key)[0], batch[1])

    def of_part(total, part):
        gradient = jax.tree.map(wide, jax.grad(objective)(params, *part))
        return jax.tree.map(jnp.add, total, gradient), squares_of(gradient)[1]

    cut = jax.tree.map(lambda leaf: leaf.reshape(parts, small, *leaf.shape[1:]), batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)), params)
    total, squares = jax.lax.scan(of_part, zeros, (cut, keys))
    of_parts, of_all = jnp.mean(squares), squares_of(total)[1] / parts**2
    noise = (of_parts - of_all) / (1 / small - 1 / size)
    gradient_square = (size * of_all - small * of_parts) / (size - small)
    scale = jnp.where(gradient_square > 0, noise / gradient_square, jnp.inf)
    return NoiseScale(scale, gradient_square, noise)

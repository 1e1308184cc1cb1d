"""The learning-rate range test: one short run in which the rate grows until training breaks."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet import _checks as checks
from jaxnet import data as data_module
from jaxnet.diagnostics import pictures
from jaxnet.diagnostics._arrays import Loss
from jaxnet.diagnostics.trial import Task
from jaxnet.errors import ConfigError, DataError, named
from jaxnet.layers.layer import as_layer
from jaxnet.optimizers import _members
from jaxnet.training.pairs import checked
from jaxnet.training.targets import check_targets
from jaxnet.training.weighted import of_pair

SMOOTHING = 0.9
"""Weight of the past in the running mean of the losses: about ten batches."""


class RateRange(NamedTuple):
    """What `rate_range_test` returns.

    Attributes:
      factors: (steps,): the factor on the optimizer's rate. With ``sgd(1.0)`` they are the rates themselves.
      losses: (steps,): each step's loss, before its update.
      smoothed: (steps,): their running mean, of about the last ten.
      largest: the factor at which the smoothed loss was lowest; from there on it rose.
      suggested: a tenth of it.
    """

    factors: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    largest: float
    suggested: float

    def plot(self, path: Any) -> Any:
        """Draws the loss against the factor; needs matplotlib. Returns the picture's path.

        Raises:
          DependencyError: matplotlib is not installed.
          ConfigError: ``path`` is none.
        """
        return pictures.rate_range(self, path)


@named("rate_range_test")
def rate_range_test(
    net: Any,
    loss: Loss,
    optimizer: Any,
    data: Any,
    *,
    key: Any = 0,
    steps: int = 200,
    batch_size: int = 32,
    low: float = 1e-4,
    high: float = 1e4,
) -> RateRange:
    """Trains for a few steps, multiplying the optimizer's rate by a factor that grows from ``low`` to ``high``.

    That of step i = 0, 1, ... is ::

        low * (high / low)^(i / (steps - 1))

    Below some rate nothing happens, then the loss falls, and beyond another it rises: that is the largest rate of use.
    The factor multiplies the optimizer's updates, so any optimizer will do, with the rate that you have in mind:
    ``suggested`` says by what to multiply it, about.

    Args:
      net: a `Layer`.
      loss: ``(prediction, target) -> scalar``.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      data: arrays ``(x, target)``, each (samples, ...), or trees of such.
      key: a PRNG key or a seed, of the parameters.
      steps: how many steps, and so factors.
      batch_size: samples a step.
      low: the first factor.
      high: the last.

    Returns:
      A `RateRange`.

    Raises:
      ConfigError: what is no network, loss or optimizer, factors or sizes that make no sense, or the smoothed loss is
        lowest at the first factor or at the last, so that the range does not hold the best.
      DataError: data that `training.fit` refuses, less than a batch, or a loss that is not finite from the start.
      DTypeError: data that are no arrays of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> x = jnp.linspace(-1, 1, 64)[:, None]
      >>> found = diagnostics.rate_range_test(layers.dense(1), losses.mse, optimizers.sgd(1.0), (x, 2 * x))
      >>> 0.3 < found.largest < 5  # the curvature is 2 for the bias, so steps of more than 1 diverge
      True

    Source: Smith 2017, Cyclical learning rates, arXiv 1506.01186, section 3.3; chapter 4.6.2.
    """
    net = as_layer(net, "net")
    of_pair("loss", loss)
    optimizer = _members.member(optimizer)
    steps = checks.integer("steps", steps, minimum=2)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    low = checks.number("low", low, low=0, open_low=True)
    high = checks.number("high", high, low=low, open_low=True)
    data = checked(data)
    check_targets(net, loss, data)
    data_module.must_fill(batch_size, len(jax.tree.leaves(data)[0]))
    factors = np.geomspace(low, high, steps).astype(np.float32)
    losses = Task(net, loss, optimizer, None, data, data, batch_size, checks.key(key)).losses(factors)
    smoothed, average = [], 0.0
    for i, value in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        smoothed.append(average / (1 - SMOOTHING**i))
    finite = np.where(np.isfinite(smoothed), smoothed, math.inf)
    if not np.isfinite(finite).any():
        raise DataError(
            f"the loss is {losses[0]:g} from the first step on, at any rate; layer_report says which layer's "
            f"output is not finite"
        )
    lowest = int(np.argmin(finite))
    if lowest == 0:
        raise ConfigError(
            f"the smoothed loss is lowest at the first factor, {low:g}, and only rises; lower low, or see with "
            f"diagnose whether the network trains at all"
        )
    if lowest == steps - 1:
        raise ConfigError(f"the smoothed loss is lowest at the last factor, {high:g}, and may fall further; raise high")
    # Each loss is measured before its own step, and so is what the step before has led to.
    largest = float(factors[lowest - 1])
    return RateRange(factors, losses, np.array(smoothed), largest, largest / 10)

"""The loss of a network that has learned nothing, by which losses are judged."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import Loss, is_floating
from jaxnet.errors import DataError
from jaxnet.layers.layer import Layer


def constant_loss(net: Layer, loss: Loss, data: Any) -> float:
    """The loss of the best constant prediction: the target's mean, or the classes' shares.

    That of a fresh network where no such prediction is at hand; 1 if neither is positive and finite.
    """
    x, target = data
    prediction = jax.eval_shape(lambda key: net.apply(*net.init(key, x), x, train=False)[0], jax.random.key(0))
    values, refused = [], []
    for constant in _constants(prediction, target):
        predicted = jnp.asarray(np.broadcast_to(constant, prediction.shape), prediction.dtype)
        try:
            values.append(float(loss(predicted, jnp.asarray(target))))
        except DataError as error:  # a loss of probabilities refuses logits
            refused.append(error)
    if refused and not values:
        raise refused[0]
    usable = [value for value in values if 0 < value < math.inf] or [untrained_loss(net, loss, x, target)]
    return min(usable) if 0 < min(usable) < math.inf else 1.0


def _constants(prediction: Any, target: Any) -> list[np.ndarray]:
    """What to predict for every sample."""
    if not hasattr(prediction, "shape") or not isinstance(target, np.ndarray):
        return []
    if target.dtype.kind in "iu" and prediction.ndim == target.ndim + 1:
        counts = np.bincount(target.ravel()[target.ravel() >= 0], minlength=prediction.shape[-1])
        shares = counts[: prediction.shape[-1]] / max(counts.sum(), 1)
        return [np.log(np.maximum(shares, 1e-6)), shares]  # as logits, or as probabilities
    if not is_floating(target) or target.shape != prediction.shape:
        return []
    mean = target.astype(np.float64).mean(0)
    if target.min() < 0 or target.max() > 1:
        return [mean]
    share = np.clip(mean, 1e-6, 1 - 1e-6)  # the logits of softmax, and of sigmoid
    return [mean, np.log(share), np.log(share / (1 - share))]


def untrained_loss(net: Layer, loss: Loss, x: Any, target: Any) -> float:
    """The loss of a fresh network."""
    x, target = jax.tree.map(jnp.asarray, (x, target))
    params, state = net.init(jax.random.key(0), x)
    return float(loss(net.apply(params, state, x, train=False)[0], target))

"""The loss of a network that has learned nothing, by which losses are judged."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import Loss, is_floating
from jaxnet.errors import DataError
from jaxnet.layers.layer import Layer
from jaxnet.optimizers import adam, apply_updates

PROBE = 256
"""Samples on which a fresh network is asked whether it is better than any constant."""

RATES = (0.03, 0.3, 3.0)
"""Of Adam, by which the best constant is looked for where it is none of the usual."""

STEPS = 300


def constant_loss(net: Layer, loss: Loss, data: Any) -> float:
    """The loss of the best constant prediction: the target's mean, or the classes' shares.

    Where a fresh network is better than these, the loss compares something else than prediction and target, as
    ``mse(p, y / 255)`` does: then the best constant is looked for. That of a fresh network where no constant prediction
    is at hand; 1 if none is positive and finite.
    """
    x, target = data
    prediction = jax.eval_shape(lambda key: net.apply(*net.init(key, x), x, train=False)[0], jax.random.key(0))
    values, refused = [], []
    constants = _constants(prediction, target)
    fresh = _fresh(net, x) if constants else None
    summed = _sums(fresh) if constants else None
    if summed:  # what softmax or its logarithm cannot give is no prediction
        constants = [one for one in constants if np.allclose(summed(one).sum(-1), 1, atol=1e-3)] or constants
    for constant in constants:
        try:
            value = _of_row(constant, prediction, loss, target)
        except DataError as error:  # a loss of probabilities refuses logits
            refused.append(error)
        else:
            values += [(value, constant)] if 0 < value < math.inf else []
    if refused and not values:
        raise refused[0]
    if not values:
        start = untrained_loss(net, loss, x, target)
        return start if 0 < start < math.inf else 1.0
    lowest, constant = min(values, key=lambda one: one[0])
    other = _elsewhere(loss, fresh, target, constant)
    found = lowest if other is None else _of_row(other, prediction, loss, target)
    return found if 0 < found < lowest else lowest


def _of_row(row: Any, prediction: Any, loss: Loss, target: Any) -> float:
    """The loss where each sample is predicted to be ``row``."""
    predicted = jnp.asarray(np.broadcast_to(np.asarray(row), prediction.shape), prediction.dtype)
    return float(loss(predicted, jnp.asarray(target)))


def _fresh(net: Layer, x: Any) -> Any:
    """What a fresh network predicts for the first samples."""
    return predicted(net, jax.tree.map(lambda leaf: leaf[:PROBE], x))


def predicted(net: Layer, x: Any) -> Any:
    """What a fresh network predicts: by one program, but of tokens, which are looked at outside of one alone."""

    def run(key, x):
        return net.apply(*net.init(key, x), x, train=False)[0]

    x = jax.tree.map(jnp.asarray, x)
    compiled = all(map(is_floating, jax.tree.leaves(x)))
    return (jax.jit(run) if compiled else run)(jax.random.key(0), x)


def _sums(fresh: Any) -> Any:
    """What of predictions sums to 1: they themselves, behind softmax, or their exponentials, behind its logarithm."""
    if not is_floating(fresh) or fresh.ndim < 2 or fresh.shape[-1] < 2:
        return None
    for f in (np.asarray, np.exp):
        with np.errstate(over="ignore"):  # of predictions in the thousands, which are no logarithms
            shares = f(np.asarray(fresh, np.float64))
        if shares.min() >= 0 and np.allclose(shares.sum(-1), 1, atol=1e-4):
            return f
    return None


def _elsewhere(loss: Loss, fresh: Any, target: Any, constant: np.ndarray) -> Any:
    """The constant with the lowest loss, if a fresh network shows that it is not ``constant``."""
    target = jnp.asarray(target[:PROBE])
    if not is_floating(fresh) or not float(loss(fresh, target)) < _of_row(constant, fresh, loss, target):
        return None
    within = bool(jnp.all((fresh >= 0) & (fresh <= 1)))
    of: Any = {np.asarray: jax.nn.softmax, np.exp: jax.nn.log_softmax}
    row: Any = of.get(_sums(fresh)) or (jax.nn.sigmoid if within else lambda free: free)  # what it can give

    def objective(free):
        return loss(jnp.broadcast_to(row(free), fresh.shape).astype(fresh.dtype), target)

    def run(rate):
        rule, free = adam(1.0), jnp.zeros(fresh.shape[1:], jnp.float32)

        def step(carry, _):
            free, state = carry
            updates, state = rule.update(jax.grad(objective)(free), state, free)
            return (apply_updates(free, jax.tree.map(lambda u: rate * u, updates)), state), None

        (free, _), _ = jax.lax.scan(step, (free, rule.init(free)), length=STEPS)
        return row(free), objective(free)

    found = [jax.jit(run)(jnp.float32(rate)) for rate in RATES]
    found = [one for one in found if math.isfinite(float(one[1]))]
    return np.asarray(min(found, key=lambda one: float(one[1]))[0], np.float64) if found else None


def _constants(prediction: Any, target: Any) -> list[np.ndarray]:
    """What to predict for every sample."""
    if not hasattr(prediction, "shape") or not isinstance(target, np.ndarray):
        return []
    if target.dtype.kind in "iu" and prediction.ndim == target.ndim + 1 and prediction.shape[-1] > 1:
        counts = np.bincount(target.ravel()[target.ravel() >= 0], minlength=prediction.shape[-1])
        shares = counts[: prediction.shape[-1]] / max(counts.sum(), 1)
        return [np.log(np.maximum(shares, 1e-6)), shares]  # as logits, or as probabilities
    if prediction.shape == (*target.shape, 1):  # one output, of which the loss takes the only column
        target = target[..., None]
    if not (is_floating(target) or target.dtype.kind in "iub") or target.shape != prediction.shape:
        return []
    mean = target.astype(np.float64).mean(0)
    if target.min() < 0 or target.max() > 1:
        return [mean]
    share = np.clip(mean, 1e-6, 1 - 1e-6)  # the logits of softmax, and of sigmoid
    return [mean, np.log(share), np.log(share / (1 - share))]


def untrained_loss(net: Layer, loss: Loss, x: Any, target: Any) -> float:
    """The loss of a fresh network."""
    return float(loss(predicted(net, x), jax.tree.map(jnp.asarray, target)))

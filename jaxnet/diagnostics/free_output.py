"""Whether an output and a loss can represent the targets at all, by putting a free table in front of both.

Everything up to the last layer that learns is replaced by a table with a row a sample, and the loss is minimized over
the table alone. What even that does not learn, no network in front of this output and this loss can.
"""

import dataclasses
import math
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import Loss, is_floating
from jaxnet.diagnostics.anatomy import Anatomy, anatomy, table, with_layer
from jaxnet.diagnostics.baseline import constant_loss
from jaxnet.layers.layer import Layer
from jaxnet.optimizers import adam, apply_updates

SAMPLES = 64
"""Rows of the table."""

MOST = 2**20
"""The most numbers in the table: fewer rows for outputs as large as those of language models."""

RATES = (0.03, 0.3, 3.0)
"""Of Adam."""

STEPS = 400

SETTLED = 0.1
"""A loss below 0 that falls by more than this share of itself over the second half of the steps has no lowest value."""

SAME = 0.01
"""Two searches have found the same lowest value if these differ by no more than this share of it."""

ROUNDING = 1e-3
"""Of a number that was taken off and put back."""

SCALES = (0.0, 0.3, 3.0, 30.0, 300.0)
"""Of the random tables by which the output is explored."""


@dataclasses.dataclass(eq=False)
class FreeOutput:
    """The end of a network, on a few samples.

    Attributes:
      parts: what the network is made of.
      target: of the samples.
      loss: of a prediction and the target.
      predict: makes a prediction of a table.
      predicted: what comes out for tables from small to huge, (tables, samples, ...), if it is one array.
      settled: whether the loss had found its lowest value when `floor` was asked for it.
      resting: whether it then no longer fell.
      certain: whether two searches from two starts had then found the same.
      shift: what was taken off the loss that the caller gave.
    """

    parts: Anatomy
    loss: Loss
    target: Any
    predict: Any
    predicted: np.ndarray | None
    settled: bool = True
    resting: bool = True
    certain: bool = False
    shift: float = 0.0

    @classmethod
    def of(cls, net: Layer, loss: Loss, x: Any, target: Any, samples: int = SAMPLES) -> "FreeOutput":
        """The end of ``net`` on the first samples."""
        one = anatomy(net, jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), x)).free
        count = min(samples, max(MOST // max(sum(leaf.size for leaf in jax.tree.leaves(one)), 1), 2))
        x, target = jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), (x, target))
        parts = anatomy(net, x)
        ended = with_layer(net, parts.last, table(parts.free))
        params, state = ended.init(jax.random.key(0), x)

        def predict(free):
            return ended.apply(_put(params, parts.last, free, ended), state, x, train=False)[0]

        found = cls(parts, loss, target, predict, None)
        program = jax.jit(predict)
        outputs = [program(found.drawn(scale)) for scale in SCALES]
        if all(is_floating(y) and y.ndim for y in outputs):
            found.predicted = np.stack([np.asarray(y, np.float64) for y in outputs])
        return found

    def drawn(self, scale: float, offset: float = 0.0) -> Any:
        """A random table."""
        return self._draw(jax.random.key(1), scale, offset)

    @cached_property
    def _draw(self) -> Any:
        """`drawn` of a key, as one program."""
        leaves, treedef = jax.tree.flatten(self.parts.free)

        @jax.jit
        def draw(key, scale, offset):
            keys = jax.random.split(key, len(leaves))
            drawn = [
                (offset + scale * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
                if is_floating(leaf)
                else jnp.zeros(leaf.shape, leaf.dtype)
                for key, leaf in zip(keys, leaves, strict=True)
            ]
            return treedef.unflatten(drawn)

        return draw

    @property
    def dips(self) -> bool:
        """Whether the loss is below 0 somewhere among the random tables."""
        tables = [] if self.predicted is None else self.predicted
        return any(self._loss(jnp.asarray(p, jnp.float32)) < 0 for p in tables)

    @property
    def falls_for_targets_outside(self) -> bool:
        """Whether the loss as it was given falls below 0 for these targets, and not for those that can be reached."""
        lowest = self.shift or self.floor()
        if not lowest < 0:
            return False
        inside = dataclasses.replace(self, target=jnp.clip(self.target, *self.bounds))
        return inside.floor() + self.shift >= ROUNDING * lowest

    def floor(self) -> float:
        """The lowest loss that was found over all tables."""
        mean, deviation = self._units()

        def objective(free, mean, deviation):
            scaled = jax.tree.map(lambda leaf: mean + deviation * leaf if is_floating(leaf) else leaf, free)
            return self.loss(self.predict(scaled), self.target)

        def step(rate, units, carry):
            free, state = carry
            value, grads = jax.value_and_grad(objective, allow_int=True)(free, *units)
            grads = jax.tree.map(lambda g, w: g if is_floating(w) else jnp.zeros_like(w), grads, free)
            grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), grads)
            updates, state = adam(1.0).update(grads, state, free)
            free = apply_updates(free, jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates))
            return (free, state), value

        def run(rate, free, *units):
            (free, _), values = jax.lax.scan(
                lambda carry, _: step(rate, units, carry), (free, adam(1.0).init(free)), length=STEPS
            )
            return jnp.append(values, objective(free, *units))

        program = jax.jit(run)
        all_units = [(mean, deviation)]
        if self.parts.tail and (np.any(mean != 0) or np.any(deviation != 1)):  # a function stands between
            all_units.append((np.zeros_like(mean), np.ones_like(deviation)))
        try:
            starts = [self.drawn(0.3, offset) for offset in (1.0, 0.0, 1.0)]  # a rectifier needs some above 0
            values = [program(np.float32(rate), free, *units) for units in all_units
                      for rate, free in zip(RATES, starts, strict=True)]  # fmt: skip
        except Exception:  # a loss that is no function of one array of numbers tells nothing
            return math.nan
        values = np.asarray(values, np.float64)
        lowest, half = (
            float(part[np.isfinite(part)].min(initial=math.inf)) for part in (values, values[:, : STEPS // 2])
        )
        self.settled = half - lowest <= SETTLED * max(abs(lowest), 1.0)
        self.resting = half - lowest <= SAME * abs(lowest)
        slow, fast = (float(row[np.isfinite(row)].min(initial=math.inf)) for row in values[:2])
        near = abs(slow - fast) <= SAME * abs(fast) and fast <= lowest + SAME * abs(lowest)
        self.certain = near and self.resting
        return lowest

    def baseline(self, net: Layer, x: Any) -> float:
        """The loss of the best constant prediction for these samples."""
        count = len(jax.tree.leaves(self.target)[0])
        pair = jax.tree.map(lambda leaf: np.asarray(leaf[:count]), (x, self.target))
        return constant_loss(net, self.loss, pair)

    def _units(self) -> tuple[Any, Any]:
        """Of the target, where the table is a prediction of it."""
        target, shape = self.target, getattr(self.parts.free, "shape", None)
        if is_floating(target) and shape == (*target.shape, 1):  # the loss takes the only column
            target = target[..., None]
        if not is_floating(target) or shape != target.shape:
            return np.float32(0.0), np.float32(1.0)
        dtype, target = self.parts.free.dtype, np.asarray(target, np.float64)
        mean, deviation = (f(target, 0, keepdims=True).astype(dtype) for f in (np.mean, np.std))
        return mean, np.where(deviation > 0, deviation, np.ones_like(deviation))

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which all predictions lie; infinite where nothing bounds them."""
        if self.predicted is None:
            return -math.inf, math.inf
        axes = tuple(range(1, self.predicted.ndim))
        low, high = self.predicted.min(axes), self.predicted.max(axes)
        return (
            float(low[-1]) if np.isclose(low[-1], low[-2], atol=1e-3) else -math.inf,
            float(high[-1]) if np.isclose(high[-1], high[-2], atol=1e-3) else math.inf,
        )

    @property
    def constant(self) -> bool:
        """Whether the prediction is the same whatever comes in."""
        return self.predicted is not None and bool(np.ptp(self.predicted) < 1e-9)

    @property
    def outputs(self) -> int:
        """Values on the last axis of a prediction."""
        return 0 if self.predicted is None or self.predicted.ndim < 3 else self.predicted.shape[-1]

    @property
    def sums_to_one(self) -> bool:
        """Whether each prediction is a distribution over several classes."""
        p = self.predicted
        if p is None or self.outputs < 2:
            return False
        return bool(p.min() >= 0 and np.allclose(p.sum(-1), 1, atol=1e-4))

    def _loss(self, prediction: Any, target: Any = None) -> float:
        try:
            return float(self.loss(prediction, self.target if target is None else target))
        except Exception:  # it refuses what it was not given
            return math.nan

    @property
    def shift_free(self) -> bool:
        """Whether the loss applies softmax: adding one number to all outputs of a sample changes nothing."""
        if self.predicted is None or self.outputs < 2:
            return False
        p = jnp.asarray(self.predicted[1], jnp.float32)
        shift = 0.3 + 0.1 * jnp.arange(p.shape[0], dtype=p.dtype).reshape(-1, *[1] * (p.ndim - 1)) / p.shape[0]
        one, other, doubled = self._loss(p), self._loss(p + shift), self._loss(2 * p)
        return bool(abs(one - other) <= 1e-4 * abs(one) and abs(one - doubled) > 1e-6 * abs(one))

    @property
    def squares(self) -> bool:
        """Whether the loss is a mean squared error."""
        if self.predicted is None or not is_floating(self.target) or self.predicted.shape[1:] != self.target.shape:
            return False
        p = jnp.asarray(self.predicted[1], jnp.float32)
        square = float(jnp.mean(jnp.square(p - self.target.astype(p.dtype))))
        far = float(jnp.mean(jnp.square(p + 1 - self.target.astype(p.dtype))))
        loss, other = self._loss(p), self._loss(p + 1)
        return bool(square > 0 and abs(loss / square - other / far) <= 1e-3 * abs(loss / square))

    def threshold(self, low: float, high: float) -> float | None:
        """The prediction at which the loss has no preference for one of two targets; None where it is neither usual."""
        predicted = self.predicted
        if predicted is None or not hasattr(self.target, "dtype") or predicted[0].size != self.target.size:
            return None
        found = []
        for middle in ((low + high) / 2, 0.0):
            p = jnp.full(predicted.shape[1:], middle, jnp.float32)
            one, other = (self._loss(p, jnp.full_like(self.target, value)) for value in (low, high))
            if abs(one - other) <= 1e-4 * abs(one):
                found.append(middle)
        return found[0] if found else None

    @property
    def blind(self) -> bool:
        """Whether the loss cannot tell the first label that has no output from the next, or makes NaN of it."""
        if self.predicted is None or not hasattr(self.target, "at"):
            return False
        p = jnp.asarray(self.predicted[1], jnp.float32)
        one, other, first, outside, beyond = (
            self._loss(p, self.target.at[::2].set(jnp.asarray(label, self.target.dtype)))
            for label in (0, 1, self.outputs - 1, self.outputs, self.outputs + 1)
        )
        told_apart = one != other and math.isfinite(one) and math.isfinite(first)
        return told_apart and not (math.isfinite(outside) and outside != beyond)

    @property
    def agreeing(self) -> float:
        """The loss of predictions that are the targets, as numbers or as logits of them; infinite if none is taken."""
        predicted, target = self.predicted, self.target
        if predicted is None or not is_floating(target) or predicted[0].size != target.size:
            return math.inf
        t = jnp.asarray(target, jnp.float32).reshape(predicted.shape[1:])
        inside = jnp.clip(t, 1e-6, 1 - 1e-6)
        losses = [self._loss(p) for p in (t, jnp.log(inside), jnp.log(inside) - jnp.log1p(-inside))]
        return min((loss for loss in losses if math.isfinite(loss)), default=math.inf)

    @property
    def natural(self) -> bool:
        """Whether the output gives all that targets of this kind may ask for: any number, or any probability."""
        if not self.parts.tail:
            return True
        t = self.target
        within = not is_floating(t) or bool(jnp.all((t >= 0) & (t <= 1)))
        low, high = self.bounds
        return within and abs(low) < SAME and abs(high - 1) < SAME and (self.sums_to_one or self.outputs < 2)

    @property
    def has_gradient(self) -> bool:
        """Whether the loss has a derivative anywhere, at random predictions."""
        if self.predicted is None:
            return True
        random = np.random.default_rng(0).uniform(0.1, 0.9, self.predicted.shape[1:])
        try:
            p = jnp.asarray(random, jnp.float32)
            return bool(jnp.any(jax.grad(lambda p: self.loss(p, self.target))(p) != 0))
        except Exception:  # as above
            return True


def _put(params: Any, path: tuple[str, ...], free: Any, net: Layer) -> Any:
    """``params`` of ``net`` with ``free`` at the layer of a path."""
    if not path:
        return free
    if net.about.trees == "same":
        return _put(params, path[1:], free, net.about.parts[0][1])
    labels = [label for label, _ in net.about.parts]
    number = labels.index(path[0])
    inner = net.about.parts[number][1]
    if isinstance(params, dict):
        return params | {path[0]: _put(params[path[0]], path[1:], free, inner)}
    return tuple(_put(one, path[1:], free, inner) if i == number else one for i, one in enumerate(params))

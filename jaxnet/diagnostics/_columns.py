"""The numbers that a layer's outputs and parameters fill a report with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import widest
from jaxnet.diagnostics._rows import Kind
from jaxnet.layers.layer import Layer
from jaxnet.optimizers._arithmetic import abs_squared, wide

SATURATED_DISTANCE = 0.025
"""A value this close to a bound, in units of the distance between the two, is saturated: of tanh beyond +-0.95 and of
sigmoid outside 0.025..0.975, where the derivative has fallen to a tenth of its largest."""


def of_outputs(outputs: list[jax.Array], kind: Kind) -> dict[str, jax.Array]:
    """The columns that a layer's outputs fill; none if there is no floating-point one."""
    if not outputs:
        return {}
    dtype = widest(outputs)
    outputs = [jax.lax.stop_gradient(y).astype(dtype) for y in outputs]
    y = outputs[0] if len(outputs) == 1 else jnp.concatenate([y.ravel() for y in outputs])
    mean = jnp.mean(y)
    found = {
        "mean": mean,
        "deviation": jnp.sqrt(jnp.mean(jnp.square(y - mean))),
        "nonfinite": jnp.sum((~jnp.isfinite(y)).astype(dtype)),
    }
    if kind.bounds is not None:
        low, high = kind.bounds
        near = SATURATED_DISTANCE * (high - low)
        found["saturated"] = jnp.mean(((y < low + near) | (y > high - near)).astype(dtype))
    if kind.rectifier:
        found["dead"] = jnp.mean(jnp.all(y == 0, axis=tuple(range(y.ndim - 1))).astype(dtype))
    return found


def of_parameters(layer: Layer, repeats: int, params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
    """The columns that a layer's parameters fill, with an entry a copy on the first axes; none if it has none."""
    dtype = widest((params, grads, updates))

    def norm(tree):
        squares = [
            jnp.sum(abs_squared(wide(leaf)).astype(dtype), axis=tuple(range(repeats, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    if not jax.tree.leaves(params):
        return {}
    weight = norm(params)
    found = {"parameter_gradient": norm(grads), "weight_norm": weight}
    if updates is not None:
        smallest = float(np.finfo(np.float32).tiny)
        found["update_ratio"] = jnp.where(weight > 0, norm(updates) / jnp.maximum(weight, smallest), np.nan)
    if layer.about.fan_in is not None and isinstance(params, dict) and "kernel" in params:
        w = params["kernel"]
        square = jnp.mean(jnp.square(w.astype(dtype)), axis=tuple(range(repeats, w.ndim)))
        found["gain"] = jnp.sqrt(jnp.asarray(layer.about.fan_in(w.shape[repeats:]), dtype) * square)
    return found


def slope(norms: jax.Array) -> jax.Array:
    """The least-squares slope of ln(norms) over their numbers, of those that are positive and finite."""
    usable = (norms > 0) & jnp.isfinite(norms)
    y = jnp.where(usable, jnp.log(jnp.where(usable, norms, 1)), 0)
    weight = usable.astype(norms.dtype)
    x = jnp.arange(norms.shape[0], dtype=norms.dtype)
    n = jnp.sum(weight)
    x = x - jnp.sum(weight * x) / n
    y = y - jnp.sum(weight * y) / n
    spread = jnp.sum(weight * x * x)
    return jnp.where(n >= 2, jnp.sum(weight * x * y) / spread, np.nan)

"""A batch in parts, one after the other: the mean over the whole of what each part's mean counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.optimizers._arithmetic import wide_dtype
from jaxnet.training.weighted import Weighted, counted

Gradient = Callable[[jax.Array, Any, Any], tuple[Any, Any, Any]]
"""``(number of the part, state, part) -> (gradient, state, what was measured)``."""


def over_parts(
    gradient: Gradient, batch: Any, parts: int, count: Callable[..., Any] | None, params: Any, state: Any
) -> tuple[Any, Any, Any]:
    """The gradient and the measures of a batch, summed over its parts; the state goes from part to part.

    With n_p what part p counts (`weighted.counted`, or its examples), it is the sum of n_p g_p over the sum of n_p. The
    first parts have one example more where the number of parts does not divide the batch. What counts 0 changes
    nothing, not even a NaN; where nothing counts, all parts count the same.

    Args:
      gradient: of a part.
      batch: ``(x, target)``.
      parts: how many; of a batch with fewer examples, one a part.
      count: as of `make_step`.
      params: of which the gradient has the shapes.
      state: the network's, before the first part.
    """
    examples = _first(batch).shape[0]
    parts = min(parts, examples)
    size, longer = divmod(examples, parts)
    groups = [_split(batch, 0, longer, size + 1), _split(batch, longer * (size + 1), parts - longer, size)]
    groups = groups if longer else groups[1:]
    weights = _weights(groups, parts, count)

    def part(carry, numbered):
        state, total = carry
        i, weight, batch = numbered
        grads, state, measured = gradient(i, state, batch)
        total = jax.tree.map(lambda t, g: t + _times(weight, g.astype(t.dtype)), total, grads)
        return (state, total), jax.tree.map(lambda value: _times(weight, value), measured)

    carry = state, jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p.dtype)), params)
    first, measures = 0, []
    for group in groups:
        last = first + _first(group).shape[0]
        mine = None if weights is None else weights[first:last]
        carry, measured = jax.lax.scan(part, carry, (jnp.arange(first, last), mine, group))
        measures.append(measured)
        first = last
    state, total = carry
    grads = jax.tree.map(lambda g: g / jnp.asarray(parts, g.dtype), total)
    return grads, state, jax.tree.map(lambda *values: jnp.mean(jnp.concatenate(values)), *measures)


def _split(batch: Any, start: int, parts: int, size: int) -> Any:
    """So many parts of a batch, from an example on, stacked."""
    return jax.tree.map(lambda leaf: leaf[start : start + parts * size].reshape(parts, size, *leaf.shape[1:]), batch)


def _weights(groups: list[Any], parts: int, count: Callable[..., Any] | None) -> jax.Array | None:
    """What each part counts, 1 in the mean; None where all count the same."""
    if count is None and not any(isinstance(target, Weighted) for _, target in groups):
        if len(groups) == 1:
            return None
        sizes = np.concatenate([np.full(leaf.shape[0], leaf.shape[1]) for leaf in map(_first, groups)])
        return jnp.asarray(sizes * parts / sizes.sum())
    counts: list[Any] = [jax.vmap(lambda target: counted(count, target))(target) for _, target in groups]
    every = jnp.concatenate(counts)
    total = jnp.sum(every)
    nothing = total == 0
    return jnp.where(nothing, 1, every * (jnp.asarray(parts, every.dtype) / jnp.where(nothing, 1, total)))


def _first(group: Any) -> Any:
    return jax.tree.leaves(group)[0]


def _times(weight: jax.Array | None, value: jax.Array) -> jax.Array:
    if weight is None:
        return value
    return jnp.where(weight == 0, jnp.zeros((), value.dtype), weight.astype(value.dtype) * value)

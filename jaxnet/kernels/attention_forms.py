"""Softmax attention over blocks of queries and keys, so that no array has the size queries x keys.

With s = q k, p = exp(s - l), and l the logarithm of the sum of exp(s) over the keys that a query sees:

    value     o = sum over keys of p v,  and l
    tangent   o' = sum of p v' + p s' v - l' o,  l' = sum of p s',  s' = q' k + q k'
    adjoint   v* = sum over queries of p o*,  s* = p (o* v + l* - o* o),  q* = sum of s* k,  k* = sum of s* q

Tangent and adjoint recompute p from l. With dropout, each p that meets v, or is met by o*, has a factor that is drawn
block by block. q and o are ``(..., G, T, D)``, k and v ``(..., S, D)``, l is ``(..., G, T, 1)``: G queries share a key.
``limits`` are a mask ``(..., G or 1, T or 1, S)`` and a key for dropout, or None of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._mesh import spread
from jaxnet.kernels.product import solve

NOTHING = -1e30
"""The score of a key that is not seen; far from the ends of float32, so that differences of two are finite."""


class Sight(NamedTuple):
    """Which keys a query sees, beside the mask, and how it is computed.

    Attributes:
      causal: whether key s <= query t alone.
      window: how near a key must be, |t - s| < window; None if any is.
      queries: T.
      keys: S.
      block: how many queries, and keys, are computed at a time.
      rate: the probability that a weight is dropped.
    """

    causal: bool
    window: int | None
    queries: int
    keys: int
    block: int
    rate: float = 0.0

    def seen(self, i: Any, rows: int, j: Any, columns: int) -> jax.Array:
        """Whether each query from i on sees each key from j on."""
        t = i + lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
        s = j + lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
        seen = s < self.keys
        if self.causal:
            seen &= s <= t
        if self.window is not None:
            seen &= s > t - self.window
            seen &= s < t + self.window
        return seen

    def kept(self, key: Any, i: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """The factors of dropout of block i of all, 0 or 1 / (1 - rate); 1 without a key."""
        if key is None:
            return 1
        keep = jax.random.bernoulli(jax.random.fold_in(key, i), jnp.float32(1 - self.rate), shape)
        return keep.astype(dtype) / (1 - self.rate)

    def first(self, i: Any) -> Any:
        """The first block of keys that block i of queries sees any of."""
        if self.window is None:
            return 0 * i
        return jnp.maximum(i * self.block - self.window + 1, 0) // self.block

    def end(self, i: Any) -> Any:
        """The block of keys after the last that block i of queries sees any of."""
        blocks = -(-self.keys // self.block)
        beyond = (i + 1) * self.block  # the query after the block, or what the last in it sees
        if self.causal:
            return jnp.minimum(-(-beyond // self.block), blocks)
        if self.window is None:
            return 0 * i + blocks
        return jnp.minimum(-(-(beyond - 1 + self.window) // self.block), blocks)


def _scores(q: jax.Array, k: jax.Array, see: Any) -> tuple[jax.Array, Any]:
    """Scores, and the factors of dropout; ``see`` gives of their shape and dtype what is seen, and the factors."""
    s = _of_keys(q, k)
    seen, kept = see(s.shape, s.dtype)
    return jnp.where(of_rank(s.ndim, seen), s, jnp.asarray(NOTHING, s.dtype)), kept


# XLA copies the operands of a product that sums over two axes: group and queries are one axis here.


def _of_keys(q: jax.Array, k: jax.Array) -> jax.Array:
    """Each query by each key, (..., G, T, S)."""
    return solve("x", _flat(q), k, k.ndim - 2).reshape(*q.shape[:-1], k.shape[-2])


def _over_keys(p: jax.Array, v: jax.Array) -> jax.Array:
    """Each query's sum over the keys, (..., G, T, D)."""
    return solve("y", _flat(p), v, v.ndim - 2).reshape(*p.shape[:-1], v.shape[-1])


def _over_queries(p: jax.Array, q: jax.Array) -> jax.Array:
    """Each key's sum over the queries, (..., S, D)."""
    return solve("w", _flat(p), _flat(q), p.ndim - 3)


def _flat(a: jax.Array) -> jax.Array:
    return a.reshape(*a.shape[:-3], a.shape[-3] * a.shape[-2], a.shape[-1])


def of_rank(ndim: int, a: jax.Array) -> jax.Array:
    """``a`` with axes of length 1 before its own."""
    return a.reshape((1,) * (ndim - a.ndim) + a.shape)


def begin(q: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    """Maximum, sum and output before any key."""
    column = (*q.shape[:-1], 1)
    maximum, total, o = (jnp.full(column, NOTHING), jnp.zeros(column), jnp.zeros((*q.shape[:-1], v.shape[-1])))
    return tuple(_as(q, a) for a in (maximum, total, o))


def attend(before: Any, q: jax.Array, k: jax.Array, v: jax.Array, see: Any) -> Any:
    """Maximum, sum and output after a block of keys."""
    maximum, total, o = before
    s, kept = _scores(q, k, see)
    higher = jnp.maximum(maximum, s.max(-1, keepdims=True))
    p = jnp.exp(s - higher)
    shrunk = jnp.exp(maximum - higher)
    y = _over_keys(kept * p, v)
    return higher, shrunk * total + p.sum(-1, keepdims=True), shrunk * o + y


def finish(after: Any) -> tuple[jax.Array, jax.Array]:
    """Output and l; of a query that sees nothing 0 and a l so large that p is 0."""
    maximum, total, o = after
    blind = maximum == NOTHING
    total = jnp.where(blind, jnp.ones_like(total), total)
    return jnp.where(blind, jnp.zeros_like(o), o / total), jnp.where(blind, -maximum, maximum + jnp.log(total))


def push(q, k, v, log, see, tq, tk, tv) -> tuple[jax.Array, jax.Array]:
    """What a block of keys adds to o' + l' o and to l'."""
    s, kept = _scores(q, k, see)
    p = jnp.exp(s - log)
    s = p * (_of_keys(tq, k) + _of_keys(q, tk))
    return _over_keys(kept * p, tv) + _over_keys(kept * s, v), s.sum(-1, keepdims=True)


def pull(q, k, v, log, see, co, offset) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block adds to q*, k* and v*; ``offset`` is l* - o* o."""
    s, kept = _scores(q, k, see)
    p = jnp.exp(s - log)
    s = p * (kept * _of_keys(co, v) + offset)
    return _over_keys(s, k), _over_queries(s, q), _over_queries(kept * p, co)


def row_offset(o: jax.Array, co: jax.Array, cl: jax.Array) -> jax.Array:
    """l* - o* o of each query."""
    return cl - jnp.sum(co * o, -1, keepdims=True)


# Few keys: the blocks of queries are written out, each with all keys that it sees at once.


def _rows(sight: Sight, limits: Any):
    """Of each block of queries: where it is, where its keys are, and how it sees them."""
    mask, key = limits
    for start in range(0, sight.queries, sight.block):
        end = min(start + sight.block, sight.queries)
        high = min(end, sight.keys) if sight.causal else sight.keys
        low = 0
        if sight.window is not None:
            low, high = max(0, start - sight.window + 1), min(high, end - 1 + sight.window)
        low = min(low, high)
        seen = sight.seen(start, end - start, low, high - low)
        if mask is not None:
            part = (mask if mask.shape[-2] == 1 else mask[..., start:end, :])[..., low:high]
            seen = of_rank(part.ndim, seen) & part
        yield slice(start, end), slice(low, high), seeing(sight, seen, key, start)


def seeing(sight: Sight, seen: jax.Array, key: Any, number: Any) -> Callable:
    """What block ``number`` of all is asked: what is seen of it, and the factors of dropout, for a shape and dtype."""
    return lambda shape, dtype: (seen, sight.kept(key, number, shape, dtype))


def short_value(sight: Sight, q, k, v, limits):
    """The output and the logarithm of the sums, of few positions: the rows of blocks written one after the other."""
    outputs = []
    for rows, keys, see in _rows(sight, limits):
        q_i = q[..., rows, :]
        if keys.start == keys.stop:
            outputs.append(finish(begin(q_i, v)))
        else:
            outputs.append(finish(attend(begin(q_i, v), q_i, k[..., keys, :], v[..., keys, :], see)))
    return tuple(jnp.concatenate(parts, -2) for parts in zip(*outputs, strict=True))


def short_push(sight: Sight, q, k, v, o, log, tq, tk, tv, limits):
    """The tangents of both in the directions tq, tk, tv, of few positions."""
    outputs = []
    for rows, keys, see in _rows(sight, limits):
        q_i, log_i, tq_i = (a[..., rows, :] for a in (q, log, tq))
        k_j, v_j, tk_j, tv_j = (a[..., keys, :] for a in (k, v, tk, tv))
        o_i, l_i = push(q_i, k_j, v_j, log_i, see, tq_i, tk_j, tv_j)
        outputs.append((o_i - l_i * o[..., rows, :], l_i))
    return tuple(jnp.concatenate(parts, -2) for parts in zip(*outputs, strict=True))


def short_pull(sight: Sight, q, k, v, o, log, co, cl, limits):
    """The cotangents of q, k and v from those of both, co and cl, of few positions."""
    offset = row_offset(o, co, cl)
    cq, ck, cv = [], zeros(k), zeros(v)
    for rows, keys, see in _rows(sight, limits):
        q_i, log_i, co_i, offset_i = (a[..., rows, :] for a in (q, log, co, offset))
        q_i, k_j, v_j = pull(q_i, k[..., keys, :], v[..., keys, :], log_i, see, co_i, offset_i)
        cq.append(q_i)
        ck, cv = ck.at[..., keys, :].add(k_j), cv.at[..., keys, :].add(v_j)
    return jnp.concatenate(cq, -2), ck, cv


def _as(like: jax.Array, a: jax.Array) -> jax.Array:
    """``a`` in the dtype of ``like`` and varying over its mesh axes, as a loop's start must inside shard_map."""
    return spread(a.astype(like.dtype), like)


def zeros(like: jax.Array) -> jax.Array:
    """Of the same shape and dtype, and varying over the same mesh axes."""
    return _as(like, jnp.zeros(like.shape))

"""Attention over many positions: loops over blocks of queries, and of the keys that those see.

The parts, and what they are called, are those of `attention_forms`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet.kernels.attention_forms import Sight, attend, begin, finish, of_rank, pull, push, row_offset, seeing, zeros


def _fill(a: jax.Array, axis: int, block: int) -> jax.Array:
    """Zeros after an axis, up to whole blocks."""
    missing = -a.shape[axis] % block
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, missing)
    return jnp.pad(a, widths) if missing else a


def _blocks(sight: Sight, limits: Any) -> tuple[jax.Array, Callable, Callable]:
    """The numbers of the blocks of queries, how to take a block of rows, and how block i sees block j."""
    n = sight.block
    mask, key = limits
    if mask is not None:
        mask = _fill(mask, -1, n)
        mask = mask if mask.shape[-2] == 1 else _fill(mask, -2, n)

    def take(a, i):
        return lax.dynamic_slice_in_dim(a, i * n, n, axis=a.ndim - 2)

    def see(i, j):
        seen = sight.seen(i * n, n, j * n, n)
        if mask is not None:
            part = mask if mask.shape[-2] == 1 else take(mask, i)
            part = lax.dynamic_slice_in_dim(part, j * n, n, axis=part.ndim - 1)
            seen = of_rank(part.ndim, seen) & part
        return seeing(sight, seen, key, i * -(-sight.keys // n) + j)

    return jnp.arange(-(-sight.queries // n), dtype=jnp.int32), take, see


def _joined(a: jax.Array, length: int) -> jax.Array:
    """Blocks (n, ..., block, D) as (..., length, D)."""
    a = jnp.moveaxis(a, 0, -3)
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])[..., :length, :]


def long_value(sight: Sight, q, k, v, limits):
    """As `short_value`, of many positions: by loops over blocks."""
    q, k, v = (_fill(a, -2, sight.block) for a in (q, k, v))
    numbers, take, see = _blocks(sight, limits)

    def rows(i):
        q_i = take(q, i)

        def step(j, before):
            return attend(before, q_i, take(k, j), take(v, j), see(i, j))

        return finish(lax.fori_loop(sight.first(i), sight.end(i), step, begin(q_i, v)))

    return tuple(_joined(a, sight.queries) for a in lax.map(rows, numbers))


def long_push(sight: Sight, q, k, v, o, log, tq, tk, tv, limits):
    """As `short_push`, by loops over blocks."""
    q, k, v, o, tq, tk, tv = (_fill(a, -2, sight.block) for a in (q, k, v, o, tq, tk, tv))
    log = _fill(log, -2, sight.block)
    numbers, take, see = _blocks(sight, limits)

    def rows(i):
        q_i, o_i, l_i, tq_i = (take(a, i) for a in (q, o, log, tq))

        def step(j, before):
            more = push(q_i, take(k, j), take(v, j), l_i, see(i, j), tq_i, take(tk, j), take(tv, j))
            return tuple(a + b for a, b in zip(before, more, strict=True))

        to, tl = lax.fori_loop(sight.first(i), sight.end(i), step, (zeros(o_i), zeros(l_i)))
        return to - tl * o_i, tl

    return tuple(_joined(a, sight.queries) for a in lax.map(rows, numbers))


def long_pull(sight: Sight, q, k, v, o, log, co, cl, limits):
    """As `short_pull`, by loops over blocks."""
    offset = row_offset(o, co, cl)
    q, k, v, log, co, offset = (_fill(a, -2, sight.block) for a in (q, k, v, log, co, offset))
    numbers, take, see = _blocks(sight, limits)

    def add(a, part, j):
        return lax.dynamic_update_slice_in_dim(a, take(a, j) + part, j * sight.block, axis=a.ndim - 2)

    def rows(keys, i):
        q_i, l_i, co_i, offset_i = (take(a, i) for a in (q, log, co, offset))

        def step(j, before):
            cq, ck, cv = before
            q_ij, k_ij, v_ij = pull(q_i, take(k, j), take(v, j), l_i, see(i, j), co_i, offset_i)
            return cq + q_ij, add(ck, k_ij, j), add(cv, v_ij, j)

        cq, *keys = lax.fori_loop(sight.first(i), sight.end(i), step, (zeros(q_i), *keys))
        return tuple(keys), cq

    (ck, cv), cq = lax.scan(rows, (zeros(k), zeros(v)), numbers)
    return _joined(cq, sight.queries), ck[..., : sight.keys, :], cv[..., : sight.keys, :]


def long_push_by_scans(sight: Sight, q, k, v, o, log, tq, tk, tv, limits):
    """`long_push` as JAX can differentiate it: scans with as many steps always, of which those not seen do nothing."""
    n = sight.block
    numbers, _, see = _blocks(sight, limits)

    def cut(a):
        a = _fill(a, -2, n)
        return jnp.moveaxis(a.reshape(*a.shape[:-2], -1, n, a.shape[-1]), -3, 0)

    keys = (*map(cut, (k, v, tk, tv)), jnp.arange(-(-sight.keys // n), dtype=jnp.int32))

    @jax.checkpoint
    def rows(x):
        q_i, o_i, l_i, tq_i, i = x

        @jax.checkpoint
        def step(before, y):
            k_j, v_j, tk_j, tv_j, j = y

            def more(before):
                parts = push(q_i, k_j, v_j, l_i, see(i, j), tq_i, tk_j, tv_j)
                return tuple(a + b for a, b in zip(before, parts, strict=True))

            visible = (j >= sight.first(i)) & (j < sight.end(i))
            return lax.cond(visible, more, lambda before: before, before), None

        (to, tl), _ = lax.scan(step, (zeros(o_i), zeros(l_i)), keys)
        return to - tl * o_i, tl

    return tuple(_joined(a, sight.queries) for a in lax.map(rows, (*map(cut, (q, o, log, tq)), numbers)))

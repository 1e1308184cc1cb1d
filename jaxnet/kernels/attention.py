"""Softmax attention of queries over keys, in memory that grows with the length and not with its square."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet._mesh import spread
from jaxnet._symbolic import is_symbolic
from jaxnet.errors import ConfigError, DTypeError, ShapeError, named
from jaxnet.kernels import attention_forms as forms
from jaxnet.kernels import attention_loops as loops
from jaxnet.kernels.attention_forms import Sight
from jaxnet.kernels.linear import Linear

FEW = 256
"""Queries and keys (of one length, or as many pairs) that are computed in all heads at once, without a loop."""

FEW_BLOCK = 64
"""How many of those queries are computed at a time, with all keys that they see."""

MANY, MANY_BLOCK = 2048, 128
"""Queries or keys that are computed few heads after the other, and how many of those queries are computed at a time."""

TOGETHER = 2
"""Heads of many that are computed at once: of two cores, each has one."""

LOOP_BLOCK = 256
"""How many queries, and keys, of more than that are computed at a time, in loops over both."""


@named("attention")
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Any = None,
) -> jax.Array:
    """Averages values by how well their keys fit each query: y = softmax(scale q k^T) v, in each head.

    With t over queries and s over the keys that query t sees::

        y[b, t, h] = sum over s of  p[s] v[b, s, h],   p = softmax over s of  scale q[b, t, h] . k[b, s, h]

    Scores and softmax are in float32, or wider if q is. They are computed block by block, and again for the
    derivatives; blocks that nothing is seen of are left out. Beyond 2,048 positions neither the value nor a
    derivative, of any order, keeps an array of the size queries x keys; up to there, second derivatives may, of two
    heads at a time.

    Args:
      q: queries ``(batch, T, heads, D)``, floating point.
      k: keys ``(batch, S, kv_heads, D)``; ``kv_heads`` divides ``heads``, and each of them serves the
        heads / kv_heads heads that follow each other.
      v: values ``(batch, S, kv_heads, D_v)``.
      mask: bool, True for what is seen: ``(batch, S)`` of keys, ``(batch, T, S)``, or ``(batch, heads, T, S)``; 1
        stands for any batch, number of heads and T. A query that sees no key gives 0. What a mask of keys hides may
        hold anything, NaN too.
      causal: whether query t sees keys s <= t alone.
      window: how near keys must be: those with |t - s| < window are seen.
      scale: the factor; 1 / sqrt(D) unless given.
      dropout: the probability that a weight p[s] is dropped, in [0, 1); the others are divided by 1 - dropout.
      key: where dropout's random numbers come from.

    Returns:
      ``(batch, T, heads, D_v)``, of q's dtype.

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: ranks, batches, heads or features that do not fit, or a mask of another shape.
      DTypeError: not floating point, of different dtypes, or a mask that is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import kernels
      >>> q, k = jnp.zeros((1, 3, 1, 2)), jnp.zeros((1, 3, 1, 2))  # all keys fit alike
      >>> kernels.attention(q, k, jnp.array([1.0, 3.0, 5.0]).reshape(1, 3, 1, 1), causal=True)[0, :, 0, 0]
      Array([1., 2., 3.], dtype=float32)

    Source: Vaswani et al. 2017, arXiv 1706.03762; Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022,
    arXiv 2205.14135.
    """
    q, k, v = checks.floating("q", q), checks.floating("k", k), checks.floating("v", v)
    _check(q, k, v)
    checks.flag("causal", causal)
    window = None if window is None else checks.integer("window", window, minimum=1)
    if window is not None and not is_symbolic(q.shape[1]) and window >= max(q.shape[1], k.shape[1]):
        window = None  # all are near
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else checks.number("scale", scale)
    mask = None if mask is None else _full(mask, q, k)
    dropout = checks.number("dropout", dropout, low=0, high=1, open_high=True)
    if dropout and key is None:
        raise ConfigError("dropout draws random numbers and no key came; pass key=jax.random.key(seed)")
    data = jax.random.bits(checks.key(key), (2,), jnp.uint32) if dropout else None
    if 0 in (*q.shape[:-1], *v.shape):
        return jnp.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    if not q.shape[-1]:  # all scores are 0
        q, k = (jnp.zeros((*a.shape[:-1], 1), a.dtype) for a in (q, k))
    sight = Sight(causal, window, q.shape[1], k.shape[1], _block(q.shape[1], k.shape[1]), dropout)
    return _attention(q, k, v, mask, data, sight, scale)


def _block(queries: int, keys: int) -> int:
    if queries * keys <= FEW**2:
        return max(FEW_BLOCK, -(-queries // (FEW // FEW_BLOCK)))
    return MANY_BLOCK if max(queries, keys) <= MANY else LOOP_BLOCK


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    for name, a in (("q", q), ("k", k), ("v", v)):
        checks.rank(name, a, 4, "(batch, length, heads, features)")
    checks.same_dtype(q=q, k=k, v=v)
    shapes = f"(q {q.shape}, k {k.shape}, v {v.shape})"
    if k.shape[:3] != v.shape[:3]:
        raise ShapeError(f"k and v must have one batch, length and number of heads, got {shapes}")
    if q.shape[0] != k.shape[0]:
        raise ShapeError(f"q has a batch of {q.shape[0]}, k and v of {k.shape[0]} {shapes}")
    if q.shape[3] != k.shape[3]:
        raise ShapeError(f"q has {q.shape[3]} features a head, k has {k.shape[3]} {shapes}")
    if is_symbolic(q.shape[1]) or is_symbolic(k.shape[1]):
        raise ShapeError(f"lengths must be numbers, which say how many blocks there are; the batch may be any {shapes}")
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ShapeError(f"the {k.shape[2]} heads of k and v must divide the {q.shape[2]} of q {shapes}")


def _full(mask: Any, q: jax.Array, k: jax.Array) -> jax.Array:
    """The mask as (batch or 1, heads or 1, T or 1, S)."""
    mask = checks.array("mask", mask)
    if mask.dtype != jnp.bool:
        raise DTypeError(f"mask must be bool, True for what is seen, got {mask.dtype}; write mask != 0")
    (batch, queries, heads), keys = q.shape[:3], k.shape[1]
    wanted = {2: (batch, keys), 3: (batch, queries, keys), 4: (batch, heads, queries, keys)}
    fits = mask.ndim in wanted and mask.shape[-1] == keys
    if not fits or any(n not in (1, m) for n, m in zip(mask.shape, wanted[mask.ndim], strict=True)):
        raise ShapeError(
            f"mask must have shape {wanted[2]}, {wanted[3]} or {wanted[4]}, (batch, keys), (batch, queries, keys) or "
            f"(batch, heads, queries, keys), got {mask.shape}; 1 stands for any but the keys"
        )
    return mask.reshape(mask.shape[0], *(1,) * (4 - mask.ndim), *mask.shape[1:])


@functools.partial(jax.jit, static_argnames=("sight", "scale"))
def _attention(q, k, v, mask, key, sight, scale):
    given = [a for a in (q, k, v, mask, key) if a is not None]
    q, k, v, mask, key = jax.tree.map(lambda a: spread(a, *given), (q, k, v, mask, key))
    wide = at_least_float32(q.dtype)
    batch, queries, heads, _ = q.shape
    shared = k.shape[2]
    # (B, T, H, D) -> (B, K, G, T, D), and (B, S, K, D) -> (B, K, S, D)
    q_heads = (q.astype(wide) * scale).reshape(batch, queries, shared, heads // shared, -1).transpose(0, 2, 3, 1, 4)
    k, v = (a.astype(wide).transpose(0, 2, 1, 3) for a in (k, v))
    if mask is not None:
        if mask.shape[1] == mask.shape[2] == 1:  # 0 times what is hidden is 0, also where it is NaN
            hidden = ~mask[:, :, 0, :, None]
            k, v = (jnp.where(hidden, jnp.zeros_like(a), a) for a in (k, v))
        several = shared if mask.shape[1] > 1 else 1
        mask = mask.reshape(mask.shape[0], several, -1, *mask.shape[2:])
    y, _ = _attend(q_heads, k, v, (mask, key), sight)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, -1).astype(q.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _attend(q, k, v, limits, sight):
    """Output and the logarithm of the softmax's sum; ``limits`` are mask and key, or None."""
    return _run(forms.short_value, loops.long_value, sight, (q, k, v), limits)


@_attend.defjvp
def _attend_jvp(sight, primals, tangents):
    q, k, v, limits = primals
    y, log = _attend(q, k, v, limits, sight)
    given, structure = jax.tree.flatten(limits)
    return (y, log), _derivative(sight, structure)((q, k, v, y, log, *given), tuple(tangents[:3]))


@functools.cache
def _derivative(sight: Sight, structure: Any) -> Linear:
    def by(short, long):
        def function(residuals, moving):
            limits = jax.tree.unflatten(structure, residuals[5:])
            return _run(short, long, sight, (*residuals[:5], *moving), limits)

        return function

    return Linear(
        by(forms.short_push, loops.long_push),
        by(forms.short_pull, loops.long_pull),
        by(jax.checkpoint(forms.short_push, static_argnums=0), loops.long_push_by_scans),
    )


def _run(short: Any, long: Any, sight: Sight, arrays: Any, limits: Any) -> Any:
    """Few of all heads at once; many few heads after the other, as a processor's caches want it."""
    mask, key = limits
    key = None if key is None else jax.random.wrap_key_data(key, impl="threefry2x32")
    if sight.queries * sight.keys <= FEW**2:
        return short(sight, *arrays, (mask, key))
    batch, heads = arrays[0].shape[:2]
    form, together = short if max(sight.queries, sight.keys) <= MANY else long, math.gcd(TOGETHER, heads)

    def some(xs):
        *arrays, i = xs
        mine = mask
        if mask is not None:
            at = i * together
            mine = lax.dynamic_index_in_dim(mask, at // heads if mask.shape[0] != 1 else 0, keepdims=False)
            if mask.shape[1] > 1:
                mine = lax.dynamic_slice_in_dim(mine, at % heads, together)
        return form(sight, *arrays, (mine, None if key is None else jax.random.fold_in(key, i)))

    n = batch * heads // together
    each = [a.reshape(n, together, *a.shape[2:]) for a in arrays]
    out = lax.map(some, (*each, jnp.arange(n, dtype=jnp.int32)))
    return tuple(a.reshape(batch, heads, *a.shape[2:]) for a in out)

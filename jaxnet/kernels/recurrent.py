"""LSTM and GRU along a sequence: one product with all inputs, and step by step one with the recurrent kernel.

Reverse mode of a loop over time, as it is usually written, adds the recurrent kernel's gradient up in the loop, over
the whole kernel at each step. Here the derivative is a rule of its own. With G_t what the gates are given,

    dG_t = W' dx_t + dW' x_t + dR' h_{t-1} + R' dh_{t-1},

all terms but the last are known for all t beforehand, by products over all steps. What is left is a system linear in
the states' tangents, which a loop with one product a step solves, forwards; its transpose is solved by a loop backwards
(`jax.lax.custom_linear_solve`), and the gradients of W and R are the transposes of the products. JAX differentiates the
system by its coefficients, again with products over all steps: derivatives of every order and mode are as fast.

In the loops features come before the batch: XLA multiplies a wide kernel by a narrow batch in that order, (4 H, H) with
(H, B), faster than (B, H) with (H, 4 H). It is slow where a product reads the larger factor
transposed: there the transpose is made first, behind a barrier. Of two orders, that of the gradient is the fast one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._mesh import spread
from jaxnet._symbolic import is_below


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    h: jax.Array,
    c: jax.Array,
    mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The hidden states of an LSTM after each step, and the last hidden and cell state.

    With sigmoids of i, f, o and the tanh of g::

        i, f, g, o = x_t W + h_{t-1} R + b;    c_t = f c_{t-1} + i g;    h_t = o tanh(c_t)

    Args:
      x: the inputs, ``(T, B, C)``. All are of one dtype.
      kernel: W, ``(C, 4 H)`` in the order i, f, g, o.
      recurrent_kernel: R, ``(H, 4 H)``.
      bias: b, ``(4 H,)``.
      h: the hidden state before the first step, ``(B, H)``.
      c: the cell state before it.
      mask: booleans ``(T, B)``; where False, both states stay as they were.
      reverse: from the last step to the first.

    Returns:
      All h, ``(T, B, H)``, and the last h and c.
    """
    if is_below(x.shape[0], 1):
        return jnp.zeros((0, *h.shape), x.dtype), (h, c)
    operands = _everywhere(x, kernel, recurrent_kernel, bias, h, c)
    hs, cs, _ = _lstm(*operands, None if mask is None else mask[:, None], reverse)
    last = 0 if reverse else -1
    return hs, (hs[last], cs[last].T)


def gru(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    recurrent_bias: jax.Array,
    h: jax.Array,
    mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The states of a GRU after each step, and the last.

    With sigmoids of r, z and the tanh of n::

        x_r, x_z, x_n = x_t W + b;    p_r, p_z, p_n = h_{t-1} R + b_R
        r, z = x_r + p_r, x_z + p_z;    n = x_n + r p_n;    h_t = (1 - z) n + z h_{t-1}

    Args:
      x: the inputs, ``(T, B, C)``. All are of one dtype.
      kernel: W, ``(C, 3 H)`` in the order r, z, n.
      recurrent_kernel: R, ``(H, 3 H)``.
      bias: b, ``(3 H,)``.
      recurrent_bias: b_R, ``(3 H,)``.
      h: the state before the first step, ``(B, H)``.
      mask: booleans ``(T, B)``; where False, the state stays as it was.
      reverse: from the last step to the first.

    Returns:
      All h, ``(T, B, H)``, and the last.
    """
    if is_below(x.shape[0], 1):
        return jnp.zeros((0, *h.shape), x.dtype), h
    operands = _everywhere(x, kernel, recurrent_kernel, bias, recurrent_bias, h)
    hs, _ = _gru(*operands, None if mask is None else mask[:, None], reverse)
    return hs, hs[0 if reverse else -1]


@jax.custom_jvp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, as one product over all steps."""
    return _plain(x, kernel)


@product.defjvp
def _product_rule(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return product(x, kernel), _plain(dx, kernel) + _of_kernels(x, dkernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(7,))
def _lstm(x, kernel, recurrent_kernel, bias, h, c, kept, reverse):
    """All h (T, B, H), c (T, H, B), and the tanh (T, 4 H, B) from which the gates are made."""
    turned, bias, halves = lax.optimization_barrier(recurrent_kernel.T), bias[:, None], _halves(recurrent_kernel)

    def step(carry, now):
        h, c = carry
        x, kept = now
        bent = jnp.tanh((turned @ h + x.T + bias) * halves)
        i, f, g, o = _lstm_gates(bent)
        c = _where(kept, f * c + i * g, c)
        h = _where(kept, o * jnp.tanh(c), h)
        return (h, c), (h.T, c, bent)

    return lax.scan(step, (h.T, c.T), (product(x, kernel), kept), reverse=reverse)[1]


@_lstm.defjvp
def _lstm_rule(reverse, primals, tangents):
    x, kernel, recurrent_kernel, _, h, c, kept = primals
    dx, dkernel, drecurrent, dbias, dh, dc, _ = tangents
    hs, cs, bent = _lstm(*primals, reverse)
    read, dkernels = jnp.concatenate([x, _before(h, hs, reverse)], -1), jnp.concatenate([dkernel, drecurrent])
    given = _plain(dx, kernel) + _of_kernels(read, dkernels) + dbias[None, None]
    first = recurrent_kernel.T @ dh.T
    given = _turned(given) + _at_first(first, x.shape[0], reverse)
    slopes = _lstm_slopes(bent, cs, _before(c.T, cs, reverse), kept)
    through, _, forget, stays = slopes
    di, df, dg, do = jnp.split(through * given, 4, -2)
    b_h = do if stays is None else do + stays * _at_first(dh.T, x.shape[0], reverse)
    b_c = di + df + dg + forget * _at_first(dc.T, x.shape[0], reverse)
    dhs, dcs = _lstm_linear(recurrent_kernel, slopes, b_h, b_c, reverse)
    dgates = given + _recur(recurrent_kernel, dhs, reverse)
    return (hs, cs, bent), (_turned(dhs), dcs, (1 - bent * bent) * _halves(recurrent_kernel)[None] * dgates)


def _lstm_gates(bent):
    """i, f, g, o of the tanh of i / 2, f / 2, g, o / 2: a sigmoid is (1 + tanh(x / 2)) / 2, and one loop makes all."""
    i, f, g, o = jnp.split(bent, 4, -2)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


def _lstm_slopes(bent, c, before, kept):
    """From what i, f, g are given to c, and o to h; from c to h; from the c before to c; from the h before to h."""
    i, f, g, o = _lstm_gates(bent)
    shown = jnp.tanh(c)
    through = jnp.concatenate([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g), shown * o * (1 - o)], -2)
    if kept is None:
        return through, o * (1 - shown * shown), f, None
    zero, one = jnp.zeros((), c.dtype), jnp.ones((), c.dtype)
    show = jnp.where(kept, o * (1 - shown * shown), zero)
    return jnp.where(kept, through, zero), show, jnp.where(kept, f, one), jnp.where(kept, zero, one)


def _lstm_linear(kernel, slopes, b_h, b_c, reverse):
    """Solves, with the slopes K, S, F, N of `_lstm_slopes`, and A_t = K_t (R' dh_{t-1}) cut in four:

    dc_t = b_c + F_t dc_{t-1} + A_i + A_f + A_g;    dh_t = b_h + S_t dc_t + A_o + N_t dh_{t-1}.
    """

    def residual(unknown):
        (dh, dc), (through, show, forget, stays) = unknown, slopes
        i, f, g, o = jnp.split(through * _recur(kernel, dh, reverse), 4, -2)
        back_h, back_c = (_before(jnp.zeros_like(v[0]), v, reverse) for v in unknown)
        stay = 0 if stays is None else stays * back_h
        return dh - show * dc - o - stay, dc - forget * back_c - i - f - g

    def solve(_, b):
        turned = lax.optimization_barrier(kernel.T)

        def step(carry, now):
            dh, dc = carry
            (b_h, b_c), (through, show, forget, stays) = now
            i, f, g, o = jnp.split(through * (turned @ dh), 4, -2)
            dc = b_c + forget * dc + i + f + g
            dh = b_h + show * dc + o + (0 if stays is None else stays * dh)
            return (dh, dc), (dh, dc)

        return lax.scan(step, (jnp.zeros_like(b[0][0]),) * 2, (b, slopes), reverse=reverse)[1]

    def transposed(_, b):
        def step(carry, now):
            from_h, from_c = carry
            (b_h, b_c), (through, show, forget, stays) = now
            h = b_h + from_h
            c = b_c + from_c + show * h
            parts = through.reshape(4, *h.shape)
            is_o = lax.broadcasted_iota(jnp.int32, parts.shape, 0) == 3  # in a loop faster than to concatenate
            to_gates = (parts * jnp.where(is_o, h[None], c[None])).reshape(through.shape)
            from_h = kernel @ to_gates + (0 if stays is None else stays * h)
            return (from_h, forget * c), (h, c)

        return lax.scan(step, (jnp.zeros_like(b[0][0]),) * 2, (b, slopes), reverse=not reverse)[1]

    return lax.custom_linear_solve(residual, (b_h, b_c), solve, transposed)


@functools.partial(jax.custom_jvp, nondiff_argnums=(7,))
def _gru(x, kernel, recurrent_kernel, bias, recurrent_bias, h, kept, reverse):
    """All h (T, B, H), and the gates: the tanh (T, 2 H, B) from which r and z are made, n and p_n."""
    turned = lax.optimization_barrier(recurrent_kernel.T)
    bias, recurrent_bias, two = bias[:, None], recurrent_bias[:, None], 2 * h.shape[1]

    def step(h, now):
        x, kept = now
        x, p = x.T + bias, turned @ h + recurrent_bias
        bent = jnp.tanh(0.5 * (x[:two] + p[:two]))
        r, z = jnp.split(0.5 * bent + 0.5, 2)
        n = jnp.tanh(x[two:] + r * p[two:])
        h = _where(kept, n + z * (h - n), h)
        return h, (h.T, (bent, n, p[two:]))

    return lax.scan(step, h.T, (product(x, kernel), kept), reverse=reverse)[1]


@_gru.defjvp
def _gru_rule(reverse, primals, tangents):
    x, kernel, recurrent_kernel, _, _, h, kept = primals
    dx, dkernel, drecurrent, dbias, drecurrent_bias, dh, _ = tangents
    hs, gates = _gru(*primals, reverse)
    (bent, n, p_n), before = gates, _before(h, hs, reverse)
    r, z = jnp.split(0.5 * bent + 0.5, 2, -2)
    two = 2 * h.shape[1]
    dx = _plain(dx, kernel) + _of_kernels(x, dkernel) + dbias[None, None]
    dx_rz, of_x = jnp.split(_turned(dx), [two], -2)
    given = _turned(_of_kernels(before, drecurrent) + drecurrent_bias[None, None])
    given = given + jnp.pad(dx_rz, [(0, 0), (0, h.shape[1]), (0, 0)])
    given = given + _at_first(recurrent_kernel.T @ dh.T, x.shape[0], reverse)

    slope, wanted = 1 - n * n, (1 - z) * (1 - n * n)
    through = jnp.concatenate([wanted * p_n * r * (1 - r), (_turned(before) - n) * z * (1 - z), wanted * r], -2)
    keep = z
    if kept is not None:
        zero = jnp.zeros((), n.dtype)
        through, wanted, keep = (jnp.where(kept, v, w) for v, w in ((through, zero), (wanted, zero), (z, zero + 1)))
    dr, dz, dn = jnp.split(through * given, 3, -2)
    b = dr + dz + dn + wanted * of_x + keep * _at_first(dh.T, x.shape[0], reverse)
    dhs = _gru_linear(recurrent_kernel, (through, keep), b, reverse)
    dp = given + _recur(recurrent_kernel, dhs, reverse)
    dbent = 0.5 * (1 - bent * bent) * dp[:, :two]
    dr = 0.5 * jnp.split(dbent, 2, -2)[0]
    dn = slope * (of_x + dr * p_n + r * dp[:, two:])
    return (hs, gates), (_turned(dhs), (dbent, dn, dp[:, two:]))


def _gru_linear(kernel, slopes, b, reverse):
    """Solves dh_t = b_t + Z_t dh_{t-1} + all three of K_t (R' dh_{t-1}), where K and Z are the slopes."""

    def residual(dh):
        through, keep = slopes
        r, z, n = jnp.split(through * _recur(kernel, dh, reverse), 3, -2)
        return dh - keep * _before(jnp.zeros_like(dh[0]), dh, reverse) - r - z - n

    def solve(_, b):
        turned = lax.optimization_barrier(kernel.T)

        def step(dh, now):
            b, (through, keep) = now
            r, z, n = jnp.split(through * (turned @ dh), 3, -2)
            dh = b + keep * dh + r + z + n
            return dh, dh

        return lax.scan(step, jnp.zeros_like(b[0]), (b, slopes), reverse=reverse)[1]

    def transposed(_, b):
        def step(from_h, now):
            b, (through, keep) = now
            h = b + from_h
            to_gates = (through.reshape(3, *h.shape) * h[None]).reshape(through.shape)
            return kernel @ to_gates + keep * h, h

        return lax.scan(step, jnp.zeros_like(b[0]), (b, slopes), reverse=not reverse)[1]

    return lax.custom_linear_solve(residual, b, solve, transposed)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _of_kernels(x: jax.Array, dkernel: jax.Array) -> jax.Array:
    """x @ dkernel over all steps, of which the transpose by dkernel is a plain product."""
    turned = lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    rows = lax.dot_general(turned, dkernel, (((0,), (0,)), ((), ())))
    return rows.reshape(*x.shape[:-1], dkernel.shape[-1])


def _recur(kernel: jax.Array, dhs: jax.Array, reverse: bool) -> jax.Array:
    """R' dh_{t-1} of all steps, (T, G, B), from 0."""
    return jnp.moveaxis(jnp.tensordot(kernel, _before(jnp.zeros_like(dhs[0]), dhs, reverse), ((0,), (1,))), 0, 1)


def _before(start: jax.Array, values: jax.Array, reverse: bool) -> jax.Array:
    """The values that each step began with."""
    return jnp.concatenate([values[1:], start[None]] if reverse else [start[None], values[:-1]])


def _at_first(value: jax.Array, steps: int, reverse: bool) -> jax.Array:
    """The value at the first step that is taken, and 0 at the others."""
    return jnp.pad(value[None], [(steps - 1, 0) if reverse else (0, steps - 1), (0, 0), (0, 0)])


def _halves(kernel: jax.Array) -> jax.Array:
    """What the gates i, f, g, o are multiplied by before their tanh, a column."""
    half, one = jnp.full((len(kernel), 1), 0.5, kernel.dtype), jnp.ones((len(kernel), 1), kernel.dtype)
    return jnp.concatenate([half, half, one, half])


def _turned(values: jax.Array) -> jax.Array:
    return jnp.swapaxes(values, -1, -2)


def _where(kept: jax.Array | None, new: jax.Array, old: Any) -> jax.Array:
    return new if kept is None else jnp.where(kept, new, old)


def _everywhere(*values: jax.Array) -> tuple[jax.Array, ...]:
    """The values, inside shard_map, as varying over the mesh axes over which any of them does."""
    return tuple(spread(value, *values) for value in values)

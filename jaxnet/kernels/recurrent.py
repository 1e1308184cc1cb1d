"""What of an LSTM and a GRU runs step by step: one product with the recurrent kernel a step, and the gates.

Reverse mode of a loop over time, as it is usually written, adds the recurrent kernel's gradient up in the loop, over
the whole kernel at each step. Here the derivative is a rule of its own. With G_t what the gates are given,

    dG_t = dX_t + dW' h_{t-1} + W' dh_{t-1},

the first two terms are known for all t beforehand, one product over all steps. What is left is a system linear in the
states' tangents, which a loop with one product a step solves, forwards; its transpose is solved by a loop backwards
(`jax.lax.custom_linear_solve`), and the gradient of W is the transpose of the one product. JAX differentiates it
by its coefficients, again with products over all steps: derivatives of every order and mode are as fast.

Inside, features come before the batch: XLA multiplies a wide kernel by a narrow batch in that order, (4 H, H) with
(H, B), in two thirds of the time of (B, H) with (H, 4 H), and slowly where the kernel would have to be read transposed:
so that is made once, before the loop.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._mesh import varying


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    h: jax.Array,
    c: jax.Array,
    mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The LSTM's recurrence: its hidden states after each step, and the last hidden and cell state.

    With sigmoids of i, f, o and the tanh of g::

        i, f, g, o = x_t + h_{t-1} W + b;    c_t = f c_{t-1} + i g;    h_t = o tanh(c_t)

    Args:
      x: what the inputs give to the gates, ``(T, B, 4 H)`` in the order i, f, g, o. All are of one dtype.
      kernel: W, ``(H, 4 H)``.
      bias: b, ``(4 H,)``.
      h: the hidden state before the first step, ``(B, H)``.
      c: the cell state before it.
      mask: booleans ``(T, B)``; where False, both states stay as they were.
      reverse: from the last step to the first.

    Returns:
      All h, ``(T, B, H)``, and the last h and c.
    """
    if not len(x):
        return x[..., : h.shape[-1]], (h, c)
    operands = _everywhere(x, kernel, bias, h.T, c.T)
    hs, cs, _ = _lstm(*operands, _row(mask), reverse)
    last = 0 if reverse else -1
    return _turned(hs), (hs[last].T, cs[last].T)


def gru(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    h: jax.Array,
    mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The GRU's recurrence: its states after each step, and the last.

    With sigmoids of r, z and the tanh of n::

        p_r, p_z, p_n = h_{t-1} W + b;    r, z = x_r + p_r, x_z + p_z;    n = x_n + r p_n
        h_t = (1 - z) n + z h_{t-1}

    Args:
      x: what the inputs give to the gates, ``(T, B, 3 H)`` in the order r, z, n. All are of one dtype.
      kernel: W, ``(H, 3 H)``.
      bias: b, ``(3 H,)``.
      h: the state before the first step, ``(B, H)``.
      mask: booleans ``(T, B)``; where False, the state stays as it was.
      reverse: from the last step to the first.

    Returns:
      All h, ``(T, B, H)``, and the last.
    """
    if not len(x):
        return x[..., : h.shape[-1]], h
    operands = _everywhere(x, kernel, bias, h.T)
    hs, _ = _gru(*operands, _row(mask), reverse)
    return _turned(hs), hs[0 if reverse else -1].T


@jax.custom_jvp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel of many rows, whose kernel gradient XLA does not read transposed."""
    return x @ kernel


@product.defjvp
def _product_rule(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return product(x, kernel), product(dx, kernel) + _columns_product(x.T, dkernel)


def _columns_product(columns: jax.Array, kernel: jax.Array) -> jax.Array:
    """(I, N) and (I, O) to (N, O); its transpose, the kernel's gradient, is a plain product, of (I, N) and (N, O)."""
    return lax.dot_general(lax.optimization_barrier(columns), kernel, (((0,), (0,)), ((), ())))


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def _lstm(x, kernel, bias, h, c, kept, reverse):
    """All h, c (T, H, B), and the tanh (T, 4 H, B) from which the gates are made."""
    turned, bias, halves = lax.optimization_barrier(kernel.T), bias[:, None], _halves(kernel)

    def step(carry, now):
        h, c = carry
        x, kept = now
        bent = jnp.tanh((turned @ h + x.T + bias) * halves)
        i, f, g, o = _lstm_gates(bent)
        c = _where(kept, f * c + i * g, c)
        h = _where(kept, o * jnp.tanh(c), h)
        return (h, c), (h, c, bent)

    return lax.scan(step, (h, c), (x, kept), reverse=reverse)[1]


@_lstm.defjvp
def _lstm_rule(reverse, primals, tangents):
    x, kernel, bias, h, c, kept = primals
    dx, dkernel, dbias, dh, dc, _ = tangents
    hs, cs, bent = _lstm(x, kernel, bias, h, c, kept, reverse)
    known = (bent, cs, _before(c, cs, reverse), kept)
    given = _given(dx, dkernel, dbias, _before(h, hs, reverse)) + _first(kernel.T @ dh, len(x), reverse)
    through, _, forget, stays = _lstm_slopes(*known)
    di, df, dg, do = _split(through * given, 4)
    dhs, dcs = _lstm_linear(
        kernel,
        known,
        do + (0 if stays is None else stays * _first(dh, len(x), reverse)),
        di + df + dg + forget * _first(dc, len(x), reverse),
        reverse,
    )
    dgates = given + _recur(kernel, dhs, reverse)
    return (hs, cs, bent), (dhs, dcs, (1 - bent * bent) * _halves(kernel) * dgates)


def _lstm_gates(bent):
    """i, f, g, o of the tanh of i / 2, f / 2, g, o / 2: a sigmoid is (1 + tanh(x / 2)) / 2, and one loop makes all."""
    i, f, g, o = _split(bent, 4)
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


def _lstm_linear(kernel, known, b_h, b_c, reverse):
    """Solves, with the slopes K, S, F, N of `_lstm_slopes`, and A_t = K_t (W' dh_{t-1}) cut in four:

    dc_t = b_c + F_t dc_{t-1} + A_i + A_f + A_g;    dh_t = b_h + S_t dc_t + A_o + N_t dh_{t-1}.
    """

    def residual(unknown):
        dh, dc = unknown
        through, show, forget, stays = _lstm_slopes(*known)
        i, f, g, o = _split(through * _recur(kernel, dh, reverse), 4)
        back_h, back_c = (_before(jnp.zeros_like(v[0]), v, reverse) for v in unknown)
        stay = 0 if stays is None else stays * back_h
        return dh - show * dc - o - stay, dc - forget * back_c - i - f - g

    def solve(_, b):
        turned = lax.optimization_barrier(kernel.T)

        def step(carry, now):
            dh, dc = carry
            (b_h, b_c), known = now
            through, show, forget, stays = _lstm_slopes(*known)
            i, f, g, o = _split(through * (turned @ dh), 4)
            dc = b_c + forget * dc + i + f + g
            dh = b_h + show * dc + o + (0 if stays is None else stays * dh)
            return (dh, dc), (dh, dc)

        return lax.scan(step, (jnp.zeros_like(b[0][0]),) * 2, (b, known), reverse=reverse)[1]

    def transposed(_, b):
        def step(carry, now):
            from_h, from_c = carry
            (b_h, b_c), known = now
            through, show, forget, stays = _lstm_slopes(*known)
            h = b_h + from_h
            c = b_c + from_c + show * h
            from_h = kernel @ (through * jnp.concatenate([c, c, c, h], -2)) + (0 if stays is None else stays * h)
            return (from_h, forget * c), (h, c)

        return lax.scan(step, (jnp.zeros_like(b[0][0]),) * 2, (b, known), reverse=not reverse)[1]

    return lax.custom_linear_solve(residual, (b_h, b_c), solve, transposed)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _gru(x, kernel, bias, h, kept, reverse):
    """All h (T, H, B), and the gates: the tanh (T, 2 H, B) from which r and z are made, n and p_n."""
    turned, bias = lax.optimization_barrier(kernel.T), bias[:, None]
    two = 2 * len(h)

    def step(h, now):
        x, kept = now
        x, p = x.T, turned @ h + bias
        bent = jnp.tanh(0.5 * (x[:two] + p[:two]))
        r, z = _split(0.5 * bent + 0.5, 2)
        n = jnp.tanh(x[two:] + r * p[two:])
        h = _where(kept, n + z * (h - n), h)
        return h, (h, (bent, n, p[two:]))

    return lax.scan(step, h, (x, kept), reverse=reverse)[1]


@_gru.defjvp
def _gru_rule(reverse, primals, tangents):
    x, kernel, bias, h, kept = primals
    dx, dkernel, dbias, dh, _ = tangents
    hs, gates = _gru(x, kernel, bias, h, kept, reverse)
    before, (bent, n, p_n) = _before(h, hs, reverse), gates
    known = (gates, before, kept)
    two = 2 * len(h)
    dx_rz, dx_n = jnp.split(dx, [two], -1)
    of_p = jnp.pad(dx_rz, [(0, 0), (0, 0), (0, len(h))])
    given = _given(of_p, dkernel, dbias, before) + _first(kernel.T @ dh, len(x), reverse)
    dx_n = _turned(dx_n)
    through, new, keep = _gru_slopes(*known)
    dr, dz, dn = _split(through * given, 3)
    dhs = _gru_linear(kernel, known, dr + dz + dn + new * dx_n + keep * _first(dh, len(x), reverse), reverse)
    dp = given + _recur(kernel, dhs, reverse)
    dbent = 0.5 * (1 - bent * bent) * dp[:, :two]
    r, dr = _split(0.5 * bent + 0.5, 2)[0], 0.5 * _split(dbent, 2)[0]
    dn = (1 - n * n) * (dx_n + dr * p_n + r * dp[:, two:])
    return (hs, gates), (dhs, (dbent, dn, dp[:, two:]))


def _gru_slopes(gates, before, kept):
    """Of p and of x_n to h, and of the h before to h by z alone."""
    bent, n, p_n = gates
    r, z = _split(0.5 * bent + 0.5, 2)
    new = (1 - z) * (1 - n * n)
    through = jnp.concatenate([new * p_n * r * (1 - r), (before - n) * z * (1 - z), new * r], -2)
    if kept is None:
        return through, new, z
    zero, one = jnp.zeros((), n.dtype), jnp.ones((), n.dtype)
    return jnp.where(kept, through, zero), jnp.where(kept, new, zero), jnp.where(kept, z, one)


def _gru_linear(kernel, known, b, reverse):
    """Solves, with the slopes K, Z of `_gru_slopes`, dh_t = b_t + Z_t dh_{t-1} + all three of K_t (W' dh_{t-1})."""

    def residual(dh):
        through, _, keep = _gru_slopes(*known)
        r, z, n = _split(through * _recur(kernel, dh, reverse), 3)
        return dh - keep * _before(jnp.zeros_like(dh[0]), dh, reverse) - r - z - n

    def solve(_, b):
        turned = lax.optimization_barrier(kernel.T)

        def step(dh, now):
            b, known = now
            through, _, keep = _gru_slopes(*known)
            r, z, n = _split(through * (turned @ dh), 3)
            dh = b + keep * dh + r + z + n
            return dh, dh

        return lax.scan(step, jnp.zeros_like(b[0]), (b, known), reverse=reverse)[1]

    def transposed(_, b):
        def step(from_h, now):
            b, known = now
            through, _, keep = _gru_slopes(*known)
            h = b + from_h
            return kernel @ (through * jnp.concatenate([h, h, h], -2)) + keep * h, h

        return lax.scan(step, jnp.zeros_like(b[0]), (b, known), reverse=not reverse)[1]

    return lax.custom_linear_solve(residual, b, solve, transposed)


def _given(dx: jax.Array, dkernel: jax.Array, dbias: jax.Array, before: jax.Array) -> jax.Array:
    """dX_t + dW' h_{t-1} + db of all steps, (T, G, B), from dx (T, B, G)."""
    steps, units, batch = before.shape
    columns = jnp.moveaxis(before, 1, 0).reshape(units, steps * batch)
    return _turned(dx + _columns_product(columns, dkernel).reshape(steps, batch, -1) + dbias[None, None])


def _recur(kernel: jax.Array, dhs: jax.Array, reverse: bool) -> jax.Array:
    """W' dh_{t-1} of all steps, from 0."""
    return jnp.moveaxis(jnp.tensordot(kernel, _before(jnp.zeros_like(dhs[0]), dhs, reverse), ((0,), (1,))), 0, 1)


def _before(start: jax.Array, values: jax.Array, reverse: bool) -> jax.Array:
    """The values that each step began with."""
    return jnp.concatenate([values[1:], start[None]] if reverse else [start[None], values[:-1]])


def _first(value: jax.Array, steps: int, reverse: bool) -> jax.Array:
    """The value at the first step that is taken, and 0 at the others."""
    return jnp.pad(value[None], [(steps - 1, 0) if reverse else (0, steps - 1), (0, 0), (0, 0)])


def _halves(kernel: jax.Array) -> jax.Array:
    """What the gates i, f, g, o are multiplied by before their tanh, a column."""
    half, one = jnp.full((len(kernel), 1), 0.5, kernel.dtype), jnp.ones((len(kernel), 1), kernel.dtype)
    return jnp.concatenate([half, half, one, half])


def _split(values: jax.Array, n: int) -> list[jax.Array]:
    return jnp.split(values, n, -2)


def _turned(values: jax.Array) -> jax.Array:
    return jnp.swapaxes(values, -1, -2)


def _row(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask[:, None]


def _where(kept: jax.Array | None, new: jax.Array, old: Any) -> jax.Array:
    return new if kept is None else jnp.where(kept, new, old)


def _everywhere(*values: jax.Array) -> tuple[jax.Array, ...]:
    """The values, inside shard_map, as varying over the mesh axes over which any of them does."""
    every = frozenset().union(*map(varying, values))
    return tuple(lax.pcast(v, tuple(every - varying(v)), to="varying") if every - varying(v) else v for v in values)

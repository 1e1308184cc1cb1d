"""What of an LSTM and a GRU runs step by step: one product with the recurrent kernel a step, and the gates.

XLA compiles one loop over time for each. In a loop over time as it is usually written, reverse mode adds the recurrent
kernel's gradient up step by step, over the whole kernel each time. Here the derivative is a function of its own:

    dG_t = dX_t + h_{t-1} dW + dh_{t-1} W,

of which the first two terms are known for all t beforehand, one product over all steps; what is left is a recurrence
linear in them, whose coefficients are computed for all steps at once. Its transpose, which JAX makes, runs backwards
with one product a step, and dW is the transpose of the one product. The rule is made of JAX's own operations and of the
function itself, so derivatives of every order and mode follow.

Arrays are time-major, ``(T, B, ...)``; all are of one dtype, of at least 32 bits.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet._mesh import varying


def lstm(
    x: jax.Array, kernel: jax.Array, h: jax.Array, c: jax.Array, mask: jax.Array | None = None, *, reverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The LSTM's recurrence: its hidden states and cell states after each step.

    With sigmoids of i, f, o and the tanh of g::

        i, f, g, o = x_t + h_{t-1} W;    c_t = f c_{t-1} + i g;    h_t = o tanh(c_t)

    Args:
      x: what the inputs give to the gates, and the biases, ``(T, B, 4 H)`` in the order i, f, g, o.
      kernel: W, ``(H, 4 H)``.
      h: the hidden state before the first step, ``(B, H)``.
      c: the cell state before it.
      mask: booleans ``(T, B)``; where False, both states stay as they were.
      reverse: from the last step to the first.

    Returns:
      All h and all c, each ``(T, B, H)``.
    """
    x, kernel, h, c = _everywhere(x, kernel, h, c)
    return _lstm(x, kernel, h, c, mask, reverse)[:2]


def gru(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    h: jax.Array,
    mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> jax.Array:
    """The GRU's recurrence: its hidden states after each step.

    With sigmoids of r, z and the tanh of n::

        p_r, p_z, p_n = h_{t-1} W + b;    r, z = x_r + p_r, x_z + p_z;    n = x_n + r p_n
        h_t = (1 - z) n + z h_{t-1}

    Args:
      x: what the inputs give to the gates, ``(T, B, 3 H)`` in the order r, z, n.
      kernel: W, ``(H, 3 H)``.
      bias: b, ``(3 H,)``.
      h: the state before the first step, ``(B, H)``.
      mask: booleans ``(T, B)``; where False, the state stays as it was.
      reverse: from the last step to the first.

    Returns:
      All h, ``(T, B, H)``.
    """
    x, kernel, bias, h = _everywhere(x, kernel, bias, h)
    return _gru(x, kernel, bias, h, mask, reverse)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _lstm(x, kernel, h, c, mask, reverse):
    """All h, c and gates after their sigmoids and tanh."""

    def step(carry, now):
        h, c = carry
        x, kept = now
        i, f, g, o = jnp.split(x + h @ kernel, 4, -1)
        i, f, g, o = lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)
        c = _where(kept, f * c + i * g, c)
        h = _where(kept, o * jnp.tanh(c), h)
        return (h, c), (h, c, jnp.concatenate([i, f, g, o], -1))

    return lax.scan(step, (h, c), (x, _column(mask)), reverse=reverse)[1]


@_lstm.defjvp
def _lstm_rule(reverse, primals, tangents):
    x, kernel, h, c, mask = primals
    dx, dkernel, dh, dc, _ = tangents
    hs, cs, gates = _lstm(x, kernel, h, c, mask, reverse)
    i, f, g, o = jnp.split(gates, 4, -1)
    bent, kept = jnp.tanh(cs), _column(mask)
    slopes = jnp.concatenate([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], -1)
    factors = jnp.concatenate([g, _before(c, cs, reverse), i, bent], -1)
    through = _masked(kept, slopes * factors)
    given = dx + _product(_before(h, hs, reverse), dkernel)

    def step(carry, now):
        dh, dc = carry
        given, through, forget, out, kept = now
        di, df, dg, do = jnp.split(through * (given + dh @ kernel), 4, -1)
        dc = forget * dc + di + df + dg
        dh = _where(kept, out * dc + do, dh)
        return (dh, dc), (dh, dc)

    along = (given, through, _where(kept, f, 1), o * (1 - bent * bent), kept)
    dhs, dcs = lax.scan(step, (dh, dc), along, reverse=reverse)[1]
    dgates = slopes * (given + _product(_before(dh, dhs, reverse), kernel))
    return (hs, cs, gates), (dhs, dcs, dgates)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _gru(x, kernel, bias, h, mask, reverse):
    """All h, and r, z, n and p_n."""

    def step(h, now):
        x, kept = now
        p = h @ kernel + bias[None]
        (x_r, x_z, x_n), (p_r, p_z, p_n) = jnp.split(x, 3, -1), jnp.split(p, 3, -1)
        r, z = lax.logistic(x_r + p_r), lax.logistic(x_z + p_z)
        n = jnp.tanh(x_n + r * p_n)
        h = _where(kept, (1 - z) * n + z * h, h)
        return h, (h, jnp.concatenate([r, z, n, p_n], -1))

    return lax.scan(step, h, (x, _column(mask)), reverse=reverse)[1]


@_gru.defjvp
def _gru_rule(reverse, primals, tangents):
    x, kernel, bias, h, mask = primals
    dx, dkernel, dbias, dh, _ = tangents
    hs, gates = _gru(x, kernel, bias, h, mask, reverse)
    r, z, n, p_n = jnp.split(gates, 4, -1)
    before, kept = _before(h, hs, reverse), _column(mask)
    dx_rz, dx_n = jnp.split(dx, [2 * kernel.shape[0]], -1)
    to_r, to_z, to_n = r * (1 - r), z * (1 - z), 1 - n * n
    given = _product(before, dkernel) + dbias[None, None] + jnp.pad(dx_rz, [(0, 0), (0, 0), (0, kernel.shape[0])])
    new = _masked(kept, (1 - z) * to_n)
    through = jnp.concatenate([new * p_n * to_r, _masked(kept, (before - n) * to_z), new * r], -1)

    def step(dh, now):
        given, through, keep, new = now
        dr, dz, dn = jnp.split(through * (given + dh @ kernel), 3, -1)
        dh = keep * dh + dr + dz + dn + new
        return dh, dh

    along = (given, through, _where(kept, z, 1), new * dx_n)
    dhs = lax.scan(step, dh, along, reverse=reverse)[1]
    dr, dz, dp_n = jnp.split(given + _product(_before(dh, dhs, reverse), kernel), 3, -1)
    dr, dz = to_r * dr, to_z * dz
    return (hs, gates), (dhs, jnp.concatenate([dr, dz, to_n * (dx_n + dr * p_n + r * dp_n), dp_n], -1))


def _product(a: jax.Array, kernel: jax.Array) -> jax.Array:
    """a @ kernel, as one matrix product over all steps."""
    return (a.reshape(-1, a.shape[-1]) @ kernel).reshape(*a.shape[:-1], kernel.shape[-1])


def _before(start: jax.Array, values: jax.Array, reverse: bool) -> jax.Array:
    """The values that each step began with."""
    if reverse:
        return jnp.concatenate([values[1:], start[None]])[: len(values)]
    return jnp.concatenate([start[None], values[:-1]])[: len(values)]


def _column(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask[..., None]


def _where(kept: jax.Array | None, new: jax.Array, old: Any) -> jax.Array:
    return new if kept is None else jnp.where(kept, new, jnp.asarray(old, new.dtype))


def _masked(kept: jax.Array | None, values: jax.Array) -> jax.Array:
    return _where(kept, values, 0)


def _everywhere(*values: jax.Array) -> tuple[jax.Array, ...]:
    """The values, inside shard_map, as varying over the mesh axes over which any of them does."""
    every = frozenset().union(*map(varying, values))
    return tuple(lax.pcast(v, tuple(every - varying(v)), to="varying") if every - varying(v) else v for v in values)

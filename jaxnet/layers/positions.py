"""Positions: what tells a network that adds up over a sequence where in it a vector stands."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import initializers
from jaxnet._dtypes import at_least_float32
from jaxnet._made import made
from jaxnet._symbolic import is_symbolic
from jaxnet.errors import ConfigError, DataError, ShapeError
from jaxnet.initializers import Initializer
from jaxnet.layers.layer import Layer, Stream, stateless


@made
def positions(
    entries: int | None = None,
    *,
    base: float = 10000.0,
    table_init: Initializer = initializers.normal(0.02),  # noqa: B008, a pure function
) -> Layer:
    """Adds to each vector of a sequence one for its position t from 0: y[b, t] = x[b, t] + p[t].

    Without ``entries`` these are fixed waves of many lengths, with C channels::

        p[t, 2 i] = sin(t / base^(2 i / C)),    p[t, 2 i + 1] = cos(t / base^(2 i / C))

    and with ``entries`` they are learned, the rows of a table.

    Args:
      entries: for how many positions one is learned; None learns none.
      base: of the fixed ones; the longest wave is about 2 pi base long.
      table_init: ``f(key, shape, dtype)`` for the learned ones.

    Returns:
      A layer that keeps the shape (batch, time, channels), with, if they are learned, the param ``table`` of shape
      (entries, channels). Of a tuple it adds to the first array, and hands on the others.

    Raises:
      ConfigError: a hyperparameter out of range.
      ShapeError: another rank, an odd number of channels for fixed positions, or a sequence longer than ``entries``.
      DTypeError: x is not floating point, or of another dtype than the table.
      DataError: a stream that has gone on for longer than ``entries``; inside ``jit`` the piece
        that goes beyond is NaN, all of it, and so is what follows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> y, _ = layers.positions().apply((), (), jnp.zeros((1, 2, 4)), train=False)
      >>> [[f"{value:.2f}" for value in row] for row in y[0]]
      [['0.00', '1.00', '0.00', '1.00'], ['0.84', '0.54', '0.01', '1.00']]

    Source: Vaswani et al. 2017, arXiv 1706.03762; learned: Gehring et al. 2017, arXiv 1705.03122.
    """
    entries = None if entries is None else checks.integer("entries", entries, minimum=1)
    base = checks.number("base", base, low=1, open_low=True)
    checks.function("table_init", table_init)

    def init(key, x):
        x = checks.floating_struct(first(x))
        channels = _channels(x, entries is None)
        if entries is None:
            return ()
        shape = (entries, channels)
        return {"table": initializers.draw(table_init, key, shape, x.dtype, (entries, channels))}

    def add(params, x, start):
        x, rest = first(x), others(x)
        x = checks.floating("x", x)
        channels, time = _channels(x, entries is None), x.shape[1]
        if entries is None:
            checks.nothing("params", params)
            sin, cos = waves(start, time, channels, base, x.dtype)
            added = jnp.stack([sin, cos], -1).reshape(time, channels)
        else:
            (table,) = checks.leaves(params, "table")
            if table.shape != (entries, channels):
                raise ShapeError(f"the table must have shape {(entries, channels)}, got {table.shape}")
            checks.same_dtype(x=x, table=table)
            if is_symbolic(time):
                raise ShapeError(f"lengths must be numbers for a table of positions; the batch may be any ({x.shape})")
            if time > entries:
                raise ShapeError(f"x has {time} positions, and {entries} were asked for; give positions more entries")
            added = jax.lax.dynamic_slice_in_dim(table, start, time).astype(at_least_float32(x.dtype))
            added = limited(added, start + time, entries, f"positions({entries}) has no more; give it more entries")
        return rest((x.astype(added.dtype) + added[None]).astype(x.dtype))

    def start(params, state, x, capacity):
        return jnp.zeros((), jnp.int32)

    def step(params, state, memory, x):
        return add(params, x, memory), memory + first(x).shape[1]

    def whole(params, x):
        return add(params, x, 0)

    torch = () if entries is None else (("table", "weight", None),)
    return stateless(init, whole, name="positions", torch=torch, stream=Stream(start, step))


def waves(start: Any, time: int, features: int, base: float, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """sin and cos of t / base^(2 i / features), each (time, features / 2), for t from ``start`` on."""
    wide = at_least_float32(dtype)
    t = (start + jnp.arange(time, dtype=jnp.int32)).astype(wide)
    rates = jnp.asarray(base, wide) ** (-jnp.arange(0, features, 2, dtype=wide) / features)
    angles = t[:, None] * rates[None]
    return jnp.sin(angles), jnp.cos(angles)


def rotated(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """x (batch, time, heads, D) with its features i and i + D / 2 turned by the i-th angle of each position."""
    wide = x.astype(sin.dtype)
    one, other = jnp.split(wide, 2, -1)
    sin, cos = sin[None, :, None], cos[None, :, None]
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1).astype(x.dtype)


def limited(y: jax.Array, end: Any, capacity: int, hint: str) -> jax.Array:
    """y, if a stream's end is within its capacity; where it is not an error, or NaN where it cannot be seen."""
    if isinstance(end, jax.core.Tracer):
        # 0 / 0 rather than a literal: XLA on CPU makes anything of the exponential of a literal NaN.
        return y + 0.0 / (end <= capacity).astype(y.dtype)
    if end > capacity:
        raise DataError(f"the stream is {int(end)} positions long, and {hint}")
    return y


def first(x: Any) -> Any:
    """The array that a layer is about, of an input that may be a tuple."""
    if not isinstance(x, tuple):
        return x
    if not x:
        raise ConfigError("the input is an empty tuple; give (x, mask), or x alone")
    return x[0]


def others(x: Any) -> Any:
    """What puts another array in the place of `first`."""
    return lambda y: (y, *x[1:]) if isinstance(x, tuple) else y


def _channels(x: Any, even: bool) -> int:
    checks.rank("x", x, 3, "(batch, time, channels)")
    if even and x.shape[-1] % 2:
        raise ShapeError(f"fixed positions are pairs of channels, got {x.shape[-1]} channels")
    return x.shape[-1]

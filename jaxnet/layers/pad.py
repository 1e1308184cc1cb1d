"""Borders: what stands before the first and after the last value, for whatever layer comes next."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.kernels.window import Padding, check_input, make_window
from jaxnet.layers.layer import Layer, parameterless

MODES = ("constant", "reflect", "circular", "replicate")


@made
def pad(width: Padding, *, mode: str = "constant", value: float = 0.0, ndim: int = 1) -> Layer:
    """Pads the spatial axes, before a layer that does not: a convolution, a transposed one or a pool.

    Of the values a b c d, two on each side::

        constant   0 0 [a b c d] 0 0        reflect    c b [a b c d] c b
        circular   c d [a b c d] a b        replicate  a a [a b c d] d d

    PyTorch's ``Conv1d(..., padding=3, padding_mode="reflect")`` is ``pad(3, mode="reflect")`` followed by
    ``conv(...)``. Zeros, "same" and "causal" are in `conv` itself.

    Args:
      width: on both sides; (before, after) in 1-D, one such pair a dimension in n-D.
      mode: "constant", "reflect", "circular" or "replicate".
      value: the constant that "constant" pads with.
      ndim: the number of spatial dimensions, where one width is for all of them.

    Returns:
      A layer from ``(batch, *lengths, channels)`` to the same with longer lengths.

    Raises:
      ConfigError: a negative width, an unknown mode, or a ``value`` without the mode "constant".
      ShapeError: another rank, or a length that has too few values: "reflect" takes more than the width, "circular" as
        many, "replicate" one.
      DTypeError: x is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> x = jnp.arange(4.0).reshape(1, 4, 1)
      >>> layers.pad((2, 1), mode="reflect").apply((), (), x, train=False)[0].ravel()
      Array([2., 1., 0., 1., 2., 3., 2.], dtype=float32)

    Source: as `torch.nn.functional.pad`.
    """
    if isinstance(width, (tuple, list)) and any(isinstance(pair, (tuple, list)) for pair in width):
        ndim = len(width)
    ndim = checks.integer("ndim", ndim, minimum=1)
    checks.choice("mode", mode, MODES)
    value = checks.number("value", value)
    if value and mode != "constant":
        raise ConfigError(f"a value goes with mode='constant', got value={value:g} and mode={mode!r}")
    widths = make_window("ndim", (1,) * ndim, padding=width).padding
    if any(isinstance(pair, str) for pair in widths):
        raise ConfigError(
            f"width must be numbers, got {words.came(width)}; 'same' and 'causal' depend on a kernel: see conv"
        )

    def f(x: jax.Array) -> jax.Array:
        x = checks.floating("x", x)
        check_input(x, ndim, "give ndim={n}, or a pair (before, after) for each")
        y = wide(x)  # the gradient adds what a value was copied to
        for axis, (before, after) in enumerate(widths, 1):
            y = _padded(y, axis, int(before), int(after), mode, value)
        return y.astype(x.dtype)

    return parameterless(f, "pad").described(stream="it pads the end too, or lengthens what comes first; see conv")


def _padded(x: jax.Array, axis: int, before: int, after: int, mode: str, value: float) -> jax.Array:
    if not before and not after:
        return x
    if mode == "constant":
        config = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(x, jnp.asarray(value, x.dtype), config)
    n = x.shape[axis]
    least = {"reflect": max(before, after) + 1, "circular": max(before, after), "replicate": 1}[mode]
    if n < least:
        raise ShapeError(f"mode={mode!r} by {(before, after)} takes a length of at least {least}, got shape {x.shape}")

    def cut(start, stop):
        return lax.slice_in_dim(x, start, stop, axis=axis)

    if mode == "circular":
        ends = cut(n - before, n), cut(0, after)
    elif mode == "reflect":
        ends = lax.rev(cut(1, 1 + before), (axis,)), lax.rev(cut(n - 1 - after, n - 1), (axis,))
    else:
        shapes = ((*x.shape[:axis], many, *x.shape[axis + 1 :]) for many in (before, after))
        ends = tuple(map(jnp.broadcast_to, (cut(0, 1), cut(n - 1, n)), shapes))
    return jnp.concatenate([ends[0], x, ends[1]], axis)

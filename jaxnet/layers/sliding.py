"""Layers with a sliding window, fed piece by piece: they remember the end of the signal, which later windows see."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.kernels.window import Window, check_input
from jaxnet.layers.layer import Stream


def sliding(window: Window, f: Callable[..., Any], *, border: float = 0.0) -> Stream | str:
    """The stream of a convolution or a pooling.

    It remembers what lies in windows to come of the padded signal; and, where the stride is longer than the window, how
    many values to skip until the next window begins.

    Args:
      window: the window, time first.
      f: ``(params, x, padding) -> y``, the layer with another padding.
      border: what the padding is filled with.
    """
    time, *others = window.slides
    before, after = time.conv_padding(1)
    if after:
        return _looks_ahead(after)
    extent, strides = time.reach + 1, time.strides

    def padded(x, before):
        return (before, 0), *(slide.conv_padding(n) for slide, n in zip(others, x.shape[2:-1], strict=True))

    def start(params, state, x, capacity):
        del state, capacity
        check_input(x, len(window.size))
        kept = jnp.full((x.shape[0], before, *x.shape[2:]), border, x.dtype)
        _some(lambda z: f(params, z, padded(z, before)), kept, 0, extent)  # which refuses what does not fit
        return kept, _count(0)

    def step(params, state, memory, x):
        del state
        kept, skipped = memory
        skip = skipped.shape[0]
        signal = jnp.concatenate([kept, x[:, skip:]], axis=1)
        length = signal.shape[1]
        outputs = max((length - extent) // strides + 1, 0)
        y = _some(lambda z: f(params, z, padded(z, 0)), signal, strides * (outputs - 1) + extent, extent)
        skip = max(skip - x.shape[1], 0) + max(strides * outputs - length, 0)
        return y, (signal[:, strides * outputs :], _count(skip))

    return Stream(start, step)


def stuffed(window: Window, f: Callable[..., Any], *, border: float = 0.0) -> Stream | str:
    """The stream of a transposed convolution: each value gives S outputs at once, and the last values are remembered.

    The outputs are those of a signal with zeros before it. Where it is padded by less than that, the first are left
    out; by more, there are more zeros. What padding by another value adds to the first outputs is remembered too.

    Args:
      window: the window, time first.
      f: ``(params, x, padding, border) -> y``, the layer with another padding, filled with ``border``.
      border: what the padding is filled with.
    """
    time, *others = window.slides
    before, after = time.conv_transpose_padding()
    reach, strides = time.reach, time.strides
    if after >= strides or (after and border):
        return _looks_ahead(after)
    if border and others:
        return "its border of several dimensions is not zeros; use padding_value=0"
    border = border if before else 0.0
    kept = max(0, -((after - reach) // strides))
    early = before + after - reach - strides + 1
    ahead = max(0, -(-early // strides))
    padding = ((reach + strides - 1 - after - strides * kept, after),)
    padding += tuple(slide.conv_transpose_padding() for slide in others)

    def start(params, state, x, capacity):
        del state, capacity
        check_input(x, len(window.size))
        zeros = jnp.zeros((x.shape[0], kept + ahead, *x.shape[2:]), x.dtype)
        _some(lambda z: f(params, z, padding, border), zeros, 0, kept + 1)  # which refuses what does not fit
        added = ()
        if border:
            some = jnp.zeros((1, max(-(-(before - early) // strides), 1), *x.shape[2:]), x.dtype)
            added = (f(params, some, ((before, 0),), border) - f(params, some, ((before, 0),), 0.0))[:, :before]
        return zeros, _count(strides * ahead - early), added

    def step(params, state, memory, x):
        del state
        signal, left_out, added = memory
        signal = jnp.concatenate([signal, x], axis=1)
        length = signal.shape[1]
        y = _some(lambda z: f(params, z, padding, 0.0), signal, length if length > kept else 0, kept + 1)
        y, left = y[:, left_out.shape[0] :], max(left_out.shape[0] - y.shape[1], 0)
        if border:
            added = jnp.concatenate([added, jnp.zeros((1, y.shape[1], y.shape[2]), y.dtype)], axis=1)
            y, added = y + added[:, : y.shape[1]], added[:, y.shape[1] :]
        return y, (signal[:, length - kept :], _count(left), added)

    return Stream(start, step)


def _looks_ahead(after: int) -> str:
    return (
        f"it pads the signal by {after} at its end too, so that its outputs depend on where that is; pad before the "
        f"signal alone, padding='causal'"
    )


def _some(f: Callable[[Any], Any], signal: jax.Array, length: int, least: int) -> jax.Array:
    """f of the first values; where they are too few, outputs of length 0 in the shape of those of ``least`` values."""
    if length >= least:
        return f(signal[:, :length])
    y = jax.eval_shape(f, jax.ShapeDtypeStruct((signal.shape[0], least, *signal.shape[2:]), signal.dtype))
    return jnp.zeros((y.shape[0], 0, *y.shape[2:]), y.dtype)


def _count(n: int) -> jax.Array:
    """A number that tracing sees: the length of an array that holds nothing else."""
    return jnp.zeros(n, bool)

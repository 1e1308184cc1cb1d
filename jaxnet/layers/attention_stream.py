"""What causal attention remembers of a stream: the keys and values of the positions that later ones still see."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnet import kernels
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from jaxnet.layers.positions import limited


def start(
    x: Any, heads: int, size: int, window: int | None, capacity: int | None, masked: bool
) -> dict[str, jax.Array]:
    """An empty memory: of a window the positions before the next, else as many as ``capacity`` says."""
    if window is None and capacity is None:
        raise ConfigError(
            "attention without a window remembers all that came; say how many positions that are at most: "
            "streaming(net, capacity=...)"
        )
    places = capacity if window is None else window - 1
    shape = (x.shape[0], places)
    memory = {
        "key": jnp.zeros((*shape, heads, size), x.dtype),
        "value": jnp.zeros((*shape, heads, size), x.dtype),
        "length": jnp.zeros((), jnp.int32),
    }
    return memory | ({"mask": jnp.zeros(shape, bool)} if masked else {})


def step(memory: Any, q: Any, k: Any, v: Any, mask: Any, window: int | None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The outputs of a piece, and the memory after it."""
    length, places, new = memory["length"], memory["key"].shape[1], q.shape[1]
    if mask is not None:
        if mask.shape != k.shape[:2]:
            raise ShapeError(f"the mask of a stream must have shape {k.shape[:2]}, (batch, time), got {mask.shape}")
        if mask.dtype != jnp.bool_:
            raise DTypeError(f"the mask must be bool, True for what is there, got {mask.dtype}; write mask != 0")
        # 0 times what is hidden is 0, also where it is NaN.
        k, v = (jnp.where(mask[..., None, None], a, jnp.zeros_like(a)) for a in (k, v))
    pieces = {"key": k, "value": v} | ({} if mask is None else {"mask": mask})
    if k.shape[0] != memory["key"].shape[0] or pieces.keys() != memory.keys() - {"length"}:
        raise ShapeError(
            f"the stream began with a batch of {memory['key'].shape[0]}{' and a mask' * ('mask' in memory)}, and a "
            f"piece has a batch of {k.shape[0]}{' and a mask' * (mask is not None)}; begin another stream for it"
        )
    t = length + jnp.arange(new, dtype=jnp.int32)[:, None]
    if window is None:
        if new > places:
            raise ShapeError(f"a piece of {new} positions is longer than the capacity, {places}; give a larger one")
        there = {
            name: lax.dynamic_update_slice_in_dim(memory[name], piece, length, axis=1) for name, piece in pieces.items()
        }
        s = jnp.arange(places, dtype=jnp.int32)[None]
        seen, kept = s <= t, there
    else:  # what is remembered, then the piece; of both, the last are what will be remembered
        there = {name: jnp.concatenate([memory[name], piece], 1) for name, piece in pieces.items()}
        s = length - places + jnp.arange(places + new, dtype=jnp.int32)[None]
        seen = (s >= 0) & (s <= t) & (s > t - window)
        kept = {name: a[:, a.shape[1] - places :] for name, a in there.items()}
    seen = seen[None]
    if mask is not None:
        seen = seen & there["mask"][:, None]
    y = kernels.attention(q, there["key"], there["value"], mask=seen)
    if window is None:
        y = limited(
            y, length + new, places, f"{places} were to be remembered; streaming(net, capacity=...) says how many"
        )
    return y, {**kept, "length": length + new}

"""What the normalization layers share: their factor and shift a channel, their masks, their checks."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet.errors import DTypeError, ShapeError

TORCH = (("scale", "weight", None), ("offset", "bias", None))


def check(epsilon: Any, scale: Any, offset: Any) -> float:
    """Checks what every norm is told."""
    checks.flag("scale", scale)
    checks.flag("offset", offset)
    return checks.number("epsilon", epsilon, low=0, open_low=True)


def names(scale: bool, offset: bool) -> tuple[str, ...]:
    """The params that are learned."""
    return ("scale",) * scale + ("offset",) * offset


def drawn(x: jax.ShapeDtypeStruct, scale: bool, offset: bool) -> dict[str, jax.Array]:
    """The factor 1 and the shift 0 of each channel."""
    shape = (channels(x.shape),)
    return {name: (jnp.ones if name == "scale" else jnp.zeros)(shape, x.dtype) for name in names(scale, offset)}


def affine(y: jax.Array, params: dict[str, Any], dtype: Any) -> jax.Array:
    """scale * y + offset a channel, of what there is of these, rounded once."""
    if "scale" in params:
        y = y * last(params["scale"].astype(y.dtype), y.ndim)
    if "offset" in params:
        y = y + last(params["offset"].astype(y.dtype), y.ndim)
    return y.astype(dtype)


def last(values: jax.Array, ndim: int) -> jax.Array:
    """One value a channel, with axes of length 1 before it."""
    return values.reshape((1,) * (ndim - 1) + (-1,))


def channels(shape: tuple[int, ...]) -> int:
    """How many channels there are, on the last axis."""
    if len(shape) < 2 or not shape[-1]:
        raise ShapeError(f"x must have the axes (batch, ..., channels), got shape {shape}")
    return shape[-1]


def fits(x: jax.Array, *vectors: jax.Array) -> None:
    """Refuses what has another number of channels than the layer's arrays."""
    n = channels(x.shape)
    for vector in vectors:
        if vector.ndim != 1:
            raise ShapeError(
                f"an array of the layer has shape {vector.shape}, and {n} channels want ({n},); pass what this layer's "
                f"init returned"
            )
        if vector.shape != (n,):
            raise ShapeError(
                f"the input has {n} channels, the layer was made for {vector.shape[-1:]} "
                f"(input {x.shape}); channels come last"
            )


def unpacked(x: Any) -> tuple[Any, Any]:
    """x and its mask, of an input ``(x, mask)``; None for the mask of an array alone."""
    if not isinstance(x, tuple):
        return x, None
    if len(x) != 2:
        raise ShapeError(f"the input must be x or (x, mask), got {checks.describe(x)}")
    x, mask = (
        one if isinstance(one, jax.ShapeDtypeStruct) else checks.array(n, one) for n, one in zip(_PAIR, x, strict=True)
    )
    if mask.dtype != jnp.bool_:
        raise DTypeError(f"the mask must be boolean, True for what is there, got {mask.dtype}; give mask.astype(bool)")
    if tuple(mask.shape) != tuple(x.shape[:-1]):
        raise ShapeError(
            f"the mask must have a value a position, shape {tuple(x.shape[:-1])}, got {tuple(mask.shape)} "
            f"(input {tuple(x.shape)})"
        )
    return x, mask


_PAIR = ("x", "mask")


def masked(y: jax.Array, mask: Any) -> Any:
    """The output of a layer whose input is ``(x, mask)``: 0 at what is masked, and the mask, for what follows."""
    return y if mask is None else (jnp.where(mask[..., None], y, jnp.zeros_like(y)), mask)

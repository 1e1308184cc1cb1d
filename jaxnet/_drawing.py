"""What parameters and states begin with, by programs that are compiled quickly, or by none: each runs once.

A shape's first draw is almost all compiling, and for a CPU XLA compiles random bits in half the time or less where it
does not optimize them, and again in half of that without its fusions' MLIR, for which jax 0.10 has an option. Few equal
numbers come from the host, without a program.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet._symbolic import is_symbolic

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    QUICKLY["xla_cpu_use_fusion_emitters"] = False

FEW = 2**16
"""Elements up to which an array of equal numbers comes from the host."""


def split(key: Any, n: int) -> tuple[Any, ...]:
    """`jax.random.split`, as a tuple."""
    return _run(_split, key, n)


def normal(key: Any, shape: Sequence[int], dtype: Any, stddev: float) -> jax.Array:
    """Numbers of the normal distribution of mean 0."""
    return _run(_normal, key, tuple(shape), jnp.dtype(drawn_in(dtype)), stddev).astype(dtype)


def uniform(key: Any, shape: Sequence[int], dtype: Any, bound: float) -> jax.Array:
    """Numbers from [-bound, bound)."""
    return _run(_uniform, key, tuple(shape), jnp.dtype(drawn_in(dtype)), bound).astype(dtype)


def filled(beside: Any, shape: Any, value: float, dtype: Any) -> jax.Array:
    """`jnp.full`, for what lies beside an array or a key."""
    made = few_equal(beside, shape, value, dtype)
    return jnp.full(shape, value, dtype) if made is None else made


def few_equal(beside: Any, shape: Any, value: float, dtype: Any) -> jax.Array | None:
    """An array of equal numbers from the host, if it is a small one, beside what lies on the default device; else None.

    In a program that is traced it would be a constant, and is None.
    """
    if not isinstance(beside, jax.Array) or isinstance(beside, Tracer) or beside.committed:
        return None
    lengths = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    known = jax.dtypes.canonicalize_dtype(dtype) == dtype  # else jnp.full says what it gives instead
    if not known or any(map(is_symbolic, lengths)) or math.prod(lengths) > FEW:
        return None
    if not jax.sharding.get_abstract_mesh().empty or isinstance(jax.device_put(np.float32(0)), Tracer):
        return None
    return jax.device_put(np.full(lengths, value, dtype))


def drawn_in(dtype: Any) -> Any:
    """The dtype that numbers are drawn in before they are rounded to this one: of 16 bits, float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _run(draw: Callable[..., Any], key: Any, *arguments: Any) -> Any:
    return (_quick(draw) if _alone(key) else draw)(key, *arguments)


def _alone(key: Any) -> bool:
    """Whether what is drawn from this key would be a program of its own, for a CPU."""
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    data = jax.random.key_data(typed)  # traced inside any transformation, even where the key is a constant there
    return not isinstance(data, Tracer) and all(device.platform == "cpu" for device in data.devices())


@functools.cache
def _quick(draw: Callable[..., Any]) -> Callable[..., Any]:
    # All but the key are constants, as in the program around a draw inside a transformation: the same products.
    names = tuple(inspect.signature(draw).parameters)[1:]
    return jax.jit(draw, static_argnames=names, compiler_options=QUICKLY)


def _split(key: Any, n: int) -> tuple[Any, ...]:
    return tuple(jax.random.split(key, n))


def _normal(key: Any, shape: tuple[int, ...], dtype: Any, stddev: float) -> jax.Array:
    values = jax.random.normal(key, shape, dtype)
    return values * jnp.asarray(stddev, values.dtype)


def _uniform(key: Any, shape: tuple[int, ...], dtype: Any, bound: float) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

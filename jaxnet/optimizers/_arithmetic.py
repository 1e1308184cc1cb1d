"""The dtypes of the rules' arithmetic. In 16 bits nothing is computed or kept: `wide` and `full_like` see to it."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _drawing as drawing


def wide_dtype(dtype: Any) -> Any:
    """The dtype that a rule computes and keeps its state in: float32 for narrower ones, else the same.

    In 16 bits an epsilon of 1e-8 is 0 or drowns, a moving average with decay 0.999 stands still, and the square of a
    small gradient is 0.
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def wide(x: Any) -> jax.Array:
    """``x`` in `wide_dtype`; what is that wide already is left as it is."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def promoted(*arrays: Any) -> list[jax.Array]:
    """The arrays in their common dtype, also where implicit promotion is switched off."""
    # Outside jit, asarray costs as much as the sum of two arrays.
    values = [a if isinstance(a, jax.Array) else jnp.asarray(a) for a in arrays]
    first = values[0]
    if all(v.dtype == first.dtype and v.weak_type == first.weak_type for v in values[1:]):
        return values
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return [v.astype(dtype) for v in values]


def scalar_like(value: Any, x: jax.Array) -> Any:
    """A hyperparameter that multiplies ``x`` without changing its dtype."""
    return value if isinstance(value, (int, float)) else jnp.asarray(value).astype(x.dtype)


def abs_squared(x: jax.Array) -> jax.Array:
    """The elementwise ``|x|^2``, real also for complex ``x``."""
    return (x.conj() * x).real if jnp.iscomplexobj(x) else x**2


def next_count(count: jax.Array) -> jax.Array:
    """``count + 1``, staying at the largest integer instead of wrapping to a negative step."""
    largest = jnp.array(jnp.iinfo(count.dtype).max, count.dtype)
    return jnp.where(count < largest, count + jnp.array(1, count.dtype), largest)


def full_like(tree: Any, value: Any, dtype: Any = None) -> Any:
    """``value`` everywhere, with the tree's shapes and shardings, in ``dtype`` or `wide_dtype`, never weakly typed."""

    def fill(leaf):
        leaf_dtype = wide_dtype(jnp.asarray(leaf).dtype) if dtype is None else dtype
        made = drawing.few_equal(leaf, jnp.shape(leaf), value, leaf_dtype)
        return jnp.full_like(leaf, jnp.asarray(value).astype(leaf_dtype), dtype=leaf_dtype) if made is None else made

    return jax.tree.map(fill, tree)


def copies(tree: Any, dtype: Any = None) -> Any:
    """The tree in ``dtype`` or `wide_dtype`, in buffers of its own: a step must not donate one buffer twice."""
    return jax.tree.map(lambda p: jnp.array(p, dtype=dtype or wide_dtype(jnp.asarray(p).dtype), copy=True), tree)

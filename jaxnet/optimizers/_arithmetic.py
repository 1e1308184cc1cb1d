"""The few lines of arithmetic that the rules share, explicit about dtypes and about the order of operations.

The order is optax's, so that both libraries give the same bits; see docs/optimizers.md. In 16 bits nothing is
computed or kept: `wide` and `zeros_like` see to it for all rules.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
    values = [jnp.asarray(a) for a in arrays]
    if len({(v.dtype, v.weak_type) for v in values}) == 1:
        return values
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return [v.astype(dtype) for v in values]


def scalar_like(value: Any, x: jax.Array) -> Any:
    """A hyperparameter that multiplies ``x`` without changing its dtype."""
    return value if isinstance(value, (int, float)) else jnp.asarray(value).astype(x.dtype)


def scaled(value: Any, x: jax.Array) -> jax.Array:
    """``value * x`` in the dtype of ``x``."""
    return scalar_like(value, x) * x


def plus(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a + b`` in the wider dtype of the two."""
    a, b = promoted(a, b)
    return a + b


def abs_squared(x: jax.Array) -> jax.Array:
    """The elementwise ``|x|^2``, real also for complex ``x``."""
    return (x.conj() * x).real if jnp.iscomplexobj(x) else x**2


def moving_average(decay: Any, average: jax.Array, new: jax.Array) -> jax.Array:
    """``(1 - decay) new + decay average``."""
    return plus(scaled(1 - decay, new), scaled(decay, average))


@functools.partial(jax.jit, inline=True)  # so that the power is the same operation outside jit
def unbiased(averages: list[jax.Array], decay: Any, count: jax.Array) -> list[jax.Array]:
    """``average / (1 - decay^count)``, which undoes the pull towards the zero that the averages began with.

    The power is taken in float32 or wider whatever the average's dtype: in bfloat16 the decay 0.999 is 1.
    """
    with jax.numpy_dtype_promotion("standard"):  # a float to the power of an integer count
        correction = jnp.asarray(1 - decay**count)
    return [average / correction.astype(average.dtype) for average in averages]


def next_count(count: jax.Array) -> jax.Array:
    """``count + 1``, staying at the largest integer instead of wrapping to a negative step."""
    largest = jnp.array(jnp.iinfo(count.dtype).max, count.dtype)
    return jnp.where(count < largest, count + jnp.array(1, count.dtype), largest)


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Zeros with the tree's shapes and shardings, in ``dtype`` or in `wide_dtype`, never weakly typed."""
    return full_like(tree, 0, dtype)


def full_like(tree: Any, value: Any, dtype: Any = None) -> Any:
    """``value`` everywhere, with the tree's shapes and shardings."""

    def fill(leaf):
        leaf_dtype = wide_dtype(jnp.asarray(leaf).dtype) if dtype is None else dtype
        return jnp.full_like(leaf, jnp.asarray(value).astype(leaf_dtype), dtype=leaf_dtype)

    return jax.tree.map(fill, tree)


def each(f: Callable[..., Any], *columns: list[Any]) -> list[Any]:
    """Applies one operation to all leaves before the next operation is traced.

    That is the order in which optax's tree maps come to the compiler. In another order it may fuse, and
    so round, a leaf differently: the same operations per leaf would be right, and not the same bits.
    """
    return [f(*row) for row in zip(*columns, strict=True)]


def map_columns(rule: Callable[..., tuple], tree: Any, *rest: Any) -> tuple:
    """Applies a rule to the leaves of all trees at once, as lists of equal length; returns trees again.

    The rule gets the first tree's leaves, the gradients, in `wide_dtype`; what it computes from them is as wide.
    A rest tree that is None (a moment that this configuration does not keep) is None to the rule, and
    a None that the rule returns is None in its tree's place.
    """
    leaves, treedef = jax.tree.flatten(tree)
    columns = [None if other is None else treedef.flatten_up_to(other) for other in rest]
    results = rule([wide(leaf) for leaf in leaves], *columns)
    return tuple(None if column is None else treedef.unflatten(column) for column in results)

"""The leaves of a tree as one vector, so that a rule is written as its equation.

Every operation reaches the compiler for all leaves before the next one does, as optax's tree maps do. In another order
it may fuse, and so round, a leaf differently: the same operations per leaf would be right, and not the same bits.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.optimizers import _arithmetic
from jaxnet.optimizers._arithmetic import promoted, scalar_like, wide


class Vector:
    """All leaves at once: ``(1 - b1) * g + b1 * m`` is that of every leaf.

    Two vectors meet in the wider dtype of the two, leaf by leaf; a number takes the dtype of the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> g, m = Vector([jnp.ones(2), jnp.ones(())]), Vector([jnp.zeros(2), jnp.ones(())])
      >>> (0.5 * g + 0.25 * m).leaves
      [Array([0.5, 0.5], dtype=float32), Array(0.75, dtype=float32)]
    """

    def __init__(self, leaves: Iterable[Any]):
        self.leaves = list(leaves)

    def _with(self, other: Any, operation: Callable[[Any, Any], Any]) -> "Vector":
        if isinstance(other, Vector):
            return each(lambda x, y: operation(*promoted(x, y)), self, other)
        return each(lambda x: operation(x, scalar_like(other, x)), self)

    def __add__(self, other: Any) -> "Vector":
        return self._with(other, operator.add)

    def __sub__(self, other: Any) -> "Vector":
        return self._with(other, operator.sub)

    def __mul__(self, other: Any) -> "Vector":
        return self._with(other, operator.mul)

    def __truediv__(self, other: Any) -> "Vector":
        return self._with(other, operator.truediv)

    def __rmul__(self, number: Any) -> "Vector":
        return self._with(number, lambda x, y: y * x)

    def __rtruediv__(self, number: Any) -> "Vector":
        return self._with(number, lambda x, y: y / x)


def each(f: Callable[..., Any], *vectors: Vector) -> Vector:
    """``f`` of the leaves of all vectors, one after the other."""
    return Vector(f(*leaves) for leaves in zip(*(vector.leaves for vector in vectors), strict=True))


abs_squared = functools.partial(each, _arithmetic.abs_squared)
sqrt = functools.partial(each, jnp.sqrt)
rsqrt = functools.partial(each, jax.lax.rsqrt)


def where(condition: jax.Array, a: Vector, b: Vector) -> Vector:
    """``a`` where the one condition for all holds, else ``b``."""
    return each(lambda x, y: jnp.where(condition, *promoted(x, y)), a, b)


def unbiased(average: Vector, decay: Any, count: jax.Array) -> Vector:
    """``average / (1 - decay^count)``, which undoes the pull towards the zero that the average began with."""
    return Vector(_unbiased(average.leaves, decay, count))


@functools.partial(jax.jit, inline=True)  # so that power and quotient are the same operations outside jit
def _unbiased(averages: list[jax.Array], decay: Any, count: jax.Array) -> list[jax.Array]:
    # The power is taken in float32 or wider whatever the average's dtype: in bfloat16 the decay 0.999 is 1.
    with jax.numpy_dtype_promotion("standard"):  # a float to the power of an integer count
        correction = jnp.asarray(1 - decay**count)
    return [average / correction.astype(average.dtype) for average in averages]


def over_leaves(f: Callable[..., Iterable[Vector | None]], tree: Any, *rest: Any) -> list[Any]:
    """Applies ``f`` to trees of one structure as vectors, and makes trees of the vectors that it returns.

    The first tree's leaves, the gradients, come in `wide_dtype`; what is computed from them is as wide. A tree that is
    None (a moment that this configuration does not keep) is None as a vector, there and back.
    """
    leaves, treedef = jax.tree.flatten(tree)
    vectors = [None if other is None else Vector(treedef.flatten_up_to(other)) for other in rest]
    results = f(Vector(map(wide, leaves)), *vectors)
    return [None if vector is None else treedef.unflatten(vector.leaves) for vector in results]

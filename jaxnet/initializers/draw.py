"""Drawing from any initializer: for a layer, which knows the fans, and anew for leaves of a tree."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet.errors import ShapeError, named
from jaxnet.initializers.plain import Initializer
from jaxnet.initializers.variance_scaling import VarianceScaling, fans_of_shape
from jaxnet.paths import Which, chosen


@named("initializer")
def draw(initializer: Initializer, key: Any, shape: Sequence[int], dtype: Any, fans: tuple[float, float]) -> jax.Array:
    """Draws from any initializer, in at least float32, telling the fans to those that can be told.

    Raises:
      ShapeError: the initializer returned another shape.
    """
    wide = drawing.drawn_in(dtype)
    if isinstance(initializer, VarianceScaling):
        result = initializer(key, shape, wide, fans=fans)
    else:
        result = jnp.asarray(initializer(key, tuple(shape), wide))
    if result.shape != tuple(shape):
        raise ShapeError(f"asked for shape {tuple(shape)}, got {result.shape} from {initializer!r}")
    return result.astype(dtype)


@named("reinitialize")
def reinitialize(params: Any, which: Which, initializer: Initializer, key: Any) -> Any:
    """Draws some leaves of parameters anew, from an initializer of this library, of JAX or of yours.

    Args:
      params: a tree of arrays.
      which: which leaves, as in `paths.select`, such as ``"*kernel"`` or ``"3/*"``.
      initializer: ``f(key, shape, dtype)``. One that asks for the fans gets those of the shape (`fans_of_shape`), which
        knows nothing of groups and strides; a layer's ``kernel_init`` does.
      key: a PRNG key or a seed; each leaf has a key of its own, whatever else is chosen.

    Returns:
      A tree like ``params``; what is not chosen is as it was.

    Raises:
      ConfigError: a pattern that fits no leaf, or a function that chooses none.
      ShapeError: a leaf without fans, for an initializer that asks for them; or what comes is of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import initializers, layers
      >>> params, state = layers.chain(layers.dense(3), jnp.tanh, layers.dense(1)).init(0, jnp.ones((1, 2)))
      >>> initializers.reinitialize(params, "2/kernel", initializers.zeros, 0)[2]["kernel"].sum()
      Array(0., dtype=float32)
    """
    checks.function("initializer", initializer)
    keys, flags = checks.key(key), jax.tree.leaves(chosen(params, which))
    leaves, treedef = jax.tree.flatten(params)
    for i, (leaf, on) in enumerate(zip(leaves, flags, strict=True)):
        if on:
            asked = isinstance(initializer, VarianceScaling)
            fans = fans_of_shape(leaf.shape) if asked else (1, 1)
            leaves[i] = draw(initializer, jax.random.fold_in(keys, i), leaf.shape, leaf.dtype, fans)
    return treedef.unflatten(leaves)

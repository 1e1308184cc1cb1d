"""Whether a layer acts on each position of axis 1 alone, so that a stream needs no memory for it."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet.errors import ConfigError, JaxnetError, ShapeError
from jaxnet.layers.layer import Layer, output_struct

_FEW, _MANY = 4, 1 << 20
"""How many random positions are computed, and to how many a shape is inferred."""


def length_of(x: Any) -> int:
    """The length of a piece: that of its first array, whose others may be no piece of anything."""
    lengths = [leaf.shape[1] for leaf in jax.tree.leaves(x) if len(leaf.shape) > 1]
    if not lengths:
        raise ShapeError(f"a piece must have the axes (batch, time, ...), got {checks.describe(x)}")
    return lengths[0]


def any_length(net: Layer, params: Any, state: Any, x: Any) -> None:
    """Refuses an array whose axis 1 is not time for a layer that is said to be pointwise, but features."""
    n = length_of(x) + 1
    if not hasattr(x, "shape"):
        return
    wanted = f"a stream is cut along axis 1 of (batch, time, ..., channels), got {checks.describe(x)}"
    try:
        y = output_struct(net, params, state, jax.ShapeDtypeStruct((x.shape[0], n, *x.shape[2:]), x.dtype))
    except JaxnetError as error:
        raise ShapeError(f"{wanted}, and of length {n} it is refused: {error.message}") from error
    if any(leaf.shape[1:2] != (n,) for leaf in jax.tree.leaves(y)):
        raise ShapeError(f"{wanted}, and the layer makes {checks.describe(y)} of length {n}")


class Pointwise:
    """Tries a layer that says nothing, on random numbers, once for each kind of input. Errors call it ``name``."""

    def __init__(self, net: Layer, name: str):
        self._net, self._name = net, name
        self._passed: set[Any] = set()

    def check(self, params: Any, state: Any, x: Any) -> None:
        """Refuses the layer if it does more than act on each position alone.

        Raises:
          ConfigError: it does; or it has params or a state, so that it should say how it streams; or it fails.
        """
        name = self._name
        if jax.tree.leaves((params, state)):
            raise ConfigError(
                f"{name} does not say how it is fed piece by piece; give it stream='pointwise' if each position is for "
                f"itself, or else a layers.Stream, as in layers.layer(name, init, apply, stream=...)"
            )
        kind = jax.tree.structure(x), tuple((leaf.shape[2:], leaf.dtype) for leaf in jax.tree.leaves(x))
        if kind in self._passed:
            return
        try:
            with jax.core.eval_context():  # ensure_compile_time_eval leaves tracers of custom_jvp under vmap
                alone = self._acts_alone(x)
        except Exception as error:
            raise ConfigError(
                f"{name} was to be tried on random numbers, whole and cut, and failed: {error}"
            ) from error
        if not alone:
            raise ConfigError(
                f"{name} cannot be fed piece by piece: tried on random numbers, it does not act on each position "
                f"alone; put a layer in its place that says how it streams (for padding, a convolution with "
                f"padding='causal')"
            )
        self._passed.add(kind)

    def _acts_alone(self, x: Any) -> bool:
        n, rng = length_of(x), np.random.default_rng(0)
        cut = jax.tree.map(lambda leaf: leaf.ndim > 1 and leaf.shape[1] == n, x)

        def f(x):
            return self._net.apply((), (), x, train=False)[0]

        def along(make, tree):
            """``make`` of all that is cut, and the rest as it is."""
            return jax.tree.map(lambda leaf, is_cut: make(leaf) if is_cut else leaf, tree, cut)

        whole = jax.tree.map(lambda leaf, is_cut: _random(rng, leaf, is_cut), x, cut)
        together = f(whole)
        long = along(lambda leaf: jax.ShapeDtypeStruct((1, _MANY, *leaf.shape[2:]), leaf.dtype), whole)
        alone = [f(along(lambda leaf, i=i: leaf[:, i : i + 1], whole)) for i in range(_FEW)]
        return all(jax.tree.leaves(jax.tree.map(_is_joined, jax.eval_shape(f, long), together, *alone)))


def _random(rng: Any, leaf: Any, is_cut: bool) -> jax.Array:
    shape = (1, _FEW, *leaf.shape[2:]) if is_cut else (1,) * (leaf.ndim > 0) + leaf.shape[1:]
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(rng.standard_normal(shape), leaf.dtype)
    return jnp.asarray(rng.integers(0, 2, shape), leaf.dtype)


def _is_joined(long: Any, together: Any, *alone: Any) -> bool:
    """Whether an output has a position for each of the input's; or is the same of them all, as a condition is."""
    if long.shape[1:2] == (_MANY,):
        return _are_close(np.concatenate(alone, axis=1), together)
    return all(_are_close(np.asarray(one), together) for one in alone)


def _are_close(ours: np.ndarray, together: Any) -> bool:
    if ours.shape != together.shape:
        return False
    if not jnp.issubdtype(together.dtype, jnp.floating):
        return np.array_equal(ours, together)
    tolerance = 100 * float(jnp.finfo(together.dtype).eps)
    a, b = np.asarray(ours, np.float64), np.asarray(together, np.float64)
    return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

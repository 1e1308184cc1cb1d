"""The optimizer protocol: a pair of pure functions, and the one that adds updates to parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnet.errors import named
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import promoted

Tree = Any
Schedule = Callable[[Any], Any]
ScalarOrSchedule = ArrayLike | Schedule


class Update(Protocol):
    """The ``update`` half of an `Optimizer`."""

    def __call__(self, updates: Tree, state: Tree, params: Tree = None, **extra_args: Any) -> tuple[Tree, Tree]: ...


class Optimizer(NamedTuple):
    """A pair of pure functions that turns gradients into parameter updates (section 4.4).

    It is the protocol of `optax.GradientTransformation`: pairs of either library go wherever the other's do.

    Attributes:
      init: ``init(params) -> state``, for a tree of floating-point arrays of any shapes.
      update: ``update(updates, state, params=None, **extra_args) -> (updates, state)``. The first argument
        is the gradient, or what an earlier transformation of a `chain` made of it. The result is *added* to
        the parameters, so it already carries the minus sign of descent. Extra arguments are for those
        members of a chain that want them.

    Parameters of 16 bits: every rule here keeps its moments, traces and slow weights in at least float32, computes
    in it, and returns float32 updates; gradients may be float32 too. A rule's explicit dtype argument is obeyed.
    Steps that are small against a parameter still round away: `master_copy` keeps them.

    Complex parameters: `jax.grad` of a real loss is the conjugate of the direction of steepest ascent. A loop written
    by hand gives ``update`` what `conjugate` makes of it; the loops of `jaxnet.training` do so themselves.

    Raises:
      DTypeError: from either half of an optimizer here, a leaf that is no floating-point array, or a gradient of
        another dtype than its parameter's (but float32 for 16 bits).
      ShapeError: from ``update``, gradients, parameters and state that are not of one tree; it lists the paths.
      ConfigError: from ``update``, the state of another optimizer.
      DataError: from either half, a masked array of NumPy's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> loss = lambda params: jnp.sum(params["w"] ** 2)
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> optimizer = optimizers.sgd(0.25)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      >>> optimizers.apply_updates(params, updates)
      {'w': Array([ 0.5, -1. ], dtype=float32)}

    Source: `optax.GradientTransformation`; section 4.4.
    """

    init: Callable[[Tree], Tree]
    update: Update


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing, such as `clip_by_value`."""


@named("apply_updates")
def apply_updates(params: Tree, updates: Tree) -> Tree:
    r"""Adds updates to parameters, leaf by leaf, in the parameters' dtypes.

    .. math:: \theta \leftarrow \theta + u

    The sum is formed in the wider of the two dtypes and rounded once. Steps below half a unit in the last place of a
    16-bit parameter round away: see `master_copy`.

    Args:
      params: a tree of arrays of any shapes; ``None`` leaves stay ``None``.
      updates: what an optimizer's ``update`` returned, a tree of the same structure and shapes.

    Returns:
      The new parameters, with the structure, shapes and dtypes of ``params``.

    Raises:
      ShapeError: structures or shapes differ; the message lists missing, unexpected and mismatched paths.
      DataError: a masked array of NumPy's.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_updates({"w": jnp.ones(2)}, {"w": jnp.array([0.5, -1.0])})
      {'w': Array([1.5, 0. ], dtype=float32)}

    Source: section 4.4; `optax.apply_updates`.
    """
    trees.first_of_two(updates, params)
    trees.same_tree("the updates", updates, "the parameters", params, dtypes=False)

    def add(p, u):
        total, u = promoted(p, u)
        return (total + u).astype(jnp.asarray(p).dtype)

    return jax.tree.map(add, params, updates)


def conjugate(grads: Tree) -> Tree:
    r"""The direction of steepest ascent, from what `jax.grad` of a real loss returns.

    .. math::
      \overline{\frac{\partial L}{\partial x} - i \frac{\partial L}{\partial y}}
        = \frac{\partial L}{\partial x} + i \frac{\partial L}{\partial y}, \quad z = x + i y

    On the left is JAX's gradient of a complex parameter z, before it is conjugated: a step against it descends in x
    and climbs in y. (PyTorch's gradient is conjugated already.)

    Args:
      grads: a tree of arrays of any shapes.

    Returns:
      The tree, with complex leaves conjugated; all others are the same objects.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> loss = lambda z: jnp.abs(z - (1 + 2j)) ** 2
      >>> optimizer, z = optimizers.sgd(0.25), jnp.complex64(0)
      >>> state = optimizer.init(z)
      >>> for _ in range(30):
      ...     grads = optimizers.conjugate(jax.grad(loss)(z))
      ...     updates, state = optimizer.update(grads, state, z)
      ...     z = optimizers.apply_updates(z, updates)
      >>> print(z)
      (1+2j)

    Source: the JAX autodiff cookbook, complex numbers and differentiation.
    """
    return jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)

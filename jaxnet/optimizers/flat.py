"""The flat layout: all parameters of one dtype in one vector, so that a step costs what its bytes cost."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.errors import ConfigError, ShapeError, named
from jaxnet.optimizers import _rates as rates
from jaxnet.optimizers import _trees as trees
from jaxnet.optimizers._arithmetic import promoted
from jaxnet.optimizers._members import member, updated
from jaxnet.optimizers._rule import door
from jaxnet.optimizers.base import Optimizer


class _Layout:
    """Where each leaf lies in the vectors. Static under jit, so hashed once and compared by identity first."""

    def __init__(self, treedef: Any, shapes: tuple, dtypes: tuple):
        self.treedef, self.shapes, self.dtypes = treedef, shapes, dtypes
        self.groups = {d: [i for i, e in enumerate(dtypes) if e == d] for d in sorted(set(dtypes))}
        self._hash = hash((treedef, shapes, dtypes))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, _Layout)
            and self._hash == other._hash
            and (self.treedef, self.shapes, self.dtypes) == (other.treedef, other.shapes, other.dtypes)
        )

    def __repr__(self) -> str:
        return f"<{len(self.shapes)} leaves>"


@jax.tree_util.register_pytree_with_keys_class
class Raveled:
    """A tree of arrays as one vector per dtype: a pytree whose leaves are those vectors.

    It goes wherever parameters go: `jax.grad` with respect to it gives a gradient in the same layout, and any
    optimizer takes it as a tree of one to three leaves. Make it with `ravel`.

    Attributes:
      vectors: dtype name -> array of shape (numbers of that dtype,).
    """

    def __init__(self, vectors: dict[str, Any], layout: _Layout):
        self.vectors = vectors
        self._layout = layout

    @named("unravel")
    def unravel(self) -> Any:
        """The tree, with the structure, shapes and dtypes that it was made from.

        The leaves take the dtype of their vector, so ``jax.tree.map(lambda v: v.astype(jnp.bfloat16), raveled)``
        is the whole tree in bfloat16.

        Raises:
          ShapeError: a vector has another length than the tree has numbers of its dtype.
        """
        layout = self._layout
        leaves: list[Any] = [None] * len(layout.shapes)
        for dtype, indices in layout.groups.items():
            shapes = [layout.shapes[i] for i in indices]
            size = sum(map(math.prod, shapes))
            if jnp.shape(self.vectors[dtype]) != (size,):
                raise ShapeError(
                    f"the vector of {dtype} must have the shape ({size},), as many numbers as the tree it was "
                    f"made from, got {jnp.shape(self.vectors[dtype])}"
                )
            # lax.split, not slices: its transpose is one concatenation, theirs a sum of padded vectors.
            parts = jax.lax.split(self.vectors[dtype], [math.prod(shape) for shape in shapes])
            for i, part, shape in zip(indices, parts, shapes, strict=True):
                leaves[i] = part.reshape(shape)
        return layout.treedef.unflatten(leaves)

    def tree_flatten_with_keys(self):
        """Called by JAX, which takes it for a pytree."""
        names = list(self._layout.groups)
        return [(jax.tree_util.DictKey(name), self.vectors[name]) for name in names], self._layout

    @classmethod
    def tree_unflatten(cls, layout, children):
        return cls(dict(zip(layout.groups, children, strict=True)), layout)

    def __repr__(self) -> str:
        return f"Raveled({self.vectors}, {self._layout})"


def ravel(params: Any) -> Raveled:
    """Lays a tree of arrays out as one vector per dtype, for training in the flat layout.

    On many small leaves nearly all of a training step is the cost of handling buffers, of which Adam has
    four per leaf. Keep the parameters raveled, and unravel them inside the loss:

    - the gradient arrives raveled (the transpose of `Raveled.unravel` is one concatenation),
    - the optimizer updates one vector per dtype,
    - the compiled step takes, donates and returns a handful of buffers.

    Args:
      params: a tree of floating-point arrays of any shapes and dtypes.

    Returns:
      A `Raveled`; its ``unravel()`` is the tree again, bit for bit.

    Raises:
      DTypeError: a leaf is no floating-point array.
      DataError: a masked array of NumPy's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import optimizers
      >>> params = optimizers.ravel({"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)})
      >>> optimizer = optimizers.sgd(0.1)
      >>> state = optimizer.init(params)
      >>> def loss(params, x):
      ...     tree = params.unravel()
      ...     return jnp.sum((x @ tree["kernel"] + tree["bias"]) ** 2)
      >>> grads = jax.grad(loss)(params, jnp.ones(2))
      >>> updates, state = optimizer.update(grads, state, params)
      >>> optimizers.apply_updates(params, updates).unravel()["bias"]
      Array([-0.4, -0.4], dtype=float32)

    Source: measured in benchmarks/optimizers.py; docs/optimizers.md says for which rules layouts are equivalent.
    """
    return _laid_out(params, None)


@named("ravel")
def _laid_out(tree: Any, like: _Layout | None) -> Raveled:
    """The tree in the layout ``like`` if that is one of such a tree: float32 gradients lie as their parameters do."""
    trees.parameters(tree)
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    layout = _Layout(treedef, tuple(x.shape for x in leaves), tuple(x.dtype.name for x in leaves))
    if like is not None and (like.treedef, like.shapes) == (layout.treedef, layout.shapes):
        layout = like
    vectors = {}
    for dtype, indices in layout.groups.items():
        parts = promoted(*(leaves[i].reshape(-1) for i in indices))
        # One part would come back as the very buffer of the leaf, and be donated twice.
        vectors[dtype] = jnp.concatenate(parts) if len(parts) > 1 else jnp.array(parts[0], copy=True)
    return Raveled(vectors, layout)


@door
def flat(optimizer: Any) -> Optimizer:
    """Runs an optimizer in the flat layout behind the usual interface: trees in, trees out.

    The state is kept raveled; gradients are raveled and updates unraveled inside ``update``. That spares
    the buffers of the state and the arithmetic per leaf, but not those of parameters, gradients and
    updates: a training loop that can, keeps its parameters in `ravel`'s layout, which spares them all.
    Arguments that are raveled already stay so, thus the same optimizer serves both.

    The result is the same for rules that treat every number alike: `sgd`, `adam`, `adamw`, `adagrad`,
    `rmsprop`, `adabelief`, `angulargrad`, `lookahead`, `clip_by_value`, `add_decayed_weights`, their chains,
    and `clip_by_global_norm` up to the order of a sum. It is not for rules that look at single leaves:
    masks, partitions, and optax's LAMB, LARS, Adafactor, Muon or adaptive clipping. Masks and partitions
    are refused; of the others keep clear.

    Args:
      optimizer: the inner optimizer, ours or optax's.

    Returns:
      An `Optimizer` whose state is the inner optimizer's for raveled parameters.

    Raises:
      ConfigError: ``optimizer`` is no optimizer, or masks or partitions the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet.optimizers import adam
      >>> optimizer = flat(adam(0.1))
      >>> params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> state.mu.vectors["float32"].shape
      (6,)
      >>> updates, state = optimizer.update(params, state, params)
      >>> updates["w"].shape
      (2, 2)

    Source: see `ravel`.
    """
    optimizer = member(optimizer)

    def init(params):
        state = optimizer.init(_raveled(params))
        if _masks(state):
            raise ConfigError(
                "this optimizer masks or partitions the parameter tree, and in the flat layout there is no "
                "tree; put flat inside instead: optax.partition({'a': flat(adam(1e-3)), ...}, labels)"
            )
        return state

    def update(updates, state, params=None, **extra_args):
        if params is not None:
            trees.gradients(updates, params)
            params = _raveled(params)
        grads = _raveled(updates, _layout_of(state if params is None else params))
        raveled, new = updated(optimizer, grads, state, params, extra_args)
        return raveled if isinstance(updates, Raveled) else raveled.unravel(), new

    return rates.saying(Optimizer(init, update), lambda before, after: rates.known(optimizer, before, after))


def _raveled(tree: Any, like: _Layout | None = None) -> Raveled:
    return tree if isinstance(tree, Raveled) else _laid_out(tree, like)


def _layout_of(tree: Any) -> _Layout | None:
    """The layout of the first raveled tree inside."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Raveled))
    return next((x._layout for x in nodes if isinstance(x, Raveled)), None)


def _masks(state: Any) -> bool:
    """Whether a state holds that of an optax wrapper that treats parts of the tree differently."""
    if type(state).__name__ in ("MaskedState", "PartitionState"):
        return True
    if isinstance(state, dict):
        return any(map(_masks, state.values()))
    return isinstance(state, (tuple, list)) and any(map(_masks, state))

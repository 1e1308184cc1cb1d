"""What a network is made of, as it runs: its layers in order, what follows the last that learns; and changes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics._rows import Kind, kind
from jaxnet.layers.inside import looked_into, rebuilt, watched
from jaxnet.layers.layer import Layer, stateless


class Call(NamedTuple):
    """A layer that holds no others, as it was called.

    Attributes:
      path: the labels of the containers above it, and its own.
      layer: itself.
      x: shapes and dtypes of its input.
      learns: whether it has parameters.
      follows: whether its input is the output of the call before.
    """

    path: tuple[str, ...]
    layer: Layer
    x: Any
    learns: bool
    follows: bool

    @property
    def label(self) -> str:
        """Its path and its name, as in a `LayerReport`."""
        return f"{'.'.join(self.path)} {self.layer.name}".strip()

    @property
    def is_kernel(self) -> bool:
        """Whether it multiplies by a kernel."""
        return self.learns and self.layer.about.fan_in is not None

    @property
    def kind(self) -> Kind:
        """What it does as an activation function."""
        return Kind() if self.learns or not is_floating(self.x) else kind(self.layer, self.x.dtype)


class Anatomy(NamedTuple):
    """The calls of a network, in their order, and what stands behind the last layer that learns.

    Attributes:
      calls: of the layers that hold no others.
      last: the path of the last layer with parameters whose output goes on to the prediction, through ``tail`` alone; a
        container where more than one of its parts do.
      tail: the calls after it.
      free: shapes and dtypes of what it gives.
    """

    calls: tuple[Call, ...]
    last: tuple[str, ...]
    tail: tuple[Call, ...]
    free: Any


def anatomy(net: Layer, x: Any) -> Anatomy:
    """Looks at one forward pass; nothing is computed."""
    found: list[Anatomy] = []

    def look(x):
        seen: list[tuple[tuple[str, ...], Layer, Any, Any, Any]] = []

        def watch(path, layer, params, state, x, y):
            seen.append((path, layer, params, x, y))
            return ()

        params, state = net.init(jax.random.key(0), x)
        y, _ = watched(net, watch).apply(params, state, x, train=False)
        found.append(_anatomy(seen))
        return y

    jax.eval_shape(look, x)
    return found[0]


def _anatomy(seen: list[Any]) -> Anatomy:
    calls: dict[tuple[str, ...], Call] = {}  # a scan may trace its body more than once
    before = None
    for path, layer, params, x, y in seen:
        if not looked_into(layer):
            calls.setdefault(path, Call(path, layer, _struct(x), bool(jax.tree.leaves(params)), x is before))
            before = y
    by_path = {path: (layer, params, x, y) for path, layer, params, x, y in seen}
    last: tuple[str, ...] = ()
    tail: list[tuple[str, ...]] = []
    while parts := looked_into(by_path[last][0]):
        y, inner = by_path[last][3], None
        if by_path[last][0].about.trees == "stacked":
            break
        behind: list[tuple[str, ...]] = []
        for label, _ in reversed(parts):
            path = (*last, label)
            if path not in by_path or by_path[path][3] is not y:  # its output is not what the container gives
                break
            if jax.tree.leaves(by_path[path][1]):
                inner = path
                break
            behind.insert(0, path)
            y = by_path[path][2]
        if inner is None:
            break
        last, tail = inner, behind + tail
    after = tuple(call for call in calls.values() if any(call.path[: len(path)] == path for path in tail))
    return Anatomy(tuple(calls.values()), last, after, _struct(by_path[last][3]))


def _struct(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def with_layer(net: Layer, path: tuple[str, ...], new: Layer) -> Layer:
    """``net`` with another layer at a path."""
    if not path:
        return new
    return rebuilt(
        net, [with_layer(part, path[1:], new) if label == path[0] else part for label, part in net.about.parts]
    )


def mapped(net: Layer, change: Callable[[tuple[str, ...], Layer], Layer], path: tuple[str, ...] = ()) -> Layer:
    """``net`` with every layer that holds no others replaced by what ``change(path, layer)`` gives."""
    parts = looked_into(net)
    if not parts:
        return change(path, net)
    return rebuilt(net, [mapped(part, change, (*path, label)) for label, part in parts])


def is_affine(call: Call) -> bool:
    """Whether a layer in evaluation is a straight line through any three points, by trying some."""
    x = call.x
    if not is_floating(x):
        return False
    try:
        with jax.ensure_compile_time_eval():
            params, state = call.layer.init(jax.random.key(1), x)

            @jax.jit
            def at(params, state, key, factors):
                point = 3 * jax.random.normal(key, x.shape, x.dtype)
                return [call.layer.apply(params, state, factor * point, train=False)[0] for factor in factors]

            # Neither odd functions nor rectifiers are straight through these.
            factors = [np.asarray(factor, x.dtype) for factor in (-1.0, 0.5, 2.0)]
            before, first, second = (np.asarray(y, np.float64) for y in at(params, state, jax.random.key(2), factors))
    except Exception:  # of a function of the user's: what cannot be asked is taken for one that is not
        return False
    scale = np.abs(second - before).max(initial=0)
    return bool(scale > 0 and np.abs(second + before - 2 * first).max() <= 1e-3 * scale)


def is_flat(call: Call) -> bool:
    """Whether an activation's derivative is 0 wherever it is asked, as that of rounding or comparing is."""
    if call.learns:
        return False
    if not is_floating(call.x):
        return True
    try:
        with jax.ensure_compile_time_eval():

            def total(x):
                y = call.layer.apply((), (), x, train=False)[0]
                return jnp.sum(y.astype(x.dtype) * jnp.cos(jnp.arange(y.size, dtype=x.dtype)).reshape(y.shape))

            @jax.jit
            def flat(key):
                point = 2 * jax.random.normal(key, call.x.shape, call.x.dtype)
                return jnp.all(jax.grad(total)(point) == 0)

            return bool(flat(jax.random.key(3)))
    except Exception:  # as above
        return False


def is_random(call: Call) -> bool:
    """Whether a layer without parameters does something else in training, as dropout does."""
    if call.learns or not is_floating(call.x):
        return False
    try:
        with jax.ensure_compile_time_eval():
            x = np.ones((64, *call.x.shape[1:]), call.x.dtype)

            @jax.jit
            def differs(x, key):
                return jnp.any(
                    call.layer.apply((), (), x, train=True, key=key)[0] != call.layer.apply((), (), x, train=False)[0]
                )

            return bool(differs(x, jax.random.key(4)))
    except Exception:  # as above
        return False


def missing_activations(parts: Anatomy) -> list[tuple[Call, Call]]:
    """The pairs of layers with a kernel between which all is a straight line."""
    found, first = [], None
    for call in parts.calls:
        if not call.follows:
            first = None
        if call.is_kernel:
            if first is not None:
                found.append((first, call))
            first = call
        elif first is not None and not is_affine(call):
            first = None
    return found


def table(free: Any) -> Layer:
    """A layer that gives its parameters, whatever comes in."""
    return Layer(lambda key, x: (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), free), ()),
                 lambda params, state, x, *, train, key=None: (params, state), "table")  # fmt: skip


def evaluating(layer: Layer) -> Layer:
    """A layer that does in training what it does in evaluation."""
    return stateless(
        lambda key, x: layer.init(key, x)[0],
        lambda params, x: layer.apply(params, (), x, train=False)[0],
        name=layer.name,
    )

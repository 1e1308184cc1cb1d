"""What every layer does in one training step: its activations, its gradients and how far its weights move."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks_named as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.diagnostics import _rows
from jaxnet.errors import ConfigError
from jaxnet.layers.inside import looked_into, rebuilt, watched
from jaxnet.layers.layer import Layer, as_layer
from jaxnet.optimizers import _checks as optimizer_checks
from jaxnet.optimizers._arithmetic import abs_squared, wide
from jaxnet.optimizers.base import conjugate
from jaxnet.training.step import pair, scalar

SATURATED_DISTANCE = 0.025
"""A value this close to a bound, in units of the distance between the two, is saturated: of tanh beyond +-0.95 and of
sigmoid outside 0.025..0.975, where the derivative has fallen to a tenth of its largest."""

COLUMNS = (
    "mean", "deviation", "saturated", "dead", "nonfinite", "activation_gradient", "parameter_gradient", "weight_norm",
    "update_ratio", "gain",
)  # fmt: skip


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(*COLUMNS, "slope", "first_nonfinite", "loss"),
    meta_fields=("labels", "norms"),
)
@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One row a layer, from the input to the output; prints as a table.

    A pytree whose leaves are arrays of shape (layers,), in float32 or, where a layer computes so, in float64, so that
    it leaves ``jit`` and stacks under ``vmap`` and ``scan``; the labels are part of its structure. NaN stands where a
    number makes no sense for a layer.

    Attributes:
      labels: the path and the name of each layer. A layer inside ``repeat`` has a row a copy.
      norms: whether each undoes the scale of its input.
      mean: of the layer's output.
      deviation: standard deviation of the output over everything.
      saturated: of an activation bounded on both sides (sigmoid, tanh), the share of outputs near a bound.
      dead: of a rectifier, the share of its units (channels) that are 0 everywhere in the batch.
      nonfinite: how many of the outputs are NaN or Inf.
      activation_gradient: norm of the loss's gradient with respect to the output.
      parameter_gradient: norm of the gradient with respect to the layer's parameters.
      weight_norm: norm of the parameters.
      update_ratio: norm of the optimizer's next update over ``weight_norm``.
      gain: sqrt(fan_in * mean w^2) of the kernel, by which it multiplies the deviation of an input whose entries are
        independent: 1 keeps a linear layer's variance, sqrt(2) one's before relu. Of layers that say their ``fan_in``.
      slope: of ln(activation_gradient) against the number of the layer, over the layers with a kernel, by least
        squares. The gradient that reaches the input shrinks by e^-slope a layer: a large positive slope is a vanishing
        gradient, a large negative one an exploding one.
      first_nonfinite: row of the first layer whose output is not finite, -1 if all are.
      loss: of the batch.
    """

    labels: tuple[str, ...]
    norms: tuple[bool, ...]
    mean: Any
    deviation: Any
    saturated: Any
    dead: Any
    nonfinite: Any
    activation_gradient: Any
    parameter_gradient: Any
    weight_norm: Any
    update_ratio: Any
    gain: Any
    slope: Any
    first_nonfinite: Any
    loss: Any

    def __str__(self) -> str:
        if isinstance(self.mean, jax.core.Tracer) or np.ndim(self.mean) != 1:
            return f"LayerReport of {len(self.labels)} layers, arrays of shape {np.shape(self.mean)}"
        names = [name.replace("_", " ") for name in COLUMNS if name != "nonfinite"]
        columns = [np.asarray(getattr(self, name)) for name in COLUMNS if name != "nonfinite"]
        rows = [
            [label, *("" if np.isnan(column[i]) else f"{column[i]:.3g}" for column in columns)]
            for i, label in enumerate(self.labels)
        ]
        lines = table(["layer", *names], rows)
        first = int(self.first_nonfinite)
        lines += "" if np.isnan(self.slope) else f"\nln gradient against depth: slope {float(self.slope):.3g} a layer"
        return lines + (f"\nthe first value that is not finite comes from {self.labels[first]}" if first >= 0 else "")

    @property
    def kernels(self) -> np.ndarray:
        """The rows of the layers with a kernel."""
        return np.flatnonzero(~np.isnan(np.asarray(self.gain)))

    @property
    def gradient_ratio(self) -> float:
        """By how much the slope makes the gradient at the first kernel smaller than at the last.

        0 if the first kernel's gradient is exactly 0 and the last's is not, and the first bounded activation after it
        is mostly saturated: the slope leaves zeros out.
        """
        rows = self.kernels
        if len(rows) > 1:
            gradient, saturated = np.asarray(self.activation_gradient), np.asarray(self.saturated)[rows[0] :]
            saturated = saturated[~np.isnan(saturated)]
            if gradient[rows[0]] == 0 and gradient[rows[-1]] > 0 and saturated.size and saturated[0] > 0.5:
                return 0.0
        return float(np.exp(-np.float64(self.slope) * (len(self.kernels) - 1)))


class _Tapped(NamedTuple):
    """A layer's parameters, and a zero whose gradient tells about the gradient of the layer's output."""

    params: Any
    tap: Any


@jax.custom_vjp
def _probe(y: list[jax.Array], tap: jax.Array) -> list[jax.Array]:
    """y. The gradient that comes back to ``tap`` is the norm of y's; nothing of y's size is kept."""
    del tap
    return y


def _probe_backward(tap, g):
    dtype = _widest(g)
    norms = [jnp.linalg.norm(one.astype(dtype).ravel()) for one in g]
    return g, (norms[0] if len(norms) == 1 else jnp.linalg.norm(jnp.stack(norms))).astype(tap.dtype)


_probe.defvjp(lambda y, tap: (y, tap), _probe_backward)


def _tapped(net: Layer) -> Layer:
    """``net`` with a probe on the output of every layer that holds no others."""
    if parts := looked_into(net):
        return rebuilt(net, (_tapped(part) for _, part in parts))

    def init(key, x):
        params, state = net.init(key, x)
        return _Tapped(params, jnp.zeros((), _widest((params, state, x)))), state

    def apply(params, state, x, *, train, key=None):
        y, state = net.apply(params.params, state, x, train=train, key=key)
        leaves, structure = jax.tree.flatten(y)
        if floating := [leaf for leaf in leaves if _is_floating(leaf)]:
            probed = iter(_probe(floating, params.tap))
            y = structure.unflatten([next(probed) if _is_floating(leaf) else leaf for leaf in leaves])
        return y, state

    return net._replace(init=init, apply=apply, rebuild=None)


def layer_report(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    state: Any,
    batch: Any,
    *,
    optimizer: Any = None,
    opt_state: Any = None,
    key: Any = None,
) -> LayerReport:
    """Measures every layer in one forward and backward pass, in training mode, as one compiled program.

    The parameters stay as they are. Norms of the gradients with respect to activations come out of the backward pass
    through probes, so that nothing of the activations' size is kept for them.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``.
      params: the network's parameters.
      state: its state.
      batch: ``(x, target)``.
      optimizer: for ``update_ratio``, what the network is trained with.
      opt_state: its state; that of a start unless given.
      key: for layers that draw random numbers in training.

    Returns:
      A `LayerReport`.

    Raises:
      ConfigError: a batch that is no pair, or params of another network.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import diagnostics, layers, losses, optimizers
      >>> net = layers.chain(layers.dense(8), jnp.tanh, layers.dense(1))
      >>> params, state = net.init(0, jnp.ones((1, 4)))
      >>> batch = (jnp.ones((16, 4)), jnp.zeros((16, 1)))
      >>> report = diagnostics.layer_report(net, losses.mse, params, state, batch, optimizer=optimizers.sgd(0.1))
      >>> report.labels
      ('0 dense', '1 tanh', '2 dense')
      >>> bool(report.update_ratio[0] > 0)
      True

    Source: chapter 4.2.1 and 4.6.3; Glorot and Bengio 2010, [29], for activations and gradients by layer.
    """
    who = "layer_report"
    net = as_layer(net, who)
    checks.function(who, "loss", loss)
    batch = jax.tree.map(lambda leaf: checks.array(who, "batch", leaf), pair(who, batch))
    if optimizer is not None:
        optimizer = optimizer_checks.optimizer(who, optimizer)
        opt_state = optimizer.init(params) if opt_state is None else opt_state
    arguments = (params, state, batch, opt_state, None if key is None else checks.key(who, key))
    report = functools.partial(_report, net, loss, optimizer)
    # Inside another program what it closes over may be traced, and must not outlive that.
    inside = isinstance(jnp.zeros(()), jax.core.Tracer) or any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)
    )
    program = jax.jit(report) if inside else _compiled(net, (net, loss, optimizer), report)
    return program(*arguments)


def _compiled(net: Layer, key: Any, report: Callable[..., LayerReport]) -> Callable[..., LayerReport]:
    """``report`` under jit, compiled once for the last ``key`` alone.

    The network's own function holds the program, so that it lives as long as the network and no longer: a cache of
    ours, or of jit's with the network as a static argument, would keep both and what the loss closes over for ever.
    """
    holder = getattr(net.apply, "__dict__", {})
    if "_layer_report" not in holder or holder["_layer_report"][0] != key:
        holder["_layer_report"] = key, jax.jit(report)
    return holder["_layer_report"][1]


def _report(net, loss, optimizer, params, state, batch, opt_state, key):
    x, target = batch
    parts = list(_rows.leaves(net))
    kinds: dict[Any, _rows.Kind] = {}
    silent: set[Any] = set()  # what has no floating-point output, and so no gradient

    def watch(path, layer, params, state, x, y):
        if path not in originals:  # a container, though params of one part are its own in some
            return ()
        floating = [leaf for leaf in jax.tree.leaves(y) if _is_floating(leaf)]
        if not floating:
            silent.add(path)
        elif path not in kinds:
            kinds[path] = _rows.kind(originals[path], y.dtype) if _is_floating(y) else _rows.Kind()
        return _forward_statistics(floating, kinds.get(path))

    originals = dict(parts)
    tapped = _tapped(net)
    looked_at = watched(tapped, watch)
    struct = jax.eval_shape(tapped.init, jax.random.key(0), checks.structs("layer_report", x))[0]
    places, treedef = jax.tree.flatten(struct, is_leaf=lambda node: isinstance(node, _Tapped))
    _rows.one_each("layer_report", net, len(places))

    def of_layers(tree):
        try:
            return treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ConfigError(
                f"layer_report: params must be of this network, as its init returns them: {error}"
            ) from None

    def objective(params, taps):
        both = [_Tapped(*layer) for layer in zip(of_layers(params), taps, strict=True)]
        prediction, after = looked_at.apply(treedef.unflatten(both), state, x, train=True, key=key)
        return scalar("layer_report", "the loss", loss(prediction, target)), _rows.seen("layer_report", net, after)

    taps = [jnp.zeros(place.tap.shape, place.tap.dtype) for place in places]
    (value, forward), (grads, norms) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, taps)
    updates = grads
    if optimizer is not None:
        ascent = conjugate(grads)
        extra = {"value": value, "grad": ascent, "value_fn": lambda params: objective(params, taps)[0]}
        updates, _ = optimizer_checks.updated("layer_report", optimizer, ascent, opt_state, params, extra)
    rows = _rows.expanded(net, [tap.shape for tap in taps])
    of_parameters = [
        _parameter_statistics(layer, tap.shape, w, g, u if optimizer is not None else None)
        for (_, layer), tap, w, g, u in zip(
            parts, taps, of_layers(params), of_layers(grads), of_layers(updates), strict=True
        )
    ]
    wide = _widest((forward, norms, of_parameters))
    table = [
        jnp.concatenate(
            [
                forward[leaf][copy].astype(wide),
                jnp.full(1, np.nan, wide) if parts[leaf][0] in silent else norms[leaf][copy][None].astype(wide),
                of_parameters[leaf][copy].astype(wide),
            ]
        )
        for _, leaf, copy in rows
    ]
    columns = dict(zip(COLUMNS, jnp.stack(table, axis=1), strict=True))
    bad = columns["nonfinite"] > 0
    has_kernel = [i for i, (_, leaf, _) in enumerate(rows) if _kernel(parts[leaf][1], of_layers(params)[leaf])]
    return LayerReport(
        tuple(label for label, _, _ in rows),
        tuple(parts[leaf][1].normalizes for _, leaf, _ in rows),
        **columns,
        slope=_slope(columns["activation_gradient"][np.array(has_kernel, int)]),
        first_nonfinite=jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32),
        loss=value,
    )


def _forward_statistics(outputs: list[jax.Array], kind: _rows.Kind | None) -> jax.Array:
    """Mean, deviation, saturated share, dead share, and how many are not finite."""
    dtype = _widest(outputs)
    nothing = jnp.asarray(np.nan, dtype)
    if kind is None:
        return jnp.stack([nothing] * 5)
    outputs = [jax.lax.stop_gradient(y).astype(dtype) for y in outputs]
    y = outputs[0] if len(outputs) == 1 else jnp.concatenate([y.ravel() for y in outputs])
    mean = jnp.mean(y)
    deviation = jnp.sqrt(jnp.mean(jnp.square(y - mean)))
    saturated = dead = nothing
    if kind.bounds is not None:
        low, high = kind.bounds
        near = SATURATED_DISTANCE * (high - low)
        saturated = jnp.mean(((y < low + near) | (y > high - near)).astype(dtype))
    if kind.rectifier:
        dead = jnp.mean(jnp.all(y == 0, axis=tuple(range(y.ndim - 1))).astype(dtype))
    nonfinite = jnp.sum((~jnp.isfinite(y)).astype(dtype))
    return jnp.stack([mean, deviation, saturated, dead, nonfinite])


def _parameter_statistics(layer: Layer, copies: tuple[int, ...], params: Any, grads: Any, updates: Any) -> jax.Array:
    """Norms of the gradient and the parameters, update over weights, and gain; an entry a copy on the first axes."""
    repeats = len(copies)
    dtype = _widest((params, grads, updates))

    def norm(tree):
        squares = [
            jnp.sum(abs_squared(wide(leaf)).astype(dtype), axis=tuple(range(repeats, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    leaves = jax.tree.leaves(params)
    if not leaves:
        return jnp.full((*copies, 4), np.nan, dtype)
    weight = norm(params)
    ratio = gain = jnp.full_like(weight, np.nan)
    if updates is not None:
        ratio = jnp.where(weight > 0, norm(updates) / jnp.maximum(weight, float(np.finfo(np.float32).tiny)), np.nan)
    kernel = _kernel(layer, params)
    if kernel:
        (w,) = kernel
        assert layer.fan_in is not None
        fan_in = layer.fan_in(w.shape[repeats:])
        square = jnp.mean(jnp.square(w.astype(dtype)), axis=tuple(range(repeats, w.ndim)))
        gain = jnp.sqrt(jnp.asarray(fan_in, dtype) * square)
    return jnp.stack([norm(grads), weight, ratio, gain], axis=-1)


def _kernel(layer: Layer, params: Any) -> list[jax.Array]:
    """The layer's kernel, in a list, or an empty one."""
    if layer.fan_in is None or not isinstance(params, dict) or "kernel" not in params:
        return []
    return [params["kernel"]]


def _slope(norms: jax.Array) -> jax.Array:
    """The least-squares slope of ln(norms) over their numbers, of those that are positive and finite."""
    usable = (norms > 0) & jnp.isfinite(norms)
    y = jnp.where(usable, jnp.log(jnp.where(usable, norms, 1)), 0)
    weight = usable.astype(norms.dtype)
    x = jnp.arange(norms.shape[0], dtype=norms.dtype)
    n = jnp.sum(weight)
    x = x - jnp.sum(weight * x) / n
    y = y - jnp.sum(weight * y) / n
    spread = jnp.sum(weight * x * x)
    return jnp.where(n >= 2, jnp.sum(weight * x * y) / spread, np.nan)


def _widest(tree: Any) -> Any:
    """The widest floating-point dtype in a tree, and float32 if that is wider."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return at_least_float32(*(dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)))


def _is_floating(y: Any) -> bool:
    return hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.floating)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

"""What every layer does in one training step: its activations, its gradients and how far its weights move."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet._tables import table
from jaxnet.diagnostics import _rows
from jaxnet.diagnostics._arrays import Loss, is_floating, widest
from jaxnet.diagnostics._columns import of_outputs, of_parameters, slope
from jaxnet.errors import ConfigError, named
from jaxnet.layers.inside import Watched, looked_into, rebuilt
from jaxnet.layers.layer import Layer, as_layer
from jaxnet.optimizers import _members
from jaxnet.optimizers.base import conjugate
from jaxnet.training.step import pair, scalar
from jaxnet.training.weighted import of_pair


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What `layer_report` returns: one row a layer, from the input to the output; prints as a table.

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
        squares, a scalar. The gradient that reaches the input shrinks by e^-slope a layer: a large positive slope is a
        vanishing gradient, a large negative one an exploding one.
      first_nonfinite: row of the first layer whose output is not finite, -1 if all are; an int32 scalar.
      loss: of the batch, a scalar.
    """

    labels: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    norms: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
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
        names = [name for name in COLUMNS if name != "nonfinite"]
        columns = [["" if np.isnan(value) else f"{value:.3g}" for value in getattr(self, name)] for name in names]
        head = ["layer", *(name.replace("_", " ") for name in names)]
        lines = [table(head, list(zip(self.labels, *columns, strict=True)))]
        if not np.isnan(self.slope):
            lines.append(f"ln gradient against depth: slope {float(self.slope):.3g} a layer")
        if self.first_nonfinite >= 0:
            lines.append(f"the first value that is not finite comes from {self.labels[int(self.first_nonfinite)]}")
        return "\n".join(lines)

    @property
    def kernels(self) -> np.ndarray:
        """The rows of the layers with a kernel."""
        return np.flatnonzero(~np.isnan(np.asarray(self.gain)))

    @property
    def bounded(self) -> np.ndarray:
        """The saturated shares of the activations that have bounds."""
        saturated = np.asarray(self.saturated)
        return saturated[~np.isnan(saturated)]

    def normed(self, row: int) -> bool:
        """Whether a norm comes right after a layer and undoes its scale."""
        return any(self.norms[row + 1 : row + 2])

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


COLUMNS = tuple(field.name for field in dataclasses.fields(LayerReport) if field.type is Any)[:-3]
"""The fields with an entry a layer."""


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
    dtype = widest(g)
    norms = [jnp.linalg.norm(one.astype(dtype).ravel()) for one in g]
    return g, (norms[0] if len(norms) == 1 else jnp.linalg.norm(jnp.stack(norms))).astype(tap.dtype)


_probe.defvjp(lambda y, tap: (y, tap), _probe_backward)


def _tapped(net: Layer) -> Layer:
    """``net`` with a probe on the output of every layer that holds no others, and what it fills of the columns seen."""
    if parts := looked_into(net):
        return rebuilt(net, (_tapped(part) for _, part in parts))
    kind = functools.cache(functools.partial(_rows.kind, net))  # a scan may trace its body more than once

    def init(key, x):
        params, state = net.init(key, x)
        return _Tapped(params, jnp.zeros((), widest((params, state, x)))), state

    def apply(params, state, x, *, train, key=None):
        y, state = net.apply(params.params, state, x, train=train, key=key)
        leaves, structure = jax.tree.flatten(y)
        floating = [leaf for leaf in leaves if is_floating(leaf)]
        filled = of_outputs(floating, kind(y.dtype) if is_floating(y) else _rows.Kind())
        if floating:
            probed = iter(_probe(floating, params.tap))
            y = structure.unflatten([next(probed) if is_floating(leaf) else leaf for leaf in leaves])
        return y, Watched(state, filled)

    return net._replace(init=init, apply=apply).described(rebuild=None)


@named("layer_report")
def layer_report(
    net: Any,
    loss: Loss,
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
      batch: ``(x, target)``, arrays (batch, ...) or trees of such.
      optimizer: for ``update_ratio``, what the network is trained with.
      opt_state: its state; that of a start unless given.
      key: for layers that draw random numbers in training.

    Returns:
      A `LayerReport`.

    Raises:
      ConfigError: what is no network, loss or optimizer, a batch that is no pair, or params of another network.
      DTypeError: a batch that is no arrays of numbers, or a loss that is not real.
      ShapeError: a loss that is no scalar.
      DataError: an empty batch.

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
    net = as_layer(net, "net")
    of_pair("loss", loss)
    batch = jax.tree.map(lambda leaf: checks.array("batch", leaf), pair(batch))
    if optimizer is not None:
        optimizer = _members.member(optimizer)
        opt_state = optimizer.init(params) if opt_state is None else opt_state
    arguments = (params, state, batch, opt_state, None if key is None else checks.key(key))
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
    tapped = _tapped(net)
    struct = jax.eval_shape(tapped.init, jax.random.key(0), checks.structs(x))[0]
    places, treedef = jax.tree.flatten(struct, is_leaf=lambda node: isinstance(node, _Tapped))
    _rows.one_each(net, len(places))

    def of_layers(tree):
        try:
            return treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ConfigError(f"params must be of this network, as its init returns them: {error}") from None

    def objective(params, taps):
        both = [_Tapped(*layer) for layer in zip(of_layers(params), taps, strict=True)]
        prediction, after = tapped.apply(treedef.unflatten(both), state, x, train=True, key=key)
        return scalar("the loss", loss(prediction, target)), _rows.seen(net, after)

    taps = [jnp.zeros(place.tap.shape, place.tap.dtype) for place in places]
    (value, forward), (grads, norms) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, taps)
    updates = None
    if optimizer is not None:
        ascent = conjugate(grads)
        extra = {"value": value, "grad": ascent, "value_fn": lambda params: objective(params, taps)[0]}
        updates, _ = _members.updated(optimizer, ascent, opt_state, params, extra)
    each = zip(
        parts, taps, forward, norms, of_layers(params), of_layers(grads),
        [None] * len(taps) if updates is None else of_layers(updates), strict=True,
    )  # fmt: skip
    found = [
        # What has no floating-point output has no gradient of it.
        outputs | ({"activation_gradient": norm} if outputs else {}) | of_parameters(layer, tap.ndim, w, g, u)
        for (_, layer), tap, outputs, norm, w, g, u in each
    ]
    rows = _rows.expanded(net, taps)
    dtype = widest(found)
    nothing = jnp.asarray(np.nan, dtype)
    columns = {
        name: jnp.stack([found[i][name][copy].astype(dtype) if name in found[i] else nothing for _, i, copy in rows])
        for name in COLUMNS
    }
    bad = columns["nonfinite"] > 0
    has_kernel = [i for i, (_, leaf, _) in enumerate(rows) if "gain" in found[leaf]]
    return LayerReport(
        tuple(label for label, _, _ in rows),
        tuple(parts[leaf][1].about.normalizes for _, leaf, _ in rows),
        **columns,
        slope=slope(columns["activation_gradient"][np.array(has_kernel, int)]),
        first_nonfinite=jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32),
        loss=value,
    )

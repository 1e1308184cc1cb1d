"""What the remedies are that the library can carry out: each makes another task of a task."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _made, activations, layers, losses, optimizers
from jaxnet.diagnostics._arrays import is_floating
from jaxnet.diagnostics.anatomy import (
    Anatomy,
    Call,
    anatomy,
    evaluating,
    is_affine,
    is_random,
    mapped,
    missing_activations,
    with_layer,
)
from jaxnet.diagnostics.score import score_of, targets
from jaxnet.diagnostics.trial import Task
from jaxnet.diagnostics.verdict import Remedy
from jaxnet.layers.layer import Layer
from jaxnet.optimizers import _members
from jaxnet.optimizers.base import Optimizer

WIDER = (8, 4, 2)
"""How many times as many units "widen" tries: the first with which there are not `MORE` times as many parameters."""

MORE = 16
"""How many times as many parameters, and so as much work a step, "widen" may take; of networks below `SMALL`, more."""

SMALL = 2**18
"""Parameters of which a network is small whatever it was."""

PLAIN = 1e-3
"""The rate of Adam alone, its default in most libraries (Kingma and Ba 2015)."""

HIDDEN = 64
"""Units of the layer that "deepen" puts before the last."""


def changed(task: Task, remedy: Remedy) -> Task | None:
    """The task with a remedy carried out; None where the library cannot, or the network does not take it."""
    change = CHANGES.get(remedy.action)
    if change is None:
        return None
    try:
        other = change(task, remedy.value)
        if other is None:
            return None
        x, target = (jax.tree.map(lambda leaf: leaf[:2], part) for part in other.train)
        jax.eval_shape(lambda key: other.loss(other.net.apply(*other.net.init(key, x), x, train=False)[0], target),
                       jax.random.key(0))  # fmt: skip
    except Exception:  # a network that does not fit together any more, or a layer that cannot be asked
        return None
    return other


def _scale_rate(task: Task, value: Any) -> Task:
    return task.changed(factor=task.factor * float(value))


def _standardize_input(task: Task, _: Any) -> Task:
    def scaled(leaf, of):
        if not is_floating(leaf):
            return leaf
        wide = of.astype(np.float64)
        deviation = wide.std(0)
        return ((leaf.astype(np.float64) - wide.mean(0)) / np.where(deviation > 0, deviation, 1)).astype(leaf.dtype)

    x, target = task.train
    held, held_target = task.validation
    return task.changed(
        train=(jax.tree.map(scaled, x, x), target), validation=(jax.tree.map(scaled, held, x), held_target)
    )


def _targets(task: Task, f: Callable[[Any], Any], threshold: float | None = None) -> dict[str, Any]:
    """The data with a function of the targets, and how these are scored."""
    train, validation = (task.train[0], f(task.train[1])), (task.validation[0], f(task.validation[1]))
    return {"train": train, "validation": validation, "score": score_of(targets(train[1]), threshold)}


def _standardize_target(task: Task, _: Any) -> Task | None:
    target = task.train[1]
    if not is_floating(target):
        return None
    wide = target.astype(np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    deviation = np.where(deviation > 0, deviation, 1)
    return task.changed(**_targets(task, lambda y: ((y.astype(np.float64) - mean) / deviation).astype(y.dtype)))


def _initialize(task: Task, _: Any) -> Task | None:
    parts = anatomy(task.net, _one(task))
    after = {call.path: parts.calls[i + 1 : i + 2] for i, call in enumerate(parts.calls)}
    kernels = {call.path for call in parts.calls if call.is_kernel}

    def redrawn(path, layer):
        if path not in kernels:
            return layer
        gain = np.sqrt(2.0) if any(call.kind.rectifier for call in after[path]) else 1.0

        def init(key, x):
            params, state = layer.init(key, x)
            kernel = params["kernel"]
            deviation = gain / np.sqrt(layer.about.fan_in(kernel.shape))
            drawn = deviation * jax.random.normal(checks.key(key), kernel.shape)
            biases = {"bias": jnp.zeros_like(params["bias"])} if "bias" in params else {}
            return params | {"kernel": drawn.astype(kernel.dtype)} | biases, state

        return layer._replace(init=init)

    if not kernels:
        return None
    net = mapped(task.net, redrawn)
    other = task.changed(net=net)
    return other.changed(begin=jax.jit(other._begin))  # its trees are the same: the other programs stay


def _activations(task: Task, wanted: Callable[[Any], bool], new: Callable[[Layer], Any]) -> Task | None:
    """Other activations for those that are wanted, but for the output's."""
    parts = anatomy(task.net, _one(task))
    paths = {call.path for call in parts.calls if call not in parts.tail and wanted(call.kind)}
    if not paths:
        return None
    net = mapped(task.net, lambda path, layer: layers.chain(new(layer)) if path in paths else layer)
    return dataclasses.replace(task, net=net)


def _use_rectifiers(task: Task, _: Any) -> Task | None:
    other = _activations(task, lambda kind: kind.bounds is not None, lambda layer: activations.relu)
    return other and (_initialize(other, None) or other)


def _use_leaky_rectifiers(task: Task, _: Any) -> Task | None:
    return _activations(task, lambda kind: kind.rectifier, lambda layer: activations.leaky_relu)


def _normalize(task: Task, _: Any) -> Task | None:
    return _activations(
        task,
        lambda kind: kind.rectifier or kind.bounds is not None,
        lambda layer: layers.chain(layers.layer_norm(), layer),
    )


def _clip(task: Task, _: Any) -> Task:
    return dataclasses.replace(task, optimizer=optimizers.chain(optimizers.clip_by_global_norm(1.0), task.optimizer))


def _plain_optimizer(task: Task, _: Any) -> Task:
    return dataclasses.replace(task, optimizer=optimizers.adam(PLAIN), factor=1.0)


def _batch(task: Task, value: Any) -> Task | None:
    samples = len(jax.tree.leaves(task.train)[0])
    return dataclasses.replace(task, batch_size=min(int(value), samples)) if value else None


def _widen(task: Task, _: Any) -> Task | None:
    parts = anatomy(task.net, _one(task))
    hidden = {call.path for call in parts.calls if call.is_kernel and call.path[: len(parts.last)] != parts.last}
    if not hidden:
        return _deepen(task, None)
    first = next(i for i, call in enumerate(parts.calls) if call.path in hidden)
    most = max(MORE * _parameters(task.net, task), SMALL)
    for times in WIDER:
        if not all(_takes_wider(call, times) for call in parts.calls[first + 1 :] if call not in parts.tail):
            continue
        net = mapped(task.net, lambda path, layer, times=times: remade(layer, times) if path in hidden else layer)
        if _parameters(net, task) <= most:
            return dataclasses.replace(task, net=net)
    return None


def _parameters(net: Layer, task: Task) -> int:
    params, _ = jax.eval_shape(lambda key: net.init(key, _one(task)), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _takes_wider(call: Call, times: int) -> bool:
    """Whether a layer that learns nothing takes more channels; asked outside of a trace: JAX keeps one that fails."""
    if call.learns or not is_floating(call.x) or not call.x.ndim:
        return True
    try:
        with jax.ensure_compile_time_eval():
            call.layer.apply(
                (), (), jnp.zeros((*call.x.shape[:-1], times * call.x.shape[-1]), call.x.dtype), train=False
            )
    except Exception:  # it is made for so many
        return False
    return True


def remade(layer: Layer, times: int = 1, units: int | None = None) -> Layer:
    """A layer as its constructor makes it with other numbers of units, the first of its arguments."""
    how = _made._origin(layer)
    if how is None:
        raise TypeError(f"nothing says how {layer.name} was made")
    arguments = inspect.signature(how.constructor).bind(*how.args, **how.kwargs)
    first = next(iter(arguments.arguments))
    arguments.arguments[first] = units or int(arguments.arguments[first]) * times
    return how.constructor(*arguments.args, **arguments.kwargs)


def _deepen(task: Task, _: Any) -> Task | None:
    parts = anatomy(task.net, _one(task))
    last = next((call for call in parts.calls if call.path == parts.last and call.is_kernel), None)
    if last is None:
        return None
    before = layers.chain(layers.dense(HIDDEN), activations.relu, last.layer)
    return dataclasses.replace(task, net=with_layer(task.net, last.path, before))


def _add_activations(task: Task, _: Any) -> Task | None:
    parts = anatomy(task.net, _one(task))
    first = {one.path for one, _ in missing_activations(parts)}
    if not first:
        return None
    net = mapped(task.net, lambda path, layer: layers.chain(layer, activations.relu) if path in first else layer)
    return dataclasses.replace(task, net=net)


def _less_regularization(task: Task, _: Any) -> Task | None:
    parts = anatomy(task.net, _one(task))
    random = {call.path for call in parts.calls if is_random(call)}
    net = mapped(task.net, lambda path, layer: evaluating(layer) if path in random else layer) if random else task.net
    return dataclasses.replace(task, net=net, regularizer=None, optimizer=undecayed(task.optimizer))


def undecayed(optimizer: Any) -> Optimizer:
    """``optimizer`` without what it takes off the weights: it is shown weights of 0."""

    def update(updates, state, params=None, **extra):
        return _members.updated(optimizer, updates, state, jax.tree.map(jnp.zeros_like, params), extra)

    return Optimizer(optimizer.init, update)


def without_output_function(task: Task, parts: Anatomy | None = None) -> Layer:
    """The network whose output is its last layer's that learns, but for what only reshapes."""
    parts = parts or anatomy(task.net, _one(task))
    functions = {call.path for call in parts.tail if not is_affine(call)}
    return mapped(task.net, lambda path, layer: layers.chain(_identity) if path in functions else layer)


def _identity(x: Any) -> Any:
    return x


def _drop_output_function(task: Task, _: Any) -> Task:
    return dataclasses.replace(task, net=without_output_function(task))


def _use_cross_entropy(task: Task, value: Any) -> Task | None:
    """One output a class, their labels as integers from 0, and softmax in the loss."""
    parts = anatomy(task.net, _one(task))
    last = next((call for call in parts.calls if call.path == parts.last and call.is_kernel), None)
    found = targets(task.train[1])
    if last is None or found.kind not in ("classes", "one hot", "two values", "numbers"):
        return None
    net = without_output_function(task, parts)
    if found.kind == "one hot":
        changes = _targets(task, lambda y: y.argmax(-1).astype(np.int32))
    else:
        low, high = found.values[0], found.values[-1]
        net = with_layer(net, last.path, remade(last.layer, units=int(high - low) + 1))
        changes = _targets(task, lambda y: (y.reshape(len(y)) - low).astype(np.int32))
    return dataclasses.replace(task, net=net, loss=losses.softmax_cross_entropy, **changes)


def _use_sigmoid_cross_entropy(task: Task, _: Any) -> Task | None:
    """Sigmoid in the loss, of labels 0 and 1."""
    values = targets(task.train[1]).values
    if len(values) > 2 or not values:
        return None
    shape = jax.eval_shape(lambda key: task.net.apply(*task.net.init(key, _one(task)), _one(task), train=False)[0],
                           jax.random.key(0)).shape  # fmt: skip
    changes = _targets(task, lambda y: (y != values[0]).astype(np.float32).reshape(len(y), *shape[1:]), 0.0)
    return dataclasses.replace(task, net=without_output_function(task), loss=losses.sigmoid_cross_entropy, **changes)


def _reshape_target(task: Task, _: Any) -> Task:
    shape = jax.eval_shape(lambda key: task.net.apply(*task.net.init(key, _one(task)), _one(task), train=False)[0],
                           jax.random.key(0)).shape  # fmt: skip
    return dataclasses.replace(task, **_targets(task, lambda y: y.reshape(len(y), *shape[1:]), task.threshold))


def _shift_labels(task: Task, _: Any) -> Task:
    lowest = task.train[1].min()
    return task.changed(**_targets(task, lambda y: y - lowest))


def _reestimate(task: Task, _: Any) -> Task:
    return task.changed(reestimated=True)


def _one(task: Task) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[:2]), task.train[0])


CHANGES: dict[str, Callable[[Task, Any], Task | None]] = {
    "scale_rate": _scale_rate,
    "standardize_input": _standardize_input,
    "standardize_target": _standardize_target,
    "initialize": _initialize,
    "use_rectifiers": _use_rectifiers,
    "use_leaky_rectifiers": _use_leaky_rectifiers,
    "normalize": _normalize,
    "clip": _clip,
    "plain_optimizer": _plain_optimizer,
    "larger_batch": _batch,
    "smaller_batch": _batch,
    "widen": _widen,
    "deepen": _deepen,
    "add_activations": _add_activations,
    "less_regularization": _less_regularization,
    "drop_output_function": _drop_output_function,
    "use_cross_entropy": _use_cross_entropy,
    "use_sigmoid_cross_entropy": _use_sigmoid_cross_entropy,
    "reshape_target": _reshape_target,
    "shift_labels": _shift_labels,
    "reestimate": _reestimate,
}
"""By action."""

"""The training step: a pure function from a state and a batch to the next state and what was measured."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks_named as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from jaxnet.layers.layer import as_layer
from jaxnet.optimizers import _checks as optimizer_checks
from jaxnet.optimizers._arithmetic import wide, wide_dtype
from jaxnet.optimizers.base import apply_updates, conjugate
from jaxnet.optimizers.skip_nonfinite import skipped
from jaxnet.training.state import Guard, LossScale, TrainState, all_finite

Metrics = dict[str, jax.Array]
"""Scalars by name."""

Step = Callable[[Any, Any], tuple[Any, Metrics]]
"""``(train_state, batch) -> (train_state, metrics)``."""

COLUMNS = (
    "epoch", "step", "loss", "penalty", "grad_norm", "loss_deviation", "skipped", "seconds", "steps_per_second",
)  # fmt: skip
"""Names that a run's records have for themselves."""

GROWTH_INTERVAL = 2000
"""Finite steps after which the loss scale doubles (the default of PyTorch's and TensorFlow's scalers)."""


def make_step(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: Any,
    *,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    regularizer: Callable[[Any], jax.Array] | None = None,
    accumulate: int = 1,
    guard: bool | str = True,
) -> Step:
    """Makes the training step: forward, backward, update, as one pure function.

    The step minimizes ``loss(prediction, target) + regularizer(params)`` on a batch ``(x, target)``. To clip
    gradients, chain the clip before the rule: ``optimizers.chain(optimizers.clip_by_global_norm(1.0), adam(1e-3))``;
    for mixed precision, wrap the network: ``layers.mixed_precision(net)``.

    *Finite guard.* Where the loss, the gradient or its squared norm is not finite, parameters, network state and
    optimizer state stay as they were, bit for bit; only the step and ``train_state.guard`` count it. So do they count a
    step that an `optimizers.skip_nonfinite` inside the optimizer has skipped. An update that is not finite although the
    gradient is (a rate that divides by zero) is found by `train` and `fit`, between dispatches; in a loop of your own,
    by `optimizers.skip_nonfinite`.

    *Loss scaling.* If the `TrainState` was made with a ``loss_scale``, the loss is multiplied by it and the gradients
    are divided by it; it halves at a step that is not finite and doubles after 2,000 that are.

    *Dtypes.* Gradients of 16-bit parameters are summed over parts, unscaled and measured in float32, and rounded once,
    to the parameters' dtype, for the optimizer. Of complex parameters the optimizer gets the direction of ascent, which
    is the conjugate of what `jax.grad` gives.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``.
      optimizer: an ``(init, update)`` pair, ours or optax's. One that takes more arguments is given the loss (with the
        regularizer) as ``value``, ``grad``, and ``value_fn``, the loss as a function of the parameters.
      metrics: by name, more functions of ``(prediction, target)`` to a scalar.
      regularizer: ``params -> scalar``, added to the loss that is minimized, and measured as "penalty".
      accumulate: splits a batch into this many parts, one after the other, and averages their gradients: less memory,
        and the same result for a loss that is a mean over examples (batch norm sees the parts).
      guard: whether to skip steps that are not finite. Without it they are taken, which spoils the parameters; what is
        measured tells. With "update", steps are skipped too whose updated parameters are not finite, which costs
        a copy of the state.

    Returns:
      ``step(train_state, (x, target)) -> (train_state, metrics)``: "loss", "grad_norm", the metrics, and "skipped", 1
      for a step that changed nothing, else 0; float32, or float64 where they were computed so.

    Raises:
      ConfigError: what is no network, loss, optimizer or metric; from the step, if its batch is no pair, or if a loss
        scale meets float16 parameters.
      ShapeError: from the step: the loss or a metric is no scalar.
      DataError: from the step: ``accumulate`` does not divide the batch, or the batch is empty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> net, optimizer = layers.dense(1), optimizers.sgd(0.1)
      >>> step = jax.jit(training.make_step(net, losses.mse, optimizer))
      >>> x = jnp.linspace(-1, 1, 32)[:, None]
      >>> train_state = training.init(net, optimizer, x, 0)
      >>> for _ in range(200):
      ...     train_state, metrics = step(train_state, (x, 2 * x + 1))
      >>> float(metrics["loss"]) < 1e-6
      True

    Source: chapter 4.4.1, algorithm 2; Micikevicius et al. 2017, arXiv 1710.03740, for loss scaling.
    """
    who = "make_step"
    net = as_layer(net, who)
    checks.function(who, "loss", loss)
    optimizer = optimizer_checks.optimizer(who, optimizer)
    metrics = checked_metrics(who, metrics)
    if regularizer is not None:
        checks.function(who, "regularizer", regularizer)
    accumulate = checks.integer(who, "accumulate", accumulate, minimum=1)
    if guard != "update":
        checks.flag(who, "guard", guard)

    def objective(params, state, batch, key, scale):
        x, target = batch
        prediction, state = net.apply(params, state, x, train=True, key=key)
        measured = measure(who, loss, metrics, prediction, target)
        value = measured["loss"]
        if regularizer is not None:
            measured["penalty"] = scalar(who, "the regularizer", regularizer(params))
            value = add(value, measured["penalty"])
        return value * scale.astype(value.dtype) if scale is not None else value, (state, measured, value)

    of_batch = jax.value_and_grad(objective, has_aux=True)

    def step(train_state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not isinstance(train_state, TrainState):
            raise ConfigError(
                f"{who}: the step takes a TrainState, got {type(train_state).__name__}; make one with training.init"
            )
        scale = None
        if train_state.loss_scale:
            _check_scalable(who, train_state.params, guard)
            scale = train_state.loss_scale.value
        params, before = train_state.params, train_state.state
        batch = pair(who, batch)
        key = jax.random.fold_in(train_state.key, train_state.step)
        if accumulate == 1:
            (_, (state, measured, value)), grads = of_batch(params, before, batch, key, scale)
        else:

            def part(carry, numbered):
                state, total = carry
                i, batch = numbered
                (_, (state, measured, value)), grads = of_batch(params, state, batch, jax.random.fold_in(key, i), scale)
                return (state, jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)), (measured, value)

            zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p.dtype)), params)
            parts = (jnp.arange(accumulate), _split(who, batch, accumulate))
            (state, grads), means = jax.lax.scan(part, (before, zeros), parts)
            grads = jax.tree.map(lambda g: g / jnp.asarray(accumulate, g.dtype), grads)
            measured, value = jax.tree.map(jnp.mean, means)
        if scale is not None:
            grads = jax.tree.map(lambda g: wide(g) / scale.astype(wide_dtype(g.dtype)), grads)
        taken = take_step(
            who, optimizer, measured["loss"], grads, params, train_state.opt_state, (state, before), guard=guard,
            value=value, value_fn=lambda params: objective(params, before, batch, key, None)[0],
        )  # fmt: skip
        train_state = train_state._replace(
            params=taken.params,
            state=taken.state,
            opt_state=taken.opt_state,
            step=train_state.step + 1,
            guard=counted(train_state.guard, ~taken.skipped, taken.leaf, train_state.step),
            loss_scale=_rescaled(train_state.loss_scale, ~taken.skipped),
        )
        return train_state, {**measured, "grad_norm": taken.norm, "skipped": taken.skipped.astype(jnp.float32)}

    return step


def checked_metrics(who: str, metrics: Mapping[str, Callable[..., Any]] | None) -> dict[str, Callable[..., Any]]:
    """A dict of named functions of (prediction, target)."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"{who}: metrics must be a dict of name: function, got {metrics!r}")
    for name, f in metrics.items():
        if not isinstance(name, str) or name in COLUMNS or name.startswith("validation_"):
            raise ConfigError(
                f"{who}: a metric needs a name of its own, a string, got {name!r}; call it otherwise: the history has "
                f"columns {', '.join(COLUMNS)} and validation_..."
            )
        checks.function(who, f"metric {name!r}", f)
    return dict(metrics)


def measure(who: str, loss: Any, metrics: Mapping[str, Any], prediction: Any, target: Any) -> Metrics:
    """The loss and the metrics of a prediction, scalars in at least float32."""
    return {
        "loss": scalar(who, "the loss", loss(prediction, target)),
        **{name: scalar(who, f"the metric {name!r}", f(prediction, target)) for name, f in metrics.items()},
    }


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of two scalars in the wider dtype."""
    wide = at_least_float32(a.dtype, b.dtype)
    return a.astype(wide) + b.astype(wide)


def scalar(who: str, what: str, value: Any) -> jax.Array:
    """What a loss or a metric returned, which must be one real number, in at least float32."""
    if isinstance(value, tuple):
        raise ShapeError(f"{who}: {what} must return one scalar, got a tuple of {len(value)}")
    value = checks.array(who, what, value)
    if value.shape != ():
        raise ShapeError(f"{who}: {what} must be a scalar, got shape {value.shape}; take its mean")
    if jnp.iscomplexobj(value):
        raise DTypeError(f"{who}: {what} must be a real number, got {value.dtype}; take its jnp.abs or .real")
    return value.astype(at_least_float32(value.dtype))


def pair(who: str, batch: Any) -> tuple[Any, Any]:
    """A batch as ``(x, target)``, not empty."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        came = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        hint = "to reproduce x itself, give (x, x)"
        if batch is None:
            hint = "nothing but its end ends an epoch: leave out what cannot be loaded"
        elif isinstance(batch, Mapping):
            x, target = [repr(name) for name in (*batch, "x", "target")][:2]
            hint = f"of a loader of dicts, give lambda epoch: ((b[{x}], b[{target}]) for b in loader)"
        raise ConfigError(f"{who}: a batch is a pair (x, target), got a {came}; {hint}")
    if any(0 in jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tuple(batch))):
        raise DataError(f"{who}: the batch is empty; the mean of no examples is NaN")
    return tuple(batch)


def _split(who: str, batch: Any, count: int) -> Any:
    def split(leaf):
        if leaf.shape[0] % count:
            raise DataError(
                f"{who}: accumulate={count} must divide the batch of {leaf.shape[0]}; the parts have one size"
            )
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    return jax.tree.map(split, batch)


class Taken(NamedTuple):
    """What an update gave.

    Attributes:
      params: the parameters after it.
      opt_state: the optimizer's state.
      state: the network's state.
      skipped: whether nothing was changed, a bool scalar.
      norm: the gradient's norm.
      leaf: the first leaf of the gradient that is not finite, -1 if all are, int32.
    """

    params: Any
    opt_state: Any
    state: Any
    skipped: jax.Array
    norm: jax.Array
    leaf: jax.Array


def take_step(
    who: str, optimizer: Any, loss: jax.Array, grads: Any, params: Any, opt_state: Any, states: tuple[Any, Any], *,
    guard: bool | str, value: jax.Array, value_fn: Callable[[Any], jax.Array],
) -> Taken:  # fmt: skip
    """Updates parameters if the loss and the gradient are finite (or without a guard in any case), else keeps all.

    Args:
      guard: as of `make_step`.
      loss: what must be finite too.
      grads: as `jax.grad` gives them, in the parameters' dtypes or wider.
      states: the network's state after the step, and before it.
      value: what is minimized, for optimizers that ask for it.
      value_fn: the same as a function of the parameters.
    """
    squares, norm = _squares(grads)
    narrow = conjugate(jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params))

    def take():
        extra = {"value": value, "grad": narrow, "value_fn": value_fn}
        updates, after = optimizer_checks.updated(who, optimizer, narrow, opt_state, params, extra)
        before, now = skipped(opt_state), skipped(after)
        inside = jnp.bool(False) if before is None or now is None else now > before
        taken = apply_updates(params, updates), after, new, inside
        return jax.lax.cond(all_finite(taken[0]), lambda: taken, keep) if guard == "update" else taken

    def keep():
        return params, opt_state, [old[i] for i in moved], jnp.bool(True)

    leaves, treedef = jax.tree.flatten(states[0])
    old = treedef.flatten_up_to(states[1])
    # What the network has handed on as it was (the weights of a frozen part, without accumulation) need not be chosen,
    # nor copied.
    moved = [i for i, (a, b) in enumerate(zip(leaves, old, strict=True)) if a is not b]
    new = [leaves[i] for i in moved]
    if not guard:
        learned, moments, _, inside = take()
        return Taken(learned, moments, states[0], inside, norm, jnp.int32(-1))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    bad = ~jnp.isfinite(jnp.stack(squares or [jnp.float32(0)]))
    leaf = jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)
    learned, moments, kept, nothing = jax.lax.cond(finite, take, keep)
    for i, value in zip(moved, kept, strict=True):
        leaves[i] = value
    return Taken(learned, moments, treedef.unflatten(leaves), nothing, norm, leaf)


def _check_scalable(who: str, params: Any, guard: bool | str) -> None:
    if not guard:
        raise ConfigError(f"{who}: a loss scale changes at steps that are not finite, so it needs guard=True")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype == jnp.float16:
            raise ConfigError(
                f"{who}: the parameter {jax.tree_util.keystr(path)} is float16, in which an unscaled gradient below "
                f"6e-8 is 0; keep the parameters in float32: layers.mixed_precision(net, compute=jnp.float16), with an "
                f"example x in float32"
            )


def _squares(grads: Any) -> tuple[list[jax.Array], jax.Array]:
    """The squared norm of every leaf, and the norm of all, in float32, or float64 if a leaf is."""
    squares = [_square(g) for g in jax.tree.leaves(grads)]
    wide = at_least_float32(*[square.dtype for square in squares])
    squares = [square.astype(wide) for square in squares]
    return squares, jnp.sqrt(sum(squares, start=jnp.zeros((), wide)))


def _square(g: jax.Array) -> jax.Array:
    """The sum of |g|^2."""
    parts = (g.real, g.imag) if jnp.iscomplexobj(g) else (g,)
    flat = [part.astype(at_least_float32(part.dtype)).ravel() for part in parts]
    return sum((jnp.vdot(part, part) for part in flat[1:]), start=jnp.vdot(flat[0], flat[0]))


def counted(guard: Guard, finite: jax.Array, leaf: jax.Array, step: jax.Array) -> Guard:
    """The guard's counts after a step."""
    return Guard(
        in_row=jnp.where(finite, 0, guard.in_row + 1),
        total=guard.total + (~finite).astype(jnp.int32),
        leaf=jnp.where(finite, guard.leaf, leaf),
        step=jnp.where(finite, guard.step, step),
    )


@jax.jit
def passed_over(train_state: Any) -> Any:
    """The state after a step whose update is not taken: counted, and else as it is."""
    guard = counted(train_state.guard, jnp.bool(False), jnp.int32(-1), train_state.step)
    replace = getattr(train_state, "_replace", None) or functools.partial(dataclasses.replace, train_state)
    return replace(step=train_state.step + 1, guard=guard)


def _rescaled(scale: LossScale | tuple[()], finite: jax.Array) -> LossScale | tuple[()]:
    if not scale:
        return ()
    grown = finite & (scale.good_steps + 1 >= GROWTH_INTERVAL)
    value = jnp.where(finite, jnp.where(grown, scale.value * 2, scale.value), scale.value / 2)
    # Beyond float32's range the scale itself would be Inf, or 0.
    value = jnp.clip(value, jnp.float32(2.0**-126), jnp.float32(2.0**127))
    return LossScale(value, jnp.where(finite & ~grown, scale.good_steps + 1, 0))

"""The training step: a pure function from a state and a batch to the next state and what was measured."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import ConfigError, DataError, ShapeError
from jaxnet.layers.layer import as_layer
from jaxnet.optimizers import _checks as optimizer_checks
from jaxnet.optimizers.base import apply_updates
from jaxnet.training.state import Guard, LossScale, TrainState

Metrics = dict[str, jax.Array]
"""Scalars by name."""

Step = Callable[[Any, Any], tuple[Any, Metrics]]
"""``(train_state, batch) -> (train_state, metrics)``."""

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
    guard: bool = True,
) -> Step:
    """Makes the training step: forward, backward, update, as one pure function.

    The step minimizes ``loss(prediction, target) + regularizer(params)`` on a batch ``(x, target)``. To clip
    gradients, chain the clip before the rule: ``optimizers.chain(optimizers.clip_by_global_norm(1.0), adam(1e-3))``;
    for mixed precision, wrap the network: ``layers.mixed_precision(net)``.

    *Finite guard.* Where the loss, the gradient or its squared norm is not finite, parameters, network state and
    optimizer state stay as they were, bit for bit; only the step and ``train_state.guard`` count it.

    *Loss scaling.* If the `TrainState` was made with a ``loss_scale``, the loss is multiplied by it and the gradients
    are divided by it; it halves at a step that is not finite and doubles after 2,000 that are.

    Args:
      net: a `Layer` from x to a prediction.
      loss: ``(prediction, target) -> scalar``.
      optimizer: an ``(init, update)`` pair, ours or optax's.
      metrics: by name, more functions of ``(prediction, target)`` to a scalar.
      regularizer: ``params -> scalar``, added to the loss that is minimized, and measured as "penalty".
      accumulate: splits a batch into this many parts, one after the other, and averages their gradients: less memory,
        and the same result for a loss that is a mean over examples (batch norm sees the parts).
      guard: whether to skip steps that are not finite. Without it they are taken, which spoils the parameters; what is
        measured tells.

    Returns:
      ``step(train_state, (x, target)) -> (train_state, metrics)``, with float32 "loss", "grad_norm" and the metrics.

    Raises:
      ConfigError: what is no network, loss, optimizer or metric; from the step, if its batch is no pair.
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
    checks.flag(who, "guard", guard)

    def objective(params, state, batch, key, scale):
        x, target = batch
        prediction, state = net.apply(params, state, x, train=True, key=key)
        measured = measure(who, loss, metrics, prediction, target)
        value = measured["loss"]
        if regularizer is not None:
            measured["penalty"] = _scalar(who, "the regularizer", regularizer(params))
            value = value + measured["penalty"]
        return value * scale, (state, measured)

    def step(train_state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not isinstance(train_state, TrainState):
            raise ConfigError(
                f"{who}: the step takes a TrainState, got {type(train_state).__name__}; make one with training.init"
            )
        if train_state.loss_scale and not guard:
            raise ConfigError(f"{who}: a loss scale changes at steps that are not finite, so it needs guard=True")
        batch = pair(who, batch)
        scale = train_state.loss_scale.value if train_state.loss_scale else jnp.float32(1)
        key = jax.random.fold_in(train_state.key, train_state.step)
        of_batch = jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1:
            (_, (state, measured)), grads = of_batch(train_state.params, train_state.state, batch, key, scale)
        else:

            def part(carry, numbered):
                state, total = carry
                i, batch = numbered
                (_, (state, measured)), grads = of_batch(
                    train_state.params, state, batch, jax.random.fold_in(key, i), scale
                )
                return (state, jax.tree.map(jnp.add, total, grads)), measured

            zeros = jax.tree.map(jnp.zeros_like, train_state.params)
            parts = (jnp.arange(accumulate), _split(who, batch, accumulate))
            (state, grads), measured = jax.lax.scan(part, (train_state.state, zeros), parts)
            grads = jax.tree.map(lambda g: g / jnp.asarray(accumulate, g.dtype), grads)
            measured = {name: jnp.mean(values) for name, values in measured.items()}
        if train_state.loss_scale:
            grads = jax.tree.map(lambda g: (g.astype(at_least_float32(g.dtype)) / scale).astype(g.dtype), grads)
        update = guarded_update if guard else _update
        params, opt_state, state, finite, norm, leaf = update(
            optimizer, measured["loss"], grads, train_state.params, train_state.opt_state, (state, train_state.state)
        )
        train_state = train_state._replace(
            params=params,
            state=state,
            opt_state=opt_state,
            step=train_state.step + 1,
            guard=counted(train_state.guard, finite, leaf, train_state.step),
            loss_scale=_rescaled(train_state.loss_scale, finite),
        )
        return train_state, {**measured, "grad_norm": norm}

    return step


def checked_metrics(who: str, metrics: Mapping[str, Callable[..., Any]] | None) -> dict[str, Callable[..., Any]]:
    """A dict of named functions of (prediction, target)."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"{who}: metrics must be a dict of name: function, got {metrics!r}")
    for name, f in metrics.items():
        if not isinstance(name, str) or name in ("loss", "penalty", "grad_norm"):
            raise ConfigError(f"{who}: a metric needs a name of its own, a string, got {name!r}")
        checks.function(who, f"metric {name!r}", f)
    return dict(metrics)


def measure(who: str, loss: Any, metrics: Mapping[str, Any], prediction: Any, target: Any) -> Metrics:
    """The loss and the metrics of a prediction, float32 scalars."""
    return {
        "loss": _scalar(who, "the loss", loss(prediction, target)),
        **{name: _scalar(who, f"the metric {name!r}", f(prediction, target)) for name, f in metrics.items()},
    }


def _scalar(who: str, what: str, value: Any) -> jax.Array:
    if isinstance(value, tuple):
        raise ShapeError(f"{who}: {what} must return one scalar, got a tuple of {len(value)}")
    value = checks.array(who, what, value)
    if value.shape != ():
        raise ShapeError(f"{who}: {what} must be a scalar, got shape {value.shape}; take its mean")
    return value.astype(jnp.float32)


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


def guarded_update(
    optimizer: Any, loss: jax.Array, grads: Any, params: Any, opt_state: Any, states: tuple[Any, Any]
) -> tuple[Any, Any, Any, jax.Array, jax.Array, jax.Array]:
    """Updates parameters if the loss and the gradient are finite, and else keeps everything.

    Args:
      states: the network's state after the step, and before it.

    Returns:
      The parameters, the optimizer's state, the network's state; whether the step was taken; the gradient's norm, and
      the first of its leaves that is not finite, -1 if all are.
    """
    squares, norm = _squares(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    bad = ~jnp.isfinite(jnp.stack(squares or [jnp.float32(0)]))
    leaf = jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)

    def take():
        updates, after = optimizer.update(grads, opt_state, params)
        return apply_updates(params, updates), after, states[0]

    def keep():
        return params, opt_state, states[1]

    return *jax.lax.cond(finite, take, keep), finite, norm, leaf


def _update(
    optimizer: Any, loss: jax.Array, grads: Any, params: Any, opt_state: Any, states: tuple[Any, Any]
) -> tuple[Any, Any, Any, jax.Array, jax.Array, jax.Array]:
    """What `guarded_update` returns if all is finite, which nothing looks at."""
    del loss
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return apply_updates(params, updates), opt_state, states[0], jnp.bool(True), _squares(grads)[1], jnp.int32(-1)


def _squares(grads: Any) -> tuple[list[jax.Array], jax.Array]:
    """The squared norm of every leaf, and the norm of all."""
    squares = [_square(g) for g in jax.tree.leaves(grads)]
    return squares, jnp.sqrt(sum(squares, start=jnp.float32(0)))


def _square(g: jax.Array) -> jax.Array:
    """The sum of |g|^2 in float32."""
    parts = (g.real, g.imag) if jnp.iscomplexobj(g) else (g,)
    flat = [part.astype(jnp.float32).ravel() for part in parts]
    return sum((jnp.vdot(part, part) for part in flat), start=jnp.float32(0))


def counted(guard: Guard, finite: jax.Array, leaf: jax.Array, step: jax.Array) -> Guard:
    """The guard's counts after a step."""
    return Guard(
        in_row=jnp.where(finite, 0, guard.in_row + 1),
        total=guard.total + (~finite).astype(jnp.int32),
        leaf=jnp.where(finite, guard.leaf, leaf),
        step=jnp.where(finite, guard.step, step),
    )


def _rescaled(scale: LossScale | tuple[()], finite: jax.Array) -> LossScale | tuple[()]:
    if not scale:
        return ()
    grown = finite & (scale.good_steps + 1 >= GROWTH_INTERVAL)
    value = jnp.where(finite, jnp.where(grown, scale.value * 2, scale.value), jnp.maximum(scale.value / 2, 1))
    # Beyond float32's range the scale itself would be Inf.
    value = jnp.minimum(value, jnp.float32(2.0**127))
    return LossScale(value, jnp.where(finite & ~grown, scale.good_steps + 1, 0))

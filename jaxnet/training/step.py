"""The training step: a pure function from a state and a batch to the next state and what was measured."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._dtypes import at_least_float32
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError, named
from jaxnet.layers.layer import as_layer, ran
from jaxnet.layers.next_state import check_next
from jaxnet.optimizers import _members
from jaxnet.optimizers import _rates as rates
from jaxnet.paths import Which, checked
from jaxnet.training import weighted
from jaxnet.training.accumulate import over_parts
from jaxnet.training.freezing import freezing
from jaxnet.training.state import TrainState, no_train_state
from jaxnet.training.update import counted, rescaled, take_step, unscaled

Metrics = dict[str, jax.Array]
"""Scalars by name."""

Step = Callable[[Any, Any], tuple[Any, Metrics]]
"""``(train_state, batch) -> (train_state, metrics)``."""

MEASURED = ("loss", "penalty", "grad_norm", "learning_rate", "weight", "skipped")
"""Names that a step may measure beside the metrics."""

COLUMNS = ("epoch", "step", *MEASURED, "loss_deviation", "seconds", "steps_per_second")
"""Names that a run's records have for themselves."""


@named("make_step")
def make_step(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: Any,
    *,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    regularizer: Callable[[Any], jax.Array] | None = None,
    accumulate: int = 1,
    count: Callable[..., Any] | None = None,
    guard: bool | str = True,
    freeze: Which | None = None,
) -> Step:
    """Makes the training step: forward, backward, update, as one pure function.

    The step minimizes ``loss(prediction, target) + regularizer(params)`` on a batch ``(x, target)``, and
    ``loss(prediction, target, weights=weights) + ...`` on one with weights, ``(x, target, weights)``. To clip
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
      accumulate: splits a batch into this many parts, one after the other, and averages their gradients, each by what
        it counts: less memory, and the same result for a loss that is a mean (batch norm sees the parts). Where it does
        not divide the batch, the first parts have one example more.
      count: ``target -> number``, what the loss's mean divides by where that is not the number of examples, nor the sum
        of their weights: with an ``ignore_label`` of -1, ``lambda target: (target != -1).sum()``. By it parts of a
        batch are averaged, and batches of an epoch.
      guard: whether to skip steps that are not finite. Without it they are taken, which spoils the parameters; what is
        measured tells. With "update", steps are skipped too whose updated parameters are not finite, which costs
        a copy of the state.
      freeze: which leaves of the parameters do not learn, as in `paths.select`. No gradient of them is computed, none
        is in ``grad_norm``, a clip's norm or the guard, and the optimizer and the regularizer see None in their place;
        `init` must get the same. A part of the network all of whose parameters are frozen runs as in evaluation: batch
        norm keeps its statistics, dropout drops nothing. (A part that has none, such as a dropout, is frozen with the
        part around it.)

    Returns:
      ``step(train_state, (x, target)) -> (train_state, metrics)``: "loss", "grad_norm", the metrics, "skipped", 1 for a
      step that changed nothing, else 0, and where there is such, "learning_rate" and "weight", what the batch counted;
      float32, or float64 where they were computed so.

    Raises:
      ConfigError: what is no network, loss, optimizer or metric; from the step, if its batch is no pair, if a layer
        returns a state of other structure, shapes or dtypes, or if a loss scale meets float16 parameters.
      ShapeError: from the step: the loss or a metric is no scalar.
      DTypeError: from the step: the loss or a metric is not real, or no floating-point number.
      DataError: from the step: the batch is empty.

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
    net = as_layer(net, "net")
    weighted.of_pair("loss", loss)
    optimizer = _members.member(optimizer)
    metrics = checked_metrics(metrics)
    if regularizer is not None:
        checks.function("regularizer", regularizer)
    if count is not None:
        checks.function("count", count)
    accumulate = checks.integer("accumulate", accumulate, minimum=1)
    if guard != "update":
        checks.flag("guard", guard)
    if checked("freeze", freeze) is not None:
        make = functools.partial(
            make_step, loss=loss, optimizer=optimizer, metrics=metrics, regularizer=regularizer, accumulate=accumulate,
            count=count, guard=guard,
        )  # fmt: skip
        return named("make_step")(freezing(make, net, freeze, optimizer))

    def objective(params, state, batch, key, scale):
        x, target = batch
        prediction, after = ran(net.apply(params, state, x, train=True, key=key))
        check_next(net, prediction, after, state)
        measured = measure(loss, metrics, prediction, target)
        value = measured["loss"]
        if regularizer is not None:
            measured["penalty"] = scalar("the regularizer", regularizer(params))
            value = add(value, measured["penalty"])
        return value * scale.astype(value.dtype) if scale is not None else value, (after, measured, value)

    of_batch = jax.value_and_grad(objective, has_aux=True)

    @named("make_step")
    def step(train_state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not isinstance(train_state, TrainState):
            raise ConfigError(f"the step takes a TrainState, {no_train_state(train_state)}")
        scale = None
        if train_state.loss_scale:
            check_scalable(train_state.params, guard)
            scale = train_state.loss_scale.value
        params, before, old = train_state.params, train_state.state, train_state.opt_state
        batch = pair(weighted.paired(batch))
        key = jax.random.fold_in(train_state.key, train_state.step)
        if accumulate == 1:
            (_, (state, measured, value)), grads = of_batch(params, before, batch, key, scale)
        else:

            def part(i, state, batch):
                key_of_part = jax.random.fold_in(key, i)
                (_, (state, measured, value)), grads = of_batch(params, state, batch, key_of_part, scale)
                return grads, state, (measured, value)

            grads, state, (measured, value) = over_parts(part, batch, accumulate, count, params, before)
        grads = unscaled(grads, scale)
        taken = take_step(
            optimizer, measured["loss"], grads, params, old, (state, before), guard=guard,
            value=value, value_fn=lambda params: objective(params, before, batch, key, None)[0],
        )  # fmt: skip
        train_state = train_state._replace(
            params=taken.params,
            state=taken.state,
            opt_state=taken.opt_state,
            step=train_state.step + 1,
            guard=counted(train_state.guard, ~taken.skipped, taken.leaf, train_state.step),
            loss_scale=rescaled(train_state.loss_scale, ~taken.skipped),
        )
        weight = weighted.counted(count, batch[1])
        return train_state, {
            **measured,
            "grad_norm": taken.norm,
            **rates.columns(optimizer, old, taken.opt_state),
            **({} if weight is None else {"weight": weight}),
            "skipped": taken.skipped.astype(jnp.float32),
        }

    return step


class Stepping(NamedTuple):
    """What `stepping` returns."""

    regularizer: Callable[[Any], jax.Array] | None
    accumulate: int
    count: Callable[..., Any] | None  # pyright: ignore[reportIncompatibleMethodOverride]
    loss_scale: float | None
    guard: bool | str
    max_skipped: int
    freeze: Which | None = None


@named("stepping")
def stepping(
    *,
    regularizer: Callable[[Any], jax.Array] | None = None,
    accumulate: int = 1,
    count: Callable[..., Any] | None = None,
    loss_scale: float | None = None,
    guard: bool | str = True,
    max_skipped: int = 20,
    freeze: Which | None = None,
) -> Stepping:
    """How the steps of `fit` are made, where it is not the usual way.

    Args:
      regularizer: ``params -> scalar``, added to the loss that is minimized.
      accumulate: parts into which a batch is split to save memory (`make_step`), no more than it has examples.
      count: ``target -> number``, what a batch counts in the mean over parts and over an epoch, where that is not the
        number of its examples, nor the sum of their weights (`make_step`).
      loss_scale: the first factor on the loss, for float16 (`init`); 2.0**15 is usual.
      guard: True, or "update" to look at the updated parameters too (`make_step`).
      max_skipped: non-finite steps in a row to skip before giving up.
      freeze: which leaves of the parameters do not learn (`make_step`), such as ``"0/*"``, all of a chain's first part.

    Returns:
      What `fit` takes as ``step``.

    Raises:
      ConfigError: what is no function, number or flag.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, regularizers, training
      >>> x = jnp.linspace(-1, 1, 16)[:, None]
      >>> fit = training.fit(
      ...     layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, 2 * x), epochs=1, batch_size=8, progress=False,
      ...     step=training.stepping(regularizer=regularizers.l2(1e-4), accumulate=2),
      ... )
      >>> "penalty" in fit.history.names
      True
    """
    if regularizer is not None:
        checks.function("regularizer", regularizer)
    if count is not None:
        checks.function("count", count)
    if loss_scale is not None:
        loss_scale = checks.number("loss_scale", loss_scale, low=0, open_low=True)
    if guard is not True and guard != "update":
        raise ConfigError(
            f"guard must be True or 'update', got {words.came(guard)}; a step without one is make_step(guard=False), "
            f"for a loop of your own"
        )
    accumulate = checks.integer("accumulate", accumulate, minimum=1)
    max_skipped = checks.integer("max_skipped", max_skipped, minimum=1)
    checked("freeze", freeze)
    return Stepping(regularizer, accumulate, count, loss_scale, guard, max_skipped, freeze)


def checked_metrics(metrics: Mapping[str, Callable[..., Any]] | None) -> dict[str, Callable[..., Any]]:
    """A dict of named functions of (prediction, target)."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        hint = "; for example {'accuracy': metrics.accuracy}"
        raise ConfigError(f"metrics must be a dict of name: function, got {words.came(metrics)}{hint}")
    for name, f in metrics.items():
        if not isinstance(name, str) or name in COLUMNS or name.startswith("validation_"):
            raise ConfigError(
                f"a metric needs a name of its own, a string, got {words.came(name)}; call it otherwise: the "
                f"history has columns {', '.join(COLUMNS)} and validation_..."
            )
        weighted.of_pair(f"metric {name!r}", f)
    return dict(metrics)


def measure(loss: Any, metrics: Mapping[str, Any], prediction: Any, target: Any) -> Metrics:
    """The loss and the metrics of a prediction, scalars in at least float32."""
    return {
        "loss": scalar("the loss", weighted.applied("the loss", loss, prediction, target)),
        **{
            name: scalar(f"the metric {name!r}", weighted.applied(f"the metric {name!r}", f, prediction, target))
            for name, f in metrics.items()
        },
    }


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of two scalars in the wider dtype."""
    wide = at_least_float32(a.dtype, b.dtype)
    return a.astype(wide) + b.astype(wide)


def scalar(what: str, value: Any) -> jax.Array:
    """What a loss or a metric returned, which must be one real number, in at least float32."""
    if isinstance(value, tuple):
        raise ShapeError(f"{what} must return one scalar, got a tuple of {len(value)}")
    value = checks.array(what, value)
    if value.shape != ():
        raise ShapeError(f"{what} must be a scalar, got shape {value.shape}; take its mean")
    if jnp.iscomplexobj(value):
        raise DTypeError(f"{what} must be a real number, got {value.dtype}; take its jnp.abs or .real")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        hint = "convert it, .astype('float32')"
        hint = f"a count has no gradient; give it as a metric, and {hint}" if what == "the loss" else hint
        raise DTypeError(f"{what} must be floating point, got {value.dtype}; {hint}")
    return value.astype(at_least_float32(value.dtype))


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch as ``(x, target)``, not empty."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        came = f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else words.came(batch)
        hint = "to reproduce x itself, give (x, x)"
        if isinstance(batch, (tuple, list)):
            picked = "b[0], b[0]" if len(batch) == 1 else "(b[0], b[1]), b[2]"
            hint = f"say what is what, training.stream(loader, pick=lambda b: ({picked}))"
        if batch is None:
            hint = "nothing but its end ends an epoch: leave out what cannot be loaded"
        elif isinstance(batch, Mapping):
            x, target = [repr(name) for name in (*batch, "x", "target")][:2]
            hint = f"of a loader of dicts, give training.stream(loader, pick=({x}, {target}))"
        raise ConfigError(f"a batch is a pair (x, target), got {came}; {hint}")
    weighted.check(batch[1])
    if any(0 in jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tuple(batch))):
        raise DataError("the batch is empty; the mean of no examples is NaN")
    return tuple(batch)


def check_scalable(params: Any, guard: bool | str) -> None:
    """Refuses a loss scale without the guard, and for parameters that it would not help."""
    if not guard:
        raise ConfigError("a loss scale changes at steps that are not finite, so it needs guard=True")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype == jnp.float16:
            raise ConfigError(
                f"the parameter {jax.tree_util.keystr(path)} is float16, in which an unscaled gradient below "
                f"6e-8 is 0; keep the parameters in float32: layers.mixed_precision(net, compute=jnp.float16), with an "
                f"example x in float32"
            )

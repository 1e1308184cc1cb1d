"""Many networks trained at once, in one compiled program."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import data as data_module
from jaxnet.errors import ConfigError, named
from jaxnet.kernels.lowering.onednn import portable
from jaxnet.layers.layer import Layer, Params, State, as_layer
from jaxnet.optimizers import plateau
from jaxnet.optimizers.averaged import averages
from jaxnet.paths import Which
from jaxnet.training import averaging, nans, pairs, pruning
from jaxnet.training import early_stopping as stopping
from jaxnet.training import state as states
from jaxnet.training.evaluate import on_arrays
from jaxnet.training.freezing import as_trained
from jaxnet.training.memory import bytes_needed, members_that_fit
from jaxnet.training.settings import check_rule, checked_settings
from jaxnet.training.state import MOST_BYTES_KEPT, all_finite, nbytes
from jaxnet.training.step import checked_metrics, make_step
from jaxnet.training.targets import check_targets

MOST_FLOPS_AT_ONCE = 2e6
"""On a CPU, operations a step and member up to which members train side by side.

Dense networks of 4e4, 5e5 and 2e6 operations, 32 members: side by side is 1.7, 1.4 and 1.15 times as fast as one after
the other in the same program. A dense one of 1e7 and one of convolutions are as fast with 8; with 64, 1.0 and 0.6.
"""


class Sweep(NamedTuple):
    """What `sweep` returns; member m is the m-th of the networks.

    Attributes:
      params: all members' parameters, stacked along a new first axis.
      state: all members' network states, stacked likewise.
      history: by name, an array ``(epochs, members)``: means over an epoch's finite steps, as `fit` takes them.
      settings: by name, an array ``(members,)``: the seeds and the hyperparameters.
      best: the member with the lowest last loss, of validation if there was one (with ``early_stopping``, with the best
        value of what it watches), of those that ``halving`` has not dropped; -1 if none is finite.
      epochs: an array ``(members,)``: for how many epochs each was trained; after that its history is NaN.
    """

    params: Params
    state: State
    history: dict[str, np.ndarray]
    settings: dict[str, np.ndarray]
    best: int
    epochs: np.ndarray

    @named("sweep")
    def member(self, m: int) -> tuple[Params, State]:
        """The parameters and the state of one network.

        Raises:
          ConfigError: there is no such member; of ``best``, if all diverged.
        """
        members = len(self.settings["seed"])
        if not 0 <= m < members:
            hint = "; every network diverged" if m == -1 else ""
            raise ConfigError(f"member must be from 0 to {members - 1}, got {m}{hint}")
        return jax.tree.map(lambda leaf: leaf[m], (self.params, self.state))


@named("sweep")
def sweep(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    optimizer: Callable[..., Any],
    data: Any,
    *,
    settings: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    validation: Any = None,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    halving: pruning.Halving | int | None = None,
    early_stopping: stopping.EarlyStopping | int | None = None,
    freeze: Which | None = None,
) -> Sweep:
    """Trains one network many times, with other seeds and hyperparameters, all in one compiled program.

    Member m is trained as ``fit(net, loss, optimizer(**its settings), data, key=its seed)`` would, with
    ``data = arrays(x, target, batch_size=..., seed=its seed)``, to within rounding. (Of members of more than 16 MB
    together, updates that are not finite although the gradient is are taken, and the member is never the best.) Where
    the optimizer averages the weights, the averages are validated and returned, as by `fit`.

    With ``halving``, members that are behind are dropped at rungs, and the others go on in a smaller program: each rung
    compiles once more, and saves what the dropped would have taken. What they have come to is kept, with their history.

    Args:
      net: a `Layer`.
      loss: ``(prediction, target) -> scalar``.
      optimizer: makes an optimizer from the settings, without the seed, by their names:
        ``lambda rate: optimizers.adam(rate)``. They are traced scalars.
      data: arrays ``(x, target)``.
      settings: by name, a value a member: "seed", integers, and whatever ``optimizer`` takes. `grid` makes all
        combinations.
      epochs: how often to go through the data.
      batch_size: examples a step and member; samples that do not fill a batch are left out, others each epoch.
      validation: arrays ``(x, target)`` to measure at the end of every epoch.
      metrics: by name, more functions of ``(prediction, target)`` to measure.
      halving: of how many members one goes on at each rung, or a `Halving`. Ranked is the last loss, of validation if
        there is one, or what ``early_stopping`` watches.
      early_stopping: epochs to wait for a better validation loss, or an `EarlyStopping`, of each member by itself; the
        weights are then those of its best epoch. The program shrinks whenever half of its members have stopped.
      freeze: which leaves of the parameters do not learn, as of `make_step`.

    Returns:
      A `Sweep`.

    Raises:
      ConfigError: settings of unequal lengths, no seeds, or names that ``optimizer`` does not take; a halving that
        drops none; members that do not fit in the device's memory, with how many would.
      DataError, DTypeError, ShapeError: data that `fit` refuses.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, optimizers, training
      >>> x = jnp.linspace(-1, 1, 64)[:, None]
      >>> result = training.sweep(
      ...     layers.dense(1), losses.mse, lambda rate: optimizers.sgd(rate), (x, 2 * x),
      ...     settings=training.grid(seed=[0, 1], rate=[1e-4, 0.3]), epochs=5, batch_size=16,
      ... )
      >>> result.history["loss"].shape, float(result.settings["rate"][result.best])
      ((5, 4), 0.3)
    """
    net = as_layer(net, "net")
    checks.function("optimizer", optimizer)
    epochs = checks.integer("epochs", epochs, minimum=1)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    settings, seeds, hyper = checked_settings(settings)
    rungs = pruning.checked(halving, len(seeds), epochs)
    watch = stopping.checked(early_stopping, validation is not None)
    check_rule(optimizer, settings, hyper)
    data, validation = _checked_pairs(net, loss, data, validation)
    samples = len(jax.tree.leaves(data)[0])
    data_module.must_fill(batch_size, samples)
    orders = _orders(seeds, samples, batch_size)
    device = jax.tree.map(jnp.asarray, data)

    begin, one_step, epoch = _member(net, loss, optimizer, device, metrics, freeze)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    shapes = jax.eval_shape(begin, keys, hyper)
    first: Any = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (shapes, hyper))
    first = (*first, jax.ShapeDtypeStruct((batch_size,), jnp.int32))
    small = nbytes(shapes) <= MOST_BYTES_KEPT
    held_out = jax.tree.map(jnp.asarray, validation)
    measured_on = on_arrays(net, loss, checked_metrics(metrics), 2 * batch_size)

    weights, its_orders = None, None
    if averages(shapes.opt_state):
        weights = averaging.of_member(as_trained(net, first[0].params, freeze), device[0])
        its_orders = orders(0, *range(len(seeds)))

    @functools.cache
    def programs(alone):
        over = _over_members(1 if alone else len(seeds), one_step, *first)
        unguarded = nans.compiled(over(functools.partial(epoch, guard=False)))
        guarded = nans.compiled(over(functools.partial(epoch, guard="update" if small else True)), donate_argnums=0)
        evaluate = nans.compiled(over(lambda params, state: measured_on(params, state, *held_out)))
        return unguarded, guarded, evaluate, weights and nans.compiled(over(weights))

    def bytes_of(members):
        arguments = pairs.of_size(members, (shapes, hyper, orders(0, *range(len(seeds)))))
        over = _over_members(len(seeds), one_step, *first)
        found = bytes_needed(jax.jit(over(functools.partial(epoch, guard=not small))), *arguments)
        # The data, the program's copy of them, and the orders of the next epoch.
        return found and found + 2 * nbytes(device) + nbytes(arguments[2])

    watched = dict.fromkeys(plateau.monitors(shapes), "reduce_on_plateau")
    members = pruning.Pruning(len(seeds), rungs, watch, "loss" if validation is None else "validation_loss")
    for monitor, who in (watched if watch is None else watched | {watch.monitor: "early stopping"}).items():
        validated = [] if validation is None else [f"validation_{name}" for name in ("loss", *(metrics or ()))]
        stopping.check_column(monitor, [*jax.eval_shape(one_step, *first)[1], *validated], who)
    stopping.check_mode(watch)
    records: list[dict[str, np.ndarray]] = []
    where, well = next(iter(jax.tree.leaves(device)[0].devices())), small
    with members_that_fit(len(seeds), where, bytes_of):
        train_state = jax.jit(begin)(keys, hyper)
        for number in range(epochs):
            rows = orders(number, *members.places.tolist())
            unguarded, guarded, evaluate, of_weights = programs(len(members.places) == 1)
            after, measured, finite = (unguarded if well else guarded)(train_state, hyper, rows)
            if number + 1 < epochs:
                orders(number + 1, *members.places.tolist())  # drawn while the device computes
            if well and not finite.all():
                well = False  # once a member has diverged, this epoch and all that follow are trained with the guard
                after, measured, _ = guarded(train_state, hyper, rows)
            train_state = after
            kept = of_weights(train_state, its_orders) if of_weights else (train_state.params, train_state.state)
            if validation is not None:
                validated = evaluate(*kept)
                measured |= {f"validation_{name}": values for name, values in validated.items()}
            if watched:
                train_state = plateau.observe(train_state, measured)
            measured = jax.device_get(measured)
            records.append(members.record(measured))
            stay = members.after(number + 1, measured, kept)
            if members.over:
                break
            if stay is not None:
                going = (train_state, hyper, its_orders)
                train_state, hyper, its_orders = jax.tree.map(lambda leaf, stay=stay: leaf[stay], going)
    history = {name: np.stack([record[name] for record in records]) for name in records[0]}
    (params, state), best = members.result()
    return Sweep(params, state, history, settings, best, members.epochs)


def _checked_pairs(net: Layer, loss: Any, data: Any, validation: Any) -> tuple[Any, Any]:
    """Both as arrays, with labels that the network has outputs for."""
    data = pairs.checked(data)
    check_targets(net, loss, data)
    if validation is not None:
        validation = named("sweep: validation")(pairs.checked)(validation)
        check_targets(net, loss, validation)
    return data, validation


def _member(
    net: Layer, loss: Any, optimizer: Callable[..., Any], data: Any, metrics: Any, freeze: Which | None
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The first states of members, and of one member a step on some rows of the data, and an epoch of such steps."""

    @jax.vmap
    def begin(key, hyper):
        return states.init(net, optimizer(**hyper), pairs.of_size(1, data[0]), key, freeze=freeze)

    def one_step(train_state, hyper, row, *, guard=True):
        step = make_step(net, loss, optimizer(**hyper), metrics=metrics, guard=guard, freeze=freeze)
        return step(train_state, jax.tree.map(lambda leaf: leaf[row], data))

    def epoch(train_state, hyper, rows, *, guard):
        train_state, measured = jax.lax.scan(
            lambda carry, row: one_step(carry, hyper, row, guard=guard), train_state, rows
        )
        weight = measured.pop("weight", None)
        finite = {name: jnp.isfinite(values) for name, values in measured.items()}
        means = {name: _mean(values, weight, finite[name]) for name, values in measured.items()}
        means["skipped"] = jnp.sum(measured["skipped"])
        return train_state, means, jnp.all(finite["loss"] & finite["grad_norm"]) & all_finite(train_state.params)

    return begin, one_step, epoch


def _mean(values: jax.Array, weight: jax.Array | None, which: jax.Array) -> jax.Array:
    """Over some of an epoch's steps, each by what its batch counted."""
    if weight is None:
        return jnp.mean(values, where=which)
    weight = jnp.where(which & jnp.isfinite(weight), weight.astype(values.dtype), 0)
    return jnp.sum(weight * jnp.where(which, values, 0)) / jnp.sum(weight)


def _orders(seeds: np.ndarray, samples: int, batch_size: int) -> Callable[..., jax.Array]:
    """By epoch, some members' orders ``(members, steps, batch_size)`` on the device; each seed's is drawn once."""
    distinct, which = np.unique(seeds, return_inverse=True)
    steps = samples // batch_size

    @functools.lru_cache(maxsize=2)
    def drawn(epoch):
        orders = np.empty((len(distinct), steps, batch_size), np.int32)
        for order, seed in zip(orders, distinct.tolist(), strict=True):
            one = data_module.epoch_order(samples, seed=seed, epoch=epoch)
            order[:] = one[: steps * batch_size].reshape(steps, batch_size)
        return orders

    return functools.lru_cache(maxsize=2)(lambda epoch, *members: jnp.asarray(drawn(epoch)[which[list(members)]]))


def _over_members(
    members: int, step: Callable[..., Any], *arguments: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.vmap`; or on a CPU, if a step has work enough, one member after the other in the same program."""

    def flops():
        with portable():  # of a library's calls XLA knows no cost
            return (jax.jit(lambda *of: step(*of)).lower(*arguments).cost_analysis() or {}).get("flops", 0.0)

    if jax.default_backend() == "cpu" and (members == 1 or flops() > MOST_FLOPS_AT_ONCE):
        return lambda f: lambda *arguments: jax.lax.map(lambda one: f(*one), arguments)
    return jax.vmap

"""The loss and the metrics of a network on a whole set, in evaluation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxnet import _checks as checks
from jaxnet import data as data_module
from jaxnet.errors import DataError, named
from jaxnet.layers.layer import Layer, as_layer, ran
from jaxnet.losses.common import is_mean_over_examples
from jaxnet.training import devices, nans, pairs, weighted
from jaxnet.training.pairs import Arrays
from jaxnet.training.sources import given, in_full
from jaxnet.training.state import all_finite
from jaxnet.training.step import Metrics, checked_metrics, measure, scalar
from jaxnet.training.weighted import applied, of_pair

Evaluate = Callable[..., dict[str, float]]
"""``(params, state, data, *, epoch=0) -> {"loss": ..., ...}``."""


@named("evaluate")
def make_evaluate(
    net: Any,
    loss: Callable[[Any, Any], jax.Array],
    *,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    batch_size: int = 256,
    count: Callable[..., Any] | None = None,
    mesh: Any = None,
) -> Evaluate:
    """Makes the function that measures a network on a whole set.

    Of arrays ``(x, target)`` it computes the predictions batch by batch, in one compiled program, and then the loss and
    the metrics of all of them at once: exact for every loss and metric, whatever the size of the last batch. Of
    `jaxnet.losses` and `jaxnet.metrics` as they are, which are means over examples (but `metrics.r2`), only each
    example's value is kept; where another function is among them, all predictions are. Of an iterable of batches it
    gives their mean, weighted by their sizes, or by the sums of their weights: data may be ``(x, target, weights)``,
    which the loss and the metrics are given.

    NaN and Inf among the data are refused, wherever the data are; a prediction that is not finite is measured as it is,
    and gives a loss that is not finite.

    Args:
      net: a `Layer`.
      loss: ``(prediction, target) -> scalar``.
      metrics: by name, more such functions.
      batch_size: examples at once.
      count: ``target -> number``, what a batch counts, where it is something else (`make_step`).
      mesh: devices among which to share the examples. An iterable gives each process its own part, of any length; then
        parameters in pieces are put together on every device first.

    Returns:
      ``evaluate(params, state, data) -> {"loss": float, ...}``, which compiles at its first call. Data are what `fit`
      takes as ``data``; of an iterable that does not end, `stream` says how many batches to read.

    Raises:
      ConfigError: what is no network, loss, metric or size.
      DataError: from the function: no data, unequal lengths, NaN or Inf; a stream that ends too early.
      DTypeError: from the function: data that are no arrays of numbers, or a loss or metric that is not real.
      ShapeError: from the function: data that do not fit the network, or a loss or metric that is no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, losses, training
      >>> net = layers.dense(1)
      >>> params, state = net.init(0, jnp.ones((1, 3)))
      >>> evaluate = training.make_evaluate(net, losses.mse)
      >>> evaluate(params, state, (jnp.zeros((10, 3)), jnp.ones((10, 1))))
      {'loss': 1.0}
    """
    net = as_layer(net, "net")
    of_pair("loss", loss)
    metrics = checked_metrics(metrics)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if count is not None:
        checks.function("count", count)
    if mesh is not None:
        mesh = devices.automatic(mesh)
        batch_size += -batch_size % mesh.shape[mesh.axis_names[0]]

    everywhere: dict[str, Any] = {} if mesh is None else {"out_shardings": devices.replicated(mesh)}
    whole = on_arrays(net, loss, metrics, batch_size, mesh)
    warned = False

    @functools.partial(nans.compiled, **everywhere)
    def of_arrays(params, state, x, target):
        return whole(params, state, x, target), all_finite((x, target))

    @nans.compiled
    def of_batch(params, state, batch):
        x, target = batch
        measured = measure(loss, metrics, ran(net.apply(params, state, x, train=False))[0], target)
        return measured, all_finite(batch), weighted.counted(count, target)

    @named("evaluate")
    def evaluate(params, state, data, *, epoch=0):
        with devices.in_use(mesh):
            if isinstance(data, (tuple, Arrays)):
                return of_whole(params, state, data if isinstance(data, tuple) else data.pair)
            source: Any = given(in_full(data), goes_on=False)
            return named(source.who)(of_batches)(params, state, source, epoch)

    def of_whole(params, state, data):
        x, target = pairs.checked_where_they_are(data)
        measured, finite = jax.device_get(of_arrays(params, state, x, target))
        _must_be_finite((x, target), finite)
        return {name: float(value) for name, value in measured.items()}

    def of_batches(params, state, source, epoch):
        nonlocal warned
        if mesh is not None:
            params, state = devices.whole_here((params, state), mesh)
        totals: dict[str, float] = {}
        total = 0.0
        narrowed: dict[str, np.dtype] = {}
        # Of several processes, no other must wait for this one's means.
        with devices.together(DataError("another process could not measure its part; its error says why")):
            for number, batch in enumerate(source.whole_epoch(epoch)):
                batch = source.batch(epoch, number, batch, narrowed)
                size = pairs.size(batch)
                if mesh is not None:
                    batch = jax.device_put(batch, devices.over_batch_if_it_fits(mesh.local_mesh, size))
                with source.where_it_is_odd(epoch, number, batch):
                    measured, finite, weight = jax.device_get(of_batch(params, state, batch))
                with source.at(epoch, number):
                    _must_be_finite(batch, finite)
                weight = size if weight is None else float(weight)
                for name, value in measured.items():  # of what counts nothing, not even NaN
                    totals[name] = totals.get(name, 0.0) + (weight * float(value) if weight else 0.0)
                total += weight
        if not warned:
            checks.warn_of_narrowed(narrowed)
        warned = warned or bool(narrowed)
        return _over_processes({name: sums / total if total else 0.0 for name, sums in totals.items()}, total)

    return evaluate


def on_arrays(
    net: Layer, loss: Any, metrics: Mapping[str, Any], batch_size: int, mesh: Mesh | None = None
) -> Callable[..., Metrics]:
    """The function that `make_evaluate` compiles for arrays: ``(params, state, x, target) -> metrics``."""
    every = {"loss": loss, **metrics}
    means = {name: f for name, f in every.items() if is_mean_over_examples(f)}  # so that no prediction need be kept

    def measured_each(prediction, target):
        prediction, target = jax.tree.map(lambda leaf: leaf[None], (prediction, target))
        each = {name: scalar(name, applied(f"the {name}", f, prediction, target)) for name, f in means.items()}
        return each, weighted.counted(None, target)

    def evaluate(params, state, x, target):
        x, target = jax.tree.map(jnp.asarray, (x, target))  # also where this runs without being compiled

        def of_batch(x, target):
            prediction = ran(net.apply(params, state, x, train=False))[0]
            jax.eval_shape(functools.partial(measure, loss, metrics), prediction, target)  # errors with their shapes
            each = jax.vmap(measured_each)(prediction, target) if means else ({}, None)
            return each, None if len(means) == len(every) else prediction

        (each, weights), prediction = _batch_by_batch(of_batch, (x, target), batch_size, mesh)
        if prediction is None:
            measured = {}
        else:
            rest = {name: f for name, f in metrics.items() if name not in means}
            measured = measure(loss, rest, prediction, target)
        return measured | {name: _mean(values, weights) for name, values in each.items()}

    return evaluate


def _mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Of one value an example, each by what it counts; 0 where nothing does, as of the losses."""
    if weights is None:
        return jnp.mean(values)
    weights = weights.astype(values.dtype)
    total = jnp.sum(weights)
    return jnp.sum(jnp.where(weights == 0, 0, weights * values)) / jnp.where(total == 0, 1, total)


def _batch_by_batch(f: Callable[..., Any], data: Any, batch_size: int, mesh: Mesh | None) -> Any:
    """``f`` of all data, which gives an entry an example, computed on batches of one size."""
    n = jax.tree.leaves(data)[0].shape[0]
    if mesh is None:
        # The last batch ends with the last example, so that it begins among those of the one before; its entries are
        # written over theirs. One array holds all, where a scan's outputs would be cut from another.
        size = min(batch_size, n)

        def batch(start):
            return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)

        def compute(i, whole):
            start = jnp.minimum(i * size, n - size)
            return jax.tree.map(
                lambda all, some: jax.lax.dynamic_update_slice_in_dim(all, some, start, 0), whole, f(*batch(start))
            )

        shapes = jax.eval_shape(lambda: f(*batch(0)))
        whole = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, -(-n // size), compute, whole)

    # On a mesh it is filled with the last example, again and again; what that gives is cut off.
    rows = np.minimum(np.arange(-(-n // batch_size) * batch_size, dtype=np.int32), n - 1).reshape(-1, batch_size)

    def of_rows(index):
        batch = jax.tree.map(lambda leaf: leaf[index], data)
        return f(*jax.lax.with_sharding_constraint(batch, devices.over_batch(mesh)))

    each = jax.lax.map(of_rows, jnp.asarray(rows))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], each)


def _over_processes(means: dict[str, float], weight: float) -> dict[str, float]:
    """The means over what all processes have measured, each on what counts ``weight``."""
    if jax.process_count() == 1:
        return means
    mine = np.array([weight, *means.values()]).view(np.uint32)  # float64's bits, whatever JAX keeps
    weights, *values = multihost_utils.process_allgather(mine).view(np.float64).T
    total = max(weights.sum(), np.finfo(np.float64).tiny)
    return {name: float((weights * value).sum() / total) for name, value in zip(means, values, strict=True)}


def _must_be_finite(data: Any, finite: bool) -> None:
    if not finite:
        for path, leaf in jax.tree_util.tree_leaves_with_path(data):
            data_module.check_finite(pairs.leaf_name(path), np.asarray(devices.own_copy(leaf)))

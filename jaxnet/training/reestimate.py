"""Batch norm's statistics made anew, for weights that it was not trained with."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import data as data_module
from jaxnet.errors import ConfigError, DataError, located, named
from jaxnet.layers.layer import Layer, Params, State, as_layer
from jaxnet.paths import Which
from jaxnet.training import nans, sources
from jaxnet.training.freezing import as_trained
from jaxnet.training.pairs import Arrays
from jaxnet.training.state import all_finite


@named("reestimate")
def reestimate(
    net: Any, params: Params, state: State, data: Any, *, batch_size: int | None = None, batches: int | None = None,
    freeze: Which | None = None, key: Any = 0,
) -> State:  # fmt: skip
    """Makes the averages that a network keeps of what it sees anew: those of batch norms, for other weights.

    The mean and the variance of each batch norm become the means, over batches, of those of each batch, all with one
    weight, while the network runs as in training. Averages of weights need it (`optimizers.swa`, `optimizers.ema`):
    the statistics that were kept in training are those of the weights at that time. `fit` does it by itself. All else
    in the state stays as it is.

    Args:
      net: a `Layer` from x to a prediction.
      params: the weights.
      state: the network's state.
      data: as `fit` takes it; the targets are not looked at. Batches of arrays are drawn in the order of the first
        epoch; a last one that is not full is left out.
      batch_size: of arrays ``(x, target)``.
      batches: how many batches to read; all unless given.
      freeze: which leaves were frozen, as of `stepping`: parts that are frozen whole keep their statistics.
      key: a PRNG key or a seed, of dropout.

    Returns:
      The state, with the statistics made anew; of a network that keeps none, the state.

    Raises:
      ConfigError: a batch norm inside a layer that nothing can be put into, or parameters on several processes.
      DataError: no data, or a batch of which the statistics are not finite.
      DTypeError: data that are no arrays of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers, training
      >>> net = layers.batch_norm()
      >>> x = jnp.arange(8.0)[:, None]
      >>> params, state = net.init(0, x)
      >>> training.reestimate(net, params, state, (x, x), batch_size=4)["mean"]
      Array([3.5], dtype=float32)

    Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1; `torch.optim.swa_utils.update_bn`.
    """
    net = as_layer(net, "net")
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)):
        raise ConfigError(
            "the parameters lie on the devices of several processes, of which each would read other batches; fit makes "
            "the statistics anew by itself, and elsewhere one process can, with whole parameters of its own"
        )
    afresh = reestimating(as_trained(net, params, freeze))
    if afresh is None:
        return state
    if batches is not None:
        batches = checks.integer("batches", batches, minimum=1)
    source = sources.given(data, batch_size, goes_on=False)
    read = of_arrays(source, batches) if isinstance(source, Arrays) else _of_source(source, batches)
    state, taken, given = afresh(params, state, read, checks.key(key))
    if not given:
        raise DataError("the data held no batch")
    if taken < given:
        raise DataError(f"of {given - taken} of {given} batches the statistics are not finite: is there NaN in x?")
    return state


def reestimating(net: Layer) -> Callable[..., tuple[State, int, int]] | None:
    """``(params, state, batches of x, key) -> (state, batches that were finite, batches)``; None if nothing is kept."""
    one_more = by_batch(net)
    if one_more is None:
        return None
    program = nans.compiled(one_more)

    def over(params: Params, state: State, batches: Iterable[Any], key: jax.Array) -> tuple[State, int, int]:
        taken, given = jnp.int32(0), 0
        for x in batches:
            state, taken = program(params, state, taken, x, key)
            given += 1
        return state, int(taken), given

    return over


def by_batch(net: Layer) -> Callable[..., tuple[State, jax.Array]] | None:
    """``(params, state, batches that are in it, one more x, key) -> (state, batches)``; None if nothing is kept."""
    measuring, any_kept = _measuring(net)
    if not any_kept:
        return None

    def one_more(params, state, taken, x, key):
        new = measuring.apply(params, state, x, train=True, key=jax.random.fold_in(key, taken))[1]
        finite = all_finite(new)
        taken = taken + finite.astype(taken.dtype)

        def mean(old, new):
            if not jnp.issubdtype(old.dtype, jnp.inexact):
                return old
            moved = old + (new - old) / jnp.maximum(taken, 1).astype(old.dtype)
            return jnp.where(finite, jnp.where(taken == 1, new, moved), old)

        return jax.tree.map(mean, state, new), taken

    return one_more


def of_arrays(arrays: Arrays, most: int | None) -> Iterator[Any]:
    """The x of the first full batches of the first epoch; of less than one, all of it."""
    order = data_module.epoch_order(arrays.samples, seed=arrays.seed, epoch=0, shuffle=arrays.shuffle)
    size = min(arrays.batch_size, arrays.samples)
    for number in range(min(arrays.samples // size, most or arrays.samples)):
        rows = order[number * size : (number + 1) * size]
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], arrays.x)


def _of_source(source: Any, most: int | None) -> Iterator[Any]:
    for number, batch in enumerate(source.whole_epoch(0)):
        yield source.batch(0, number, batch, {})[0]
        if number + 1 == most:
            return


def _measuring(net: Layer) -> tuple[Layer, bool]:
    """The network whose batch norms have as their state that of a batch alone, all else its own; whether any does."""
    about = net.about
    if about.statistics is not None:
        return about.statistics(), True
    rebuild = about.rebuild or getattr(about.stream, "rebuild", None)
    if not about.parts or about.trees == "state" or rebuild is None:
        if about.parts and about.trees != "state" and any(_measuring(part)[1] for _, part in about.parts):
            raise ConfigError(
                f"a {net.name} keeps statistics, and no other layers can be put into it; call training.reestimate for "
                f"the network inside it"
            )
        return _holding(net), False
    found = []
    for label, part in about.parts:
        with located(f"{net.name}[{label}]" if label.isdecimal() else f"{net.name}.{label}"):
            found.append(_measuring(part))
    return rebuild(*(part for part, _ in found)), any(kept for _, kept in found)


def _holding(layer: Layer) -> Layer:
    def apply(params, state, x, *, train, key=None):
        return layer.apply(params, state, x, train=train, key=key)[0], state

    return layer._replace(apply=apply)

"""The weights that `fit` and `sweep` evaluate, keep and return where the optimizer averages those that it trains."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxnet import _checks as checks
from jaxnet.layers.layer import Layer, Params, State
from jaxnet.optimizers.averaged import averaged
from jaxnet.training import devices
from jaxnet.training.pairs import Arrays
from jaxnet.training.reestimate import by_batch, of_arrays, reestimating
from jaxnet.training.sources import Source
from jaxnet.training.state import nbytes

MOST_BATCHES, MOST_BYTES = 50, 2**28
"""How many training batches the statistics of batch norms are made of, and how large those of a stream may be."""


class Averaged:
    """``train_state -> (params, state)``: the averages, with statistics of training batches that are theirs.

    Those are the first batches of the data: of arrays, in the order of the first epoch; of a stream, the first that
    were read of the last epoch begun, which are others where a run goes on from a loader's position within it.
    """

    saved = True  # a checkpoint holds them beside the train state

    def __init__(self, net: Layer, data: "Arrays | Source", mesh: jax.sharding.Mesh | None):
        self._afresh, self._mesh, self._data = reestimating(net), mesh, data
        self._averaged = jax.jit(averaged)
        self._read: list[Any] = []
        self._last: tuple[int, Any] | None = None
        if self._afresh is not None and isinstance(data, Source):
            # Until an epoch has read some: a run may go on at the end of one, by its loader's position.
            self._read = [jax.tree.map(np.array, data.first[0])]
            data.passing = functools.partial(self._remembered, data)

    def __call__(self, train_state: Any) -> tuple[Params, State]:
        step = int(train_state.step)
        if self._last is None or self._last[0] != step:
            self._last = step, self._made(train_state, step)
        return self._last[1]

    def _made(self, train_state: Any, step: int) -> tuple[Params, State]:
        with devices.in_use(self._mesh):
            params, state = self._averaged(train_state.opt_state, train_state.params), train_state.state
            if self._afresh is not None and step:
                state = self._afresh(params, state, self._batches(), checks.key(0))[0]
        return params, state

    def _batches(self) -> Iterator[Any]:
        mesh = self._mesh
        if isinstance(self._data, Arrays):
            for x in of_arrays(self._data, MOST_BATCHES):
                yield x if mesh is None else jax.tree.map(lambda leaf: devices.put(leaf, devices.over_batch(mesh)), x)
            return
        read = self._read
        if jax.process_count() > 1:  # of which one may have read further ahead
            read = read[: int(multihost_utils.process_allgather(np.int32(len(read))).min())]
        for x in read:
            yield x if mesh is None else devices.place_local_batch(x, mesh)

    def _remembered(self, source: Source, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of an epoch, of which the first are copied; a loader may fill its arrays anew."""
        mine: list[Any] = []
        for batch in batches:
            if len(mine) < MOST_BATCHES:
                try:
                    x = jax.tree.map(np.array, source.pair(batch, {})[0])
                    if not mine or (nbytes(mine) + nbytes(x) <= MOST_BYTES and _shapes(x) == _shapes(mine[0])):
                        mine.append(x)
                        self._read = mine
                except Exception:  # the run makes the same pair of it, and refuses it with its place
                    pass
            yield batch


def of_member(net: Layer, x: Any) -> Callable[[Any, jax.Array], tuple[Params, State]]:
    """`Averaged` inside the program of a sweep: ``(train_state, rows of x by batches) -> (params, state)``."""
    one_more: Any = by_batch(net)

    def weights(train_state, rows):
        params, state = averaged(train_state.opt_state, train_state.params), train_state.state
        if one_more is None:
            return params, state

        def batch(carry, row):
            return one_more(params, *carry, jax.tree.map(lambda leaf: leaf[row], x), checks.key(0)), None

        return params, jax.lax.scan(batch, (state, jnp.int32(0)), rows[:MOST_BATCHES])[0][0]

    return weights


def _shapes(x: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x)

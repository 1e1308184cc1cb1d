"""Rectifier units that are 0 on a whole data set: they learn nothing and pass nothing on (4.2.1)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet._tables import few
from jaxnet.diagnostics import _rows
from jaxnet.errors import DataError, named
from jaxnet.layers.inside import looked_into, watched
from jaxnet.layers.layer import as_layer


class DeadUnits(NamedTuple):
    """The dead units of each rectifier; prints as a table.

    Attributes:
      labels: path and name of each rectifier.
      units: how many units (channels of its output) it has.
      indices: which of them are 0 on every sample and at every position, an array a rectifier.
    """

    labels: tuple[str, ...]
    units: tuple[int, ...]
    indices: tuple[np.ndarray, ...]

    @property
    def shares(self) -> np.ndarray:
        """The share of dead units of each rectifier."""
        pairs = zip(self.indices, self.units, strict=True)
        return np.array([len(index) / count for index, count in pairs])

    def __str__(self) -> str:
        lines = []
        for label, count, index in zip(self.labels, self.units, self.indices, strict=True):
            which = f": {few(index, 12)}" if len(index) else ""
            lines.append(f"{label}: {len(index)} of {count} units dead{which}")
        return "\n".join(lines) or "no rectifier"


@named("dead_units")
def dead_units(net: Any, params: Any, state: Any, data: Any, *, batch_size: int = 256) -> DeadUnits:
    """Finds the units of rectifiers that are 0 on a whole data set.

    A layer is a rectifier if it is 0 for all negative numbers, whatever its name; leaky ones have no dead units.

    Args:
      net: a `Layer`.
      params: its parameters.
      state: its state.
      data: inputs, an array with a sample an entry of the first axis (or a dict of such), or an iterable of batches.
      batch_size: samples at once, of an array.

    Returns:
      A `DeadUnits`.

    Raises:
      DataError: there are no samples.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations, diagnostics, layers
      >>> net = layers.chain(layers.dense(3), activations.relu)
      >>> params = ({"kernel": jnp.ones((2, 3)), "bias": jnp.array([0.0, -9.0, 1.0])}, ())
      >>> print(diagnostics.dead_units(net, params, ((), ()), jnp.ones((10, 2))))
      1 relu: 1 of 3 units dead: 1

    Source: chapter 4.2.1; Lu et al. 2019, [74].
    """
    net = as_layer(net, "dead_units")
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if isinstance(data, (np.ndarray, jax.Array, dict)):
        whole, samples = data, len(jax.tree.leaves(data)[0]) if jax.tree.leaves(data) else 0
        parts = (slice(first, first + batch_size) for first in range(0, samples, batch_size))
        data = (jax.tree.map(lambda leaf, part=part: leaf[part], whole) for part in parts)

    def watch(path, layer, params, state, x, y):
        if looked_into(layer):
            return ()
        if not hasattr(y, "dtype") or not _rows.kind(layer, y.dtype).rectifier:
            return jnp.zeros(0, bool)
        return jnp.all(y == 0, axis=tuple(range(y.ndim - 1)))

    @jax.jit
    def zero_everywhere(params, state, x):
        return _rows.seen(net, watched(net, watch).apply(params, state, x, train=False)[1])

    dead: list[Any] | None = None
    for x in data:
        zero = jax.device_get(zero_everywhere(params, state, jax.tree.map(lambda a: checks.array("data", a), x)))
        dead = zero if dead is None else jax.tree.map(np.logical_and, dead, zero)
    if dead is None:
        raise DataError("the data held no sample; an iterator can be read once: give an array, or a list")
    rows = _rows.expanded(net, [mask.shape[:-1] for mask in dead])
    rows = [row for row in rows if dead[row[1]].shape[-1]]  # of what is no rectifier the mask is empty
    masks = [dead[leaf][copy] for _, leaf, copy in rows]
    return DeadUnits(
        tuple(label for label, _, _ in rows),
        tuple(len(mask) for mask in masks),
        tuple(np.flatnonzero(mask) for mask in masks),
    )

"""Rectifier units that are 0 on a whole data set: they learn nothing and pass nothing on (4.2.1)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._tables import few
from jaxnet.diagnostics import _rows
from jaxnet.errors import ConfigError, DataError, named
from jaxnet.layers.layer import as_layer


class DeadUnits(NamedTuple):
    """The dead units of each rectifier, as `dead_units` finds them; prints as a table.

    Attributes:
      labels: path and name of each rectifier.
      units: how many units (channels of its output) it has.
      indices: which of them are 0 on every sample and at every position, an integer array (dead units,) a rectifier.
    """

    labels: tuple[str, ...]
    units: tuple[int, ...]
    indices: tuple[np.ndarray, ...]

    @property
    def shares(self) -> np.ndarray:
        """The share of dead units of each rectifier, (rectifiers,)."""
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
      data: inputs, an array (samples, ...), or a dict of such, or an iterable of batches.
      batch_size: samples at once, of an array.

    Returns:
      A `DeadUnits`.

    Raises:
      DataError: there are no samples.
      DTypeError: what is no array of numbers.
      ConfigError: what is no network or size.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import activations, diagnostics, layers
      >>> net = layers.chain(layers.dense(3), activations.relu)
      >>> params = ({"kernel": jnp.ones((2, 3)), "bias": jnp.array([0.0, -9.0, 1.0])}, ())
      >>> print(diagnostics.dead_units(net, params, ((), ()), jnp.ones((10, 2))))
      1 relu: 1 of 3 units dead: 1

    Source: chapter 4.2.1; Lu et al. 2019, [74].
    """
    net = as_layer(net, "net")
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if isinstance(data, (np.ndarray, jax.Array, dict)):
        whole, samples = data, len(jax.tree.leaves(data)[0]) if jax.tree.leaves(data) else 0
        parts = (slice(first, first + batch_size) for first in range(0, samples, batch_size))
        data = (jax.tree.map(lambda leaf, part=part: leaf[part], whole) for part in parts)

    def zero_everywhere(layer, y):
        if not hasattr(y, "dtype") or not _rows.kind(layer, y.dtype).rectifier:
            return jnp.zeros(0, bool)
        return jnp.all(y == 0, axis=tuple(range(y.ndim - 1)))

    program = _rows.evaluated(net, zero_everywhere)
    dead: list[Any] | None = None
    for x in data:
        zero = jax.device_get(program(params, state, jax.tree.map(lambda a: checks.array("data", a), x)))
        dead = zero if dead is None else jax.tree.map(np.logical_and, dead, zero)
    if dead is None:
        raise DataError("the data held no sample; an iterator can be read once: give an array, or a list")
    rows = _rows.expanded(net, dead)
    rows = [row for row in rows if dead[row[1]].shape[-1]]  # of what is no rectifier the mask is empty
    masks = [dead[leaf][copy] for _, leaf, copy in rows]
    return DeadUnits(
        tuple(label for label, _, _ in rows),
        tuple(len(mask) for mask in masks),
        tuple(np.flatnonzero(mask) for mask in masks),
    )


@named("born_dead_probability")
def born_dead_probability(widths: Sequence[int]) -> float:
    """The chance that some hidden layer of a fresh relu network is 0 for a given input, so that nothing passes.

    With weights drawn symmetrically about 0, independently, and biases 0 (or symmetric too), each unit of a layer that
    sees anything but zeros is positive with chance 1/2. All N_l of them are off with chance 2^-N_l, so ::

        P(dead) = 1 - prod over l of (1 - 2^-N_l)

    A network that is 0 for all inputs is 0 for each one, so this bounds the chance of being born dead over a whole
    domain from above; with biases 0 and inputs on one ray it is that chance. It tends to 1 as depth grows, and to 0 as
    width grows.

    Args:
      widths: N_1, N_2, ..., units of each hidden layer.

    Returns:
      The chance, from 0 to 1.

    Raises:
      ConfigError: no layer, or a width that is no positive integer.

    Example:
      >>> from jaxnet import diagnostics
      >>> round(diagnostics.born_dead_probability([2] * 10), 3)  # ten layers of two units
      0.944
      >>> diagnostics.born_dead_probability([64] * 10) < 1e-18
      True

    Source: Lu et al. 2019, arXiv 1903.06733, [74], the upper bound for symmetric initialization.
    """
    if not isinstance(widths, Sequence) or not widths:
        raise ConfigError(
            f"widths must be a sequence with one width a hidden layer, got {words.came(widths)}; try [64, 64]"
        )
    dead = 0.0
    for width in widths:
        # Adding up what dies keeps the digits that 1 - (1 - small) would lose.
        dead += (1 - dead) * 0.5 ** checks.integer("widths", width, minimum=1)
    return dead

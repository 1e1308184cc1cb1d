"""A table of a network: every layer's output shape, parameters and multiply-adds, before any array exists."""

import math
from typing import Any, NamedTuple

import jax

from jaxnet import _checks as checks
from jaxnet import sizes
from jaxnet._tables import table
from jaxnet.errors import named
from jaxnet.layers.inside import looked_into, watched
from jaxnet.layers.layer import Layer, as_layer


class Row(NamedTuple):
    """One layer of a network, as `summary` finds it.

    Attributes:
      path: the labels that lead to it, outermost first.
      name: the layer's name.
      output: shape of its output (of each output, where there are several).
      dtype: of its output.
      parameters: how many numbers it learns.
      multiply_adds: in its products and convolutions, for the whole batch of the example input.
    """

    path: tuple[str, ...]
    name: str
    output: Any
    dtype: str
    parameters: int
    multiply_adds: int


class Summary(NamedTuple):
    """What `summary` returns: the rows of a network, the whole network first; prints as a table.

    Attributes:
      rows: a `Row` for each layer. Those inside a ``repeat`` are of one copy; the row of the ``repeat`` counts all.
    """

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return self.rows[0].parameters

    @property
    def multiply_adds(self) -> int:
        """How many multiply-adds one forward pass of the example input takes."""
        return self.rows[0].multiply_adds

    def __str__(self) -> str:
        head = ("layer", "output", "parameters", "multiply-adds")
        body = [
            (
                "  " * (len(row.path) - 1) + " ".join((*row.path[-1:], row.name)),
                f"{row.dtype} {row.output}",
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
            )
            for row in self.rows[1:] or self.rows
        ]
        total = ("total", "", f"{self.parameters:,}", f"{self.multiply_adds:,}")
        return table(head, body, left=2, total=total)


@named("summary")
def summary(net: Layer, x: Any) -> Summary:
    """Tells what a network would do to ``x``: shapes, parameters and multiply-adds of every layer.

    Everything is inferred by tracing; no parameter is drawn and no array allocated, so a network larger than the
    machine can be looked at.

    Args:
      net: the network.
      x: an example input, or its `jax.ShapeDtypeStruct`, or a pytree of them. Its batch size counts in the
        multiply-adds.

    Returns:
      A `Summary`, to print or to read.

    Raises:
      ShapeError: x does not fit the network.
      DTypeError: x is no array, or of a dtype that the network does not take.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.conv(8, 3, padding="same"), jnp.tanh, layers.flatten(), layers.dense(10))
      >>> print(layers.summary(net, jax.ShapeDtypeStruct((1, 16, 2), jnp.float32)))
      layer      output              parameters  multiply-adds
      ---------  ------------------  ----------  -------------
      0 conv     float32 (1, 16, 8)          56            768
      1 tanh     float32 (1, 16, 8)           0              0
      2 flatten  float32 (1, 128)             0              0
      3 dense    float32 (1, 10)          1,290          1,280
      ---------  ------------------  ----------  -------------
      total                               1,346          2,048
    """
    net = as_layer(net, "net")
    x = checks.structs(x)
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    rows: dict[tuple[str, ...], Row] = {}

    def watch(path, layer, params, state, x, y):
        # By path, since a scan may trace its body more than once.
        params, state, x, y = jax.tree.map(_struct, (params, state, x, y))
        outputs = jax.tree.leaves(y)
        rows[path] = Row(
            path,
            layer.name,
            y.shape if hasattr(y, "shape") else tuple(output.shape for output in outputs),
            outputs[0].dtype.name if outputs else "",
            sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            sizes.multiply_adds(lambda p, s, v: layer.apply(p, s, v, train=False), params, state, x),
        )
        return ()

    jax.eval_shape(lambda p, s, v: watched(net, watch).apply(p, s, v, train=False), params, state, x)
    # A container that is not its parts in evaluation (or not all of them) has rows for those that it is.
    return Summary(tuple(rows[path] for path in _in_order(net) if path in rows))


def _in_order(net: Layer, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [path, *(below for label, part in looked_into(net) for below in _in_order(part, (*path, label)))]


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

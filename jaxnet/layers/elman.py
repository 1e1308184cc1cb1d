"""The simple recurrent cell, and the params that it shares with gated ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import initializers
from jaxnet._dtypes import at_least_float32, wide
from jaxnet._made import made
from jaxnet.errors import ShapeError
from jaxnet.initializers import Initializer
from jaxnet.kernels.recurrent import product
from jaxnet.layers.layer import Params
from jaxnet.layers.recurrent import Cell


@made
def elman(
    units: int,
    *,
    activation: Callable[..., Any] = jnp.tanh,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    recurrent_init: Initializer = jax.nn.initializers.orthogonal(),  # noqa: B008
    bias_init: Initializer = initializers.zeros,
) -> Cell:
    """The simple recurrent cell for `rnn`: h_t = f(W x_t + b + R h_{t-1} + b_R), and y_t = h_t.

    Args:
      units: the size of h.
      activation: f.
      bias: whether to learn b and b_R: two, as in PyTorch, though one would do.
      kernel_init: for W.
      recurrent_init: for R; orthogonal unless given, which keeps the length of h.
      bias_init: for both biases.

    Returns:
      A cell with the params ``kernel`` (features, units), ``recurrent_kernel`` (units, units), ``bias`` and
      ``recurrent_bias`` (units,).

    Raises:
      ConfigError: ``units`` is no positive integer, or what must be callable is not.
      ShapeError, DTypeError: from the layer: as `rnn`, or params of another number of features, or dtype, than x.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> params, state = layers.rnn(layers.elman(4)).init(0, jnp.ones((1, 5, 3)))
      >>> {name: value.shape for name, value in params.items()}
      {'kernel': (3, 4), 'recurrent_kernel': (4, 4), 'bias': (4,), 'recurrent_bias': (4,)}

    Source: Elman 1990; as `torch.nn.RNN`.
    """
    checks.function("activation", activation)
    init = starting(units, 1, bias, kernel_init, recurrent_init, bias_init)

    def begin(key, x):
        return init(key, x), jnp.zeros((x.shape[0], units), at_least_float32(x.dtype))

    def inputs(params, x):
        kernel, recurrent_kernel, *biases = map(wide, weights(params, units, 1, bias, x))
        y = product(wide(x), kernel) + sum(biases, jnp.zeros((units,), kernel.dtype))[None, None]
        return {"recurrent_kernel": recurrent_kernel}, y

    def step(params, h, x):  # R is wide: its gradient, a sum over the steps, has R's dtype
        h = activation(x + h @ params["recurrent_kernel"])
        return h, h

    return Cell(begin, step, inputs, TORCH)


def starting(
    units: int, n: int, bias: bool, kernel_init: Initializer, recurrent_init: Initializer, bias_init: Initializer
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """``(key, x) -> params`` of a cell with ``n`` gates; each gate's recurrent kernel is drawn by itself."""
    units = checks.integer("units", units, minimum=1)
    checks.flag("bias", bias)
    for name, f in (("kernel_init", kernel_init), ("recurrent_init", recurrent_init), ("bias_init", bias_init)):
        checks.function(name, f)

    def init(key, x):
        kernel_key, recurrent_key, *bias_keys = drawing.split(key, 4)
        fans = (x.shape[-1], units)
        squares = [
            initializers.draw(recurrent_init, key, (units, units), x.dtype, (units, units))
            for key in drawing.split(recurrent_key, n)
        ]
        params = {
            "kernel": initializers.draw(kernel_init, kernel_key, (x.shape[-1], n * units), x.dtype, fans),
            "recurrent_kernel": jnp.concatenate(squares, -1),
        }
        for name, key in zip(("bias", "recurrent_bias") if bias else (), bias_keys, strict=False):
            params[name] = initializers.draw(bias_init, key, (n * units,), x.dtype, fans)
        return params

    return init


def weights(params: Params, units: int, n: int, bias: bool, x: jax.Array) -> tuple[jax.Array, ...]:
    """A cell's kernel, recurrent kernel and biases, if they are this cell's."""
    names = ("kernel", "recurrent_kernel", *("bias", "recurrent_bias") * bias)
    found = checks.leaves(params, *names)
    shapes = ((x.shape[-1], n * units), (units, n * units), *((n * units,),) * 2 * bias)
    for name, value, shape in zip(names, found, shapes, strict=False):
        if value.shape != shape:
            raise ShapeError(
                f"{name} must have the shape {shape} for the input {x.shape}, got {value.shape}; pass what this "
                f"layer's init returned, and features last"
            )
    checks.same_dtype(x=x, **dict(zip(names, found, strict=True)))
    return found


def _transposed(kernel: jax.Array) -> jax.Array:
    return kernel.T


TORCH = (
    ("kernel", "weight_ih_l0", _transposed),
    ("recurrent_kernel", "weight_hh_l0", _transposed),
    ("bias", "bias_ih_l0", None),
    ("recurrent_bias", "bias_hh_l0", None),
)

"""The gated recurrent unit."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import initializers
from jaxnet._dtypes import at_least_float32, wide
from jaxnet._made import made
from jaxnet.initializers import Initializer
from jaxnet.kernels import recurrent as recurrence
from jaxnet.layers.elman import TORCH, starting, weights
from jaxnet.layers.layer import Layer
from jaxnet.layers.recurrent import recurrent


@made
def gru(
    units: int,
    *,
    direction: str = "forward",
    carry: bool = False,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    recurrent_init: Initializer = jax.nn.initializers.orthogonal(),  # noqa: B008
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Gated recurrent unit: along a sequence, one gate decides what is kept, one what of it is read.

    With x_r, x_z, x_n = W x_t + b, p_r, p_z, p_n = R h_{t-1} + b_R and s the logistic function::

        r, z = s(x_r + p_r), s(x_z + p_z);    n = tanh(x_n + r p_n);    y_t = h_t = (1 - z) n + z h_{t-1}

    from h = 0. The reset gate r multiplies after the product with R, as in PyTorch and cuDNN; in the paper, before. All
    else is as in `lstm`.

    Args:
      units: the size of h.
      direction: "forward", "backward" or "both", as in `rnn`.
      carry: whether h, (batch, units), is part of input and output, as in `rnn`: where to start, and the last state.
      bias: whether to learn b and b_R.
      kernel_init: for W, whose shape is (features, 3 units) in the order r, z, n.
      recurrent_init: for R, drawn (units, units) for each gate; orthogonal unless given.
      bias_init: for both biases (3 units,).

    Returns:
      A layer like `lstm`, with the same names in its params.

    Raises:
      ConfigError, ShapeError, DTypeError: where `lstm` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.gru(8, direction="both")
      >>> x, mask = jnp.ones((2, 5, 3)), jnp.arange(5)[None] < jnp.array([[5], [2]])
      >>> params, state = layer.init(0, (x, mask))
      >>> y, _ = layer.apply(params, state, (x, mask), train=False)[0]
      >>> y.shape, float(jnp.abs(y[1, 2:]).max())
      ((2, 5, 16), 0.0)

    Source: Cho et al. 2014, arXiv 1406.1078; as `torch.nn.GRU`.
    """
    draw = starting(units, 3, bias, kernel_init, recurrent_init, bias_init)

    def begin(x):
        return jax.ShapeDtypeStruct((x.shape[0], units), at_least_float32(x.dtype))

    def run(params: Any, carry: Any, x: jax.Array, mask: Any, reverse: bool) -> Any:
        kernel, recurrent_kernel, *biases = map(wide, weights(params, units, 3, bias, x))
        both = biases or [jnp.zeros((3 * units,), kernel.dtype)] * 2
        y, last = recurrence.gru(wide(x), kernel, recurrent_kernel, both[0], both[1], carry, mask, reverse=reverse)
        return last, y

    return recurrent("gru", draw, begin, run, direction=direction, carry=carry, torch=TORCH)

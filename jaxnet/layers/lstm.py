"""The long short-term memory."""

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
def lstm(
    units: int,
    *,
    direction: str = "forward",
    carry: bool = False,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    recurrent_init: Initializer = jax.nn.initializers.orthogonal(),  # noqa: B008
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Long short-term memory: along a sequence, gates decide what of a cell is kept, written and shown.

    With W x_t + b + R h_{t-1} + b_R cut in four, i, f, g, o, and s the logistic function::

        c_t = s(f) c_{t-1} + s(i) tanh(g);    y_t = h_t = s(o) tanh(c_t)

    from h = c = 0. W x_t is one matrix product for all steps. It computes in float32, or wider if x is.

    Several layers are a `chain` of them. PyTorch's ``nn.LSTM(num_layers=2)`` calls the arrays of the second layer
    ``weight_ih_l1``, so `interop` takes for it a ``rename=lambda name: name[2:].replace("l0", f"l{name[0]}")``.

    Args:
      units: the size of h and of c.
      direction: "forward", "backward" or "both", as in `rnn`.
      carry: whether ``(h, c)``, each (batch, units), is part of input and output, as in `rnn`: where to start, and the
        last state.
      bias: whether to learn b and b_R: two, as in PyTorch, though one would do.
      kernel_init: for W, whose shape is (features, 4 units) in the order i, f, g, o.
      recurrent_init: for R, drawn (units, units) for each gate; orthogonal unless given.
      bias_init: for both biases (4 units,).

    Returns:
      A layer from (batch, time, features), or that and a mask (batch, time) as in `rnn`, to (batch, time, units), of
      both directions (batch, time, 2 units). Its params are ``kernel``, ``recurrent_kernel``, ``bias`` and
      ``recurrent_bias``, of both directions a dict of ``forward`` and ``backward``.

    Raises:
      ConfigError: ``units`` is no positive integer, or an unknown ``direction``.
      ShapeError: the input's rank or number of features, a mask or a carry that does not fit.
      DTypeError: the input's dtype, or a mask that is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.lstm(8, carry=True)
      >>> x, zeros = jnp.ones((2, 5, 3)), jnp.zeros((2, 8))
      >>> params, state = layer.init(0, (x, (zeros, zeros)))
      >>> y, (h, c) = layer.apply(params, state, (x, (zeros, zeros)), train=False)[0]
      >>> y.shape, bool((y[:, -1] == h).all())
      ((2, 5, 8), True)

    Source: Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000.
    """
    draw = starting(units, 4, bias, kernel_init, recurrent_init, bias_init)

    def begin(x):
        return (jax.ShapeDtypeStruct((x.shape[0], units), at_least_float32(x.dtype)),) * 2

    def run(params: Any, carry: Any, x: jax.Array, mask: Any, reverse: bool) -> Any:
        kernel, recurrent_kernel, *biases = map(wide, weights(params, units, 4, bias, x))
        total = sum(biases, jnp.zeros((4 * units,), kernel.dtype))
        y, last = recurrence.lstm(wide(x), kernel, recurrent_kernel, total, *carry, mask=mask, reverse=reverse)
        return last, y

    return recurrent("lstm", draw, begin, run, direction=direction, carry=carry, torch=TORCH)

"""The fully connected layer, eq. 4.1 to 4.3."""

from typing import Any

import jax

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import initializers
from jaxnet._dtypes import at_least_float32
from jaxnet._made import made
from jaxnet.errors import ShapeError, named
from jaxnet.initializers import Initializer
from jaxnet.kernels.product import product
from jaxnet.layers.layer import Layer, stateless


@made
def dense(
    units: int,
    *,
    bias: bool = True,
    kernel_init: Initializer = initializers.lecun_normal(),  # noqa: B008, a pure function
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Connects every input to every output, y = W x + b (eq. 4.1): y_i = sum over j of w_ij x_j + b_i (eq. 4.2).

    Applies to the last axis of an input of any rank. The kernel is W transposed, (N_in, N_out), so y = x @ kernel + b.

    Args:
      units: N_out, number of output neurons.
      bias: whether to add b.
      kernel_init: ``f(key, shape, dtype)`` for the kernel, from `initializers` or `jax.nn.initializers`. The
        default keeps the variance of its input.
      bias_init: the same for the bias, of shape (N_out,).

    Returns:
      A layer from (..., N_in) to (..., N_out) with the params ``kernel`` and, if asked for, ``bias``: as many as
      `sizes.dense_parameters` says (eq. 4.3).

    Raises:
      ConfigError: ``units`` is no positive integer.
      ShapeError: the input has another number of features than the kernel.
      DTypeError: an integer input, or one of another dtype than the kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.dense(5)
      >>> params, state = layer.init(0, jnp.ones((1, 6)))
      >>> layer.apply(params, state, jnp.ones((32, 6)), train=False)[0].shape
      (32, 5)

    Source: chapter 4.1.1.
    """
    units = checks.integer("units", units, minimum=1)
    check_start(bias, kernel_init, bias_init)

    def init(key, x):
        features = _features(checks.floating_struct(x).shape)
        shape = (features, units)
        return drawn(key, shape, x.dtype, shape, kernel_init, bias_init if bias else None)

    def f(params, x):
        x = checks.floating("x", x)
        kernel, *rest = checks.leaves(params, *("kernel", "bias")[: 1 + bias])
        checks.rank("the kernel", kernel, 2, "(N_in, N_out)")
        if _features(x.shape) != kernel.shape[0]:
            raise ShapeError(
                f"the input has {x.shape[-1]} features, the kernel was made for {kernel.shape[0]} "
                f"(input {x.shape}, kernel {kernel.shape}); features come last"
            )
        if kernel.shape[1:] != (units,):
            raise ShapeError(
                f"the kernel {kernel.shape} is another layer's; this one has {units} units; "
                f"pass what this layer's init returned"
            )
        checks.same_dtype(x=x, kernel=kernel)
        return add_bias(product(x, kernel), *rest)

    torch = (("kernel", "weight", _kernel_to_torch), ("bias", "bias", None))
    return stateless(init, f, name="dense", torch=torch, fan_in=initializers.fan_in, stream="pointwise")


def check_start(bias: bool, kernel_init: Initializer, bias_init: Initializer) -> None:
    """Checks what a layer with a kernel is told of its start."""
    checks.flag("bias", bias)
    checks.function("kernel_init", kernel_init)
    checks.function("bias_init", bias_init)


def drawn(
    key: Any,
    shape: tuple[int, ...],
    dtype: Any,
    fans: tuple[float, float],
    kernel_init: Initializer,
    bias_init: Initializer | None,
) -> dict[str, jax.Array]:
    """The params of a layer with a kernel, and with a bias of one value a filter where ``bias_init`` is given."""
    kernel_key, bias_key = drawing.split(key, 2)
    params = {"kernel": initializers.draw(kernel_init, kernel_key, shape, dtype, fans)}
    if bias_init is not None:
        params["bias"] = initializers.draw(bias_init, bias_key, shape[-1:], dtype, fans)
    return params


def add_bias(y: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Adds one value a channel to the last axis; a bias of another length is refused, never broadcast."""
    if bias is None:
        return y
    if bias.shape != y.shape[-1:]:
        raise ShapeError(
            f"the bias must have shape {y.shape[-1:]}, got {bias.shape}; pass what this layer's init returned"
        )
    checks.same_dtype(x=y, bias=bias)
    # The bias's gradient is a sum over all examples and positions. In 16 bits it stops growing: it is made in float32,
    # and rounded once. The output has the same bits either way.
    wide = at_least_float32(y.dtype)
    return (y.astype(wide) + bias.astype(wide).reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)


@named("to_torch")
def _kernel_to_torch(kernel: jax.Array) -> jax.Array:
    checks.rank("a dense kernel", kernel, 2, "(N_in, N_out)")
    return kernel.T


def _features(shape: tuple[int, ...]) -> int:
    if not shape or not shape[-1]:
        raise ShapeError(f"x must have the axes (..., features) with at least one feature, got shape {shape}")
    return shape[-1]

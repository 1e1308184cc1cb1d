"""Mixed precision: one policy for a whole network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._made import made
from jaxnet.errors import DTypeError
from jaxnet.layers.inside import with_frozen
from jaxnet.layers.layer import Layer, as_layer, layer


@made
def mixed_precision(
    net: Layer | Callable[..., Any],
    *,
    params: Any = jnp.float32,
    compute: Any = jnp.bfloat16,
    output: Any = jnp.float32,
) -> Layer:
    """Keeps a network's parameters in one dtype, computes in another, and returns a third.

    Parameters and input are cast to ``compute`` on the way in, so gradients arrive in ``params``' dtype. Of an input of
    several arrays each is cast that is floating point; integers, bools and keys stay as they are. The normalization
    layers keep their statistics and their arithmetic in at least float32, and so do the losses; the state is never
    cast, but for the parameters of `frozen` parts on their way in.

    Args:
      net: the network.
      params: dtype of the parameters that ``init`` returns and the optimizer updates.
      compute: dtype of the layers' arithmetic.
      output: dtype of what ``apply`` returns.

    Returns:
      A layer with the same params and state trees as ``net``.

    Raises:
      DTypeError: a dtype is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.mixed_precision(layers.dense(2))
      >>> params, state = net.init(0, jnp.ones((1, 3)))
      >>> params["kernel"].dtype.name, net.apply(params, state, jnp.ones((1, 3)), train=False)[0].dtype.name
      ('float32', 'float32')

    Source: Micikevicius et al. 2017, arXiv 1710.03740.
    """
    inner = as_layer(net, "net")
    param_dtype, compute_dtype, output_dtype = (
        _floating_dtype(name, dtype) for name, dtype in (("params", params), ("compute", compute), ("output", output))
    )

    def init(key, x):
        x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _to(leaf, param_dtype)), x)
        params, state = inner.init(key, x)
        return _cast("params", params, param_dtype), state

    def apply(params, state, x, *, train, key):
        params, x = _cast("params", params, compute_dtype), _cast("x", x, compute_dtype)
        narrow = with_frozen(lambda params: _cast("state", params, compute_dtype), inner, state)
        y, new = inner.apply(params, narrow, x, train=train, key=key)
        # The very arrays that came, so that a compiled step hands them on without a copy.
        return _cast("the output", y, output_dtype), with_frozen(lambda _, params: params, inner, new, state)

    def rebuild(part):
        return mixed_precision(part, params=param_dtype, compute=compute_dtype, output=output_dtype)

    return layer("mixed_precision", init, apply, parts=(("net", inner),), rebuild=rebuild, trees="same")


def _cast(name: str, tree: Any, dtype: Any) -> Any:
    def cast(leaf):
        leaf = checks.array(name, leaf)
        to = _to(leaf, dtype)
        return leaf if leaf.dtype == to else leaf.astype(to)

    return jax.tree.map(cast, tree)


def _to(leaf: Any, dtype: Any) -> Any:
    """The dtype that ``leaf`` gets: ``dtype`` if it is floating point, its own if not."""
    return dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def _floating_dtype(name: str, dtype: Any) -> Any:
    try:
        result = jnp.dtype(dtype)
    except TypeError:
        result = None
    if result is None or not jnp.issubdtype(result, jnp.floating):
        raise DTypeError(f"{name} must be a floating-point dtype such as jnp.bfloat16, got {words.came(dtype)}")
    return result

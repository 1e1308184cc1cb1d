"""Tokens to vectors, and from vectors back to tokens by the same table."""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxnet import _checks as checks
from jaxnet import initializers
from jaxnet._dtypes import wide
from jaxnet._made import made
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from jaxnet.initializers import Initializer
from jaxnet.kernels.product import solve
from jaxnet.layers.containers import composed
from jaxnet.layers.layer import Layer, applied, as_layer, layer, output_struct, stateless


@made
def embedding(
    entries: int,
    features: int,
    *,
    padding: int | None = None,
    table_init: Initializer = initializers.normal(1.0),  # noqa: B008, a pure function
) -> Layer:
    """Looks each token's row up in a learned table: y[..., :] = table[x[...], :].

    The table is float32, since tokens have no floating-point dtype that it could follow; `mixed_precision` around the
    network gives it another.

    Args:
      entries: how many tokens there are, from 0 to entries - 1.
      features: the length of a row.
      padding: a token that stands for nothing: looked up, it gives 0, and its row has gradient 0; read for logits, by
        `tied`, its row is one like the others, and learns. (In PyTorch it gives its row, which starts at 0 too.)
      table_init: ``f(key, shape, dtype)`` for the table. Where `tied` makes logits of it too, a small one, such as
        ``initializers.normal(0.02)``, begins near even odds.

    Returns:
      A layer from integers (...) to (..., features) with the param ``table`` of shape (entries, features). Applied to
      vectors (..., features), it reads the table the other way, and gives their products with all rows, (..., entries):
      logits, see `tied`.

    Raises:
      ConfigError: sizes below 1, or a ``padding`` that is no token.
      ShapeError: a table, or vectors to be read for logits, of another size.
      DTypeError: an input that is neither of integers nor, in ``apply``, floating point.
      DataError: outside ``jit``: a token outside 0..entries - 1. Inside ``jit``, where a check would cost a transfer
        every step, such a token's row is NaN: never another token's, as in a gather that clips or wraps around.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.embedding(256, 8)
      >>> tokens = jnp.array([list(b"to be"), list(b"or no")])
      >>> params, state = layer.init(0, tokens)
      >>> layer.apply(params, state, tokens, train=False)[0].shape
      (2, 5, 8)

    Source: Bengio et al. 2003, A neural probabilistic language model.
    """
    shape = tuple(checks.integer(*size, minimum=1) for size in (("entries", entries), ("features", features)))
    checks.function("table_init", table_init)
    if padding is not None and checks.integer("padding", padding, minimum=0) >= entries:
        raise ConfigError(f"padding must be a token, 0 to {entries - 1}, got {padding}")

    def init(key, x):
        _must_be_tokens(x.dtype)
        table = initializers.draw(table_init, key, shape, jnp.float32, (entries, features))
        return {"table": table if padding is None else table.at[padding].set(0.0)}

    def f(params, x):
        x = checks.array("x", x)
        (table,) = checks.leaves(params, "table")
        if table.shape != shape:
            raise ShapeError(f"the table {table.shape} is another layer's; this one has shape {shape}")
        if jnp.issubdtype(x.dtype, jnp.floating):
            return _logits(x, table)
        _must_be_tokens(x.dtype)
        _check(x, entries)
        x = x.astype(jnp.int32) if jnp.iinfo(x.dtype).bits < 32 else x  # too narrow to count the entries in
        # A gather's transpose is a scatter-add: on a CPU faster at all sizes than the sum of sorted segments, and than
        # a product with one-hot rows. In 16 bits a sum over tokens stops growing: it is made in float32.
        rows = wide(checks.floating("table", table)).at[x].get(mode="clip").astype(table.dtype)
        if padding is not None:
            rows = jnp.where((x == padding)[..., None], 0.0, rows)
        is_entry = ((x >= 0) & (x < entries))[..., None]
        # 0 / 0 rather than a literal: XLA on CPU makes anything of the exponential of a literal NaN.
        return jnp.where(is_entry, rows, 0.0 / is_entry.astype(rows.dtype))

    return stateless(init, f, name="embedding", torch=(("table", "weight", None),), stream="pointwise")


@made
def tied(embedding: Layer, body: Layer | Callable[..., Any]) -> Layer:
    """Embeds tokens, applies ``body``, and makes logits by the embedding's own table: y = body(table[x]) table^T.

    One parameter, used twice: it lies in params once, and its gradient is the sum of both uses. Nothing of it depends
    on where two arrays lie in memory, so ``jit``, checkpoints and optimizers keep them one.

    Args:
      embedding: an `embedding`, or a layer around one, such as ``on_first(embedding(...))`` where masks go along.
      body: a layer that keeps the features.

    Returns:
      A layer from integers (...) to logits (..., entries), with params and state in dicts of ``embedding`` and
      ``body``. In PyTorch's names there is one array more, which is the table again: pop it before
      `interop.from_torch`, and after `interop.to_torch` put it back::

          state_dict.pop("head.weight")
          arrays["head.weight"] = arrays["embedding.weight"]

    Raises:
      ConfigError: a part that is neither a layer nor callable.
      ShapeError: from ``init``, if ``body`` returns other than the table's features.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import initializers, layers
      >>> net = layers.tied(
      ...     layers.embedding(256, 32, table_init=initializers.normal(0.02)),
      ...     layers.chain(layers.conv(32, 3, padding="causal"), jnp.tanh, layers.dense(32)))
      >>> tokens = jnp.array([list(b"to be")])
      >>> params, state = net.init(0, tokens)
      >>> net.apply(params, state, tokens, train=False)[0].shape
      (1, 5, 256)
      >>> jax.tree.map(jnp.shape, params["embedding"])
      {'table': (256, 32)}

    Source: Press and Wolf 2016, arXiv 1608.05859.
    """
    members = {"embedding": as_layer(embedding), "body": as_layer(body)}
    net = composed("tied", members, lambda outputs: outputs[-1], tied, in_a_row=True, labelled=True)

    def apply(params, state, x, *, train, key):
        y, new = net.apply(params, state, x, train=train, key=key)
        with applied("tied.embedding", members["embedding"]):
            logits, _ = members["embedding"].apply(params["embedding"], state["embedding"], y, train=train, key=key)
        return logits, new

    def init(key, x):
        params, state = net.init(key, x)
        output_struct(whole, params, state, x)  # refuses a body that changes the features
        return params, state

    whole = layer("tied", init, apply, parts=net.about.parts, rebuild=tied)
    return whole


def _logits(y: jax.Array, table: jax.Array) -> jax.Array:
    """The products of vectors with all rows of a table."""
    if y.shape[-1:] != table.shape[1:]:
        raise ShapeError(
            f"of a table {table.shape} logits are made from vectors (..., {table.shape[1]}), got shape {y.shape}; "
            f"tokens are integers"
        )
    checks.same_dtype(x=y, table=table)
    flat = y.reshape(-1, y.shape[-1])  # XLA's CPU compiler does badly with three axes
    return solve("x", flat, table, 0).reshape(*y.shape[:-1], table.shape[0])


def _must_be_tokens(dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.integer):
        raise DTypeError(f"x must be tokens, which are integers, got {dtype}; convert with x.astype('int32')")


def _check(tokens: Any, entries: int) -> None:
    """Refuses what is no token, where the values can be seen."""
    if isinstance(tokens, jax.core.Tracer) or not tokens.size:
        return
    values = np.asarray(tokens)
    bad = (values < 0) | (values >= entries)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"token {values[where]} at index {where} is none of the {entries} entries, 0 to {entries - 1} "
            f"({int(bad.sum())} such tokens)"
        )

"""Multi-head attention: each position of a sequence reads from all others, or from those of another sequence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet import _drawing as drawing
from jaxnet import initializers, kernels
from jaxnet._made import made
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.initializers import Initializer
from jaxnet.kernels.product import product
from jaxnet.layers import attention_stream as memory
from jaxnet.layers.dense import add_bias, check_start, drawn
from jaxnet.layers.layer import Layer, Stream, layer
from jaxnet.layers.positions import first, others, rotated, waves
from jaxnet.layers.protocol import NO_KEY


@made
def attention(
    heads: int,
    *,
    kv_heads: int | None = None,
    head_size: int | None = None,
    causal: bool = False,
    window: int | None = None,
    rotary: bool | float = False,
    dropout: float = 0.0,
    bias: bool = True,
    cross: bool = False,
    kernel_init: Initializer = initializers.glorot_uniform(),  # noqa: B008, a pure function
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Lets each position gather from those whose keys fit its query, in several heads: y = concat_h(o_h) W_o + b_o.

    In each head, q = x W_q + b_q, k = c W_k + b_k and v = c W_v + b_v with c = x, or a context, and::

        o[t] = sum over s of  softmax over s of (q[t] . k[s] / sqrt(D))  v[s]

    computed by `kernels.attention`, in memory that grows with the length and not with its square.

    Args:
      heads: how many queries there are a position.
      kv_heads: how many keys and values, each shared by heads / kv_heads queries; as many as heads unless given.
      head_size: D, features a head; channels / heads unless given.
      causal: whether a position sees itself and what is before it alone.
      window: how near a position must be to be seen, |t - s| < window.
      rotary: whether queries and keys are turned by angles that grow with their position, so that their product
        depends on how far apart they are; a number is the base of the angles instead of 10000. Feature i is paired
        with i + D / 2.
      dropout: the probability that a weight of the softmax is dropped in training, in [0, 1).
      bias: whether to add the four b.
      cross: whether keys and values are of a context: the input is then ``(x, context)`` or ``(x, context, mask)``.
      kernel_init: ``f(key, shape, dtype)`` for the kernels, from `initializers` or `jax.nn.initializers`.
      bias_init: the same for the biases.

    Returns:
      A layer that keeps the shape (batch, time, channels). With K = kv_heads its params are ``kernel`` of shape
      (channels, (heads + 2 K) D), which holds W_q, W_k and W_v side by side, head by head, ``output_kernel`` of shape
      (heads D, channels), and ``bias`` and ``output_bias``. Across, W_q is a ``query_kernel`` of its own, with a
      ``query_bias``.

      The input is x, or ``(x, mask)``, and the output then ``(y, mask)``: what is masked is not seen, and in a mask of
      rank 2 its own x counts as 0; of a position that sees nothing o is 0. Masks are bool, True for what is there:
      (batch, time), (batch, time, time) for each query, or (batch, heads, time, time); across, the last axis is the
      context's, and so is the first form.

    Raises:
      ConfigError: a hyperparameter out of range, ``kv_heads`` that do not divide ``heads``, ``rotary`` across, or
        dropout without a key.
      ShapeError: another rank, other channels, channels that ``heads`` does not divide, or a mask of another shape.
      DTypeError: not floating point, or a mask that is not bool.
      DataError: a stream (`streaming`) longer than its ``capacity``; inside ``jit`` the piece
        that goes beyond is NaN, all of it, and so is what follows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import layers
      >>> layer = layers.attention(4, causal=True, rotary=True)
      >>> params, state = layer.init(0, jnp.ones((1, 16, 32)))
      >>> layer.apply(params, state, jnp.ones((2, 10, 32)), train=False)[0].shape
      (2, 10, 32)

    Source: Vaswani et al. 2017, arXiv 1706.03762; shared keys: Ainslie et al. 2023, arXiv 2305.13245; rotary: Su et al.
    2021, arXiv 2104.09864.
    """
    heads = checks.integer("heads", heads, minimum=1)
    shared = heads if kv_heads is None else checks.integer("kv_heads", kv_heads, minimum=1)
    if heads % shared:
        raise ConfigError(f"kv_heads={shared} must divide heads={heads}")
    size = None if head_size is None else checks.integer("head_size", head_size, minimum=1)
    for name, value in (("causal", causal), ("cross", cross)):
        checks.flag(name, value)
    window = None if window is None else checks.integer("window", window, minimum=1)
    base = _base(rotary)
    if cross and (base or causal or window):
        raise ConfigError(
            "positions of x and of a context are not each other's: cross goes without causal, window, rotary"
        )
    rate = checks.number("dropout", dropout, low=0, high=1, open_high=True)
    check_start(bias, kernel_init, bias_init)

    of = _Heads(heads, shared, size, base, bias, cross)

    def init(key, x):
        return of.drawn(key, x, kernel_init, bias_init), ()

    def apply(params, state, x, *, train, key):
        checks.nothing("state", state)
        drop = rate if train else 0.0
        if drop and key is None:
            raise ConfigError(NO_KEY)
        params, q, k, v, mask = of.read(params, x, 0)
        y = kernels.attention(q, k, v, mask=mask, causal=causal, window=window, dropout=drop, key=key if drop else None)
        return of.written(params, x, y), state

    def start(params, state, x, capacity):
        if cross:  # the context comes with every piece, whole
            return ()
        d = params["output_kernel"].shape[0] // heads
        return memory.start(first(x), shared, d, window, capacity, isinstance(x, tuple))

    def step(params, state, before, x):
        if cross:
            return apply(params, state, x, train=False, key=None)[0], before
        params, q, k, v, mask = of.read(params, x, before["length"])
        y, after = memory.step(before, q, k, v, mask, window)
        return of.written(params, x, y), after

    stream = Stream(start, step) if causal or cross else _BOTH_ENDS
    return layer("attention", init, apply, torch=_TORCH_CROSS if cross else _TORCH, stream=stream)


class _Heads(NamedTuple):
    """The products around `kernels.attention`, all of matrices: arrays of three axes are what XLA's CPU is slow at."""

    heads: int
    shared: int
    size: int | None
    base: float | None
    bias: bool
    cross: bool

    def shapes(self, channels: int, source: int) -> dict[str, tuple[int, int]]:
        """Of each kernel, by the prefix of its name, for so many channels of x and of what keys and values are of."""
        if self.size is None and channels % self.heads:
            raise ShapeError(f"heads={self.heads} must divide the {channels} channels; or give head_size")
        d = self.size or channels // self.heads
        if self.base and d % 2:
            raise ShapeError(f"rotary positions are pairs of features, got {d} features a head")
        rows, keys = self.heads * d, 2 * self.shared * d
        if self.cross:
            return {"": (source, keys), "output_": (rows, channels), "query_": (channels, rows)}
        return {"": (source, rows + keys), "output_": (rows, channels)}

    def drawn(self, key: Any, x: Any, kernel_init: Initializer, bias_init: Initializer) -> dict[str, jax.Array]:
        _masked(x, self.cross)
        struct = checks.floating_struct(first(x))
        channels = _channels(struct)
        shapes = self.shapes(channels, _channels(x[1]) if self.cross else channels)
        params = {}
        for part, (prefix, shape) in zip(drawing.split(checks.key(key), 3), shapes.items(), strict=False):
            # Queries, keys and values are products apart: each with as many outputs as there are features of heads.
            fans = (shape[0], shapes["output_"][0]) if not prefix else shape
            leaves = drawn(part, shape, struct.dtype, fans, kernel_init, bias_init if self.bias else None)
            params |= {prefix + name: leaf for name, leaf in leaves.items()}
        return params

    def read(self, params: Any, x: Any, start: Any) -> tuple[Any, jax.Array, jax.Array, jax.Array, Any]:
        """The params, checked, and queries, keys, values and mask of an input whose first position is ``start``."""
        mask = _masked(x, self.cross)
        y = checks.floating("x", first(x))
        source = checks.floating("the context", x[1]) if self.cross else y
        if mask is not None and jnp.shape(mask) == source.shape[:2]:  # what is not there makes no NaN in a derivative
            source = jnp.where(mask[..., None], source, jnp.zeros_like(source))
            y = y if self.cross else source
        checks.same_dtype(x=y, context=source)
        shapes = self.shapes(_channels(y), _channels(source))
        names = [prefix + name for prefix in shapes for name in ("kernel", "bias")[: 1 + self.bias]]
        params = dict(zip(names, checks.leaves(params, *names), strict=True))
        for prefix, shape in shapes.items():
            kernel = params[f"{prefix}kernel"]
            if kernel.shape != shape:
                raise ShapeError(
                    f"the input has {_channels(y)} channels, and {prefix}kernel is {kernel.shape}, where {shape} is "
                    f"wanted; channels come last, pass what this layer's init returned"
                )
            checks.same_dtype(x=y, kernel=kernel)
        if self.cross:
            (q,) = self._product(params, "query_", y, self.heads)
            k, v = self._product(params, "", source, self.shared, self.shared)
            return params, q, k, v, mask
        q, k, v = self._product(params, "", y, self.heads, self.shared, self.shared)
        if self.base:
            angles = waves(start, y.shape[1], q.shape[-1], self.base, y.dtype)
            q, k = rotated(q, *angles), rotated(k, *angles)
        return params, q, k, v, mask

    def _product(self, params: Any, prefix: str, x: jax.Array, *heads: int) -> list[jax.Array]:
        """x by a kernel, cut into as many heads each, (batch, time, heads, D)."""
        batch, time, channels = x.shape
        y = add_bias(product(x.reshape(batch * time, channels), params[f"{prefix}kernel"]), params.get(f"{prefix}bias"))
        d = y.shape[1] // sum(heads)
        ends = [sum(heads[:i]) * d for i in range(1, len(heads))]
        return [a.reshape(batch, time, n, d) for a, n in zip(jnp.split(y, ends, 1), heads, strict=True)]

    def written(self, params: Any, x: Any, y: jax.Array) -> Any:
        """The input with the output of the heads' outputs in x's place."""
        batch, time, heads, d = y.shape
        y = add_bias(product(y.reshape(batch * time, heads * d), params["output_kernel"]), params.get("output_bias"))
        return others(x)(y.reshape(batch, time, y.shape[1]))


_BOTH_ENDS = "it reads the sequence from its end too; attention(..., causal=True) does not"


def _transposed(kernel: jax.Array) -> jax.Array:
    checks.rank("an attention's kernel", kernel, 2, "(inputs, outputs)")
    return kernel.T


def _together(query: jax.Array, context: jax.Array) -> jax.Array:
    """The rows of PyTorch's ``in_proj_weight`` or ``in_proj_bias``: those of the queries, keys and values."""
    if query.shape[:-1] != context.shape[:-1]:
        raise ShapeError(
            f"PyTorch's in_proj_weight is of x and of a context with as many channels, got kernels {query.shape} and "
            f"{context.shape}"
        )
    return jnp.concatenate([query.T, context.T])


_OUT = (("output_kernel", "out_proj.weight", _transposed), ("output_bias", "out_proj.bias", None))
_TORCH = (("kernel", "in_proj_weight", _transposed), ("bias", "in_proj_bias", None), *_OUT)
_TORCH_CROSS = (
    (("query_kernel", "kernel"), "in_proj_weight", _together),
    (("query_bias", "bias"), "in_proj_bias", _together),
    *_OUT,
)


def _base(rotary: Any) -> float | None:
    if isinstance(rotary, bool):
        return 10000.0 if rotary else None
    return checks.number("rotary", rotary, low=1, open_low=True)


def _channels(x: Any) -> int:
    checks.rank("x", x, 3, "(batch, time, channels)")
    return x.shape[-1]


def _masked(x: Any, cross: bool) -> Any:
    """The mask of an input, or None."""
    wanted = "(x, context) or (x, context, mask)" if cross else "x or (x, mask)"
    sizes = (2, 3) if cross else (2,)
    if len(x) not in sizes if isinstance(x, tuple) else cross:
        got = f"a tuple of {len(x)}" if isinstance(x, tuple) else "one array"
        raise ConfigError(f"the input must be {wanted}, got {got}")
    return x[-1] if isinstance(x, tuple) and len(x) == sizes[-1] else None

"""A network fed piece by piece: the same network, with what each layer must remember of the pieces in its state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import _checks as checks
from jaxnet._made import made
from jaxnet.errors import ConfigError, DTypeError, ShapeError, located, named
from jaxnet.layers.inside import rebuilt
from jaxnet.layers.layer import Around, Layer, Memory, Params, State, Stream, as_layer, layer, parameterless
from jaxnet.layers.pointwise import Pointwise, any_length, length_of


@made
def streaming(net: Layer | Callable[..., Any], *, capacity: int | None = None) -> Layer:
    """The network fed piece by piece along axis 1, which is time: its outputs joined are that of the whole sequence.

    Pieces may be of any length, and of length 0; what they give may be too. What each layer must remember (the end of
    the signal that a convolution will see again, hidden states, keys and values) is in the state, as the `Memory` of
    its own state and of that. Parameters are those of ``net``.

    A stream begins with the state of ``net``: give it with the first piece, and with each of the others the state that
    came back. Under ``jit`` that first call is a program of its own; `stream_state` gives the state of a stream that
    has begun and been fed nothing, and so does ``init``. From there on, pieces of one length that all strides divide
    leave the state in its shapes (once layers without padding have been filled), so that nothing is compiled anew and
    a `jax.lax.scan` can carry it.

    Args:
      net: the network, of layers that know the past alone: each that pads a signal must do so before it alone.
      capacity: how many positions are remembered at most, of layers that would remember all, such as attention.

    Returns:
      A layer from ``(batch, n, ...)`` to the outputs that n more positions give, in evaluation alone. Of an input of
      several arrays all are cut that are cut, and others (a condition, a context) come with each piece.

    Raises:
      ConfigError: a layer that cannot be fed piece by piece, with its path, why, and what to do; training; or
        a ``capacity`` below 1.
      ShapeError: from ``apply``: a piece of another batch size, or other channels, than the stream was begun with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.conv(4, 3, dilation=2, padding="causal"), jnp.tanh, layers.dense(1))
      >>> x = jnp.sin(jnp.arange(16.0)).reshape(1, 16, 1)
      >>> params, state = net.init(0, x)
      >>> stream, outputs = layers.streaming(net), []
      >>> for piece in (x[:, :5], x[:, 5:6], x[:, 6:]):
      ...     y, state = stream.apply(params, state, piece, train=False)
      ...     outputs.append(y)
      >>> [y.shape[1] for y in outputs]
      [5, 1, 10]
      >>> whole, _ = net.apply(params, net.init(0, x)[1], x, train=False)
      >>> bool(jnp.allclose(jnp.concatenate(outputs, axis=1), whole, atol=1e-6))
      True
    """
    if capacity is not None:
        capacity = checks.integer("capacity", capacity, minimum=1)
    return _stream(_fed(as_layer(net, "net"), capacity))


@named("stream_state")
def stream_state(stream: Layer, params: Params, state: State, x: Any) -> State:
    """The state of a stream that has begun and was fed nothing yet, for the parameters of a trained network.

    Args:
      stream: what `streaming` returned.
      params: the network's parameters.
      state: the network's own state, such as batch norm's averages.
      x: an example of a piece (batch, n, ...), or its `jax.ShapeDtypeStruct`; its length n says nothing.

    Returns:
      The state to give ``stream.apply`` with the first piece, a `Memory`.

    Raises:
      ConfigError: ``stream`` is none, ``state`` is that of a stream, or params of another network.
      DTypeError: x is no array.
      ShapeError: x does not fit the network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnet import layers
      >>> net = layers.chain(layers.conv(2, 3, padding="causal"), layers.batch_norm())
      >>> params, state = net.init(0, jnp.ones((1, 100, 1)))
      >>> stream = layers.streaming(net)
      >>> state = layers.stream_state(stream, params, state, jnp.ones((1, 10, 1)))
      >>> def feed(state, piece):
      ...     y, state = stream.apply(params, state, piece, train=False)
      ...     return state, y
      >>> state, outputs = jax.lax.scan(feed, state, jnp.ones((10, 1, 10, 1)))
      >>> outputs.shape
      (10, 1, 10, 2)
    """
    if not isinstance(stream, Layer) or stream.name != "streaming":
        raise ConfigError("stream must be what layers.streaming(net) returns")
    if isinstance(state, Memory):
        raise ConfigError("state must be the network's own, got that of a stream")
    x = checks.structs(x) if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x)) else x
    return stream.apply(params, state, _nothing_of(x), train=False)[1]


def _stream(inner: Layer) -> Layer:
    """The layer of a network whose parts are all fed piece by piece: it knows of what kind the pieces are."""

    def init(key, x):
        params, state = inner.init(key, x)
        return params, apply(params, state, _nothing_of(x), train=False, key=None)[1]

    def apply(params, state, x, *, train, key):
        del key
        if train:
            raise ConfigError(
                "a stream is for evaluation; train the network itself, and give what it learned to the stream: "
                "stream.apply(params, state, x, train=False)"
            )
        x = jax.tree.map(lambda leaf: checks.array("x", leaf), x)
        length_of(x)
        kind = jax.tree.map(_kind, x)
        if isinstance(state, Memory):
            state, begun = state
            _same_kind(begun, kind, x)
        y, state = inner.apply(params, state, x, train=False)
        return y, Memory(state, kind)

    parts, stream = (("net", inner),), "it is a stream already"
    return layer("streaming", init, apply, parts=parts, rebuild=_stream, trees="same", stream=stream)


def _fed(net: Layer, capacity: int | None) -> Layer:
    """The layer fed piece by piece: where its state is not a `Memory`, a stream begins with it."""
    stream = net.about.stream
    if isinstance(stream, str) and stream != "pointwise":
        raise ConfigError(f"{net.name} cannot be fed piece by piece: {stream}")
    if stream is not None and not isinstance(stream, Around):
        return _leaf(net, stream, capacity)
    if not net.about.parts:
        return _leaf(net, None, capacity)
    if stream is None and net.about.rebuild is None:
        raise ConfigError(
            f"{net.name} cannot be fed piece by piece: it does not say how to put other parts in the place of its own; "
            f"give it rebuild, a function of the parts"
        )
    parts = []
    for label, part in net.about.parts:
        with located(f"{net.name}[{label}]" if label.isdigit() else f"{net.name}.{label}"):
            fed = _fed(part, capacity)
        parts.append(_keeping(fed) if net.about.trees == "stacked" else fed)
    if stream is None:
        return rebuilt(net, parts)
    return _joined(stream.rebuild(*parts), stream) if stream.join else stream.rebuild(*parts)


def _leaf(net: Layer, stream: Stream | str | None, capacity: int | None) -> Layer:
    tried = Pointwise(net, "it")

    def begun(params, state, x):
        if isinstance(stream, Stream):
            return stream.start(params, state, checks.structs(x), capacity)
        if stream is None:
            tried.check(params, state, x)
        else:
            any_length(net, params, state, x)
        return ()

    def apply(params, state, x, *, train, key=None):
        del train, key
        with named(net.name):
            state, memory = state if isinstance(state, Memory) else (state, begun(params, state, x))
            if isinstance(stream, Stream):
                y, memory = stream.step(params, state, memory, x)
            else:
                y, state = net.apply(params, state, x, train=False)
            return y, Memory(state, memory)

    return net._replace(apply=apply).described(parts=(), rebuild=None, merged=None)


def _joined(apart: Layer, around: Around) -> Layer:
    """A container that makes one output of its parts', whose pieces may differ in length."""
    join: Any = around.join
    tried = Pointwise(parameterless(join), "combine")

    def apply(params, state, x, *, train, key=None):
        del train, key
        with named(apart.name):
            state, waiting = state if isinstance(state, Memory) else (state, None)
            outputs, state = apart.apply(params, state, x, train=False)
            if around.waits:
                outputs, waiting = _in_step(outputs, waiting)
            else:
                _of_one_length(outputs)
                if waiting is None:
                    tried.check((), (), outputs)
                waiting = ()
            return join(outputs), Memory(state, waiting)

    return apart._replace(apply=apply).described(rebuild=lambda *parts: _joined(around.rebuild(*parts), around))


def _keeping(part: Layer) -> Layer:
    """A layer that keeps the length of its whole input, that of each piece too: what it gives early waits."""
    around = Around(lambda *parts: _beside_input(rebuilt(part, parts)), lambda outputs: outputs[1])
    return _joined(_beside_input(part), around)


def _beside_input(part: Layer) -> Layer:
    def apply(params, state, x, *, train, key=None):
        y, state = part.apply(params, state, x, train=train, key=key)
        return (x, y), state

    return part._replace(apply=apply)


def _in_step(outputs: Any, waiting: Any) -> tuple[Any, Any]:
    """Of each output what the others have too, and what has to wait for theirs."""
    leaves, structures = zip(*map(jax.tree.flatten, outputs), strict=True)
    if len(set(structures)) > 1:  # which is refused where they are joined
        return outputs, ()
    if waiting is not None:
        leaves = [list(map(_after, *pair)) for pair in zip(waiting, leaves, strict=True)]
    ready = [min((y.shape[1] for y in together if y.ndim > 1), default=0) for together in zip(*leaves, strict=True)]
    outputs = [
        structure.unflatten(y[:, :n] if y.ndim > 1 else y for y, n in zip(some, ready, strict=True))
        for structure, some in zip(structures, leaves, strict=True)
    ]
    waiting = [[y[:, n:] if y.ndim > 1 else () for y, n in zip(some, ready, strict=True)] for some in leaves]
    return outputs, waiting


def _after(old: Any, new: Any) -> Any:
    return jnp.concatenate([old, new], axis=1) if new.ndim > 1 and old.shape[1] else new


def _of_one_length(outputs: Any) -> None:
    if len(set(map(length_of, outputs))) > 1:
        raise ShapeError(
            f"the parts give {checks.describe(outputs)} here, and nothing says which positions belong together; feed "
            f"pieces that the strides divide, or combine by 'concatenate', 'sum' or 'mean', which wait for one another"
        )


def _nothing_of(x: Any) -> Any:
    """A piece of length 0."""
    n = length_of(x)

    def nothing(leaf):
        cut = len(leaf.shape) > 1 and leaf.shape[1] == n
        shape = (leaf.shape[0], 0, *leaf.shape[2:]) if cut else leaf.shape
        return jnp.zeros(shape, leaf.dtype) if cut or isinstance(leaf, jax.ShapeDtypeStruct) else leaf

    return jax.tree.map(nothing, x)


def _kind(leaf: jax.Array) -> jax.Array:
    """An array of length 0 that has what all pieces of a stream have in common: batch, channels and dtype."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jnp.zeros((*leaf.shape[:1], 0, *leaf.shape[2:]), bool if is_key else leaf.dtype)


def _same_kind(begun: Any, kind: Any, x: Any) -> None:
    """Refuses a piece that does not go on with the stream."""
    if jax.tree.structure(begun) != jax.tree.structure(kind):
        raise ShapeError(f"the stream was begun with {checks.describe(begun)}, got {checks.describe(x)}")
    for old, new, piece in zip(*map(jax.tree.leaves, (begun, kind, x)), strict=True):
        if old.shape[0] != new.shape[0]:
            raise ShapeError(
                f"the stream was begun with a batch of {old.shape[0]}, got a piece of {new.shape[0]} "
                f"({checks.describe(piece)}); begin one for it, with the network's own state"
            )
        if old.shape != new.shape:
            raise ShapeError(
                f"the stream was begun with pieces of shape {('batch', 'n', *old.shape[2:])}, "
                f"got {tuple(piece.shape)}".replace("'", "")
            )
        if old.dtype != new.dtype:
            raise DTypeError(f"the stream was begun with {old.dtype}, got {new.dtype}; convert the piece")

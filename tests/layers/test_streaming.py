"""A network fed piece by piece gives what it gives of the whole, wherever it is cut."""

import pickle
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import activations, layers
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from tests.compiled import apply
from tests.layers.test_layers_table import NO_LAYERS, inputs

KEY = jax.random.key(0)
LENGTH = 9


class Case(NamedTuple):
    """A layer that can be fed piece by piece, and an input; of tokens, the number of them."""

    make: Callable[[], layers.Layer]
    shape: tuple[int, ...] = (2, LENGTH, 4)
    tokens: int | None = None

    @property
    def x(self):
        tokens = np.arange(self.shape[1], dtype=np.int32)[None] ** 2
        return inputs(self.shape) if self.tokens is None else tokens % self.tokens


def causal(filters=4, size=3, **keywords):
    return layers.conv(filters, size, padding="causal", **keywords)


def up(filters=4, size=4, strides=2, **keywords):
    return layers.conv_transpose(filters, size, strides=strides, padding="causal", **keywords)


def down_and_up():
    return layers.chain(causal(size=4, strides=2), activations.leaky_relu, up())


def running_sum():
    """A layer of one's own that remembers."""

    def f(params, state, x, *, train, key):
        return jnp.cumsum(x, axis=1), state

    def start(params, state, x, capacity):
        return jnp.zeros((x.shape[0], *x.shape[2:]), x.dtype)

    def step(params, state, total, x):
        y = total[:, None] + jnp.cumsum(x, axis=1)
        return y, jnp.concatenate([total[:, None], y], axis=1)[:, -1]

    return layers.layer("running_sum", None, f, stream=layers.Stream(start, step))


FED = {
    "snake": Case(layers.snake),
    "upsample": Case(lambda: layers.chain(layers.upsample(3), causal())),
    "upsample-2-D": Case(lambda: layers.upsample((2, 3)), (1, 5, 2, 2)),
    "dense": Case(lambda: layers.dense(3)),
    "dense-more-axes": Case(lambda: layers.dense(3), (1, LENGTH, 2, 4)),
    "conv": Case(lambda: layers.conv(2, 3)),
    "conv-causal": Case(lambda: causal(3, dilation=3)),
    "conv-strided": Case(lambda: causal(4, 5, strides=3, dilation=2, groups=2)),
    "conv-awkward": Case(lambda: layers.conv(2, 4, strides=3, padding=(11, 0), padding_value=0.5, dilation=2)),
    "conv-skipping": Case(lambda: layers.conv(2, 1, strides=4, padding="same")),
    "conv-skipping-more": Case(lambda: layers.conv(2, 2, strides=5, padding=(1, 0))),
    "conv-2-D": Case(
        lambda: layers.conv(2, (3, 2), strides=(2, 1), padding=((2, 0), (1, 2)), padding_value=0.5), (1, 6, 3, 2)
    ),
    "conv_transpose": Case(lambda: layers.conv_transpose(2, 5, strides=2)),
    "conv_transpose-causal": Case(lambda: up(2, 5, strides=3, dilation=2, groups=2)),
    "conv_transpose-no-overlap": Case(lambda: layers.conv_transpose(2, 3, strides=3, padding="same")),
    "conv_transpose-longer-stride": Case(lambda: layers.conv_transpose(2, 2, strides=5, padding=(0, 3))),
    "conv_transpose-awkward": Case(lambda: layers.conv_transpose(2, 3, strides=2, padding=(9, 1), dilation=2)),
    "conv_transpose-border": Case(lambda: layers.conv_transpose(2, 3, strides=2, padding=(7, 0), padding_value=0.5)),
    "conv_transpose-short-border": Case(lambda: layers.conv_transpose(2, 4, padding=(1, 0), padding_value=0.5)),
    "conv_transpose-2-D": Case(lambda: layers.conv_transpose(2, (3, 2), strides=2, padding="causal"), (1, 5, 2, 2)),
    "avg_pool": Case(lambda: layers.avg_pool(4, strides=3, padding=(5, 0))),
    "avg_pool-valid": Case(lambda: layers.avg_pool(2)),
    "max_pool": Case(lambda: layers.max_pool(3, strides=2, padding="causal")),
    "max_pool-2-D": Case(lambda: layers.max_pool((3, 2), strides=1, padding=((1, 0), (1, 1))), (1, 6, 3, 2)),
    "prelu": Case(lambda: layers.prelu(per_channel=True)),
    "dropout": Case(lambda: layers.dropout(0.5)),
    "batch_norm": Case(layers.batch_norm),
    "layer_norm": Case(layers.layer_norm),
    "layer": Case(running_sum),
    "stateless": Case(
        lambda: layers.stateless(lambda key, x: jnp.ones((), x.dtype), lambda p, x: x + p, stream="pointwise")
    ),
    "chain": Case(lambda: layers.chain(causal(), jnp.tanh, lambda x: x[..., 0], jnp.abs)),
    "residual": Case(lambda: layers.residual(layers.chain(causal(dilation=2), jnp.tanh)), (1, LENGTH, 4)),
    "residual-that-waits": Case(lambda: layers.residual(down_and_up(), causal(4, 1)), (2, 8, 4)),
    "parallel": Case(lambda: layers.parallel(causal(), layers.avg_pool(3))),
    "parallel-concatenate": Case(lambda: layers.parallel(down_and_up(), causal(), combine="concatenate"), (2, 8, 4)),
    "parallel-function": Case(lambda: layers.parallel(causal(), layers.dense(4), combine=lambda y: y[0] * y[1])),
    "repeat": Case(lambda: layers.repeat(layers.residual(layers.chain(causal(), jnp.tanh)), 3)),
    "repeat-that-waits": Case(lambda: layers.repeat(down_and_up(), 2, remat=True), (2, 8, 4)),
    "mixed_precision": Case(
        lambda: layers.mixed_precision(
            layers.chain(layers.residual(layers.frozen(causal())), layers.batch_norm()), compute="float64"
        )
    ),
    "frozen": Case(lambda: layers.frozen(layers.chain(causal(), layers.residual(causal()), layers.batch_norm()))),
    "weight_norm": Case(lambda: layers.weight_norm(causal(dilation=2))),
    "low_rank": Case(lambda: layers.low_rank(causal(dilation=2), 2)),
    "weight_norm-network": Case(
        lambda: layers.weight_norm(layers.chain(up(2, 4, strides=2), layers.residual(causal(2)), layers.dense(3)))
    ),
    "spectral_norm": Case(lambda: layers.spectral_norm(layers.chain(causal(), layers.dense(2)))),
    "rms_norm": Case(layers.rms_norm),
    "lstm": Case(lambda: layers.lstm(3)),
    "gru": Case(lambda: layers.gru(3)),
    "rnn": Case(lambda: layers.rnn(layers.elman(3)), (2, 5, 4)),
    "embedding": Case(lambda: layers.embedding(7, 3), (1, LENGTH), 7),
    "tied": Case(lambda: layers.tied(layers.embedding(7, 4), layers.residual(causal())), (1, LENGTH), 7),
    "attention": Case(lambda: layers.attention(2, causal=True, rotary=True, kv_heads=1)),
    "attention-window": Case(lambda: layers.attention(2, causal=True, window=3)),
    "positions": Case(lambda: layers.positions(LENGTH)),
    "positions-waves": Case(layers.positions),
    "on_first": Case(lambda: layers.on_first(causal())),
    "raveled": Case(lambda: layers.raveled(layers.chain(causal(), layers.batch_norm(), layers.prelu()))),
}
REFUSED = {
    "upsample-linear": (lambda: layers.upsample(2, "linear"), "it looks ahead, by half a position; .*'nearest'"),
    "pad": (lambda: layers.pad((2, 0), mode="reflect"), "it pads the end too, or lengthens what comes first; see conv"),
    "conv": (lambda: layers.conv(4, 3, padding="same"), "pads the signal by 1 at its end .* padding='causal'$"),
    "conv-pair": (lambda: layers.conv(4, 3, padding=(0, 2)), "pads the signal by 2 at its end"),
    "conv_transpose": (lambda: layers.conv_transpose(4, 3, padding=1), "pads the signal by 1 at its end"),
    "conv_transpose-border": (
        lambda: layers.conv_transpose(4, 3, strides=2, padding="causal", padding_value=1.0),
        "pads the signal by 1 at its end",
    ),
    "conv_transpose-2-D-border": (
        lambda: layers.conv_transpose(4, (3, 3), padding=((2, 0), (2, 0)), padding_value=1.0),
        "use padding_value=0",
    ),
    "avg_pool": (lambda: layers.avg_pool(3, padding="same"), "pads the signal by 1 at its end"),
    "max_pool": (lambda: layers.max_pool(3, padding=1), "pads the signal by 1 at its end"),
    "flatten": (layers.flatten, "all positions of an example .* stream the network up to it"),
    "reshape": (lambda: layers.reshape(-1, 2), "all positions of an example .* stream the network up to it"),
    "global_avg_pool": (layers.global_avg_pool, "mean is over all positions.* stream the network up to it"),
    "attention": (lambda: layers.attention(2), "causal=True"),
    "group_norm": (lambda: layers.group_norm(2), "statistics are of all positions, those to come too; layer_norm"),
    "instance_norm": (layers.instance_norm, "statistics are of all positions, those to come too; layer_norm"),
    "lstm": (lambda: layers.lstm(4, direction="both"), "reads the sequence from its end .*'forward' does not"),
    "gru": (lambda: layers.gru(4, carry=True), "in its input and output .*; carry=False has it remembered"),
    "watched": (lambda: layers.watched(layers.dense(3), lambda *seen: ()), r"watched\(streaming\(net\), watch\)"),
    "streaming": (lambda: layers.streaming(layers.dense(3)), "it is a stream already"),
    "opaque": (
        lambda: layers.dense(4).described(parts=(("part", layers.dense(4)),), stream=None),
        "does not say how to put other parts in the place of its own",
    ),
}


def trees(net, x):
    """Params and a state of values far from zeros and ones; of tokens too in the widest dtype that there is."""
    rng = np.random.default_rng(2)
    params, state = jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct(x.shape, x.dtype))
    tokens = jnp.issubdtype(x.dtype, jnp.integer)

    def value(leaf):
        dtype = jax.dtypes.canonicalize_dtype(float) if tokens else leaf.dtype
        return (0.3 * rng.standard_normal(leaf.shape) ** 2 + 0.1).astype(dtype)

    return jax.tree.map(value, (params, state))


def fed(stream, params, state, x, ends):
    """The outputs of the pieces that end there, joined, and the state after them."""
    outputs = []
    for begin, end in zip((0, *ends), ends, strict=False):
        y, state = stream.apply(params, state, jax.tree.map(lambda a, b=begin, e=end: a[:, b:e], x), train=False)
        outputs.append(y)
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=1), *outputs), state


def assert_fed_is_whole(net, x, cuts, tolerance=1e-12):
    stream, (params, state) = layers.streaming(net, capacity=LENGTH), trees(net, x)
    stream = stream._replace(apply=jax.jit(stream.apply, static_argnames="train"))  # traced once for each length

    @jax.jit
    def both(params, state, x):
        whole = net.apply(params, state, x, train=False)[0]
        return whole, [fed(stream, params, state, x, ends)[0] for ends in cuts]

    whole, joined = both(params, state, x)
    for ends, y in zip(cuts, joined, strict=True):
        chex.assert_trees_all_close(y, whole, rtol=tolerance, atol=tolerance)
        assert jax.tree.map(jnp.shape, y) == jax.tree.map(jnp.shape, whole), ends


def every_cut(n):
    """Each position alone; at every second one; and with pieces of length 0 first, between and last, a long one too.

    So there is a cut at every position, and pieces of every kind follow one another, by few lengths to trace.
    """
    return [tuple(range(1, n + 1)), (1, *range(3, n, 2), n), (0, 2, 2, n - 1, n, n)]


@pytest.mark.parametrize("name", FED)
@pytest.mark.usefixtures("x64")
def test_every_layer_at_every_cut(name):
    case = FED[name]
    assert_fed_is_whole(case.make(), case.x, every_cut(case.shape[1]))


def test_every_layer_is_fed_or_says_why_not():
    assert {name.split("-")[0] for name in (*FED, *REFUSED)} == {*layers.__all__, "opaque"} - NO_LAYERS


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_fed_says_where_it_is_and_why(name):
    make, reason = REFUSED[name]
    net = layers.chain(jnp.tanh, layers.residual(layers.repeat(make(), 2)))
    place = r"^chain\[1\]/residual.branch/repeat.layer: streaming: \w+ cannot be fed piece by piece: .*"
    with pytest.raises(ConfigError, match=place + reason):
        layers.streaming(net)


def dilated():
    """WaveNet's kind: gated dilated convolutions around which the signal goes."""

    def gated(dilation):
        both = layers.parallel(
            layers.chain(causal(4, 2, dilation=dilation), jnp.tanh),
            layers.chain(causal(4, 2, dilation=dilation), activations.sigmoid),
            combine=lambda y: y[0] * y[1],
        )
        return layers.residual(layers.chain(both, causal(4, 1)))

    return layers.chain(causal(4, 3), *map(gated, (1, 2, 4)), layers.layer_norm(), causal(2, 1))


def generator():
    """MelGAN's kind, made causal: transposed convolutions with residual blocks, after a strided one."""
    parts = [causal(8, 3, strides=2)]
    for filters, rate in ((6, 3), (4, 2)):
        parts += [activations.leaky_relu, up(filters, 2 * rate, rate)]
        for dilation in (1, 3):
            branch = layers.chain(activations.leaky_relu, causal(filters, dilation=dilation), causal(filters, 1))
            parts.append(layers.residual(branch, causal(filters, 1)))
    branches = [layers.residual(causal(4, size)) for size in (2, 3)]
    return layers.chain(*parts, layers.parallel(*branches, combine="mean"), causal(1, 5), jnp.tanh)


def gpt():
    """A small language model: tokens to logits, by the embedding's own table."""
    attends = layers.residual(layers.chain(layers.layer_norm(), layers.attention(2, causal=True, rotary=True)))
    thinks = layers.residual(layers.chain(layers.rms_norm(), layers.dense(12), jax.nn.gelu, layers.dense(8)))
    blocks = layers.repeat(layers.chain(attends, thinks), 2)
    return layers.tied(layers.embedding(7, 8), layers.chain(layers.positions(), blocks, layers.layer_norm()))


def recurrent():
    return layers.chain(layers.lstm(5), layers.residual(layers.lstm(5)), layers.dense(2))


NETWORKS = {"dilated": dilated, "generator": generator, "recurrent": recurrent, "gpt": gpt}


@pytest.mark.parametrize(("name", "dtype"), [*((name, jnp.float64) for name in NETWORKS), ("dilated", jnp.float32)])
def test_networks_at_every_cut(name, dtype):
    """By one compiled step, from a state that has begun."""
    with jax.enable_x64(dtype == jnp.float64):
        tolerance = 1e-12 if dtype == jnp.float64 else 2e-5
        net, x = NETWORKS[name](), np.array([[3, 1, 4, 1, 5, 2]]) if name == "gpt" else inputs((1, 6, 3), dtype)
        params, state = trees(net, x)
        whole = jax.jit(lambda: net.apply(params, state, x, train=False)[0])()
        stream = layers.streaming(net, capacity=LENGTH)
        begun = jax.jit(lambda: layers.stream_state(stream, params, state, x))()
        stream = stream._replace(apply=jax.jit(stream.apply, static_argnames="train"))
        x = np.asarray(x)  # NumPy's slices and joints need no program
        for ends in every_cut(6):
            memory, pieces = begun, []
            for begin, end in zip((0, *ends), ends, strict=False):
                y, memory = stream.apply(params, memory, x[:, begin:end], train=False)
                assert y.dtype == dtype
                pieces.append(np.asarray(y))
            np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=tolerance, atol=tolerance)


@st.composite
def geometries(draw):
    """A layer with a window, of any hyperparameters that need no end of the signal, and how long a signal it needs."""
    kind = draw(st.sampled_from(["conv", "conv_transpose", "avg_pool", "max_pool"]))
    size, strides, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    if kind.endswith("pool"):
        before = draw(st.integers(0, size - 1))
        return getattr(layers, kind)(size, strides=strides, padding=(before, 0)), size
    reach = dilation * (size - 1)
    before, groups = draw(st.integers(0, reach + 3)), draw(st.integers(1, 2))
    value = draw(st.sampled_from((0.0, 0.75)))
    after = draw(st.integers(0, strides - 1)) if kind == "conv_transpose" and not value else 0
    make = getattr(layers, kind)
    layer = make(
        2, size, strides=strides, padding=(before, after), padding_value=value, dilation=dilation, groups=groups
    )
    return layer, reach + 1


@given(geometries(), st.lists(st.integers(0, 5), min_size=1, max_size=4))
@settings(max_examples=10)
def test_drawn_layers_in_drawn_pieces(geometry, pieces):
    layer, needed = geometry
    ends = tuple(int(end) for end in np.cumsum([*pieces, needed]))
    with jax.enable_x64(True):
        assert_fed_is_whole(layer, inputs((1, ends[-1], 4)), [ends])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 2))
@settings(max_examples=4)
def test_a_network_in_drawn_pieces(pieces, depth):
    """Down, up and around, of pieces that no stride divides."""
    ends = tuple(int(end) for end in np.cumsum([*pieces, 1]))
    ends = (*ends, ends[-1] + ends[-1] % 2)
    net = layers.chain(layers.residual(down_and_up()), layers.repeat(layers.residual(down_and_up()), depth))
    with jax.enable_x64(True):
        assert_fed_is_whole(net, inputs((1, ends[-1], 4)), [ends])


def whole_strides():
    net = generator()
    return net, layers.streaming(net), *trees(net, inputs((2, 12, 3))), inputs((2, 12, 3))


@pytest.mark.usefixtures("x64")
def test_a_scan_carries_it():
    net, stream, params, state, x = whole_strides()

    @jax.jit
    def scanned(params, state, x):
        pieces = x.reshape(2, 3, 4, 3).swapaxes(0, 1)
        begun = layers.stream_state(stream, params, state, pieces[0])
        _, y = jax.lax.scan(lambda s, piece: stream.apply(params, s, piece, train=False)[::-1], begun, pieces)
        return y.swapaxes(0, 1).reshape(2, -1, 1), net.apply(params, state, x, train=False)[0]

    np.testing.assert_allclose(*scanned(params, state, x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_nothing_is_compiled_anew():
    _, stream, params, state, x = whole_strides()
    traced = []

    @jax.jit
    def step(params, state, piece):
        traced.append(1)
        return stream.apply(params, state, piece, train=False)

    struct = jax.ShapeDtypeStruct((2, 2, 3), x.dtype)
    state, x = layers.stream_state(stream, params, state, struct), np.asarray(x)
    for i in range(0, 8, 2):
        y, state = step(params, state, x[:, i : i + 2])
        assert y.shape == (2, 6, 1)
    assert len(traced) == 1


@pytest.mark.usefixtures("x64")
def test_vmap_is_many_streams():
    net = dilated()
    stream, x = layers.streaming(net), inputs((3, 2, 5, 3))
    params, state = trees(net, x[0])

    @jax.jit
    def together(params, state, x):
        def two(x):
            return fed(stream, params, state, x, (2, 5))

        return jax.vmap(two)(x), [two(one) for one in x]

    y, alone = together(params, state, x)
    chex.assert_trees_all_close(y, jax.tree.map(lambda *one: jnp.stack(one), *alone), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_the_whole():
    net = layers.residual(layers.chain(causal(), jnp.tanh, layers.batch_norm()))
    stream, x = layers.streaming(net), inputs((2, 6, 4))
    params, state = trees(net, x)

    @jax.jit
    def both(params, x):
        pieces = jax.grad(lambda p, x: jnp.sum(fed(stream, p, state, x, (1, 4, 6))[0] ** 3), (0, 1))(params, x)
        return pieces, jax.grad(lambda p, x: jnp.sum(net.apply(p, state, x, train=False)[0] ** 3), (0, 1))(params, x)

    chex.assert_trees_all_close(*both(params, x), rtol=1e-10, atol=1e-10)


def test_init_draws_the_networks_params_and_begins():
    """From a piece that the network alone refuses, since it is shorter than its window."""
    net = layers.chain(layers.conv(2, 3), layers.batch_norm(), layers.max_pool(2))
    stream = layers.streaming(net)
    piece = np.ones((1, 1, 4), np.float32)
    params, begun = stream.init(KEY, piece)
    drawn, own = net.init(KEY, np.ones((1, 4, 4), np.float32))
    chex.assert_trees_all_equal(params, drawn)
    chex.assert_trees_all_equal(begun, layers.stream_state(stream, params, own, piece))
    y, _ = apply(stream, params, begun, piece, train=False)
    assert y.shape == (1, 0, 2)


def test_the_state_is_the_layers_own_and_its_memory():
    stream = layers.streaming(layers.chain(causal(2), layers.batch_norm()))
    x = inputs((2, 5, 3), jnp.float32)
    params, state = stream.init(KEY, x)
    _, state = apply(stream, params, state, x, train=False)
    (kept, _), own = state.state[0].memory, state.state[1].state
    np.testing.assert_array_equal(kept, np.asarray(x)[:, -2:])
    assert own.keys() == {"mean", "variance"}


def test_pieces_of_several_arrays():
    """A mask goes on with the signal, a condition comes with each piece."""

    def conditioned(x):
        return {**x, "signal": x["signal"] * (1 + x["speaker"][:, None])}

    def signal(x):
        return x["signal"]

    def back(outputs):
        return {**outputs[1], "signal": outputs[0]}

    net = layers.residual(
        layers.chain(conditioned, layers.parallel(layers.chain(signal, causal()), lambda x: x, combine=back))
    )
    x = {"signal": np.asarray(inputs((2, 5, 4), jnp.float32)), "mask": np.ones((2, 5), bool)}
    speaker = inputs((2, 4), jnp.float32)
    params, state = net.init(KEY, {**x, "speaker": speaker})
    whole = apply(net, params, state, {**x, "speaker": speaker}, train=False)[0]
    stream = layers.streaming(net)
    state = layers.stream_state(stream, params, state, {**x, "speaker": speaker})
    for begin, end in ((0, 2), (2, 3), (3, 5)):
        piece = jax.tree.map(lambda a, b=begin, e=end: a[:, b:e], x)
        y, state = apply(stream, params, state, {**piece, "speaker": speaker}, train=False)
        np.testing.assert_allclose(y["signal"], np.asarray(whole["signal"])[:, begin:end], rtol=1e-5)
        assert y["mask"].shape == (2, end - begin)


@pytest.mark.usefixtures("x64")
def test_a_context_comes_whole_with_each_piece():
    def attended(x):
        return x[0]

    net = layers.chain(layers.attention(2, cross=True), attended, causal())
    x, context = inputs((2, 5, 4)), inputs((2, 3, 6), seed=1)
    params, state = net.init(KEY, (x, context))
    stream = layers.streaming(net)

    @jax.jit
    def both(params, x, context):
        begun, outputs = layers.stream_state(stream, params, state, (x, context)), []
        for begin, end in ((0, 2), (2, 5)):
            y, begun = stream.apply(params, begun, (x[:, begin:end], context), train=False)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=1), net.apply(params, state, (x, context), train=False)[0]

    np.testing.assert_allclose(*both(params, x, context), rtol=1e-12, atol=1e-12)


def test_what_is_remembered_has_an_end():
    x = np.ones((1, 2, 4), np.float32)
    stream = layers.streaming(layers.chain(layers.attention(2, causal=True)), capacity=3)
    params, state = stream.init(KEY, x)
    _, state = apply(stream, params, state, x, train=False)
    with pytest.raises(DataError, match=r"^chain\[0\]: attention: the stream is 4 positions long, and 3 were to be"):
        stream.apply(params, state, x, train=False)
    assert np.isnan(apply(stream, params, state, x, train=False)[0]).all()
    with pytest.raises(ConfigError, match=r"^attention: attention without a window remembers all .*capacity="):
        layers.streaming(layers.attention(2, causal=True)).init(KEY, x)


def test_mixed_precision_remembers_in_the_compute_dtype():
    net = layers.mixed_precision(dilated())
    x = inputs((1, 6, 3), jnp.float32)
    params, state = jax.jit(net.init)(KEY, x)
    stream = layers.streaming(net)

    @jax.jit
    def both(params, state, x):
        y, last = fed(stream, params, state, x, (1, 4, 6))
        return y, net.apply(params, state, x, train=False)[0], last

    y, whole, last = both(params, state, x)
    np.testing.assert_allclose(y, whole, rtol=0.05, atol=0.02)
    assert last.state[0].memory[0].dtype == jnp.bfloat16


def test_a_stream_can_be_pickled():
    stream = layers.streaming(layers.chain(causal(2), jnp.tanh, layers.residual(causal(2))), capacity=8)
    again = pickle.loads(pickle.dumps(stream))
    x = inputs((1, 4, 3), jnp.float32)
    params, state = stream.init(KEY, x)
    chex.assert_trees_all_equal(*(apply(one, params, state, x, train=False) for one in (stream, again)))


def test_summary_and_watched_see_its_layers():
    net = layers.chain(layers.conv(4, 2), layers.repeat(layers.residual(causal()), 2), layers.parallel(jnp.tanh, up()))
    stream, x = layers.streaming(net), np.ones((1, 6, 4), np.float32)
    ours = {row.path: row for row in layers.summary(stream, x).rows}
    for row in layers.summary(net, x).rows:
        assert ours[("net", *row.path)][:3] == (("net", *row.path), row.name, row.output)
        assert ours[("net", *row.path)].parameters == row.parameters
    paths = set()
    watched = layers.watched(stream, lambda path, *rest: paths.add(path) or ())
    jax.eval_shape(lambda: watched.apply(*stream.init(KEY, x), x, train=False))
    assert paths == set(ours)


def begun(net, x):
    params, state = net.init(KEY, x)
    return layers.streaming(net).apply(params, state, x, train=False)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.flip(x, 1),
        lambda x: jnp.cumsum(x, 1),
        lambda x: x - x.mean(1, keepdims=True),
        lambda x: x[:, :512],
        lambda x: x[:, ::2],
        lambda x: x + jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None],
        lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))),
        lambda x: x.mean(),
    ],
)
def test_a_function_of_more_than_one_position_is_refused(f, jit):
    def call(x):
        return begun(layers.chain(layers.dense(4), f), x)[0]

    x = jnp.ones((2, 3, 4))
    with pytest.raises(ConfigError, match=r"^chain\[1\]: .*it cannot be fed piece by piece: tried on random numbers"):
        (jax.jit(call) if jit else call)(x)
    with pytest.raises(ConfigError, match=r"^parallel: combine cannot be fed piece by piece"):
        begun(layers.parallel(layers.dense(4), combine=lambda y: f(y[0])), x)


def test_what_does_not_say_how_it_is_fed_is_refused():
    net = layers.chain(layers.stateless(lambda key, x: jnp.ones(()), lambda p, x: x * p, name="scale"))
    with pytest.raises(ConfigError, match=r"^chain\[0\]: scale: it does not say .* stream='pointwise' .*layers.Stream"):
        begun(net, jnp.ones((2, 3, 4)))
    with pytest.raises(ConfigError, match="was to be tried on random numbers, whole and cut, and failed: "):
        begun(layers.chain(lambda x: x.reshape(2, 3, 2, 2)), jnp.ones((2, 3, 4)))
    with pytest.raises(ConfigError, match="capacity must be an integer >= 1, got 0"):
        layers.streaming(layers.dense(2), capacity=0)


@pytest.mark.parametrize("units", [3, 4])
def test_features_are_no_time(units):
    """An array (batch, features), and a layer that makes as many of them, or others."""
    with pytest.raises(ShapeError, match=r"^dense: a stream is cut along axis 1 of \(batch, time, ..., channels\)"):
        begun(layers.dense(units), jnp.ones((2, 4)))


def test_what_is_no_next_piece_is_refused():
    stream = layers.streaming(causal(2))
    x = jnp.ones((2, 3, 4))
    params, state = stream.init(KEY, x)
    for piece, kind, match in (
        (x[:1], ShapeError, "^streaming: the stream was begun with a batch of 2, got a piece of 1 .*own state"),
        (x[..., :3], ShapeError, r"begun with pieces of shape \(batch, n, 4\), got \(2, 3, 3\)"),
        (x.astype(jnp.bfloat16), DTypeError, "begun with float32, got bfloat16; convert the piece"),
        ((x, x), ShapeError, "begun with float32 .*, got a tuple of"),
        (x[:, 0, 0], ShapeError, r"a piece must have the axes \(batch, time, ...\), got float32 \(2,\)"),
        ("no", DTypeError, "x must be an array, got str"),
    ):
        with pytest.raises(kind, match=match):
            stream.apply(params, state, piece, train=False)
    with pytest.raises(ConfigError, match=r"^streaming: a stream is for evaluation; train the network itself"):
        stream.apply(params, state, x, train=True)
    with pytest.raises(ConfigError, match=r"^stream_state: stream must be what layers.streaming"):
        layers.stream_state(causal(2), params, (), x)
    with pytest.raises(ConfigError, match=r"^stream_state: state must be the network's own, got that of a stream"):
        layers.stream_state(stream, params, state, x)


def test_parts_of_different_rates_are_joined_by_no_function():
    net = layers.parallel(causal(), layers.avg_pool(3), combine=lambda y: y[1])
    with pytest.raises(
        ShapeError, match=r"^parallel: the parts give .* feed pieces that the strides divide, or combine by"
    ):
        begun(net, jnp.ones((2, 3, 4)))


def test_padding_that_the_layer_itself_refuses():
    with pytest.raises(ConfigError, match="pad by less than the window"):
        begun(layers.max_pool(2, padding=(2, 0)), jnp.ones((1, 3, 2)))

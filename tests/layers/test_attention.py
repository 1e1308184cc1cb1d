"""The attention layer and positions, against PyTorch, and fed piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import interop, layers
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError, ShapeError
from tests.compiled import apply

X = np.random.default_rng(0).standard_normal((2, 7, 8))
CONTEXT = np.random.default_rng(1).standard_normal((2, 5, 8))
MASK = np.array([[True] * 5 + [False] * 2, [False, True] + [True] * 5])


def some(rank):
    """A mask of keys, of pairs, or of pairs in each head; every query sees one."""
    drawn = np.random.default_rng(rank).random({2: (2, 7), 3: (2, 7, 7), 4: (2, 2, 7, 7)}[rank]) < 0.6
    drawn[..., 0] = True
    return drawn


@pytest.mark.parametrize(
    ("dtype", "bias", "rank"),
    [("float32", True, None), ("float64", False, "cross"), ("float64", False, None)]
    + [("float64", True, rank) for rank in (2, 3, 4, "causal", "cross")],
)
def test_it_is_pytorchs_multihead_attention(dtype, bias, rank):
    """Its weights in, the same values and gradients out, and its weights again."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, dtype=getattr(torch, dtype))
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, context, co = (a.astype(dtype) for a in (X, CONTEXT, np.cos(X)))
    mask = None if rank not in (2, 3, 4) else some(rank)
    options, source = {}, torch.tensor(x, requires_grad=True)
    into = source
    if rank == "cross":
        into = torch.tensor(context, requires_grad=True)
    there = np.ones(x.shape[:2], bool)
    if rank == 2:  # what is masked is not seen, and sees nothing of itself either
        there, options["key_padding_mask"] = mask, torch.tensor(~mask)
        co = co * mask[..., None]
    elif mask is not None:
        options["attn_mask"] = torch.tensor(~(np.repeat(mask, 2, 0) if rank == 3 else mask.reshape(4, 7, 7)))
    elif rank == "causal":
        options["attn_mask"] = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    y, _ = theirs(source, into, into, need_weights=False, **options)
    moving = [source] + [into] * (rank == "cross") + list(theirs.parameters())
    slopes = torch.autograd.grad(y, moving, torch.tensor(co))

    net = layers.attention(2, bias=bias, causal=rank == "causal", cross=rank == "cross")
    with jax.enable_x64(dtype == "float64"):
        inputs = (x, context) if rank == "cross" else x if mask is None else (x, mask)
        params, state = interop.from_torch(theirs.state_dict(), net, jax.tree.map(jnp.asarray, inputs))
        back = interop.to_torch(params, state, net)
        assert back.keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            np.testing.assert_array_equal(back[name], value.numpy())

        def f(params, arrays):
            full = arrays if rank == "cross" else arrays[0] if mask is None else (arrays[0], mask)
            out = net.apply(params, state, full, train=True)[0]
            return out if isinstance(full, jax.Array) else out[0]

        arrays = tuple(map(jnp.asarray, (x, context)[: 1 + (rank == "cross")]))
        ours, (by_params, by_arrays) = jax.jit(lambda co, *a: (f(*a), jax.vjp(f, *a)[1](co)))(co, params, arrays)
        named = interop.to_torch(by_params, state, net)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(ours[there], y.detach().numpy()[there], **tolerance)
    names = [name for name, _ in theirs.named_parameters()]
    for a, b in zip([*by_arrays, *(named[name] for name in names)], slopes, strict=True):
        np.testing.assert_allclose(a, b.numpy(), **tolerance)


def plain(params, x, heads, shared, base):
    """One head after the other in numpy, rotary as complex numbers."""
    d = params["output_kernel"].shape[0] // heads
    q, k, v = np.split(x @ params["kernel"] + params["bias"], [heads * d, (heads + shared) * d], -1)
    turns = np.exp(1j * np.arange(x.shape[0])[:, None] * base ** (-np.arange(0, d, 2) / d))

    def turned(a):
        z = (a[:, : d // 2] + 1j * a[:, d // 2 :]) * turns
        return np.concatenate([z.real, z.imag], -1)

    outputs = []
    for h in range(heads):
        g = h // (heads // shared)
        scores = turned(q[:, h * d : h * d + d]) @ turned(k[:, g * d : g * d + d]).T / np.sqrt(d)
        weights = np.exp(scores) * np.tri(len(x))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v[:, g * d : g * d + d])
    return np.concatenate(outputs, -1) @ params["output_kernel"] + params["output_bias"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("heads", "shared", "base"), [(4, 2, 10000.0), (2, 1, 100.0), (1, 1, 10000.0)])
def test_shared_keys_and_rotary_positions_against_literal_sums(heads, shared, base):
    rotary = base if base != 10000 else True
    net = layers.attention(heads, kv_heads=shared, head_size=6, causal=True, rotary=rotary)
    params, state = net.init(0, X)
    params = jax.tree.map(lambda a: np.asarray(a) + 0.1, params)
    y = np.asarray(apply(net, params, state, X, train=False)[0])
    for i in range(len(X)):
        np.testing.assert_allclose(y[i], plain(params, X[i], heads, shared, base), rtol=1e-11)


def test_a_mask_goes_on_and_what_it_hides_changes_nothing():
    net = layers.residual(layers.chain(layers.attention(2), layers.attention(2, causal=True, rotary=True)))
    x = X.astype("f")
    params, state = net.init(0, (x, MASK))
    y, mask = apply(net, params, state, (x, MASK), train=False)[0]
    np.testing.assert_array_equal(mask, MASK)
    other, _ = apply(net, params, state, (np.where(MASK[..., None], x, np.float32(1e3)), MASK), train=False)[0]
    np.testing.assert_array_equal(np.where(MASK[..., None], y, 0), np.where(MASK[..., None], other, 0))
    none, _ = apply(net, params, state, (x, np.zeros_like(MASK)), train=False)[0]
    assert np.isfinite(none).all()


def test_across_a_context_and_its_mask():
    net = layers.attention(2, cross=True)
    x, context = X.astype("f"), CONTEXT.astype("f")
    params, state = net.init(0, (x, context))
    mask = MASK[:, :5]
    y, kept, also = apply(net, params, state, (x, context, mask), train=False)[0]
    np.testing.assert_array_equal(kept, context)
    np.testing.assert_array_equal(also, mask)
    short, _ = apply(net, params, state, (x[1:], context[1:, 1:]), train=False)[0]
    np.testing.assert_allclose(y[1:], short, rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training():
    net = layers.attention(2, dropout=0.5)
    x = X.astype("f")
    params, state = net.init(0, x)
    evaluated = apply(net, params, state, x, train=False)[0]
    trained = [apply(net, params, state, x, train=True, key=jax.random.key(i))[0] for i in (0, 1, 1)]
    assert not np.allclose(trained[0], trained[1])
    assert not np.allclose(trained[0], evaluated)
    np.testing.assert_array_equal(trained[1], trained[2])


# Piece by piece.


def fed(net, params, x, cuts, capacity=None, jit=False):
    """The outputs of pieces, joined."""
    stream, outputs = net.about.stream, []
    memory = stream.start(params, (), jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x), capacity)
    step = jax.jit(stream.step) if jit else stream.step
    x = jax.tree.map(np.asarray, x)  # NumPy's slices and joints need no program
    shapes = jax.tree.map(jnp.shape, memory)
    for low, high in zip([0, *cuts], [*cuts, 7], strict=True):
        y, memory = step(params, (), memory, jax.tree.map(lambda a, low=low, high=high: a[:, low:high], x))
        assert jax.tree.map(jnp.shape, memory) == shapes
        outputs.append(y)
    return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *outputs)


STREAMS = {
    "causal": (lambda: layers.attention(2, kv_heads=1, causal=True, rotary=True), 7),
    "window": (lambda: layers.attention(2, causal=True, rotary=True, window=3), None),
    "itself": (lambda: layers.attention(2, causal=True, window=1), None),
    "fixed": (layers.positions, None),
    "learned": (lambda: layers.positions(7), None),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.usefixtures("x64")
def test_pieces_joined_are_the_whole(name, masked):
    make, capacity = STREAMS[name]
    net, x = make(), (X, MASK) if masked else X
    params, state = net.init(0, x)
    whole = apply(net, params, state, x, train=False)[0]
    for cuts in ([2, 2, 5], list(range(1, 7))):
        got = fed(net, params, x, cuts, capacity, jit=True)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, whole)


@pytest.mark.parametrize("name", ["causal", "learned"])
def test_a_full_memory_is_an_error_and_inside_jit_nan(name):
    net = layers.attention(2, causal=True) if name == "causal" else layers.positions(5)
    x = X.astype("f")
    params, _ = net.init(0, x[:, :5])
    assert np.isfinite(fed(net, params, x[:, :5], [3], 5)).all()
    with pytest.raises(DataError, match=r"the stream is 7 positions long, and .*5"):
        fed(net, params, x, [3], 5)
    assert np.isnan(fed(net, params, x, [3], 5, jit=True)[:, 3:]).all()


def test_what_cannot_be_fed_says_why():
    assert "causal=True" in layers.attention(2).about.stream
    net = layers.attention(2, causal=True)
    x = X.astype("f")
    params, _ = net.init(0, x)
    with pytest.raises(ConfigError, match=r"remembers all that came; .*streaming\(net, capacity=\.\.\.\)"):
        fed(net, params, x, [])
    stream = net.about.stream
    memory = stream.start(params, (), x, 9)
    with pytest.raises(ShapeError, match="began with a batch of 2, and a piece has a batch of 1; begin another"):
        stream.step(params, (), memory, x[:1])
    with pytest.raises(ShapeError, match="began with a batch of 2, and a piece has a batch of 2 and a mask"):
        stream.step(params, (), memory, (x, MASK))
    with pytest.raises(ShapeError, match="a piece of 7 positions is longer than the capacity, 5"):
        stream.step(params, (), stream.start(params, (), x, 5), x)
    memory = stream.start(params, (), (x, MASK), 9)
    with pytest.raises(ShapeError, match=r"the mask of a stream must have shape \(2, 7\)"):
        stream.step(params, (), memory, (x, jnp.ones((2, 7, 7), bool)))


def test_fixed_positions_are_the_equations():
    y, _ = layers.positions(base=100.0).apply((), (), np.zeros((1, 50, 6), np.float32), train=False)
    y = np.asarray(y)
    t, i = np.arange(50.0)[:, None], np.arange(3)
    np.testing.assert_allclose(y[0, :, 0::2], np.sin(t / 100 ** (2 * i / 6)), atol=1e-5)
    np.testing.assert_allclose(y[0, :, 1::2], np.cos(t / 100 ** (2 * i / 6)), atol=1e-5)


def test_learned_positions_are_pytorchs_embedding():
    net = layers.positions(9)
    table = np.random.default_rng(0).standard_normal((9, 8)).astype("f")
    params, state = interop.from_torch({"weight": table}, net, X.astype("f"))
    np.testing.assert_array_equal(net.apply(params, state, X.astype("f"), train=False)[0], X.astype("f") + table[:7])


SELF, CROSS = layers.attention(2), layers.attention(2, cross=True)
X32 = X.astype("f")


def applied(net, x, good=X32):
    params, state = net.init(0, good)
    return lambda: net.apply(params, state, x, train=True)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: layers.attention(0), ConfigError, "attention: heads must be an integer >= 1, got 0"),
        (lambda: layers.attention(4, kv_heads=3), ConfigError, "kv_heads=3 must divide heads=4"),
        (lambda: layers.attention(2, head_size=0), ConfigError, "head_size must be an integer >= 1"),
        (lambda: layers.attention(2, window=0), ConfigError, "window must be an integer >= 1, got 0"),
        (lambda: layers.attention(2, rotary=1.0), ConfigError, r"rotary must be a finite number in \(1, inf"),
        (lambda: layers.attention(2, dropout=1), ConfigError, r"dropout must be a finite number in \[0, 1\), got 1"),
        (
            lambda: layers.attention(2, cross=True, causal=True),
            ConfigError,
            "cross goes without causal, window, rotary",
        ),
        (lambda: layers.attention(3).init(0, X32), ShapeError, "heads=3 must divide the 8 channels; or give head_size"),
        (applied(layers.attention(2, dropout=0.1), X32), ConfigError, "attention: .*no key came"),
        (
            lambda: layers.attention(8, rotary=True).init(0, X32),
            ShapeError,
            "rotary positions are pairs of features, got 1",
        ),
        (applied(SELF, X32[0]), ShapeError, r"x must have 3 axes \(batch, time, channels\), .*x\[None\]"),
        (applied(SELF, X32[..., :6]), ShapeError, "the input has 6 channels, and kernel is"),
        (applied(SELF, (X32,)), ConfigError, r"the input must be x or \(x, mask\), got a tuple of 1"),
        (applied(SELF, (X32, MASK.astype("f"))), DTypeError, "mask must be bool"),
        (
            applied(SELF, (X32, MASK[:, :3])),
            ShapeError,
            r"mask must have shape \(2, 7\), \(2, 7, 7\) or \(2, 2, 7, 7\)",
        ),
        (applied(SELF, X32.astype(int)), DTypeError, "x must be floating point"),
        (applied(SELF, X32.astype(jnp.bfloat16)), DTypeError, "dtypes differ"),
        (lambda: CROSS.init(0, X32), ConfigError, r"must be \(x, context\) or \(x, context, mask\), got one array"),
        (applied(CROSS, (X32, X32[..., :4]), (X32, X32)), ShapeError, "the input has 8 channels, and kernel is"),
        (lambda: layers.positions(0), ConfigError, "positions: entries must be an integer >= 1"),
        (lambda: layers.positions(base=1), ConfigError, r"base must be a finite number in \(1, inf"),
        (lambda: layers.positions().init(0, X32[..., :7]), ShapeError, "pairs of channels, got 7 channels"),
        (applied(layers.positions(5), X32, X32[:, :5]), ShapeError, "x has 7 positions, and 5 were asked for"),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_context_of_other_channels_is_not_pytorchs():
    net = layers.attention(2, cross=True)
    params, state = net.init(0, (X32, X32[..., :4]))
    with pytest.raises(ShapeError, match="of x and of a context with as many channels"):
        interop.to_torch(params, state, net)
    with pytest.raises(CheckpointError, match=r"missing: in_proj_bias, in_proj_weight"):
        interop.from_torch({}, net, (X32, X32))


def test_what_a_masked_position_holds_reaches_no_gradient_whole_or_in_pieces():
    net = layers.attention(2, causal=True)
    mask = np.array([[True, False, True, True]])
    x = np.random.default_rng(0).standard_normal((1, 4, 4)).astype("f")
    params, state = net.init(0, (x, mask))
    bad = x.copy()
    bad[0, 1] = np.nan

    def loss(params, x):
        y, there = net.apply(params, state, (x, mask), train=False)[0]
        return jnp.sum(jnp.where(there[..., None], jnp.sin(y), 0.0))

    slope = jax.jit(jax.grad(loss))
    for found, wanted in zip(*(jax.tree.leaves(slope(params, one)) for one in (bad, x)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    stream = layers.streaming(net, capacity=4)
    begun = layers.stream_state(stream, params, state, (bad, mask))
    y, _ = apply(stream, params, begun, (bad, mask), train=False)[0]
    whole, _ = apply(net, params, state, (x, mask), train=False)[0]
    np.testing.assert_allclose(np.asarray(y)[mask], np.asarray(whole)[mask], rtol=1e-5, atol=1e-6)

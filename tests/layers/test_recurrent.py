"""Recurrent layers: PyTorch's values, gradients and weights; masks; carries; pieces; every transformation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxnet import interop, layers
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from tests.compiled import apply

UNITS, BATCH, TIME, FEATURES = 3, 4, 5, 2
LENGTHS = np.array([5, 1, 3, 0])
MASK = np.arange(TIME) < LENGTHS[:, None]
X = np.random.default_rng(0).standard_normal((BATCH, TIME, FEATURES))


def make(name, **options):
    if name != "rnn":
        return getattr(layers, name)(UNITS, **options)
    cell = {key: options.pop(key) for key in ("bias", "activation") if key in options}
    return layers.rnn(layers.elman(UNITS, **cell), **options)


NAMES = pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "backward", "both"])


def start(net, x=X, seed=1):
    """Params far from zeros, and the input, in float64, in NumPy, whose slices and arithmetic need no program."""
    trees = jax.eval_shape(net.init, jax.random.key(0), x)[0]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (rng.standard_normal(a.shape) * 0.7).astype(a.dtype), trees), x


def evaluate(net, params, x):
    return jax.tree.map(np.asarray, apply(net, params, (), x, train=False)[0])


def weighed(net, params, x, mask=None):
    """A sum of the outputs that tells them apart, for gradients."""
    y = net.apply(params, (), x if mask is None else (x, mask), train=True)[0]
    y = y if mask is None else y[0]
    return jnp.vdot(jnp.asarray(np.cos(np.arange(y.size)), y.dtype), y.reshape(-1)), y


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")


def torch_model(torch, name, dtype, **options):
    options |= {"nonlinearity": "relu"} if name == "relu" else {}
    kind = {"lstm": "LSTM", "gru": "GRU"}.get(name, "RNN")
    torch.manual_seed(0)
    return getattr(torch.nn, kind)(FEATURES, UNITS, batch_first=True, dtype=getattr(torch, dtype), **options)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "both", "bias"),
    [("lstm", False, True), ("lstm", True, True), ("gru", True, True), ("gru", False, False), ("relu", True, True)],
)
def test_values_and_gradients_are_pytorchs(torch, name, both, bias, masked, dtype):
    """With its weights, and with packed sequences where there is a mask; the gradients come back by its names."""
    options = {"activation": jax.nn.relu} if name == "relu" else {}
    net = make("rnn" if name == "relu" else name, direction="both" if both else "forward", bias=bias, **options)
    model = torch_model(torch, name, dtype, bidirectional=both, bias=bias)
    keep = slice(None, 3 if masked else None)  # PyTorch packs no empty sequence
    lengths, mask = LENGTHS[keep], MASK[keep]
    theirs = torch.tensor(X[keep], dtype=getattr(torch, dtype), requires_grad=True)
    if masked:
        pack = functools.partial(torch.nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False)
        packed = model(pack(theirs, torch.tensor(lengths)))[0]
        expected = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=TIME)[0]
    else:
        expected = model(theirs)[0]
    weight = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).to(expected.dtype)
    (expected.reshape(-1) @ weight).backward()
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X[keep], dtype)
        params, _ = interop.from_torch(model.state_dict(), net, x)
        step = jax.jit(jax.value_and_grad(functools.partial(weighed, net), (0, 1), has_aux=True))
        (_, y), (grads, dx) = step(params, x, *(mask,) * masked)
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        close(y, expected.detach().numpy())
        close(dx, theirs.grad.numpy())
        named = interop.to_torch(grads, (), net)
        assert named.keys() == dict(model.named_parameters()).keys()
        for key, parameter in model.named_parameters():
            close(named[key], parameter.grad.numpy(), err_msg=key)
        for key, array in interop.to_torch(params, (), net).items():
            np.testing.assert_array_equal(array, model.state_dict()[key].numpy())


@pytest.mark.peers
def test_two_layers_of_pytorchs_by_the_documented_rename(torch):
    net = layers.chain(layers.lstm(UNITS), layers.lstm(UNITS))
    model = torch_model(torch, "lstm", "float32", num_layers=2)
    rename = lambda name: name[2:].replace("l0", f"l{name[0]}")  # noqa: E731
    params, _ = interop.from_torch(model.state_dict(), net, X.astype("float32"), rename=rename)
    y = jax.jit(lambda params, x: net.apply(params, ((), ()), x, train=False)[0])(params, X.astype("float32"))
    expected = model(torch.tensor(X, dtype=torch.float32))[0].detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_carries_in_and_out_are_pytorchs(torch, name):
    net = make(name, carry=True, direction="both")
    model = torch_model(torch, name, "float32", bidirectional=True)
    rng = np.random.default_rng(2)
    first = [rng.standard_normal((2, BATCH, UNITS)).astype("float32") for _ in range(2 if name == "lstm" else 1)]
    given = tuple(tuple(a[way] for a in first) if name == "lstm" else first[0][way] for way in range(2))
    x = X.astype("float32")
    params, _ = interop.from_torch(model.state_dict(), net, (x, given))
    y, last = evaluate(net, params, (x, given))
    tensors = [torch.tensor(a) for a in first]
    expected, states = model(torch.tensor(x), tuple(tensors) if name == "lstm" else tensors[0])
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    states = states if name == "lstm" else (states,)
    for way in range(2):
        for ours, theirs in zip(jax.tree.leaves(last[way]), states, strict=True):
            np.testing.assert_allclose(ours, theirs[way].detach().numpy(), rtol=1e-5, atol=1e-5)


def literal(name, params, x):
    """One sequence (time, features) by the equations, in numpy."""
    kernel, recurrent, bias, recurrent_bias = (
        np.asarray(params[key]) for key in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    )
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h, c, found = np.zeros(UNITS), np.zeros(UNITS), []
    for now in np.asarray(x):
        a, p = now @ kernel + bias, h @ recurrent + recurrent_bias
        if name == "lstm":
            i, f, g, o = np.split(a + p, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif name == "gru":
            (a_r, a_z, a_n), (p_r, p_z, p_n) = np.split(a, 3), np.split(p, 3)
            z = sigmoid(a_z + p_z)
            h = (1 - z) * np.tanh(a_n + sigmoid(a_r + p_r) * p_n) + z * h
        else:
            h = np.tanh(a + p)
        found.append(h)
    return np.stack(found) if found else np.zeros((0, UNITS))


@NAMES
@pytest.mark.usefixtures("x64")
def test_a_mask_with_holes_leaves_the_sequence_without_them(name):
    """Each direction, against the equations on what is there alone; and what is masked changes no bit of it."""
    mask = np.random.default_rng(3).random((BATCH, TIME)) < 0.6
    mask[0] = False
    net = make(name, direction="both")
    params, x = start(net)
    y, back = evaluate(net, params, (x, mask))
    np.testing.assert_array_equal(back, mask)
    for i, there in enumerate(mask):
        forward = literal(name, params["forward"], x[i, there])
        backward = literal(name, params["backward"], x[i, there][::-1])[::-1]
        np.testing.assert_allclose(y[i, there], np.concatenate([forward, backward], -1), rtol=1e-12, atol=1e-12)
    assert not np.any(y[~mask])
    poisoned = np.where(mask[..., None], x, np.nan)
    np.testing.assert_array_equal(evaluate(net, params, (poisoned, mask))[0], y)

    gradient = jax.grad(lambda params, x: weighed(net, params, x, mask)[0], (0, 1))

    @jax.jit
    def derivatives(params, x):
        return gradient(params, x), jax.jvp(gradient, (params, x), (params, x))[1]

    found = derivatives(params, poisoned)
    chex.assert_trees_all_equal(found, derivatives(params, np.where(mask[..., None], x, 0.0)))
    assert not np.any(np.asarray(found[0][1])[~mask])


@NAMES
def test_sequences_in_a_batch_are_as_alone(name):
    net = make(name, direction="both")
    params, x = start(net, X.astype("float32"))
    y, _ = evaluate(net, params, (x, MASK))
    for i, length in enumerate(LENGTHS[:3]):
        alone = evaluate(net, params, x[i : i + 1, :length])
        np.testing.assert_allclose(y[i, :length], alone[0], rtol=1e-6, atol=1e-6)


@NAMES
@DIRECTIONS
@pytest.mark.usefixtures("x64")
def test_a_carry_goes_on_where_another_ended(name, direction):
    """With a mask: of sequences that ended, the last state is that of their last step."""
    net, whole = make(name, direction=direction, carry=True), make(name, direction=direction)
    params, x = start(whole)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), carry_of(net, x))
    y, _, last = evaluate(net, params, (x, MASK, zeros))
    expected, _ = evaluate(whole, params, (x, MASK))
    np.testing.assert_array_equal(y, expected)
    if direction == "both":
        return
    ends = np.where(LENGTHS > 0, LENGTHS - 1, 0) if direction == "forward" else np.zeros(BATCH, int)
    h = jax.tree.leaves(last)[0]
    np.testing.assert_array_equal(h, np.asarray(y)[np.arange(BATCH), ends])
    cut = (slice(2, None), slice(None, 2)) if direction == "backward" else (slice(None, 2), slice(2, None))
    carried, pieces = zeros, {}
    for piece in cut:
        pieces[piece.start or 0], _, carried = evaluate(net, params, (x[:, piece], MASK[:, piece], carried))
    np.testing.assert_allclose(np.concatenate([pieces[0], pieces[2]], 1), y, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(carried, last, rtol=1e-12, atol=1e-12)


def carry_of(net, x):
    """The shapes of its carry, as its error tells them to who does not know."""
    one = jax.ShapeDtypeStruct((x.shape[0], UNITS), x.dtype)
    for carry in (one, (one, one), ((one, one), (one, one))):
        try:
            jax.eval_shape(net.init, jax.random.key(0), (x, carry))
        except ShapeError:
            continue
        return carry
    raise AssertionError("no carry fits")


@NAMES
@pytest.mark.usefixtures("x64")
def test_piece_by_piece_at_every_cut(name):
    net = make(name)
    params, x = start(net)
    whole = evaluate(net, params, (x, MASK))[0]
    stream = net.about.stream
    step = jax.jit(lambda memory, x: stream.step(params, (), memory, x))
    for cut in range(TIME + 1):
        pieces = [(x[:, :cut], MASK[:, :cut]), (x[:, cut:], MASK[:, cut:])]
        memory, outputs = stream.start(params, (), jax.eval_shape(lambda p=pieces[0]: p), None), []
        for piece in pieces:
            (y, _), memory = step(memory, piece)
            outputs.append(y)
        np.testing.assert_allclose(np.concatenate(outputs, 1), whole, rtol=1e-12, atol=1e-12)
    for options in ({"direction": "backward"}, {"direction": "both"}):
        assert make(name, **options).about.stream.startswith("it reads the sequence from its end")


@NAMES
@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_differences_of_the_first(name):
    """By the carry too, masked and backward, where the contract's test has a mere forward layer."""
    net = make(name, direction="backward", carry=True)
    shapes = carry_of(net, X)
    rng = np.random.default_rng(5)
    carry = jax.tree.map(lambda a: rng.standard_normal(a.shape), shapes)
    params, x = start(make(name, direction="backward"))
    flat, unravel = ravel_pytree((params, x, carry))
    flat = np.asarray(flat)
    u, v = (rng.standard_normal(flat.shape) for _ in range(2))

    def f(theta):
        params, x, carry = unravel(theta)
        y, _ = net.apply(params, (), (x, jnp.asarray(MASK), carry), train=True)
        y = jnp.concatenate([a.reshape(-1) for a in jax.tree.leaves((y[0], y[-1]))])
        return jnp.vdot(np.cos(np.arange(y.size)), y) + jnp.vdot(y, y) / 2

    @jax.jit
    def measure(theta):
        gradient = jax.grad(f)
        return (
            f(theta),
            gradient(theta),
            {
                "forward over reverse": jnp.vdot(v, jax.jvp(gradient, (theta,), (u,))[1]),
                "reverse over reverse": jnp.vdot(v, jax.grad(lambda t: jnp.vdot(gradient(t), u))(theta)),
                "reverse over forward": jnp.vdot(v, jax.grad(lambda t: jax.jvp(f, (t,), (u,))[1])(theta)),
            },
        )

    h = 1e-5
    points = (flat, flat + h * u, flat - h * u, flat + h * v, flat - h * v)
    (_, gradient, second), (_, after, _), (_, before, _), (up, *_), (down, *_) = (
        jax.device_get(measure(point)) for point in points
    )
    np.testing.assert_allclose(np.vdot(gradient, v), (up - down) / (2 * h), rtol=1e-7)
    for way, value in second.items():
        np.testing.assert_allclose(value, np.vdot(v, after - before) / (2 * h), rtol=1e-6, err_msg=way)


@NAMES
@pytest.mark.usefixtures("x64")
def test_gradients_under_vmap_scan_remat_and_shard_map(name):
    net = make(name)
    params, x = start(net)
    mask = MASK

    def gradient(params, x, mask, remat=False):
        f = functools.partial(weighed, net)
        return jax.grad(lambda params: (jax.checkpoint(f) if remat else f)(params, x, mask)[0])(params)

    several = jax.tree.map(lambda a: np.stack([a, 2 * a]), (params, x))

    @jax.jit
    def every(params, x, several, mask):
        alone = [gradient(*jax.tree.map(lambda a, i=i: a[i], several), mask) for i in range(2)]
        return {
            "alone": gradient(params, x, mask),
            "remat": gradient(params, x, mask, remat=True),
            "loop": jax.tree.map(lambda *a: jnp.stack(a), *alone),
            "vmap": jax.vmap(gradient, (0, 0, None))(*several, mask),
            "scan": jax.lax.scan(lambda _, now: ((), gradient(*now, mask)), (), several)[1],
        }

    found = every(params, x, several, mask)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-10, atol=1e-10)
    close(found["remat"], found["alone"])
    close(found["vmap"], found["loop"])
    close(found["scan"], found["loop"])

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spread = jax.sharding.PartitionSpec("data")

    def of_part(params, x, mask):
        y = net.apply(params, (), (x, mask), train=True)[0][0]
        return jax.lax.psum(jnp.sum(y * y), "data")

    whole = jax.shard_map(
        of_part,
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(), spread, spread),
        out_specs=jax.sharding.PartitionSpec(),
    )
    parts = jax.jit(jax.grad(whole))(params, x, mask)
    one = jax.jit(jax.grad(lambda params: jnp.sum(net.apply(params, (), (x, mask), train=True)[0][0] ** 2)))(params)
    close(parts, one)


test_gradients_under_vmap_scan_remat_and_shard_map = pytest.mark.devices(2)(
    test_gradients_under_vmap_scan_remat_and_shard_map
)


@NAMES
@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 1, 2), (3, 0, 2)])
def test_no_examples_one_step_and_no_steps(name, shape):
    net = make(name, direction="both")
    params, _ = start(net, X.astype("float32"))
    x = jnp.ones(shape, jnp.float32)
    mask = jnp.ones(shape[:2], bool)
    (_, y), grads = jax.jit(jax.value_and_grad(functools.partial(weighed, net), has_aux=True))(params, x, mask)
    assert y.shape == (*shape[:2], 2 * UNITS)
    chex.assert_tree_all_finite((y, grads))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.booleans())
@settings(max_examples=4)
def test_lstm_is_the_equations(batch, time, units, features, bias):
    net = layers.lstm(units, bias=bias)
    x = np.random.default_rng(time).standard_normal((batch, time, features)).astype("float32")
    params, _ = net.init(units, x)
    y = evaluate(net, params, x)
    zeros = {"bias": np.zeros(4 * units), "recurrent_bias": np.zeros(4 * units)}
    exact = zeros | {name: np.asarray(value, np.float64) for name, value in params.items()}
    for i in range(batch):
        np.testing.assert_allclose(y[i], literal_of(units, exact, x[i]), rtol=2e-5, atol=2e-6)


def literal_of(units, params, x):
    h, c, found = np.zeros(units), np.zeros(units), []
    for now in np.asarray(x, np.float64):
        a = now @ params["kernel"] + h @ params["recurrent_kernel"]
        i, f, g, o = np.split(a + params["bias"] + params["recurrent_bias"], 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        found.append(h)
    return np.stack(found)


@NAMES
def test_sixteen_bits_are_float32_rounded_once(name):
    """The state is kept in float32: over many steps it is that of float32, to the digits of the output."""
    net = make(name)
    x = jnp.asarray(np.random.default_rng(6).standard_normal((2, 60, FEATURES)), jnp.bfloat16)
    params, _ = start(net, x)
    y = evaluate(net, params, x)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, x))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), evaluate(net, *wide), rtol=2e-2, atol=2e-2)
    assert {a.dtype.name for a in jax.tree.leaves(net.about.stream.start(params, (), x, None))} == {"float32"}


def leaky(params, h, x):
    h = {"h": params["keep"] * h["h"] + x}
    return h, jnp.concatenate([h["h"], x], -1)


def begin(key, x):
    return {"keep": jnp.full((), 0.5, x.dtype)}, {"h": x}


@pytest.mark.usefixtures("x64")
def test_a_cell_of_ones_own():
    """Its y need not be its carry; masked, both ways, and by a literal loop."""
    net = layers.rnn(layers.Cell(begin, leaky), direction="both")
    params, _ = net.init(0, X)
    assert params == {"forward": {"keep": 0.5}, "backward": {"keep": 0.5}}
    y, _ = evaluate(net, params, (X, MASK))
    for i, length in enumerate(LENGTHS):
        for way in (0, 1):
            h, there = np.zeros(FEATURES), range(length)
            for t in reversed(there) if way else there:
                h = 0.5 * h + X[i, t]
                found = y[i, t, way * 2 * FEATURES :][: 2 * FEATURES]
                np.testing.assert_allclose(found, np.concatenate([h, X[i, t]]), rtol=1e-12)
        assert not np.any(y[i, length:])


WITHOUT_ITS_CARRY = layers.Cell(begin, lambda params, h, x: (x, x))
CALLS = [
    (lambda: layers.lstm(0), ConfigError, r"lstm: units must be an integer >= 1, got 0"),
    (lambda: layers.gru(3, direction="up"), ConfigError, r"gru: direction must be one of 'forward', 'backward', 'both', got 'up'"),
    (lambda: layers.gru(3, carry=1), ConfigError, r"gru: carry must be True or False"),
    (lambda: layers.elman(3, bias=None), ConfigError, r"elman: bias must be True or False"),
    (lambda: layers.rnn(layers.dense(3)), ConfigError, r"rnn: cell must be a layers\.Cell, got the layer dense.*layers\.elman\(units\) is one"),
    (lambda: layers.rnn(layers.Cell(None, leaky)), ConfigError, r"rnn: init must be callable, got None"),
    (lambda: layers.lstm(3).init(0, jnp.ones((4, 2))), ShapeError, r"lstm: x must have 3 axes \(batch, time, features\), got shape \(4, 2\); a single example is x\[None\]"),
    (lambda: layers.lstm(3).init(0, jnp.ones((4, 5, 0))), ShapeError, r"at least one feature"),
    (lambda: layers.lstm(3).init(0, jnp.ones((4, 5, 2), int)), DTypeError, r"lstm: x must be floating point, got int32"),
    (lambda: layers.gru(3).init(0, (jnp.ones((4, 5, 2)), jnp.ones((4, 5)))), DTypeError, r"gru: the mask must be boolean, True for what is there, got float32"),
    (lambda: layers.gru(3).init(0, (jnp.ones((4, 5, 2)), jnp.ones((5, 4), bool))), ShapeError, r"gru: the mask must have the shape \(batch, time\) = \(4, 5\), got \(5, 4\)"),
    (lambda: layers.gru(3).init(0, (jnp.ones((4, 5, 2)),) * 3), DTypeError, r"gru: the input must be x or \(x, mask\), got a tuple of"),
    (lambda: layers.gru(3, carry=True).init(0, jnp.ones((4, 5, 2))), DTypeError, r"with carry=True the input is a tuple, \(x, carry\) or \(x, mask, carry\)"),
    (lambda: layers.gru(3, carry=True).init(0, (jnp.ones((4, 5, 2)), jnp.ones((2, 3)))), ShapeError, r"gru: the carry must be float32 \(4, 3\) for the input \(4, 5, 2\), got float32 \(2, 3\); a sequence goes on with as many"),
    (lambda: layers.lstm(3, carry=True).init(0, (jnp.ones((4, 5, 2)), jnp.ones((4, 3)))), ShapeError, r"lstm: the carry must be a tuple of .* got float32 \(4, 3\)"),
    (lambda: layers.rnn(WITHOUT_ITS_CARRY).apply({"keep": 0.5}, (), jnp.ones((4, 5, 2)), train=False), ShapeError, r"rnn: the step turns its carry a dict of .* into float32 \(4, 2\); it must keep"),
    (lambda: layers.lstm(3).apply(*layers.lstm(3).init(0, jnp.ones((1, 1, 4))), jnp.ones((4, 5, 2)), train=False), ShapeError, r"lstm: kernel must have the shape \(2, 12\) for the input .* got \(4, 12\)"),
    (lambda: layers.lstm(3, direction="both").apply({}, (), jnp.ones((4, 5, 2)), train=False), ConfigError, r"lstm: params must be a dict of forward and backward"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), CALLS)
def test_bad_input_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_carry_of_integers_is_refused():
    net = layers.gru(UNITS, carry=True)
    x = jnp.ones((BATCH, TIME, FEATURES))
    params, _ = net.init(0, (x, jnp.zeros((BATCH, UNITS))))
    with pytest.raises(DTypeError, match=r"gru: the carry must be .*; give floats"):
        net.apply(params, (), (x, jnp.zeros((BATCH, UNITS), int)), train=False)


def test_the_recurrent_kernels_gradient_is_summed_in_float32():
    """Of 600 steps with the same gradient, a sum in bfloat16 would stop at 256 of them."""
    net = layers.rnn(layers.elman(1, activation=lambda x: x, bias=False))
    x = jnp.ones((1, 600, 1), jnp.bfloat16)
    params = {"kernel": jnp.ones((1, 1), jnp.bfloat16), "recurrent_kernel": jnp.zeros((1, 1), jnp.bfloat16)}
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, (), x, train=True)[0].astype(jnp.float32))))(params)
    np.testing.assert_allclose(float(gradient["recurrent_kernel"][0, 0]), 599, rtol=2**-8)

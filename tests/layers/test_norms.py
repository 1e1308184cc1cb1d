"""RMS, group and instance norm against PyTorch; masks against what they leave, alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import interop, layers
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from tests.compiled import apply

TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}
MAKE = {
    "batch_norm": layers.batch_norm,
    "group_norm": lambda **how: layers.group_norm(2, **how),
    "instance_norm": layers.instance_norm,
}


def torchs(torch, name, channels, dtype):
    nn = torch.nn
    return {
        "layer_norm": lambda: nn.LayerNorm(channels),
        "rms_norm": lambda: nn.RMSNorm(channels, eps=1e-6),
        "group_norm": lambda: nn.GroupNorm(2, channels),
        "instance_norm": lambda: nn.InstanceNorm2d(channels, affine=True),
    }[name]().to(getattr(torch, dtype))


@pytest.mark.peers
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_values_and_gradients_are_pytorchs(name, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    rng = np.random.default_rng(0)
    x, cotangent = (rng.normal(0.5, 2, (3, 4, 5, 6)).astype(dtype) for _ in range(2))
    theirs = torchs(torch, name, 6, dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.tensor(rng.standard_normal(6).astype(dtype)))
    first = name in ("group_norm", "instance_norm")  # PyTorch's channels come first
    there = (lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1))) if first else (lambda a: a)
    tx = torch.tensor(there(x), requires_grad=True)
    ty = theirs(tx)
    ty.backward(torch.tensor(there(cotangent)))
    with jax.enable_x64(dtype == "float64"):
        layer = {**MAKE, "layer_norm": layers.layer_norm, "rms_norm": layers.rms_norm}[name]()
        params, _ = interop.from_torch(theirs.state_dict(), layer, x)

        @jax.jit
        def both(params, x, cotangent):
            y, pull = jax.vjp(lambda p, x: layer.apply(p, (), x, train=True)[0], params, x)
            return y, *pull(cotangent)

        y, d_params, dx = both(params, x, cotangent)
        np.testing.assert_allclose(there(y), ty.detach().numpy(), **TOLERANCE[dtype])
        np.testing.assert_allclose(there(dx), tx.grad.numpy(), **TOLERANCE[dtype])
        loose = {key: 10 * value for key, value in TOLERANCE[dtype].items()}  # sums over 60 positions
        np.testing.assert_allclose(d_params["scale"], theirs.weight.grad.numpy(), **loose)
        if "offset" in d_params:
            np.testing.assert_allclose(d_params["offset"], theirs.bias.grad.numpy(), **loose)


@given(st.sampled_from([1, 2, 3, 6]), st.integers(0, 3), st.integers(1, 4), st.booleans())
@settings(max_examples=8)
def test_group_norm_is_the_literal_equation(groups, batch, length, scale):
    x = np.random.default_rng(1).normal(3, 2, (batch, length, 6)).astype(np.float32)
    layer = layers.group_norm(groups, scale=scale, epsilon=1e-3)
    y = jax.jit(lambda x: layer.apply(*layer.init(0, x), x, train=False)[0])(x)
    wide = x.astype(np.float64).reshape(batch, length, groups, 6 // groups)
    centered = wide - wide.mean((1, 3), keepdims=True)
    expected = centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-3)
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["group_norm", "instance_norm"])
def test_far_from_zero_and_constant(name, dtype):
    layer = MAKE[name]()
    mean = 1e4 if dtype == "float32" else 100.0
    x = (mean + np.random.default_rng(2).standard_normal((2, 50, 4))).astype(jnp.dtype(dtype))
    params, state = layer.init(0, x)
    wide = np.asarray(x, np.float64).reshape(2, 50, -1, 2 if name == "group_norm" else 1)
    centered = wide - wide.mean((1, 3), keepdims=True)
    expected = (centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    coarse = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    y, _ = apply(layer, params, state, x, train=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=coarse, atol=coarse)
    y, _ = apply(layer, params, state, np.full(x.shape, mean + 0.1, x.dtype), train=True)
    np.testing.assert_array_equal(y, np.zeros(x.shape))


def test_one_position_leaves_nothing_of_a_channel():
    x = np.random.default_rng(3).standard_normal((2, 1, 4)).astype(np.float32)
    y, _ = apply(layers.instance_norm(), *layers.instance_norm().init(0, x), x, train=True)
    np.testing.assert_array_equal(y, np.zeros(x.shape))
    empty = x[:0]
    for layer in (layers.rms_norm(), layers.layer_norm(), layers.group_norm(2), layers.instance_norm()):
        params, state = layer.init(0, x)
        assert apply(layer, params, state, empty, train=True)[0].shape == empty.shape


MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


def masked_step(layer, params, state, mask):
    @jax.jit
    def step(params, x, cotangent):
        def f(params, x):
            (y, left), new = layer.apply(params, state, (x, mask), train=True)
            return y, (new, left)

        y, pull, (new, left) = jax.vjp(f, params, x, has_aux=True)
        return y, left, new, pull(cotangent)

    return step


@pytest.mark.parametrize("name", MAKE)
def test_what_is_masked_changes_nothing(name):
    """Bit for bit, whatever it is; its gradient is exactly 0; a row without anything gives 0."""
    rng = np.random.default_rng(4)
    layer = MAKE[name]()
    x, cotangent = (rng.normal(50, 2, (4, 5, 4)).astype(np.float32) for _ in range(2))
    params, state = layer.init(0, x)
    params = jax.tree.map(lambda a: np.asarray(a) + np.float32(0.5), params)
    step = masked_step(layer, params, state, MASK)
    expected = step(params, x, cotangent)
    np.testing.assert_array_equal(expected[1], MASK)
    for wrong in (np.nan, np.inf, -1e30, 0.0):
        spoiled = np.where(MASK[..., None], x, np.float32(wrong))
        jax.tree.map(np.testing.assert_array_equal, step(params, spoiled, cotangent), expected)
    y, _, _, (d_params, dx) = expected
    np.testing.assert_array_equal(np.asarray(y)[~MASK], 0)
    np.testing.assert_array_equal(np.asarray(dx)[~MASK], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, d_params, dx)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKE)
def test_a_mask_is_what_it_leaves_alone(name):
    rng = np.random.default_rng(5)
    layer = MAKE[name]()
    x, cotangent = (rng.normal(50, 2, (4, 5, 4)) for _ in range(2))
    params, state = layer.init(0, x)
    y, _, new, (_, dx) = masked_step(layer, params, state, MASK)(params, x, cotangent)
    rows = [MASK] if name == "batch_norm" else [MASK & (np.arange(4)[:, None] == row) for row in range(3)]

    @jax.jit
    def step(x, cotangent):
        (y, after), pull = jax.vjp(lambda x: layer.apply(params, state, x, train=True), x)
        return y[0], after, pull((cotangent, jax.tree.map(jnp.zeros_like, after)))[0][0]

    for row in rows:
        z, after, dz = step(x[row][None], cotangent[row][None])
        np.testing.assert_allclose(np.asarray(y)[row], z, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(np.asarray(dx)[row], dz, rtol=1e-10, atol=1e-10)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), new, after)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKE)
def test_second_derivatives_under_a_mask(name):
    layer = MAKE[name]()
    rng = np.random.default_rng(6)
    x, u, v = (rng.standard_normal((4, 5, 4)) for _ in range(3))
    params, state = layer.init(0, x)

    def gradient(x):
        def loss(x):
            y = layer.apply(params, state, (x, jnp.asarray(MASK)), train=True)[0][0]
            return jnp.sum(jnp.sin(y) * v)

        return jax.grad(loss)(x)

    second = jax.jit(lambda x: jax.jvp(gradient, (x,), (u,))[1])(x)
    h = 1e-5
    compiled = jax.jit(gradient)
    after, before = (np.asarray(compiled(x + step * u)) for step in (h, -h))
    np.testing.assert_allclose(second, (after - before) / (2 * h), rtol=1e-5, atol=1e-6)


def test_averages_stay_where_a_mask_leaves_less_than_two_values():
    layer = layers.batch_norm()
    x = np.random.default_rng(7).standard_normal((4, 5, 4)).astype(np.float32)
    params, state = layer.init(0, x)
    one = np.zeros((4, 5), bool)
    one[2, 3] = True
    for mask in (one, np.zeros((4, 5), bool)):
        (y, _), new = apply(layer, params, state, (x, mask), train=True)
        np.testing.assert_array_equal(y, np.zeros(x.shape))
        jax.tree.map(np.testing.assert_array_equal, new, state)


def test_norms_of_masked_sequences_in_a_row():
    """The mask goes on to the next layer, in training and in evaluation."""
    net = layers.chain(layers.instance_norm(), layers.residual(layers.group_norm(2)), layers.batch_norm())
    x = (np.ones((4, 5, 4), np.float32), MASK)
    params, state = net.init(0, x)
    for train in (True, False):
        (y, mask), _ = apply(net, params, state, x, train=train)
        np.testing.assert_array_equal(mask, MASK)
        assert y.shape == x[0].shape


X = jnp.ones((2, 5, 4))
BAD = {
    "groups 0": (lambda: layers.group_norm(0), ConfigError, "group_norm: groups must be an integer >= 1, got 0"),
    "groups": (lambda: layers.group_norm(3).init(0, X), ShapeError, "3 groups do not divide 4 channels"),
    "epsilon": (lambda: layers.rms_norm(epsilon=-1), ConfigError, "rms_norm: epsilon must be"),
    "scale": (lambda: layers.instance_norm(scale=1), ConfigError, "instance_norm: scale must be"),
    "positions": (
        lambda: layers.instance_norm().init(0, X[:, 0]),
        ShapeError,
        "each channel is one number; layer_norm",
    ),
    "integers": (lambda: layers.rms_norm().init(0, jnp.ones((2, 3), int)), DTypeError, "rms_norm: x must be floating"),
    "a mask of numbers": (lambda: masked(jnp.ones((2, 5))), DTypeError, r"mask must be boolean.*mask\.astype\(bool\)"),
    "a mask of channels": (lambda: masked(X > 0), ShapeError, r"a value a position, shape \(2, 5\), got \(2, 5, 4\)"),
    "three": (lambda: layers.group_norm(2).init(0, (X, X, X)), ShapeError, r"must be x or \(x, mask\), got a tuple of"),
    "channels": (
        lambda: layers.group_norm(2).apply(layers.group_norm(2).init(0, X)[0], (), jnp.ones((2, 5, 6)), train=False),
        ShapeError,
        "the input has 6 channels, the layer was made for",
    ),
}


def masked(mask):
    for layer in (layers.group_norm(2), layers.batch_norm()):
        params, state = layer.init(0, X)
        layer.apply(params, state, (X, mask), train=True)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_in_evaluation_what_is_masked_has_no_part_in_batch_norms_gradients():
    norm, mask = layers.batch_norm(), np.array([[True, True, False]])
    x = np.ones((1, 3, 2), np.float32)
    x[0, 2] = np.nan
    params, state = norm.init(0, (x, mask))

    def loss(params, x):
        return jnp.sum(norm.apply(params, state, (x, mask), train=False)[0][0])

    of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    np.testing.assert_allclose(of_params["scale"], 2.0, rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(of_x)[0, 2], 0.0)

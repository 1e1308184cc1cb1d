"""Batch and layer normalization against PyTorch over many steps, and against float64 at large means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers
from jaxnet.errors import ShapeError
from tests.compiled import apply

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5}, "float64": {"rtol": 1e-11, "atol": 1e-11}}
SHAPES = {"rank-2": (6, 3), "rank-3": (3, 5, 3)}
STEPS = (0, 1, 10, 100)


def batch(rng, shape, dtype):
    """Channels of unlike means and deviations."""
    return (rng.standard_normal(shape) * [0.5, 1.0, 4.0] + [-3.0, 0.0, 7.0]).astype(dtype)


def channels_first(torch, x):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


@pytest.mark.peers
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", [0.9, 0.6])
def test_batch_norm_is_pytorchs_over_100_steps(shape, dtype, decay):
    """Outputs in training; outputs in evaluation and averages after 0, 1, 10 and 100 training steps."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    rng = np.random.default_rng(0)
    theirs = torch.nn.BatchNorm1d(3, eps=1e-3, momentum=1 - decay, dtype=getattr(torch, dtype))
    scale, offset = (rng.standard_normal(3).astype(dtype) for _ in range(2))
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.bias.copy_(torch.tensor(offset))
    ours = layers.batch_norm(decay=decay, epsilon=1e-3)
    with jax.enable_x64(dtype == "float64"), torch.no_grad():
        x = batch(rng, SHAPES[shape], dtype)
        _, state = ours.init(0, x)
        params = {"scale": scale, "offset": offset}
        for step in range(STEPS[-1] + 1):
            if step in STEPS:
                y, kept = apply(ours, params, state, x, train=False)
                expected = theirs.eval()(channels_first(torch, x)).numpy()
                np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, **TOLERANCE[dtype])
                np.testing.assert_allclose(state["mean"], theirs.running_mean.numpy(), **TOLERANCE[dtype])
                np.testing.assert_allclose(state["variance"], theirs.running_var.numpy(), **TOLERANCE[dtype])
                assert all(np.array_equal(kept[name], state[name]) for name in state)
            x = batch(rng, SHAPES[shape], dtype)
            y, state = apply(ours, params, state, x, train=True)
            expected = theirs.train()(channels_first(torch, x)).numpy()
            np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, **TOLERANCE[dtype])


@pytest.mark.peers
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_batch_norm_gradients_are_pytorchs(train, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    rng = np.random.default_rng(1)
    x = batch(rng, (4, 5, 3), dtype)
    cotangent, scale = rng.standard_normal(x.shape).astype(dtype), np.array([0.5, -2.0, 3.0], dtype)
    mean, variance = np.array([0.1, -0.2, 0.3], dtype), np.array([0.5, 2.0, 1.0], dtype)
    theirs = torch.nn.BatchNorm1d(3, dtype=getattr(torch, dtype)).train(train)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.running_mean.copy_(torch.tensor(mean))
        theirs.running_var.copy_(torch.tensor(variance))
    tx = channels_first(torch, x).requires_grad_()
    theirs(tx).backward(channels_first(torch, cotangent))
    with jax.enable_x64(dtype == "float64"):
        params = {"scale": jnp.asarray(scale), "offset": jnp.zeros(3, dtype)}
        state = {"mean": jnp.asarray(mean), "variance": jnp.asarray(variance)}

        def f(params, x):
            return layers.batch_norm().apply(params, state, x, train=train)[0]

        d_params, dx = jax.jit(lambda p, x: jax.vjp(f, p, x)[1](jnp.asarray(cotangent)))(params, jnp.asarray(x))
    loose = {name: 10 * value for name, value in TOLERANCE[dtype].items()}
    np.testing.assert_allclose(np.moveaxis(np.asarray(dx), -1, 1), tx.grad.numpy(), **loose)
    np.testing.assert_allclose(d_params["scale"], theirs.weight.grad.numpy(), **loose)
    np.testing.assert_allclose(d_params["offset"], theirs.bias.grad.numpy(), **loose)


@pytest.mark.parametrize("steps", STEPS)
def test_averages_are_the_literal_recursion(steps):
    """average <- decay average + (1 - decay) statistic, from mean 0 and variance 1, unbiased, in float64 NumPy."""
    rng, decay = np.random.default_rng(2), 0.8
    layer = layers.batch_norm(decay=decay)
    params, state = layer.init(0, jnp.ones((1, 3)))
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(steps):
        x = batch(rng, (4, 2, 3), "float32")
        _, state = apply(layer, params, state, x, train=True)
        flat = x.astype(np.float64).reshape(-1, 3)
        mean = decay * mean + (1 - decay) * flat.mean(0)
        variance = decay * variance + (1 - decay) * flat.var(0, ddof=1)
    x = batch(rng, (4, 2, 3), "float32")
    y, _ = apply(layer, params, state, x, train=False)
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["variance"], variance, rtol=1e-5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)


def normalized(x, axes, epsilon=1e-5):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


@pytest.mark.usefixtures("x64")
def test_batch_norm_of_images_is_the_literal_equation():
    rng = np.random.default_rng(8)
    x = rng.normal(2, 3, (2, 5, 4, 3))
    params = {"scale": rng.standard_normal(3), "offset": rng.standard_normal(3)}
    layer = layers.batch_norm(epsilon=1e-3)
    y, _ = apply(layer, params, layer.init(0, x)[1], x, train=True)
    expected = normalized(x, (0, 1, 2), 1e-3) * params["scale"] + params["offset"]
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_batch_norm_at_a_large_mean(mean):
    """Where the mean of the squares less the square of the mean has no correct digit left."""
    x = (mean + np.random.default_rng(3).normal(0, 0.1, (64, 50, 4))).astype(np.float32)
    exact = x.astype(np.float64)
    one_pass = np.mean(x * x, (0, 1)) - np.mean(x, (0, 1)) ** 2
    assert np.abs(one_pass / exact.var((0, 1)) - 1).max() > 0.5
    layer = layers.batch_norm(decay=0.0, epsilon=1e-10)
    params, state = layer.init(0, x)
    y, state = jax.jit(lambda x: layer.apply(params, state, x, train=True))(x)
    expected = normalized(x, (0, 1), 1e-10)
    # float32 holds a mean of 1e4 to within 1e-3, a hundredth of the deviation: a shift, the same for all values.
    shift = np.mean(np.asarray(y) - expected, axis=(0, 1))
    assert np.abs(shift).max() < 2e-2
    np.testing.assert_allclose(np.asarray(y) - shift, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state["variance"], exact.var((0, 1), ddof=1), rtol=1e-3)
    np.testing.assert_allclose(state["mean"], exact.mean((0, 1)), rtol=1e-6)


def test_layer_norm_at_a_large_mean():
    x = (1e4 + np.random.default_rng(4).standard_normal((5, 64))).astype(np.float32)
    layer = layers.layer_norm()
    params, state = layer.init(0, x)
    y, _ = apply(layer, params, state, x, train=True)
    np.testing.assert_allclose(y, normalized(x, -1), atol=2e-3)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_layer_norm_is_pytorchs(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    rng = np.random.default_rng(5)
    x, cotangent = (rng.standard_normal((2, 4, 6)).astype(dtype) for _ in range(2))
    scale, offset = (rng.standard_normal(6).astype(dtype) for _ in range(2))
    tx, ts, to = (torch.tensor(a, requires_grad=True) for a in (x, scale, offset))
    ty = torch.nn.functional.layer_norm(tx, (6,), ts, to, eps=1e-4)
    ty.backward(torch.tensor(cotangent))
    with jax.enable_x64(dtype == "float64"):
        params = {"scale": scale, "offset": offset}

        def f(params, x):
            return layers.layer_norm(epsilon=1e-4).apply(params, (), x, train=True)[0]

        @jax.jit
        def both(params, x, cotangent):
            y, pullback = jax.vjp(f, params, x)
            return y, *pullback(cotangent)

        y, d_params, dx = both(params, x, cotangent)
    pairs = ((y, ty.detach()), (dx, tx.grad), (d_params["scale"], ts.grad), (d_params["offset"], to.grad))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), **TOLERANCE[dtype])


@pytest.mark.parametrize("train", [True, False])
def test_half_precision_keeps_float32_statistics(train):
    """The mean of 4096 values near 3 needs more than bfloat16's 8 bits to accumulate."""
    x = (3 + np.random.default_rng(6).standard_normal((4096, 2))).astype(jnp.bfloat16)
    layer = layers.batch_norm(decay=0.0)
    params, state = layer.init(0, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    y, new = apply(layer, params, state, x, train=train)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}
    if train:
        exact = np.asarray(x, np.float64)
        np.testing.assert_allclose(new["mean"], exact.mean(0), rtol=1e-5)
        np.testing.assert_allclose(new["variance"], exact.var(0, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(y, np.float64), normalized(x, 0), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("make", [layers.batch_norm, layers.layer_norm])
def test_a_constant_input_gives_the_offset_and_finite_gradients(make):
    x = np.full((4, 3), 5, np.float32)
    layer = make()
    params, state = layer.init(0, x)
    params = {"scale": params["scale"], "offset": np.array([1, 2, 3], np.float32)}
    y, _ = apply(layer, params, state, x, train=True)
    np.testing.assert_array_equal(y, np.tile([1.0, 2.0, 3.0], (4, 1)))
    dx = jax.jit(jax.grad(lambda x: jnp.sum(layer.apply(params, state, x, train=True)[0] ** 2)))(x)
    assert np.isfinite(dx).all()


def test_no_gradient_flows_through_the_averages():
    layer = layers.batch_norm()
    x = batch(np.random.default_rng(7), (4, 3), "float32")
    params, state = layer.init(0, x)
    dx = jax.jit(jax.grad(lambda x: sum(a.sum() for a in layer.apply(params, state, x, train=True)[1].values())))(x)
    np.testing.assert_array_equal(dx, np.zeros_like(x))


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 3), (0, 3), (0, 5, 3)])
def test_training_on_less_than_two_values_a_channel_is_refused(shape):
    layer = layers.batch_norm()
    params, state = layer.init(0, np.ones((2, 3), np.float32))
    with pytest.raises(ShapeError, match="at least two values a channel"):
        layer.apply(params, state, np.ones(shape, np.float32), train=True)
    y, _ = apply(layer, params, state, np.ones(shape, np.float32), train=False)
    assert y.shape == shape


def test_flags_leave_params_out():
    for make in (layers.batch_norm, layers.layer_norm):
        assert set(make(offset=False).init(0, jnp.ones((2, 3)))[0]) == {"scale"}
        assert set(make(scale=False).init(0, jnp.ones((2, 3)))[0]) == {"offset"}
        assert make(scale=False, offset=False).init(0, jnp.ones((2, 3)))[0] == {}

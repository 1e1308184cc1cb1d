"""Batch and layer normalization against PyTorch and float64, in training and after any number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)


def literal(x, mean, variance, epsilon, scale=1.0, offset=0.0):
    return (x.astype(np.float64) - mean) / np.sqrt(variance + epsilon) * scale + offset


def affine(channels):
    return {"scale": RNG.normal(1, 0.3, channels), "offset": RNG.normal(0, 1, channels)}


@pytest.mark.parametrize("shape", [(8, 3), (4, 9, 3), (2, 5, 4, 3)])
def test_training_normalizes_by_the_batchs_own_biased_statistics(shape, x64):
    x = RNG.normal(2, 3, shape)
    params = affine(3)
    _, state = layers.batch_norm().init(0, x)
    y, new = layers.batch_norm(decay=0.8, epsilon=1e-3).apply(params, state, x, train=True)
    axes = tuple(range(len(shape) - 1))
    n = x.size // 3
    expected = literal(x, x.mean(axes), x.var(axes), 1e-3, params["scale"], params["offset"])
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(new["mean"], 0.2 * x.mean(axes), rtol=1e-10)
    np.testing.assert_allclose(new["variance"], 0.8 + 0.2 * x.var(axes) * n / (n - 1), rtol=1e-10)


@pytest.mark.torch
@pytest.mark.parametrize("steps", [0, 1, 10, 100])
@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_evaluation_is_pytorchs_after_any_number_of_steps(steps, decay, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    theirs = torch.nn.BatchNorm1d(3, momentum=1 - decay, dtype=torch.float64)
    layer = layers.batch_norm(decay=decay)
    params, state = layer.init(0, jnp.ones((1, 1, 3), jnp.float64))
    params = {k: jnp.asarray(v) for k, v in affine(3).items()}
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(params["scale"])))
        theirs.bias.copy_(torch.tensor(np.asarray(params["offset"])))
    step = jax.jit(lambda state, x: layer.apply(params, state, x, train=True))
    rng = np.random.default_rng(steps)
    for _ in range(steps):
        x = rng.normal(5, 2, (4, 7, 3))
        y, state = step(state, x)
        np.testing.assert_allclose(y, theirs(torch.tensor(x).mT).mT.detach(), rtol=1e-9, atol=1e-10)
    theirs.eval()
    x = rng.normal(5, 2, (4, 7, 3))
    y, same = layer.apply(params, state, x, train=False)
    np.testing.assert_allclose(y, theirs(torch.tensor(x).mT).mT.detach(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(state["mean"], theirs.running_mean, rtol=1e-10)
    np.testing.assert_allclose(state["variance"], theirs.running_var, rtol=1e-10)
    assert same is state


@pytest.mark.torch
def test_gradients_are_pytorchs(x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    x, weights = RNG.normal(size=(2, 4, 7, 3))
    values = affine(3)
    theirs = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(values["scale"]))
        theirs.bias.copy_(torch.tensor(values["offset"]))
    t = torch.tensor(x, requires_grad=True)
    (theirs(t.mT).mT * torch.tensor(weights)).sum().backward()
    layer = layers.batch_norm()
    _, state = layer.init(0, x)

    def f(params, x):
        return jnp.sum(layer.apply(params, state, x, train=True)[0] * weights)

    by_params, by_x = jax.grad(f, argnums=(0, 1))({k: jnp.asarray(v) for k, v in values.items()}, jnp.asarray(x))
    np.testing.assert_allclose(by_x, t.grad, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(by_params["scale"], theirs.weight.grad, rtol=1e-9)
    np.testing.assert_allclose(by_params["offset"], theirs.bias.grad, rtol=1e-9)


def test_a_mean_of_10000_loses_no_digits():
    """The one-pass variance, mean of squares minus square of the mean, is off by all of it here."""
    x = (1e4 + RNG.normal(0, 0.1, (64, 50, 2))).astype(np.float32)
    layer = layers.batch_norm(epsilon=1e-10)
    params, state = layer.init(0, x)
    y, new = layer.apply(params, state, x, train=True)
    exact = x.astype(np.float64)
    expected = literal(x, exact.mean((0, 1)), exact.var((0, 1)), 1e-10)
    # float32 holds a mean of 1e4 to within 1e-3, a hundredth of the deviation: a shift, the same for all values.
    shift = np.mean(y - expected, axis=(0, 1))
    assert np.abs(shift).max() < 2e-2
    np.testing.assert_allclose(y - shift, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new["variance"], 0.9 + 0.1 * exact.var((0, 1), ddof=1), rtol=1e-5)
    one_pass = np.mean(x * x, (0, 1)) - np.mean(x, (0, 1)) ** 2
    assert np.abs(one_pass / exact.var((0, 1)) - 1).max() > 0.5


def test_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(RNG.normal(3, 2, (32, 8, 2)), jnp.bfloat16)
    layer = layers.batch_norm()
    params, state = layer.init(0, x)
    assert params["scale"].dtype == jnp.bfloat16
    y, new = layer.apply(params, state, x, train=True)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    for name, expected in (("mean", 0.1 * exact.mean((0, 1))), ("variance", 0.9 + 0.1 * exact.var((0, 1), ddof=1))):
        assert new[name].dtype == jnp.float32
        np.testing.assert_allclose(new[name], expected, rtol=1e-5)


def test_a_constant_channel_gives_the_offset():
    layer = layers.batch_norm()
    x = jnp.full((4, 3), 7.0)
    params, state = layer.init(0, x)
    y, _ = layer.apply({**params, "offset": jnp.arange(3.0)}, state, x, train=True)
    np.testing.assert_array_equal(y, np.tile(np.arange(3.0), (4, 1)))


@pytest.mark.parametrize("flags", [{}, {"scale": False}, {"offset": False}, {"scale": False, "offset": False}])
@pytest.mark.parametrize("make", [layers.batch_norm, layers.layer_norm])
def test_flags_decide_what_is_learned(make, flags):
    params, _ = make(**flags).init(0, jnp.ones((2, 3)))
    assert set(params) == {name for name in ("scale", "offset") if flags.get(name, True)}


def test_the_state_carries_no_gradient():
    layer = layers.batch_norm()
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    params, state = layer.init(0, x)
    gradient = jax.grad(lambda x: jnp.sum(layer.apply(params, state, x, train=True)[1]["mean"]))(x)
    np.testing.assert_array_equal(gradient, np.zeros((4, 3)))


def test_layer_norm_is_the_equation(x64):
    x = RNG.normal(2, 3, (4, 5, 6))
    params = affine(6)
    y = layers.layer_norm(epsilon=1e-3).apply(params, (), x, train=True)[0]
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    np.testing.assert_allclose(y, literal(x, mean, variance, 1e-3, params["scale"], params["offset"]), rtol=1e-10)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_is_pytorchs(dtype, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    x, weights = RNG.normal(size=(2, 4, 5, 6)).astype(dtype)
    params = {k: jnp.asarray(v.astype(dtype)) for k, v in affine(6).items()}
    t = torch.tensor(x, requires_grad=True)
    scale, offset = (torch.tensor(np.asarray(params[name]), requires_grad=True) for name in ("scale", "offset"))
    expected = torch.nn.functional.layer_norm(t, (6,), scale, offset, 1e-5)
    (expected * torch.tensor(weights)).sum().backward()
    y, pull = jax.vjp(lambda p, x: layers.layer_norm().apply(p, (), x, train=False)[0], params, jnp.asarray(x))
    by_params, by_x = pull(jnp.asarray(weights))
    rtol, atol = (1e-4, 1e-5) if dtype == "float32" else (1e-9, 1e-11)
    np.testing.assert_allclose(y, expected.detach(), rtol, atol)
    np.testing.assert_allclose(by_x, t.grad, rtol, atol)
    np.testing.assert_allclose(by_params["scale"], scale.grad, rtol, atol)
    np.testing.assert_allclose(by_params["offset"], offset.grad, rtol, atol)

"""Dropout's probabilities, and the learned slope of PReLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers

KEY = jax.random.key(2)


def drop(rate, x, key=KEY, train=True):
    return layers.dropout(rate).apply((), (), x, train=train, key=key)[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_is_the_share_dropped_and_the_mean_is_kept(rate):
    n = 100_000
    y = np.asarray(drop(rate, jnp.ones(n)))
    spread = 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(np.mean(y == 0) - rate) < spread
    assert abs(y.mean() - 1) < spread / (1 - rate)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_rate_0_and_evaluation_are_the_identity():
    x = jax.random.normal(KEY, (5, 6))
    assert drop(0, x, key=None) is x
    assert drop(0.7, x, key=None, train=False) is x


def test_rate_1_gives_zeros_and_zero_gradients():
    x = jnp.array([1.0, -2.0, jnp.inf])
    np.testing.assert_array_equal(drop(1, x), np.zeros(3))
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(drop(1, x)))(x), np.zeros(3))


def test_the_gradient_passes_where_the_value_does():
    x = jax.random.normal(KEY, (1000,))
    y, pull = jax.vjp(lambda x: drop(0.5, x), x)
    np.testing.assert_array_equal(pull(jnp.ones(1000))[0], np.where(y == 0, 0, 2))


def test_the_key_decides():
    x = jnp.ones(1000)
    np.testing.assert_array_equal(drop(0.5, x), drop(0.5, x))
    assert np.any(drop(0.5, x) != drop(0.5, x, jax.random.key(3)))


@pytest.mark.torch
@pytest.mark.parametrize("per_channel", [False, True])
def test_prelu_is_pytorchs(per_channel, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 4, 5, 3))
    x[0, 0] = 0
    slope = rng.normal(size=3 if per_channel else 1)
    t, a = torch.tensor(x, requires_grad=True), torch.tensor(slope, requires_grad=True)
    expected = torch.nn.functional.prelu(t.mT, a).mT
    (expected * torch.tensor(weights)).sum().backward()
    layer = layers.prelu(per_channel=per_channel)
    params = {"slope": jnp.asarray(slope if per_channel else slope[0])}
    y, pull = jax.vjp(lambda p, x: layer.apply(p, (), x, train=True)[0], params, jnp.asarray(x))
    by_params, by_x = pull(jnp.asarray(weights))
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(by_x, t.grad, rtol=1e-12)
    np.testing.assert_allclose(by_params["slope"], a.grad.numpy().reshape(by_params["slope"].shape), rtol=1e-12)


def test_prelu_is_eq_4_13():
    layer = layers.prelu(0.25)
    params, _ = layer.init(0, jnp.ones((1, 3)))
    y = layer.apply(params, (), jnp.array([[-4.0, 0.0, 3.0]]), train=False)[0]
    np.testing.assert_array_equal(y, [[-1.0, 0.0, 3.0]])


def test_prelu_derivative_at_0_is_the_slope():
    layer = layers.prelu(0.25)
    gradient = jax.grad(lambda p, x: layer.apply(p, (), x, train=False)[0][0, 0], argnums=(0, 1))
    by_params, by_x = gradient({"slope": jnp.array(0.25)}, jnp.zeros((1, 1)))
    assert by_x == 0.25
    assert by_params["slope"] == 0


def test_prelu_learns_one_slope_or_one_a_channel():
    assert layers.prelu(0.1).init(0, jnp.ones((1, 7, 3)))[0]["slope"].shape == ()
    slopes = layers.prelu(0.1, per_channel=True).init(0, jnp.ones((1, 7, 3)))[0]["slope"]
    np.testing.assert_array_equal(slopes, np.full(3, np.float32(0.1)))

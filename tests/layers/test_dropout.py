"""Dropout: ``rate`` is dropping, the mean is kept, and the ends of the range are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers
from jaxnet.errors import ConfigError

KEY = jax.random.key(11)
N = 100_000


def train(rate, x, key=KEY):
    return layers.dropout(rate).apply((), (), x, train=True, key=key)[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_is_the_share_dropped_and_the_mean_is_kept(rate):
    y = np.asarray(train(rate, jnp.full((N,), 3.0)))
    deviation = np.sqrt(rate * (1 - rate) / N)
    assert abs((y == 0).mean() - rate) < 5 * deviation
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)
    assert abs(y.mean() - 3) < 5 * 3 * deviation / (1 - rate)


def test_every_value_is_dropped_on_its_own():
    """No axis shares its fate: rows and columns of the mask all differ, and neighbours are uncorrelated."""
    dropped = np.asarray(train(0.5, jnp.ones((64, 64))) == 0)
    assert len({row.tobytes() for row in dropped}) == 64
    assert len({column.tobytes() for column in dropped.T}) == 64
    for a, b in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1])):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / 64


def test_rate_0_and_evaluation_are_the_identity_without_a_key():
    x = jax.random.normal(KEY, (5, 7))
    np.testing.assert_array_equal(layers.dropout(0).apply((), (), x, train=True)[0], x)
    np.testing.assert_array_equal(layers.dropout(0.7).apply((), (), x, train=False)[0], x)


def test_rate_1_gives_zeros_and_zero_gradients():
    x = jax.random.normal(KEY, (5, 7))
    np.testing.assert_array_equal(train(1, x), np.zeros((5, 7)))
    np.testing.assert_array_equal(jax.grad(lambda x: train(1, x).sum())(x), np.zeros((5, 7)))


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_gradient_is_the_mask(rate):
    x = jax.random.normal(KEY, (1000,))
    dx = jax.grad(lambda x: train(rate, x).sum())(x)
    dropped = np.asarray(train(rate, jnp.ones(1000)) == 0)
    np.testing.assert_allclose(dx, np.where(dropped, 0, 1 / (1 - rate)), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_dropped_value_leaves_nothing_behind(bad):
    """Not inf * 0: a dropped infinity is a zero, with a zero gradient."""
    x = jnp.full((100,), bad)
    dropped = np.asarray(train(0.5, jnp.ones(100)) == 0)
    np.testing.assert_array_equal(np.asarray(train(0.5, x))[dropped], 0)
    np.testing.assert_array_equal(np.asarray(jax.grad(lambda x: train(0.5, x).sum())(x))[dropped], 0)


def test_keys_decide():
    x = jnp.ones((1000,))
    np.testing.assert_array_equal(train(0.5, x), train(0.5, x))
    assert not np.array_equal(train(0.5, x), train(0.5, x, jax.random.key(12)))


@pytest.mark.parametrize(
    "around",
    [
        layers.raveled, layers.mixed_precision, layers.chain, layers.residual, layers.parallel,
        lambda net: layers.repeat(net, 1), lambda net: layers.watched(net, lambda *seen: ()),
    ],
)  # fmt: skip
def test_the_key_reaches_dropout_inside(around):
    """A layer around it that handed none on would have it refuse to train."""
    net = around(layers.dropout(0.5))
    params, state = net.init(0, jnp.ones((2, 500)))
    y, _ = net.apply(params, state, jnp.ones((2, 500)), train=True, key=KEY)
    other, _ = net.apply(params, state, jnp.ones((2, 500)), train=True, key=jax.random.key(12))
    assert 400 < np.sum(np.asarray(y) == np.min(y)) < 600
    assert not np.array_equal(y, other)


def test_training_needs_a_key_and_says_how():
    call = r"net\.apply\(params, state, x, train=True, key=jax\.random\.key\(seed\)\)"
    with pytest.raises(ConfigError, match=call):
        train(0.5, jnp.ones(3), key=None)
    with pytest.raises(ConfigError, match=r"^chain\[1\]: dropout: .*no key came"):
        layers.chain(jnp.tanh, layers.dropout(0.5)).apply(((), ()), ((), ()), jnp.ones(3), train=True)
    net = layers.chain(layers.residual(layers.chain(jnp.tanh, layers.dropout(0.5))))
    with pytest.raises(ConfigError, match=r"^chain\[0\]/residual\.branch/chain\[1\]: dropout: "):  # outermost first
        net.apply(*net.init(0, jnp.ones((1, 3))), jnp.ones((1, 3)), train=True)


@pytest.mark.parametrize("rate", [1.5, -0.1, float("nan"), "0.5", None, True])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ConfigError, match=r"dropout: rate must be a finite number in \[0, 1\]"):
        layers.dropout(rate)


def test_half_precision_keeps_the_mean():
    y = train(0.25, jnp.ones((N,), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64).mean(), 1, atol=0.01)

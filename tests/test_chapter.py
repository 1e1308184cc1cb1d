"""Equations of the chapter that are about composition and gradients rather than about one function."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import activations, data, layers, losses


def test_figure_4_1_a_network_finds_the_relationship():
    """f is learned from (x_i, y_i) alone, until its estimate is close to the truth on inputs never seen."""
    x = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    (x_train, y_train), (x_test, y_test) = data.split(x, np.sin(3 * x), fractions=(0.8, 0.2))
    net = layers.chain(layers.dense(32), activations.tanh, layers.dense(1))
    params, state = net.init(0, x[:1])

    def loss(params, x, y):
        return losses.mse(net.apply(params, state, x, train=True)[0], y)

    @jax.jit
    def descend(params):
        grads = jax.grad(loss)(params, x_train, y_train)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads)

    before = float(loss(params, x_test, y_test))
    for _ in range(1000):
        params = descend(params)
    assert float(loss(params, x_test, y_test)) < 0.02 * before


def test_eq_4_22_the_objective_is_the_expected_loss():
    """The mean over equal batches of a data set is the expectation under its distribution."""
    x, y = np.random.default_rng(0).normal(size=(2, 60, 3)).astype(np.float32)
    parts = [float(losses.mse(a, b)) for a, b in data.batches(x, y, batch_size=12)]
    np.testing.assert_allclose(np.mean(parts), np.mean((x.astype(float) - y) ** 2), rtol=1e-6)


def test_eq_4_23_the_chain_rule(x64):
    """d(f o g)/dx = df/dg dg/dx, for two layers as Jacobian matrices."""
    x = jax.random.normal(jax.random.key(0), (1, 4))
    g, f = layers.chain(layers.dense(5), activations.tanh), layers.chain(layers.dense(3), activations.sigmoid)
    both = layers.chain(g, f)
    params, state = both.init(1, x)

    def jacobian(layer, p, s, x):
        return jax.jacobian(lambda v: layer.apply(p, s, v[None], train=False)[0][0])(x[0])

    middle = g.apply(params[0], state[0], x, train=False)[0]
    product = jacobian(f, params[1], state[1], middle) @ jacobian(g, params[0], state[0], x)
    np.testing.assert_allclose(jacobian(both, params, state, x), product, rtol=1e-12)


def test_eq_4_24_a_network_is_a_composition(x64):
    """g3(W3 g2(W2 g1(W1 x))) written out."""
    x = jax.random.normal(jax.random.key(0), (2, 4))
    functions = (activations.relu, activations.tanh, activations.sigmoid)
    net = layers.chain(*(part for f in functions for part in (layers.dense(6, bias=False), f)))
    params, state = net.init(1, x)
    expected = np.asarray(x).T
    plain = (lambda v: np.maximum(v, 0), np.tanh, lambda v: 1 / (1 + np.exp(-v)))
    for p, f in zip(params[::2], plain, strict=True):
        expected = f(np.asarray(p["kernel"]).T @ expected)
    np.testing.assert_allclose(net.apply(params, state, x, train=False)[0], expected.T, rtol=1e-12)


def test_eq_4_25_gradient_of_the_sum_of_waves(x64):
    """Figure 4.8: (sin w2, w1 cos w2 - w3 sin w2, cos w2)."""
    w1, w2, w3 = 0.7, 1.3, -2.1
    gradient = jax.grad(lambda w: w[0] * jnp.sin(w[1]) + w[2] * jnp.cos(w[1]))(jnp.array([w1, w2, w3]))
    np.testing.assert_allclose(gradient, [np.sin(w2), w1 * np.cos(w2) - w3 * np.sin(w2), np.cos(w2)], rtol=1e-14)

"""Dead units, being born dead, gradient noise, the rate range, suspect labels: against other reckonings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import activations, diagnostics, initializers, layers, losses, optimizers
from jaxnet.errors import ConfigError, DataError

RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((40, 6)).astype(np.float32)


class TestDeadUnits:
    def test_over_a_whole_set_with_indices(self):
        bias = np.zeros(8, np.float32)
        bias[[2, 5]] = -100
        net = layers.chain(
            layers.dense(8), activations.relu, layers.repeat(layers.chain(layers.dense(8), jax.nn.relu), 2)
        )
        params, state = net.init(0, X)
        params[0]["bias"] = jnp.asarray(bias)
        inner = params[2][0]
        inner["bias"] = inner["bias"].at[1, 7].set(-100)
        found = diagnostics.dead_units(net, params, state, X, batch_size=16)
        assert found.labels == ("1 relu", "2.0.1 relu", "2.1.1 relu")
        y = np.asarray(X)
        literal = []
        for kernel, b in [
            (params[0]["kernel"], bias),
            *((inner["kernel"][i], inner["bias"][i]) for i in range(2)),
        ]:
            y = np.maximum(y @ np.asarray(kernel) + np.asarray(b), 0)
            literal.append(np.flatnonzero((y == 0).all(0)))
        for indices, wanted in zip(found.indices, literal, strict=True):
            np.testing.assert_array_equal(indices, wanted)
        assert set(found.indices[0]) == {2, 5}
        assert 7 in found.indices[2]
        assert found.shares[0] == 2 / 8
        assert "1 relu: 2 of 8 units dead: 2, 5" in str(found)
        batches = diagnostics.dead_units(net, params, state, iter([X[:7], X[7:]]))
        np.testing.assert_array_equal(batches.indices[0], found.indices[0])

    def test_a_unit_that_fires_once_is_alive(self):
        net = layers.chain(
            layers.conv(2, 1, kernel_init=initializers.ones, bias_init=initializers.constant(-5.0)), jax.nn.relu
        )
        x = np.zeros((300, 9, 1), np.float32)
        params, state = net.init(0, x)
        assert diagnostics.dead_units(net, params, state, x).shares.tolist() == [1.0]
        x[299, 4] = 6
        assert diagnostics.dead_units(net, params, state, x).shares.tolist() == [0.0]

    def test_no_rectifier_and_no_data(self):
        net = layers.chain(layers.dense(8), jnp.tanh)
        params, state = net.init(0, X)
        assert str(diagnostics.dead_units(net, params, state, X)) == "no rectifier"
        with pytest.raises(DataError, match="dead_units: the data held no sample"):
            diagnostics.dead_units(net, params, state, iter([]))


class TestBornDead:
    @pytest.mark.parametrize("widths", [(2, 2, 2), (3,) * 8, (1, 4, 2)])
    def test_by_drawing_networks(self, widths):
        """2,000 networks a case; the estimate's deviation is at most 0.011."""
        net = layers.chain(*[part for width in widths for part in (layers.dense(width), jax.nn.relu)])

        @jax.jit
        @jax.vmap
        def dead(key):
            x = jax.random.normal(key, (1, 5))
            return jnp.all(net.apply(*net.init(key, x), x, train=False)[0] == 0)

        share = np.mean(np.asarray(dead(jax.random.split(jax.random.key(0), 2_000))))
        assert share == pytest.approx(diagnostics.born_dead_probability(widths), abs=0.04)

    def test_over_a_domain_it_is_a_bound(self):
        widths = (2,) * 6
        net = layers.chain(*[part for width in widths for part in (layers.dense(width), jax.nn.relu)])
        x = jnp.linspace(-1, 1, 50)[:, None]
        dead = jax.jit(jax.vmap(lambda key: jnp.all(net.apply(*net.init(key, x), x, train=False)[0] == 0)))
        share = np.mean(np.asarray(dead(jax.random.split(jax.random.key(0), 2_000))))
        assert 0.3 < share < diagnostics.born_dead_probability(widths) - 0.02

    @given(st.lists(st.integers(1, 100), min_size=1, max_size=20))
    def test_the_product(self, widths):
        product = np.prod([1 - 0.5**n for n in widths])
        assert diagnostics.born_dead_probability(widths) == pytest.approx(1 - product, abs=1e-12)

    def test_what_is_no_architecture(self):
        with pytest.raises(ConfigError, match=r"born_dead_probability: widths must be a sequence .* try \[64, 64\]"):
            diagnostics.born_dead_probability([])
        with pytest.raises(ConfigError, match="widths must be an integer >= 1, got 0"):
            diagnostics.born_dead_probability([4, 0])


class TestNoiseScale:
    def test_one_sample_a_part_is_the_covariance_of_the_samples_gradients(self):
        net = layers.chain(layers.dense(4), jnp.tanh, layers.dense(1))
        params, state = net.init(0, X)
        y = X[:, :1] ** 2

        def of_sample(x, target):
            gradient = jax.grad(lambda p: losses.mse(net.apply(p, state, x[None], train=True)[0], target[None]))(params)
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

        gradients = np.asarray(jax.jit(jax.vmap(of_sample))(X, y), np.float64)
        trace = gradients.var(0, ddof=1).sum()
        square = (gradients.mean(0) ** 2).sum() - trace / len(X)
        found = diagnostics.noise_scale(net, losses.mse, params, state, (X, y), parts=40)
        np.testing.assert_allclose(found.noise, trace, rtol=1e-4)
        np.testing.assert_allclose(found.gradient_square, square, rtol=1e-4)
        np.testing.assert_allclose(found.batch_size, trace / square, rtol=1e-4)

    def test_a_linear_regression_reckoned_by_hand(self):
        """x is N(0, I), the target w x + s noise: at w + d the gradient is 2 d, its square 4 ((n + 2) d^2 + n s^2)."""
        n, s, d = 4, 0.5, 0.3
        random = np.random.default_rng(0)
        x = random.standard_normal((40_000, n)).astype(np.float32)
        w = np.ones((n, 1), np.float32)
        y = (x @ w + s * random.standard_normal((40_000, 1))).astype(np.float32)
        offset = np.array([[d], [0], [0], [0]], np.float32)
        net = layers.dense(1, bias=False)
        found = jax.jit(lambda p: diagnostics.noise_scale(net, losses.mse, p, (), (x, y), parts=400))(
            {"kernel": jnp.asarray(w + offset)}
        )
        square = 4 * d**2
        trace = 4 * ((n + 2) * d**2 + n * s**2) - square
        np.testing.assert_allclose(found.noise, trace, rtol=0.1)
        np.testing.assert_allclose(found.gradient_square, square, rtol=0.1)
        np.testing.assert_allclose(found.batch_size, trace / square, rtol=0.15)

    def test_pure_noise_and_bad_parts(self):
        net = layers.dense(1, bias=False)
        y = np.array([[1.0], [-1.0]] * 20, np.float32)
        found = diagnostics.noise_scale(
            net, losses.mse, {"kernel": jnp.zeros((1, 1))}, (), (np.ones((40, 1), np.float32), y), parts=20
        )
        assert np.isinf(found.batch_size)
        with pytest.raises(DataError, match="noise_scale: parts=16 must divide the batch of 40; cut it to 32 samples"):
            diagnostics.noise_scale(
                net, losses.mse, {"kernel": jnp.zeros((1, 1))}, (), (np.ones((40, 1), np.float32), y)
            )
        with pytest.raises(DataError, match="parts=64 need a batch of at least 64 samples, got 40"):
            diagnostics.noise_scale(layers.dense(1), losses.mse, *layers.dense(1).init(0, X), (X, X[:, :1]), parts=64)
        with pytest.raises(ConfigError, match="parts must be an integer >= 2"):
            diagnostics.noise_scale(net, losses.mse, {"kernel": jnp.zeros((1, 1))}, (), (X, y), parts=1)


def nan(prediction, target):
    """A loss that is never a number."""
    return losses.mse(prediction, target) * jnp.nan


class TestRateRange:
    @pytest.mark.parametrize("curvature", [0.05, 20.0])
    def test_a_parabola_breaks_beyond_two_over_its_curvature(self, curvature):
        """mse of w x with x^2 = c / 2 has the second derivative c; gradient descent diverges from rate 2 / c on."""
        x = np.full((64, 1), np.sqrt(curvature / 2), np.float32)
        y = np.where(np.arange(64)[:, None] % 2, 1.0, -1.0).astype(np.float32)  # so that the loss is never 0
        found = diagnostics.rate_range_test(
            layers.dense(1, bias=False), losses.mse, optimizers.sgd(1.0), (x, y), batch_size=64, steps=400
        )
        # The running mean is ten to twenty steps late, and each step multiplies by 1.047.
        assert 0.9 * 2 / curvature < found.largest < 4 * 2 / curvature
        assert found.suggested == found.largest / 10
        assert len(found.factors) == len(found.losses) == 400
        np.testing.assert_allclose(found.factors[[0, -1]], [1e-4, 1e4], rtol=1e-5)

    def test_the_suggestion_trains(self):
        y = np.sin(X[:, :1]).astype(np.float32)
        net = layers.chain(layers.dense(16), jnp.tanh, layers.dense(1))
        found = diagnostics.rate_range_test(net, losses.mse, optimizers.adam(1e-3), (X, y), batch_size=20)
        assert 1 < found.suggested < 1000

    def test_what_it_refuses(self):
        with pytest.raises(DataError, match="rate_range_test: a batch of 64 does not fill from 40 samples"):
            diagnostics.rate_range_test(layers.dense(1), losses.mse, optimizers.sgd(1.0), (X, X[:, :1]), batch_size=64)
        with pytest.raises(ConfigError, match="high must be a finite number in"):
            diagnostics.rate_range_test(layers.dense(1), losses.mse, optimizers.sgd(1.0), (X, X[:, :1]), high=1e-9)
        with pytest.raises(DataError, match="the loss is nan from the first step on, at any rate"):
            diagnostics.rate_range_test(layers.dense(1), nan, optimizers.sgd(1.0), (X, X[:, :1]), steps=10)
        data = (X, X[:, :1] + 5)
        with pytest.raises(ConfigError, match=r"lowest at the last factor, 0\.01, and may fall further; raise high"):
            diagnostics.rate_range_test(
                layers.dense(1), losses.mse, optimizers.sgd(1.0), data, steps=40, batch_size=40, high=0.01
            )
        with pytest.raises(ConfigError, match="lowest at the first factor, 100, and only rises; lower low"):
            diagnostics.rate_range_test(
                layers.dense(1), losses.mse, optimizers.sgd(1.0), data, steps=10, batch_size=40, low=100.0
            )


class TestSuspectLabels:
    def test_only_what_both_contradict(self):
        x = np.concatenate([np.zeros(30), np.ones(30)])[:, None] + np.linspace(0, 0.1, 60)[:, None]
        right = np.repeat([0, 1], 30)
        given_labels = right.copy()
        given_labels[[3, 40, 50]] = 1 - right[[3, 40, 50]]
        assert diagnostics.suspect_labels(x, given_labels, right).tolist() == [3, 40, 50]
        predicted = right.copy()
        predicted[40] = given_labels[40]  # here the network believes the label
        predicted[:3] = 1  # and here only the network doubts
        assert diagnostics.suspect_labels(x, given_labels, predicted).tolist() == [3, 50]

    def test_more_than_half_of_a_class_is_not_mislabelled(self):
        x = np.concatenate([np.zeros(30), np.ones(30)])[:, None] + np.linspace(0, 0.1, 60)[:, None]
        right = np.repeat([0, 1], 30)
        labels = right.copy()
        labels[[3, 40]] = 2  # both of a third class, which the network does not know
        assert diagnostics.suspect_labels(x, labels, right).tolist() == []

    def test_a_network_that_names_the_commonest_class_is_no_witness(self):
        x = RANDOM.standard_normal((100, 2))
        labels = (np.arange(100) % 10 == 0).astype(int)
        assert diagnostics.suspect_labels(x, labels, np.zeros(100, int)).tolist() == []

    def test_of_many_features_some_are_enough(self):
        x = np.zeros((60, 10_000), np.float32) + np.repeat([0, 1], 30)[:, None]
        labels = np.repeat([0, 1], 30)
        labels[3] = 1
        assert diagnostics.suspect_labels(x, labels, np.repeat([0, 1], 30)).tolist() == [3]

    def test_what_it_refuses(self):
        with pytest.raises(DataError, match="of one length above 15, got 10, 10 and 10"):
            diagnostics.suspect_labels(np.zeros((10, 1)), np.zeros(10, int), np.zeros(10, int))


def test_an_update_without_extra_arguments_is_given_none():
    """Of optax's rules many take three arguments; the step has more to give."""
    optimizer = optimizers.Optimizer(
        lambda params: (), lambda updates, state, params=None: (jax.tree.map(lambda g: -0.01 * g, updates), state)
    )
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    found = diagnostics.rate_range_test(layers.dense(1), losses.mse, optimizer, (x, x[:, :1]), batch_size=8, steps=30)
    assert np.isfinite(found.losses[0])


def test_complex_parameters_are_measured_whole():
    """A loss whose gradient is imaginary: |z - 2i|^2 at i."""

    def distance(params, x):
        return jnp.abs(params["z"][None] - x[:, :1].astype(jnp.complex64) * jnp.complex64(2j)) ** 2

    net = layers.stateless(lambda key, x: {"z": jnp.zeros((1,), jnp.complex64)}, distance)
    x = jnp.ones((8, 1))

    def loss(prediction, target):
        return jnp.mean(prediction) + 0 * jnp.mean(target)

    params, state = {"z": jnp.full((1,), 1j, jnp.complex64)}, ()
    scale = diagnostics.noise_scale(net, loss, params, state, (x, x), parts=2)
    np.testing.assert_allclose(scale.gradient_square, 4.0, rtol=1e-5)
    report = diagnostics.layer_report(
        net, loss, params, state, (x, x), optimizer=optimizers.sgd(0.25), opt_state=optimizers.sgd(0.25).init(params)
    )
    np.testing.assert_allclose(np.ravel(report.weight_norm), [1.0])
    np.testing.assert_allclose(np.ravel(report.parameter_gradient), [2.0], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(report.update_ratio), [0.5], rtol=1e-6)

    def decayed(grads, state, params=None):  # 0.25 (-2i + i), where the conjugate would give 0.25 (2i + i)
        return jax.tree.map(lambda g, p: -0.25 * (g + p), grads, params), state

    rule = optimizers.Optimizer(lambda params: (), decayed)
    report = diagnostics.layer_report(net, loss, params, state, (x, x), optimizer=rule, opt_state=())
    np.testing.assert_allclose(np.ravel(report.update_ratio), [0.25], rtol=1e-6)

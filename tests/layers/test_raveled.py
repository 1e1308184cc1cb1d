"""A network in one vector trains, is kept and is refused as the network itself is."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DTypeError, ShapeError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((12, 5)).astype(np.float32)
Y = RANDOM.standard_normal((12, 2)).astype(np.float32)


def network():
    """With what has a state, what is frozen inside, and leaves of every size."""
    return layers.chain(
        layers.dense(6, bias=False), layers.batch_norm(), jnp.tanh, layers.frozen(layers.dense(4)), layers.prelu(),
        layers.dense(2),
    )  # fmt: skip


def fit(net, optimizer, **options):
    options = {"epochs": 3, "batch_size": 4, "progress": False} | options
    return training.fit(net, losses.mse, optimizer, (X, Y), **options)


def assert_trained_alike(vector, tree):
    np.testing.assert_allclose(vector.history["loss"], tree.history["loss"], rtol=1e-5)
    assert tree.history["loss"][-1] < tree.history["loss"][0]
    assert isinstance(vector.params, optimizers.Raveled)
    params = vector.params.unravel()
    for got, expected in (params, tree.params), (vector.state, tree.state):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.parametrize("make", [lambda: optimizers.adam(0.02), lambda: optimizers.adamw(0.02, weight_decay=0.1)])
def test_it_trains_as_the_bare_network(make):
    """Batch norm and a frozen part inside, and the same loss of every epoch."""
    vector, tree = fit(layers.raveled(network()), make()), fit(network(), make())
    assert_trained_alike(vector, tree)
    assert [leaf.shape for leaf in jax.tree.leaves(vector.params)] == [(5 * 6 + 2 * 6 + 1 + 4 * 2 + 2,)]
    # A vector of parameters, and two of moments: no leaf of the optimizer's is as small as the network's.
    assert sorted(leaf.size for leaf in jax.tree.leaves(vector.train_state.opt_state))[-2:] == [53, 53]


@pytest.mark.parametrize("around", [lambda net: layers.mixed_precision(net), lambda net: layers.chain(net)])
def test_it_trains_inside_other_layers(around):
    vector = fit(around(layers.raveled(network())), optimizers.adam(0.02))
    tree = fit(around(network()), optimizers.adam(0.02))
    np.testing.assert_allclose(vector.history["loss"], tree.history["loss"], rtol=1e-3)
    (params,) = jax.tree.leaves(vector.params)
    assert (params.shape, params.dtype) == ((53,), jnp.float32)


def test_a_run_of_it_is_taken_up_where_it_was(tmp_path):
    net, optimizer = layers.raveled(network()), optimizers.adam(0.02)
    unbroken = fit(net, optimizer, epochs=3)
    fit(net, optimizer, epochs=1, keep=tmp_path / "run")
    resumed = fit(net, optimizer, epochs=3, keep=tmp_path / "run")
    for got, expected in (resumed.params, unbroken.params), (resumed.state, unbroken.state):
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    training.save(tmp_path / "params", resumed.params)
    like = jax.eval_shape(lambda: net.init(0, X)[0])
    jax.tree.map(np.testing.assert_array_equal, training.load(tmp_path / "params", like), unbroken.params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_params_are_the_networks(dtype):
    net, x = layers.raveled(layers.chain(layers.dense(3), layers.layer_norm())), jnp.asarray(X, dtype)
    params, state = net.init(0, x)
    (vector,) = jax.tree.leaves(params)
    assert vector.dtype == dtype
    bare = layers.chain(layers.dense(3), layers.layer_norm())
    drawn, _ = bare.init(0, x)
    jax.tree.map(np.testing.assert_array_equal, params.unravel(), drawn)
    y, expected = net.apply(params, state, x, train=True)[0], bare.apply(drawn, state, x, train=True)[0]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


def test_a_tree_of_params_is_refused():
    net = layers.raveled(layers.dense(2))
    params, state = layers.dense(2).init(0, X)
    message = r"raveled: params must be an optimizers\.Raveled, got dict; .*or make it .*optimizers\.ravel\(params\)"
    with pytest.raises(ConfigError, match=message):
        net.apply(params, state, X, train=False)
    y, _ = net.apply(optimizers.ravel(params), state, X, train=False)  # as the message says
    np.testing.assert_array_equal(y, layers.dense(2).apply(params, state, X, train=False)[0])


def test_a_vector_of_another_length_is_refused():
    net = layers.raveled(layers.dense(2))
    params, state = net.init(0, X)
    longer = jax.tree.map(lambda vector: jnp.concatenate([vector, vector]), params)
    with pytest.raises(ShapeError, match=r"the vector of float32 must have the shape \(12,\).*, got \(24,\)"):
        net.apply(longer, state, X, train=False)


def test_params_that_are_not_floating_point_are_refused():
    counting = layers.stateless(lambda key, x: {"scale": jnp.ones((), jnp.int32)}, lambda params, x: x)
    with pytest.raises(DTypeError, match="int32"):
        layers.raveled(counting).init(0, X)


def test_errors_name_the_layer_inside():
    net = layers.raveled(layers.chain(layers.dense(2)))
    params, state = net.init(0, X)
    with pytest.raises(ValueError, match=r"raveled.*dense"):
        net.apply(params, state, X[:, :3], train=False)


def test_it_is_pickled():
    net = layers.raveled(network())
    params, state = net.init(0, X)
    other, kept = pickle.loads(pickle.dumps((net, params)))
    assert jax.tree.structure(kept) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    for got, expected in zip(
        other.apply(kept, state, X, train=True), net.apply(params, state, X, train=True), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, got, expected)

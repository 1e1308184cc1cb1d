"""`frozen`: what it holds is not learned, by any rule, and counts nowhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, diagnostics, interop, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.testing import check_layer
from tests.compiled import apply

X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
BACKBONE = layers.chain(layers.dense(6), layers.batch_norm(), layers.dropout(0.5), jnp.tanh)


@functools.cache
def trained():
    params, state = BACKBONE.init(0, X)
    _, state = apply(BACKBONE, params, state, 3 * X + 1, train=True, key=jax.random.key(1))  # statistics of other data
    return params, state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_keeps_the_contract():
    check_layer(layers.frozen(BACKBONE), X)
    check_layer(layers.chain(layers.dense(3), layers.frozen(BACKBONE, *trained_for(3)), layers.dense(2)), X)


def trained_for(features):
    return BACKBONE.init(0, jnp.ones((1, features)))


def test_computes_what_the_layer_does_in_evaluation():
    params, state = trained()
    layer = layers.frozen(BACKBONE, params, state)
    empty, kept = layer.init(5, X)
    assert empty == ()
    expected, _ = apply(BACKBONE, params, state, X, train=False)
    for train in (True, False):
        y, after = apply(layer, empty, kept, X, train=train)
        same(y, expected)
        same(after, {"params": params, "state": state})
    drawn, _ = layers.frozen(BACKBONE).init(5, X)[1].values()
    same(drawn, BACKBONE.init(5, X)[0])


@pytest.mark.parametrize(
    "rule", [lambda: optimizers.sgd(0.1, momentum=0.9), lambda: optimizers.adamw(0.1, weight_decay=0.5)]
)
def test_nothing_of_it_is_learned_clipped_or_guarded(rule):
    """Against the same head on the backbone's outputs, computed beforehand."""
    params, state = trained()
    optimizer = optimizers.chain(optimizers.clip_by_global_norm(0.1), rule())
    target = X[:, :1]

    @jax.custom_jvp
    def spoil(x):  # a gradient that is not finite, of a parameter inside
        return x

    spoil.defjvp(lambda primals, tangents: (primals[0], tangents[0] * jnp.float32(jnp.inf)))
    spoiled = layers.stateless(lambda key, x: {"scale": jnp.ones(())}, lambda p, x: x * spoil(p["scale"]))
    backbone = layers.chain(BACKBONE, spoiled)
    whole = (params, {"scale": jnp.ones(())}), (state, ())
    net = layers.chain(layers.frozen(backbone, *whole), layers.dense(1))
    features, _ = apply(BACKBONE, params, state, X, train=False)

    options = {"epochs": 3, "batch_size": 4, "progress": False}
    head, _ = layers.dense(1).init(7, features)
    begun = training.pretrained(net, ((), head), net.init(0, X)[1])
    fit = training.fit(begun, losses.mse, optimizer, (X, target), **options)
    begun = training.pretrained(layers.dense(1), head, ())
    alone = training.fit(begun, losses.mse, optimizer, (features, target), **options)
    assert fit.history["skipped"].sum() == 0
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(fit.history[name], alone.history[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), fit.params[1], alone.params)
    same(fit.state[0], {"params": whole[0], "state": whole[1]})
    assert len(jax.tree.leaves(fit.train_state.opt_state)) == len(jax.tree.leaves(alone.train_state.opt_state))


@pytest.mark.parametrize("policy", [lambda net: net, layers.mixed_precision])
def test_a_guarded_step_does_not_copy_it(policy):
    net = policy(layers.chain(layers.frozen(layers.dense(512)), layers.dense(1)))
    optimizer = optimizers.sgd(0.1)
    begun = training.init(net, optimizer, np.ones((1, 64), np.float32), 0)
    step = jax.jit(training.make_step(net, losses.mse, optimizer), donate_argnums=0)
    text = step.lower(begun, (np.ones((4, 64), np.float32), np.ones((4, 1), np.float32))).compile().as_text()
    assert "64,512" in text
    assert not [line for line in text.splitlines() if " copy(" in line and "64,512" in line]


def test_in_mixed_precision_it_computes_as_its_neighbours():
    params, state = trained()
    net = layers.mixed_precision(layers.chain(layers.frozen(BACKBONE, params, state), layers.dense(2)))
    drawn, kept = net.init(0, X)
    y, after = apply(net, drawn, kept, X, train=True)
    assert y.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"float32"}
    plain = layers.chain(layers.frozen(BACKBONE, params, state), layers.dense(2))
    np.testing.assert_allclose(y, apply(plain, drawn, kept, X, train=True)[0], atol=0.05)


def draw_rows(key, x):
    return {"kernel": jax.random.normal(key, (10, 4))}


def look_up(params, tokens):
    return params["kernel"][tokens]


TABLE = layers.stateless(draw_rows, look_up, name="table")
TOKENS = np.arange(6).reshape(2, 3) % 10


def container(part):
    """One's own, which shows its parts and cannot be rebuilt."""

    def init(key, x):
        params, state = part.init(key, x)
        return {"part": params}, {"part": state}

    def apply(params, state, x, *, train, key=None):
        y, state = part.apply(params["part"], state["part"], x, train=train, key=key)
        return y, {"part": state}

    return layers.Layer(init, apply, "mine", layers.About((("part", part),)))


PLACES = {
    "alone": lambda net: net,
    "in a container that cannot be rebuilt": container,
    "in another frozen": lambda net: layers.frozen(net),
    "in a policy": lambda net: layers.mixed_precision(net, compute=jnp.float16, output=jnp.bfloat16),
    "in a repeat": lambda net: layers.chain(net, layers.repeat(layers.frozen(layers.dense(4)), 2)),
}


@pytest.mark.parametrize("place", PLACES)
def test_in_mixed_precision_tokens_are_looked_up_in_the_computing_dtype(place):
    """And the state comes back as it went in, also out of a network that is looked into."""
    net = layers.mixed_precision(layers.chain(PLACES[place](layers.frozen(TABLE)), layers.dense(2)))
    params, state = net.init(0, TOKENS)
    y, after = jax.jit(lambda p, s, x: net.apply(p, s, x, train=True))(params, state, TOKENS)
    assert y.dtype == jnp.float32
    same(after, state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"float32"}
    report = diagnostics.layer_report(net, losses.mse, params, state, (TOKENS, np.zeros((2, 3, 2), np.float32)))
    np.testing.assert_allclose(report.loss, np.mean(np.asarray(y) ** 2), rtol=2e-2)


@pytest.mark.parametrize("around", [lambda net: net, lambda net: layers.repeat(net, 2)])
def test_pytorchs_arrays_go_in_and_out(around):
    plain, kept = (around(layers.chain(wrap(BACKBONE), layers.dense(4))) for wrap in (lambda n: n, layers.frozen))
    params, state = plain.init(0, X)
    arrays = interop.to_torch(params, state, plain)
    loaded = interop.from_torch(arrays, kept, X)
    same(loaded[1][0], {"params": params[0], "state": state[0]})
    same(interop.to_torch(*loaded, kept), arrays)
    outputs = (apply(net, *trees, X, train=False)[0] for net, *trees in ((kept, *loaded), (plain, params, state)))
    np.testing.assert_array_equal(*outputs)
    with pytest.raises(ConfigError, match="is a frozen, whose state is a dict of params and state, got tuple"):
        interop.to_torch(loaded[0], state, kept)


def test_tools_that_measure_see_one_layer(tmp_path):
    net = layers.chain(layers.frozen(BACKBONE), layers.dense(3), activations.relu, layers.dense(1))
    params, state = net.init(0, X)
    table = layers.summary(net, X)
    assert [row.name for row in table.rows] == ["chain", "frozen", "dense", "relu", "dense"]
    assert table.rows[1].parameters == 0
    assert table.rows[1].multiply_adds == 12 * 4 * 6
    report = diagnostics.layer_report(net, losses.mse, params, state, (X, X[:, :1]), optimizer=optimizers.sgd(0.1))
    assert report.labels == ("0 frozen", "1 dense", "2 relu", "3 dense")
    assert np.isnan(report.weight_norm[0])
    assert report.activation_gradient[0] > 0
    assert diagnostics.dead_units(net, params, state, X).labels == ("2 relu",)
    large = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
    diagnostics.diagnose(net, losses.mse, optimizers.sgd(0.01), (large, large[:, :1]), steps=60)
    pytest.importorskip("matplotlib")
    diagnostics.pictures.activation_histograms(tmp_path / "h.png", net, params, state, X)


def test_bad_input_is_refused():
    params, state = trained()
    with pytest.raises(ConfigError, match="a state was given without parameters"):
        layers.frozen(BACKBONE, state=state)
    with pytest.raises(ShapeError, match=r"frozen: params have the shapes .*give this layer's own"):
        layers.frozen(BACKBONE, params, state).init(0, X[:, :3])
    layer = layers.frozen(BACKBONE, params, state)
    with pytest.raises(ConfigError, match="the state must be a dict of params and state"):
        layer.apply((), state, X, train=False)
    with pytest.raises(ConfigError, match=r"frozen: params must be \(\)"):
        layer.apply(params, layer.init(0, X)[1], X, train=False)

"""Composition: what chain, residual, parallel and repeat compute, and how they split keys, states and parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import initializers, layers
from tests.compiled import apply

KEY = jax.random.key(11)
X = np.random.default_rng(11).standard_normal((4, 6)).astype(np.float32)


def run(layer, params, state, x=X, train=False, key=None):
    return apply(layer, params, state, x, train=train, key=key)


def at(tree, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


def test_chain_applies_its_parts_in_order():
    first, second = layers.dense(5), layers.dense(3)
    net = layers.chain(first, jnp.tanh, second)
    params, state = net.init(KEY, X)
    assert state == ((), (), ())
    expected = run(second, params[2], (), np.tanh(run(first, params[0], ())[0]))[0]
    np.testing.assert_allclose(run(net, params, state)[0], expected, rtol=1e-5, atol=1e-6)


def test_chain_draws_different_parameters_for_equal_layers():
    params, _ = layers.chain(layers.dense(6), layers.dense(6)).init(KEY, X)
    assert np.abs(np.asarray(params[0]["kernel"]) - np.asarray(params[1]["kernel"])).min() > 0


def test_chain_gives_each_part_a_key_of_its_own():
    net = layers.parallel(layers.dropout(0.5), layers.dropout(0.5))
    x = np.ones((1, 1000), np.float32)
    (a, b), _ = run(net, ((), ()), ((), ()), x, train=True, key=KEY)
    agreement = np.mean((np.asarray(a) == 0) == (np.asarray(b) == 0))
    assert 0.4 < agreement < 0.6  # independent draws agree half the time


def test_chain_hands_the_state_on():
    net = layers.chain(layers.batch_norm(), layers.dense(2, bias_init=initializers.ones), layers.batch_norm())
    params, state = net.init(KEY, X)
    _, new = run(net, params, state, train=True)
    chex.assert_trees_all_equal_structs(new, state)
    assert new[1] == ()
    np.testing.assert_allclose(new[0]["mean"], 0.1 * np.mean(X, 0), rtol=1e-5)
    np.testing.assert_allclose(new[2]["mean"], 0.1, rtol=1e-5)
    _, same = run(net, params, new, train=False)
    chex.assert_trees_all_equal(same, new)


def test_residual_adds_its_input():
    branch = layers.dense(6)
    net = layers.residual(branch)
    params, state = net.init(KEY, X)
    expected = X + run(branch, params["branch"], ())[0]
    np.testing.assert_allclose(run(net, params, state)[0], expected, rtol=1e-6, atol=1e-6)


def test_residual_with_a_shortcut():
    net = layers.residual(layers.dense(3), layers.dense(3, bias=False))
    params, state = net.init(KEY, X)
    branch, shortcut = (jax.tree.map(np.asarray, params[name]) for name in ("branch", "shortcut"))
    expected = X @ (branch["kernel"] + shortcut["kernel"]) + branch["bias"]
    np.testing.assert_allclose(run(net, params, state)[0], expected, rtol=1e-5, atol=1e-6)


def test_residual_keeps_the_gradient_of_a_deep_stack_alive():
    def gradient_norm(block):
        net = layers.repeat(block, 50)
        params, state = net.init(KEY, X)
        return np.linalg.norm(jax.jit(jax.grad(lambda x: jnp.sum(run(net, params, state, x)[0])))(X))

    plain = layers.chain(layers.dense(6), jax.nn.sigmoid)
    assert gradient_norm(plain) < 1e-12
    assert gradient_norm(layers.residual(plain)) > 1


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("tuple", lambda a, b: (a, b)),
        ("concatenate", lambda a, b: np.concatenate([a, b], -1)),
        ("sum", lambda a, b: a + b),
        ("mean", lambda a, b: (a + b) / 2),
        (lambda outputs: outputs[0] * outputs[1], lambda a, b: a * b),
    ],
)
def test_parallel_combines(combine, expected):
    branches = layers.dense(3), layers.chain(layers.dense(3), jnp.tanh)
    net = layers.parallel(*branches, combine=combine)
    params, state = net.init(KEY, X)
    outputs = [np.asarray(run(b, p, s)[0]) for b, p, s in zip(branches, params, state, strict=True)]
    chex.assert_trees_all_close(run(net, params, state)[0], expected(*outputs), rtol=1e-6)


def body():
    return layers.residual(
        layers.chain(layers.dense(6), layers.batch_norm(), jnp.tanh, layers.dropout(0.4)), layers.prelu()
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_repeat_is_a_loop_over_its_copies(train, remat):
    n = 4
    inner, net = body(), layers.repeat(body(), n, remat=remat)
    params, state = net.init(KEY, X)
    y, new = run(net, params, state, X, train, KEY)
    expected, states = X, []
    for i, key in enumerate(jax.random.split(KEY, n)):
        expected, one = run(inner, at(params, i), at(state, i), expected, train, key)
        states.append(one)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(new, jax.tree.map(lambda *leaves: np.stack(leaves), *states), rtol=1e-4, atol=1e-5)


def test_repeat_draws_each_copy_as_the_layer_itself_would():
    inner, net = layers.dense(6), layers.repeat(layers.dense(6), 3)
    params, _ = net.init(KEY, X)
    for i, key in enumerate(jax.random.split(KEY, 3)):
        # Up to the last bit: one is drawn by a program of its own, the copies by one for all.
        chex.assert_trees_all_close(at(params, i), inner.init(key, X)[0], rtol=5e-7)


def test_remat_changes_no_gradient_and_keeps_less():
    def loss(remat):
        net = layers.repeat(layers.chain(layers.dense(6), jnp.tanh, layers.dense(6), jnp.tanh), 8, remat=remat)
        params, state = net.init(KEY, X)
        return (lambda p: jnp.sum(run(net, p, state)[0] ** 2)), params

    (kept, params), (recomputed, _) = loss(False), loss(True)
    gradients = (jax.jit(jax.grad(f))(params) for f in (recomputed, kept))
    chex.assert_trees_all_close(*gradients, rtol=1e-5, atol=1e-6)

    def residuals(f):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(f, p)[1], params)))

    assert residuals(recomputed) < residuals(kept)


def test_the_program_does_not_grow_with_depth():
    def program(n):
        net = layers.repeat(body(), n)
        params, state = jax.eval_shape(net.init, KEY, X)

        def total(params, state):
            return jnp.sum(net.apply(params, state, X, train=True, key=KEY)[0])

        traced = jax.make_jaxpr(jax.grad(total))(params, state)
        return str(traced).count(" = ")  # an equation each

    assert program(64) == program(2)


def test_networks_are_static_arguments():
    """A network hashes and compares, so it can be named in static_argnames."""
    net = layers.chain(layers.dense(2), jnp.tanh)
    params, state = net.init(KEY, X)
    jitted = jax.jit(lambda net, p, s, x: run(net, p, s, x), static_argnums=0)
    np.testing.assert_allclose(jitted(net, params, state, X)[0], run(net, params, state)[0], rtol=1e-6)


def test_a_custom_layer_is_two_functions():
    center = layers.stateless(
        lambda key, x: {"shift": jnp.zeros(x.shape[-1:], x.dtype)}, lambda p, x: x - p["shift"][None]
    )
    net = layers.chain(center, layers.dense(2))
    params, state = net.init(KEY, X)
    params[0]["shift"] = np.ones(6, np.float32)
    expected = (X - 1) @ np.asarray(params[1]["kernel"])
    np.testing.assert_allclose(run(net, params, state)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_operation_by_operation_they_are_what_their_program_is(train):
    block = layers.residual(layers.chain(layers.dense(6), layers.dropout(0.5)))
    both = layers.parallel(jnp.tanh, layers.batch_norm(), combine="sum")
    net = layers.chain(layers.repeat(block, 2), both)
    params, state = net.init(KEY, X)
    one, other = (
        f(params, state, X, train=train, key=KEY) for f in (net.apply, jax.jit(net.apply, static_argnames="train"))
    )
    chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)

"""Ours inside optax's wrappers and inside other libraries' training states, and optax's inside ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}


@pytest.fixture(autouse=True)
def standard_promotion():
    """The other libraries promote implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(optimizer, steps=4, **extra):
    params, state, update = PARAMS, optimizer.init(PARAMS), jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.sin, params), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def same(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


WRAPPERS = {
    "chain": lambda adam: optax.chain(optax.clip(0.5), adam(0.1)),
    "MultiSteps": lambda adam: optax.MultiSteps(adam(0.1), 2),
    "inject_hyperparams": lambda adam: optax.inject_hyperparams(adam)(learning_rate=0.1),
    "inject schedule": lambda adam: optax.inject_hyperparams(adam)(learning_rate=lambda step: 0.1 / (step + 1)),
    "masked": lambda adam: optax.masked(adam(0.1), {"w": True, "b": False}),
    "partition": lambda adam: optax.partition({"a": adam(0.1), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
    "apply_if_finite": lambda adam: optax.apply_if_finite(adam(0.1), 3),
    "schedule": lambda adam: adam(optax.cosine_decay_schedule(0.1, 10)),
    "flatten": lambda adam: optax.flatten(adam(0.1)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_ours_in_optax_wrappers(wrap):
    same(run(wrap(optimizers.adam))[0], run(wrap(optax.adam))[0])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_inside_a_master_copy_optax_wrappers_see_float32(wrap):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = optimizers.master_copy(wrap(optimizers.adam))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(4):
        updates, state = update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-2), state.master, run(wrap(optax.adam))[0])


def test_optax_in_ours():
    ours = optimizers.chain(optimizers.clip_by_value(0.5), optax.adam(0.1))
    same(run(ours)[0], run(optax.chain(optax.clip(0.5), optax.adam(0.1)))[0])
    same(run(optimizers.skip_nonfinite(optax.adam(0.1)))[0], run(optax.adam(0.1))[0])
    same(run(optimizers.flat(optax.adam(0.1)))[0], run(optax.adam(0.1))[0])
    same(run(optimizers.lookahead(optax.sgd(0.1), 3, 1.0))[0], run(optax.sgd(0.1))[0])


def test_extra_arguments_reach_the_members_that_want_them():
    polyak = optimizers.chain(optimizers.clip_by_value(9.0), optimizers.skip_nonfinite(optax.polyak_sgd(1.0)))
    same(run(polyak, value=0.5)[0], run(optax.chain(optax.clip(9.0), optax.polyak_sgd(1.0)), value=0.5)[0])


WANTING = {
    "polyak_sgd": (lambda: optax.polyak_sgd(1.0), ("value",)),
    "reduce_on_plateau": (lambda: optax.contrib.reduce_on_plateau(patience=1, factor=0.5), ("value",)),
    "lbfgs": (lambda: optax.lbfgs(), ("value", "grad", "value_fn")),
}
AROUND = {
    "chain": lambda rule: optimizers.chain(optimizers.clip_by_value(9.0), rule),
    "optax's chain in ours": lambda rule: optimizers.chain(optax.chain(optax.clip(9.0), rule)),
    "lookahead": lambda rule: optimizers.lookahead(rule, 9, 0.5),
    "skip_nonfinite": optimizers.skip_nonfinite,
    "flat": optimizers.flat,
    "master_copy": optimizers.master_copy,
    "all": lambda rule: optimizers.skip_nonfinite(optimizers.master_copy(optimizers.chain(optimizers.flat(rule)))),
}


def value_fn(params):
    return 0.5 + sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(params))


@functools.cache
def alone(rule):
    """The loss and its gradient, and what the rule by itself makes of them."""
    value, grads = jax.value_and_grad(value_fn)(PARAMS)
    inner = WANTING[rule][0]()
    updates, _ = inner.update(grads, inner.init(PARAMS), PARAMS, value=value, grad=grads, value_fn=value_fn)
    return value, grads, updates


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("rule", WANTING)
def test_extra_arguments_reach_what_is_inside(rule, around):
    make, names = WANTING[rule]
    value, grads, expected = alone(rule)
    given = {"value": value, "grad": grads, "value_fn": value_fn}
    if around in ("flat", "all") and rule == "lbfgs":  # which compares grad to the gradient: one layout for both
        given["grad"], given["value_fn"] = optimizers.ravel(grads), lambda params: value_fn(params.unravel())
    optimizer = AROUND[around](make())
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS, **given)
    same(updates, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=f"needs {names[0]}.*and this update got no extra arguments; call update"):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)


def test_extra_arguments_by_name_alone_and_those_that_optax_keeps_to_itself():
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: value * g, updates), state

    ours = optimizers.chain((lambda params: (), update))
    same(ours.update(PARAMS, ours.init(PARAMS), value=2.0, grad=None)[0], jax.tree.map(lambda x: 2 * x, PARAMS))
    with pytest.raises(ConfigError, match=r"needs value, and this update got grad; .*use jaxnet\.optimizers\.chain"):
        ours.update(PARAMS, ours.init(PARAMS), grad=None)

    def update_by_position(updates, state, params, value, factor=1.0):
        return jax.tree.map(lambda g: factor * value * g, updates), state

    ours_too = optimizers.chain((lambda params: (), update_by_position))
    updates, _ = ours_too.update(PARAMS, ours_too.init(PARAMS), PARAMS, value=2.0, grad=None, factor=0.5, params_=1)
    same(updates, PARAMS)
    with pytest.raises(ConfigError, match=r"needs value, and this update got grad"):
        ours_too.update(PARAMS, ours_too.init(PARAMS), PARAMS, grad=None)
    inside = optax.chain(ours)
    with pytest.raises(ConfigError, match=r"use jaxnet\.optimizers\.chain"):
        inside.update(PARAMS, inside.init(PARAMS), value=2.0)

    def faulty(updates, state, params=None):
        raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        optimizers.chain((lambda params: (), faulty)).update(PARAMS, ((),))


def pairs():
    rule = optimizers.sgd(0.1)
    return [(rule.init, rule.update), [rule.init, rule.update], tuple(optax.sgd(0.1))]


DOORS = {
    "chain": lambda pair: optimizers.chain(pair),
    "chain of two": lambda pair: optimizers.chain(optimizers.clip_by_value(9.0), pair),
    "lookahead": lambda pair: optimizers.lookahead(pair, 9, 0.5),
    "skip_nonfinite": optimizers.skip_nonfinite,
    "flat": optimizers.flat,
    "master_copy": optimizers.master_copy,
}


@pytest.mark.parametrize("pair", pairs(), ids=["tuple", "list", "of optax"])
def test_a_plain_pair_is_an_optimizer(pair):
    expected = run(optimizers.sgd(0.1))[0]
    for door in DOORS.values():
        same(run(door(pair))[0], expected)
    net, x = layers.dense(1), jnp.ones((4, 1))
    step = training.make_step(net, losses.mse, pair)
    _, metrics = step(training.init(net, pair, x, 0), (x, x))
    assert bool(jnp.isfinite(metrics["loss"]))


def test_what_is_no_pair():
    for value in ((jnp.sin,), (jnp.sin, 1), (optimizers.sgd(0.1), optimizers.sgd(0.1)), (), {"init": 1}):
        with pytest.raises(ConfigError, match="an optimizer is a pair with init and update, got"):
            optimizers.flat(value)


def test_state_fields_have_optax_names():
    _, state = run(optax.chain(optax.clip(1.0), optimizers.adam(0.1)), 3)
    assert optax.tree_utils.tree_get(state, "count") == 3
    same(optax.tree_utils.tree_get(state, "mu"), optax.tree_utils.tree_get(run(optax.adam(0.1), 3)[1], "mu"))
    _, state = run(optimizers.sgd(0.1, 0.9), 3)
    same(optax.tree_utils.tree_get(state, "trace"), optax.tree_utils.tree_get(run(optax.sgd(0.1, 0.9), 3)[1], "trace"))
    doubled = optax.tree_utils.tree_map_params(optimizers.adam(0.1), lambda x: 2 * x, run(optimizers.adam(0.1))[1])
    same(doubled.mu, jax.tree.map(lambda x: 2 * x, run(optimizers.adam(0.1))[1].mu))


@pytest.mark.peers
def test_flax_train_state_and_nnx():
    pytest.importorskip("flax", reason="flax is a peer; it is in the `peers` extra")
    from flax import nnx
    from flax.training.train_state import TrainState

    state = TrainState.create(apply_fn=lambda x: x, params=PARAMS, tx=optimizers.adam(0.1))
    for _ in range(4):
        state = state.apply_gradients(grads=jax.tree.map(jnp.sin, state.params))
    same(state.params, run(optax.adam(0.1))[0])

    results = []
    for library in (optimizers, optax):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, library.adam(0.1), wrt=nnx.Param)
        for _ in range(3):
            optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones(3)) ** 2))(model))
        results.append(model.kernel[...])
    same(results[0], results[1])


@pytest.mark.peers
def test_equinox():
    eqx = pytest.importorskip("equinox", reason="equinox is a peer; it is in the `peers` extra")
    results = []
    for library in (optimizers, optax):
        model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
        optimizer = library.adam(0.1)
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        for _ in range(3):
            grads = eqx.filter_grad(lambda model: jnp.sum(model(jnp.ones(2)) ** 2))(model)
            updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
            model = eqx.apply_updates(model, updates)
        results.append(eqx.filter(model, eqx.is_inexact_array))
    same(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]))

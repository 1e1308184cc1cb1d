"""Ours inside optax's wrappers and inside other libraries' training states, and optax's inside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import optimizers

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


def test_optax_in_ours():
    ours = optimizers.chain(optimizers.clip_by_value(0.5), optax.adam(0.1))
    same(run(ours)[0], run(optax.chain(optax.clip(0.5), optax.adam(0.1)))[0])
    same(run(optimizers.skip_nonfinite(optax.adam(0.1)))[0], run(optax.adam(0.1))[0])
    same(run(optimizers.flat(optax.adam(0.1)))[0], run(optax.adam(0.1))[0])
    same(run(optimizers.lookahead(optax.sgd(0.1), 3, 1.0))[0], run(optax.sgd(0.1))[0])


def test_extra_arguments_reach_the_members_that_want_them():
    polyak = optimizers.chain(optimizers.clip_by_value(9.0), optimizers.skip_nonfinite(optax.polyak_sgd(1.0)))
    same(run(polyak, value=0.5)[0], run(optax.chain(optax.clip(9.0), optax.polyak_sgd(1.0)), value=0.5)[0])


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

"""The flat layout: the same numbers, in few buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import optimizers
from jaxnet.errors import ConfigError


def test_round_trip(params):
    raveled = optimizers.ravel(params)
    assert {name: v.shape for name, v in raveled.vectors.items()} == {"bfloat16": (5,), "float32": (16,)}
    back = raveled.unravel()
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    assert len(jax.tree.leaves(raveled)) == 2
    assert optimizers.ravel({}).unravel() == {}


def test_leaves_of_one_shape_come_back_to_their_own_places():
    """Shapes could not tell two of them apart."""
    params = {name: jnp.full((2, 2), value) for name, value in {"b": 1.0, "a": 2.0, "c": 3.0}.items()}
    params["half"] = [jnp.full((2, 2), value, jnp.bfloat16) for value in (4.0, 5.0)]
    for back in (optimizers.ravel(params).unravel(), jax.jit(lambda p: optimizers.ravel(p).unravel())(params)):
        assert jax.tree.map(lambda leaf: float(leaf[0, 0]), back) == {"a": 2, "b": 1, "c": 3, "half": [4, 5]}
    gradient = jax.grad(lambda p: jnp.sum(p.unravel()["b"] * 7))(optimizers.ravel(params)).unravel()
    assert jax.tree.map(lambda leaf: float(leaf[0, 0]), gradient) == {"a": 0, "b": 7, "c": 0, "half": [0, 0]}


@pytest.mark.parametrize(
    "inner",
    [
        optimizers.adam(0.01),
        optimizers.adamw(0.01, weight_decay=0.1),
        optimizers.sgd(0.01, momentum=0.9),
        optimizers.rmsprop(0.01, centered=True),
        optimizers.adagrad(0.01),
        optimizers.lookahead(optimizers.adam(0.01), 2, 0.5),
        optimizers.angulargrad(0.01),
        optimizers.skip_nonfinite(optimizers.adam(0.01)),
        optax.adam(0.01),
    ],
)
def test_both_forms_compute_what_the_tree_does(params, inner):
    def train(optimizer, params, steps=5):
        state = optimizer.init(params)

        @jax.jit
        def step(params, state):
            grads = jax.tree.map(jnp.sin, params)
            updates, state = optimizer.update(grads, state, params)
            return optimizers.apply_updates(params, updates), state

        for _ in range(steps):
            params, state = step(params, state)
        return params

    with jax.numpy_dtype_promotion("standard"):
        tree = train(inner, params)
        wrapped = train(optimizers.flat(inner), params)
        raveled = train(inner, optimizers.ravel(params)).unravel()
        both = train(optimizers.flat(inner), optimizers.ravel(params)).unravel()
    for result in (wrapped, raveled, both):
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-2 if a.dtype == jnp.bfloat16 else 1e-5)


def test_clipping_by_global_norm_is_the_same_up_to_the_order_of_a_sum(params):
    clip = optimizers.clip_by_global_norm(0.1)
    tree, _ = clip.update(params, clip.init(params))
    flat, _ = optimizers.flat(clip).update(params, clip.init(params))
    for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(tree), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-2 if a.dtype == jnp.bfloat16 else 1e-6)


def test_gradient_of_unravel_is_one_concatenation():
    params = optimizers.ravel([jnp.ones(3) for _ in range(20)])
    gradient = jax.make_jaxpr(jax.grad(lambda p: sum(jnp.sum(jnp.sin(x)) for x in p.unravel())))(params)
    names = [equation.primitive.name for equation in gradient.eqns]
    assert names.count("concatenate") == 1
    assert "pad" not in names


def test_layouts_are_compared_so_that_a_step_compiles_once():
    traces = []

    @jax.jit
    def step(params):
        traces.append(1)
        return params

    for _ in range(3):
        step(optimizers.ravel({"a": jnp.ones(2), "b": jnp.ones(3)}))
    assert len(traces) == 1
    step(optimizers.ravel({"a": jnp.ones(3), "b": jnp.ones(2)}))
    assert len(traces) == 2


def test_gradients_of_another_tree_are_refused(params):
    optimizer = optimizers.flat(optimizers.adam(0.1))
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="do not fit"):
        optimizer.update(params | {"extra": jnp.ones(2)}, state, params)
    with pytest.raises(ValueError, match="do not fit the optimizer's state"):
        optimizer.update(params | {"extra": jnp.ones(2)}, state)


@pytest.mark.parametrize("make", [optimizers.adamw, lambda rate, **k: optimizers.add_decayed_weights(rate, k["mask"])])
def test_a_mask_that_is_a_function_is_refused(make):
    """It would see vectors only, of one axis each, and answer no for every matrix."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    optimizer = optimizers.flat(make(0.1, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)))
    with pytest.raises(ConfigError, match="parameters in flat layout have no leaves to mask"):
        optimizer.update(params, optimizer.init(params), params)


def test_a_tree_mask_is_refused():
    optimizer = optimizers.flat(optimizers.adamw(0.1, mask={"w": True, "b": False}))
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    with pytest.raises(ValueError, match="flat layout"):
        optimizer.update(params, optimizer.init(params), params)


def test_cast_of_the_whole_tree():
    raveled = optimizers.ravel({"w": jnp.ones((2, 2)), "b": jnp.ones(3)})
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), raveled).unravel()
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}

"""The contract of every optimizer: pure, stable in structure and dtype, and transparent to transformations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnet import optimizers
from jaxnet.errors import ConfigError
from tests.optimizers.conftest import OPTIMIZERS


def gradients_of(params):
    return jax.tree.map(lambda p: (0.3 * p + 0.1).astype(p.dtype), params)


def struct(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def stepped(optimizer):
    def step(carry, _=None):
        params, state = carry
        updates, state = optimizer.update(gradients_of(params), state, params)
        return (optimizers.apply_updates(params, updates), state), None

    return step


def run(optimizer, params, steps):
    """Outside jit, where the operations of one rule are compiled for all."""
    carry = params, optimizer.init(params)
    for _ in range(steps):
        carry, _ = stepped(optimizer)(carry)
    return carry


def scan(optimizer, params, steps):
    return jax.lax.scan(stepped(optimizer), (params, optimizer.init(params)), None, length=steps)[0]


def assert_close(compiled, eager):
    chex.assert_trees_all_close(compiled, eager, rtol=2e-2, atol=1e-4)  # bfloat16 leaf; fusion rounds less often
    # AdaBelief divides by |g - m|, a difference of nearly equal numbers, so it amplifies a rounding.
    chex.assert_trees_all_close(compiled["kernel"], eager["kernel"], rtol=1e-3, atol=1e-6)


def test_a_compiled_step(optimizer, params):
    """It keeps structure and dtypes, compiles once, takes donated parameters and state, and is that outside jit."""
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry):
        traces.append(1)
        return stepped(optimizer)(carry)[0]

    first = optimizer.init(params)
    assert not any(x.weak_type for x in jax.tree.leaves(first))
    copied = jax.tree.map(jnp.array, params)
    jitted, state = copied, optimizer.init(copied)
    for _ in range(4):
        jitted, state = step((jitted, state))
    assert len(traces) == 1
    assert copied["kernel"].is_deleted()
    assert struct(jitted) == struct(params)
    assert jax.tree.structure(state) == jax.tree.structure(first)
    assert struct(state) == struct(first)
    assert_close(jitted, run(optimizer, params, 4)[0])


@pytest.mark.parametrize("name", ["lookahead reset", "skip nonfinite", "swa", "master copy"])
def test_in_a_condition(name, params):
    """Those that decide something themselves; every rule is scanned in test_complex.py."""
    optimizer = OPTIMIZERS[name]()

    def step(carry, _):
        return jax.lax.cond(jnp.array(True), lambda: stepped(optimizer)(carry)[0], lambda: carry), None

    scanned, _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=3)
    looped = run(optimizer, params, 3)
    assert jax.tree.structure(scanned) == jax.tree.structure(looped)
    assert_close(scanned[0], looped[0])


@pytest.mark.devices(8)
def test_sharded_state(optimizer):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = {"w": jnp.linspace(-1.0, 1.0, 32).reshape(16, 2)}
    sharded = jax.device_put(params, sharding)
    state = jax.jit(optimizer.init)(sharded)
    updates, state = jax.jit(optimizer.update)(gradients_of(sharded), state, sharded)
    expected, _ = optimizer.update(gradients_of(params), optimizer.init(params), params)
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(expected), rtol=1e-3, atol=1e-8)


@pytest.mark.devices(8)
def test_init_keeps_the_sharding_of_the_parameters():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.zeros((16, 2)), sharding)
    state = optimizers.adam(0.1).init(params)
    assert state.mu.sharding.is_equivalent_to(sharding, 2)
    assert optimizers.rmsprop(0.1).init(params).nu.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    "make",
    [
        optimizers.sgd,
        lambda rate: optimizers.sgd(rate, momentum=0.9),
        optimizers.adam,
        optimizers.adamw,
        optimizers.adagrad,
        optimizers.rmsprop,
        optimizers.adabelief,
        optimizers.angulargrad,
        lambda rate: optimizers.lookahead(optimizers.sgd(rate), 2, 0.5),
        lambda rate: optimizers.flat(optimizers.adam(rate)),
    ],
)
def test_vmap_over_learning_rates(make):
    params = {"w": jnp.array([1.0, -2.0]), "half": jnp.ones(2, jnp.bfloat16)}
    rates = jnp.array([0.1, 0.01, 0.0])
    many = jax.vmap(lambda rate: scan(make(rate), params, 3)[0])(rates)
    for i, rate in enumerate(rates):
        one, _ = run(make(float(rate)), params, 3)
        chex.assert_trees_all_close(many["w"][i], one["w"], rtol=1e-5)
    assert many["half"].dtype == jnp.bfloat16


def test_every_hyperparameter_may_be_a_schedule_as_with_inject_hyperparams():
    params = jnp.linspace(-1.0, 1.0, 5)
    b1, rate = (lambda step: 0.9 - 0.1 * (step == 1)), (lambda step: 0.1 / (step + 1))
    theirs = optax.inject_hyperparams(optax.adam)(rate, b1=b1)
    with jax.numpy_dtype_promotion("standard"):
        ours, _ = scan(optimizers.adam(rate, b1=b1), params, 4)
        expected, _ = scan(theirs, params, 4)
    np.testing.assert_allclose(ours, expected, rtol=2e-5)  # theirs takes 1 - b1 in float32


def test_count_saturates():
    optimizer = optimizers.adam(0.1)
    state = optimizer.init(jnp.ones(2))._replace(count=jnp.array(2**31 - 1, jnp.int32))
    updates, state = optimizer.update(jnp.ones(2), state)
    assert state.count == 2**31 - 1
    assert bool(jnp.all(jnp.isfinite(updates)))


def test_apply_updates_rounds_once_and_keeps_dtypes():
    params = jnp.array([1.0], jnp.bfloat16)
    result = optimizers.apply_updates(params, jnp.array([2.0**-8 + 2.0**-12]))
    assert result.dtype == jnp.bfloat16
    assert result[0] == 1.0 + 2.0**-7  # a bfloat16 update of 2^-8 would have been rounded to even, down to 1


def test_empty_tree(optimizer):
    updates, state = optimizer.update({}, optimizer.init({}), {})
    assert optimizers.apply_updates({}, updates) == {}
    optimizer.update({}, state, {})


@pytest.mark.parametrize(
    "mask",
    [lambda path, leaf: leaf.ndim > 9, lambda tree: jax.tree.map(lambda p: False, tree)],
    ids=["ours", "optax's"],
)
def test_a_mask_that_chooses_nothing_is_refused(mask):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = optimizers.adamw(0.1, weight_decay=0.3, mask=mask)
    with pytest.raises(ConfigError, match=r"adamw: the function chooses no leaf, .* it was asked of bias, kernel"):
        optimizer.update(params, optimizer.init(params), params)
    nothing = jax.tree.map(lambda p: False, params)  # a tree says it of each leaf by name
    optimizers.adamw(0.1, weight_decay=0.3, mask=nothing).update(params, optimizer.init(params), params)


def test_masks_of_adamw_agree_with_masking_by_optax():
    params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "last": jnp.ones(2)}
    mask = {"layer": {"kernel": True, "bias": False}, "last": True}
    prefix = {"layer": False, "last": True}
    matrices = lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)  # noqa: E731
    for our_mask, their_mask in (
        (mask, mask), (prefix, prefix), (matrices, matrices), ("last", prefix), (lambda path, p: p.ndim > 1, matrices)
    ):  # fmt: skip
        ours, _ = scan(optimizers.adamw(0.1, weight_decay=0.3, mask=our_mask), params, 3)
        with jax.numpy_dtype_promotion("standard"):
            theirs, _ = scan(optax.adamw(0.1, weight_decay=0.3, mask=their_mask), params, 3)
        chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize("make", [optimizers.adam, optimizers.adagrad, optimizers.rmsprop, optimizers.lion])
def test_parameters_may_be_numbers_and_numpys_arrays(make):
    state = make(1e-3).init({"number": 1.0, "complex": 1 + 2j, "numpy": np.ones(2, np.float32), "jax": jnp.ones(3)})
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert {(), (2,), (3,)} == shapes


def test_what_a_state_begins_with_lies_where_the_parameters_lie():
    here, there = jax.devices()[:2] if jax.device_count() > 1 else jax.devices() * 2
    params = {"here": jnp.ones(3), "there": jax.device_put(jnp.ones(3), there)}
    state = optimizers.adam(1e-3).init(params)
    for tree in (state.mu, state.nu):
        assert tree["here"].devices() == {here}
        assert tree["there"].devices() == {there}
        assert [leaf.committed for leaf in tree.values()] == [False, True]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.mu, state.nu))]
    assert len(set(buffers)) == len(buffers)  # a step gives each of them away

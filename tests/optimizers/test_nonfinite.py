"""A non-finite gradient is seen and skipped, never spread."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import optimizers
from jaxnet.optimizers.skip_nonfinite import skipped


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_clip_by_global_norm_leaves_the_fault_where_it_is(bad):
    clip = optimizers.clip_by_global_norm(1.0)
    grads = {"a": jnp.array([3.0, bad]), "b": jnp.array([4.0])}
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(clipped["a"], [0.6, bad], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [0.8], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e15, 3e19, 2e38])
def test_clip_by_global_norm_of_gradients_whose_squares_overflow(scale):
    clip = optimizers.clip_by_global_norm(2.0)
    clipped, _ = jax.jit(clip.update)(jnp.array([0.6, -0.8], jnp.float32) * scale, optimizers.EmptyState())
    np.testing.assert_allclose(clipped, np.array([0.6, -0.8]) * min(2.0, scale), rtol=1e-5)


def test_clip_by_global_norm_sums_squares_in_float32():
    clip = optimizers.clip_by_global_norm(1.0)
    for dtype, unit in ((jnp.bfloat16, 1.0), (jnp.float16, 1000.0)):
        # 256 + 1 is 256 in bfloat16, and the squares overflow float16.
        grads = [jnp.full(1, 16 * unit, dtype)] + [jnp.full(1, unit, dtype)] * 32
        clipped, _ = clip.update(grads, clip.init(grads))
        np.testing.assert_allclose(clipped[0], 16 / np.sqrt(256 + 32), rtol=1e-6)


def test_clip_by_value_leaves_the_fault_where_it_is():
    clipped, _ = optimizers.clip_by_value(0.5).update(jnp.array([jnp.nan, jnp.inf, -2.0]), optimizers.EmptyState())
    np.testing.assert_array_equal(clipped, [np.nan, np.inf, -0.5])


@pytest.mark.parametrize(
    "inner", [optimizers.adam(0.1), optimizers.sgd(0.1, 0.9), optimizers.lookahead(optimizers.sgd(0.1), 9, 0.5)]
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_skip_nonfinite_changes_nothing_and_counts(inner, bad):
    optimizer = optimizers.skip_nonfinite(inner)
    params = {"w": jnp.array([1.0, -0.0, 2.0]), "b": jnp.ones(1)}
    good = jax.tree.map(jnp.ones_like, params)
    spoiled = good | {"b": jnp.array([bad])}
    step = jax.jit(lambda params, state, grads: optimizer.update(grads, state, params))

    updates, before = step(params, optimizer.init(params), good)
    params = optimizers.apply_updates(params, updates)
    state, now = before, params
    if bad == 1e30 and not isinstance(state.inner_state, optimizers.AdamState):
        return  # a large gradient is no fault for rules that do not square it
    for i in (1, 2):
        updates, state = step(now, state, spoiled)
        now = optimizers.apply_updates(now, updates)
        assert (int(state.notfinite_count), int(state.total_notfinite), bool(state.last_finite)) == (i, i, False)
    for a, b in zip(
        jax.tree.leaves((now, state.inner_state)), jax.tree.leaves((params, before.inner_state)), strict=True
    ):
        assert a.tobytes() == b.tobytes()  # -0.0 stays -0.0

    updates, state = step(now, state, good)
    assert (int(state.notfinite_count), int(state.total_notfinite), bool(state.last_finite)) == (0, 2, True)
    assert float(optimizers.apply_updates(now, updates)["w"][0]) < float(now["w"][0])


def test_skip_nonfinite_never_gives_up():
    optimizer = optimizers.skip_nonfinite(optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.adam(0.1)))
    params = jnp.ones(2)
    state = optimizer.init(params)
    for _ in range(30):
        updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), state, params)
        params = optimizers.apply_updates(params, updates)
    np.testing.assert_array_equal(params, [1.0, 1.0])
    assert int(state.notfinite_count) == 30


def test_a_rate_that_is_not_finite_is_skipped():
    """The gradient is finite, and the update is not."""
    optimizer = optimizers.skip_nonfinite(optimizers.sgd(lambda step: 1 / (3 - step)))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jnp.ones(2), state, params)
        return (optimizers.apply_updates(params, updates), state), None

    params, state = jax.lax.scan(step, (jnp.ones(2), optimizer.init(jnp.ones(2))), None, length=8)[0]
    np.testing.assert_allclose(params, 1 - (1 / 3 + 1 / 2 + 1), rtol=1e-6)
    assert int(skipped(state)) == 5  # at 1 / 0, and then always: a step that is skipped counts for no schedule


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_step_by_which_a_parameter_overflows_is_skipped(dtype):
    optimizer = optimizers.skip_nonfinite(optimizers.sgd(1.0))
    large = 0.9 * float(jnp.finfo(dtype).max)
    params, grads = jnp.array([large, 1.0], dtype), jnp.array([-large, 1.0], dtype)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(np.asarray(optimizers.apply_updates(params, updates)), np.asarray(params))
    assert int(skipped(state)) == 1


NESTED = {
    "chain": lambda skip: optimizers.chain(optimizers.clip_by_value(9.0), skip(optimizers.sgd(0.1))),
    "lookahead": lambda skip: optimizers.lookahead(skip(optimizers.sgd(0.1)), 9, 0.5),
    "flat": lambda skip: optimizers.flat(skip(optimizers.sgd(0.1))),
    "master copy": lambda skip: optimizers.master_copy(skip(optimizers.sgd(0.1))),
    "optax chain": lambda skip: optax.chain(optax.clip(9.0), skip(optax.adam(0.1))),
    "parts": lambda skip: optax.partition({"a": skip(optax.sgd(0.1)), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
}


@pytest.mark.parametrize("around", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("skip", [optimizers.skip_nonfinite, lambda rule: optax.apply_if_finite(rule, 9)])
def test_skips_are_found_wherever_they_are(around, skip):
    optimizer = around(skip)
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for value, total in ((1.0, 0), (jnp.nan, 1), (1.0, 1), (jnp.nan, 2)):
            grads = jax.tree.map(lambda p, value=value: value * p, params)
            _, state = optimizer.update(grads, state, params)
            count = skipped(state)
            assert count is not None
            assert count.dtype == jnp.int32
            assert int(count) == total


def test_skips_of_several_and_of_none():
    inner = optimizers.skip_nonfinite(optimizers.sgd(0.1))
    several = optimizers.chain(inner, optimizers.skip_nonfinite(inner))
    _, state = several.update(jnp.array([jnp.nan]), several.init(jnp.ones(1)), jnp.ones(1))
    assert int(skipped(state)) == 1  # the first makes 0 of it, which the others take
    assert skipped(optimizers.adam(0.1).init(jnp.ones(1))) is None


def test_a_skip_inside_of_another_counts_once():
    """Of a rate that is infinite the inner one makes 0, and of a gradient that is not finite the outer one sees all."""
    optimizer = optimizers.skip_nonfinite(optimizers.skip_nonfinite(optimizers.sgd(lambda count: jnp.float32(jnp.inf))))
    update, state = jax.jit(optimizer.update), optimizer.init(jnp.ones(1))
    for value, total in ((1.0, 1), (jnp.nan, 2), (1.0, 3)):
        _, state = update(jnp.array([value]), state, jnp.ones(1))
        assert int(skipped(state)) == total

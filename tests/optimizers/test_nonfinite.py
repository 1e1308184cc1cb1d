"""A non-finite gradient is seen and skipped, never spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers


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
        assert clipped[0].dtype == dtype
        np.testing.assert_allclose(np.float32(clipped[0]), 16 / np.sqrt(256 + 32), rtol=1e-2)


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

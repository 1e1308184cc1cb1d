"""The chapter's algorithms 1 to 3, and the papers' rules, as literal loops in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers


def gradients(steps=200, size=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(steps, size)) * np.geomspace(0.1, 3.0, size)


def run(optimizer, grads):
    """The parameters after each step from zeros, in float64."""
    with jax.enable_x64(True):
        params = jnp.zeros(grads.shape[1], jnp.float64)

        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            params = optimizers.apply_updates(params, updates)
            return (params, state), params

        return np.asarray(jax.lax.scan(step, (params, optimizer.init(params)), jnp.asarray(grads))[1])


@pytest.mark.parametrize("batch", [1, 4])
def test_algorithms_1_and_2_are_sgd(batch):
    rng = np.random.default_rng(1)
    x, y, rate = rng.normal(size=(64, 3)), rng.normal(size=64), 0.05
    indices = rng.integers(0, 64, size=(40, batch))

    w = np.zeros(3)
    for i in range(40):  # algorithm 2, lines 2 to 11; with batch 1, algorithm 1
        loss_gradients = []
        for j in range(batch):
            x_ij, y_ij = x[indices[i, j]], y[indices[i, j]]
            loss_gradients.append(2 * (w @ x_ij - y_ij) * x_ij)
        delta = -np.mean(loss_gradients, axis=0)
        w = w + rate * delta

    with jax.enable_x64(True):
        optimizer = optimizers.sgd(rate)
        params = jnp.zeros(3, jnp.float64)
        state = optimizer.init(params)

        def loss(params, x, y):
            return jnp.mean((x @ params - y) ** 2)

        for i in range(40):
            grads = jax.grad(loss)(params, jnp.asarray(x[indices[i]]), jnp.asarray(y[indices[i]]))
            updates, state = optimizer.update(grads, state)
            params = optimizers.apply_updates(params, updates)
        np.testing.assert_allclose(params, w, rtol=1e-12)


def test_algorithm_3_as_printed_overflows_at_step_20():
    """Line 15 as printed divides by 1 - b2^i and stores the quotient, which line 6 then feeds back in.

    So v grows by about 1 / (1 - b2^i) at every step: past float32's range at step 20. From then on the
    update is m / sqrt(inf) = 0, and training has stopped.
    """
    m, v, b1, b2 = np.float32(0), np.float32(0), np.float32(0.9), np.float32(0.999)
    history = []
    with np.errstate(over="ignore"):
        for i in range(1, 31):
            m = (b1 * m + (1 - b1) * np.float32(1)) / (1 - b1**i)
            v = (b2 * v + (1 - b2) * np.float32(1)) / (1 - b2**i)
            history.append((m, v))
    assert history[4][0] == pytest.approx(103, rel=0.05)
    assert np.isfinite(history[18][1])
    assert np.isinf(history[19][1])
    assert history[19][0] / np.sqrt(history[19][1]) == 0

    state = optimizers.adam(0.1).init(jnp.ones(()))
    for _ in range(30):
        _, state = optimizers.adam(0.1).update(jnp.ones(()), state)
    assert float(state.nu) == pytest.approx(1 - 0.999**30, rel=1e-4)


def test_algorithm_3_as_intended_is_adam_with_eps_root():
    grads, b1, b2, eps, rate = gradients(), 0.9, 0.999, 1e-6, 0.01
    m = v = w = np.zeros(grads.shape[1])
    expected = []
    for i, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**i)) / np.sqrt(v / (1 - b2**i) + eps)
        expected.append(w)
    np.testing.assert_allclose(run(optimizers.adam(rate, eps=0, eps_root=eps), grads), expected, rtol=1e-10)


def test_adabelief_by_its_paper():
    grads, b1, b2, eps, rate = gradients(), 0.9, 0.99, 1e-8, 0.01
    m = s = w = np.zeros(grads.shape[1])
    expected = []
    for i, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        w = w - rate * (m / (1 - b1**i)) / (np.sqrt(s / (1 - b2**i)) + eps)
        expected.append(w)
    np.testing.assert_allclose(run(optimizers.adabelief(rate, b1, b2, eps, eps), grads), expected, rtol=1e-10)


def test_adan_by_its_paper():
    """Its averages corrected for their start at 0, as in the authors' code, and the betas 1 minus the paper's."""
    grads, b1, b2, b3, eps, rate = gradients(), 0.9, 0.8, 0.99, 1e-8, 0.01
    m = v = n = w = np.zeros(grads.shape[1])
    previous, expected = grads[0], []
    for i, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - previous)
        n = b3 * n + (1 - b3) * (g + (1 - b2) * (g - previous)) ** 2
        ahead = m / (1 - b1**i) + (1 - b2) * v / (1 - b2**i)
        w = w - rate * ahead / (np.sqrt(n / (1 - b3**i)) + eps)
        previous = g
        expected.append(w)
    np.testing.assert_allclose(run(optimizers.adan(rate, b1, b2, b3, eps, 0.0), grads), expected, rtol=1e-10)


def test_lookahead_by_its_paper():
    grads, rate, k, alpha = gradients(), 0.1, 5, 0.3
    slow = fast = np.zeros(grads.shape[1])
    expected = []
    for i, g in enumerate(grads, start=1):
        fast = fast - rate * g
        if i % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        expected.append(fast)
    ours = run(optimizers.lookahead(optimizers.sgd(rate), k, alpha), grads)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-14)


def test_lookahead_keeps_fast_and_slow_equal_bit_for_bit_and_resets():
    optimizer = optimizers.lookahead(optimizers.adam(0.1), 3, 0.3, reset_state=True)
    params = {"w": jnp.linspace(-1.0, 1.0, 9), "half": jnp.linspace(-1, 1, 9, dtype=jnp.bfloat16)}
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(1, 13):
        updates, state = step(jax.tree.map(jnp.sin, params), state, params)
        params = optimizers.apply_updates(params, updates)
        slow = jax.tree.map(lambda slow, p: slow.astype(p.dtype), state.slow, params)
        equal = all(bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, (params, slow)), strict=True))
        assert equal == (i % 3 == 0)
        assert int(state.fast_state.count) == i % 3


@pytest.mark.parametrize(("variant", "function"), [("cos", np.cos), ("tan", np.tan)])
def test_angulargrad_by_its_paper(variant, function):
    grads, b1, b2, eps, rate = gradients(), 0.9, 0.999, 1e-8, 0.01
    m = v = w = previous = np.zeros(grads.shape[1])
    previous_angle = np.full(grads.shape[1], np.pi / 2)
    expected = []
    for i, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        angle = np.arctan(np.abs((g - previous) / (1 + g * previous)))
        phi = np.tanh(np.abs(function(np.minimum(previous_angle, angle)))) / 2 + 1 / 2
        w = w - rate * phi * (m / (1 - b1**i)) / (np.sqrt(v / (1 - b2**i)) + eps)
        previous, previous_angle = g, angle
        expected.append(w)
    np.testing.assert_allclose(run(optimizers.angulargrad(rate, variant=variant), grads), expected, rtol=1e-9)


@pytest.mark.parametrize("variant", ["cos", "tan"])
def test_angulargrad_where_the_denominator_is_zero(variant):
    optimizer = optimizers.angulargrad(0.1, variant=variant)
    state = optimizer.init(jnp.zeros(2))
    for g in ([1.0, 2.0], [-1.0, -0.5], [1.0, 2.0]):  # 1 + g_t g_{t-1} = 0
        updates, state = optimizer.update(jnp.array(g), state)
        assert bool(jnp.all(jnp.isfinite(updates)))
    np.testing.assert_allclose(state.angle, np.pi / 2, rtol=1e-6)


def released_angulargrad(grads, rate, function, b1=0.9, b2=0.999, eps=1e-8):
    """What the authors' released code computes, written from its behaviour.

    Its smallest angle starts at 0, and the angle of a step replaces it only if in the whole tensor fewer
    entries lie above the stored angles than not.
    """
    m = v = w = previous = smallest = kept = np.zeros(grads.shape[1])
    path, replaced = [], 0
    for i, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        tangent = np.abs((previous - g) / (1 + previous * g))
        above = np.degrees(np.arctan(tangent)) > smallest
        if above.sum() < (~above).sum():
            smallest, kept, replaced = np.degrees(np.arctan(tangent)), function(tangent), replaced + 1
        phi = np.tanh(np.abs(kept)) * 0.5 + 0.5
        previous = g
        w = w - rate * np.sqrt(1 - b2**i) / (1 - b1**i) * phi * m / (np.sqrt(v) + eps)
        path.append(w)
    return np.array(path), replaced


@pytest.mark.parametrize("function", [lambda t: t, lambda t: 1 / np.sqrt(1 + t**2)])
def test_the_released_angulargrad_is_adam_at_half_the_rate(function):
    grads, rate = gradients(), 0.01
    released, replaced = released_angulargrad(grads, rate, function)
    assert replaced == 0
    halved = run(optimizers.adam(rate / 2), grads)
    np.testing.assert_allclose(released, halved, rtol=1e-4, atol=1e-6)  # its epsilon is not corrected
    ours = run(optimizers.angulargrad(rate), grads)
    assert np.abs(ours - halved).max() > 0.1 * np.abs(halved).max()

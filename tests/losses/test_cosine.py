"""cosine_similarity and cosine_distance (eq. 4.20) against the printed quotient and PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import losses

draws = given(
    shape_axis=st.sampled_from([((4,), 0), ((3, 5), -1), ((2, 4, 3), 1)]),
    exponents=st.tuples(st.integers(-6, 6), st.integers(-6, 6)),
    double=st.booleans(),
    seed=st.integers(0, 99),
)


def _draw(shape, exponents, double, seed):
    draw = np.random.default_rng(seed)
    dtype = np.float64 if double else np.float32
    return tuple((10.0**e * draw.normal(size=shape)).astype(dtype) for e in exponents)


@partial(jax.jit, static_argnames="axis")
def _compiled(a, b, axis):
    values, pull = jax.vjp(lambda a, b: losses.cosine_similarity(a, b, axis=axis, reduction="none"), a, b)
    return values, *pull(jnp.ones_like(values))


def _value_and_gradients(a, b, axis, double):
    with jax.enable_x64(double):
        return tuple(np.asarray(x) for x in _compiled(a, b, axis))


@draws
def test_it_is_the_printed_quotient(shape_axis, exponents, double, seed):
    shape, axis = shape_axis
    a, b = _draw(shape, exponents, double, seed)
    value, to_a, to_b = _value_and_gradients(a, b, axis, double)
    a, b = np.float64(a), np.float64(b)
    length_a, length_b = (np.sqrt((x**2).sum(axis, keepdims=True)) for x in (a, b))
    cosine = (a * b).sum(axis, keepdims=True) / (length_a * length_b)
    tolerance = 1e-13 if double else 2e-6
    np.testing.assert_allclose(value, cosine.squeeze(axis), rtol=0, atol=tolerance)
    # d cos / da = (b / |b| - cos a / |a|) / |a|
    np.testing.assert_allclose(to_a * length_a, b / length_b - cosine * a / length_a, rtol=0, atol=tolerance)
    np.testing.assert_allclose(to_b * length_b, a / length_a - cosine * b / length_b, rtol=0, atol=tolerance)


@pytest.mark.peers
@draws
def test_torch_agrees(shape_axis, exponents, double, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    shape, axis = shape_axis
    a, b = _draw(shape, exponents, double, seed)
    x, y = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    expected = torch.nn.functional.cosine_similarity(x, y, dim=axis, eps=1e-30)
    expected.sum().backward()
    value, to_a, to_b = _value_and_gradients(a, b, axis, double)
    tolerance = 1e-13 if double else 4e-6
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=0, atol=tolerance)
    for ours, theirs, of in ((to_a, x, a), (to_b, y, b)):
        shortest = np.linalg.norm(of, axis=axis).min()
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=0, atol=tolerance / shortest)


def test_distance_is_one_minus_similarity():
    a, b = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), jnp.array([[5.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
    np.testing.assert_array_equal(losses.cosine_similarity(a, b, reduction="none"), [1, 0, -1])
    np.testing.assert_array_equal(losses.cosine_distance(a, b, reduction="none"), [0, 1, 2])
    assert losses.cosine_distance(a, b) == 1
    assert losses.cosine_distance(a, b, reduction="sum") == 3


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-2, 1.0, np.pi - 1e-3])
def test_the_distance_of_a_small_angle_keeps_its_digits(angle):
    """1 - cos(angle) is 0 in float32 below 3e-4; half the angle squared is not."""
    a, b = (np.array([[5.0, 0.0]], np.float32), 3 * np.array([[np.cos(angle), np.sin(angle)]], np.float32))
    value, gradient = jax.jit(jax.value_and_grad(losses.cosine_distance))(b, a)
    np.testing.assert_allclose(value, 2 * np.sin(angle / 2) ** 2, rtol=2e-6)
    np.testing.assert_allclose(gradient[0], np.sin(angle) / 3 * np.array([-np.sin(angle), np.cos(angle)]), 2e-3, 1e-7)
    assert losses.cosine_distance(3 * b, b) >= 0


def test_value_and_gradient_at_the_zero_vector_are_0():
    zero, other = jnp.zeros((1, 3)), jnp.array([[1.0, -2.0, 0.5]])
    for a, b in ((zero, other), (other, zero), (zero, zero)):
        value, gradients = jax.jit(jax.value_and_grad(losses.cosine_similarity, argnums=(0, 1)))(a, b)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros((1, 3)))
        assert losses.cosine_distance(a, b) == 1
    for matrix in jax.tree.leaves(jax.jit(jax.hessian(losses.cosine_similarity, argnums=(0, 1)))(zero, other)):
        assert np.isfinite(matrix).all()


def test_a_zero_vector_does_not_touch_its_neighbours():
    a, b = (np.array(rows, np.float32) for rows in ([[0, 0], [1, 0]], [[1, 1], [1, 1]]))
    gradient = jax.jit(jax.grad(lambda a: losses.cosine_similarity(a, b, reduction="sum")))(a)
    np.testing.assert_allclose(gradient, [[0, 0], [0, np.sqrt(0.5)]], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_magnitude_under_or_overflows(scale):
    a, b = np.array([[3.0, 4.0]], np.float32), np.array([[4.0, 3.0]], np.float32)
    both = jax.jit(jax.value_and_grad(losses.cosine_similarity))
    for x, y in ((a * scale, b), (a, b * scale), (a * scale, b * scale)):
        x, y = x.astype(np.float32), y.astype(np.float32)
        value, gradient = both(x, y)
        np.testing.assert_allclose(value, 0.96, rtol=1e-6)
        # (b / |b| - cos a / |a|) / |a|, and |x| is 5 or 5 * scale
        expected = (np.array([[0.8, 0.6]]) - 0.96 * np.array([[0.6, 0.8]])) / np.linalg.norm(np.float64(x))
        np.testing.assert_allclose(gradient, expected, rtol=2e-5)

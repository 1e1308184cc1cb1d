"""mse and mae (eq. 4.16, 4.18) against the printed sums and PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import losses

SHAPES = [(5,), (2, 1), (2, 3, 4)]
draws = given(
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    reduction=st.sampled_from(["mean", "sum"]),
    double=st.booleans(),
    seed=st.integers(0, 99),
)


def _draw(shape, scale, seed, double):
    draw = np.random.default_rng(seed)
    dtype = np.float64 if double else np.float32
    return tuple((scale * draw.normal(size=shape)).astype(dtype) for _ in range(2))


@partial(jax.jit, static_argnames=("name", "reduction"))
def _value_and_gradient(name, prediction, target, reduction):
    return jax.value_and_grad(getattr(losses, name))(prediction, target, reduction=reduction)


def _literal(name, prediction, target, reduction):
    """The sums of eq. 4.16 and 4.18, and their derivatives, value by value."""
    n = prediction[0].size
    values = np.zeros(len(prediction))
    gradient = np.zeros(prediction.shape)
    for index in np.ndindex(prediction.shape):
        e = float(prediction[index]) - float(target[index])
        values[index[0]] += (e**2 if name == "mse" else abs(e)) / n
        gradient[index] = (2 * e if name == "mse" else np.sign(e)) / n
    examples = len(prediction) if reduction == "mean" else 1
    return values.sum() / examples, gradient / examples


@pytest.mark.parametrize("name", ["mse", "mae"])
@draws
def test_it_is_the_printed_sum(name, shape, scale, reduction, double, seed):
    prediction, target = _draw(shape, scale, seed, double)
    expected, expected_gradient = _literal(name, prediction, target, reduction)
    with jax.enable_x64(double):
        value, gradient = _value_and_gradient(name, prediction, target, reduction)
        rtol = 1e-13 if double else 2e-5
        np.testing.assert_allclose(value, expected, rtol=rtol)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=rtol, atol=rtol * np.abs(expected_gradient).max())


@pytest.mark.peers
@pytest.mark.parametrize("name", ["mse", "mae"])
@draws
def test_torch_agrees(name, shape, scale, reduction, double, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    prediction, target = _draw(shape, scale, seed, double)
    p = torch.tensor(prediction, requires_grad=True)
    oracle = torch.nn.functional.mse_loss if name == "mse" else torch.nn.functional.l1_loss
    per_example = torch.stack([oracle(a, b) for a, b in zip(p, torch.tensor(target), strict=True)])
    expected = per_example.mean() if reduction == "mean" else per_example.sum()
    expected.backward()
    with jax.enable_x64(double):
        value, gradient = _value_and_gradient(name, prediction, target, reduction)
        rtol = 1e-13 if double else 1e-5
        np.testing.assert_allclose(value, expected.item(), rtol=rtol)
        scale = float(p.grad.abs().max())
        np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=rtol, atol=rtol * scale)


def test_mse_has_no_one_half():
    assert losses.mse(jnp.array([[3.0]]), jnp.array([[1.0]])) == 4
    assert losses.mse(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]), reduction="sum") == 2


def test_the_derivative_of_mae_is_0_where_the_error_is_0():
    prediction = jnp.array([[1.0, 2.0, 3.0]])
    target = jnp.array([[1.0, 1.0, 4.0]])
    np.testing.assert_allclose(jax.grad(losses.mae)(prediction, target), np.array([[0, 1, -1]]) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(losses.mae, argnums=1)(prediction, target), np.array([[0, -1, 1]]) / 3, rtol=1e-6
    )
    assert jax.grad(lambda x: jnp.abs(x))(0.0) == 1  # what the naive form would have
    assert (jax.hessian(losses.mae)(prediction, target) == 0).all()


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_infinite_and_nan_errors_are_shown(name):
    loss = getattr(losses, name)
    values = loss(jnp.array([[np.inf], [np.nan], [1.0]], jnp.float32), jnp.zeros((3, 1)), reduction="none")
    np.testing.assert_array_equal(values, [np.inf, np.nan, 1])

"""Activations against PyTorch and the equations as printed, over the whole range of float32, and at their kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxnet import activations
from jaxnet.errors import ShapeError


def halves(x):
    return np.split(x, 2, -1)


# name: (ours, the equation in float64)
TABLE = {
    "relu": (activations.relu, lambda x: np.where(x > 0, x, 0)),
    "leaky_relu": (lambda x: activations.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (lambda x: activations.elu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0)))),
    "gelu": (activations.gelu, lambda x: x * special.ndtr(x)),
    "gelu_tanh": (
        lambda x: activations.gelu(x, approximate=True),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "sigmoid": (activations.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "silu": (activations.silu, lambda x: x / (1 + np.exp(-x))),
    "softplus": (activations.softplus, lambda x: np.log1p(np.exp(x))),
    "glu": (activations.glu, lambda x: halves(x)[0] * special.expit(halves(x)[1])),
    "swiglu": (activations.swiglu, lambda x: halves(x)[0] * special.expit(halves(x)[0]) * halves(x)[1]),
    "tanh": (activations.tanh, lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1)),
    "softmax": (activations.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
}
MODERATE = np.random.default_rng(0).normal(scale=3, size=(6, 50))
EXTREME = np.array([s * 10.0**e for s in (-1, 1) for e in (-38, -20, -8, -1, 0, 1, 2, 3, 20, 38)], np.float32)


def gradient(f, x):
    return jax.grad(lambda v: jnp.sum(f(v)))(x)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_the_equation(name, dtype, x64):
    ours, equation = TABLE[name]
    x = MODERATE.astype(dtype)
    rtol, atol = (2e-6, 1e-6) if dtype == "float32" else (1e-12, 1e-14)
    y = ours(jnp.asarray(x))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, equation(x.astype(np.float64)), rtol, atol)


@pytest.mark.parametrize("name", TABLE)
def test_derivatives_are_central_differences(name, x64):
    ours, equation = TABLE[name]
    x = MODERATE[np.abs(MODERATE).min(-1) > 1e-3] if name != "softmax" else MODERATE
    weights = np.random.default_rng(1).normal(size=equation(x).shape)  # softmax's plain sum has derivative 0
    got = jax.grad(lambda v: jnp.sum(weights * ours(v)))(jnp.asarray(x))
    h, expected = 1e-6, np.empty_like(x)
    for i in range(x.shape[-1]):
        step = np.zeros(x.shape[-1])
        step[i] = h
        expected[:, i] = (weights * (equation(x + step) - equation(x - step))).sum(-1) / (2 * h)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in TABLE if n != "softmax"])
def test_extreme_inputs_stay_finite(name):
    ours, _ = TABLE[name]
    assert np.all(np.isfinite(ours(EXTREME)))
    assert np.all(np.isfinite(gradient(ours, jnp.asarray(EXTREME))))


@pytest.mark.parametrize("name", TABLE)
def test_nan_is_not_hidden(name):
    x = jnp.full((2, 2), jnp.nan)
    assert np.all(np.isnan(TABLE[name][0](x)))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("relu", 0, np.inf), ("leaky_relu", -np.inf, np.inf), ("elu", -0.7, np.inf), ("sigmoid", 0, 1), ("tanh", -1, 1)],
)
def test_limits(name, low, high):
    x = jnp.array([-jnp.inf, jnp.inf])
    np.testing.assert_allclose(TABLE[name][0](x), [low, high], rtol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TABLE)
def test_values_and_gradients_are_pytorchs(name, dtype, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    functional = torch.nn.functional
    theirs = {
        "relu": functional.relu,
        "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
        "elu": lambda x: functional.elu(x, 0.7),
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "softplus": lambda x: functional.softplus(x, threshold=40),  # beyond it PyTorch returns x
        "glu": functional.glu,
        "swiglu": lambda x: functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        "tanh": torch.tanh,
        "softmax": lambda x: functional.softmax(x, -1),
    }[name]
    ours = TABLE[name][0]
    x = np.concatenate([MODERATE, np.zeros((1, 50)), MODERATE[:1] * 100]).astype(dtype)
    weights = np.random.default_rng(1).normal(size=ours(x).shape).astype(dtype)
    t = torch.tensor(x, requires_grad=True)
    out = theirs(t)
    (out * torch.tensor(weights)).sum().backward()
    y, pull = jax.vjp(ours, jnp.asarray(x))
    rtol, atol = (1e-5, 5e-6) if dtype == "float32" else (1e-12, 1e-13)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol, atol)
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], t.grad.numpy(), rtol, atol)


def test_relu_derivative_at_0_is_0():
    assert gradient(activations.relu, jnp.array(0.0)) == 0


def test_leaky_relu_derivative_at_0_is_the_slope():
    assert gradient(lambda x: activations.leaky_relu(x, 0.25), jnp.array(0.0)) == 0.25


def test_elu_derivative_at_0_is_alpha():
    assert gradient(lambda x: activations.elu(x, 0.75), jnp.array(0.0)) == 0.75


def test_gelu_derivative_at_0_is_half():
    assert gradient(activations.gelu, jnp.array(0.0)) == 0.5


def test_literal_eq_4_14_and_4_15_would_give_nan_gradients():
    """Why the printed formulas are not what is computed."""
    x = jnp.array(200.0)
    assert np.isnan(gradient(lambda v: (jnp.exp(2 * v) - 1) / (jnp.exp(2 * v) + 1), x))
    assert np.isnan(gradient(lambda v: 1 / (1 + jnp.exp(-v)), -x))
    assert gradient(activations.tanh, x) == 0
    assert gradient(activations.sigmoid, -x) == 0


def test_what_cannot_be_halved_is_refused():
    for f in (activations.glu, activations.swiglu):
        with pytest.raises(ShapeError, match=rf"{f.__name__}: axis -1 must have an even size, .* got shape \(2, 3\)"):
            f(jnp.ones((2, 3)))
        for axis in (2, None, True, "channels"):
            with pytest.raises(ShapeError, match=r"axis must be one of the axes of x, which has shape \(2, 4\), got "):
                f(jnp.ones((2, 4)), axis=axis)
        np.testing.assert_array_equal(f(jnp.ones((2, 3)), axis=0), f(jnp.ones((3, 2))).T)


@pytest.mark.parametrize("name", TABLE)
def test_integers_are_refused(name):
    with pytest.raises(TypeError, match=r"must be floating point, got int32; convert with x.astype"):
        TABLE[name][0](jnp.arange(3))

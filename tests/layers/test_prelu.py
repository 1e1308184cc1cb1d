"""PReLU against PyTorch and eq. 4.13, and its derivatives at the kink."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers
from jaxnet.errors import ConfigError, ShapeError

X = np.random.default_rng(0).standard_normal((3, 5, 4))


def apply(slope, x, *, per_channel=False):
    return layers.prelu(per_channel=per_channel).apply({"slope": slope}, (), x, train=True)[0]


@pytest.mark.parametrize("per_channel", [False, True])
def test_eq_4_13(per_channel):
    slope = np.array([0.1, -0.5, 2.0, 0.0], np.float32) if per_channel else np.float32(0.3)
    x = X.astype(np.float32)
    expected = np.where(x > 0, x, np.float64(slope) * x)
    np.testing.assert_allclose(apply(jnp.asarray(slope), x, per_channel=per_channel), expected, rtol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_values_and_gradients_are_pytorchs(per_channel, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = X.astype(dtype)
    x[0, 0] = 0  # the kink too
    slope = np.array([0.1, -0.5, 2.0, 0.0] if per_channel else [0.3], dtype)
    cotangent = np.cos(np.arange(x.size)).reshape(x.shape).astype(dtype)
    tx, ts = (torch.tensor(a, requires_grad=True) for a in (x, slope))
    ty = torch.nn.functional.prelu(tx.transpose(1, 2), ts).transpose(1, 2)
    ty.backward(torch.tensor(cotangent))
    with jax.enable_x64(dtype == "float64"):
        ours = jnp.asarray(slope if per_channel else slope[0])
        y, pullback = jax.vjp(lambda a, x: apply(a, x, per_channel=per_channel), ours, jnp.asarray(x))
        d_slope, dx = pullback(jnp.asarray(cotangent))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=rtol)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=rtol)
    np.testing.assert_allclose(np.reshape(d_slope, -1), ts.grad.numpy(), rtol=rtol, atol=1e-6)


def test_prelu_derivative_at_0_is_the_slope():
    for slope in (0.25, -1.5):
        assert jax.grad(lambda x, a=slope: apply(jnp.float32(a), x))(0.0) == np.float32(slope)
    assert jax.grad(lambda a: apply(a, jnp.zeros(())))(0.25) == 0


@pytest.mark.parametrize("x", [1e38, -1e38, 2e-38, -2e-38, np.inf, -np.inf])
def test_extreme_inputs(x):
    """The gradient of the slope is x on the negative side and 0 on the positive, at infinity too."""
    slope = jnp.float32(0.25)
    x = jnp.float32(x)
    d_slope, dx = jax.grad(apply, (0, 1))(slope, x)
    np.testing.assert_allclose(apply(slope, x), x if x > 0 else 0.25 * x, atol=1e-38)
    assert dx == (1 if x > 0 else 0.25)
    np.testing.assert_allclose(d_slope, 0 if x > 0 else x)


def test_the_starting_slope_is_the_given_one():
    params, state = layers.prelu(0.125, per_channel=True).init(0, jnp.ones((2, 3, 4)))
    np.testing.assert_array_equal(params["slope"], np.full(4, 0.125))
    assert state == ()
    assert layers.prelu(0.125).init(0, jnp.ones((2, 3, 4)))[0]["slope"].shape == ()


def test_bad_slopes_are_refused():
    with pytest.raises(ConfigError, match="prelu: slope must be a finite number"):
        layers.prelu(float("nan"))
    with pytest.raises(ShapeError, match=r"prelu: the slope has shape \(3,\)"):
        apply(jnp.ones(3), X.astype(np.float32), per_channel=True)
    with pytest.raises(ShapeError, match="got a scalar"):
        layers.prelu(per_channel=True).init(0, jnp.ones(()))

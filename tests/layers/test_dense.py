"""The dense layer against eq. 4.2 written out, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bias", [True, False])
def test_eq_4_2_written_out(bias, x64):
    n_in, n_out = 5, 3
    layer = layers.dense(n_out, bias=bias)
    x = RNG.normal(size=(4, n_in))
    params = {"kernel": RNG.normal(size=(n_in, n_out))}
    if bias:
        params["bias"] = RNG.normal(size=n_out)
    expected = np.zeros((4, n_out))
    for b in range(4):
        for i in range(n_out):
            expected[b, i] = sum(params["kernel"][j, i] * x[b, j] for j in range(n_in)) + (
                params["bias"][i] if bias else 0
            )
    np.testing.assert_allclose(layer.apply(params, (), x, train=False)[0], expected, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7)])
def test_values_and_gradients_are_pytorchs(shape, dtype, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is in the peers extra")
    x = RNG.normal(size=shape).astype(dtype)
    params = {"kernel": jnp.asarray(RNG.normal(size=(7, 4)).astype(dtype)), "bias": jnp.arange(4, dtype=dtype)}
    weights = RNG.normal(size=(*shape[:-1], 4)).astype(dtype)
    t = torch.tensor(x, requires_grad=True)
    w, b = (torch.tensor(np.asarray(params[name].T), requires_grad=True) for name in ("kernel", "bias"))
    expected = torch.nn.functional.linear(t, w, b)
    (expected * torch.tensor(weights)).sum().backward()
    y, pull = jax.vjp(lambda p, x: layers.dense(4).apply(p, (), x, train=True)[0], params, jnp.asarray(x))
    by_params, by_x = pull(jnp.asarray(weights))
    rtol, atol = (1e-4, 1e-5) if dtype == "float32" else (1e-11, 1e-12)
    np.testing.assert_allclose(y, expected.detach(), rtol, atol)
    np.testing.assert_allclose(by_x, t.grad, rtol, atol)
    np.testing.assert_allclose(by_params["kernel"], w.grad.T, rtol, atol)
    np.testing.assert_allclose(by_params["bias"], b.grad, rtol, atol)

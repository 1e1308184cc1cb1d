"""The dense layer against the literal sum of eq. 4.2 and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import initializers, layers
from jaxnet.errors import ShapeError

RNG = np.random.default_rng(0)


def test_eq_4_2_as_a_literal_sum():
    x, kernel, bias = RNG.standard_normal((2, 3)), RNG.standard_normal((3, 4)), RNG.standard_normal(4)
    expected = np.zeros((2, 4))
    for b in range(2):
        for i in range(4):
            expected[b, i] = sum(kernel[j, i] * x[b, j] for j in range(3)) + bias[i]
    with jax.enable_x64(True):
        y, state = layers.dense(4).apply({"kernel": kernel, "bias": bias}, (), x, train=True)
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    assert state == ()


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 2, 5)])
def test_values_and_gradients_are_pytorchs(shape, bias, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x, kernel = RNG.standard_normal(shape).astype(dtype), RNG.standard_normal((5, 3)).astype(dtype)
    cotangent, b = RNG.standard_normal((*shape[:-1], 3)).astype(dtype), RNG.standard_normal(3).astype(dtype)
    tx, tk, tb = (torch.tensor(a, requires_grad=True) for a in (x, kernel, b))
    ty = torch.nn.functional.linear(tx, tk.T, tb if bias else None)
    ty.backward(torch.tensor(cotangent))
    with jax.enable_x64(dtype == "float64"):
        params = {"kernel": jnp.asarray(kernel)} | ({"bias": jnp.asarray(b)} if bias else {})
        layer = layers.dense(3, bias=bias)
        y, pullback = jax.vjp(lambda p, x: layer.apply(p, (), x, train=False)[0], params, jnp.asarray(x))
        d_params, dx = pullback(jnp.asarray(cotangent))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(y, ty.detach().numpy(), **tolerance)
    np.testing.assert_allclose(dx, tx.grad.numpy(), **tolerance)
    np.testing.assert_allclose(d_params["kernel"], tk.grad.numpy(), **tolerance)
    if bias:
        np.testing.assert_allclose(d_params["bias"], tb.grad.numpy(), **tolerance)


def test_initializers_see_their_shapes_and_different_keys():
    seen = []

    def spy(key, shape, dtype):
        seen.append((jax.random.key_data(key).tolist(), shape, dtype))
        return jnp.ones(shape, dtype)

    layers.dense(3, kernel_init=spy, bias_init=spy).init(0, jnp.ones((2, 5)))
    (kernel_key, kernel_shape, _), (bias_key, bias_shape, _) = seen
    assert (kernel_shape, bias_shape) == ((5, 3), (3,))
    assert kernel_key != bias_key


def test_the_default_starts_at_bias_0_and_keeps_the_variance():
    x = jnp.asarray(RNG.standard_normal((200, 300)), jnp.float32)
    layer = layers.dense(400)
    params, state = layer.init(0, x)
    np.testing.assert_array_equal(params["bias"], np.zeros(400))
    assert abs(float(jnp.var(layer.apply(params, state, x, train=False)[0])) - 1) < 0.05


def test_an_empty_batch_has_no_outputs():
    layer = layers.dense(3)
    params, state = layer.init(0, jnp.ones((1, 5)))
    assert layer.apply(params, state, jnp.ones((0, 5)), train=False)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)}, r"the kernel \(5, 4\) is another layer's; .* 3 units"),
        ({"kernel": jnp.ones((5,)), "bias": jnp.ones(3)}, r"the kernel must have 2 axes .*, got shape \(5,\)"),
        ({"kernel": jnp.ones((5, 3)), "bias": jnp.ones(1)}, r"the bias must have shape \(3,\), got \(1,\)"),
        ({"kernel": jnp.ones((5, 3)), "bias": jnp.ones((3, 1))}, r"the bias must have shape \(3,\), got \(3, 1\)"),
    ],
)
def test_params_of_another_layer_are_never_broadcast(params, message):
    with pytest.raises(ShapeError, match=message):
        layers.dense(3).apply(params, (), jnp.ones((2, 5)), train=False)


def test_an_initializer_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"asked for shape \(5, 3\), got \(3, 5\)"):
        layers.dense(3, kernel_init=lambda key, shape, dtype: jnp.ones(shape[::-1], dtype)).init(0, jnp.ones((2, 5)))
    assert initializers.ones(None, (2,)).shape == (2,)

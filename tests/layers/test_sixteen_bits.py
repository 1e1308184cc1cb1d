"""Layers in 16 bits: gradients that are sums over many values are summed in float32, and rounded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers
from jaxnet.errors import DTypeError

SHAPE = (3, 40, 40, 4)
LAYERS = {
    "dense": lambda: layers.dense(4),
    "conv": lambda: layers.conv(4, (1, 1)),
    "conv_transpose": lambda: layers.conv_transpose(4, (1, 1)),
    "prelu": layers.prelu,
    "prelu, per channel": lambda: layers.prelu(per_channel=True),
    "batch_norm": layers.batch_norm,
    "layer_norm": layers.layer_norm,
    "rms_norm": lambda: layers.rms_norm(epsilon=1e-5),
    "instance_norm": layers.instance_norm,
}


def right(name, x, cotangent):
    """The gradients of all but the kernel, as literal sums in float64."""
    x, cotangent = np.float64(x), np.float64(cotangent)
    axes = tuple(range(x.ndim - 1))
    if "prelu" in name:
        return {"slope": (cotangent * np.minimum(x, 0)).sum(axes if "channel" in name else None)}
    if name == "rms_norm":
        return {"scale": (cotangent * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)).sum(axes)}
    if "norm" in name:
        over = {"batch_norm": axes, "layer_norm": -1, "instance_norm": axes[1:]}[name]
        normalized = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + 1e-5)
        return {"scale": (cotangent * normalized).sum(axes), "offset": cotangent.sum(axes)}
    return {"bias": cotangent.sum(axes)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_what_is_added_or_multiplied_everywhere(name, dtype):
    """In reverse mode, of a vmap over examples, by transposing forward mode, and under a policy."""
    rng = np.random.default_rng(0)
    layer = LAYERS[name]()
    x, cotangent = (np.asarray(rng.normal(mean, 0.5, SHAPE), dtype) for mean in (-0.5, 1.0))
    params, state = layer.init(0, x)
    policy = layers.mixed_precision(layer, compute=dtype, output=dtype)

    def plain(params, layer=layer):
        return layer.apply(params, state, x, train=True)[0]

    def by_example(params):
        return jax.vmap(lambda example: layer.apply(params, state, example[None], train=True)[0][0])(x)

    @jax.jit
    def gradients(params):
        wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        c = jnp.asarray(cotangent)
        found = {
            "reverse": jax.vjp(plain, params)[1](c)[0],
            "forward": jax.linear_transpose(lambda t: jax.jvp(plain, (params,), (t,))[1], params)(c)[0],
            "policy": jax.vjp(lambda p: plain(p, policy), wide)[1](c)[0],
        }
        if name != "batch_norm":  # an example alone has other statistics
            found["vmap"] = jax.vjp(by_example, params)[1](c)[0]
        return found

    for how, got in gradients(params).items():
        for leaf, expected in right(name, x, cotangent).items():
            assert got[leaf].dtype == ("float32" if how == "policy" else dtype)
            atol = 1e-5 * np.prod(SHAPE) ** 0.5  # where the terms cancel
            rtol = float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.float64(got[leaf]), expected, rtol, atol, err_msg=f"{how}, {leaf}")


def test_a_bias_gradient_of_12544_ones():
    net = layers.mixed_precision(layers.conv(32, (3, 3), padding=1))
    x = jnp.ones((4, 56, 56, 8))
    params, state = net.init(0, x)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, state, x, train=True)[0])))(params)
    np.testing.assert_array_equal(gradient["bias"], np.full(32, 12544.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_layers_are_what_they_were(dtype):
    """The bits of y = x @ kernel + bias, and of its gradient's plain sum."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        x, kernel, bias, cotangent = (
            jnp.asarray(rng.normal(size=shape), dtype) for shape in ((5, 7, 3), (3, 4), (4,), (5, 7, 4))
        )
        dense = jax.jit(lambda b: layers.dense(4).apply({"kernel": kernel, "bias": b}, (), x, train=True)[0])
        plain = jax.jit(lambda b: jnp.matmul(x, kernel) + b.reshape(1, 1, 4))
        np.testing.assert_array_equal(dense(bias), plain(bias))
        np.testing.assert_array_equal(*(jax.vjp(f, bias)[1](cotangent)[0] for f in (dense, plain)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_output_has_the_bits_of_16_bit_arithmetic(dtype):
    rng = np.random.default_rng(0)
    x, kernel, bias = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((5, 3), (3, 4), (4,)))
    y = layers.dense(4).apply({"kernel": kernel, "bias": bias}, (), x, train=True)[0]
    np.testing.assert_array_equal(y, jnp.matmul(x, kernel) + bias.reshape(1, 4))


def test_a_bias_of_another_dtype_is_refused():
    x = jnp.ones((2, 3), jnp.bfloat16)
    params, state = layers.dense(4).init(0, x)
    params["bias"] = params["bias"].astype(jnp.float32)
    with pytest.raises(DTypeError, match=r"^dense: dtypes differ: .* bias float32; .* layers.mixed_precision"):
        layers.dense(4).apply(params, state, x, train=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_means_of_thousands_of_ones_are_one(dtype):
    x = jnp.ones((1, 9000, 2), dtype)
    assert layers.global_avg_pool().apply((), (), x, train=True)[0].tolist() == [[1, 1]]
    np.testing.assert_allclose(np.float64(jnp.sum(activations.softmax(x, 1), 1, dtype=jnp.float32)), 1, rtol=2e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.1, 0.37, 0.9])
def test_dropout_keeps_the_mean(dtype, rate):
    """x / (1 - rate) rounded once: 1 - 0.37 has an error of its own in 16 bits."""
    x = jnp.asarray(np.random.default_rng(0).normal(5, 2, 20000), dtype)
    y = layers.dropout(rate).apply((), (), x, train=True, key=jax.random.key(0))[0]
    kept = np.asarray(y) != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(y)[kept], np.float64(x)[kept] / (1 - rate), rtol=0.51 * eps)

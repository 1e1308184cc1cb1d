"""Initializers: measured variances, fans that know strides and groups, and signals that survive depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, initializers, layers
from jaxnet.errors import ConfigError, ShapeError

KEY = jax.random.key(3)
SHAPE = (5, 60, 80)  # taps, in, out
FAN_IN, FAN_OUT = 5 * 60, 5 * 80
VARIANCE = {
    "lecun_normal": (initializers.lecun_normal(), 1 / FAN_IN),
    "lecun_uniform": (initializers.lecun_uniform(), 1 / FAN_IN),
    "glorot_normal": (initializers.glorot_normal(), 2 / (FAN_IN + FAN_OUT)),
    "glorot_uniform": (initializers.glorot_uniform(), 2 / (FAN_IN + FAN_OUT)),
    "he_normal": (initializers.he_normal(), 2 / FAN_IN),
    "he_uniform": (initializers.he_uniform(), 2 / FAN_IN),
    "he_normal, slope": (initializers.he_normal(0.5), 2 / (1.25 * FAN_IN)),
    "normal": (initializers.normal(0.02), 0.02**2),
    "uniform": (initializers.uniform(0.3), 0.3**2 / 3),
}


@pytest.mark.parametrize("name", VARIANCE)
def test_mean_and_variance(name):
    initializer, variance = VARIANCE[name]
    values = np.asarray(initializer(KEY, SHAPE, jnp.float32), np.float64)
    n = values.size
    assert abs(values.mean()) < 5 * np.sqrt(variance / n)
    np.testing.assert_allclose(values.var(), variance, rtol=5 * np.sqrt(3 / n))
    if "uniform" in name:
        assert np.abs(values).max() <= np.sqrt(3 * variance) * (1 + 1e-6)
    else:
        assert np.abs(values).max() > 3.5 * np.sqrt(variance)  # a normal's tails are not cut off


@pytest.mark.parametrize("name", [n for n in VARIANCE if n not in ("normal", "uniform") and "slope" not in n])
def test_variance_is_that_of_jaxs_initializer(name):
    theirs = getattr(jax.nn.initializers, name)()(KEY, SHAPE, jnp.float32)
    np.testing.assert_allclose(np.var(theirs), VARIANCE[name][1], rtol=0.05)


def test_constants():
    np.testing.assert_array_equal(initializers.zeros(None, (3,), jnp.float32), np.zeros(3))
    np.testing.assert_array_equal(initializers.ones(None, (3,), jnp.float32), np.ones(3))
    np.testing.assert_array_equal(initializers.constant(0.3)(None, (3,), jnp.float32), np.full(3, np.float32(0.3)))


def kernel_variance(layer, x_shape):
    params, _ = layer.init(KEY, jax.ShapeDtypeStruct(x_shape, jnp.float32))
    return float(np.var(params["kernel"]))


IN, OUT = initializers.VarianceScaling(1.0, "fan_in", "normal"), initializers.VarianceScaling(1.0, "fan_out", "normal")


@pytest.mark.parametrize(
    ("layer", "channels", "variance"),
    [
        pytest.param(layers.dense(200, kernel_init=IN), 100, 1 / 100, id="dense in"),
        pytest.param(layers.dense(200, kernel_init=OUT), 100, 1 / 200, id="dense out"),
        pytest.param(layers.conv(80, 5, groups=4, kernel_init=IN), 60, 4 / (60 * 5), id="grouped in"),
        pytest.param(layers.conv(80, 5, groups=4, kernel_init=OUT), 60, 4 / (80 * 5), id="grouped out"),
        pytest.param(layers.conv(80, 6, strides=3, kernel_init=OUT), 60, 3 / (80 * 6), id="strided out"),
        pytest.param(layers.conv_transpose(80, 16, strides=8, kernel_init=IN), 60, 8 / (60 * 16), id="transposed in"),
        pytest.param(layers.conv_transpose(80, 16, strides=8, kernel_init=OUT), 60, 1 / (80 * 16), id="transposed out"),
        pytest.param(
            layers.conv_transpose(80, 8, strides=4, groups=2, kernel_init=IN),
            60,
            8 / (60 * 8),
            id="both",
        ),
    ],
)
def test_layers_tell_the_true_fans(layer, channels, variance):
    shape = (1, 32, channels) if layer.name != "dense" else (1, channels)
    np.testing.assert_allclose(kernel_variance(layer, shape), variance, rtol=0.06)


def upsampling_stack(kernel_init):
    def up(filters):
        return layers.conv_transpose(filters, 16, strides=8, padding="same", kernel_init=kernel_init)

    return layers.chain(up(64), up(64), up(32))


def output_variance(net, x, interior=slice(None)):
    params, state = net.init(KEY, x)
    y, _ = jax.jit(net.apply, static_argnames="train")(params, state, x, train=False)
    return float(np.var(np.asarray(y)[:, interior]))


def test_a_stack_of_transposed_convolutions_keeps_the_variance():
    """With fans from the shape alone it loses a factor of the strides each layer."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 64))
    middle = slice(2048, -2048)
    assert 0.4 < output_variance(upsampling_stack(initializers.lecun_normal()), x, middle) < 2.5
    assert output_variance(upsampling_stack(jax.nn.initializers.lecun_normal()), x, middle) < 3 / 8**3


def test_a_deep_relu_stack_keeps_its_signal_with_he_and_loses_it_with_lecun():
    x = jax.random.normal(jax.random.key(1), (64, 256))

    def second_moment(kernel_init):
        net = layers.repeat(layers.chain(layers.dense(256, kernel_init=kernel_init), activations.relu), 30)
        params, state = net.init(KEY, x)
        return float(np.mean(np.square(net.apply(params, state, x, train=False)[0])))

    assert 0.1 < second_moment(initializers.he_normal()) < 10
    assert second_moment(initializers.lecun_normal()) < 2.0**-25


def test_fan_out_keeps_the_gradient_of_a_strided_convolution():
    """Each input reaches C_out K / S outputs on average, so that is the fan of the backward signal."""
    x = jax.random.normal(jax.random.key(1), (4, 512, 32))
    layer = layers.conv(64, 8, strides=4, kernel_init=OUT)
    params, state = layer.init(KEY, x)
    y, pull = jax.vjp(lambda v: layer.apply(params, state, v, train=False)[0], x)
    (back,) = pull(jax.random.normal(jax.random.key(2), y.shape))
    np.testing.assert_allclose(np.var(np.asarray(back)[:, 16:-16]), 1.0, rtol=0.15)


@pytest.mark.parametrize("layer", [layers.dense, lambda n, **k: layers.conv(n, 3, **k)], ids=["dense", "conv"])
def test_initializers_of_jax_fit_every_layer(layer):
    x = jnp.ones((1, 8, 6))
    params, _ = layer(4, kernel_init=jax.nn.initializers.he_normal(), bias_init=jax.nn.initializers.ones).init(KEY, x)
    np.testing.assert_array_equal(params["bias"], np.ones(4))
    assert np.std(params["kernel"]) > 0


def test_dtype_follows_the_example(x64):
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        params, _ = layers.dense(3).init(KEY, jnp.ones((1, 2), dtype))
        assert params["kernel"].dtype == params["bias"].dtype == dtype


DRAWS = {
    **{name: initializer for name, (initializer, _) in VARIANCE.items()},
    "jax normal": jax.nn.initializers.normal(0.02),
    "jax he_normal": jax.nn.initializers.he_normal(),
    "jax glorot_uniform": jax.nn.initializers.glorot_uniform(),
    "jax truncated_normal": jax.nn.initializers.truncated_normal(0.5),
    "jax orthogonal": jax.nn.initializers.orthogonal(),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", DRAWS)
def test_16_bits_are_a_rounded_float32_draw(name, dtype):
    for layer, x in (
        (layers.dense(48, kernel_init=DRAWS[name]), (1, 64)),
        (layers.conv(8, 3, kernel_init=DRAWS[name]), (1, 9, 4)),
    ):
        narrow, wide = (layer.init(KEY, jnp.ones(x, d))[0]["kernel"] for d in (dtype, "float32"))
        assert narrow.dtype == dtype
        np.testing.assert_array_equal(narrow, wide.astype(dtype))
    if not name.startswith("jax"):
        np.testing.assert_array_equal(DRAWS[name](KEY, SHAPE, dtype), DRAWS[name](KEY, SHAPE, "float32").astype(dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_bias_of_16_bits_is_a_rounded_float32_draw(dtype):
    layer = layers.conv_transpose(2048, 1, bias_init=initializers.uniform(0.1))
    narrow, wide = (layer.init(KEY, jnp.ones((1, 4, 2), d))[0]["bias"] for d in (dtype, "float32"))
    np.testing.assert_array_equal(narrow, wide.astype(dtype))


def test_a_bfloat16_kernel_has_a_normal_draw_s_mean_range_and_variety():
    kernel = np.float64(layers.dense(512).init(0, jnp.ones((1, 4096), jnp.bfloat16))[0]["kernel"]) * 64
    assert abs(kernel.mean()) < 5 / np.sqrt(kernel.size)
    assert kernel.min() < -4.5
    assert kernel.max() > 4.5
    assert len(np.unique(kernel)) > 2000


def test_complex_numbers_stay_complex():
    values = initializers.normal(0.5)(KEY, (2000,), jnp.complex64)
    assert values.dtype == jnp.complex64
    np.testing.assert_allclose(np.var(values), 0.25, rtol=0.1)


def test_bad_arguments():
    with pytest.raises(ConfigError, match="stddev must be a finite number"):
        initializers.normal(-1)
    with pytest.raises(ShapeError, match="use zeros, ones, constant"):
        initializers.he_normal()(KEY, (4,), jnp.float32)
    with pytest.raises(ShapeError, match=r"asked for shape \(2, 3\), got \(3, 2\)"):
        layers.dense(3, kernel_init=lambda key, shape, dtype: jnp.ones(shape[::-1], dtype)).init(KEY, jnp.ones((1, 2)))


def test_leaves_are_drawn_anew_by_their_paths():
    params, _ = layers.chain(layers.dense(3), layers.dense(2)).init(0, jnp.ones((1, 4), jnp.bfloat16))
    drawn = initializers.reinitialize(params, ["*kernel", "!1/*"], initializers.he_normal(), 7)
    key = jax.random.fold_in(jax.random.key(7), 1)  # of the second leaf
    wide = initializers.he_normal()(key, (4, 3), jnp.float32)
    np.testing.assert_array_equal(drawn[0]["kernel"], wide.astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, (drawn[0]["bias"], drawn[1]), (params[0]["bias"], params[1]))
    theirs = initializers.reinitialize(params, "*bias", jax.nn.initializers.normal(1.0), 7)
    assert (theirs[1]["bias"] != 0).all()
    with pytest.raises(ShapeError, match=r"needs a shape .* got \(3,\)"):
        initializers.reinitialize(params, "*bias", initializers.he_normal(), 7)
    with pytest.raises(ConfigError, match=r"reinitialize: the pattern '2/\*' fits no leaf"):
        initializers.reinitialize(params, "2/*", initializers.zeros, 7)
    with pytest.raises(ConfigError, match=r"reinitialize: the function chooses no leaf"):
        initializers.reinitialize(params, lambda path, leaf: False, initializers.zeros, 7)

"""The convolutional layers: their hyperparameters reach the kernel, and their parameters PyTorch's modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from jaxnet import kernels, layers
from jaxnet.errors import ShapeError
from tests import oracles
from tests.compiled import apply
from tests.strategies import AWKWARD, convolutions

MAKE = {"conv": layers.conv, "conv_transpose": layers.conv_transpose}
ORACLE = {"conv": oracles.conv, "conv_transpose": oracles.conv_transpose}


def is_the_literal_sum_plus_bias(name, case):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape) for shape in (case.x_shape, case.kernel_shape))
    bias = rng.standard_normal(case.filters)
    with jax.enable_x64(True):
        layer = MAKE[name](case.filters, case.kernel_size, **case.keywords)
        y, state = jax.jit(layer.apply, static_argnames="train")({"kernel": kernel, "bias": bias}, (), x, train=False)
    np.testing.assert_allclose(y, ORACLE[name](x, kernel, **case.oracle_keywords) + bias, rtol=1e-11, atol=1e-11)
    assert state == ()


@settings(max_examples=6)
@example(AWKWARD[0])
@given(convolutions())
def test_conv_is_the_literal_sum_plus_bias(case):
    is_the_literal_sum_plus_bias("conv", case)


@settings(max_examples=6)
@example(AWKWARD[2])
@given(convolutions(stuffed=True))
def test_conv_transpose_is_the_literal_sum_plus_bias(case):
    is_the_literal_sum_plus_bias("conv_transpose", case)


@pytest.mark.peers
@pytest.mark.parametrize("transposed", [False, True])
def test_a_stack_with_pytorchs_weights_is_pytorchs(transposed):
    """Two layers deep, 2-D, with groups: what a converted checkpoint does."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    torch.manual_seed(0)
    module = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    theirs = torch.nn.Sequential(
        module(4, 6, (3, 2), stride=(2, 1), groups=2), torch.nn.LeakyReLU(0.1), module(6, 2, 2, bias=False)
    )
    x = np.random.default_rng(1).standard_normal((2, 7, 5, 4)).astype("float32")
    expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())).detach().numpy()

    def kernel(weight, groups=1):
        weight = weight.detach().numpy()
        if transposed:
            return kernels.conv_transpose_kernel_from_torch(weight, groups=groups)
        return kernels.conv_kernel_from_torch(weight)

    make = layers.conv_transpose if transposed else layers.conv
    first, second = ({"padding": ((2, 2), (1, 1))}, {"padding": 1}) if transposed else ({}, {})
    net = layers.chain(
        make(6, (3, 2), strides=(2, 1), groups=2, **first),
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        make(2, (2, 2), bias=False, **second),
    )
    bias = theirs[0].bias.detach().numpy()
    params = ({"kernel": kernel(theirs[0].weight, 2), "bias": bias}, (), {"kernel": kernel(theirs[2].weight)})
    y, _ = apply(net, params, ((), (), ()), x, train=False)
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_depthwise_convolution_keeps_channels_apart(name):
    layer = MAKE[name](6, 3, groups=3, padding=2)
    x = np.ones((1, 5, 3), np.float32)
    params, state = layer.init(0, x)
    assert params["kernel"].shape == (3, 1, 6)
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(params, state, x, train=False)[0]))(x)
    by_channel = (np.asarray(jacobian) != 0).any((0, 1, 3, 4))  # (filters, channels)
    np.testing.assert_array_equal(by_channel, np.repeat(np.eye(3, dtype=bool), 2, axis=0))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kernel": jnp.ones((3, 2, 5)), "bias": jnp.ones(5)}, r"the kernel \(3, 2, 5\) is another layer's"),
        ({"kernel": jnp.ones((4, 2, 4)), "bias": jnp.ones(4)}, r"the kernel \(4, 2, 4\) is another layer's"),
        ({"kernel": jnp.ones((3, 3, 4)), "bias": jnp.ones(4)}, r"2 channels, the kernel was made for 3"),
        ({"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones(1)}, r"the bias must have shape \(4,\), got \(1,\)"),
        ({"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones(())}, r"the bias must have shape \(4,\), got \(\)"),
    ],
)
def test_params_of_another_layer_are_never_broadcast(name, params, message):
    with pytest.raises(ShapeError, match=rf"^{name}: .*{message}"):
        MAKE[name](4, 3, padding=2).apply(params, (), jnp.ones((1, 6, 2)), train=False)


@pytest.mark.parametrize("name", MAKE)
def test_an_empty_batch_has_no_outputs(name):
    layer = MAKE[name](4, 3, padding=2)
    params, state = layer.init(0, np.ones((1, 6, 2), np.float32))
    assert apply(layer, params, state, np.ones((0, 6, 2), np.float32), train=False)[0].shape == (0, 8, 4)


def test_lists_are_taken_where_tuples_are():
    layer = layers.conv(2, [3, 2], strides=[1, 2], padding=[(1, 0), (0, 1)], dilation=[2, 1])
    shape = jax.eval_shape(
        lambda x: layer.apply(layer.init(0, x)[0], (), x, train=False)[0], jax.ShapeDtypeStruct((1, 8, 7, 3), "float32")
    ).shape
    assert shape == (1, 5, 4, 2)

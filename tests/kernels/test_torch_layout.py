"""PyTorch's own modules, their weights converted, compute what ours compute."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import kernels, sizes
from jaxnet.errors import ConfigError, ShapeError


def test_conv_kernel_axes_by_index():
    weight = np.arange(4 * 3 * 5).reshape(4, 3, 5)
    kernel = kernels.conv_kernel_from_torch(weight)
    assert kernel.shape == (5, 3, 4)
    assert all(kernel[k, c, o] == weight[o, c, k] for o in range(4) for c in range(3) for k in range(5))


def test_conv_transpose_kernel_axes_by_index():
    groups, inputs, outputs, taps = 2, 3, 4, 5  # inputs and outputs of each group
    weight = np.arange(groups * inputs * outputs * taps).reshape(groups * inputs, outputs, taps)
    kernel = np.asarray(kernels.conv_transpose_kernel_from_torch(weight, groups=groups))
    assert kernel.shape == (taps, inputs, groups * outputs)
    for k, c, o, g in np.ndindex(taps, inputs, outputs, groups):
        assert kernel[k, c, g * outputs + o] == weight[g * inputs + c, o, taps - 1 - k]


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_there_and_back_again(groups, inputs, outputs, taps):
    """Every element in its old place: the two directions are each other's inverse, with groups and several axes."""
    kernel = np.arange(math.prod(taps) * inputs * groups * outputs).reshape(*taps, inputs, groups * outputs)
    weight = kernels.conv_kernel_to_torch(kernel)
    assert weight.shape == (groups * outputs, inputs, *taps)
    np.testing.assert_array_equal(kernels.conv_kernel_from_torch(weight), kernel)
    weight = kernels.conv_transpose_kernel_to_torch(kernel, groups=groups)
    assert weight.shape == (groups * inputs, outputs, *taps)
    np.testing.assert_array_equal(kernels.conv_transpose_kernel_from_torch(weight, groups=groups), kernel)


@pytest.mark.peers
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_pytorch_convolution_converts(ndim):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    size, strides, dilation, padding = (4, 3, 2)[:ndim], (3, 1, 2)[:ndim], (2, 1, 1)[:ndim], (2, 1, 1)[:ndim]
    module = getattr(torch.nn, f"Conv{ndim}d")(
        4, 6, size, stride=strides, padding=padding, dilation=dilation, groups=2, bias=False
    )
    x = np.random.default_rng(0).standard_normal((2, *(9, 5, 4)[:ndim], 4)).astype("float32")
    expected = module(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
    y = kernels.conv(
        x,
        kernels.conv_kernel_from_torch(module.weight.detach().numpy()),
        strides=strides,
        padding=[(p, p) for p in padding],
        dilation=dilation,
        groups=2,
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, rtol=1e-5, atol=1e-5)


@st.composite
def transposed(draw):
    """What PyTorch takes: padding up to d (K - 1), output padding below the stride or the dilation."""
    groups, size = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    strides, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return {
        "length": draw(st.integers(2, 6)),
        "inputs": groups * draw(st.integers(1, 3)),
        "outputs": groups * draw(st.integers(1, 3)),
        "size": size,
        "strides": strides,
        "dilation": dilation,
        "padding": draw(st.integers(0, min(dilation * (size - 1), 2))),
        "output_padding": draw(st.integers(0, max(strides, dilation) - 1)),
        "groups": groups,
    }


@pytest.mark.peers
@settings(max_examples=15)
@given(transposed())
def test_a_pytorch_transposed_convolution_converts(case):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    torch.manual_seed(0)
    module = torch.nn.ConvTranspose1d(
        case["inputs"],
        case["outputs"],
        case["size"],
        stride=case["strides"],
        padding=case["padding"],
        output_padding=case["output_padding"],
        dilation=case["dilation"],
        groups=case["groups"],
        bias=False,
    )
    x = np.random.default_rng(0).standard_normal((1, case["length"], case["inputs"])).astype("float32")
    with torch.no_grad():
        try:
            expected = module(torch.tensor(x).transpose(1, 2)).transpose(1, 2).numpy()
        except RuntimeError:  # an empty output
            expected = None
    padding = sizes.torch_padding(
        case["size"], case["padding"], dilation=case["dilation"], output_padding=case["output_padding"]
    )
    convert = jax.jit(lambda w: kernels.conv_transpose_kernel_from_torch(w, groups=case["groups"]))
    kernel = convert(module.weight.detach().numpy())
    keywords = {"strides": case["strides"], "dilation": case["dilation"], "padding": padding, "groups": case["groups"]}
    if expected is None:
        with pytest.raises(ShapeError, match="longer than the padded, stuffed input"):
            kernels.conv_transpose(x, kernel, **keywords)
    else:
        y = kernels.conv_transpose(x, kernel, **keywords)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_pytorch_transposed_convolution_converts_in_several_dimensions(ndim):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    size, strides, dilation, padding = (3, 2, 2)[:ndim], (2, 1, 3)[:ndim], (1, 2, 1)[:ndim], (1, 0, 1)[:ndim]
    module = getattr(torch.nn, f"ConvTranspose{ndim}d")(
        4, 6, size, stride=strides, padding=padding, dilation=dilation, groups=2, bias=False
    )
    x = np.random.default_rng(0).standard_normal((1, *(3, 4, 2)[:ndim], 4)).astype("float32")
    expected = module(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
    y = kernels.conv_transpose(
        x,
        kernels.conv_transpose_kernel_from_torch(module.weight.detach().numpy(), groups=2),
        strides=strides,
        dilation=dilation,
        padding=[sizes.torch_padding(k, p, dilation=d) for k, p, d in zip(size, padding, dilation, strict=True)],
        groups=2,
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, rtol=1e-5, atol=1e-5)


def test_torch_padding_that_crops_is_refused_with_the_way_around():
    with pytest.raises(ConfigError, match=r"exceeds d \(K - 1\) = 2.*crop 3 outputs at each end"):
        sizes.torch_padding(3, 5)


def test_conversions_are_differentiable_and_compile():
    weight = jnp.ones((4, 3, 5))
    dw = jax.jit(jax.grad(lambda w: kernels.conv_transpose_kernel_from_torch(w, groups=2).sum()))(weight)
    np.testing.assert_array_equal(dw, np.ones((4, 3, 5)))
    assert math.prod(jax.eval_shape(kernels.conv_kernel_from_torch, weight).shape) == 60


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ShapeError, match="groups=4 must divide the 6 input channels"):
        kernels.conv_transpose_kernel_from_torch(np.zeros((6, 2, 3), np.float32), groups=4)
    with pytest.raises(ShapeError, match="conv_transpose_kernel_to_torch: groups=4 must divide the 6 filters"):
        kernels.conv_transpose_kernel_to_torch(np.zeros((3, 2, 6), np.float32), groups=4)


def test_a_matrix_is_no_kernel():
    with pytest.raises(ShapeError, match=r"conv_kernel_to_torch: kernel must have the axes \(\*K, C_in / g, C_out\)"):
        kernels.conv_kernel_to_torch(np.zeros((3, 2), np.float32))

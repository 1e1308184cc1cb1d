"""Sizes against the figures of the chapter, brute force, and the arrays themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import kernels, sizes
from jaxnet.errors import ConfigError, ShapeError

PADDING = st.one_of(st.integers(0, 9), st.tuples(st.integers(0, 9), st.integers(0, 9)))
RULES = st.sampled_from(["valid", "same", "causal"])
SMALL = st.integers(1, 6)


def test_figure_4_2_dense_parameters():
    assert sizes.dense_parameters(6, 5) == 35
    assert sizes.dense_parameters(6, 5, bias=False) == 30


def test_figure_4_3_convolution_length():
    assert sizes.conv_length(10, 3) == 8


def test_figure_4_5_transposed_convolution_length():
    assert sizes.conv_transpose_length(4, 3, strides=2, padding=2) == 9


def stops(length, kernel_size, strides, before, after, dilation):
    """Brute force: how many positions the dilated kernel can take."""
    places = range(0, length + before + after, strides)
    return sum(place + dilation * (kernel_size - 1) < length + before + after for place in places)


@given(st.integers(1, 40), SMALL, SMALL, PADDING, SMALL)
def test_conv_length_counts_the_stops_of_the_kernel(length, kernel_size, strides, padding, dilation):
    before, after = (padding, padding) if isinstance(padding, int) else padding
    expected = stops(length, kernel_size, strides, before, after, dilation)
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    if expected:
        assert sizes.conv_length(length, kernel_size, **options) == expected
    else:
        with pytest.raises(ShapeError, match=r"d \(K - 1\) \+ 1"):
            sizes.conv_length(length, kernel_size, **options)


@given(st.integers(1, 40), SMALL, SMALL, PADDING, SMALL)
def test_transposed_length_counts_the_stops_on_the_stuffed_input(length, kernel_size, strides, padding, dilation):
    before, after = (padding, padding) if isinstance(padding, int) else padding
    expected = stops(len(range(strides * (length - 1) + 1)), kernel_size, 1, before, after, dilation)
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    if expected:
        assert sizes.conv_transpose_length(length, kernel_size, **options) == expected
    else:
        with pytest.raises(ShapeError, match="stuffed"):
            sizes.conv_transpose_length(length, kernel_size, **options)


@given(st.integers(1, 60), SMALL, SMALL, SMALL)
def test_same_padding(length, kernel_size, strides, dilation):
    options = {"strides": strides, "padding": "same", "dilation": dilation}
    assert sizes.conv_length(length, kernel_size, **options) == -(-length // strides)
    assert sizes.conv_transpose_length(length, kernel_size, **options) == length * strides


@given(st.integers(1, 60), SMALL, SMALL, SMALL)
def test_causal_padding(length, kernel_size, strides, dilation):
    options = {"strides": strides, "padding": "causal", "dilation": dilation}
    assert sizes.conv_length(length, kernel_size, **options) == -(-length // strides)
    assert sizes.conv_transpose_length(length, kernel_size, **options) == length * strides


@given(st.integers(1, 30), SMALL, st.one_of(st.none(), SMALL), st.integers(0, 4))
def test_pool_length(length, window, strides, padding):
    expected = stops(length, window, strides or window, padding, padding, 1)
    if expected:
        assert sizes.pool_length(length, window, strides=strides, padding=padding) == expected
    else:
        with pytest.raises(ShapeError):
            sizes.pool_length(length, window, strides=strides, padding=padding)


@given(st.integers(6, 20), SMALL, SMALL, st.one_of(RULES, PADDING), SMALL)
def test_lengths_are_those_of_the_arrays(length, kernel_size, strides, padding, dilation):
    x = jax.ShapeDtypeStruct((1, length, 2), jnp.float32)
    w = jax.ShapeDtypeStruct((kernel_size, 2, 3), jnp.float32)
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    for function, size in ((kernels.conv, sizes.conv_length), (kernels.conv_transpose, sizes.conv_transpose_length)):
        try:
            expected = size(length, kernel_size, **options)
        except ShapeError:
            with pytest.raises(ShapeError):
                jax.eval_shape(lambda x, w, f=function: f(x, w, **options), x, w)
        else:
            y = jax.eval_shape(lambda x, w, f=function: f(x, w, **options), x, w)
            assert y.shape == (1, expected, 3)


@given(st.lists(st.tuples(SMALL, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4))
def test_receptive_field_is_what_one_output_depends_on(stages):
    field = sizes.receptive_field(stages)
    positions = {0}
    for kernel_size, strides, dilation in reversed(stages):
        positions = {strides * j + dilation * k for j in positions for k in range(kernel_size)}
    assert field == max(positions) - min(positions) + 1


@pytest.mark.parametrize(("kernel_size", "padding", "dilation", "output_padding"), [(16, 4, 1, 0), (4, 1, 3, 1)])
def test_torch_padding_gives_pytorchs_length(kernel_size, padding, dilation, output_padding):
    strides, length = 8, 32
    ours = sizes.torch_padding(kernel_size, padding, dilation=dilation, output_padding=output_padding)
    theirs = (length - 1) * strides - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1
    options = {"strides": strides, "padding": ours, "dilation": dilation}
    assert sizes.conv_transpose_length(length, kernel_size, **options) == theirs


def test_torch_padding_that_crops_is_refused():
    with pytest.raises(ConfigError, match="crop 2 outputs at each end"):
        sizes.torch_padding(3, padding=4)


F = jnp.float32
MULTIPLY_ADDS = {
    "dot": (lambda x, w: x @ w, ((8, 64), (64, 10)), 8 * 64 * 10),
    "conv": (lambda x, w: kernels.conv(x, w, strides=2), ((2, 20, 4), (5, 4, 6)), 2 * 8 * 5 * 4 * 6),
    "grouped": (lambda x, w: kernels.conv(x, w, groups=2), ((2, 20, 4), (5, 2, 6)), 2 * 16 * 5 * 2 * 6),
    "transposed": (
        lambda x, w: kernels.conv_transpose(x, w, strides=4, padding="same"),
        ((2, 20, 4), (8, 4, 6)),
        2 * 20 * 8 * 4 * 6,
    ),
    "2-D": (lambda x, w: kernels.conv(x, w), ((1, 9, 8, 3), (3, 2, 3, 5)), 7 * 7 * 5 * 3 * 6),
    "scan": (lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=7)[0], ((3, 5), (5, 5)), 7 * 3 * 5 * 5),
    "jit": (jax.jit(lambda x, w: x @ w), ((3, 5), (5, 2)), 3 * 5 * 2),
    "elementwise": (lambda x, w: x + w, ((3, 5), (3, 5)), 0),
}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds(name):
    function, shapes, expected = MULTIPLY_ADDS[name]
    assert sizes.multiply_adds(function, *(jax.ShapeDtypeStruct(shape, F) for shape in shapes)) == expected


def test_multiply_adds_of_a_convolution_are_the_formula():
    x, w = jax.ShapeDtypeStruct((1, 50, 6), F), jax.ShapeDtypeStruct((7, 3, 8), F)
    counted = sizes.multiply_adds(lambda x, w: kernels.conv(x, w, strides=3, groups=2), x, w)
    assert counted == sizes.conv_multiply_adds(sizes.conv_length(50, 7, strides=3), 6, 8, 7, groups=2)


def test_conv_parameters_counts_the_arrays():
    assert sizes.conv_parameters(6, 8, (3, 5), groups=2) == np.zeros((3, 5, 3, 8)).size + 8

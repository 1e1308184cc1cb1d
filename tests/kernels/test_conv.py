"""Convolution and transposed convolution against literal sums, PyTorch and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxnet import kernels, sizes
from tests import oracles
from tests.strategies import AWKWARD, convolutions

TOLERANCE = {"float32": {"rtol": 3e-5, "atol": 3e-5}, "float64": {"rtol": 1e-11, "atol": 1e-11}}
FUNCTIONS = {
    "conv": (kernels.conv, oracles.conv),
    "conv_transpose": (kernels.conv_transpose, oracles.conv_transpose),
}
BOTH = pytest.mark.parametrize("name", FUNCTIONS)


def draw_arrays(*shapes, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def values_and_gradients(name, case):
    """A compiled function from (x, kernel, cotangent) to (y, dx, dkernel)."""

    @jax.jit
    def run(x, kernel, cotangent):
        y, pullback = jax.vjp(lambda x, w: FUNCTIONS[name][0](x, w, **case.keywords), x, kernel)
        return y, *pullback(cotangent)

    return run


def output_shape(name, case, dtype="float32"):
    x, kernel = jax.ShapeDtypeStruct(case.x_shape, dtype), jax.ShapeDtypeStruct(case.kernel_shape, dtype)
    return jax.eval_shape(lambda x, w: FUNCTIONS[name][0](x, w, **case.keywords), x, kernel).shape


def against_the_literal_sum(name, case):
    with jax.enable_x64(True):
        x, kernel, x_step, kernel_step = draw_arrays(*(case.x_shape, case.kernel_shape) * 2)
        oracle, keywords = FUNCTIONS[name][1], case.oracle_keywords
        expected = oracle(x, kernel, **keywords)
        (cotangent,) = draw_arrays(expected.shape, seed=1)
        y, dx, dkernel = values_and_gradients(name, case)(x, kernel, cotangent)
        np.testing.assert_allclose(y, expected, **TOLERANCE["float64"])
        # The sum is linear in x but for P_v, and linear in the kernel: its pullbacks are the sums' adjoints.
        moved = oracle(x_step, kernel, **(keywords | {"padding_value": 0.0}))
        np.testing.assert_allclose(np.vdot(dx, x_step), np.vdot(cotangent, moved), rtol=1e-9, atol=1e-9)
        turned = oracle(x, kernel_step, **keywords)
        np.testing.assert_allclose(np.vdot(dkernel, kernel_step), np.vdot(cotangent, turned), rtol=1e-9, atol=1e-9)


@example(AWKWARD[0])
@example(AWKWARD[1])
@example(AWKWARD[2])
@example(AWKWARD[3])
@settings(max_examples=8)
@given(convolutions())
def test_conv_is_the_literal_sum(case):
    against_the_literal_sum("conv", case)


@example(AWKWARD[0])
@example(AWKWARD[1])
@example(AWKWARD[2])
@example(AWKWARD[3])
@settings(max_examples=8)
@given(convolutions(stuffed=True))
def test_conv_transpose_is_the_literal_sum(case):
    against_the_literal_sum("conv_transpose", case)


ND = {
    "2-D": ((2, 5, 7, 4), (2, 3, 2, 6), (2, 3), ((1, 2), (0, 3)), (3, 1), 2),
    "2-D beyond": ((1, 3, 2, 2), (2, 2, 2, 2), (1, 2), ((4, 0), (2, 5)), (2, 2), 1),
    "3-D": ((1, 4, 3, 5, 2), (2, 1, 2, 1, 4), (2, 1, 3), ((1, 0), (0, 1), (2, 1)), (2, 1, 3), 2),
}


@BOTH
@pytest.mark.parametrize("shape", ND)
@pytest.mark.parametrize("padding_value", [0.0, 0.25])
@pytest.mark.usefixtures("x64")
def test_several_dimensions_are_the_literal_sum(name, shape, padding_value):
    x_shape, kernel_shape, strides, padding, dilation, groups = ND[shape]
    x, kernel = draw_arrays(x_shape, kernel_shape)
    keywords = {
        "strides": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_value": padding_value,
    }
    function, oracle = FUNCTIONS[name]
    y = jax.jit(lambda x, w: function(x, w, **keywords))(x, kernel)
    np.testing.assert_allclose(y, oracle(x, kernel, **keywords), **TOLERANCE["float64"])


@pytest.mark.peers
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=5)
@example(AWKWARD[0])
@example(AWKWARD[1])
@given(convolutions())
def test_conv_is_pytorchs(dtype, case):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    with jax.enable_x64(dtype == "float64"):
        x, kernel, cotangent = draw_arrays(
            case.x_shape, case.kernel_shape, output_shape("conv", case, dtype), dtype=dtype
        )
        got = values_and_gradients("conv", case)(x, kernel, cotangent)
    tx, tk = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    padded = torch.nn.functional.pad(tx.transpose(1, 2), case.padding, value=case.padding_value)
    ty = torch.nn.functional.conv1d(
        padded, tk.permute(2, 1, 0), stride=case.strides, dilation=case.dilation, groups=case.groups
    ).transpose(1, 2)
    ty.backward(torch.tensor(cotangent))
    for ours, theirs in zip(got, (ty.detach(), tx.grad, tk.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **TOLERANCE[dtype])


@pytest.mark.peers
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=5)
@example(AWKWARD[1])
@example(AWKWARD[1]._replace(groups=1, padding=(0, 2)))
@given(convolutions(stuffed=True))
def test_conv_transpose_is_pytorchs(dtype, case):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    case = case._replace(padding_value=0.0)
    with jax.enable_x64(dtype == "float64"):
        x, kernel, cotangent = draw_arrays(
            case.x_shape, case.kernel_shape, output_shape("conv_transpose", case, dtype), dtype=dtype
        )
        got = values_and_gradients("conv_transpose", case)(x, kernel, cotangent)
    tx, tk = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    # PyTorch scatters: (C_in, C_out / g, K), taps reversed. Without padding its output is ours for P = d (K - 1);
    # less padding crops it, more adds zeros.
    grouped = tk.flip(0).reshape(case.kernel_size, -1, case.groups, case.filters // case.groups)
    weight = grouped.permute(2, 1, 3, 0).reshape(case.channels, -1, case.kernel_size).contiguous()
    full = torch.nn.functional.conv_transpose1d(
        tx.transpose(1, 2), weight, stride=case.strides, dilation=case.dilation, groups=case.groups
    )
    ty = torch.nn.functional.pad(full, [p - case.reach for p in case.padding]).transpose(1, 2)
    ty.backward(torch.tensor(cotangent))
    for ours, theirs in zip(got, (ty.detach(), tx.grad, tk.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **TOLERANCE[dtype])


def adjoint_kernel(kernel, groups):
    """Taps reversed, and in each group inputs and outputs swapped."""
    taps, channels_per_group, filters = kernel.shape
    grouped = kernel[::-1].reshape(taps, channels_per_group, groups, filters // groups)
    return grouped.transpose(0, 3, 2, 1).reshape(taps, filters // groups, groups * channels_per_group)


@settings(max_examples=6)
@example(AWKWARD[0]._replace(padding=(2, 5)))
@given(convolutions(beyond=0))
def test_conv_transpose_is_the_adjoint_of_conv(case):
    """With P' = d (K - 1) - P and the kernel reversed; inputs that the stride never reached come back as padding."""
    case = case._replace(padding_value=0.0)
    with jax.enable_x64(True):
        x, kernel = draw_arrays(case.x_shape, case.kernel_shape)
        (cotangent,) = draw_arrays(output_shape("conv", case, "float64"), seed=1)
        _, dx, _ = values_and_gradients("conv", case)(x, kernel, cotangent)
        before, after = (case.reach - p for p in case.padding)
        unreached = (case.length + sum(case.padding) - case.reach - 1) % case.strides
        keywords = case.keywords | {"padding": (before, after + unreached)}
        y = jax.jit(lambda x, w: kernels.conv_transpose(x, w, **keywords))(
            cotangent, adjoint_kernel(kernel, case.groups)
        )
        np.testing.assert_allclose(y, dx, **TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("kernel_size", "strides", "dilation"), [(4, 2, 1), (5, 3, 2), (2, 4, 1), (3, 1, 3), (16, 8, 1)]
)
@pytest.mark.usefixtures("x64")
def test_same_conv_transpose_is_the_adjoint_of_same_conv(kernel_size, strides, dilation):
    length, groups = 4, 2
    keywords = {"strides": strides, "dilation": dilation, "padding": "same", "groups": groups}
    long, kernel, short = draw_arrays((1, strides * length, 4), (kernel_size, 2, 6), (1, length, 6))

    @jax.jit
    def both(long, kernel, short):
        y, pullback = jax.vjp(lambda x: kernels.conv(x, kernel, **keywords), long)
        assert y.shape == short.shape
        return kernels.conv_transpose(short, adjoint_kernel(kernel, groups), **keywords), pullback(short)[0]

    np.testing.assert_allclose(*both(long, kernel, short), **TOLERANCE["float64"])


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["same", "valid", "causal"]),
)
def test_padding_rules_of_conv(length, kernel_size, strides, dilation, rule):
    """ "same" is the least padding with ceil(D / S) outputs, "causal" all of d (K - 1) before, "valid" none."""
    reach = dilation * (kernel_size - 1)
    if rule == "valid":
        length += reach
    explicit = {
        "same": oracles.same_padding(length, kernel_size, strides, dilation),
        "valid": (0, 0),
        "causal": (reach, 0),
    }[rule]
    x, kernel = draw_arrays((1, length, 2), (kernel_size, 2, 3), dtype="float32")

    def program(padding):
        return jax.make_jaxpr(lambda x, w: kernels.conv(x, w, strides=strides, dilation=dilation, padding=padding))(
            x, kernel
        )

    assert str(program(rule)) == str(program(explicit))  # which gives the literal sum, as is tested above
    (y,) = program(rule).out_avals
    assert y.shape == (1, (length + sum(explicit) - reach - 1) // strides + 1, 3)
    if rule != "valid":
        assert y.shape[1] == -(-length // strides)


@BOTH
@pytest.mark.parametrize(("kernel_size", "strides", "dilation"), [(3, 1, 1), (4, 2, 3), (2, 3, 2), (5, 4, 1)])
def test_causal_outputs_see_no_future(name, kernel_size, strides, dilation):
    length = 8
    kernel = np.ones((kernel_size, 1, 1), np.float32)

    def f(x):
        y = FUNCTIONS[name][0](x.reshape(1, -1, 1), kernel, strides=strides, dilation=dilation, padding="causal")
        return y.reshape(-1)

    seen = np.asarray(jax.jit(jax.jacobian(f))(np.ones(length, np.float32))) != 0
    outputs, inputs = np.indices(seen.shape)
    if name == "conv":
        assert seen.shape[0] == -(-length // strides)
        assert not seen[inputs > strides * outputs].any()
        assert seen[inputs == strides * outputs].all()  # the present is seen
    else:
        assert seen.shape[0] == strides * length
        assert not seen[inputs * strides > outputs].any()
        assert seen[inputs * strides == outputs].all()


@pytest.mark.parametrize(
    ("kernel_size", "strides", "dilation"), [(3, 1, 1), (4, 2, 3), (2, 3, 2), (1, 4, 1), (16, 8, 1)]
)
@pytest.mark.parametrize("rule", ["same", "causal"])
def test_upsampling_rules_multiply_the_length(kernel_size, strides, dilation, rule):
    case = {"strides": strides, "dilation": dilation, "padding": rule}
    assert sizes.conv_transpose_length(5, kernel_size, **case) == 5 * strides
    shape = jax.eval_shape(
        lambda x, w: kernels.conv_transpose(x, w, **case),
        jax.ShapeDtypeStruct((1, 5, 1), jnp.float32),
        jax.ShapeDtypeStruct((kernel_size, 1, 1), jnp.float32),
    ).shape
    assert shape == (1, 5 * strides, 1)


def test_stuffed_zeros_stay_zero_and_only_the_border_is_filled():
    x, kernel = np.zeros((1, 3, 1), np.float32), np.ones((1, 1, 1), np.float32)
    y = kernels.conv_transpose(x, kernel, strides=2, padding=(1, 2), padding_value=7.0)
    np.testing.assert_array_equal(y[0, :, 0], [7, 0, 0, 0, 0, 0, 7, 7])


def test_kernels_are_not_flipped():
    x = np.array([0.0, 0.0, 1.0, 0.0, 0.0], np.float32).reshape(1, 5, 1)
    kernel = np.array([1.0, 2.0, 3.0], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(kernels.conv(x, kernel, padding=1)[0, :, 0], [0, 3, 2, 1, 0])
    np.testing.assert_array_equal(kernels.conv_transpose(x, kernel, padding=1)[0, :, 0], [0, 3, 2, 1, 0])


@BOTH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_accepted_and_kept(name, dtype):
    case = AWKWARD[0]
    x, kernel = draw_arrays(case.x_shape, case.kernel_shape, dtype=jnp.dtype(dtype))
    y = jax.jit(lambda x, w: FUNCTIONS[name][0](x, w, **case.keywords))(x, kernel)
    assert y.dtype == dtype
    wide = [np.asarray(a, np.float64) for a in (x, kernel)]
    expected = FUNCTIONS[name][1](*wide, **case.oracle_keywords)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=3e-2, atol=6e-2)


@BOTH
def test_compiled_equals_eager(name):
    case = AWKWARD[2]
    x, kernel = draw_arrays(case.x_shape, case.kernel_shape, dtype="float32")
    function = FUNCTIONS[name][0]
    eager = function(x, kernel, **case.keywords)
    compiled = jax.jit(lambda x, w: function(x, w, **case.keywords))(x, kernel)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6, atol=1e-6)

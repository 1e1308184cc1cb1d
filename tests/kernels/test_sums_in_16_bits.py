"""Sums of 16-bit numbers, in every form and on every platform: added in at least 32 bits, and rounded once."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import kernels
from jaxnet.kernels import forms, lowering, pooling_forms
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.pooling_forms import Stops
from jaxnet.kernels.slots import OPERANDS
from tests import oracles

DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
POOLS = {"plain": pooling_forms.plain, "separable": pooling_forms.separable}


def geometry(length, size, stride=1, padding=0, groups=1, dilation=1):
    outputs = (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    return Geometry((length,), (size,), (outputs,), (stride,), (dilation,), (padding,), groups)


# Members, channels and filters of a group: sums over 1,500 to 4,096 terms in at least one of the three slots.
LONG = {
    "one tap of many channels": (1, 2048, 3, geometry(2, 1)),
    "many taps": (1, 1, 1, geometry(4000, 1900)),
    "many positions, dilated groups": (1, 8, 8, geometry(2048, 3, padding=2, groups=2, dilation=2)),
    "many positions, strided groups": (1, 4, 4, geometry(8192, 9, stride=4, padding=4, groups=4)),
    "many positions, depthwise": (1, 1, 1, geometry(3000, 3, padding=1, groups=3)),
    "members of many positions": (2, 4, 4, geometry(2048, 9, padding=4)),
    "members of many channels": (2, 512, 3, geometry(4, 3, padding=1)),
}


def ones(name, dtype):
    members, channels, filters, numbers = LONG[name]
    return {
        "x": np.ones((members, 1, *numbers.lengths, channels * numbers.groups), dtype),
        "w": np.ones((members, *numbers.size, channels, filters * numbers.groups), dtype),
        "y": np.ones((members, 1, *numbers.outputs, filters * numbers.groups), dtype),
    }


def solved(solvers, numbers, arrays):
    """What each solver gives for each slot, in one program."""

    @jax.jit
    def run(arrays):
        return {
            (slot, name): solver(slot, *(arrays[operand] for operand in OPERANDS[slot]), numbers)
            for slot in OPERANDS
            for name, solver in solvers.items()
        }

    return run(arrays)


@cache
def counts(name):
    """In float64, of every slot."""
    with jax.enable_x64(True):
        found = solved({"plain": forms.plain}, LONG[name][-1], ones(name, np.float64))
    return {slot: np.asarray(value) for (slot, _), value in found.items()}


@DTYPES
@pytest.mark.parametrize("case", LONG)
def test_every_platforms_form_of_every_slot(case, dtype):
    """Of ones: each sum is a count, below 2^24 exact in float32 and rounded once."""
    solvers = {"vendor": lowering.vendor.solve, "gpu": lowering.gpu.solve, "cpu": lowering.cpu.solve}
    for (slot, name), value in solved(solvers, LONG[case][-1], ones(case, jnp.dtype(dtype))).items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, counts(case)[slot].astype(value.dtype), err_msg=f"{slot} {name}")


@DTYPES
@pytest.mark.parametrize("form", POOLS)
def test_a_mean_of_512_ones_is_1(form, dtype):
    stops = (Stops(1, 512, 512, (0, 0)),)
    y = jax.jit(lambda x: POOLS[form]("avg", x, stops))(np.ones((1, 512, 1), jnp.dtype(dtype)))
    np.testing.assert_array_equal(y, np.ones((1, 1, 1)))


@DTYPES
@pytest.mark.parametrize("form", POOLS)
@pytest.mark.parametrize("size", [(1500, 1, (0, 0)), (1500, 700, (3, 9)), (700, 1, (0, 0))])
def test_means_and_their_gradients(form, size, dtype):
    stops = Stops(1, *size)
    (before, after), starts = stops.padding, range(0, 3000 + sum(stops.padding) - stops.size + 1, stops.stride)
    x = np.random.default_rng(0).uniform(0.5, 1.0, (1, 3000, 1)).astype(jnp.dtype(dtype))

    @jax.jit
    def run(x):
        y, pullback = jax.vjp(lambda x: POOLS[form]("avg", x, (stops,)), x)
        return y, pullback(jnp.ones_like(y))[0]

    padded = np.pad(np.asarray(x, np.float64)[0, :, 0], (before, after))
    reached = np.zeros(padded.shape)
    for start in starts:
        reached[start : start + stops.size] += 1 / stops.size
    exact = [padded[start : start + stops.size].mean() for start in starts], reached[before : before + 3000]
    for value, right in zip(run(x), exact, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.asarray(value, np.float64)[0, :, 0], right, rtol=0.6 * jnp.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize("form", POOLS)
def test_the_gradient_of_a_maximum_that_many_windows_share(form, dtype):
    """300 x 2 windows have their maximum at one place: in 16 bits their ones would stop at 256 (bfloat16)."""
    stops = (Stops(1, 300, 1, (299, 299)), Stops(2, 3, 1, (1, 1)))
    x = np.zeros((1, 300, 2, 1), jnp.dtype(dtype))
    x[0, 150, 1, 0] = 1
    dx = jax.jit(jax.grad(lambda x: POOLS[form]("max", x, stops).astype("float32").sum()))(x)
    assert np.asarray(dx)[0, 150, 1, 0] == np.asarray(600, x.dtype)


@DTYPES
def test_a_transposed_convolutions_border_is_rounded_with_the_rest(dtype):
    x, kernel = (np.random.default_rng(i).standard_normal(s).astype(jnp.dtype(dtype)) for i, s in enumerate(SHAPES))
    keywords = {"strides": 2, "padding": 4, "padding_value": 0.7}
    got = jax.jit(lambda x, kernel: kernels.conv_transpose(x, kernel, **keywords))(x, kernel)
    exact = oracles.conv_transpose(x, kernel, strides=(2,), padding=((4, 4),), dilation=(1,), padding_value=0.7)
    assert got.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=0.6 * eps, atol=1e-5)


SHAPES = ((2, 9, 16), (5, 16, 4))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_no_platforms_program_adds_up_16_bit_numbers(kind, platform):
    """What a reduction combines with is, in a platform's program, never an addition of two 16-bit scalars."""
    pool = {"avg": kernels.avg_pool, "max": kernels.max_pool}[kind]
    x = jax.ShapeDtypeStruct((2, 12, 9, 3), jnp.bfloat16)
    f = partial(pool, window=(4, 3), strides=(2, 1), padding=1)
    for g in (f, jax.grad(lambda x: f(x).astype("float32").sum())):
        program = jax.jit(g).trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert not re.findall(r"stablehlo\.add .*: tensor<bf16>|applies stablehlo\.add .*tensor<bf16>", program)
        assert "bf16" in program

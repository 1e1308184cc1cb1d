"""Average and maximum pooling against literal sums and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from jaxnet import kernels, sizes
from tests import oracles
from tests.differences import assert_derivatives
from tests.strategies import Pool, poolings

KINDS = {"avg": kernels.avg_pool, "max": kernels.max_pool}
BOTH = pytest.mark.parametrize("kind", KINDS)
TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-13}}


def draw(*shape, dtype="float64"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def pool(kind, case):
    return jax.jit(lambda x: KINDS[kind](x, case.window, strides=case.strides, padding=case.padding))


def literal_pool(kind, x, case):
    return oracles.pool(x, (case.window,), strides=(case.strides,), padding=(case.padding,), kind=kind)


@example(Pool(9, 4, 3, (3, 1)))  # a remainder, unequal padding, an even window
@example(Pool(5, 2, 5, (1, 0)))  # strides beyond the window
@settings(max_examples=12)
@given(poolings())
def test_avg_pool_is_the_literal_sum(case):
    with jax.enable_x64(True):
        x = draw(2, case.length, 3)
        np.testing.assert_allclose(pool("avg", case)(x), literal_pool("avg", x, case), **TOLERANCE["float64"])


@example(Pool(9, 4, 3, (3, 1)))
@settings(max_examples=12)
@given(poolings(below_window=True))
def test_max_pool_is_the_literal_maximum(case):
    with jax.enable_x64(True):
        x = draw(2, case.length, 3) - 5  # all negative: a border of zeros would win
        np.testing.assert_array_equal(pool("max", case)(x), literal_pool("max", x, case))


@BOTH
@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((2, 5, 7, 2), (2, 3), (2, 2), ((1, 0), (0, 2))),
        ((1, 4, 3, 5, 2), (3, 1, 2), (1, 2, 3), ((2, 0), (0, 0), (1, 1))),
    ],
    ids=["2-D", "3-D"],
)
@pytest.mark.usefixtures("x64")
def test_several_dimensions(kind, shape, window, strides, padding):
    x = draw(*shape)
    y = jax.jit(lambda x: KINDS[kind](x, window, strides=strides, padding=padding))(x)
    expected = oracles.pool(x, window, strides=strides, padding=padding, kind=kind)
    np.testing.assert_allclose(y, expected, **TOLERANCE["float64"])


@pytest.mark.peers
@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=8)
@example(Pool(10, 4, 3, (2, 2)))
@given(poolings())
def test_pooling_is_pytorchs(kind, dtype, case):
    """PyTorch pads both sides alike, by half a window at most."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    both = min(case.padding[0], case.window // 2)
    case = Pool(max(case.length, case.window), case.window, case.strides, (both, both))
    with jax.enable_x64(dtype == "float64"):
        x = draw(2, case.length, 3, dtype=dtype)
        shape = jax.eval_shape(pool(kind, case), x).shape
        cotangent = np.cos(np.arange(np.prod(shape))).reshape(shape).astype(dtype)

        @jax.jit
        def run(x, cotangent):
            y, pullback = jax.vjp(pool(kind, case), x)
            return y, *pullback(cotangent)

        y, dx = run(x, cotangent)
    tx = torch.tensor(x, requires_grad=True)
    function = {"avg": torch.nn.functional.avg_pool1d, "max": torch.nn.functional.max_pool1d}[kind]
    ty = function(tx.transpose(1, 2), case.window, stride=case.strides, padding=both).transpose(1, 2)
    ty.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(y, ty.detach().numpy(), **TOLERANCE[dtype])
    np.testing.assert_allclose(dx, tx.grad.numpy(), **TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("rule", ["same", "valid", "causal"])
@pytest.mark.parametrize(("length", "window", "strides"), [(7, 3, 2), (8, 4, 4), (5, 2, 3)])
def test_padding_rules(kind, rule, length, window, strides):
    explicit = {
        "same": oracles.same_padding(length, window, strides, 1),
        "valid": (0, 0),
        "causal": (window - 1, 0),
    }[rule]
    programs = [
        jax.make_jaxpr(pool(kind, Pool(length, window, strides, padding)))(draw(1, length, 2, dtype="float32"))
        for padding in (rule, explicit)
    ]
    assert str(programs[0]) == str(programs[1])  # the latter's is the literal sum, as is tested above
    (y,) = programs[0].out_avals
    assert y.shape[1] == (length + sum(explicit) - window) // strides + 1
    assert y.shape[1] == sizes.pool_length(length, window, strides=strides, padding=rule)


@BOTH
def test_strides_default_to_the_window(kind):
    x = draw(1, 11, 2, dtype="float32")
    expected = literal_pool(kind, x, Pool(11, 3, 3, (0, 0)))
    np.testing.assert_allclose(KINDS[kind](x, 3), expected, **TOLERANCE["float32"])


@BOTH
@pytest.mark.parametrize("case", [Pool(7, 3, 2, (1, 2)), Pool(5, 2, 3, (0, 1))])
@pytest.mark.usefixtures("x64")
def test_first_and_second_derivatives(kind, case):
    """Of max_pool's square, whose second derivative is not 0."""
    assert_derivatives(lambda x: pool(kind, case)(x) ** 2, draw(1, case.length, 2))


@BOTH
@pytest.mark.usefixtures("x64")
def test_second_derivative_in_two_dimensions(kind):
    x, step = draw(1, 4, 5, 2), np.cos(np.arange(40.0)).reshape(1, 4, 5, 2)

    def f(x):
        return jnp.sum(KINDS[kind](x, (2, 3), strides=(2, 1), padding=((0, 1), (1, 1))) ** 3)

    @jax.jit
    def products(x):
        near = [jax.grad(f)(x + h * step) for h in (1e-5, -1e-5)]
        return (near[0] - near[1]) / 2e-5, [
            jax.jvp(jax.grad(f), (x,), (step,))[1],
            jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), step))(x),
            jax.grad(lambda x: jax.jvp(f, (x,), (step,))[1])(x),
        ]

    expected, found = products(x)
    for product in found:
        np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6)


def test_a_tied_maximum_passes_its_gradient_to_the_first():
    x = np.zeros((1, 6, 1), np.float32)
    dx = jax.jit(jax.grad(lambda x: kernels.max_pool(x, 3).sum()))(x)
    np.testing.assert_array_equal(np.asarray(dx)[0, :, 0], [1, 0, 0, 1, 0, 0])


def test_padding_counts_in_the_average_and_never_in_the_maximum():
    x = np.full((1, 2, 1), -4, np.float32)
    average, maximum = jax.jit(lambda x: [pool(x, 2, padding=1) for pool in KINDS.values()])(x)
    np.testing.assert_array_equal(np.asarray(average)[0, :, 0], [-2, -2])
    np.testing.assert_array_equal(np.asarray(maximum)[0, :, 0], [-4, -4])


@BOTH
def test_vmap(kind):
    x = draw(3, 2, 7, 2, dtype="float32")
    case = Pool(7, 3, 2, (1, 1))
    y = jax.jit(jax.vmap(pool(kind, case)))(x)
    np.testing.assert_allclose(y, np.stack([literal_pool(kind, row, case) for row in x]), **TOLERANCE["float32"])


@BOTH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_accepted_and_kept(kind, dtype):
    x = draw(2, 9, 3, dtype=jnp.dtype(dtype))
    case = Pool(9, 4, 3, (1, 2))
    y = pool(kind, case)(x)
    assert y.dtype == dtype
    expected = literal_pool(kind, np.asarray(x, np.float64), case)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("extreme", [np.inf, -np.inf])
def test_max_pool_of_infinities(extreme):
    x = np.array([extreme, 1.0, extreme, extreme], np.float32).reshape(1, 4, 1)
    y = np.asarray(pool("max", Pool(4, 2, 2, (0, 0)))(x))
    np.testing.assert_array_equal(y[0, :, 0], [max(extreme, 1.0), extreme])

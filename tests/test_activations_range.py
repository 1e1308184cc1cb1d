"""Every activation over the whole range of every dtype: value, first and second derivative, against mpmath."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxnet import activations, layers

pytestmark = pytest.mark.usefixtures("full_compilation")
# The emitters that users have; the old ones, which the suite takes (see the root conftest.py), have another tanh.
USERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else None
SLOPE, ALPHA = 0.2, 0.7
DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}  # computed in


def sigmoid_derivatives(x):
    s, rest = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    return s, s * rest, -s * rest * mpmath.tanh(x / 2)


def silu_derivatives(x):
    s, ds, _ = sigmoid_derivatives(x)
    return x * s, s + x * ds, ds * (2 - x * mpmath.tanh(x / 2))


def softplus_derivatives(x):
    s, ds, _ = sigmoid_derivatives(x)
    return max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x))), s, ds


def gelu_derivatives(x):
    x = max(x, mpmath.mpf(-1000))
    share = mpmath.erfc(-x / mpmath.sqrt(2)) / 2 if x < 1000 else 1
    density = mpmath.npdf(x)
    return x * share, share + x * density, density * (2 - x * x)


def gelu_tanh_derivatives(x):
    root = mpmath.sqrt(8 / mpmath.pi)
    a = mpmath.mpf("0.044715")
    v, dv, ddv = root * (x + a * x**3), root * (1 + 3 * a * x * x), root * 6 * a * x
    s, ds, dds = sigmoid_derivatives(v)
    return x * s, s + x * ds * dv, 2 * ds * dv + x * (dds * dv * dv + ds * ddv)


def tanh_derivatives(x):
    t, square = mpmath.tanh(x), mpmath.sech(x) ** 2
    return t, square, -2 * t * square


def elu_derivatives(x):
    alpha = mpmath.mpf(ALPHA)
    return (x, 1, 0) if x > 0 else (alpha * mpmath.expm1(x), *2 * [alpha * mpmath.exp(x)])


def rectified(slope):
    return lambda x: (x, 1, 0) if x > 0 else (mpmath.mpf(slope) * x, mpmath.mpf(slope), 0)


def prelu(x):
    return layers.prelu().apply({"slope": jnp.asarray(-0.75, x.dtype)}, (), x, train=True)[0]


# name: (ours, value and two derivatives of the equation, the limits of value and derivative at -inf and inf)
TABLE = {
    "relu": (activations.relu, rectified(0), ((0, 0), (np.inf, 1))),
    "leaky_relu": (lambda x: activations.leaky_relu(x, SLOPE), rectified(SLOPE), ((-np.inf, SLOPE), (np.inf, 1))),
    "leaky_relu of slope 0": (lambda x: activations.leaky_relu(x, 0.0), rectified(0), ((0, 0), (np.inf, 1))),
    "prelu": (prelu, rectified(-0.75), ((np.inf, -0.75), (np.inf, 1))),
    "elu": (lambda x: activations.elu(x, ALPHA), elu_derivatives, ((-ALPHA, 0), (np.inf, 1))),
    "gelu": (activations.gelu, gelu_derivatives, ((0, 0), (np.inf, 1))),
    "gelu_tanh": (
        lambda x: activations.gelu(x, approximate=True), gelu_tanh_derivatives, ((0, 0), (np.inf, 1)),
    ),
    "sigmoid": (activations.sigmoid, sigmoid_derivatives, ((0, 0), (1, 0))),
    "silu": (activations.silu, silu_derivatives, ((0, 0), (np.inf, 1))),
    "softplus": (activations.softplus, softplus_derivatives, ((0, 0), (np.inf, 1))),
    "tanh": (activations.tanh, tanh_derivatives, ((-1, 0), (1, 0))),
}  # fmt: skip


@functools.cache
def inputs(dtype):
    """Moderate values, tails, roots of derivatives and all orders of magnitude, of both signs; then the infinities."""
    limits = jnp.finfo(dtype)
    exponents = np.arange(limits.minexp + 1, limits.maxexp - 1)[:: max(1, limits.maxexp // 24)]
    positive = np.concatenate(
        [
            np.linspace(0.03, 7, 24),
            np.linspace(8, 120, 24),
            [0.7518, 1.4142],
            1.37 * 2.0**exponents,
            [float(limits.max)],
        ]
    )
    return np.asarray(np.concatenate([-positive, positive, [-np.inf, np.inf]]), dtype)


@functools.cache
def measured(dtype):
    """Of each activation the value, the derivative by reverse mode, and the second by forward over reverse."""

    def measure(x):
        def derivatives(f):
            def first(x):
                y, pull = jax.vjp(f, x)
                return pull(jnp.ones_like(y))[0]

            return (f(x), *jax.jvp(first, (x,), (jnp.ones_like(x),)))

        return {name: derivatives(ours) for name, (ours, _, _) in TABLE.items()}

    with jax.enable_x64(dtype == "float64"):
        results = jax.jit(measure, compiler_options=USERS)(jnp.asarray(inputs(dtype)))
        assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(dtype)}
        return jax.tree.map(lambda a: np.asarray(a, np.float64), results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TABLE)
def test_value_and_derivatives_over_the_whole_range(name, dtype):
    """Within a few units in the last place, or what a few such units of x change; below the normal numbers, 0.

    The derivatives of tanh are made of 1 - y^2: right to a few units of 1.
    """
    _, equation, at_infinity = TABLE[name]
    limits, computed = jnp.finfo(dtype), jnp.finfo(DTYPES[dtype])
    tiny = float(limits.smallest_subnormal if dtype == "float16" else 8 * limits.tiny)
    got = np.stack(measured(dtype)[name])
    wrong = []
    with mpmath.workdps(60):
        for i, x in enumerate(inputs(dtype)[:-2]):
            x = mpmath.mpf(float(x))
            moved = equation(x * (1 + 6 * mpmath.mpf(float(computed.eps))))
            for order, (right, other) in enumerate(zip(equation(x), moved, strict=True)):
                rounded = (0.5, 0.5, 1.5)[order] if dtype in ("float16", "bfloat16") else 0
                units = rounded * mpmath.mpf(float(limits.eps)) + 6 * mpmath.mpf(float(computed.eps))
                tolerance = units * abs(right) + abs(other - right) + tiny
                if name == "tanh" and order:
                    tolerance += 4 * order * mpmath.mpf(float(computed.eps))
                if not abs(mpmath.mpf(got[order, i]) - right) <= tolerance:
                    wrong.append(f"derivative {order} at {float(x):g}: {got[order, i]:g}, right {float(right):g}")
    assert not wrong, wrong
    expected = np.array([[*limit, 0] for limit in at_infinity]).T
    np.testing.assert_allclose(got[:, -2:], expected, rtol=float(limits.eps))


@pytest.mark.parametrize("name", TABLE)
def test_nan_stays_nan(name):
    assert np.isnan(TABLE[name][0](jnp.full((2,), jnp.nan))).all()


def softmax_derivatives(x):
    """The distribution and its matrix of derivatives."""
    e = [mpmath.exp(v - max(x)) for v in x]
    y = [v / sum(e) for v in e]
    rest = [sum(y[:i] + y[i + 1 :]) for i in range(len(y))]  # 1 - y_i, with all its digits
    return y, [[y[i] * (rest[i] if i == j else -y[j]) for j in range(len(y))] for i in range(len(y))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_over_the_whole_range(dtype):
    limits = jnp.finfo(dtype)
    most = float(limits.max)
    rows = np.asarray(
        [[0, 0, 0, 0], [8, 0, -4, -9], [0, 30, 29, 2], [-60, 5, 0, -1], [most, -most, most, 0], [most, 0, 1, -most]],
        dtype,
    )
    with jax.enable_x64(dtype == "float64"):
        functions = activations.softmax, *(jax.vmap(mode(activations.softmax)) for mode in (jax.jacrev, jax.jacfwd))
        y, *modes = (jax.jit(f, compiler_options=USERS)(rows) for f in functions)
        assert {a.dtype for a in (y, *modes)} == {jnp.dtype(dtype)}
    with mpmath.workdps(60):
        right = [softmax_derivatives([mpmath.mpf(float(v)) for v in row]) for row in rows]
        right = [np.array([row[i] for row in right], object).astype(float) for i in (0, 1)]
    tiny = float(limits.smallest_subnormal if dtype == "float16" else limits.tiny)
    for got, expected in zip((y, *modes), (right[0], right[1], right[1]), strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=8 * float(limits.eps), atol=tiny)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["leaky_relu", "elu", "prelu"])
def test_a_learned_number_of_16_bits_has_a_gradient_that_is_summed_in_float32(name, dtype):
    """The derivative is a sum over all inputs; in bfloat16 a sum of ones ends at 256."""
    f = {
        "leaky_relu": activations.leaky_relu,
        "elu": activations.elu,
        "prelu": lambda x, a: layers.prelu().apply({"slope": a}, (), x, train=True)[0],
    }[name]
    rng = np.random.default_rng(0)
    x, cotangent = (np.asarray(rng.normal(mean, 0.3, 6000), dtype) for mean in (-1, 1))
    x64 = np.float64(x)
    right = np.float64(cotangent) @ np.where(x64 > 0, 0, np.expm1(x64) if name == "elu" else x64)
    got = jax.jit(lambda a: jax.vjp(lambda a: f(x, a), a)[1](cotangent)[0])(jnp.asarray(0.25, dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(float(got), right, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("name", "most"), [("gelu", 1), ("tanh", 1), ("softmax", 1), ("sigmoid", 2), ("silu", 3), ("softplus", 3)]
)
@pytest.mark.usefixtures("on_the_cpu")
def test_value_and_derivative_share_their_exponentials(name, most):
    f, x = getattr(activations, name), jnp.ones((64, 64))
    program = jax.jit(lambda x, g: (f(x), *jax.vjp(f, x)[1](g))).lower(x, x).compile()
    assert program.cost_analysis()["transcendentals"] <= 1.01 * most * x.size


def test_the_tails_that_were_wrong():
    """Right values from PyTorch in float64."""

    def at(f, x, dtype):
        return float(f(jnp.asarray(x, dtype)))

    def gelu(x):
        return activations.gelu(x, approximate=True)

    bits = 2.0**-8  # half a unit in bfloat16's last place
    assert at(gelu, -3, "bfloat16") == pytest.approx(-0.003637, rel=bits)
    assert at(gelu, -4, "bfloat16") == pytest.approx(-0.0000702, rel=bits + 1e-3)
    assert at(jax.grad(activations.elu), -6, "bfloat16") == pytest.approx(0.00247875, rel=bits)
    assert at(jax.grad(activations.elu), -18, "float32") == pytest.approx(np.exp(-18), rel=1e-6)
    assert at(jax.grad(activations.sigmoid), 6, "bfloat16") == pytest.approx(0.00246651, rel=bits)
    assert at(lambda x: activations.leaky_relu(x, 0.0), -np.inf, "float32") == 0
    assert at(jax.grad(lambda x: activations.leaky_relu(x, 0.0)), -np.inf, "float32") == 0

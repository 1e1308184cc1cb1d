"""Penalties (eq. 4.26 to 4.29) against the literal sums, and the proximal step against the minimum it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import regularizers
from jaxnet.errors import ConfigError, DTypeError, ShapeError

NAMES = ["l1", "l2"]


def _params(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "dense": {"kernel": draw.normal(size=(3, 2)), "bias": 100 + draw.normal(size=2)},
        "norm": {"scale": 100 + draw.normal(size=2), "offset": 100 + draw.normal(size=2)},
        "act": [{"slope": 100 + draw.normal(size=1)}, {"kernel": draw.normal(size=4)}],
    }


def _cast(params, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def _literal(name, weights, strength):
    return strength * sum(abs(w) if name == "l1" else w**2 for kernel in weights for w in np.float64(kernel).ravel())


@pytest.mark.parametrize("name", NAMES)
@given(strength=st.just(0.0) | st.floats(1e-3, 10), double=st.booleans(), seed=st.integers(0, 99))
def test_value_and_gradient_are_the_printed_sums(name, strength, double, seed):
    params = _params(seed)
    weights = [params["dense"]["kernel"], params["act"][1]["kernel"]]
    tolerance = 1e-12 if double else 1e-5
    with jax.enable_x64(double):
        given_params = _cast(params, jnp.float64 if double else jnp.float32)
        penalty = getattr(regularizers, name)(strength)
        value, gradient = jax.value_and_grad(penalty)(given_params)
        np.testing.assert_allclose(value, _literal(name, weights, strength), rtol=tolerance)
        for kernel, of in ((weights[0], gradient["dense"]), (weights[1], gradient["act"][1])):
            expected = strength * (np.sign(kernel) if name == "l1" else 2 * kernel)  # eq. 4.27, 4.29
            np.testing.assert_allclose(of["kernel"], expected, rtol=tolerance)
        excluded = (gradient["dense"]["bias"], *gradient["norm"].values(), gradient["act"][0]["slope"])
        assert all((leaf == 0).all() for leaf in excluded)


@pytest.mark.parametrize("name", NAMES)
def test_where_chooses_the_leaves(name):
    params = _cast(_params(), jnp.float32)
    only_bias = getattr(regularizers, name)(0.5, where="*bias")
    np.testing.assert_allclose(only_bias(params), _literal(name, [params["dense"]["bias"]], 0.5), rtol=1e-6)
    matrices = getattr(regularizers, name)(0.5, where=lambda path, leaf: leaf.ndim == 2)
    np.testing.assert_allclose(matrices(params), _literal(name, [params["dense"]["kernel"]], 0.5), rtol=1e-6)


def test_a_leaf_without_a_name_is_a_weight():
    np.testing.assert_allclose(regularizers.l1(2.0)(jnp.array([1.0, -3.0])), 8)
    np.testing.assert_allclose(regularizers.l2(2.0)([jnp.array([1.0, -3.0]), jnp.array(2.0)]), 28)


def test_the_derivative_of_l1_at_0_is_0():
    # Eq. 4.27 as printed has -strength there, which would push a weight off zero.
    gradient = jax.grad(regularizers.l1(0.5))({"kernel": jnp.array([-2.0, -0.0, 0.0, 3.0])})["kernel"]
    np.testing.assert_array_equal(gradient, [-0.5, 0, 0, 0.5])


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_is_at_least_float32_and_gradients_keep_their_dtype(name):
    params = {"a": jnp.full((300,), 1.0, jnp.bfloat16), "b": jnp.array([0.5, -0.5], jnp.float16), "c": jnp.ones(1)}
    value, gradient = jax.value_and_grad(getattr(regularizers, name)(1.0))(params)
    assert value.dtype == jnp.float32
    # bfloat16 cannot count beyond 256
    np.testing.assert_allclose(value, 300 + (1 if name == "l1" else 0.5) + 1)
    assert [gradient[k].dtype for k in "abc"] == [jnp.bfloat16, jnp.float16, jnp.float32]
    assert getattr(regularizers, name)(1.0)({"a": params["a"]}).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_float64_leaves_are_summed_in_float64(name, x64):
    params = {"a": jnp.array([1.0, 1e-12], jnp.float64), "b": jnp.ones(1, jnp.float32)}
    value = getattr(regularizers, name)(1.0)(params)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, 2 + (1e-12 if name == "l1" else 0), rtol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_jit_traces_once_and_equals_eager(name):
    penalty = getattr(regularizers, name)(0.3)
    traces = []

    @jax.jit
    def compiled(params):
        traces.append(None)
        return jax.value_and_grad(penalty)(params)

    for seed in range(2):
        params = _cast(_params(seed), jnp.float32)
        for ours, expected in zip(
            jax.tree.leaves(compiled(params)), jax.tree.leaves(jax.value_and_grad(penalty)(params)), strict=True
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert len(traces) == 1


@given(
    weight=st.floats(-3, 3),
    strength=st.floats(0, 2),
    rate=st.floats(0.01, 1),
)
def test_the_proximal_step_is_the_minimum_it_stands_for(weight, strength, rate):
    minimize_scalar = pytest.importorskip("scipy.optimize", reason="scipy is the oracle").minimize_scalar

    def objective(w):  # the definition of the proximal operator of rate * strength * |w|
        return rate * strength * abs(w) + (w - weight) ** 2 / 2

    result = minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    best = min((result.x, 0.0), key=objective)
    step = regularizers.proximal_l1(strength)
    ours = step({"kernel": jnp.array([weight], jnp.float32)}, rate)["kernel"][0]
    np.testing.assert_allclose(ours, best, rtol=1e-5, atol=1e-5)
    assert objective(float(ours)) <= objective(best) + 1e-6


def test_proximal_gradient_descent_solves_lasso_with_exact_zeros():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 8))
    truth = np.array([2.0, 0, 0, -1.5, 0, 0.7, 0, 0])
    y = x @ truth + 0.1 * draw.normal(size=60)
    strength = 0.2
    expected = linear_model.Lasso(alpha=strength, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y).coef_
    assert 3 <= (expected == 0).sum() < 8
    rate = 1 / np.linalg.eigvalsh(x.T @ x / 60).max()
    step = regularizers.proximal_l1(strength)
    data, targets = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    bias = jnp.array([7.0])

    @jax.jit
    def train(params):
        def body(_, params):
            gradient = jax.grad(lambda p: jnp.mean((data @ p["kernel"] - targets) ** 2) / 2)(params)
            moved = jax.tree.map(lambda p, g: p - jnp.float32(rate) * g, params, gradient)
            return step(moved, rate)

        return jax.lax.fori_loop(0, 300, body, params)

    trained = train({"kernel": jnp.zeros(8), "bias": bias})
    np.testing.assert_allclose(trained["kernel"], expected, atol=1e-4)
    np.testing.assert_array_equal(trained["kernel"] == 0, expected == 0)
    np.testing.assert_array_equal(trained["bias"], bias)

    # Plain descent on the loss with the penalty only oscillates around zero.
    def objective(p):
        return jnp.mean((data @ p["kernel"] - targets) ** 2) / 2 + regularizers.l1(strength)(p)

    def body(_, p):
        return jax.tree.map(lambda p, g: p - jnp.float32(rate) * g, p, jax.grad(objective)(p))

    plain = jax.jit(lambda p: jax.lax.fori_loop(0, 300, body, p))({"kernel": jnp.full(8, 0.1), "bias": bias})
    assert (plain["kernel"] != 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_proximal_step_of_16_bits_is_rounded_once(dtype):
    """In float16 the rate times the strength, 5e-9, would be 0, and nothing would shrink."""
    weights = jnp.asarray(np.random.default_rng(0).normal(0, 1e-6, 300), dtype)
    for rate, strength in ((1e-4, 5e-5), (1e-3, 3.3e-4)):
        (got,) = regularizers.proximal_l1(strength)([weights], rate)
        exact = np.float64(weights)
        exact = np.sign(exact) * np.maximum(np.abs(exact) - rate * strength, 0)
        limits = jnp.finfo(dtype)
        np.testing.assert_allclose(np.float64(got), exact, float(limits.eps) / 2, float(limits.smallest_subnormal) / 2)


def test_the_proximal_step_keeps_dtypes_and_takes_a_traced_rate():
    params = {
        "a": jnp.array([1.0, -0.25], jnp.bfloat16),
        "b": jnp.array([-2.0, 0.0]),
        "bias": jnp.array([3], jnp.int32),
    }
    step = regularizers.proximal_l1(1.0)
    for rate in (0.5, np.float32(0.5), jnp.float32(0.5)):
        eager = step(params, rate)
        compiled = jax.jit(step)(params, rate)
        for result in (eager, compiled):
            assert [result[k].dtype for k in ("a", "b", "bias")] == [jnp.bfloat16, jnp.float32, jnp.int32]
            np.testing.assert_array_equal(result["a"].astype(jnp.float32), [0.5, 0])
            np.testing.assert_array_equal(result["b"], [-1.5, 0])
            np.testing.assert_array_equal(result["bias"], [3])
    batched = jax.vmap(step, in_axes=(None, 0))({"w": jnp.array([1.0])}, jnp.array([0.25, 2.0]))
    np.testing.assert_array_equal(batched["w"], [[0.75], [0]])


def _kernel(leaf):
    return {"layer": {"kernel": leaf}}


class Raveled:
    """What has lost its names says so by an ``unravel`` method."""

    def unravel(self): ...


ONE = _kernel(jnp.ones(2))
BAD_INPUT = {
    "46 l1, negative": (lambda: regularizers.l1(-0.1), ConfigError, r"^l1: strength must .* in \[0, inf\], got -0.1$"),
    "46 l2, negative": (lambda: regularizers.l2(-1), ConfigError, r"^l2: strength must .* in \[0, inf\], got -1$"),
    "46 proximal_l1, negative": (
        lambda: regularizers.proximal_l1(-2.0),
        ConfigError,
        r"^proximal_l1: strength must .* in \[0, inf\], got -2.0$",
    ),
    "46 l1, nan": (lambda: regularizers.l1(float("nan")), ConfigError, r"^l1: strength must be a finite .* got nan"),
    "46 l2, infinite": (lambda: regularizers.l2(float("inf")), ConfigError, r"^l2: strength must be a finite .* inf$"),
    "46 l1, text": (lambda: regularizers.l1("0.1"), ConfigError, r"^l1: strength must be a finite number .* got '0.1'"),
    "46 l2, bool": (lambda: regularizers.l2(True), ConfigError, r"^l2: strength must be a finite number .* got True"),
    "24 proximal_l1, negative rate": (
        lambda: regularizers.proximal_l1(0.1)(ONE, -1e-3),
        ConfigError,
        r"^proximal_l1: learning_rate must .* in \[0, inf\], got -0.001",
    ),
    "24 proximal_l1, rate None": (
        lambda: regularizers.proximal_l1(0.1)(ONE, None),
        ConfigError,
        r"^proximal_l1: learning_rate must .* got None",
    ),
    "25 proximal_l1, a rate of many": (
        lambda: regularizers.proximal_l1(0.1)(ONE, jnp.ones(2)),
        ShapeError,
        r"^proximal_l1: learning_rate must be one number, got shape \(2,\)",
    ),
    "where is no function": (
        lambda: regularizers.l1(0.1, where=3),
        ConfigError,
        r"^l1: where must be a tree of bools, patterns of paths, or a function of path and leaf, got 3",
    ),
    "proximal_l1, where is no function": (
        lambda: regularizers.proximal_l1(0.1, where=3),
        ConfigError,
        r"^proximal_l1: where must be a tree of bools",
    ),
    **{
        f"{name}, nothing picked": (
            lambda f=f: f({"layer": {"bias": jnp.ones(2)}}),
            ConfigError,
            rf"^{name}: no leaf was picked .* the leaves are layer/bias",
        )
        for name, f in {
            "l1": regularizers.l1(0.1),
            "l2": regularizers.l2(0.1),
            "proximal_l1": lambda params: regularizers.proximal_l1(0.1)(params, 0.1),
        }.items()
    },
    "no leaf at all": (lambda: regularizers.l1(0.1)({}), ConfigError, r"^l1: no leaf was picked .* leaves are none"),
    "30 integer leaf": (
        lambda: regularizers.l2(0.1)(_kernel(jnp.arange(2))),
        DTypeError,
        r"^l2: leaf layer/kernel is int32; weights are floating point",
    ),
    "30 Python integer leaf": (
        lambda: regularizers.l1(0.1)(_kernel(3)),
        DTypeError,
        r"^l1: leaf layer/kernel is int32; weights are floating point",
    ),
    "30 text leaf": (
        lambda: regularizers.proximal_l1(0.1)(_kernel("weights"), 0.1),
        DTypeError,
        r"^proximal_l1: layer/kernel must be an array, got str",
    ),
    "24 proximal_l1, negative rate in an array": (
        lambda: regularizers.proximal_l1(0.1)(ONE, jnp.float32(-1)),
        ConfigError,
        r"^proximal_l1: learning_rate must .* in \[0, inf\], got -1\.0",
    ),
    "30 raveled parameters": (
        lambda: regularizers.l2(0.1)(Raveled()),
        ConfigError,
        r"^l2: raveled parameters have lost their names; pass params\.unravel\(\)",
    ),
    "12 big-endian leaf": (
        lambda: regularizers.l1(0.1)(_kernel(np.ones(2, ">f4"))),
        DTypeError,
        r"^l1: layer/kernel has byte order '>f4'.*\.astype\('float32'\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError if error is DTypeError else ValueError)


def test_a_strength_of_0_costs_nothing():
    assert regularizers.l1(0)(ONE) == 0
    np.testing.assert_array_equal(regularizers.proximal_l1(0)(ONE, 0.5)["layer"]["kernel"], [1, 1])

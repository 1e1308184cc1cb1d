"""Attention against a literal sum in float64, PyTorch, and differences; and that its memory is linear in the length."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import kernels
from jaxnet.errors import ConfigError, DTypeError, ShapeError

module = importlib.import_module("jaxnet.kernels.attention")


FORMS = {
    "few": {"FEW_BLOCK": 3},
    "many": {"FEW": 0, "MANY_BLOCK": 3},
    "in loops": {"FEW": 0, "MANY": 0, "LOOP_BLOCK": 4},
}


@pytest.fixture(params=FORMS)
def form(request):
    """Each way of computing it, at small sizes."""
    with forms_of(**FORMS[request.param]):
        yield request.param


class forms_of:
    def __init__(self, **sizes):
        self.sizes = sizes

    def __enter__(self):
        self.before = {name: getattr(module, name) for name in self.sizes}
        self._set(self.sizes)

    def __exit__(self, *error):
        self._set(self.before)

    def _set(self, sizes):
        for name, size in sizes.items():
            setattr(module, name, size)
        module._attention.clear_cache()
        module._derivative.cache_clear()


def draw(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def literal(q, k, v, visible):
    """The sum as it is written, one query at a time, in numpy; ``visible`` (batch, heads, T, S)."""
    (batch, queries, heads, size), shared = q.shape, k.shape[2]
    y = np.zeros((batch, queries, heads, v.shape[-1]))
    for b, t, h in np.ndindex(batch, queries, heads):
        g = h // (heads // shared)
        keys = np.flatnonzero(visible[b, h, t])
        if len(keys):
            weights = np.exp(k[b, keys, g] @ q[b, t, h] / np.sqrt(size))
            y[b, t, h] = weights @ v[b, keys, g] / weights.sum()
    return y


def visible(q, k, mask=None, causal=False, window=None):
    (batch, queries, heads), keys = q.shape[:3], k.shape[1]
    t, s = np.arange(queries)[:, None], np.arange(keys)
    seen = np.ones((queries, keys), bool)
    if causal:
        seen &= s <= t
    if window is not None:
        seen &= abs(t - s) < window
    seen = np.broadcast_to(seen, (batch, heads, queries, keys))
    return seen if mask is None else seen & mask.reshape(mask.shape[0], *(1,) * (4 - mask.ndim), *mask.shape[1:])


def drawn_mask(rank, q, k, seed=9):
    (batch, queries, heads), keys = q.shape[:3], k.shape[1]
    shape = {0: None, 2: (batch, keys), 3: (batch, queries, keys), 4: (batch, heads, queries, keys)}[rank]
    if shape is None:
        return None
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., -1, :] &= rank == 2  # a query that sees nothing
    if rank == 2:
        mask[0] = False
    return mask


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("how", "sizes", "rank", "options"),
    [
        ("few", (7, 7, 2, 1), 2, {"causal": True}),
        ("few", (6, 11, 2, 2), 4, {"causal": True, "window": 3}),
        ("many", (9, 5, 4, 2), 3, {"window": 2}),
        ("in loops", (9, 5, 4, 2), 4, {"window": 2}),
        ("in loops", (7, 9, 2, 2), 2, {"causal": True}),
    ],
)
def test_value_and_derivatives_of_two_orders(how, sizes, rank, options):
    """Against the literal sum, and differences of it and of the gradient."""
    queries, keys, heads, shared = sizes
    q, k, v = draw((2, queries, heads, 4)), draw((2, keys, shared, 4), 1), draw((2, keys, shared, 3), 2)
    mask = drawn_mask(rank, q, k)
    seen = visible(q, k, mask, **options)
    f = functools.partial(kernels.attention, mask=mask, **options)
    tangents = tuple(draw(a.shape, 3 + i) for i, a in enumerate((q, k, v)))
    weights = draw((2, queries, heads, 3), 7)

    def scalar(*arrays):
        return jnp.vdot(weights, jnp.sin(f(*arrays)))

    @jax.jit
    def measure(*arrays):
        y, tangent = jax.jvp(f, arrays, tangents)
        gradient, forward = jax.jvp(jax.grad(scalar, (0, 1, 2)), arrays, tangents)
        reverse = jax.grad(lambda *a: jax.jvp(scalar, a, tangents)[1], (0, 1, 2))(*arrays)
        return y, tangent, gradient, forward, reverse

    with forms_of(**FORMS[how]):
        y, tangent, gradient, forward, reverse = measure(q, k, v)
    np.testing.assert_allclose(y, literal(q, k, v, seen), rtol=1e-12, atol=1e-12)
    h = 1e-5
    after, before = (measure(*(a + sign * h * t for a, t in zip((q, k, v), tangents, strict=True))) for sign in (1, -1))
    np.testing.assert_allclose(tangent, (after[0] - before[0]) / (2 * h), rtol=1e-7, atol=1e-8)
    pulled = sum(np.vdot(g, t) for g, t in zip(gradient, tangents, strict=True))
    np.testing.assert_allclose(pulled, np.vdot(weights * np.cos(y), tangent), rtol=1e-10, atol=1e-12)
    for a, b, c, d in zip(forward, reverse, after[2], before[2], strict=True):
        np.testing.assert_allclose(a, (c - d) / (2 * h), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11)


@given(st.data())
@settings(max_examples=8)
def test_any_sizes(data):
    integers = st.integers(1, 9)
    queries, keys, shared, size = (data.draw(integers) for _ in range(4))
    heads, batch = shared * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    options = {"causal": data.draw(st.booleans()), "window": data.draw(st.none() | integers)}
    q, k, v = (
        draw((batch, queries, heads, size)),
        draw((batch, keys, shared, size), 1),
        draw((batch, keys, shared, 2), 2),
    )
    mask = drawn_mask(data.draw(st.sampled_from([0, 2, 3, 4])), q, k)
    with jax.enable_x64(True), forms_of(**FORMS[data.draw(st.sampled_from(sorted(FORMS)))]):
        y = jax.jit(lambda *arrays: kernels.attention(*arrays, mask=mask, **options))(q, k, v)
    np.testing.assert_allclose(y, literal(q, k, v, visible(q, k, mask, **options)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "causal"), [("float32", False), ("float64", True)])
def test_it_is_pytorchs(form, dtype, causal):
    torch = pytest.importorskip("torch")
    q, k, v, co = (draw((2, 10, 2, 8), i).astype(dtype) for i in range(4))
    theirs = [torch.tensor(a).transpose(1, 2).requires_grad_() for a in (q, k, v)]
    y = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
    expected = [y, *torch.autograd.grad(y, theirs, torch.tensor(co).transpose(1, 2))]
    with jax.enable_x64(dtype == "float64"):

        @jax.jit
        def both(co, *arrays):
            y, pull = jax.vjp(functools.partial(kernels.attention, causal=causal), *arrays)
            return y, *pull(co)

        ours = both(co, q, k, v)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy().swapaxes(1, 2), rtol=tolerance, atol=tolerance)


def test_what_is_masked_changes_nothing(form):
    """Not a bit of value and gradients, whatever it is; its own gradients are 0, as those of a query that sees none."""
    q, k, v = (draw((2, 9, 2, 4), i, np.float32) for i in range(3))
    mask = np.random.default_rng(0).random((2, 9)) < 0.5
    mask[1] = False

    @jax.jit
    def both(q, k, v):
        y, pull = jax.vjp(functools.partial(kernels.attention, mask=mask), q, k, v)
        return y, *pull(jnp.cos(y))

    there = mask[..., None, None]
    expected = both(q, k, v)
    for garbage in (1e6, np.nan):
        got = both(q, np.where(there, k, np.float32(garbage)), np.where(there, v, np.float32(garbage)))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.any(expected[0][1])
    for gradient in expected[2:]:
        assert not np.any(np.where(there, 0, gradient))
    assert not np.any(expected[1][1])


def test_a_nan_that_is_seen_is_not_hidden(form):
    q = draw((1, 9, 1, 4), 0, np.float32)
    q[0, 2] = np.nan
    y = np.asarray(jax.jit(kernels.attention)(q, *(draw((1, 9, 1, 4)).astype("f") for _ in range(2))))
    assert np.isnan(y[0, 2]).all()
    assert np.isfinite(np.delete(y, 2, 1)).all()


@pytest.mark.usefixtures("x64")
def test_transformations(form):
    """vmap of value and gradient over some arguments, scan, checkpoint, and shard_map."""
    q, k, v = (draw((3, 2, 6, 2, 4), i) for i in range(3))
    f = functools.partial(kernels.attention, causal=True)

    def scalar(q, k, v):
        return jnp.sum(jnp.sin(f(q, k, v)))

    gradient = jax.grad(scalar, (0, 1, 2))
    one = jax.jit(gradient)
    expected = [one(q[i], k[i], v[0]) for i in range(3)]

    @jax.jit
    def every(q, k, v):
        return (
            jax.vmap(gradient, (0, 0, None))(q, k, v),
            jax.lax.map(lambda a: gradient(*a, v), (q, k)),
            jax.vmap(jax.grad(jax.checkpoint(scalar), (0, 1, 2)), (0, 0, None))(q, k, v),
        )

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    parts = jax.shard_map(f, mesh=mesh, in_specs=(spec("data"), spec("data"), spec()), out_specs=spec("data"))
    spread = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(parts(*a))), (0, 1, 2)))(q[0], k[0], v[0])
    for got in every(q, k, v[0]):
        for a, b in zip(got, zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(a, np.stack(b), rtol=1e-11, atol=1e-12)
    for a, b in zip(spread, expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["few", "in loops"], indirect=True)
def test_dropout(form):
    """Keeps the mean, and the derivatives are those of one draw: differences of it say the same."""
    q, k, v = (draw((2, 7, 2, 4), i) for i in range(3))

    def f(key, *arrays):
        return kernels.attention(*arrays, causal=True, dropout=0.5, key=key)

    @jax.jit
    def means(keys):
        return jax.vmap(lambda key: f(key, q, k, v))(keys).mean(0), kernels.attention(q, k, v, causal=True)

    np.testing.assert_allclose(*means(jax.random.split(jax.random.key(0), 1000)), atol=0.3)
    key, tangents = jax.random.key(1), tuple(draw(q.shape, 5 + i) for i in range(3))

    @jax.jit
    def measure(*arrays):
        gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(f(key, *a))), (0, 1, 2))
        return f(key, *arrays), *jax.jvp(gradient, arrays, tangents)

    h = 1e-5
    _, slopes, second = measure(q, k, v)
    moved = [
        jax.device_get(measure(*(a + s * h * t for a, t in zip((q, k, v), tangents, strict=True)))) for s in (1, -1)
    ]
    slope = np.sum(np.sin(moved[0][0]) - np.sin(moved[1][0])) / (2 * h)
    np.testing.assert_allclose(sum(np.vdot(g, t) for g, t in zip(slopes, tangents, strict=True)), slope, rtol=1e-6)
    for a, after, before in zip(second, moved[0][1], moved[1][1], strict=True):
        np.testing.assert_allclose(a, (after - before) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_in_16_bits_softmax_is_in_float32(dtype):
    q, k, v = (jnp.asarray(draw((1, 600, 1, 8), i), dtype) for i in range(3))
    y = jax.jit(kernels.attention)(q, k, v)
    assert y.dtype == dtype
    exact = jax.jit(kernels.attention)(*(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_array_equal(y, exact.astype(dtype))


@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4)])
def test_nothing(shape):
    q = jnp.zeros(shape)
    assert kernels.attention(q, q, q, causal=True).shape == shape
    assert kernels.attention(jnp.ones((2, 3, 2, 4)), jnp.ones((2, 0, 1, 4)), jnp.ones((2, 0, 1, 5))).shape == (
        2,
        3,
        2,
        5,
    )


def test_keys_without_features_fit_all_queries_alike():
    v = draw((2, 3, 1, 4), 0, np.float32)
    y = kernels.attention(jnp.ones((2, 3, 2, 0)), jnp.ones((2, 3, 1, 0)), v, causal=True)
    means = np.stack([v[:, : t + 1].mean(1) for t in range(3)], 1, dtype=np.float64)
    np.testing.assert_allclose(y, np.repeat(means, 2, axis=2), rtol=1e-6)
    half = [jnp.ones(shape, jnp.bfloat16) for shape in ((2, 3, 2, 0), (2, 3, 1, 0), v.shape)]
    assert jax.eval_shape(kernels.attention, *half).dtype == jnp.bfloat16


def times(function, order):
    if order == "value":
        return function
    if order == "gradient":
        return jax.grad(lambda *a: jnp.sum(function(*a)), (0, 1, 2))
    return jax.grad(lambda *a: jnp.sum(jax.jvp(function, a, a)[1]), (0, 1, 2))


@pytest.mark.parametrize("order", ["value", "gradient", "gradient of tangent"])
@pytest.mark.usefixtures("on_the_cpu")
def test_memory_grows_with_the_length_alone(order):
    """From 2,048 to 8,192 at most 4 times; what has the size queries x keys would have 16."""
    function = jax.jit(times(functools.partial(kernels.attention, causal=True), order))
    used = []
    for length in (2048, 8192):
        array = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        used.append(function.lower(array, array, array).compile().memory_analysis().temp_size_in_bytes)
    assert used[1] <= 4.2 * used[0]


def test_a_long_one():
    """8,192 positions: what the last one sees, on its own."""
    q, k, v = (jnp.asarray(draw((1, 8192, 1, 4), i, np.float32)) for i in range(3))
    y = jax.jit(functools.partial(kernels.attention, causal=True))(q, k, v)
    weights = jax.nn.softmax(k[0, :, 0] @ q[0, -1, 0] / 2)
    np.testing.assert_allclose(y[0, -1, 0], weights @ v[0, :, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[0, 0], v[0, 0], rtol=1e-6)


Q, K = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 2, 8))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: kernels.attention(Q[0], K, K),
            ShapeError,
            r"attention: q must have 4 axes \(batch, length, heads, fe",
        ),
        (
            lambda: kernels.attention(Q, K, K[:, 1:]),
            ShapeError,
            "k and v must have one batch, length and number of heads",
        ),
        (lambda: kernels.attention(Q[:1], K, K), ShapeError, "q has a batch of 1, k and v of 2"),
        (lambda: kernels.attention(Q, K[..., 1:], K), ShapeError, "q has 8 features a head, k has 7"),
        (lambda: kernels.attention(Q[:, :, :3], K, K), ShapeError, "the 2 heads of k and v must divide the 3 of q"),
        (lambda: kernels.attention(Q, K, K.astype(jnp.bfloat16)), DTypeError, "dtypes differ: q float32.* v bfloat16"),
        (lambda: kernels.attention(Q.astype(int), K, K), DTypeError, "q must be floating point, got int32"),
        (lambda: kernels.attention(Q, K, K, mask=jnp.ones((2, 7))), DTypeError, "mask must be bool, .* got float32"),
        (
            lambda: kernels.attention(Q, K, K, mask=jnp.ones((2, 5), bool)),
            ShapeError,
            r"mask must have shape \(2, 7\), ",
        ),
        (lambda: kernels.attention(Q, K, K, mask=jnp.ones(7, bool)), ShapeError, r"got \(7,\)"),
        (lambda: kernels.attention(Q, K, K, causal=1), ConfigError, "causal must be True or False, got 1"),
        (lambda: kernels.attention(Q, K, K, window=0), ConfigError, "window must be an integer >= 1, got 0"),
        (lambda: kernels.attention(Q, K, K, scale=float("nan")), ConfigError, "scale must be a finite number"),
        (lambda: kernels.attention(Q, K, K, dropout=1.0), ConfigError, r"dropout must be a finite number in \[0, 1\)"),
        (lambda: kernels.attention(Q, K, K, dropout=0.5), ConfigError, "no key came"),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("window", [7, 2**31 - 1, 2**63])
def test_a_window_that_reaches_everything_is_none(window):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 2, 3)), jnp.float32)
    np.testing.assert_array_equal(
        kernels.attention(x, x, x, causal=True, window=window), kernels.attention(x, x, x, causal=True)
    )

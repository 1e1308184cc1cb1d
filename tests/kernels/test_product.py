"""Rows times a matrix: against a float64 sum in every transformation, with oneDNN's calls and without."""

import contextlib
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnet import kernels, layers, sizes
from jaxnet.kernels import product as products
from jaxnet.kernels.inlined import inlined
from jaxnet.kernels.lowering import onednn
from jaxnet.kernels.product import product

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(autouse=True)
def wide_numbers():
    """Arrays of float64, beside the others."""
    with jax.enable_x64(True):
        yield


TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(params=["calls", "no calls", "plain"])
def way(request, monkeypatch):
    """A primitive that is a call where the processor has it; one that is none; and JAX's own product."""
    monkeypatch.setattr(onednn, "likely", lambda dtype: request.param != "plain")
    if request.param == "no calls":
        monkeypatch.setattr(onednn, "_works", lambda dtype: False)
    monkeypatch.setattr(products, "FEW", 0)
    return request.param


@pytest.fixture
def bound(monkeypatch):
    """As on a processor that may have the calls; programs are lowered, and need not run."""
    monkeypatch.setattr(onednn, "likely", lambda dtype: True)
    monkeypatch.setattr(onednn, "_works", lambda dtype: dtype in ("float32", "bfloat16"))
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx512f", "avx512_bf16"})


def drawn(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def close(found, expected, dtype, terms=1):
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.sqrt(terms) * 4)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@DTYPES
@pytest.mark.parametrize("rows", [(), (1,), (3, 4), (2, 3, 4)])
def test_values_and_gradients_are_the_sums(way, dtype, rows):
    x, w, y = drawn(*rows, 5, dtype=dtype), drawn(5, 7, seed=1, dtype=dtype), drawn(*rows, 7, seed=2, dtype=dtype)
    value, pull = jax.vjp(product, x, w)
    dx, dw = pull(y)
    assert {a.dtype for a in (value, dx, dw)} == {jnp.dtype(dtype)}
    x, w, y = wide(x, w, y)
    close(value, x @ w, dtype, 5)
    close(dx, y @ w.T, dtype, 7)
    close(dw, x.reshape(-1, 5).T @ y.reshape(-1, 7), dtype, 24)


@DTYPES
@settings(max_examples=8)
@given(numbers=st.tuples(*[st.integers(1, 40)] * 3), seed=st.integers(0, 99))
def test_drawn_sizes(dtype, numbers, seed):
    m, c, o = numbers
    x, w = drawn(m, c, seed=seed, dtype=dtype), drawn(c, o, seed=seed + 1, dtype=dtype)
    value, pull = jax.vjp(product, x, w)
    dx, dw = pull(value)
    x, w, y = wide(x, w, value)
    close(value, x @ w, dtype, c)
    close(dx, y @ w.T, dtype, c * o)
    close(dw, x.T @ y, dtype, c * m)


def test_sums_of_16_bits_are_rounded_once(way):
    x, w = jnp.ones((2, 4097), jnp.bfloat16), jnp.ones((4097, 3), jnp.bfloat16)
    y = product(x, w)
    np.testing.assert_array_equal(y, jnp.full((2, 3), 4097, jnp.bfloat16))
    x, y = jnp.ones((4097, 2), jnp.bfloat16), jnp.ones((4097, 3), jnp.bfloat16)
    _, dw = jax.vjp(product, x, w[:2])[1](y)
    np.testing.assert_array_equal(dw, jnp.full((2, 3), 4097, jnp.bfloat16))


def test_second_derivatives_in_every_mode(way):
    x, w = drawn(6, 5), drawn(5, 4, seed=1)
    dx, dw = drawn(6, 5, seed=2), drawn(5, 4, seed=3)

    def f(x, w):
        return jnp.sum(jnp.sin(product(x, w)))

    def plain(x, w):
        return jnp.sum(jnp.sin(x @ w))

    def ways(f):
        gradient = jax.grad(f, (0, 1))
        return (
            jax.jvp(f, (x, w), (dx, dw)),
            jax.jvp(gradient, (x, w), (dx, dw)),
            jax.grad(lambda x, w: jax.jvp(f, (x, w), (dx, dw))[1], (0, 1))(x, w),
            jax.hessian(f, 1)(x, w),
        )

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ways(f), ways(plain))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, None), (2, 1)])
def test_vmap_of_values_and_gradients(way, axes):
    put = lambda shape, axis: shape if axis is None else (*shape[:axis], 6, *shape[axis:])  # noqa: E731
    x, w = drawn(*put((3, 5), axes[0])), drawn(*put((5, 4), axes[1]), seed=1)

    def of_one(function, x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(function(x, w) ** 2), (0, 1))(x, w)

    found, expected = (jax.vmap(functools.partial(of_one, f), axes)(x, w) for f in (product, jnp.matmul))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_per_example_gradients(way):
    x, w = drawn(6, 5), drawn(5, 4, seed=1)
    found = jax.vmap(jax.grad(lambda w, x: jnp.sum(product(x, w) ** 2)), (None, 0))(w, x)
    expected = np.einsum("bc,bo->bco", x, 2 * x @ w)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_in_a_scan_with_rematerialization(way):
    x, w = drawn(6, 5), 0.5 * drawn(3, 5, 5, seed=1)

    def along(step, x, w):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(step(x, w)), None), x, w)[0])

    found = jax.jit(jax.grad(functools.partial(along, jax.checkpoint(product)), (0, 1)))(x, w)
    expected = jax.grad(functools.partial(along, jnp.matmul), (0, 1))(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_outside_of_jit_and_with_jit_disabled(way):
    x, w = drawn(6, 5), drawn(5, 4, seed=1)
    expected = np.asarray(x) @ np.asarray(w)
    np.testing.assert_allclose(product(x, w), expected, rtol=1e-5, atol=1e-5)
    with jax.disable_jit():
        np.testing.assert_allclose(product(x, w), expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_called_of_empty_arrays(bound):
    jaxpr = str(jax.make_jaxpr(product)(jnp.ones((0, 5)), jnp.ones((5, 4))))
    assert "dot_general" in jaxpr
    assert "jaxnet" not in jaxpr


MESH = functools.partial(jax.make_mesh, (4,), ("data",))


@pytest.mark.parametrize("spread", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("members", [0, 1])
@pytest.mark.parametrize("slot", ["y", "x", "w"])
def test_every_slot_in_shard_map_with_gradients(way, slot, members, spread):
    """Each device has a part of the operands that are spread, on an axis before all others, and all of the rest."""
    of = {"x": (6, 5), "w": (5, 4), "y": (6, 4)}
    shapes = [(4, *(3,) * members, *of[name]) for name in {"y": "xw", "x": "yw", "w": "xy"}[slot]]
    cut = [shape if far else shape[1:] for shape, far in zip(shapes, spread, strict=True)]
    a, b = (drawn(*shape, seed=i) for i, shape in enumerate(cut))
    equation = {"y": "rc,co->ro", "x": "ro,co->rc", "w": "rc,ro->co"}[slot]
    letters = iter("m" * members for _ in range(3))
    plain = "->".join(",".join(next(letters) + part for part in side.split(",")) for side in equation.split("->"))

    def of_one(solve):
        def loss(a, b):
            return jnp.sum(jnp.sin(solve(a, b)))

        return lambda a, b: (solve(a, b), jax.grad(loss, (0, 1))(a, b))

    def whole(solve, a, b):
        """Of all parts one after the other, gradients of what is not spread summed."""
        parts = [of_one(solve)(*(v[i] if far else v for v, far in zip((a, b), spread, strict=True))) for i in range(4)]
        values, grads = zip(*parts, strict=True)
        both = zip(zip(*grads, strict=True), spread, strict=True)
        stacked = [jnp.stack(g) if far else sum(g[1:], g[0]) for g, far in both]
        return jnp.stack(values), tuple(stacked)

    def local(a, b):
        a, b = (v[0] if far else v for v, far in zip((a, b), spread, strict=True))
        y, (da, db) = of_one(lambda a, b: products.solve(slot, a, b, members))(a, b)
        return y[None], tuple(g[None] if far else g for g, far in zip((da, db), spread, strict=True))

    specs = tuple(P("data") if far else P() for far in spread)
    mapped = jax.shard_map(local, mesh=MESH(axis_types=(AxisType.Auto,)), in_specs=specs, out_specs=(P("data"), specs))
    found, expected = jax.jit(mapped)(a, b), whole(lambda a, b: jnp.einsum(plain, a, b), a, b)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_inside_shard_map(way, axes):
    x, w = drawn(4, *(2,) * (axes[0] == 0), 6, 5), drawn(*(2,) * (axes[1] == 0), 5, 4, seed=1)

    def gradients(function, x, w):
        return jax.vmap(jax.grad(lambda x, w: jnp.sum(function(x, w) ** 2), (0, 1)), axes)(x, w)

    def local(x, w):
        dx, dw = gradients(product, x[0], w)
        return dx[None], dw[None]

    mapped = jax.shard_map(
        local, mesh=MESH(axis_types=(AxisType.Auto,)), in_specs=(P("data"), P()), out_specs=(P("data"), P("data"))
    )
    found = jax.jit(mapped)(x, jax.lax.stop_gradient(w))[0]
    expected = jnp.stack([gradients(jnp.matmul, part, w)[0] for part in x])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_ensemble_inside_shard_map_has_the_gradients_of_the_whole_batch(way):
    net, x = layers.dense(4), drawn(8, 5, dtype="float32")
    params = jax.vmap(lambda key: net.init(key, x)[0])(jax.random.split(jax.random.key(0), 3))

    def gradients(params, x):
        return jax.vmap(jax.grad(lambda p: jnp.sum(net.apply(p, (), x, train=True)[0] ** 2)))(params)

    mesh = MESH(axis_types=(AxisType.Auto,))
    mapped = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    found, expected = mapped(params, x), gradients(params, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_attention_inside_shard_map(way):
    q, k, v = (drawn(8, 6, 2, 4, seed=seed, dtype="float32") for seed in range(3))

    def value_and_gradients(q, k, v):
        y, pull = jax.vjp(functools.partial(kernels.attention, causal=True), q, k, v)
        return y, pull(y)

    jax.clear_caches()  # attention is compiled apart, and would keep the other way's program
    mesh, spec = MESH(axis_types=(AxisType.Auto,)), P("data")
    mapped = jax.jit(jax.shard_map(value_and_gradients, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec))
    found, expected = mapped(q, k, v), value_and_gradients(q, k, v)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_attention_on_an_explicit_mesh(way):
    q, k, v = (drawn(8, 6, 2, 4, seed=seed, dtype="float32") for seed in range(3))
    expected = kernels.attention(q, k, v, causal=True)
    jax.clear_caches()
    mesh = MESH(axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = [jax.device_put(a, jax.NamedSharding(mesh, P("data"))) for a in (q, k, v)]
        found = jax.jit(functools.partial(kernels.attention, causal=True))(*spread)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_more_axes_than_a_call_takes(way):
    x, y = drawn(2, *(1,) * 11, 3, 5), drawn(2, *(1,) * 11, 3, 4, seed=1)
    found = products.solve("w", x, y, 12)
    np.testing.assert_allclose(found, jnp.einsum("...rc,...ro->...co", x, y), rtol=1e-5, atol=1e-5)


def test_an_algorithm_for_products_is_jaxs_to_take_or_refuse(bound):
    with jax.default_matmul_precision("BF16_BF16_F32"):
        jaxpr = str(jax.make_jaxpr(product)(jnp.ones((3, 5), jnp.float32), jnp.ones((5, 4), jnp.float32)))
    assert "jaxnet" not in jaxpr


@pytest.mark.parametrize("spec", [P("data"), P(None, "data"), P("data", None)])
def test_arrays_spread_automatically(way, spec):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, w = drawn(8, 8), drawn(8, 4, seed=1)
    spread = jax.device_put(x, jax.NamedSharding(mesh, spec))
    found = jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(product(x, w) ** 2)))(w, spread)
    expected = jax.value_and_grad(lambda w, x: jnp.sum((x @ w) ** 2))(w, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_explicitly_spread_arrays_are_multiplied_as_jax_does(bound):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        x = jax.ShapeDtypeStruct((8, 5), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P("data", None)))
        w = jax.ShapeDtypeStruct((5, 8), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P(None, None)))
        jaxpr = str(jax.make_jaxpr(product)(x, w))
    assert "dot_general" in jaxpr
    assert "jaxnet" not in jaxpr


@DTYPES
def test_which_products_are_calls(bound, dtype):
    x, w = jax.ShapeDtypeStruct((64, 1024), dtype), jax.ShapeDtypeStruct((1024, 4096), dtype)

    def gradients(x, w):
        y, pull = jax.vjp(product, x, w)
        return y, pull(y)

    text = jax.jit(gradients).lower(x, w).as_text()
    assert text.count("__onednn$matmul") == {"bfloat16": 3, "float32": 1}.get(dtype, 0)
    small = jax.ShapeDtypeStruct((8, 1024), dtype)
    few = jax.jit(gradients).lower(small, w).as_text()
    assert few.count("__onednn$matmul") == {"bfloat16": 3}.get(dtype, 0)


def test_there_are_calls_in_a_net_of_bfloat16_where_the_processor_has_them():
    if not onednn._works("bfloat16"):
        pytest.skip("this processor, or this jaxlib, has no fast call of bfloat16")
    net = layers.mixed_precision(layers.chain(layers.dense(16), jnp.tanh, layers.dense(3)))
    x = drawn(8, 5)
    params, state = net.init(0, x)
    compiled = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, state, x, train=True)[0]))).lower(params).compile()
    assert compiled.as_text().count("custom_call_target=") == compiled.as_text().count("__onednn$matmul") == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("portable", [True, False])
def test_without_calls_a_program_reads_as_jaxs_own(monkeypatch, dtype, portable):
    """So a run's fingerprint, which is of the program without calls, is the same on every processor."""
    net = layers.chain(layers.dense(16), jnp.tanh, layers.dense(3))
    tied = layers.tied(layers.embedding(7, 4), layers.dense(4))
    x, tokens = drawn(8, 5, dtype=dtype), jnp.arange(6).reshape(2, 3)
    nets = [(net, x), (tied, tokens)] if portable else [(net, x)]
    monkeypatch.setattr(onednn, "_in_files", lambda: False)

    def text(known):
        monkeypatch.setattr(onednn, "_is_known", lambda dtype: known)
        monkeypatch.setattr(onednn, "_multiplies", lambda dtype: known)
        monkeypatch.setattr(onednn, "_works", lambda dtype: known and portable)
        parts = []
        for one, example in nets:
            params, state = jax.eval_shape(one.init, jax.random.key(0), example)
            loss = lambda p, one=one, state=state, x=example: jnp.sum(one.apply(p, state, x, train=True)[0])  # noqa: E731
            with onednn.portable() if portable else contextlib.nullcontext():
                parts.append(jax.jit(jax.value_and_grad(loss)).lower(params).as_text())
        return parts

    assert text(True) == text(False)


def test_not_in_an_exported_program(bound):
    x, w = jnp.ones((8, 5), jnp.bfloat16), jnp.ones((5, 4), jnp.bfloat16)
    assert "onednn" in jax.jit(product).lower(x, w).as_text()
    exported = jax.export.export(jax.jit(lambda x, w: product(x, w)))(x, w)
    assert "onednn" not in exported.mlir_module()


def test_an_exported_program_of_any_batch(bound):
    x, w = jnp.ones((3, 5), jnp.float32), jnp.ones((5, 4), jnp.float32)
    of_any = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 5"), jnp.float32)
    exported = jax.export.export(jax.jit(product))(of_any, w)
    np.testing.assert_allclose(exported.call(x, w), np.full((3, 4), 5.0))


def test_written_out_for_other_tools(bound):
    x, w = drawn(3, 5), drawn(5, 4, seed=1)

    def both(x, w):
        return product(x, w), jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), (0, 1))(x, w)

    jaxpr = str(jax.make_jaxpr(inlined(both))(x, w))
    assert "dot_general" in jaxpr
    assert "jaxnet" not in jaxpr
    expected = both(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), inlined(both)(x, w), expected)


def test_its_cost(bound):
    x, w = jnp.ones((2, 3, 5)), jnp.ones((5, 7))
    assert sizes.multiply_adds(product, x, w) == 2 * 3 * 5 * 7
    both = jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), (0, 1))
    assert sizes.multiply_adds(both, x, w) == 3 * 2 * 3 * 5 * 7


def test_a_precision_that_is_asked_for_stays(bound):
    x, w = jnp.ones((3, 5)), jnp.ones((5, 4))
    with jax.default_matmul_precision("highest"):
        jitted = jax.jit(jax.grad(lambda w, x: jnp.sum(product(x, w) ** 2)))
        lowered = jitted.lower(w, x).as_text()
    assert lowered.count("precision = [HIGHEST, HIGHEST]") == lowered.count("dot_general") == 2


def test_attention_is_called_too(bound):
    net = layers.mixed_precision(layers.attention(2))
    x = jnp.ones((2, 3, 4))
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    text = jax.jit(lambda p: net.apply(p, state, x, train=True)[0]).lower(params).as_text()
    assert text.count("__onednn$matmul") == 2


@pytest.mark.parametrize("axes", [(0, None), (2, None), (None, 0), (1, 1)])
def test_vmap_of_members(way, axes):
    """Of products side by side: rows are more rows of each member, and the axis they leave is not the first."""
    put = lambda shape, axis: shape if axis is None else (*shape[:axis], 6, *shape[axis:])  # noqa: E731
    x, w = drawn(*put((4, 3, 5), axes[0])), drawn(*put((4, 5, 2), axes[1]), seed=1)

    def of_members(function, x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(jax.vmap(function)(x, w) ** 2), (0, 1))(x, w)

    for f in (lambda one, x, w: jax.vmap(one)(x, w), of_members):
        found, expected = (jax.vmap(functools.partial(f, one), axes)(x, w) for one in (product, jnp.matmul))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_a_precision_stays_where_one_operand_is_mapped_later(bound):
    x, w, ys = jnp.ones((3, 5)), jnp.ones((5, 4)), jnp.ones((6, 3, 4))
    with jax.default_matmul_precision("highest"):
        _, pull = jax.vjp(product, x, w)
    lowered = jax.jit(jax.vmap(pull)).lower(ys).as_text()
    assert lowered.count("precision = [HIGHEST, HIGHEST]") == lowered.count("dot_general") == 2


@pytest.mark.parametrize(("rows", "width", "calls"), [(2, 512, 1), (1, 512, 0), (2, 8, 0)])
def test_which_products_side_by_side_are_calls(bound, rows, width, calls):
    """In float32 a matrix's gradient, of two rows and more, where the products of all members are many."""
    x, w = (jax.ShapeDtypeStruct((8, *shape), "float32") for shape in ((rows, width), (width, 64)))
    gradients = jax.grad(lambda x, w: jnp.sum(jax.vmap(product)(x, w) ** 2), (0, 1))
    assert jax.jit(gradients).lower(x, w).as_text().count("__onednn$matmul") == calls


@pytest.mark.parametrize("replicated", ["x", "w"])
def test_rows_and_a_matrix_of_which_one_is_replicated_in_shard_map(way, replicated):
    """Its gradient is of all devices, whichever it is; the other has a part on each."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x, w = drawn(8, 5), drawn(5, 4, seed=1)
    specs = (P(), P(None, "data")) if replicated == "x" else (P("data"), P())

    def local(x, w):
        return jax.lax.psum(jnp.sum(product(x, w) ** 2), "data")

    loss = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    dx, dw = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    y = 2 * x @ w
    np.testing.assert_allclose(dw, x.T @ y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, y @ w.T, rtol=1e-4, atol=1e-4)


def test_attentions_sums_over_queries_are_called(bound):
    """In float32 those of its gradient alone, of keys and values; heads are products side by side."""
    q, k = jax.ShapeDtypeStruct((2, 32, 4, 16), "float32"), jax.ShapeDtypeStruct((2, 32, 2, 16), "float32")
    text = jax.jit(lambda *arrays: kernels.attention(*arrays)).lower(q, k, k).as_text()
    assert text.count("__onednn$matmul") == 0
    gradients = jax.grad(lambda *arrays: jnp.sum(kernels.attention(*arrays) ** 2), (0, 1, 2))
    assert jax.jit(gradients).lower(q, k, k).as_text().count("__onednn$matmul") == 2


def test_products_side_by_side_are_written_out_for_other_tools(bound):
    x, w = drawn(4, 3, 5), drawn(4, 5, 2, seed=1)

    def both(x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(jax.vmap(product)(x, w) ** 2), (0, 1))(x, w)

    jaxpr = str(jax.make_jaxpr(inlined(both))(x, w))
    assert "dot_general" in jaxpr
    assert "jaxnet" not in jaxpr
    expected = jax.value_and_grad(lambda x, w: jnp.sum((x @ w) ** 2), (0, 1))(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), inlined(both)(x, w), expected)

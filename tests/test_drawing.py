"""Parameters are the same numbers, however their programs are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import _drawing as drawing
from jaxnet import initializers

pytestmark = pytest.mark.usefixtures("full_compilation")


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey, lambda seed: jax.random.key(seed, impl="rbg")])
def test_they_are_those_of_jax_random(make):
    key = make(3)
    for got, wanted in zip(drawing.split(key, 3), jax.random.split(key, 3), strict=True):
        np.testing.assert_array_equal(*map(_data, (got, wanted)))
    np.testing.assert_allclose(
        drawing.normal(key, (5, 3), jnp.float32, 0.5), 0.5 * jax.random.normal(key, (5, 3)), rtol=3e-7
    )
    np.testing.assert_array_equal(
        drawing.uniform(key, (7,), jnp.float32, 2.0), jax.random.uniform(key, (7,), minval=-2.0, maxval=2.0)
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_drawn_in_their_dtype_where_there_are_two(dtype):
    key = jax.random.key(3)
    wanted = jax.random.normal(key, (3,), dtype), jax.random.uniform(key, (3,), dtype, -1.0)
    for draw, values in zip((drawing.normal, drawing.uniform), wanted, strict=True):
        got = draw(key, (3,), dtype, 1.0)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, values, rtol=3e-7 if dtype == "float32" else 1e-15)


def test_a_key_may_be_a_constant_inside_a_transformation():
    key = jax.random.key(0)

    def f(x):
        return x + drawing.normal(drawing.split(key, 2)[1], (3,), jnp.float32, 1.0)

    wanted = f(0.0)
    np.testing.assert_allclose(jax.jit(f)(0.0), wanted, rtol=3e-7)
    np.testing.assert_allclose(jax.vmap(f)(jnp.zeros(2))[1], wanted, rtol=3e-7)
    np.testing.assert_allclose(jax.jvp(f, (0.0,), (1.0,))[0], wanted, rtol=3e-7)
    with jax.disable_jit():
        np.testing.assert_allclose(f(0.0), wanted, rtol=3e-7)
    assert jax.eval_shape(f, 0.0).shape == (3,)


def test_a_draw_outside_transformations_is_compiled_quickly(monkeypatch):
    asked = []
    monkeypatch.setattr(drawing, "_quick", lambda draw: asked.append(draw) or draw)
    drawing.split(jax.random.key(0), 2)
    jax.jit(lambda key: drawing.split(key, 2))(jax.random.key(0))
    assert asked == [drawing._split]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64", "int32"])
@pytest.mark.parametrize("shape", [(), (3, 2), (drawing.FEW + 1,)])
def test_equal_numbers_are_those_of_full(dtype, shape):
    for beside in (jax.random.key(0), jnp.ones(3), np.ones(3), None):
        got, wanted = drawing.filled(beside, shape, 1, dtype), jnp.full(shape, 1, dtype)
        assert (got.dtype, got.shape, got.weak_type, got.committed) == (wanted.dtype, shape, False, False)
        np.testing.assert_array_equal(got, wanted)


def test_few_equal_numbers_need_no_program(caplog):
    def compiled(make):
        caplog.clear()
        with jax.log_compiles():
            make()
        return "Finished tracing" in caplog.text or "Compiling" in caplog.text

    beside = jnp.ones(2)
    for dtype in ("float32", "bfloat16", "int32"):
        assert not compiled(lambda dtype=dtype: drawing.filled(beside, (drawing.FEW // 8, 8), 0, dtype))
    assert compiled(lambda: drawing.filled(beside, (drawing.FEW + 3,), 0, "float32"))
    assert compiled(lambda: drawing.filled(np.ones(2), (13, 17), 0, "float32"))
    assert compiled(lambda: drawing.filled(jax.device_put(beside, jax.devices()[0]), (17, 13), 0, "float32"))


@pytest.mark.parametrize("key", [jax.random.key(0), None])
def test_in_a_program_equal_numbers_are_no_constant(key):
    program = jax.make_jaxpr(lambda x: initializers.zeros(key, (30, 20)) + x)(1.0)
    assert all(np.size(const) <= 1 for const in program.consts)
    size = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: initializers.ones(key, (x.shape[0], 3)) + x))(x)
    np.testing.assert_array_equal(exported.call(jnp.ones((2, 3))), np.full((2, 3), 2.0))


@pytest.mark.parametrize("key", [jax.random.key(0), None])
def test_shapes_and_dtypes_of_initializers_are_those_of_jax(key):
    for make, wanted in ((initializers.zeros, jnp.zeros), (initializers.ones, jnp.ones)):
        for shape, dtype in ((3, "float32"), ((2, 3), None), ([4], "int32"), (np.int64(2), "bfloat16")):
            got = make(key, shape, dtype)
            assert (got.dtype, got.shape) == (wanted(shape, dtype).dtype, wanted(shape, dtype).shape)
            np.testing.assert_array_equal(got, wanted(shape, dtype))


def test_equal_numbers_in_a_dtype_that_is_not_there_say_so():
    with pytest.warns(UserWarning, match="float64"):
        assert drawing.filled(jnp.ones(2), (3,), 0, "float64").dtype == jnp.float32


def test_equal_numbers_lie_where_their_array_lies():
    """Parameters that were placed have their moments beside them, and a mesh's numbers are the mesh's."""
    mesh, before = jax.make_mesh((jax.device_count(),), ("data",)), jnp.ones(8)
    with jax.set_mesh(mesh):
        for beside in (before, jnp.ones(8)):
            got, wanted = drawing.filled(beside, (8,), 0, "float32"), jnp.full((8,), 0, "float32")
            assert got.sharding == wanted.sharding


def _data(key):
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key

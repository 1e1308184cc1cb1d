"""The kernel under the norms: its derivative rule under every transformation, against the equation left to JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnet import layers
from jaxnet.kernels.normalize import normalize

AXES = {"last": (2,), "batch": (0, 1), "positions": (1,), "one group": (1, 2)}
MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]], bool)[..., None]


def plain(x, axes, centered, mask):
    """The equation; where nothing is masked, without a mask."""
    there = jnp.ones(x.shape, x.dtype) if mask is None else jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    n = jnp.maximum(there.sum(axes, keepdims=True), 1)
    mean = (x * there).sum(axes, keepdims=True) / n if centered else 0
    c = (x - mean) * there
    variance = (c * c).sum(axes, keepdims=True) / n
    return c / jnp.sqrt(variance + 1e-3), mean + 0 * variance, variance


def combined(outputs):
    """One number in which every output counts."""
    return sum(jnp.sum(jnp.sin(one * 1.3 + i)) for i, one in enumerate(outputs))


CASES = [
    ("last", True, False),
    ("last", False, False),
    ("batch", True, True),
    ("positions", True, True),
    ("one group", True, True),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "centered", "masked"), CASES)
def test_derivatives_are_the_equations(name, centered, masked):
    """Of all three outputs: forward, reverse, each over the other, third order; in a scan, recomputed, and mapped."""
    axes, mask = AXES[name], MASK if masked else None
    x, u, v = (np.random.default_rng(i).normal(1, 2, (3, 4, 5)) for i in range(3))

    def derivatives(f, x, u, v):
        def loss(x):
            return combined(f(x))

        grad = jax.grad(loss)
        scanned = jax.grad(lambda x: jax.lax.scan(lambda c, _: (f(c)[0] + c, None), x, length=2)[0].sum())
        hessian = lambda x: jax.jvp(grad, (x,), (u,))[1]  # noqa: E731
        return {
            "value": f(x),
            "jvp": jax.jvp(f, (x,), (u,))[1],
            "grad": grad(x),
            "jvp of grad": hessian(x),
            "grad of jvp": jax.grad(lambda x: jax.jvp(loss, (x,), (u,))[1])(x),
            "grad of grad": jax.grad(lambda x: jnp.vdot(grad(x), v))(x),
            "third": jax.jvp(hessian, (x,), (v,))[1],
            "scan": scanned(x),
            "remat": jax.grad(lambda x: combined(jax.checkpoint(f)(x)))(x),
            "vmap": jax.vmap(grad)(jnp.stack([x, u])),
            "vmap along another axis": jax.vmap(grad, 3, 3)(jnp.stack([x, v], 3)),
        }

    def ours(x):
        how = {"axes": axes[:1], "groups": 1} if name == "one group" else {"axes": axes}
        return tuple(normalize(x, **how, epsilon=1e-3, centered=centered, mask=mask))

    def theirs(x):
        y, *averages = plain(x, axes, centered, mask)
        return y, *(jnp.broadcast_to(one, (3, 1, 5)) if name == "one group" else one for one in averages)

    found, wanted = (jax.jit(functools.partial(derivatives, f))(x, u, v) for f in (ours, theirs))
    for which in wanted:
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9, err_msg=which)
        jax.tree.map(close, found[which], wanted[which])


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.devices(4)
def test_over_devices(check_vma):
    """Statistics of all parts together, with a mask and without; and each device by itself."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).normal(50, 2, (8, 5, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random((8, 5, 1)) > 0.3
    for axes, parts, there in (((0, 1), ("data",), None), ((0, 1), ("data",), mask), ((2,), (), None)):

        def f(x, there, axes=axes, parts=parts):
            return normalize(x, axes, epsilon=1e-3, mask=there, parts=parts).y

        specs = (P("data"), None if there is None else P("data"))
        divided = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=check_vma)

        @functools.partial(jax.jit, static_argnums=0)
        def value_and_gradient(f, x, there):
            return f(x, there), jax.grad(lambda x: jnp.sum(jnp.sin(f(x, there))))(x)

        found, wanted = (value_and_gradient(f, x, there) for f in (divided, functools.partial(f, parts=())))
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)


def test_sixteen_bits_are_widened_and_a_constant_leaves_nothing():
    for dtype in (jnp.float16, jnp.bfloat16):
        x = np.random.default_rng(0).normal(30, 1, (2, 300)).astype(dtype)
        y, mean, _ = jax.jit(lambda x: normalize(x, (1,), epsilon=1e-3))(x)
        assert y.dtype == mean.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(mean)[:, 0], x.astype(np.float64).mean(1), rtol=1e-6)

    @jax.jit
    def both(x):
        mask = jnp.arange(7)[None] > 4
        return [normalize(x, (1,), epsilon=1e-5, mask=one).y for one in (None, mask)]

    for value in (1e4 + 0.1, -3e7, 1e-30):
        for y in both(np.full((3, 7), value, np.float32)):
            np.testing.assert_array_equal(y, np.zeros((3, 7)))


def test_nothing_is_left_by_the_mask():
    x = np.full((2, 3), np.nan, np.float32)
    mask = np.zeros((2, 3), bool)

    def f(x):
        return normalize(x, (1,), epsilon=1e-5, mask=mask)

    @jax.jit
    def every(x):
        return jax.jvp(f, (x,), (x,)), jax.grad(lambda x: combined(f(x)))(x)

    for one in jax.tree.leaves(every(x)):
        np.testing.assert_array_equal(one, np.zeros(one.shape))


@pytest.mark.parametrize(
    ("net", "arrays"),
    [(layers.layer_norm(), 1), (layers.rms_norm(), 1), (layers.group_norm(2), 2)],
    ids=["layer", "rms", "group"],
)
def test_a_large_arrays_derivative_writes_few_arrays_of_its_size(net, arrays):
    x = jax.ShapeDtypeStruct((8192, 512), jnp.float32)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), x)

    def derivative(params, x, t):
        y, pull = jax.vjp(lambda params, x: net.apply(params, (), x, train=True)[0], params, x)
        return y, pull(t)

    memory = jax.jit(derivative).lower(params, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (arrays + 0.1) * 4 * x.size, memory.temp_size_in_bytes


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "centered", "masked"), CASES)
def test_large_arrays_averages_are_the_equations_too(name, centered, masked):
    """Beyond the size from which a processor's program computes them on their own."""
    x, u = (np.random.default_rng(i).normal(1, 2, (3, 1200, 5)) for i in range(2))
    mask = np.random.default_rng(2).random((3, 1200, 1)) < 0.7 if masked else None
    axes = AXES[name]
    how = {"axes": axes[:1], "groups": 1} if name == "one group" else {"axes": axes}

    def ours(x):
        return tuple(normalize(x, **how, epsilon=1e-3, centered=centered, mask=mask))

    def theirs(x):
        y, *averages = plain(x, axes, centered, mask)
        return y, *(jnp.broadcast_to(one, (3, 1, 5)) if name == "one group" else one for one in averages)

    def derivatives(f, x, u):
        return jax.jvp(f, (x,), (u,)), jax.grad(lambda x: combined(f(x)))(x)

    found, wanted = (jax.jit(functools.partial(derivatives, f))(x, u) for f in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("masked", [None, "vectors", "channels"])
def test_groups_of_channels_of_vectors_are_neighbours(masked):
    """Without axes, of one position each: the equation over each group, and of what a mask leaves of it."""
    x = np.random.default_rng(0).normal(1, 2, (4, 6))
    mask = {
        None: None,
        "vectors": np.array([1, 0, 1, 1], bool)[:, None],
        "channels": np.random.default_rng(1).random((4, 6)) < 0.7,
    }[masked]

    def ours(x):
        return tuple(normalize(x, (), epsilon=1e-3, groups=2, mask=mask))

    def theirs(x):
        there = None if mask is None else jnp.broadcast_to(mask, x.shape).reshape(4, 2, 3)
        outputs = plain(x.reshape(4, 2, 3), (2,), True, there)
        return tuple(jnp.broadcast_to(one, (4, 2, 3)).reshape(4, 6) for one in outputs)

    found, wanted = ((f(x), jax.grad(lambda x, f=f: combined(f(x)))(x)) for f in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, wanted)

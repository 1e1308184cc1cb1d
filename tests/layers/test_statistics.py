"""The normalization layers' statistics: of constant and far away values, and of a batch that is in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, ShapeError
from tests.compiled import apply

EPSILON = 1e-5
MAKE = {"batch_norm": layers.batch_norm, "layer_norm": layers.layer_norm}


def right(x, cotangent, axes, scale):
    """The output before the offset, its derivative times the cotangent, mean and variance; in float64."""
    x, cotangent = np.float64(x), np.float64(cotangent) * scale
    mean, factor = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + EPSILON)
    y = (x - mean) * factor
    dx = factor * (cotangent - cotangent.mean(axes, keepdims=True) - y * (cotangent * y).mean(axes, keepdims=True))
    return y * scale, dx, x.mean(axes), x.var(axes)


LAYERS = {name: make() for name, make in MAKE.items()}  # whose programs serve all values


@pytest.mark.parametrize("value", [10000.1, -3e4, 0.1, 1e-30])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", MAKE)
def test_of_a_constant_nothing_is_left(name, dtype, value):
    with jax.enable_x64(dtype == "float64"):
        for shape in ((32, 4), (3, 7, 5, 4)):
            x = np.full(shape, value, jnp.dtype(dtype))
            params, state = LAYERS[name].init(0, x)
            y, new = apply(LAYERS[name], params, state, x, train=True)
            np.testing.assert_array_equal(y, np.zeros(shape))
            if new:
                np.testing.assert_allclose(new["mean"], np.float64(x.flat[0]) / 10, rtol=1e-6)
                np.testing.assert_allclose(new["variance"], 0.9, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def pulled(layer, params, state, x, cotangent):
    (y, new), pull = jax.vjp(lambda x: layer.apply(params, state, x, train=True), x)
    return y, pull((cotangent, jax.tree.map(jnp.zeros_like, new)))[0], new


@pytest.mark.parametrize("mean", [0.0, 1e4, -1e7])
@pytest.mark.parametrize("shape", [(64, 3), (4, 5, 6, 3)])
@pytest.mark.parametrize("name", MAKE)
def test_noise_far_from_zero(name, shape, mean):
    """Float32 has the integers of 1e7 and no more; what they say is kept to the last digit."""
    rng = np.random.default_rng(0)
    x = (mean + rng.normal(0, 1, shape)).astype(np.float32)
    cotangent, scale = rng.normal(0, 1, shape).astype(np.float32), np.array([0.5, -2.0, 3.0], np.float32)
    params, state = LAYERS[name].init(0, x)
    y, dx, new = pulled(LAYERS[name], {**params, "scale": scale}, state, x, cotangent)
    axes = tuple(range(x.ndim - 1)) if name == "batch_norm" else (x.ndim - 1,)
    expected, expected_dx, expected_mean, variance = right(x, cotangent, axes, scale)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-4, atol=1e-4 * np.abs(expected_dx).max())
    if new:
        n = x.size // 3
        np.testing.assert_allclose(new["mean"], 0.1 * expected_mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(new["variance"], 0.9 + 0.1 * variance * n / (n - 1), rtol=1e-5)


@functools.partial(jax.jit, static_argnums=1)
def two_passes(x, axes):
    centered = x - jnp.mean(x, axes, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered**2, axes, keepdims=True) + EPSILON)


@pytest.mark.parametrize("outlier", [1e2, -1e4, 1e6, 3e38])
@pytest.mark.parametrize("name", MAKE)
def test_an_outlier_costs_no_digits(name, outlier):
    """Of one sample, or one channel, at the place where the layer looks: as right as the plain two passes."""
    rng = np.random.default_rng(3)
    for x in (rng.normal(0, 1, (16, 30, 12)).astype(np.float32), np.ones((16, 3, 12), np.float32)):
        if name == "batch_norm":
            x[5, 0], axes = outlier, (0, 1)
            x[6, 0] = -outlier if outlier == 3e38 else 0
        else:
            x[..., 0], axes = outlier, (2,)
        params, state = LAYERS[name].init(0, x)
        y, _ = apply(LAYERS[name], params, state, x, train=True)
        if outlier == 3e38:
            assert np.isfinite(y).all()
            continue
        plain = two_passes(x, axes)
        ours, plains = (np.abs(one - right(x, x, axes, 1)[0])[np.abs(x) < 50].max() for one in (y, plain))
        assert ours <= 2 * plains + 1e-7


def test_training_on_a_symbolic_batch():
    b, t = jax.export.symbolic_shape("b,t")
    layer = layers.batch_norm()
    x = np.random.default_rng(4).normal(2, 3, (6, 5, 3)).astype(np.float32)
    params, state = layer.init(0, x)
    train = jax.jit(functools.partial(layer.apply, train=True))
    for shape, one in (((b, t, 3), x), ((b, 3), x[:, 0])):
        program = jax.export.export(train)(params, state, jax.ShapeDtypeStruct(shape, jnp.float32))
        got, wanted = program.call(params, state, one), train(params, state, one)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, wanted)


DEVICES = 4
WHOLE = P()
X = (1e4 + np.random.default_rng(1).normal(0, 2, (8, 5, 3))).astype(np.float32)
COTANGENT = np.random.default_rng(2).normal(0, 1, X.shape).astype(np.float32)
SCALE = np.array([0.5, -2.0, 3.0], np.float32)


def train(layer, params, state, x):
    return layer.apply(params, state, x, train=True)


def in_parts(wrapped):
    """f of params, state and x, with x in parts along a first axis that ``wrapped`` maps over."""

    def f(params, state, x):
        y, new = wrapped(params, state, x.reshape(DEVICES, -1, *x.shape[1:]))
        return y.reshape(x.shape), new

    return f


def of_shard_map(layer, axes=("data",), state=WHOLE, **options):
    mesh = jax.make_mesh({1: (DEVICES,), 2: (2, 2)}[len(axes)], axes, axis_types=(AxisType.Auto,) * len(axes))
    return jax.shard_map(
        functools.partial(train, layer), mesh=mesh, in_specs=(P(), P(), P(axes)), out_specs=(P(axes), state), **options
    )


WRAPPED = {
    "vmap": lambda layer: in_parts(
        jax.vmap(functools.partial(train, layer), (None, None, 0), (0, None), axis_name="data")
    ),
    "shard_map": of_shard_map,
    "shard_map, unchecked": lambda layer: of_shard_map(layer, check_vma=False),
    "pmap": lambda layer: in_parts(
        jax.pmap(functools.partial(train, layer), "data", in_axes=(None, None, 0), out_axes=(0, None))
    ),
    "shard_map over two axes": lambda layer: of_shard_map(layer, ("data", "more")),
}


def starting(layer):
    params, state = layer.init(0, X)
    return {"scale": SCALE, "offset": params["offset"]}, state


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.devices(DEVICES) if kind != "vmap" else ()) for kind in WRAPPED]
)
def test_a_named_axis_gives_the_whole_batchs_statistics(kind):
    names = ("data", "more") if "two" in kind else "data"
    layer = layers.batch_norm(axis_name=names)
    params, state = starting(layer)
    f = WRAPPED[kind](layer)

    def loss(params, x):
        y, new = f(params, state, x)
        return jnp.vdot(COTANGENT, y), (y, new)

    (_, (y, new)), (d_params, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, X)
    expected, expected_dx, mean, variance = right(X, COTANGENT, (0, 1), SCALE)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_params["scale"], (COTANGENT * expected / SCALE).sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_params["offset"], COTANGENT.sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(new["variance"], 0.9 + 0.1 * variance * 40 / 39, rtol=1e-5)


def test_one_value_a_device_is_enough_of_a_batch():
    layer = layers.batch_norm(axis_name="data")
    params, state = starting(layer)
    x = X[:DEVICES, 0]
    y, _ = jax.jit(WRAPPED["vmap"](layer))(params, state, x)
    np.testing.assert_allclose(y, right(x, x, (0,), SCALE)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="at least two values a channel"):
        WRAPPED["vmap"](layers.batch_norm(axis_name=()))(params, state, x)


@pytest.mark.parametrize("kind", [kind for kind in WRAPPED if kind != "vmap"])
@pytest.mark.devices(DEVICES)
def test_a_devices_part_alone_is_refused(kind):
    layer = layers.chain(layers.batch_norm())
    params, state = starting(layers.batch_norm())
    cure = r"axis_name=\('data', 'more'\)" if "two" in kind else "axis_name='data'"
    with pytest.raises(ConfigError, match=rf"^chain\[0\]: batch_norm: inside shard_map or pmap.*batch_norm\({cure}\)"):
        WRAPPED[kind](layer)((params,), (state,), X)
    with pytest.raises(ConfigError, match=r"axis_name=\(\) takes each part's own"):
        jax.grad(lambda x: WRAPPED[kind](layer)((params,), (state,), x)[0].sum())(jnp.asarray(X))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.devices(DEVICES)
def test_each_part_alone_on_purpose(check_vma):
    layer = layers.batch_norm(axis_name=())
    params, state = starting(layer)
    f = of_shard_map(layer, state=P("data"), check_vma=check_vma)
    y, _ = jax.jit(f)(params, state, X)
    part = X[2:4]
    np.testing.assert_allclose(np.asarray(y)[2:4], right(part, part, (0, 1), SCALE)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.devices(DEVICES)
def test_where_the_whole_batch_is_seen_nothing_is_refused():
    """Inputs that are alike on all devices; evaluation; an ensemble; axes along which XLA divides."""
    layer = layers.batch_norm()
    params, state = starting(layer)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    alike = jax.shard_map(functools.partial(train, layer), mesh=mesh, in_specs=P(), out_specs=P())
    expected = right(X, X, (0, 1), SCALE)[0]
    np.testing.assert_allclose(jax.jit(alike)(params, state, X)[0], expected, rtol=1e-5, atol=1e-5)
    evaluate = functools.partial(layer.apply, train=False)
    parts = jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=(P("data"), P()))
    members = jax.vmap(functools.partial(train, layer), (None, None, 0), axis_name="members")
    for allowed in (parts, members):
        jax.eval_shape(allowed, params, state, X)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data"), P("data", None, "model")])
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.devices(8)
def test_arrays_in_pieces(name, spec, kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    layer = MAKE[name](scale=False, offset=False)
    x = X[:, :4, :2]
    _, state = layer.init(0, x)
    with jax.set_mesh(mesh):
        pieces = jax.device_put(x, NamedSharding(mesh, spec))
        y, _ = jax.jit(lambda x: layer.apply({}, state, x, train=True))(pieces)
    axes = (0, 1) if name == "batch_norm" else (2,)
    np.testing.assert_allclose(y, right(x, x, axes, 1)[0], rtol=1e-5, atol=1e-5)


def test_names_that_are_no_axis():
    layer = layers.batch_norm(axis_name="data")
    params, state = starting(layer)
    for run in (functools.partial(train, layer), WRAPPED["vmap"](layers.batch_norm(axis_name=("data", "dta")))):
        with pytest.raises(ConfigError, match=r"axis_name=\(.*\) is no axis here; .* leave axis_name out"):
            run(params, state, X)
    with pytest.raises(ConfigError, match=r"is no axis here; .* as in training.fit\(mesh=...\), leave axis_name out"):
        training.fit(layer, losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, batch_size=8, progress=False)
    for bad in (3, ["data"], ("data", 1), True):
        with pytest.raises(ConfigError, match="batch_norm: axis_name must be a name or a tuple of names, got"):
            layers.batch_norm(axis_name=bad)

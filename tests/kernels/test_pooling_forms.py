"""Every way to pool against the literal sum and `reduce_window`; which one a platform's program holds."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnet import kernels
from jaxnet.kernels import pooling_forms
from jaxnet.kernels.pooling_forms import Forms, Stops
from tests import oracles
from tests.differences import assert_derivatives
from tests.strategies import PoolND, poolings_nd

KINDS = {"avg": kernels.avg_pool, "max": kernels.max_pool}
BOTH = pytest.mark.parametrize("kind", KINDS)
# A value's form knows nothing of a tangent's: each of both, and what is compared with `reduce_window` is not all pairs.
FORMS = [("window", "window"), ("slices", "gathered"), ("window", "shifted"), ("slices", "shifted")]
EACH = [("avg", Forms(*forms)) for forms in FORMS] + [
    ("max", Forms(*forms)) for forms in FORMS if "gathered" not in forms
]

# Windows that lie wholly in the border; a remainder; gaps; many blocks; window 1; row-major order of ties.
AWKWARD = (
    PoolND((1,), (5,), (5,), ((8, 0),)),
    PoolND((9,), (4,), (3,), ((3, 1),)),
    PoolND((5, 4), (2, 3), (5, 1), ((1, 0), (1, 2))),
    PoolND((9,), (7,), (1,), ((0, 6),)),
    PoolND((4, 3), (1, 2), (1, 3), ((0, 0), (0, 0))),
)


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def windows(case):
    return tuple(map(Stops, range(1, len(case.window) + 1), case.window, case.strides, case.padding))


def by_name(kind):
    return {"-".join(forms): forms for of, forms in EACH if of == kind}


def forced(kind, case, forms):
    return lambda x: pooling_forms.separable(kind, x, windows(case), lambda *_: forms)


def plain(kind, case):
    return lambda x: pooling_forms.plain(kind, x, windows(case))


def public(kind, case):
    return partial(KINDS[kind], window=case.window, **case.keywords)


def allowed(kind, case):
    return kind == "avg" or all(max(pair) < k for pair, k in zip(case.padding, case.window, strict=True))


def derivatives(f, x, dx):
    """The value, the derivative in each mode, and the second derivative in each, of the sum of weighted cubes."""

    def cubes(x):
        y = f(x)
        return jnp.sum(y**3 * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    y, dy = jax.jvp(f, (x,), (dx,))
    gradient, forward_over_reverse = jax.jvp(jax.grad(cubes), (x,), (dx,))
    reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(cubes)(x), dx))(x)
    return y, dy, gradient, forward_over_reverse, reverse_over_reverse


@BOTH
@settings(max_examples=1)
@example(AWKWARD[0])
@example(AWKWARD[1])
@example(AWKWARD[2])
@example(AWKWARD[3])
@given(poolings_nd())
def test_every_form_is_reduce_window_and_the_literal_sum(kind, case):
    """All of them in one program."""
    if not allowed(kind, case):
        return
    # On a GPU, JAX's second derivatives of a maximum are of reduced precision, and say so: no oracle.
    where = jax.devices("cpu")[0] if kind == "max" else None
    with jax.default_device(where), jax.enable_x64(True):
        x, dx = (draw(1, *case.lengths, 2, seed=seed) for seed in (0, 1))

        @jax.jit
        def each(x, dx):
            ours = {of: derivatives(forced(kind, case, forms), x, dx) for of, forms in by_name(kind).items()}
            return ours, derivatives(plain(kind, case), x, dx)

        ours, theirs = each(x, dx)
        for of, found in ours.items():
            for one, other in zip(found, theirs, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12, err_msg=of)
        expected = oracles.pool(x, case.window, kind=kind, **case.keywords)
        np.testing.assert_allclose(theirs[0], expected, rtol=1e-12, atol=1e-13)


@settings(max_examples=3)
@example(AWKWARD[1])
@example(AWKWARD[2])
@given(poolings_nd(below_window=True))
def test_ties_infinities_and_nan(case):
    """The first maximum in row-major order, the border never; of a NaN the first too; forward as in reverse."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).choice([-np.inf, -np.inf, 0.0, -0.0, 1.0, np.nan], (1, *case.lengths, 2))
        dx, cotangent = draw(*x.shape, seed=1), draw(*jax.eval_shape(plain("max", case), x).shape)

        @jax.jit
        def each(x, dx, cotangent):
            found = {}
            for of in ("window-shifted", "slices-shifted"):
                f = forced("max", case, by_name("max")[of])
                y, pullback = jax.vjp(f, x)
                found[of] = y, pullback(cotangent)[0], jax.jvp(f, (x,), (dx,))[1]
            return found, plain("max", case)(x)

        found, expected_y = each(x, dx, cotangent)
        expected = oracles.max_pool_gradient(x, cotangent, case.window, **case.keywords)
        for of, (y, pulled, dy) in found.items():
            np.testing.assert_array_equal(y, expected_y, err_msg=of)
            np.testing.assert_allclose(pulled, expected, rtol=1e-12, atol=1e-13, err_msg=of)
            sums = np.vdot(dy, cotangent), np.vdot(dx, expected)
            np.testing.assert_allclose(*sums, rtol=1e-10, atol=1e-12, err_msg=of)


@pytest.mark.parametrize("forms", [forms for kind, forms in EACH if kind == "avg"])
def test_an_infinity_or_nan_reaches_only_its_windows(forms):
    case = PoolND((9,), (4,), (2,), ((1, 1),))
    x = draw(1, 9, 2, dtype="float32")
    x[0, 3, 0], x[0, 6, 1] = np.inf, np.nan
    ours, theirs = jax.jit(lambda x: (forced("avg", case, forms)(x), plain("avg", case)(x)))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_average_of_half_precision_is_rounded_once(dtype):
    x = np.abs(draw(1, 64, 64, 2, dtype="float32")).astype(jnp.dtype(dtype))
    y = jax.jit(lambda x: kernels.avg_pool(x, (32, 32)))(x)
    exact = np.asarray(x, np.float64).reshape(1, 2, 32, 2, 32, 2).mean((2, 4))
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=float(jnp.finfo(dtype).eps) * 0.51)


@BOTH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_half_precision(kind, dtype):
    case = PoolND((9, 8), (3, 2), (2, 2), ((1, 1), (0, 0)))
    x = draw(2, 9, 8, 3, dtype="float32").astype(jnp.dtype(dtype))
    dx = jax.jit(jax.grad(lambda x: public(kind, case)(x).astype("float32").sum()))(x)
    expected = jax.jit(jax.grad(lambda x: plain(kind, case)(x).sum()))(x.astype("float32"))
    assert dx.dtype == dtype
    np.testing.assert_allclose(np.asarray(dx, np.float32), expected, rtol=2e-2, atol=1e-2)


CASE = PoolND((12, 9), (4, 3), (4, 2), ((0, 0), (1, 1)))


def gradient(kind, x, pool=public):
    """Of the sum of cubes."""
    return jax.grad(lambda x: jnp.sum(pool(kind, CASE)(x) ** 3))(x)


@BOTH
def test_transformations_give_what_reduce_window_gives(kind):
    """A batch axis, a scan differentiated from within and through, rematerialization, a donated buffer."""
    xs = draw(3, 2, *CASE.lengths, 2, dtype="float32")

    def loss(pool, x):
        return jnp.sum(pool(kind, CASE)(x) ** 3)

    def scanned(pool):
        inside = lax.scan(lambda _, x: (None, jax.grad(partial(loss, pool))(x)), None, xs)[1]
        through = jax.grad(lambda xs: lax.scan(lambda total, x: (total + loss(pool, x), None), 0.0, xs)[0])(xs)
        return inside, through

    @jax.jit
    def gradients(xs):
        expected, ours, remat = (
            jax.vmap(jax.grad(f))(xs)
            for f in (partial(loss, plain), partial(loss, public), jax.checkpoint(partial(loss, public)))
        )
        return expected, ours, remat, *scanned(plain), *scanned(public)

    first, *others = gradients(xs)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5, atol=1e-6)
    donated = jax.jit(partial(gradient, kind), donate_argnums=0)(jax.device_put(xs[0].copy()))
    np.testing.assert_allclose(donated, np.asarray(first)[0], rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.usefixtures("x64")
def test_derivatives_of_what_a_platform_chooses(kind):
    case = PoolND((4, 5), (2, 3), (2, 2), ((0, 0), (1, 1)))
    assert_derivatives(lambda x: public(kind, case)(x) ** 2, draw(1, 4, 5, 1))


@BOTH
@pytest.mark.devices(2)
def test_sharded(kind):
    """By hand, with the check of what is replicated, and automatically; along the batch."""
    x = draw(4, *CASE.lengths, 2, dtype="float32")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = PartitionSpec("data")
    expected = jax.jit(partial(gradient, kind))(x)
    by_hand = jax.jit(jax.shard_map(partial(gradient, kind), mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(by_hand(x), expected, rtol=1e-6)

    def loss(scale, x):
        return lax.psum(jnp.sum(public(kind, CASE)(scale * x) ** 3), "data")

    replicated = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec(), check_vma=True
    )
    one = jax.jit(jax.grad(lambda scale: jnp.sum(public(kind, CASE)(scale * x) ** 3)))(np.float32(1.5))
    np.testing.assert_allclose(jax.jit(replicated)(np.float32(1.5), x), one, rtol=1e-4)

    placed = jax.device_put(x, NamedSharding(mesh, spec))
    automatic = jax.jit(partial(gradient, kind))(placed)
    np.testing.assert_allclose(automatic, expected, rtol=1e-6)


def lowered(f, x, *platforms):
    return jax.jit(f).trace(x).lower(lowering_platforms=platforms).as_text()


SPREAD = [
    PoolND((16,), (4,), (4,), ((0, 0),)),
    PoolND((16,), (3,), (2,), ((1, 1),)),
    PoolND((64,), (32,), (1,), ((0, 0),)),
    PoolND((8, 9), (3, 3), (2, 2), ((1, 1), (1, 1))),
]


def operations(program):
    """The names of what a program does, in MLIR or in HLO."""
    return {a or b for a, b in re.findall(r"stablehlo\.(\w+)|\s([a-z][a-z-]*)\(", program)}


@BOTH
@pytest.mark.parametrize("case", SPREAD)
@pytest.mark.usefixtures("on_the_cpu")
def test_on_a_cpu_the_backward_pass_scatters_nothing(kind, case):
    x = jax.ShapeDtypeStruct((2, *case.lengths, 3), jnp.float32)

    def programs(pool):
        f = jax.grad(lambda x: jnp.sum(pool(kind, case)(x) ** 2))
        return operations(lowered(f, x, "cpu")), operations(jax.jit(f).lower(x).compile().as_text())

    loops = {"select_and_scatter", "select-and-scatter", "scatter", "while"}
    for ours, theirs in zip(programs(public), programs(plain), strict=True):
        assert {"slice", "reshape", "multiply"} & ours
        assert not loops & ours
        assert kind == "avg" or loops & theirs


def structure(program):
    """How often each operation that pools occurs."""
    return {name: program.count(f'"stablehlo.{name}"') for name in ("reduce_window", "select_and_scatter")}


@pytest.mark.parametrize("case", SPREAD)
@pytest.mark.parametrize(("platform", "kind"), [("tpu", "avg"), ("tpu", "max"), ("cuda", "avg")])
def test_elsewhere_it_is_one_reduce_window(kind, case, platform):
    x = jax.ShapeDtypeStruct((2, *case.lengths, 3), jnp.float32)
    for wrap in (lambda f: f, lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2))):
        ours, theirs = (lowered(wrap(f(kind, case)), x, platform) for f in (public, plain))
        assert structure(ours) == structure(theirs)
        assert structure(ours)["reduce_window"]


@pytest.mark.parametrize("case", SPREAD)
def test_the_maximums_gradient_scatters_nothing_on_a_gpu(case):
    x = jax.ShapeDtypeStruct((2, *case.lengths, 3), jnp.float32)
    program = lowered(jax.grad(lambda x: jnp.sum(public("max", case)(x) ** 2)), x, "cuda")
    assert not structure(program)["select_and_scatter"]


@BOTH
def test_one_exported_program_for_all_platforms(kind):
    x = jax.ShapeDtypeStruct((2, *CASE.lengths, 3), jnp.float32)
    exported = jax.export.export(jax.jit(partial(gradient, kind)), platforms=("cpu", "cuda", "tpu"))(x)
    values = draw(*x.shape, dtype="float32")
    np.testing.assert_allclose(exported.call(values), jax.jit(partial(gradient, kind))(values), rtol=1e-6)


def test_window_too_long_to_unroll_stays_reduce_window():
    assert pooling_forms.cpu_forms("max", Stops(1, 500, 1, (0, 0)), 1).tangent == "window"
    x = draw(1, 300, 1, dtype="float32")
    case = PoolND((300,), (200,), (1,), ((0, 0),))
    for kind in KINDS:
        both = jax.jit(lambda x, kind=kind: (public(kind, case)(x), plain(kind, case)(x)))
        np.testing.assert_allclose(*both(x), rtol=1e-5, atol=1e-6)

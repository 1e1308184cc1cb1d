"""Convolutions under every transformation of JAX, and what they are compiled to on each platform."""

import dataclasses
import functools
import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxnet import kernels
from tests import oracles
from tests.differences import assert_derivatives

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@dataclasses.dataclass(frozen=True, eq=False)  # JAX keeps weak references to what it transforms
class Case:
    """A convolution; ``x`` and ``kernel`` are shapes."""

    function: Any
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    keywords: dict[str, Any]

    def __call__(self, x, kernel):
        return self.function(x, kernel, **self.keywords)

    @property
    def y(self):
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (self.x, self.kernel))
        return jax.eval_shape(self, *shapes).shape

    def with_batch(self, batch):
        return dataclasses.replace(self, x=(batch, *self.x[1:]))


# One case a branch of the CPU's lowering, small.
CASES = {
    "dense": Case(kernels.conv, (2, 6, 3), (3, 3, 4), {"padding": 1}),
    "strided": Case(kernels.conv, (2, 9, 3), (4, 3, 2), {"strides": 2, "padding": (1, 2)}),
    "strided, dilated": Case(kernels.conv, (2, 8, 2), (2, 2, 3), {"strides": 2, "dilation": 3}),
    "dilated": Case(kernels.conv, (2, 8, 2), (3, 2, 3), {"dilation": 2}),
    "grouped": Case(kernels.conv, (2, 6, 4), (3, 2, 8), {"groups": 2, "padding": 1}),
    "strided, grouped": Case(kernels.conv, (2, 7, 4), (3, 2, 6), {"groups": 2, "strides": 2}),
    "depthwise": Case(kernels.conv, (2, 6, 4), (3, 1, 4), {"groups": 4, "padding": "same"}),
    "one channel": Case(kernels.conv, (2, 6, 1), (3, 1, 4), {"padding": 1}),
    "one filter": Case(kernels.conv, (2, 6, 4), (3, 4, 1), {"padding": 1}),
    "one tap": Case(kernels.conv, (2, 4, 3), (1, 3, 4), {}),
    "transposed": Case(kernels.conv_transpose, (2, 4, 3), (4, 3, 2), {"strides": 2, "padding": "same"}),
    "transposed, grouped": Case(kernels.conv_transpose, (2, 3, 4), (3, 2, 6), {"groups": 2, "strides": 3}),
    "transposed, filled": Case(
        kernels.conv_transpose, (2, 3, 2), (2, 2, 2), {"strides": 2, "padding": (1, 2), "padding_value": 0.5}
    ),
    "transposed 2-D": Case(kernels.conv_transpose, (2, 3, 2, 2), (2, 3, 2, 2), {"strides": (2, 1), "padding": 2}),
    "depthwise 2-D": Case(kernels.conv, (2, 4, 3, 3), (2, 2, 1, 3), {"groups": 3}),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def some(*names):
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


SOME = some("dense", "strided, grouped", "depthwise", "transposed", "transposed, grouped")


def draw_arrays(*shapes, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def results(case, x, kernel, cotangent):
    """(y, dx, dkernel): the form solved for each of its slots."""
    y, pullback = jax.vjp(case, x, kernel)
    return y, *pullback(cotangent)


def assert_trees_close(got, expected, **tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, **(tolerance or CLOSE))


@EVERY
@pytest.mark.usefixtures("x64")
def test_first_and_second_derivatives(case):
    assert_derivatives(case, *draw_arrays(case.with_batch(1).x, case.kernel))


@SOME
@pytest.mark.usefixtures("x64")
def test_grad_of_grad(case):
    """Of a loss that bends, through both orders of modes: the Hessian's products with a vector, x and kernel mixed."""
    arrays, steps = draw_arrays(case.x, case.kernel), draw_arrays(case.x, case.kernel, seed=1)
    gradient = jax.grad(lambda arrays: jnp.sum(jnp.sin(case(*arrays))))

    @jax.jit
    def products(arrays):
        forward = jax.jvp(gradient, (arrays,), (steps,))[1]
        reverse = jax.grad(lambda arrays: sum(jnp.vdot(g, s) for g, s in zip(gradient(arrays), steps, strict=True)))(
            arrays
        )
        near = [gradient(tuple(a + h * s for a, s in zip(arrays, steps, strict=True))) for h in (1e-5, -1e-5)]
        return forward, reverse, jax.tree.map(lambda up, down: (up - down) / 2e-5, *near)

    forward, reverse, differences = products(arrays)
    assert_trees_close(reverse, forward)
    assert_trees_close(forward, differences, rtol=1e-6, atol=1e-6)


@EVERY
@pytest.mark.usefixtures("x64")
def test_vmap_is_a_loop(case):
    """Over every choice of x, kernel and cotangent, at unusual axes, and nested; per-example gradients among them."""
    members, shapes = 3, (case.x, case.kernel, case.y)
    run = jax.jit(functools.partial(results, case))  # one program for every choice
    arrays = draw_arrays(*((members, *shape) for shape in shapes))
    choices = [axes for axes in itertools.product((0, None), repeat=3) if axes != (None,) * 3]

    @jax.jit
    def mapped(*arrays):
        every = []
        for axes in choices:
            operands = [a if axis == 0 else a[0] for a, axis in zip(arrays, axes, strict=True)]
            every.append(jax.vmap(functools.partial(results, case), axes)(*operands))
        return every

    for axes, got in zip(choices, mapped(*arrays), strict=True):
        looped = [
            run(*(a[i if axis == 0 else 0] for a, axis in zip(arrays, axes, strict=True))) for i in range(members)
        ]
        assert_trees_close(got, jax.tree.map(lambda *values: np.stack(values), *looped))


@SOME
@pytest.mark.usefixtures("x64")
def test_vmap_at_unusual_axes_and_nested(case):
    run = functools.partial(results, case)
    x, kernel, y = draw_arrays((2, *case.x), (3, *case.kernel), (3, 2, *case.y))

    @jax.jit
    def unusual(x, kernel, y):
        moved = jnp.moveaxis(x, 0, 2), jnp.moveaxis(kernel, 0, 1), jnp.moveaxis(y, (0, 1), (-1, 1))
        inner = jax.vmap(run, (2, None, 1), out_axes=(0, 1, 2))
        return jax.vmap(inner, (None, 1, -1), out_axes=(0, 0, 1))(*moved)

    alone = jax.jit(run)
    looped = [[alone(x[i], kernel[k], y[k, i]) for i in range(2)] for k in range(3)]
    expected = [np.array([[row[i][n] for i in range(2)] for row in looped]) for n in range(3)]  # (k, i, ...)
    expected[1] = np.moveaxis(expected[1], 1, 2)
    expected[2] = np.moveaxis(expected[2], (0, 1), (1, 3))
    assert_trees_close(unusual(x, kernel, y), expected)


@some("dense", "strided", "strided, dilated", "one channel", "transposed")
@pytest.mark.usefixtures("x64")
def test_more_members_than_are_unrolled(case):
    case = case.with_batch(1)
    arrays = draw_arrays(*((66, *shape) for shape in (case.x, case.kernel, case.y)))
    run = functools.partial(results, case)
    program = jax.jit(jax.vmap(run)).lower(*arrays)
    assert program.as_text().count("stablehlo.convolution") == 0  # it is the other form: products, one a member
    assert_trees_close(program.compile()(*arrays), jax.jit(lambda *a: jax.lax.map(lambda b: run(*b), a))(*arrays))


def training_step(case, x, kernel):
    """A step of gradient descent by both, so that loops have something to carry.

    The rate is a power of two, which every type has exactly. With 0.1, on a GPU and in float64, the eager steps of
    "transposed, filled" were 1e-8 from the compiled ones, as if one of both had rounded the rate to float32. Its
    gradient by x alone is a forward convolution with nothing behind, into which XLA can pull what scales and adds it.
    """
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.tanh(case(x, w))), (0, 1))
    return tuple(a - 0.125 * g for a, g in zip((x, kernel), gradient(x, kernel), strict=True))


@some("dense", "strided, grouped", "depthwise", "one filter", "transposed, filled")
@pytest.mark.usefixtures("x64")
def test_loops_checkpoints_donation_and_eager_calls_are_the_step_alone(case):
    arrays = draw_arrays(case.x, case.kernel)
    traced = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(x, kernel):
        traced.append(1)
        return training_step(case, x, kernel)

    expected = tuple(map(jax.device_put, (a.copy() for a in arrays)))
    for _ in range(3):
        expected = step(*expected)
    assert len(traced) == 1

    def one(arrays):
        return training_step(case, *arrays)

    @jax.jit
    def loops(arrays, steps):
        scanned, _ = jax.lax.scan(lambda carry, _: (one(carry), None), arrays, length=3)
        again = jax.lax.while_loop(
            lambda carry: carry[0] < steps, lambda carry: (carry[0] + 1, one(carry[1])), (0, arrays)
        )
        remade = arrays
        for _ in range(3):
            remade = training_step(jax.checkpoint(case), *remade)
        return scanned, again[1], remade

    for got in loops(arrays, 3):
        assert_trees_close(got, expected)
    if case is CASES["dense"] or case is CASES["transposed, filled"]:  # operation by operation, each is a program
        eager = arrays
        for _ in range(3):
            eager = one(eager)
        assert_trees_close(eager, expected)


@EVERY
def test_an_empty_batch_has_empty_outputs_and_no_gradient(case):
    case = case.with_batch(0)
    x, kernel, cotangent = draw_arrays(case.x, case.kernel, case.y, dtype="float32")
    y, dx, dkernel = jax.jit(functools.partial(results, case))(x, kernel, cotangent)
    assert y.shape == case.y
    assert y.shape[0] == 0
    assert dx.shape == case.x
    np.testing.assert_array_equal(dkernel, np.zeros(case.kernel))


# Sharding.


def local_loss(case, x, kernel):
    return jnp.sum(jnp.sin(case(x, kernel)))


def automatic_mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@SOME
@pytest.mark.usefixtures("x64")
@pytest.mark.devices(8)
def test_inside_shard_map(case):
    """Batch sharded, kernel replicated: gradients of the mapped loss, and gradients taken inside, with the checks."""
    case = case.with_batch(8)
    arrays = draw_arrays(case.x, case.kernel)
    loss = functools.partial(local_loss, case)
    expected = jax.jit(lambda *a: (case(*a), *jax.grad(loss, (0, 1))(*a)))(*arrays)
    shard = functools.partial(jax.shard_map, mesh=automatic_mesh(), in_specs=(P("data"), P()), check_vma=True)
    y = shard(case, out_specs=P("data"))
    inside = shard(jax.grad(loss, (0, 1)), out_specs=(P("data"), P()))
    whole = shard(lambda x, w: jax.lax.psum(loss(x, w), "data"), out_specs=P())
    found = jax.jit(lambda *a: (y(*a), *inside(*a), *jax.grad(whole, (0, 1))(*a)))(*arrays)
    assert_trees_close(found, (*expected, *expected[1:]))


@SOME
@pytest.mark.usefixtures("x64")
@pytest.mark.devices(8)
def test_automatic_sharding(case):
    case = case.with_batch(8)
    arrays = draw_arrays(case.x, case.kernel, case.y)
    run = jax.jit(functools.partial(results, case))
    mesh = automatic_mesh()
    placed = [
        jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))
        for a, spec in zip(arrays, (P("data"), P(), P("data")), strict=True)
    ]
    assert_trees_close(run(*placed), run(*arrays))


@SOME
@pytest.mark.usefixtures("x64")
@pytest.mark.devices(8)
def test_explicit_sharding_is_in_the_types(case):
    case = case.with_batch(8)
    arrays = draw_arrays(case.x, case.kernel, case.y)
    expected = jax.jit(functools.partial(results, case))(*arrays)
    specs = []

    @jax.jit
    def run(x, kernel, cotangent):
        values = results(case, x, kernel, cotangent)
        specs.extend(jax.typeof(v).sharding.spec for v in values)
        return values

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        got = run(*(jax.device_put(a, spec) for a, spec in zip(arrays, (P("data"), P(), P("data")), strict=True)))
    assert [tuple(spec)[:1] for spec in specs] == [("data",), ("data",), (None,)]
    assert all(axis is None for spec in specs for axis in tuple(spec)[1:])
    assert_trees_close(got, expected)


# What it is compiled to.


class Convolution(NamedTuple):
    """A convolution of a StableHLO program, as much of it as matters here."""

    dimensions: str
    lhs_dilation: tuple[int, ...]
    feature_groups: int
    batch_groups: int
    line: str


def convolutions_of(text):
    found = []
    for line in text.splitlines():
        if "stablehlo.convolution(" not in line:
            continue
        dilation = re.search(r"lhs_dilate = \[([\d, ]+)\]", line)
        found.append(
            Convolution(
                re.search(r"dim_numbers = (\S.*?\S), window", line)[1],
                tuple(map(int, dilation[1].split(","))) if dilation else (),
                int(re.search(r"feature_group_count = (\d+)", line)[1]),
                int(re.search(r"batch_group_count = (\d+)", line)[1]),
                line,
            )
        )
    assert len(found) == text.count("stablehlo.convolution")
    return found


def lowered(function, *shapes, platform):
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@EVERY
def test_a_tpu_gets_one_plain_convolution_a_slot(case):
    case = dataclasses.replace(case, keywords=case.keywords | {"padding_value": 0.0})
    text = lowered(functools.partial(results, case), case.x, case.kernel, case.y, platform="tpu")
    groups = case.keywords.get("groups", 1)
    found = [(conv.feature_groups, conv.batch_groups) for conv in convolutions_of(text)]
    assert sorted(found) == sorted([(groups, 1), (groups, 1), (1, groups)])


@EVERY
def test_a_gpu_gets_convolutions_that_xla_finds_the_vendors_for(case):
    """XLA stuffs grouped inputs with zeros, and takes a stride for a kernel as long as the signal.

    The latter is how JAX writes a dilated convolution's gradient by its kernel: a stride, and no kernel size.
    """
    text = lowered(functools.partial(results, case), case.x, case.kernel, case.y, platform="cuda")
    for conv in convolutions_of(text):
        stuffed = max(conv.lhs_dilation, default=1) > 1
        assert not (stuffed and conv.feature_groups * conv.batch_groups > 1), conv.line
        if "strides" not in case.keywords:
            strides = re.search(r"stride = \[([\d, ]+)\]", conv.line)
            assert not strides or set(map(int, strides[1].split(","))) == {1}, conv.line


@some("depthwise", "one tap", "depthwise 2-D")
def test_a_gpu_gets_no_convolution_for_what_is_none(case):
    text = lowered(functools.partial(results, case), case.x, case.kernel, case.y, platform="cuda")
    assert not convolutions_of(text)


@pytest.mark.parametrize(
    ("x", "kernel", "strides", "dtypes"),
    [
        ((2, 8, 8, 6), (3, 3, 1, 6), 1, {"bfloat16"}),
        ((2, 8, 8, 6), (5, 5, 1, 6), 1, {"bfloat16"}),
        ((2, 9, 9, 6), (3, 9, 1, 6), 1, set()),
        ((2, 8, 8, 6), (3, 3, 1, 6), 2, set()),
        ((2, 64, 32), (41, 4, 32), 4, {"bfloat16"}),
        ((2, 64, 32), (41, 4, 64), 4, set()),
        ((2, 64, 32), (16, 4, 32), 4, set()),
    ],
    ids=["2-D", "25 taps", "27 taps", "2-D strided", "strided", "strided to more", "16 taps"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gpu_gets_the_plain_form_in_16_bits_where_the_vendor_has_kernels_for_it(x, kernel, strides, dtypes, dtype):
    groups = x[-1] // kernel[-2]

    def gradients(x, kernel):
        return jax.grad(lambda *of: jnp.sum(kernels.conv(*of, groups=groups, strides=strides)), (0, 1))(x, kernel)

    shapes = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
    text = jax.jit(gradients).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    grouped = [conv for conv in convolutions_of(text) if groups in (conv.feature_groups, conv.batch_groups)]
    assert (len(grouped) == 2) == (dtype in dtypes)


@pytest.mark.parametrize(
    ("keywords", "kernel"),
    [
        ({"dilation": 3}, (4, 8, 8)),
        ({"dilation": 3, "groups": 2}, (2, 4, 8)),
        ({"dilation": 3, "strides": 2}, (3, 8, 8)),
        ({"dilation": (2, 3)}, (2, 2, 8, 8)),
    ],
    ids=["four taps", "grouped", "strided", "2-D"],
)
def test_a_gpu_gets_a_dilated_kernels_gradient_without_a_stride_or_as_a_strided_one(keywords, kernel):
    """A stride other than the forward one's would be the dilation, exchanged with it: what XLA does not recognize."""
    x = (2, *(16,) * (len(kernel) - 2), 8)

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(kernels.conv(x, kernel, **keywords) ** 2))(kernel)

    text = lowered(gradient, x, kernel, platform="cuda")
    strides = [re.search(r"stride = \[([\d, ]+)\]", conv.line) for conv in convolutions_of(text)]
    forward = keywords.get("strides", 1)
    assert all(found is None or set(map(int, found[1].split(","))) <= {1, forward} for found in strides)


def test_a_gpu_gets_narrow_groups_as_fewer():
    x, kernel = (2, 16, 128), (3, 4, 128)
    text = lowered(functools.partial(kernels.conv, groups=32), x, kernel, platform="cuda")
    assert [conv.feature_groups for conv in convolutions_of(text)] == [8]


@pytest.mark.parametrize(
    ("platform", "channels", "groups", "apart"),
    [("cuda", 128, 2, 1), ("cuda", 128, 1, 0), ("cuda", 64, 4, 0), ("tpu", 128, 2, 0)],
    ids=["grouped", "dense", "packed into one", "elsewhere"],
)
def test_on_a_gpu_a_bias_stays_out_of_a_grouped_convolution(platform, channels, groups, apart):
    x, kernel = (2, 16, channels), (3, channels // groups, channels)
    text = lowered(lambda x, w: kernels.conv(x, w, groups=groups) + 1.0, x, kernel, platform=platform)
    assert text.count("optimization_barrier") == apart


@pytest.mark.parametrize(("taps", "convolutions"), [(9, 0), (10, 1)])
def test_a_gpu_gets_members_as_one_batched_product_up_to_nine_taps(taps, convolutions):
    text = lowered(jax.vmap(kernels.conv), (3, 2, 16, 8), (3, taps, 8, 8), platform="cuda")
    assert len(convolutions_of(text)) == convolutions


@EVERY
@pytest.mark.usefixtures("without_calls")
def test_the_cpu_gets_dense_convolutions_of_stride_one_in_x(case):
    """XLA runs stuffed and grouped convolutions in plain loops there; that none is left is what makes this fast."""
    text = lowered(functools.partial(results, case), case.x, case.kernel, case.y, platform="cpu")
    for conv in convolutions_of(text):
        assert set(conv.lhs_dilation) <= {1}, conv.line
        assert (conv.feature_groups, conv.batch_groups) == (1, 1), conv.line


@some("dense", "strided", "strided, dilated", "dilated", "grouped", "transposed")
@pytest.mark.usefixtures("without_calls")
def test_inside_a_loop_the_cpu_gets_canonical_dimension_numbers(case):
    def steps(x, kernel):
        return jax.lax.scan(lambda carry, _: (training_step(case, *carry), None), (x, kernel), length=2)[0]

    found = convolutions_of(lowered(steps, case.x, case.kernel, platform="cpu"))
    assert found
    assert {conv.dimensions for conv in found} == {"[b, 0, f]x[0, i, o]->[b, 0, f]"}


@some("dense", "transposed, grouped")
def test_the_callers_precision_reaches_the_program(case):
    shapes = case.x, case.kernel, case.y
    with jax.default_matmul_precision(None):
        plain = lowered(functools.partial(results, case), *shapes, platform="tpu")
    with jax.default_matmul_precision("float32"):
        exact = lowered(functools.partial(results, case), *shapes, platform="tpu")
    assert "HIGHEST" not in plain
    assert len(convolutions_of(exact)) == 3
    assert all(conv.line.count("precision HIGHEST") == 2 for conv in convolutions_of(exact))


@some("dense", "depthwise", "transposed, grouped")
def test_export_for_three_platforms(case):
    arrays = draw_arrays(case.x, case.kernel, case.y, dtype="float32")
    run = jax.jit(functools.partial(results, case))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(*arrays)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert_trees_close(exported.call(*arrays), run(*arrays), rtol=1e-5, atol=1e-5)


# Values that are not finite.

# The padding is spelled out, for the oracle. Not here, because on a CPU it does spread there (it meets zeros that a
# rewrite put into the kernel): groups that `packed` joins, outputs that `folded` computes together, kernels that
# `polyphase` fills to a multiple of the stride. A GPU packs the groups of "strided, grouped".
LOCAL = {
    "dense": Case(kernels.conv, (2, 8, 3), (3, 3, 4), {"padding": (1, 1)}),
    "strided": Case(kernels.conv, (2, 9, 3), (4, 3, 2), {"strides": 2, "padding": (1, 2)}),
    "dilated": Case(kernels.conv, (2, 9, 2), (3, 2, 3), {"dilation": 2, "padding": (0, 0)}),
    "grouped, few": Case(kernels.conv, (1, 7, 8), (3, 2, 8), {"groups": 4, "padding": (1, 0)}),
    "grouped, 16 filters": Case(kernels.conv, (1, 7, 4), (3, 2, 32), {"groups": 2, "padding": (1, 1)}),
    "strided, grouped": Case(kernels.conv, (1, 11, 16), (4, 8, 16), {"groups": 2, "strides": 2, "padding": (0, 0)}),
    "depthwise": Case(kernels.conv, (2, 6, 4), (3, 1, 4), {"groups": 4, "padding": (2, 0)}),
    "one filter": Case(kernels.conv, (2, 6, 4), (3, 4, 1), {"padding": (1, 1)}),
    "transposed, stride 1": Case(kernels.conv_transpose, (1, 6, 3), (4, 3, 2), {"padding": (2, 2)}),
    "transposed": Case(kernels.conv_transpose, (1, 5, 3), (4, 3, 2), {"strides": 2, "padding": (1, 3)}),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", LOCAL.values(), ids=LOCAL)
def test_what_is_not_finite_stays_where_windows_see_it(case, value):
    oracle = {kernels.conv: oracles.conv, kernels.conv_transpose: oracles.conv_transpose}[case.function]
    keywords = {"strides": 1, "dilation": 1} | case.keywords
    keywords |= {name: (keywords[name],) for name in ("strides", "padding", "dilation")}
    x, kernel = np.zeros(case.x, np.float32), np.ones(case.kernel, np.float32)
    at = (0, case.x[1] // 2, case.x[-1] // 2)
    x[at] = 1.0
    seen = oracle(x, kernel, **keywords) != 0
    x[at] = value
    y = np.asarray(jax.jit(case)(x, kernel))
    assert seen.any()
    assert not seen.all()
    reached = ~np.isfinite(y)
    if jax.default_backend() == "gpu" and case is LOCAL["strided, grouped"]:
        assert (seen <= reached).all()
        assert (reached <= seen.any(-1, keepdims=True)).all()  # never more than the groups that are packed with its own
    else:
        np.testing.assert_array_equal(reached, seen)

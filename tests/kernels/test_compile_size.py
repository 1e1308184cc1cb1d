"""What a program costs before it runs: how many operations there are to compile, and the memory that it takes aside."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import kernels
from jaxnet.kernels import forms, lowering
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import OPERANDS

# The forms that are XLA's own, the same on every processor.
pytestmark = pytest.mark.usefixtures("without_calls")


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def trained(f):
    """All three slots: the sum of squares, and its gradient by both operands."""
    return jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1)))


def conv(x, w, **keywords):
    return kernels.conv(x, w, padding="same", **keywords)


def plain(x, w, groups=1):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def operations(groups, channels, filters, size, strides=1):
    f = trained(lambda x, w: conv(x, w, groups=groups, strides=strides))
    program = f.lower(struct(2, 14, 14, channels * groups), struct(*size, channels, filters * groups)).as_text()
    return program.count("stablehlo.")


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("channels", "filters"), [(8, 8), (16, 16), (9, 17)])
def test_more_groups_of_an_image_are_no_more_to_compile(channels, filters, strides):
    few, many = (operations(groups, channels, filters, (3, 3), strides) for groups in (8, 64))
    assert many <= few + 5


@pytest.mark.parametrize("strides", [1, 2])
def test_more_rows_of_a_large_depthwise_kernel_are_no_more_to_compile(strides):
    few, many = (operations(8, 1, 1, (rows, 9), strides) for rows in (31, 47))
    assert many <= few + 5


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("few", "many", "at_once"), [(24, 56, 8), (25, 55, 5)])
def test_more_groups_of_a_signal_are_no_more_to_compile_for_the_kernels_gradient(strides, few, many, at_once):
    def gradient(groups):
        def of_kernel(x, w, dy):
            return jax.vjp(lambda w: conv(x, w, groups=groups, strides=strides), w)[1](dy)

        x, w, dy = struct(2, 16, 8 * groups), struct(3, 8, 8 * groups), struct(2, 16 // strides, 8 * groups)
        return jax.jit(of_kernel).lower(x, w, dy).as_text()

    assert gradient(many).count("stablehlo.") <= gradient(few).count("stablehlo.") + 5
    for groups in (few, many):  # several at once: each by itself in a loop would be slower
        assert gradient(groups).count("stablehlo.convolution") == at_once


@pytest.mark.parametrize(("slot", "groups"), [("y", 24), ("x", 24), ("w", 16)])
def test_other_groups_of_a_signal_are_a_form_each(slot, groups):
    numbers = Geometry((16,), (4,), (8,), (2,), (1,), (1,), groups)
    of = {"x": (1, 2, 16, 8 * groups), "w": (1, 4, 8, 8 * groups), "y": (1, 2, 8, 8 * groups)}
    operands = [struct(*of[name]) for name in OPERANDS[slot]]
    program = jax.jit(lambda a, b: lowering.cpu.solve(slot, a, b, numbers)).lower(*operands).as_text()
    assert program.count("stablehlo.convolution") == groups


# Instructions after XLA's optimizations, ours over the plain form's, and what compiling takes is about half of that.
# The depthwise one has 14 to 16.2 times as many, by the processor, whose features choose what XLA fuses.
BLOCKS = {
    "a ResNeXt block": ((8, 16, 16, 256), (3, 3, 8, 256), 32, 6),
    "a ResNeXt block of 64 groups": ((2, 16, 16, 512), (3, 3, 8, 512), 64, 6),
    "a 7 x 7 depthwise one": ((2, 28, 28, 32), (7, 7, 1, 32), 32, 20),
}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("x", "w", "groups", "most"), BLOCKS.values(), ids=BLOCKS)
def test_what_xla_has_to_compile(x, w, groups, most):
    def instructions(f):
        program = trained(lambda x, w: f(x, w, groups=groups)).lower(struct(*x), struct(*w))
        return program.compile().as_text().count("\n")

    ours, theirs = instructions(conv), instructions(plain)
    assert ours < most * theirs


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("groups", [128, 192, 256])
def test_more_groups_than_are_unrolled_are_packed_into_as_few_as_need_be(groups):
    """A block of n groups has n times the arithmetic: here 2 to 4 times, and not what all groups as one would have."""

    def arithmetic(groups):
        f = trained(lambda x, w: kernels.conv(x, w, padding="same", groups=groups))
        program = f.lower(struct(2, 16, 8 * groups), struct(3, 8, 8 * groups))
        return program.cost_analysis()["flops"] / groups

    assert arithmetic(groups) < 1.5 * -(-groups // 64) * arithmetic(64)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_large_image_takes_no_memory_aside():
    """2 x 224 x 224, 64 to 64 channels, 3 x 3: joined rows would be 103 MB; a convolution alone needs nothing."""
    x, w = struct(2, 224, 224, 64), struct(3, 3, 64, 64)

    def aside(f):
        return f.lower(x, w).compile().memory_analysis().temp_size_in_bytes

    assert aside(jax.jit(conv)) <= 2**20
    assert aside(trained(conv)) <= aside(trained(plain)) + 2 * lowering.cpu.MOST_JOINED


@pytest.mark.parametrize(
    ("channels", "strides", "dilation", "most"),
    [
        *itertools.product([3], [1, 2], [1, 2], [1, 2000, 5000, 10**9]),
        *itertools.product(
            [16], [2], [1, 2], [1, 10_000, 10**9]
        ),  # the sum of products of patches: of 6 rows 3 at once, of 5 not 4
    ],
)
def test_a_kernels_gradient_in_pieces_is_the_plain_one(monkeypatch, channels, strides, dilation, most):
    for bound in ("MOST_JOINED", "MOST_PIECE", "MOST_PATCHES"):
        monkeypatch.setattr(lowering.cpu, bound, most)
    lengths, size, before = (11, 6), (3, 2), (1, 1)
    outputs = tuple((n + 2 - dilation * (k - 1) - 1) // strides + 1 for n, k in zip(lengths, size, strict=True))
    geometry = Geometry(lengths, size, outputs, (strides,) * 2, (dilation,) * 2, before, 1)
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 2, *lengths, channels), "w": (1, *size, channels, 32), "y": (1, 2, *outputs, 32)}
    arrays = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    for slot in OPERANDS if channels == 3 else "w":
        got, expected = (
            jax.jit(lambda a, b, f=f, slot=slot: f(slot, a, b, geometry))(*(arrays[name] for name in OPERANDS[slot]))
            for f in (lowering.cpu.solve, forms.plain)
        )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_strided_kernel_is_products_of_patches_but_of_any_batch():
    geometry = Geometry((8, 8), (3, 3), (4, 4), (2, 2), (1, 1), (1, 1), 1)
    (symbolic,) = jax.export.symbolic_shape("b")
    for batch, product in ((2, True), (symbolic, False)):
        a, b = struct(1, batch, 8, 8, 16), struct(1, batch, 4, 4, 32)
        program = jax.make_jaxpr(lambda a, b: lowering.cpu.solve("w", a, b, geometry))(a, b)
        assert program.out_avals[0].shape == (1, 3, 3, 16, 32)
        assert ("dot_general" in str(program)) == product

"""Lengths that are symbolic dimensions of `jax.export`: one program, and at every length the direct result."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from jaxnet import kernels, layers, sizes
from jaxnet.errors import ShapeError
from tests.layers.test_layers_table import TABLE
from tests.strategies import AWKWARD, convolutions


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def begun(layer, x):
    """Params and a state of values far from zeros and ones, drawn without a program."""
    rng = np.random.default_rng(2)
    trees = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda a: (0.4 + 0.3 * np.abs(rng.standard_normal(a.shape))).astype(a.dtype), trees)


def with_gradients(f):
    """The output, and the gradient of a weighted sum of it by every argument."""

    def loss(*arguments):
        y = f(*arguments)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(y)), y

    def run(*arguments):
        (_, y), gradients = jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)
        return y, gradients

    return run


HERE = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())  # as an export names its platforms


def assert_exported_is_direct(f, symbolic, shapes, others=(), platforms=(HERE,)):
    """Exports ``f(x, *others)`` with x of symbolic axes, and calls it with x of each shape."""
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(symbolic), jnp.float32)
    run = with_gradients(f)
    exported = jax.export.export(jax.jit(run), platforms=platforms)(x, *others)
    exported = jax.export.deserialize(exported.serialize())
    direct = jax.jit(run)
    for shape in shapes:
        x = draw(*shape, seed=1)
        chex.assert_trees_all_close(exported.call(x, *others), direct(x, *others), rtol=1e-4, atol=1e-4)


# How many blocks an attention has, and which rows of a table are added, is written into the program.
OF_NUMBERS = [name for name in TABLE if name.startswith("attention") or name == "positions-learned"]
WITH_LENGTHS = [
    name for name, case in TABLE.items() if len(case.shape) > 2 and name != "chain" and name not in OF_NUMBERS
]
# One of each kind, the last and so the most awkward; of convolutions, whose geometry has lengths of its own, more.
WITH_LENGTHS = [
    *{name.partition("-")[0]: name for name in WITH_LENGTHS}.values(),
    "conv-awkward", "conv-2-D", "conv-depthwise-causal", "conv_transpose-awkward", "conv_transpose-same", "avg_pool",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_of_a_layer_whose_lengths_are_numbers_the_batch_alone_is_symbolic(name):
    case = TABLE[name]
    _, length, channels = case.shape
    layer = case.make()
    params, state = begun(layer, jax.ShapeDtypeStruct(case.shape, jnp.float32))

    def f(x, params):
        return layer.apply(params, state, x, train=False)[0]

    assert_exported_is_direct(f, f"b, {length}, {channels}", [(3, length, channels)], (params,))
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, t, {channels}"), jnp.float32)
    with pytest.raises(ShapeError, match=r"lengths must be numbers.*; the batch may be any"):
        jax.eval_shape(f, x, params)


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_every_layer_that_has_a_length(name):
    """Batch and all lengths symbolic, as multiples of 4: the usual case for audio and for images."""
    case = TABLE[name]
    ndim, channels = len(case.shape) - 2, case.shape[-1]
    layer = case.make()
    struct = jax.ShapeDtypeStruct((3, *(8,) * ndim, channels), jnp.float32)
    params, state = begun(layer, struct)
    lengths = ", ".join(f"4*t{i}" for i in range(ndim))
    shapes = [(3, *range(8, 8 + 4 * ndim, 4), channels)]

    def f(x, params):
        return layer.apply(params, state, x, train=False)[0]

    assert_exported_is_direct(f, f"b, {lengths}, {channels}", shapes, (params,))


CONVOLUTIONS = {"conv": kernels.conv, "conv_transpose": kernels.conv_transpose}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@settings(max_examples=1)
@example(AWKWARD[0])
@example(AWKWARD[1])
@given(convolutions())
def test_any_convolution_of_a_length_without_a_divisor(name, case):
    f = partial(CONVOLUTIONS[name], **case.keywords)
    shapes = [(2, case.length + more, case.channels) for more in (0, 1)]
    assert_exported_is_direct(f, f"2, t, {case.channels}", shapes, (draw(*case.kernel_shape),))


RULES = [("same", 2, 3), ("same", 3, 2), ("causal", 3, 2), ("valid", 1, 4)]


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "avg_pool", "max_pool"])
def test_every_rule_for_padding(name):
    """All of them in one program."""

    def each(x, *drawn):
        rules = ({"padding": padding, "strides": strides} for padding, strides, _ in RULES)
        if drawn:
            filled = partial(CONVOLUTIONS[name], padding_value=0.5)
            return [filled(x, kernel, **rule) for kernel, rule in zip(drawn, rules, strict=True)]
        return [getattr(kernels, name)(x, size, **rule) for (*_, size), rule in zip(RULES, rules, strict=True)]

    drawn = [draw(size, 2, 3) for *_, size in RULES] if name in CONVOLUTIONS else []
    assert_exported_is_direct(each, "2, t, 2", [(2, length, 2) for length in (5, 6)], drawn)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_half_precision_and_members(platform):
    """What vmap over both operands makes, grouped and strided, in bfloat16, lowered for each platform."""

    def f(x, w):
        return jax.vmap(partial(kernels.conv, strides=2, padding=1, groups=2))(x, w)

    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("3, b, t, 4"), jnp.bfloat16)
    w = draw(3, 3, 2, 4).astype(jnp.bfloat16)
    run = with_gradients(f)
    exported = jax.export.export(jax.jit(run), platforms=(platform,))(x, w)
    if platform == HERE:
        x = draw(3, 2, 9, 4).astype(jnp.bfloat16)
        got, expected = (
            jax.tree.map(lambda a: np.asarray(a, np.float32), g(x, w)) for g in (exported.call, jax.jit(run))
        )
        chex.assert_trees_all_close(got, expected, rtol=2e-2, atol=2e-2)


def test_the_issues_example():
    """Audio of 4 t samples through a network with every kind of layer that it passes."""
    net = layers.chain(
        layers.conv(4, 7, padding="same"),
        jnp.tanh,
        layers.conv(8, 8, strides=4, padding=2, groups=2),
        layers.batch_norm(),
        layers.residual(layers.chain(layers.conv(8, 3, dilation=3, padding="same"), layers.layer_norm())),
        layers.dropout(0.5),
        layers.conv_transpose(4, 8, strides=4, padding="same"),
        layers.max_pool(2),
        layers.avg_pool(2),
        layers.dense(3),
        layers.global_avg_pool(),
    )
    params, state = begun(net, jax.ShapeDtypeStruct((1, 64, 1), jnp.float32))

    def f(x):
        return net.apply(params, state, x, train=False)[0]

    assert_exported_is_direct(f, "b, 4*t, 1", [(2, 20, 1)], platforms=("cpu", "cuda", "tpu"))


def test_output_lengths_are_symbolic_and_those_of_plain_jax():
    t, *_ = jax.export.symbolic_shape("t")
    assert sizes.conv_length(4 * t, 8, strides=4, padding=2) == t
    assert sizes.conv_length(t, 3, padding="same") == t
    assert sizes.conv_length(4 * t, 7, strides=2, padding="same") == 2 * t
    assert sizes.conv_transpose_length(t, 16, strides=8, padding="same") == 8 * t
    assert sizes.pool_length(4 * t, 2) == 2 * t
    lax_length = jax.eval_shape(
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (3,), (1,), "VALID"),
        jax.ShapeDtypeStruct((t,), jnp.float32),
    ).shape[0]
    assert sizes.conv_length(t, 3) == lax_length


def test_a_kernel_that_is_longer_at_every_length_is_refused():
    few, *_ = jax.export.symbolic_shape("t", constraints=["t <= 4"])
    with pytest.raises(ShapeError, match="the kernel is longer than the padded input"):
        sizes.conv_length(few, 9)

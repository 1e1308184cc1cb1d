"""The contract every layer keeps, driven by one table of all layers."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxnet import activations, diagnostics, initializers, layers, sizes
from jaxnet.diagnostics import _rows
from jaxnet.errors import ConfigError, JaxnetError
from tests.strategies import convolutions, poolings


class Case(NamedTuple):
    """A layer, the shape of an input for it, and whether training it draws random numbers."""

    make: Callable[[], layers.Layer]
    shape: tuple[int, ...]
    random: bool = False


def scale_layer():
    return layers.stateless(
        lambda key, x: {"scale": jnp.full(x.shape[-1:], 0.5, x.dtype)},
        lambda params, x: x * params["scale"].reshape((1,) * (x.ndim - 1) + (-1,)),
        name="scale",
    )


def own_average(params, state, x, *, train, key):
    wide = state["mean"].dtype
    mean = jnp.mean(x.astype(wide)) if train else state["mean"]
    return x - mean.astype(x.dtype), {"mean": 0.9 * state["mean"] + 0.1 * mean} if train else state


def own_start(key, x):
    return (), {"mean": jnp.zeros((), jnp.float64 if x.dtype == jnp.float64 else jnp.float32)}


GIVEN = {"kernel": np.linspace(-1.0, 1.0, 15).reshape(5, 3), "bias": np.ones(3)}


def block(*, rate=0.3):
    return layers.residual(layers.chain(layers.batch_norm(), layers.dense(4), jnp.tanh, layers.dropout(rate)))


def tokens(x):
    """Numbers as tokens: which of five they are nearest to."""
    return jnp.clip(jnp.round(x) + 2, 0, 4).astype(jnp.int32)


def in_float64(net):
    return layers.mixed_precision(net, params="float64", compute="float64", output="float64")


def with_another(x):
    return x, x[..., 0]


def first(pair):
    return pair[0]


TABLE = {
    "dense": Case(lambda: layers.dense(3), (4, 5)),
    "dense-rank-3": Case(lambda: layers.dense(2, bias_init=initializers.normal(1.0)), (2, 3, 4)),
    "dense-without-bias": Case(lambda: layers.dense(3, bias=False, kernel_init=initializers.he_uniform()), (4, 5)),
    "conv": Case(lambda: layers.conv(4, 3), (2, 7, 2)),
    "conv-awkward": Case(
        lambda: layers.conv(6, 4, strides=3, padding=(5, 2), padding_value=0.5, dilation=2, groups=2),
        (2, 10, 4),
    ),
    "conv-same": Case(lambda: layers.conv(2, 4, strides=2, padding="same", bias=False), (2, 7, 3)),
    "conv-depthwise-causal": Case(lambda: layers.conv(3, 3, dilation=2, padding="causal", groups=3), (2, 6, 3)),
    "conv-2-D": Case(lambda: layers.conv(3, (2, 3), strides=(2, 1), padding=((1, 0), (1, 2))), (2, 5, 4, 2)),
    "conv-3-D": Case(lambda: layers.conv(2, (2, 1, 2), padding="same"), (1, 3, 2, 3, 2)),
    "conv_transpose": Case(lambda: layers.conv_transpose(2, 3, strides=2, padding=2), (2, 4, 3)),
    "conv_transpose-awkward": Case(
        lambda: layers.conv_transpose(
            4, 4, strides=3, padding=(8, 3), padding_value=0.5, dilation=2, groups=2, bias_init=initializers.ones
        ),
        (2, 3, 4),
    ),
    "conv_transpose-same": Case(lambda: layers.conv_transpose(2, 4, strides=3, padding="same", bias=False), (2, 4, 2)),
    "conv_transpose-2-D": Case(lambda: layers.conv_transpose(2, (2, 3), strides=2, padding=2), (1, 3, 2, 2)),
    "avg_pool": Case(lambda: layers.avg_pool(3, strides=2, padding=(1, 2)), (2, 7, 2)),
    "avg_pool-2-D": Case(lambda: layers.avg_pool((2, 2)), (2, 4, 5, 2)),
    "max_pool": Case(lambda: layers.max_pool(3, strides=2, padding=1), (2, 7, 2)),
    "max_pool-2-D": Case(lambda: layers.max_pool((2, 2)), (2, 4, 5, 2)),
    "global_avg_pool": Case(layers.global_avg_pool, (2, 5, 3)),
    "prelu": Case(layers.prelu, (3, 4)),
    "prelu-per-channel": Case(lambda: layers.prelu(0.1, per_channel=True), (2, 3, 4)),
    "dropout": Case(lambda: layers.dropout(0.4), (3, 5), random=True),
    "dropout-none": Case(lambda: layers.dropout(0), (3, 5)),
    "dropout-all": Case(lambda: layers.dropout(1), (3, 5)),
    "batch_norm": Case(layers.batch_norm, (6, 3)),
    "batch_norm-positions": Case(lambda: layers.batch_norm(decay=0.5, epsilon=1e-3), (3, 4, 2)),
    "batch_norm-bare": Case(lambda: layers.batch_norm(scale=False, offset=False), (6, 3)),
    "layer_norm": Case(layers.layer_norm, (3, 5)),
    "layer_norm-bare": Case(lambda: layers.layer_norm(scale=False, offset=False, epsilon=1e-2), (2, 3, 5)),
    "rms_norm": Case(layers.rms_norm, (3, 5)),
    "rms_norm-bare": Case(lambda: layers.rms_norm(scale=False, epsilon=1e-2), (2, 3, 5)),
    "group_norm": Case(lambda: layers.group_norm(2), (2, 3, 4)),
    "group_norm-bare": Case(lambda: layers.group_norm(1, scale=False, offset=False, epsilon=1e-2), (2, 2, 3, 2)),
    "instance_norm": Case(layers.instance_norm, (2, 5, 3)),
    "weight_norm": Case(lambda: layers.weight_norm(layers.dense(3)), (4, 5)),
    "weight_norm-network": Case(
        lambda: layers.weight_norm(
            layers.chain(layers.conv_transpose(4, 3, strides=2, groups=2, bias=False), jnp.tanh, layers.dense(3))
        ),
        (2, 4, 4),
    ),
    "low_rank-repeat": Case(lambda: layers.low_rank(layers.repeat(layers.dense(4), 2), 1), (2, 3, 4)),
    "weight_norm-repeat": Case(lambda: layers.weight_norm(layers.repeat(layers.conv(4, 1), 2)), (2, 4, 4)),
    "spectral_norm": Case(lambda: layers.spectral_norm(layers.conv(3, 2)), (2, 4, 2)),
    "lstm": Case(lambda: layers.lstm(3), (2, 4, 3)),
    "lstm-both": Case(lambda: layers.lstm(2, direction="both", bias_init=initializers.normal(1.0)), (2, 3, 4)),
    "gru": Case(lambda: layers.gru(3), (2, 4, 3)),
    "gru-backward": Case(lambda: layers.gru(2, direction="backward", bias=False), (2, 3, 4)),
    "rnn": Case(lambda: layers.rnn(layers.elman(3)), (2, 4, 3)),
    "embedding": Case(lambda: in_float64(layers.chain(tokens, layers.embedding(5, 3))), (2, 4)),
    "tied": Case(
        lambda: in_float64(layers.chain(tokens, layers.tied(layers.embedding(5, 3), layers.dense(3)))), (2, 4)
    ),
    "on_first": Case(lambda: layers.chain(with_another, layers.on_first(layers.dense(3)), first), (4, 5)),
    "snake": Case(layers.snake, (2, 3, 4)),
    "upsample": Case(lambda: layers.upsample(3), (2, 4, 3)),
    "upsample-2-D": Case(lambda: layers.upsample((2, 3)), (2, 3, 2, 2)),
    "upsample-linear": Case(lambda: layers.upsample(3, "linear"), (2, 4, 3)),
    "pad": Case(lambda: layers.pad((2, 1), value=0.5), (2, 4, 3)),
    "pad-reflect": Case(lambda: layers.pad((2, 3), mode="reflect"), (2, 4, 3)),
    "pad-circular": Case(lambda: layers.pad((4, 1), mode="circular"), (2, 4, 3)),
    "pad-replicate-2-D": Case(lambda: layers.pad(((5, 0), (1, 2)), mode="replicate"), (2, 3, 2, 2)),
    "attention": Case(lambda: layers.attention(2), (2, 3, 4)),
    "attention-causal": Case(
        lambda: layers.attention(2, kv_heads=1, head_size=4, causal=True, window=2, rotary=True, bias=False), (2, 4, 3)
    ),
    "attention-dropout": Case(lambda: layers.attention(1, dropout=0.3), (2, 3, 2), random=True),
    "positions": Case(layers.positions, (2, 3, 4)),
    "positions-learned": Case(lambda: layers.positions(5), (2, 3, 4)),
    "flatten": Case(layers.flatten, (2, 3, 2)),
    "reshape": Case(lambda: layers.reshape(-1, 2), (3, 8)),
    "stateless": Case(scale_layer, (2, 3)),
    "layer": Case(lambda: layers.layer("own", own_start, own_average), (2, 3)),
    "chain": Case(
        lambda: layers.chain(
            layers.conv(4, 3, padding="same"),
            activations.leaky_relu,
            layers.batch_norm(),
            layers.dropout(0.25),
            layers.flatten(),
            layers.dense(2),
        ),
        (3, 4, 2),
        random=True,
    ),
    "residual": Case(lambda: layers.residual(layers.chain(layers.dense(4), jnp.tanh)), (3, 4)),
    "residual-shortcut": Case(
        lambda: layers.residual(
            layers.chain(layers.conv(4, 3, padding="same"), layers.batch_norm()), layers.conv(4, 1, bias=False)
        ),
        (2, 5, 2),
    ),
    "parallel": Case(lambda: layers.parallel(layers.dense(3), jnp.sin, layers.dropout(0.5)), (3, 4), random=True),
    "parallel-concatenate": Case(
        lambda: layers.parallel(
            layers.conv(2, 3, padding="same"), layers.conv(3, 2, padding="same"), combine="concatenate"
        ),
        (2, 5, 2),
    ),
    "parallel-mean": Case(lambda: layers.parallel(layers.dense(3), layers.dense(3), combine="mean"), (3, 4)),
    "repeat": Case(lambda: layers.repeat(block(), 3), (3, 4), random=True),
    "repeat-remat": Case(lambda: layers.repeat(block(rate=0), 2, remat=True), (3, 4)),
    "mixed_precision": Case(
        lambda: in_float64(layers.chain(layers.dense(3), layers.batch_norm())),
        (4, 3),
    ),
    "frozen": Case(lambda: layers.frozen(layers.chain(layers.dense(3), layers.batch_norm(), layers.prelu())), (4, 5)),
    "frozen-given": Case(lambda: layers.frozen(layers.dense(3), GIVEN), (4, 5)),
    "raveled": Case(lambda: layers.raveled(layers.chain(layers.dense(3), layers.batch_norm(), layers.prelu())), (4, 5)),
    "watched": Case(lambda: layers.watched(layers.chain(layers.dense(3), jnp.tanh), watch_nothing), (4, 3)),
}


def watch_nothing(path, layer, params, state, x, y):
    return ()


STATES = {"mean", "variance", "left", "right"}

# By design: a policy and given parameters fix their dtypes, and a watched layer's state out is not its state in.
IN_FLOAT64 = ("mixed_precision", "frozen-given", "embedding", "tied")
FIXED_DTYPE = tuple(TABLE[name] for name in IN_FLOAT64)
OTHER_STATE = (TABLE["watched"],)

# The vectors of `spectral_norm` follow the kernel, by design without a gradient. The others are variants of what is in
# the table already: of what they differ in, the derivatives are the kernels' (test_trilinear, test_pooling_forms,
# test_normalize, test_attention), of both directions of one recurrent layer, of a chain of others, or those of a slice,
# a sum or a number; those of `gru` and `rnn` are in test_recurrent.
NO_NEW_DERIVATIVE = tuple(
    TABLE[name]
    for name in (
        "spectral_norm", "dense-rank-3", "dense-without-bias", "conv", "conv-same", "conv-depthwise-causal", "conv-3-D",
        "conv_transpose", "conv_transpose-same", "avg_pool-2-D", "max_pool-2-D", "dropout-none", "dropout-all",
        "batch_norm-bare", "layer_norm-bare", "rms_norm-bare", "group_norm-bare", "lstm", "gru-backward",
        "upsample-2-D", "pad-circular", "pad-replicate-2-D", "parallel-concatenate", "parallel-mean", "repeat",
        "frozen-given", "watched", "weight_norm-repeat", "lstm-both", "gru", "rnn", "attention-dropout",
        "weight_norm-network",
    )
)  # fmt: skip
# One of each kind runs operation by operation too, but containers, which then run as their parts do: of each operation
# that is a program, and takes seconds.
EAGER = tuple(
    case
    for name, case in {name.partition("-")[0]: (name, case) for name, case in reversed(TABLE.items())}.values()
    if name not in ("chain", "parallel", "repeat", "residual")
)


def every(without=()):
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name) for name, case in TABLE.items() if case not in without]
    )


EVERY = every()
FOLLOWS_DTYPE = every(without=FIXED_DTYPE)


def inputs(shape, dtype=jnp.float64, seed=0):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(jnp.dtype(dtype)))


def start(case, dtype=jnp.float64, copies=()):
    """A layer, trees for it of values far from zeros and ones, and an input; each array stacked ``copies`` deep."""
    layer, x = case.make(), inputs((*copies, *case.shape), dtype)
    trees = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(case.shape, dtype))
    rng = np.random.default_rng(2)
    params, state = jax.tree.map(
        lambda a: jax.device_put((0.4 + 0.3 * np.abs(rng.standard_normal((*copies, *a.shape)))).astype(a.dtype)), trees
    )
    return layer, params, state, x


NO_LAYERS = {
    "About",
    "Cell",
    "Layer",
    "Memory",
    "Merged",
    "Row",
    "Stream",
    "Summary",
    "Watched",
    "as_matrix",
    "elman",
    "merged",
    "stream_state",
    "summary",
}
NOT_FOR_TRAINING = {"streaming"}


def test_the_table_holds_every_layer():
    tested = {name.split("-")[0] for name in TABLE}
    assert tested == set(layers.__all__) - NO_LAYERS - NOT_FOR_TRAINING


@EVERY
@pytest.mark.usefixtures("x64")
def test_a_compiled_step(case):
    """Is the eager one, compiles once, is a function of its key, and takes trees that were NumPy's meanwhile."""
    layer, params, state, x = start(case)
    traces = []

    @jax.jit
    def step(params, state, x, key):
        traces.append(1)
        return layer.apply(params, state, x, train=True, key=key)

    first = step(params, state, x, jax.random.key(3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    if case in EAGER:
        eager = layer.apply(params, state, x, train=True, key=jax.random.key(3))
        chex.assert_trees_all_close(first, eager, rtol=1e-12, atol=1e-12)
    flat, structure = jax.tree.flatten((params, state))
    numpy_trees = jax.tree.unflatten(structure, [np.array(leaf) for leaf in flat])
    chex.assert_trees_all_equal(step(*numpy_trees, x, jax.random.key(3)), first)
    if case not in OTHER_STATE:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first[1])
        second, _ = step(params, first[1], x, jax.random.key(4))
        outputs = zip(jax.tree.leaves(first[0]), jax.tree.leaves(second), strict=True)
        assert all(np.array_equal(a, b) for a, b in outputs) == (not case.random and case is not TABLE["spectral_norm"])
    assert len(traces) == 1


@EVERY
@pytest.mark.usefixtures("x64")
def test_vmap_equals_a_loop(case):
    """Over params, states, inputs and keys at once: an ensemble."""
    n = 3
    layer, *trees = start(case, copies=(n,))
    trees = jax.tree.map(np.asarray, trees)  # NumPy's slices need no program
    keys = jax.random.split(jax.random.key(0), n)

    def apply(params, state, x, key):
        return layer.apply(params, state, x, train=True, key=key)

    @jax.jit
    def both(*trees):
        return jax.vmap(apply)(*trees), jax.lax.map(lambda one: apply(*one), trees)

    chex.assert_trees_all_close(*both(*trees, keys), rtol=1e-10, atol=1e-10)


@every(without=NO_NEW_DERIVATIVE)
@pytest.mark.usefixtures("x64")
def test_derivatives(case):
    """First and second derivatives, forward and reverse, against central differences in a random direction."""
    layer, params, state, x = start(case)
    origin = jax.tree.map(np.asarray, (params, x))
    rng = np.random.default_rng(6)
    u, v = (jax.tree.map(lambda a: np.asarray(rng.standard_normal(a.shape)), origin) for _ in range(2))

    def f(theta):
        p, x = theta
        y, _ = layer.apply(p, state, x, train=True, key=jax.random.key(5))
        return ravel_pytree(y)[0]

    def inner(a, b):
        return sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    def weights(y):
        return np.cos(np.arange(y.size))

    def scalar(theta):
        y = f(theta)
        return jnp.vdot(weights(y), y) + jnp.vdot(y, y) / 2

    @jax.jit
    def measure(theta):
        y, tangent = jax.jvp(f, (theta,), (u,))
        gradient, curvature = jax.jvp(jax.grad(scalar), (theta,), (u,))
        second = {
            "forward over reverse": inner(v, curvature),
            "reverse over reverse": inner(v, jax.grad(lambda t: inner(jax.grad(scalar)(t), u))(theta)),
        }
        adjoint = inner(gradient, u), jnp.vdot(weights(y) + y, tangent)
        return y, tangent, adjoint, inner(v, gradient), second

    def at(h):
        return jax.device_get(measure(jax.tree.map(lambda a, b: a + h * b, origin, u)))

    h = 1e-5
    (_, tangent, adjoint, _, second), (after, _, _, slope_after, _), (before, _, _, slope_before, _) = map(
        at, (0, h, -h)
    )
    np.testing.assert_allclose(tangent, (after - before) / (2 * h), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(*adjoint, rtol=1e-9, atol=1e-9)
    expected = (slope_after - slope_before) / (2 * h)
    for name, value in second.items():
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@FOLLOWS_DTYPE
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16])
def test_dtype_is_kept(case, train, dtype):
    """Of the output and the params the input's, of the state at least float32, the same going out as coming in."""
    with jax.enable_x64(dtype == jnp.float64):
        layer, x = case.make(), jax.ShapeDtypeStruct(case.shape, dtype)
        params, state = jax.eval_shape(layer.init, jax.random.key(0), x)
        y, new = jax.eval_shape(
            lambda p, s, x: layer.apply(p, s, x, train=train, key=jax.random.key(0)), params, state, x
        )
        drawn, averages = zip(apart(layer, params, state), apart(layer, params, new), strict=True)
        assert {leaf.dtype for leaf in jax.tree.leaves((drawn, y))} == {jnp.dtype(dtype)}
        wide = jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(averages)} <= {wide}
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((params, state, y, new)))


def apart(layer, params, state):
    """What init drew, and what changes without being learned: the former, of `frozen`, is in the state."""
    return ((params, state["params"]), state["state"]) if layer.about.trees == "state" else (params, state)


@FOLLOWS_DTYPE
def test_evaluation(case):
    """Needs no key, keeps the state, and gives the same within the digits of bfloat16 in half precision."""
    layer, params, state, x = start(case, jnp.bfloat16)
    apply = jax.jit(lambda p, s, x: layer.apply(p, s, x, train=False))
    y, _ = apply(params, state, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, state, x))  # which needs no program
        expected, new = apply(*wide)
        if case not in OTHER_STATE:
            chex.assert_trees_all_equal(new, wide[1])
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True):
        size = np.abs(b).max()
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b), rtol=0.02, atol=0.03 * size)


@EVERY
@pytest.mark.usefixtures("x64")
def test_init_from_a_shape_is_init_from_an_array_and_follows_its_key(case):
    layer = case.make()
    x = inputs(case.shape)
    struct, key = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.random.key(3)
    programs = [str(jax.make_jaxpr(init)(key, x)) for init in (layer.init, lambda key, x: layer.init(key, struct))]
    assert programs[0] == programs[1]

    @jax.jit
    def kernels(key):
        leaves = jax.tree_util.tree_leaves_with_path(layer.init(key, struct)[0])
        return [leaf for path, leaf in leaves if getattr(path[-1], "key", None) == "kernel"]

    if jax.eval_shape(kernels, key):  # another key draws others
        assert not any(map(np.array_equal, kernels(key), kernels(jax.random.key(4))))


@every(without=(*FIXED_DTYPE, TABLE["raveled"]))  # whose vectors have their dtypes' names
def test_leaves_have_full_names(case):
    layer, params, state, _ = abstract(case)
    params, state = apart(layer, params, state)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    full = {"kernel", "bias", "recurrent_kernel", "recurrent_bias", "output_kernel", "output_bias"}
    assert names <= full | {"scale", "offset", "slope", "table", "alpha", "down", "up"}
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state)} <= STATES


@every(without=OTHER_STATE)
@pytest.mark.usefixtures("x64")
def test_tools_look_at_it(case):
    """Alone and in a container: the table counts what is learned, and the report has a row for each layer in it."""
    for net in (case.make(), layers.chain(case.make())):
        x = jax.ShapeDtypeStruct(case.shape, jnp.float64)
        params, state = jax.eval_shape(net.init, jax.random.key(0), x)
        table = layers.summary(net, x)
        assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))

        if net.name != "chain" and case not in EAGER:
            continue  # a variant, and its report is that in the container

        def report(params, state, x, net=net):
            return diagnostics.layer_report(net, square, params, state, (x, x), key=jax.random.key(0))

        found = jax.eval_shape(report, params, state, x)
        assert len(found.labels) % len(list(_rows.leaves(net))) == 0  # a repeat has a row a copy
        assert found.mean.shape == (len(found.labels),)
        assert {found.mean.dtype.name, found.loss.dtype.name} == {"float64"}


def square(prediction, target):
    return sum(jnp.sum(y**2) for y in jax.tree.leaves(prediction))


@cache
def abstract(case):
    layer, x = case.make(), jax.ShapeDtypeStruct(case.shape, jnp.float32)
    return layer, *jax.eval_shape(layer.init, jax.random.key(0), x), x


def taken(layer, candidates, x):
    """Which of these pairs of trees training accepts, in one trace; an error that is not ours fails the test."""
    accepted = []

    def look(candidates, x):
        for params, state in candidates:
            try:
                layer.apply(params, state, x, train=True, key=jax.random.key(0))
            except JaxnetError:
                accepted.append(False)
            else:
                accepted.append(True)

    jax.eval_shape(look, candidates, x)
    return accepted


def description(tree):
    return [(a.shape, str(a.dtype)) for a in jax.tree.leaves(tree)], jax.tree.structure(tree)


# What a user's own function does with other params is the user's own; one vector fits any network of its length.
@every(without=(*FIXED_DTYPE, TABLE["stateless"], TABLE["layer"], TABLE["raveled"]))
def test_params_and_states_of_every_other_network_are_refused(case):
    layer, params, state, x = abstract(case)
    names, candidates = ["itself"], [(params, state)]
    # Of trees with the same names in the same places one is enough, but where they are those of the layer's own.
    own = [jax.tree.structure(tree) for tree in (params, state)]
    seen = [[description(params)], [description(state)]]
    for name, other in TABLE.items():
        if other in FIXED_DTYPE:
            continue
        _, other_params, other_state, _ = abstract(other)
        for mine, known, tree, trees in zip(
            own, seen, (other_params, other_state), ((other_params, state), (params, other_state)), strict=True
        ):
            structure = jax.tree.structure(tree)
            what = description(tree) if structure == mine else structure
            if what not in known:
                known.append(what)
                names.append(name)
                candidates.append(trees)
    took = [name for name, yes in zip(names, taken(layer, candidates, x), strict=True) if yes]
    assert took == ["itself"], "took the params or the state of another"


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@every(without=(TABLE["stateless"], TABLE["raveled"]))
@pytest.mark.usefixtures("x64")
def test_a_leaf_of_another_shape_is_refused(case):
    """Every leaf in turn, longer by one and cut to one: what broadcasting would swallow."""
    layer, x = case.make(), jax.ShapeDtypeStruct(case.shape, jnp.float64)
    trees = jax.eval_shape(layer.init, jax.random.key(0), x)
    names, candidates = [], []
    for path, leaf in leaves(trees):
        for spoil in (
            lambda shape: (*shape[:-1], shape[-1] + 1),
            lambda shape: (*shape[:-1], 1),
            lambda shape: (1, *shape),
            lambda shape: (),
        ):

            def swap(p, a, path=path, spoil=spoil):
                return jax.ShapeDtypeStruct(spoil(a.shape), a.dtype) if p == path and a.ndim else a

            broken = jax.tree_util.tree_map_with_path(swap, trees)
            if description(broken) == description(trees):
                continue
            names.append(f"{jax.tree_util.keystr(path)} of shape {spoil(leaf.shape)}")
            candidates.append(broken)
    assert [name for name, yes in zip(names, taken(layer, candidates, x), strict=True) if yes] == []


# Sizes, over drawn hyperparameters: nothing is computed here.


def counted(layer, shape):
    """(output shape, parameters): from tracing, and the latter as `summary` says."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params, state = jax.eval_shape(layer.init, jax.random.key(0), x)
    y = jax.eval_shape(lambda p, s, x: layer.apply(p, s, x, train=False)[0], params, state, x)
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    table = layers.summary(layer, x)
    assert table.parameters == parameters
    assert table.rows[0].output == y.shape
    return y.shape, parameters


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_dense_sizes_are_eq_4_3(inputs, outputs, bias):
    shape, parameters = counted(layers.dense(outputs, bias=bias), (3, inputs))
    assert shape == (3, outputs)
    assert parameters == outputs * (inputs + bias) == sizes.dense_parameters(inputs, outputs, bias=bias)


@given(convolutions(), st.booleans())
def test_conv_sizes_are_eq_4_6_and_4_7(case, bias):
    layer = layers.conv(case.filters, case.kernel_size, bias=bias, **case.keywords)
    shape, parameters = counted(layer, case.x_shape)
    length = (case.length + sum(case.padding) - case.dilation * (case.kernel_size - 1) - 1) // case.strides + 1
    assert shape == (case.batch, length, case.filters)
    assert parameters == case.filters * (case.channels // case.groups * case.kernel_size + bias)
    assert length == sizes.conv_length(
        case.length, case.kernel_size, strides=case.strides, padding=case.padding, dilation=case.dilation
    )
    assert parameters == sizes.conv_parameters(
        case.channels, case.filters, case.kernel_size, groups=case.groups, bias=bias
    )


@given(convolutions(stuffed=True), st.booleans())
def test_conv_transpose_sizes_are_eq_4_10_and_4_7(case, bias):
    layer = layers.conv_transpose(case.filters, case.kernel_size, bias=bias, **case.keywords)
    shape, parameters = counted(layer, case.x_shape)
    length = case.strides * (case.length - 1) + sum(case.padding) - case.dilation * (case.kernel_size - 1) + 1
    assert shape == (case.batch, length, case.filters)
    assert parameters == case.filters * (case.channels // case.groups * case.kernel_size + bias)
    assert length == sizes.conv_transpose_length(
        case.length, case.kernel_size, strides=case.strides, padding=case.padding, dilation=case.dilation
    )


@given(poolings(below_window=True), st.sampled_from([layers.avg_pool, layers.max_pool]))
def test_pool_sizes_are_eq_4_11(case, make):
    shape, parameters = counted(make(case.window, strides=case.strides, padding=case.padding), (2, case.length, 3))
    assert shape == (2, (case.length + sum(case.padding) - case.window) // case.strides + 1, 3)
    assert parameters == 0


@EVERY
def test_a_layer_is_two_functions_and_a_name(case):
    layer = case.make()
    assert isinstance(layer, layers.Layer)
    init, apply, name, *_ = layer
    assert callable(init)
    assert callable(apply)
    assert isinstance(name, str)
    hash(layer)  # so that it can be a static argument of jax.jit


def test_a_layer_of_ones_own_has_a_name_and_a_key_that_can_be_left_out():
    for wrong in (3, None):
        with pytest.raises(ConfigError, match=f"^layer: name must be a string, got {wrong}"):
            layers.layer(wrong, None, own_average)
    assert inspect.signature(layers.layer("own", None, own_average).apply).parameters["key"].default is None

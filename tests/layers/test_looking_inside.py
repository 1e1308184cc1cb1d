"""summary, watched, as_matrix and mixed_precision: what a network is made of, before and while it runs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import diagnostics, interop, layers, losses, sizes
from jaxnet.errors import ConfigError
from tests.compiled import apply

KEY = jax.random.key(5)
F = jnp.float32


def net():
    return layers.chain(
        layers.conv(8, 3, strides=2, groups=2),
        jnp.tanh,
        layers.repeat(layers.residual(layers.chain(layers.conv(8, 3, padding="same"), layers.dropout(0.2))), 3),
        layers.conv_transpose(4, 4, strides=2, padding="same", bias=False),
        layers.batch_norm(),
        layers.flatten(),
        layers.dense(5),
    )


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(F)


X = random(2, 15, 4)


def test_summary_counts_what_the_equations_count():
    table = layers.summary(net(), X)
    rows = {row.path: row for row in table.rows}
    assert rows[("0",)].output == (2, sizes.conv_length(15, 3, strides=2), 8)
    assert rows[("0",)].parameters == sizes.conv_parameters(4, 8, 3, groups=2)
    assert rows[("0",)].multiply_adds == 2 * sizes.conv_multiply_adds(7, 4, 8, 3, groups=2)
    assert rows[("3",)].output == (2, sizes.conv_transpose_length(7, 4, strides=2, padding="same"), 4)
    assert rows[("3",)].parameters == sizes.conv_parameters(8, 4, 4, bias=False)
    assert rows[("3",)].multiply_adds == 2 * sizes.conv_multiply_adds(7, 8, 4, 4)
    assert rows[("6",)].parameters == sizes.dense_parameters(56, 5)
    one_copy = rows[("2", "layer", "branch", "0")]
    assert one_copy.parameters == sizes.conv_parameters(8, 8, 3)
    assert rows[("2",)].parameters == 3 * one_copy.parameters
    assert rows[("2",)].multiply_adds == 3 * one_copy.multiply_adds
    assert table.multiply_adds == sum(rows[(str(i),)].multiply_adds for i in range(7))
    params, _ = jax.eval_shape(net().init, KEY, X)
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_summary_prints_every_layer():
    text = str(layers.summary(net(), X))
    for part in ("0 conv", "1 tanh", "2 repeat", "branch chain", "shortcut identity", "3 conv_transpose", "6 dense"):
        assert part in text
    assert text.splitlines()[-1].split() == ["total", "976", "16,224"] or "total" in text.splitlines()[-1]


def test_summary_allocates_nothing():
    """A dense layer of 10^12 weights would take 4 TB."""
    table = layers.summary(layers.chain(layers.dense(10**6)), jax.ShapeDtypeStruct((1, 10**6), F))
    assert table.parameters == 10**6 * (10**6 + 1)
    assert table.multiply_adds == 10**12


def test_summary_of_a_single_layer_and_of_several_outputs():
    assert "dense" in str(layers.summary(layers.dense(3), X))
    both = layers.summary(layers.parallel(layers.dense(3), layers.dense(2)), X)
    assert both.rows[0].output == ((2, 15, 3), (2, 15, 2))


@pytest.mark.parametrize("train", [False, True])
def test_watched_changes_nothing_and_sees_every_layer(train):
    network = net()
    params, state = network.init(KEY, X)
    y, new = apply(network, params, state, X, train=train, key=KEY)
    paths = []

    def watch(path, layer, params, state, x, y):
        paths.append(path)
        return jnp.mean(y)

    seen_y, seen = jax.jit(lambda: layers.watched(network, watch).apply(params, state, X, train=train, key=KEY))()
    np.testing.assert_allclose(seen_y, y, rtol=1e-4, atol=1e-5)
    assert set(paths) == {row.path for row in layers.summary(network, X).rows}
    np.testing.assert_allclose(seen.seen, np.mean(y), rtol=1e-3, atol=1e-5)
    inside = seen.state[2].state  # of the repeat: stacked over its copies
    assert inside.seen.shape == (3,)
    first = apply(network.about.parts[0][1], params[0], state[0], X, train=train)[0]
    np.testing.assert_allclose(seen.state[0].seen, np.mean(first), rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(seen.state[4].state, new[4], rtol=1e-4, atol=1e-5)


# Even kernels, strides with dilation, groups, crops and more padding than the kernel needs, and both rules.
HYPER = [
    {"kernel_size": 4, "strides": 3, "padding": (3, 1), "dilation": 2, "groups": 2},
    {"kernel_size": 3, "strides": 2, "padding": (0, 3), "dilation": 1, "groups": 1},
    {"kernel_size": 2, "strides": 2, "padding": "same", "dilation": 2, "groups": 1},
    {"kernel_size": 3, "strides": 1, "padding": "causal", "dilation": 2, "groups": 2},
    {"kernel_size": 1, "strides": 3, "padding": (2, 0), "dilation": 1, "groups": 2},
]


@pytest.mark.parametrize("keywords", HYPER)
@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_as_matrix_is_the_layer(kind, keywords):
    layer = getattr(layers, kind)(4, padding_value=0.5, **keywords)
    x = np.asarray(X[:1, :7, :2])
    params = {"kernel": random(keywords["kernel_size"], 2 // keywords["groups"], 4), "bias": np.arange(4.0, dtype=F)}
    y, offset = (np.asarray(apply(layer, params, (), one, train=False)[0]) for one in (x, 0 * x))
    matrix = np.asarray(layers.as_matrix(layer, params, x))
    expected = matrix @ x[0].T.reshape(-1) + offset[0].T.reshape(-1)
    np.testing.assert_allclose(y[0].T.reshape(-1), expected, rtol=1e-4, atol=1e-5)


def test_as_matrix_of_a_convolution_is_eq_4_8():
    """Blocks of Toeplitz matrices, one for each pair of channels, written out by hand."""
    channels, filters, taps, length = 2, 3, 3, 6
    layer = layers.conv(filters, taps)
    params, _ = layer.init(KEY, jnp.ones((1, length, channels)))
    w = np.asarray(params["kernel"])
    rows = length - taps + 1
    blocks = np.zeros((filters, rows, channels, length), np.float32)
    for i in range(filters):
        for j in range(rows):
            for c in range(channels):
                blocks[i, j, c, j : j + taps] = w[:, c, i]
    expected = blocks.reshape(filters * rows, channels * length)
    np.testing.assert_allclose(layers.as_matrix(layer, params, jnp.ones((1, length, channels))), expected, rtol=1e-6)


def test_as_matrix_of_dense_is_the_transposed_kernel():
    layer = layers.dense(4)
    params, _ = layer.init(KEY, jnp.ones((1, 3)))
    np.testing.assert_allclose(layers.as_matrix(layer, params, jnp.ones((1, 3))), params["kernel"].T, rtol=1e-6)


def test_transposed_convolution_is_the_transposed_matrix():
    """With P' = d (K - 1) - P and the kernel flipped, the matrix is that of the convolution, transposed."""
    taps, strides, dilation, before = 3, 2, 2, 1
    forward = layers.conv(3, taps, strides=strides, dilation=dilation, padding=before, bias=False)
    x = np.ones((1, 10, 2), F)  # (10 + 2 - 5) / 2 leaves a remainder of one
    params, _ = forward.init(KEY, x)
    matrix = layers.as_matrix(forward, params, x)
    length = sizes.conv_length(10, taps, strides=strides, dilation=dilation, padding=before)
    remainder = (10 + 2 * before - dilation * (taps - 1) - 1) % strides
    reach = dilation * (taps - 1) - before
    back = layers.conv_transpose(
        2, taps, strides=strides, dilation=dilation, padding=(reach, reach + remainder), bias=False
    )
    flipped = {"kernel": np.flip(params["kernel"], 0).transpose(0, 2, 1)}
    transposed = layers.as_matrix(back, flipped, np.ones((1, length, 3), F))
    np.testing.assert_allclose(transposed, np.asarray(matrix).T, rtol=1e-6, atol=1e-7)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32():
    dtypes = {}

    def watch(path, layer, params, state, x, y):
        dtypes[path] = (x.dtype, {leaf.dtype for leaf in jax.tree.leaves(params)})
        return ()

    network = layers.mixed_precision(layers.chain(layers.dense(8), layers.batch_norm(), jnp.tanh, layers.dense(3)))
    params, state = network.init(KEY, jnp.ones((1, 4)))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    x, target = random(16, 4), np.ones((16, 3), F)
    y, seen = apply(layers.watched(network, watch), params, state, x, train=True)
    assert y.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {jnp.dtype("float32")}  # batch norm's averages
    inside = {path: entry for path, entry in dtypes.items() if path}
    assert all(x_dtype == jnp.bfloat16 for x_dtype, _ in inside.values())
    assert all(p <= {jnp.dtype(jnp.bfloat16)} for _, p in inside.values())

    def loss(params):
        logits, _ = network.apply(params, state, x, train=True)
        return losses.mse(logits, target)

    grads = jax.jit(jax.grad(loss))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    plain = layers.chain(layers.dense(8), layers.batch_norm(), jnp.tanh, layers.dense(3))
    exact = jax.jit(jax.grad(lambda p: losses.mse(plain.apply(p, state, x, train=True)[0], target)))(params)
    for ours, theirs in zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (grads, exact)), strict=True):
        assert np.abs(ours - theirs).max() < 0.03 * (np.abs(theirs).max() + 0.05)


def test_mixed_precision_outputs_what_was_asked():
    network = layers.mixed_precision(layers.dense(2), params=jnp.bfloat16, compute=jnp.float32, output=jnp.float16)
    params, state = network.init(KEY, jnp.ones((1, 4)))
    assert params["kernel"].dtype == jnp.bfloat16
    assert network.apply(params, state, jnp.ones((1, 4)), train=False)[0].dtype == jnp.float16


def opaque():
    """A container that shows its parts and does not say how to rebuild it."""
    first, second = layers.dense(3), layers.chain(jnp.tanh, layers.dense(2))

    def init(key, x):
        p, s = first.init(key, x)
        q, t = second.init(key, jax.ShapeDtypeStruct((*x.shape[:-1], 3), x.dtype))
        return {"first": p, "second": q}, {"first": s, "second": t}

    def apply(params, state, x, *, train, key=None):
        y, s = first.apply(params["first"], state["first"], x, train=train)
        y, t = second.apply(params["second"], state["second"], y, train=train)
        return y, {"first": s, "second": t}

    return layers.Layer(init, apply, "mine", layers.About((("first", first), ("second", second))))


def idle_part():
    """A container that never applies one of its parts, and gives its state back as it was."""

    def make(used, idle):
        def init(key, x):
            p, s = used.init(key, x)
            q, t = idle.init(key, x)
            return (p, q), (s, t)

        def apply(params, state, x, *, train, key=None):
            y, s = used.apply(params[0], state[0], x, train=train)
            return y, (s, state[1])

        return layers.Layer(init, apply, "mine", layers.About((("used", used), ("idle", idle)), make))

    return make(layers.dense(2), layers.dense(5))


@pytest.mark.parametrize("around", [lambda net: net, layers.chain, layers.residual, lambda net: layers.repeat(net, 2)])
def test_a_container_that_cannot_be_rebuilt_is_a_row_of_its_own(around, tmp_path):
    """The row's own example, and every tool that looks inside."""
    net = around(layers.chain(opaque(), layers.dense(4)))
    params, state = net.init(KEY, X)
    table = layers.summary(net, X)
    assert [row.name for row in table.rows if row.name in ("mine", "tanh")] == ["mine"]
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    paths = set()
    watched = layers.watched(net, lambda path, layer, *rest: paths.add(path) or ())
    jax.eval_shape(lambda *trees: watched.apply(*trees, X, train=False), params, state)
    assert paths == {row.path for row in table.rows}
    report = diagnostics.layer_report(net, losses.mse, params, state, (X, np.zeros_like(X)))
    assert sum("mine" in label for label in report.labels) == (
        2 if "repeat" in str(table) or net.name == "repeat" else 1
    )
    assert diagnostics.dead_units(net, params, state, X).labels == ()
    arrays = interop.to_torch(params, state, net)  # whose parts it may still read
    assert any(name.endswith("second.1.weight") for name in arrays)
    back, _ = interop.from_torch(arrays, net, X)
    chex.assert_trees_all_equal(back, params)
    pytest.importorskip("matplotlib")
    diagnostics.pictures.activation_histograms(tmp_path / "h.png", net, params, state, X)


def test_a_part_that_is_not_applied():
    """What it counts is in the container's row; what was measured is never taken for another layer's."""
    net = layers.chain(idle_part(), layers.dense(1))
    params, state = net.init(KEY, X)
    table = layers.summary(net, X)
    assert ("0", "idle") not in {row.path for row in table.rows}
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    for call in (
        lambda: diagnostics.layer_report(net, losses.mse, params, state, (X, X[..., :1])),
        lambda: diagnostics.dead_units(net, params, state, X),
    ):
        with pytest.raises(ConfigError, match=r"chain has the layers 0\.used\.dense, 0\.idle\.dense, 1\.dense, but"):
            call()

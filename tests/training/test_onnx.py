"""ONNX: the runtime computes what the network computes, for any batch size; what is ours alone is written as JAX's."""

import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxnet import activations, kernels, layers, training
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.kernels.inlined import inlined

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).standard_normal((3, 6, 7, 2)).astype(np.float32)
VOLUMES = np.ones((2, 3, 3, 3, 1), np.float32)
TOKENS = np.array([[1, 2, 9], [0, 3, 3]], np.int32)
LONG = np.random.default_rng(2).standard_normal((1, 3000, 4)).astype(np.float32)
HALF, DOUBLE = X.astype(np.float16), X.astype(np.float64)


def convs(layer, **options):
    return {"X": layer(4, 3, **options), "IMAGES": layer(4, (3, 2), **options)}


# The rows of the table in docs/onnx.md: what they name, and what shows it, of the input that stands with it.
YES = [
    {
        "dense": {"X": layers.dense(3)},
        "activations": {"X": layers.parallel(*[getattr(activations, name) for name in activations.__all__])},
        "dropout": {"X": layers.dropout(0.5)},
        "flatten": {"X": layers.flatten()},
        "reshape": {"X": layers.reshape(4, 8)},
        "low_rank": {"X": layers.low_rank(layers.dense(4), 2)},
        "repeat": {"X": layers.repeat(layers.chain(layers.dense(4), activations.tanh), 2)},
    },
    {
        "conv in one and two dimensions": convs(layers.conv),
        "strides": convs(layers.conv, strides=2),
        "dilation": convs(layers.conv, dilation=2),
        "groups": convs(layers.conv, groups=2),
        "same": convs(layers.conv, padding="same"),
        "causal": {"X": layers.conv(4, 3, padding="causal")},
    },
    {
        "conv_transpose in one and two dimensions": convs(layers.conv_transpose),
        "strides": convs(layers.conv_transpose, strides=2, padding=1),
        "dilation": convs(layers.conv_transpose, strides=2, dilation=2),
        "groups": convs(layers.conv_transpose, groups=2),
    },
    {
        "avg_pool": {"X": layers.avg_pool(2), "IMAGES": layers.avg_pool((2, 3), strides=1)},
        "max_pool": {"X": layers.max_pool(3, strides=2), "IMAGES": layers.max_pool((2, 3), strides=2)},
        "global_avg_pool": {"X": layers.global_avg_pool()},
        "upsample": {"X": layers.upsample(3), "IMAGES": layers.upsample((2, 3), "linear")},
        "pad": {"X": layers.pad((2, 1))},
        "snake": {"X": layers.snake()},
    },
    {
        "batch_norm": {"X": layers.batch_norm()},
        "layer_norm": {"X": layers.layer_norm()},
        "rms_norm": {"X": layers.rms_norm()},
        "group_norm": {"X": layers.group_norm(2)},
        "instance_norm": {"X": layers.instance_norm()},
        "weight_norm": {"X": layers.weight_norm(layers.conv(4, 3))},
        "spectral_norm": {"X": layers.spectral_norm(layers.dense(3))},
    },
    {
        "attention": {"X": layers.residual(layers.attention(2))},
        "causal": {"X": layers.attention(2, causal=True)},
        "windows": {"X": layers.attention(2, causal=True, window=3)},
        "3000 positions": {"LONG": layers.attention(1, causal=True)},
        "embedding": {"TOKENS": layers.embedding(10, 4)},
        "positions": {"X": layers.positions()},
    },
    {"lstm": {"X": layers.lstm(5)}, "gru": {"X": layers.gru(5)}},
    {
        "dense in float16": {"HALF": layers.dense(5)},
        "dense in float64": {"DOUBLE": layers.dense(5)},
        "layer_norm in float64": {"DOUBLE": layers.layer_norm()},
    },
]
NO = [
    {
        "conv in three dimensions": {"VOLUMES": layers.conv(1, (2, 2, 2))},
        "conv_transpose in three dimensions": {"VOLUMES": layers.conv_transpose(1, (2, 2, 2))},
    },
    {"conv in float64": {"DOUBLE": layers.conv(1, 3)}},
    {"mixed_precision": {"X": layers.mixed_precision(layers.dense(3))}},
    {"jax.pure_callback": {"X": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)}},
]
TABLE = re.findall(r"^\| (.*?) \| (yes|no: .*?) \|$", (ROOT / "docs" / "onnx.md").read_text(), re.MULTILINE)


def test_the_page_promises_what_is_tried():
    said = [(re.split(r"(?:, |: | \(|\), |\))(?=.)", re.sub(r"[`\"]", "", row)), goes) for row, goes in TABLE]
    assert [row for row, goes in said if goes == "yes"] == [list(row) for row in YES]
    assert [row for row, goes in said if goes != "yes"] == [list(row) for row in NO]


def of_one_input(row):
    """The networks of a row by their inputs, each beside the others: one model an input."""
    inputs = sorted({name for nets in row.values() for name in nets})
    return [(layers.parallel(*[nets[x] for nets in row.values() if x in nets]), globals()[x]) for x in inputs]


def names(jaxpr):
    """Of all primitives, also inside of others."""
    inner = [j for e in jaxpr.eqns for j in core.jaxprs_in_params(e.params)]
    return {e.primitive.name for e in jaxpr.eqns}.union(*map(names, inner))


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(layers.chain(layers.conv(8, 3), layers.batch_norm(), activations.leaky_relu), id="conv"),
        pytest.param(layers.lstm(5), id="lstm"),
    ],
)
def test_nothing_of_ours_is_left(net):
    params, state = net.init(0, X)

    def evaluate(x):
        return net.apply(params, state, x, train=False)[0]

    written = jax.make_jaxpr(inlined(evaluate))(X)
    assert not {n for n in names(written.jaxpr) if n.startswith(("jaxnet", "custom", "jit", "pjit", "platform"))}
    np.testing.assert_allclose(core.jaxpr_as_fun(written)(X)[0], evaluate(X), atol=1e-5)


def test_bodies_of_branches_and_loops_are_written_too():
    def function(x):
        x = jax.checkpoint(lambda x: jax.lax.cond(x.sum() > 0, activations.relu, jnp.negative, x))(x)
        x = jax.lax.while_loop(lambda x: x.sum() < 50, lambda x: activations.relu(x) + 1, x)
        once = jax.lax.pad(x, jnp.float32(7), [(0, 0, 0), (1, -2, 0), (-5, 3, 0)])
        return {"twice": kernels.conv(x, jnp.ones((1, 4, 1))), "once": once}

    written = jax.make_jaxpr(inlined(function))(X)
    assert not {n for n in names(written.jaxpr) if n.startswith(("jaxnet", "custom", "jit", "remat", "checkpoint"))}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), inlined(function)(X), function(X))


@pytest.mark.parametrize("row", [pytest.param(row, id=next(iter(row)).replace(" ", "-")) for row in YES])
def test_the_runtime_computes_the_same(row, tmp_path, caplog):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    for net, x in of_one_input(row):
        with jax.enable_x64(x is DOUBLE):
            params, state = net.init(0, x)
            model = training.export_onnx(net, params, state, x, path=tmp_path / "net.onnx")
            assert (tmp_path / "net.onnx").read_bytes() == model
            session = runtime.InferenceSession(model)
            one = x[-1:, ::-1].copy()  # neither of the batch sizes that the export has tried
            found = session.run(None, {session.get_inputs()[0].name: one})
            wanted, _ = jax.jit(net.apply, static_argnames="train")(params, state, one, train=False)
            for y, to_be in zip(found, jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(y, to_be, atol=1e-2 if x is HALF else 1e-5)
    assert not [record.message for record in caplog.records if record.name.startswith("onnx_ir")]
    assert logging.getLogger("onnx_ir").level == logging.NOTSET  # as it was


@pytest.mark.parametrize(
    ("row", "goes"),
    [
        pytest.param(row, goes, id=next(iter(row)).replace(" ", "-"))
        for row, goes in zip(NO, [g for _, g in TABLE if g != "yes"], strict=False)
    ],
)
def test_what_does_not_go_is_refused(row, goes):
    pytest.importorskip("jax2onnx")
    who = goes.removeprefix("no: ").split()[0]
    assert who in ("jax2onnx", "onnxruntime")
    for nets in row.values():
        ((x, net),) = nets.items()
        net, x = layers.chain(net), globals()[x]
        with (
            jax.enable_x64(x is DOUBLE),
            pytest.raises(ConfigError, match=rf"{who} does not .*training\.export has no"),
        ):
            training.export_onnx(net, *net.init(0, x), x)


def test_tokens_and_a_state_with_a_key():
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    tokens = np.array([[1, 2, 9], [0, 3, 3]], np.int32)
    net = layers.chain(
        layers.embedding(10, 4), layers.Layer(lambda key, x: ((), jax.random.key(0)), lambda p, s, x, **_: (x, s))
    )
    params, state = net.init(0, tokens)
    session = runtime.InferenceSession(training.export_onnx(net, params, state, tokens))
    (y,) = session.run(None, {session.get_inputs()[0].name: tokens[:, ::-1].copy()})
    np.testing.assert_array_equal(y, net.apply(params, state, tokens[:, ::-1], train=False)[0])


def test_a_model_that_would_be_of_one_batch_size_is_refused(tmp_path):
    pytest.importorskip("jax2onnx")
    net = layers.chain(lambda x: x * float(x.shape[0]))
    with pytest.raises(ConfigError, match=r"chain cannot be written for every batch size.*training\.export"):
        training.export_onnx(net, ((),), ((),), X, path=tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_only_one_array_of_less_than_two_gibibytes_of_weights(monkeypatch):
    pytest.importorskip("jax2onnx")
    with pytest.raises(ShapeError, match="one array"):
        training.export_onnx(layers.chain(lambda x: x[0]), ((),), ((),), (X, X))
    monkeypatch.setattr("jaxnet.training.onnx.LARGEST", 100)
    with pytest.raises(ConfigError, match=r"have 420 bytes, .* at most 2 GiB; take training\.export"):
        training.export_onnx(layers.dense(21), *layers.dense(21).init(0, X), X)


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx")
    faithful = jax2onnx.to_onnx
    monkeypatch.setattr(
        jax2onnx, "to_onnx", lambda f, *args, **kw: faithful(lambda x: [1.01 * y for y in f(x)], *args, **kw)
    )
    with pytest.raises(ConfigError, match=r"its outputs differ by .*, where the largest is"):
        training.export_onnx(layers.chain(lambda x: x), ((),), ((),), X)

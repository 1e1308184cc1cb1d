"""Artifacts of jax.export: any batch size, without jaxnet, and refused when damaged."""

import os
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import layers, training
from jaxnet.errors import CheckpointError, ConfigError, DependencyError, DTypeError, ShapeError
from tests.layers.test_layers_table import IN_FLOAT64, TABLE


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def network():
    return layers.chain(
        layers.conv(4, 3, strides=2, padding="same", groups=2),
        layers.batch_norm(),
        jnp.tanh,
        layers.conv_transpose(4, 4, strides=2, padding="same"),
        layers.max_pool(2),
        layers.flatten(),
        layers.dropout(0.5),
        layers.dense(3),
    )


NET, X = network(), inputs(3, 12, 4)
PARAMS, STATE = NET.init(0, X)


@jax.jit
def evaluate(x):
    return NET.apply(PARAMS, STATE, x, train=False)[0]


def measured(f, x):
    """A function's value, and a derivative by x."""
    y, pullback = jax.vjp(f, x)
    return y, pullback(jax.tree.map(jnp.cos, y))


@pytest.fixture(scope="module")
def artifact():
    return training.export(NET, PARAMS, STATE, X)


# One of each kind, the last and so the most awkward: what layers do with symbolic sizes, test_symbolic_lengths has.
@pytest.mark.parametrize("name", {name.partition("-")[0]: name for name in TABLE}.values())
def test_every_layer_for_every_batch_size(name):
    """Values for batches that the export never saw, and the derivative by x of one of them."""
    case = TABLE[name]
    with jax.enable_x64(name in IN_FLOAT64):
        layer, x = case.make(), np.asarray(inputs(3, *case.shape[1:]), "float64" if name in IN_FLOAT64 else "float32")
        rng = np.random.default_rng(1)
        params, state = jax.tree.map(
            lambda a: jnp.asarray(0.4 + 0.3 * np.abs(rng.standard_normal(a.shape)), a.dtype),
            jax.eval_shape(layer.init, jax.random.key(0), x),
        )
        loaded = training.load_exported(training.export(layer, params, state, jax.ShapeDtypeStruct(x.shape, x.dtype)))

        def direct(x):
            return layer.apply(params, state, x, train=False)[0]

        (loaded_y, loaded_dx), (y, dx) = (jax.jit(partial(measured, f))(x) for f in (loaded, direct))
        first = jax.tree.map(lambda leaf: leaf[:1], y)  # in evaluation no example sees another
        for found, wanted in ((loaded_y, y), (jax.jit(loaded)(x[:1]), first)):
            chex.assert_trees_all_equal_structs(found, wanted)
            chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(loaded_dx, dx, rtol=1e-4, atol=1e-5)


WITHOUT_JAXNET = """
import sys

sys.modules["jaxnet"] = None  # an import of it would fail
import jax, numpy, jax.export
from pathlib import Path

exported = jax.export.deserialize(bytearray(Path("net.bin").read_bytes()))
x = numpy.load("x.npy")
numpy.savez("out.npz", y=exported.call(x), dx=jax.grad(lambda x: exported.call(x).sum())(x))
"""


def test_an_artifact_runs_without_jaxnet(tmp_path, artifact):
    (tmp_path / "net.bin").write_bytes(artifact)
    np.save(tmp_path / "x.npy", inputs(5, 12, 4))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", WITHOUT_JAXNET], cwd=tmp_path, env=environment, check=True, timeout=300)
    out = np.load(tmp_path / "out.npz")
    x = inputs(5, 12, 4)
    np.testing.assert_allclose(out["y"], evaluate(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["dx"], jax.jit(jax.grad(lambda x: evaluate(x).sum()))(x), rtol=1e-5, atol=1e-6)


def test_a_file_is_the_artifact(tmp_path, artifact):
    path = tmp_path / "net.bin"
    assert training.export(NET, PARAMS, STATE, X, path=path) == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["net.bin"]
    wanted = training.load_exported(artifact)(X)
    for source in (path, str(path), bytearray(artifact)):
        np.testing.assert_array_equal(training.load_exported(source)(X), wanted)
    with pytest.raises(
        CheckpointError, match=r"other\.bin does not exist; wanted the file that training\.export wrote"
    ):
        training.load_exported(tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="is a directory; wanted the file"):
        training.load_exported(tmp_path)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "net.bin"
    path.write_bytes(b"old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, fails, interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.export(layers.chain(jnp.tanh), ((),), ((),), X, path=path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.bin"]


def test_the_input_is_described_and_checked(artifact):
    loaded = training.load_exported(artifact)
    assert (loaded.shape, loaded.dtype, loaded.platforms) == ((None, 12, 4), np.float32, ("cpu", "cuda", "tpu"))
    for x in (inputs(3, 4, 12), inputs(3, 12), inputs(0, 12, 4), jnp.ones(())):
        with pytest.raises(ShapeError, match=r"x must have the shape \(batch, 12, 4\), batch >= 1, got \("):
            loaded(x)
    with pytest.raises(ShapeError, match=r"got \(12, 4\); add the batch axis: x\[None\]"):
        loaded(X[0])
    for x, dtype in ((X.astype(jnp.bfloat16), "bfloat16"), (X.astype(jnp.int32), "int32")):
        with pytest.raises(DTypeError, match=rf"x must be float32, got {dtype}; x.astype\('float32'\)"):
            loaded(x)
    with pytest.raises(DTypeError, match="x must be an array, got str"):
        loaded("x")
    np.testing.assert_array_equal(loaded(np.asarray(X)), loaded(X))


def test_float64_needs_64_bit_types_on_both_sides(x64):
    net = layers.chain(jnp.tanh)
    artifact = training.export(net, ((),), ((),), jax.ShapeDtypeStruct((1, 2), jnp.float64))
    x = jnp.ones((2, 2), jnp.float64)
    np.testing.assert_allclose(training.load_exported(artifact)(x), np.tanh(1.0), rtol=1e-15)
    with jax.enable_x64(False), pytest.raises(DTypeError, match=r"must be float64, got float32; .*jax_enable_x64"):
        training.load_exported(artifact)(jnp.ones((2, 2)))


def test_other_dtypes_and_tuples_of_outputs():
    table = layers.stateless(lambda key, x: {"table": jnp.arange(5.0)}, lambda p, x: p["table"][x], name="embedding")
    net = layers.parallel(table, lambda x: {"twice": 2 * x})
    tokens = jnp.array([[1, 4], [0, 2]])
    params, state = net.init(0, tokens)
    loaded = training.load_exported(training.export(net, params, state, tokens))
    assert loaded.dtype == np.int32
    chex.assert_trees_all_equal(loaded(tokens), (tokens.astype(jnp.float32), {"twice": 2 * tokens}))


@pytest.mark.devices(8)
def test_parameters_spread_over_devices_export_for_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    net = layers.dense(8)
    params, state = net.init(0, jnp.ones((1, 8)))
    spread = jax.device_put(params, everywhere) | {
        "kernel": jax.device_put(params["kernel"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    }
    loaded = training.load_exported(training.export(net, spread, state, jnp.ones((1, 8))))
    expected = net.apply(params, state, jnp.ones((3, 8)), train=False)[0]
    np.testing.assert_allclose(loaded(jnp.ones((3, 8))), expected, rtol=1e-6)


def test_batch_norm_takes_the_averages_that_training_left():
    norm = layers.batch_norm()
    params, state = norm.init(0, X)
    _, state = norm.apply(params, state, 3 + 2 * X, train=True)
    loaded = training.load_exported(training.export(norm, params, state, X))
    np.testing.assert_allclose(loaded(X[:1]), norm.apply(params, state, X[:1], train=False)[0], rtol=1e-5)


# Damage.


@given(st.data())
def test_every_cut_is_noticed(artifact, data):
    cut = data.draw(st.integers(0, len(artifact) - 1))
    with pytest.raises(CheckpointError, match=rf"\({cut} bytes\) does not end as an artifact .* or was cut off"):
        training.load_exported(artifact[:cut])


@given(st.data())
def test_every_flipped_bit_is_noticed(artifact, data):
    spoiled = bytearray(artifact)
    spoiled[data.draw(st.integers(0, len(artifact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CheckpointError, match=r"is damaged, its checksum differs|does not end as an artifact"):
        training.load_exported(spoiled)


def test_what_is_no_artifact_is_refused(tmp_path, artifact):
    (tmp_path / "weights.npz").write_bytes(b"PK\x03\x04" * 50)
    with pytest.raises(CheckpointError, match=r"weights.npz \(200 bytes\) does not end as an artifact"):
        training.load_exported(tmp_path / "weights.npz")
    with pytest.raises(CheckpointError, match="does not end as an artifact"):
        training.load_exported(artifact + b"\n")
    with pytest.raises(CheckpointError, match="the artifact is damaged, its checksum differs"):
        training.load_exported(b"more" + artifact)
    with pytest.raises(DTypeError, match="source must be bytes or a path, got int"):
        training.load_exported(3)  # pyright: ignore[reportArgumentType]


def test_what_this_jax_cannot_read_is_refused(artifact, monkeypatch):
    """As an artifact of another version would be, whole as it is."""

    def refuse(data):
        raise ValueError("deserialize unsupported version 999")

    monkeypatch.setattr(jax.export, "deserialize", refuse)
    with pytest.raises(CheckpointError, match=r"jax .* cannot read the artifact, which is undamaged: .* version 999"):
        training.load_exported(artifact)


# Exports that are refused.


@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        (("gpu",), "a platform must be one of 'cpu', 'cuda', 'rocm', 'tpu', got 'gpu'"),
        ("cpu", r"platforms must be a sequence such as \('cpu', 'cuda'\), got 'cpu'"),
        ((), "platforms must be a sequence"),
        (("cpu", "cpu"), "platforms must differ"),
    ],
)
def test_bad_platforms_are_refused(platforms, message):
    with pytest.raises(ConfigError, match=f"export: {message}"):
        training.export(NET, PARAMS, STATE, X, platforms=platforms)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x if x.shape[0] > 2 else 2 * x,
        lambda x: sum(x[i] for i in range(x.shape[0])),
        lambda x: x * float(x.shape[0]),
    ],
)
def test_a_network_that_needs_the_batch_size_as_a_number_is_refused(f):
    with pytest.raises(
        ConfigError, match=r"chain cannot be exported for every batch size: .+; x\.shape\[0\] stands for any"
    ):
        training.export(layers.chain(f), ((),), ((),), X)


def test_outputs_in_a_class_of_ones_own_are_refused():
    net = layers.chain(lambda x: layers.Watched(x, x))
    with pytest.raises(ConfigError, match=r"unregistered type .*Watched.*; .* arrays in tuples, lists and dicts"):
        training.export(net, ((),), ((),), X)


def test_errors_of_the_network_come_as_they_are():
    with pytest.raises(ShapeError, match=r"chain\[0\]: conv: the input has 8 channels, the kernel was made for 4"):
        training.export(NET, PARAMS, STATE, inputs(1, 12, 8))
    with pytest.raises(
        ConfigError, match="export: net must be a layer or a function of its input, got a dict of kernel"
    ):
        training.export({"kernel": np.ones((4, 2))}, (), (), X)
    with pytest.raises(ConfigError, match="params must be a tuple of 8"):
        training.export(NET, PARAMS[1:], STATE, X)
    with pytest.raises(ShapeError, match=r"export: x must have the axes \(batch, ...\), got a scalar"):
        training.export(layers.chain(jnp.tanh), ((),), ((),), jnp.ones(()))


def test_without_flatbuffers_the_error_says_what_to_install(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for call in (lambda: training.export(NET, PARAMS, STATE, X), lambda: training.load_exported(artifact)):
        with pytest.raises(DependencyError, match=r"flatbuffers, which .* pip install flatbuffers"):
            call()
    assert issubclass(DependencyError, ImportError)


def test_symbolic_lengths_stay_open():
    """Audio of any multiple of 4 samples, in batches of any size; a length that is no such multiple is refused."""
    net = layers.chain(
        layers.conv(4, 8, strides=4, padding=2), jnp.tanh, layers.conv_transpose(1, 8, strides=4, padding="same")
    )
    params, state = net.init(0, jnp.ones((1, 16, 1)))
    (samples,) = jax.export.symbolic_shape("4*t")
    artifact = training.export(net, params, state, jax.ShapeDtypeStruct((1, samples, 1), jnp.float32))
    loaded = training.load_exported(artifact)
    assert loaded.shape == (None, None, 1)

    def direct(x):
        return net.apply(params, state, x, train=False)[0]

    for shape in ((1, 8, 1), (3, 20, 1)):
        x = inputs(*shape)
        (loaded_y, loaded_dx), (y, dx) = (jax.jit(partial(measured, f))(x) for f in (loaded, direct))
        np.testing.assert_allclose(loaded_y, y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(loaded_dx, dx, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match=r"must have the shape \(batch, any, 1\), batch >= 1, got \(1, 8, 2\)"):
        loaded(inputs(1, 8, 2))
    with pytest.raises(ShapeError, match=r"x of shape \(1, 9, 1\) does not fit the sizes.*4\*t"):
        loaded(inputs(1, 9, 1))


def test_an_input_that_is_a_tree(tmp_path):
    """Tokens and a mask, as a dict; and a pair of arrays."""

    def look_up(params, x):
        rows = params["rows"][x["tokens"]] * x["mask"][..., None]
        return jnp.sum(rows, 1)

    embedding = layers.stateless(lambda key, x: {"rows": jax.random.normal(key, (10, 4))}, look_up)
    net = layers.chain(embedding, layers.dense(2))
    x = {"tokens": np.arange(6, dtype=np.int32).reshape(2, 3), "mask": np.ones((2, 3), np.float32)}
    params, state = net.init(0, x)
    f = training.load_exported(training.export(net, params, state, x, path=tmp_path / "net"))
    assert f.shape == {"tokens": (None, 3), "mask": (None, 3)}
    assert f.dtype == {"tokens": np.dtype("int32"), "mask": np.dtype("float32")}
    more = jax.tree.map(lambda a: np.concatenate([a, a, a]), x)
    np.testing.assert_allclose(f(more), net.apply(params, state, more, train=False)[0], rtol=1e-6)
    with pytest.raises(ShapeError, match=r"x must be a tree .*'mask'.*'tokens'"):
        f(x["tokens"])
    with pytest.raises(DTypeError, match=r"x must be int32, got float32"):
        f(x | {"tokens": x["mask"]})
    with pytest.raises(ShapeError, match="one batch size among them"):
        f(x | {"mask": more["mask"]})

    pair = layers.chain(lambda pair: pair[0] + pair[1])
    f = training.load_exported(training.export(pair, ((),), ((),), (x["mask"], x["mask"])))
    assert f.shape == ((None, 3), (None, 3))
    np.testing.assert_array_equal(f((x["mask"], x["mask"])), 2 * x["mask"])
    with pytest.raises(DTypeError, match="got a tuple of 0"):
        training.export(pair, ((),), ((),), ())

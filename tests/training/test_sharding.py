"""Training on 8 devices is training on one: the same losses, statistics and parameters, up to rounding."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError
from tests.training import calls
from tests.training.runs import batches, close, fit, identical, network, sounds

ROOT = Path(__file__).parents[2]

MESHES = {
    "make_mesh": lambda: jax.make_mesh((8,), ("data",)),  # its axes are Explicit
    "two axes": lambda: jax.make_mesh((4, 2), ("data", "model")),
    "some devices": lambda: Mesh(np.array(jax.devices()[2:4]), ("data",)),
}


@pytest.fixture(scope="module")
def alone():
    return fit()


@pytest.fixture(scope="module")
def shared():
    return fit(mesh=MESHES["make_mesh"]())


@pytest.mark.devices(8)
def test_arrays_give_what_one_device_gives(alone, shared):
    close(shared, alone)
    kernel = shared.train_state.params[0]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.is_fully_replicated


@pytest.mark.parametrize("kind", ["two axes", "some devices"])
@pytest.mark.devices(8)
def test_any_mesh_will_do(kind, alone):
    mesh = MESHES[kind]()
    result = fit(mesh=mesh)
    close(result, alone)
    assert result.params[0]["kernel"].sharding.device_set == set(mesh.devices.flat)


@pytest.mark.devices(8)
def test_an_explicit_mesh_may_be_the_one_in_use(alone):
    mesh = MESHES["make_mesh"]()
    with jax.set_mesh(mesh):
        close(fit(mesh=mesh), alone)


@pytest.mark.devices(8)
def test_iterables_give_what_one_device_gives():
    x, labels = sounds(19, seed=1)
    options = {"data": batches(), "validation": [(x[:16], labels[:16]), (x[16:], labels[16:])]}
    close(fit(**options, mesh=MESHES["make_mesh"]()), fit(**options))


@pytest.fixture(scope="module")
def in_pieces():
    """A fully sharded run, and after each epoch the shapes that one device holds of each tree."""
    pieces = []

    def look(record, train_state):
        adam = train_state.opt_state
        for tree in (train_state.params, adam.mu, adam.nu):
            pieces.append({leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(tree)})

    return fit(mesh=MESHES["make_mesh"](), shard_parameters=True, callbacks=[look]), pieces


@pytest.mark.devices(8)
def test_parameters_in_pieces_stay_in_pieces(alone, in_pieces):
    result, pieces = in_pieces
    close(result, alone)
    assert len(pieces) == 6
    for shapes in pieces:
        assert (256 // 8, 8) in shapes  # the dense kernel, in pieces
        assert (256, 8) not in shapes
        assert (3, 4, 16) in shapes  # fewer than a thousand numbers: whole


@pytest.mark.devices(8)
def test_accumulation_over_a_mesh(alone):
    def steps(**options):
        net = layers.chain(layers.flatten(), layers.dense(3))
        return calls.fit(
            net, losses.softmax_cross_entropy, optimizers.adam(1e-2), sounds(64), epochs=1, batch_size=32,
            progress=False, mesh=MESHES["make_mesh"](), **options,
        )  # fmt: skip

    close(steps(accumulate=2), steps())


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.devices(8)
def test_an_interrupted_run_goes_on_with_the_same_bits(pieces, shared, in_pieces, interrupted):
    mesh = MESHES["make_mesh"]()
    result = fit(keep=interrupted(mesh=mesh, shard_parameters=pieces), mesh=mesh, shard_parameters=pieces)
    identical(result, in_pieces[0] if pieces else shared)


@pytest.mark.devices(8)
def test_an_interrupted_run_goes_on_with_other_devices(alone, interrupted):
    on_eight = interrupted(mesh=MESHES["make_mesh"](), shard_parameters=True)
    close(fit(keep=on_eight, mesh=MESHES["some devices"]()), alone)
    close(fit(keep=interrupted(), mesh=MESHES["make_mesh"](), shard_parameters=True), alone)


@pytest.fixture
def interrupted(tmp_path):
    """Starts a run that is interrupted early in its second epoch; returns where it was saved."""

    def start(**options):
        def stop(record, train_state):
            signal.raise_signal(signal.SIGTERM)

        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(SystemExit) as left:
            fit(keep=directory, callbacks=[stop], **options)
        assert left.value.code == 143
        (saved,) = training.Checkpoints(directory).paths()
        assert training.read_metadata(saved)["step"] in (5, 6, 7, 8)
        return directory

    return start


@pytest.mark.devices(8)
def test_a_finished_run_is_where_another_begins(shared):
    mesh = MESHES["make_mesh"]()
    again = fit(mesh=mesh, start=(shared.params, shared.state), epochs=1)
    assert again.history["loss"][0] < shared.history["loss"][0]


@pytest.mark.devices(8)
def test_evaluation_over_a_mesh():
    net = network()
    params, state = net.init(0, jax.ShapeDtypeStruct((1, 16, 4), jnp.float32))
    x, labels = sounds(45)
    one = training.make_evaluate(net, losses.softmax_cross_entropy)
    eight = training.make_evaluate(net, losses.softmax_cross_entropy, mesh=MESHES["two axes"](), batch_size=10)
    for data in ((x, labels), [(x[:40], labels[:40]), (x[40:], labels[40:])]):
        assert eight(params, state, data)["loss"] == pytest.approx(one(params, state, data)["loss"], rel=1e-5)


@pytest.mark.devices(8)
def test_a_batch_that_does_not_divide():
    mesh = MESHES["make_mesh"]()
    with pytest.raises(DataError, match="a batch of 12 cannot be shared among 8 devices; a batch_size of 8 or 16 can"):
        fit(mesh=mesh, batch_size=12)
    with pytest.raises(DataError, match="a batch of 4 cannot be shared among 8 devices; a batch_size of 8 can"):
        fit(mesh=mesh, batch_size=4)
    with pytest.raises(DataError, match="a batch of 6 cannot be shared among 8 devices"):
        fit(sounds(70), mesh=mesh, batch_size=16, drop_last=False)
    x, labels = sounds(20)
    with pytest.raises(DataError, match="a batch of 20 cannot be shared among 8 devices; a batch_size of 16 or 24 can"):
        fit([(x, labels)], mesh=mesh)


def test_what_is_no_mesh():
    with pytest.raises(ConfigError, match=r"mesh must be a jax.sharding.Mesh, got 8; jax.make_mesh\(\(n,\)"):
        fit(mesh=8)
    with pytest.raises(ConfigError, match=r"sharded: mesh must be a jax.sharding.Mesh, got None"):
        training.sharded(None)


# A step that takes longer than it takes to dispatch it: with 1,000 in flight instead of 8, this hangs.
STEPS = """
import jax, jax.numpy as jnp
from jaxnet import layers, losses, optimizers, training
x, many = jnp.ones((64, 256)), jnp.ones((6400, 256))
net = layers.chain(layers.dense(256), layers.batch_norm(), layers.dense(256))
adam, mesh = optimizers.adam(1e-3), jax.make_mesh((8,), ("data",))
arrays, stream = training.arrays(many, many, batch_size=64), training.stream([(x, x)], steps_per_epoch=300)
for data, epochs in ((arrays, 3), (stream, 1)):
    fit = training.fit(net, losses.mse, adam, data, epochs=epochs, mesh=mesh, progress=False)
    print(int(fit.train_state.step))
"""


def test_steps_in_flight_do_not_starve_a_small_thread_pool():
    flags = re.sub(r"(device_count)=\d+", r"\1=8", os.environ["XLA_FLAGS"])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment.pop("NPROC", None)  # which widens the pool in all other tests
    done = subprocess.run(  # a deadlock ends with SIGKILL
        [sys.executable, "-c", STEPS], cwd=ROOT, env=environment, timeout=500, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.returncode) == (["300", "300"], 0), done.stderr

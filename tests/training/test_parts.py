"""Parts of a checkpoint: parameters alone, a backbone under a new head, the weights of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.checkpoints import damage
from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError
from jaxnet.training import Checkpoints, checkpoint, checkpoints, load, save
from tests.training import calls, runs
from tests.training.test_checkpoint import TREES, assert_same, end_of_header

X, Y = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32), np.ones((64, 1), np.float32)


def backbone():
    return layers.chain(layers.dense(4), layers.batch_norm(), activations.relu)


def fit(net, targets=Y, **options):
    options = {"epochs": 3, "batch_size": 16, "progress": False, **options}
    return calls.fit(net, losses.mse, optimizers.adam(0.1), (X, targets), **options)


@given(tree=TREES, other=TREES)
@example(tree=[], other={"": jnp.ones(2)})
def test_every_part_of_any_tree(tree, other, tmp_path_factory):
    path = save(tmp_path_factory.mktemp("any") / "run", {"part": tree, "deep": {"part": [other, tree]}, "par": other})
    assert_same(load(path, tree, under="part"), tree)
    assert_same(load(path, other, under="deep/part/0"), other)
    assert_same(load(path, [other, tree], under="/deep/part/"), [other, tree])


@pytest.fixture(params=["one file", "pieces"])
def kept(request, tmp_path, monkeypatch):
    """A checkpoint with parts, whose JAX arrays lie in either kind of file."""
    if request.param == "pieces":
        monkeypatch.setattr(checkpoint, "_over_hosts", lambda array: isinstance(array, jax.Array) and array.size > 0)
    tree = {"a": {"x": jnp.arange(8.0), "n": np.ones(2)}, "b": [jnp.ones((2, 2)), jax.random.key(1)], "c": jnp.zeros(0)}
    return tree, save(tmp_path / "run", tree)


class TestParts:
    def test_each(self, kept):
        tree, path = kept
        for under in ("a", "b"):
            assert_same(load(path, tree[under], under=under), tree[under])
        for under, leaf in (("a/x", tree["a"]["x"]), ("a/n", tree["a"]["n"]), ("b/1", tree["b"][1]), ("c", tree["c"])):
            assert_same(load(path, leaf, under=under), leaf)

    @pytest.mark.devices(8)
    def test_into_another_sharding(self, kept):
        tree, path = kept
        rows = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
        found = load(path, jax.ShapeDtypeStruct((8,), jnp.float32, sharding=rows), under="a/x")
        assert found.sharding == rows
        np.testing.assert_array_equal(found, tree["a"]["x"])

    def test_all_checks_are_kept(self, kept):
        tree, path = kept
        with pytest.raises(CheckpointError) as caught:
            load(path, {"x": jnp.zeros(9), "y": jnp.zeros(1)}, under="a")
        assert str(caught.value) == (
            f"load: {path} does not fit the tree that it is loaded into:\n"
            "  1 missing from the file: 'a/y'\n"
            "  1 in the file alone: 'a/n'\n"
            "  1 different: 'a/x' is float32 (8,) in the file, float32 (9,) in the tree"
        )
        # Every array of the part is compared with its checksum, and what is not wanted is not read.
        wanted = {"a/x", "a/x[0:8]", "a/n"}
        for file in path.parent.iterdir():
            whole, begin = file.read_bytes(), end_of_header(file)
            for name, entry in damage.unsealed(whole)[1].items():
                first, last = entry["data_offsets"]
                damaged = bytearray(whole)
                damaged[begin + (first + last) // 2 : begin + last] = b"\xff" * (last - (first + last) // 2)
                file.write_bytes(damaged)
                if name in wanted:
                    with pytest.raises(CheckpointError, match=f"is damaged: {name!r} does not".replace("[", r"\[")):
                        load(path, tree["a"], under="a")
                else:
                    assert_same(load(path, tree["a"], under="a"), tree["a"])
                file.write_bytes(whole)

    def test_a_place_that_is_not_there(self, kept):
        tree, path = kept
        with pytest.raises(CheckpointError, match=r"run has nothing under 'A/x'; it has 2 places: 'a', 'b'$"):
            load(path, tree["a"], under="A/x")
        with pytest.raises(CheckpointError, match="has nothing under 'a/xx'"):
            load(path, jnp.zeros(2), under="a/xx")
        with pytest.raises(ConfigError, match="load: under must be a place such as 'train_state/params', got 3"):
            load(path, tree["a"], under=3)

    def test_a_part_without_its_place(self, kept):
        tree, path = kept
        with pytest.raises(CheckpointError, match=r"\n  but it fits a part: give under='a'$"):
            load(path, tree["a"])


class TestRuns:
    @pytest.mark.parametrize("stopping", [None, training.EarlyStopping(9, "loss", "max")])  # the first is the best
    @pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.devices(8))])
    def test_the_weights_of_a_run(self, sharded, stopping, tmp_path):
        net = layers.chain(backbone(), layers.dense(1))
        mesh = {"mesh": jax.make_mesh((8,), ("data",)), "shard_parameters": True} if sharded else {}
        run = fit(net, keep=tmp_path, early_stopping=stopping, **mesh)
        for x in (X, jax.ShapeDtypeStruct((1, 3), jnp.float32)):
            for directory in (tmp_path, Checkpoints(tmp_path)):
                params, state = training.load_best(directory, net, x)
                jax.tree.map(np.testing.assert_array_equal, (params, state), (run.params, run.state))
        last = training.load(Checkpoints(tmp_path).latest(), run.train_state.params, under="train_state/params")
        jax.tree.map(np.testing.assert_array_equal, last, run.train_state.params)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), params, last)
        assert all(jax.tree.leaves(same)) == (stopping is None)

    def test_a_network_without_state_or_parameters(self, tmp_path):
        run = fit(layers.dense(1), keep=tmp_path)
        params, state = training.load_best(tmp_path, layers.dense(1), X)
        np.testing.assert_array_equal(params["bias"], run.params["bias"])
        assert state == ()

    def test_a_run_under_way_puts_a_newer_checkpoint_in_the_place_of_what_is_read(self, tmp_path, monkeypatch):
        run = fit(layers.dense(1), keep=tmp_path)
        read = checkpoints.load

        def load(path, *args, **options):
            monkeypatch.setattr(checkpoints, "load", read)
            path.rename(path.with_name("000099-step-99.safetensors"))
            return read(path, *args, **options)

        monkeypatch.setattr(checkpoints, "load", load)
        params, _ = training.load_best(tmp_path, layers.dense(1), X)
        np.testing.assert_array_equal(params["bias"], run.params["bias"])

    def test_another_network(self, tmp_path):
        fit(layers.dense(1), keep=tmp_path)
        with pytest.raises(
            CheckpointError, match=r"'train_state/params/kernel' is float32 \(3, 1\) in the file, .*2\)"
        ):
            training.load_best(tmp_path, layers.dense(2), X)

    def test_parameters_alone_say_where_they_are(self, tmp_path):
        run = fit(layers.dense(1), keep=tmp_path)
        latest = Checkpoints(tmp_path).latest()
        with pytest.raises(CheckpointError, match="but it fits a part: give under='train_state/params'"):
            load(latest, run.params)

    def test_a_backbone_under_a_new_head(self, tmp_path):
        old = layers.chain(backbone(), layers.dense(1))
        run = fit(old, keep=tmp_path)
        new = layers.chain(backbone(), layers.dense(2))
        params, state = new.init(1, X)
        latest = Checkpoints(tmp_path).latest()
        params = (load(latest, params[0], under="train_state/params/0"), *params[1:])
        state = (load(latest, state[0], under="train_state/state/0"), *state[1:])
        jax.tree.map(np.testing.assert_array_equal, params[0], run.params[0])
        went_on = fit(new, np.ones((64, 2), np.float32), start=(params, state))
        assert went_on.history["loss"][-1] < went_on.history["loss"][0]


def test_the_weights_of_a_run_over_convolutions(tmp_path):
    run = runs.fit(epochs=1, keep=tmp_path)
    params, state = training.load_best(tmp_path, runs.network(), runs.sounds(1)[0])
    jax.tree.map(np.testing.assert_array_equal, (params, state), (run.params, run.state))

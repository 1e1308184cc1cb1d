"""Checkpoints: whole or absent, checked, loaded by name; what damaged, foreign and hostile files do."""

import errno
import itertools
import json
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from benchmarks.checkpoints import damage, kills
from jaxnet import layers, optimizers
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError
from jaxnet.training import Checkpoints, _atomic, _file, checkpoint, load, read_metadata, save

KILLS = int(os.environ.get("JAXNET_KILLS", "9"))
ROOT = Path(__file__).parents[2]
FUZZ_SECONDS = float(os.environ.get("JAXNET_FUZZ_SECONDS", "4"))


def raw(leaf):
    """Type, shape and bytes: what must come back."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), raw(jax.random.key_data(leaf))
    return isinstance(leaf, jax.Array), leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert raw(x) == raw(y)


def hidden(directory):
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


JAX_DTYPES = [
    "bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float8_e4m3fn", "float8_e5m2",
    "float16", "bfloat16", "float32", "complex64",
]  # fmt: skip
NUMPY_DTYPES = [*JAX_DTYPES, "int64", "uint64", "float64", "complex128"]


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@st.composite
def arrays(draw):
    kind = draw(st.sampled_from(["jax", "numpy", "transposed", "strided", "key"]))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    if kind == "key":
        impl = draw(st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]))
        data = generator.integers(2**32, size=(*shape, 2 if impl[0] == "t" else 4), dtype=np.uint32)
        return jax.random.wrap_key_data(data, impl=impl)
    dtype = dtype_of(draw(st.sampled_from(JAX_DTYPES if kind == "jax" else NUMPY_DTYPES)))
    if kind == "strided":
        shape = (*shape, 4)
    if dtype.name in ("bool", "int4", "uint4"):
        array = generator.integers(2, size=shape).astype(dtype)
    else:  # any bits: NaNs, infinities and subnormal numbers among them
        count = int(np.prod(shape)) * dtype.itemsize
        array = np.frombuffer(generator.bytes(count), np.uint8).view(dtype).reshape(shape)
    if kind == "jax":
        return jnp.asarray(array)
    if kind == "transposed":
        return array.T
    return array[..., ::-2] if kind == "strided" else array


KEYS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), max_size=5)
TREES = st.recursive(
    arrays() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS.filter(lambda key: key != "__metadata__"), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


class TestRoundTrip:
    @given(tree=TREES)
    def test_any_tree(self, tree, tmp_path_factory):
        path = save(tmp_path_factory.mktemp("any") / "run", tree)
        assert_same(load(path, tree), tree)

    @pytest.mark.parametrize("name", NUMPY_DTYPES)
    def test_every_dtype(self, name, tmp_path):
        dtype = dtype_of(name)
        tree = {"matrix": np.arange(6).reshape(2, 3).astype(dtype), "scalar": np.ones((), dtype)}
        tree |= {"empty": np.zeros((2, 0), dtype), "generic": dtype.type(1)}
        found = load(save(tmp_path / "run", tree), tree)
        for key, leaf in tree.items():
            assert raw(found[key]) == raw(np.asarray(leaf))

    def test_a_training_state(self, tmp_path):
        net = layers.chain(layers.conv(4, 3), layers.batch_norm(), layers.flatten(), layers.dense(2))
        params, state = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 1), jnp.float32))
        tree = {"params": params, "state": state, "optimizer": optimizers.adam(1e-3).init(params)}
        path = save(tmp_path / "run", tree)
        assert_same(load(path, jax.tree.map(jnp.zeros_like, tree)), tree)
        assert_same(load(path, jax.eval_shape(lambda: tree)), tree)
        assert "optimizer/mu/0/kernel" in damage.unsealed(path.read_bytes())[0]["leaves"]

    def test_64_bits(self, x64, tmp_path):
        tree = [jnp.arange(3.0) + 1e-12, jnp.array(2**40)]
        assert_same(load(save(tmp_path / "run", tree), tree), tree)
        with jax.enable_x64(False):
            with pytest.raises(ConfigError, match=r"like\['0'\] is float64, and JAX would make it float32; enable 64"):
                load(tmp_path / "run", [jax.ShapeDtypeStruct((3,), np.float64), tree[1]])
            on_host = [np.zeros(3), np.array(0)]
            assert_same(load(tmp_path / "run", on_host), jax.tree.map(np.asarray, tree))

    def test_non_contiguous_arrays(self, tmp_path):
        array = np.arange(24.0).reshape(2, 3, 4)
        tree = {
            "t": array.T,
            "f": np.asfortranarray(array),
            "s": array[:, ::-2],
            "b": np.broadcast_to(array[:1], (5, 3, 4)),
        }
        assert_same(load(save(tmp_path / "run", tree), tree), tree)

    def test_numpy_arrays_come_back_writable_and_their_own(self, tmp_path):
        found = load(save(tmp_path / "run", [np.ones(3)]), [np.zeros(3)])[0]
        found[:] = 2
        assert load(tmp_path / "run", [np.zeros(3)])[0].sum() == 3

    def test_others_can_read_the_file(self, tmp_path):
        from safetensors import safe_open
        from safetensors.numpy import load_file

        tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "b": np.arange(3), "c": np.array(1 + 2j)}
        tree |= {"empty": np.zeros((0, 3), np.float16), "key": jax.random.key(3), "é": np.float64(0.5)}
        path = save(tmp_path / "run", tree, metadata={"step": float("nan")})
        found = load_file(path)
        assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
            "a/kernel": ("bfloat16", (2, 3)), "b": ("int64", (3,)), "c": ("float64", (2,)),
            "empty": ("float16", (0, 3)), "key": ("uint32", (2,)), "é": ("float64", ()),
        }  # fmt: skip
        np.testing.assert_array_equal(found["b"], np.arange(3))
        np.testing.assert_array_equal(found["c"], [1, 2])
        np.testing.assert_array_equal(found["key"], [0, 3])
        with safe_open(path, "np") as file:
            description = json.loads(file.metadata()["description"])
        assert description["leaves"]["key"]["kind"] == "key<threefry2x32>"
        assert np.isnan(description["metadata"]["step"])

    def test_every_array_lies_at_a_multiple_of_its_size(self, tmp_path):
        tree = {name: np.ones(3, dtype_of(name)) for name in NUMPY_DTYPES}
        content = save(tmp_path / "run", tree).read_bytes()
        _, tensors, arrays = damage.unsealed(content)
        assert (len(content) - len(arrays)) % 8 == 0
        for name, leaf in tree.items():
            assert tensors[name]["data_offsets"][0] % leaf.dtype.itemsize == 0

    def test_its_mode_is_that_of_other_new_files_and_then_stays(self, tmp_path):
        (tmp_path / "plain").write_text("")
        path = save(tmp_path / "run", [np.ones(1)])
        assert os.stat(path).st_mode == os.stat(tmp_path / "plain").st_mode
        os.chmod(path, 0o640)
        assert os.stat(save(path, [np.ones(1)])).st_mode & 0o777 == 0o640

    def test_by_name_and_not_by_order(self, tmp_path):
        path = save(tmp_path / "run", [{"a": np.ones(2), "b": np.zeros(2)}])
        description, tensors, _ = damage.unsealed(path.read_bytes())
        description["leaves"] = dict(reversed(description["leaves"].items()))
        reseal(path, description, dict(reversed(tensors.items())))
        assert load(path, [{"b": np.ones(2), "a": np.ones(2)}])[0]["b"].sum() == 0

    def test_what_is_replaced_while_it_is_read(self, tmp_path):
        path = save(tmp_path / "run", [np.zeros(999)])
        with checkpoint.opened(path) as old:
            save(path, [np.ones(999)], metadata={"new": True})
            assert checkpoint.read(old, [np.zeros(999)])[0].sum() == 0
            assert old.description["metadata"] == {}

    def test_metadata(self, tmp_path):
        metadata = {"step": 3, "né": [1.5, None, True, {"x": "y"}], "loss": float("inf")}
        path = save(tmp_path / "deep" / "er" / "run", (), metadata=metadata)
        assert read_metadata(str(path)) == metadata
        assert read_metadata(save(path, ())) == {}
        assert load(path, ()) == ()

    def test_relative_paths_and_links(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert save("run", [np.ones(1)]) == Path("run")
        os.symlink("run", "link")
        save("link", [np.zeros(1)])
        assert os.path.islink("link")
        assert load("run", [np.ones(1)])[0] == 0

    def test_nothing_heavy_is_imported_before_it_is_needed(self):
        heavy = "{'safetensors', 'matplotlib', 'jaxnet.diagnostics'}"
        code = f"import sys, jaxnet.training; print({heavy} & set(sys.modules), jaxnet.diagnostics.__name__)"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == b"set() jaxnet.diagnostics\n"


class TestPlacement:
    @pytest.mark.devices(8)
    def test_shardings(self, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rows, columns = (NamedSharding(mesh, spec) for spec in (P("data"), P(None, "data")))
        array = np.arange(64, dtype=np.float32).reshape(8, 8)
        keys = jax.random.split(jax.random.key(1), 8)
        path = save(tmp_path / "run", {"x": jax.device_put(array, rows), "k": jax.device_put(keys, rows)})
        second = SingleDeviceSharding(jax.devices()[1])
        for like in (
            {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns), "k": jax.device_put(keys, rows)},
            {"x": jax.device_put(array, second), "k": jax.device_put(keys, second)},
        ):
            found = load(path, like)
            np.testing.assert_array_equal(found["x"], array)
            assert raw(found["k"]) == raw(keys)
            for name in like:
                assert found[name].sharding.is_equivalent_to(like[name].sharding, like[name].ndim)

    @pytest.mark.devices(4)
    def test_what_was_free_to_move_still_is(self, tmp_path):
        path = save(tmp_path / "run", [jnp.ones(8)])
        elsewhere = jax.device_put(jnp.ones(8), jax.devices()[3])
        for like in (jnp.ones(8), jax.ShapeDtypeStruct((8,), jnp.float32)):
            found = load(path, [like])[0]
            assert not found.committed
            assert (found + elsewhere).devices() == {jax.devices()[3]}
        assert load(path, [elsewhere])[0].committed

    @pytest.mark.devices(3)
    def test_a_deleted_like_still_says_where(self, tmp_path):
        like = [jax.device_put(jnp.ones(2), jax.devices()[2])]
        path = save(tmp_path / "run", like)
        like[0].delete()
        assert load(path, like)[0].devices() == {jax.devices()[2]}


class TestRefusedToSave:
    @pytest.mark.parametrize(
        ("leaf", "error", "message"),
        [
            (3, DTypeError, r"save: tree\['a/0'\] is no array but int; put it into metadata, or make it one"),
            ("text", DTypeError, r"tree\['a/0'\] is no array but str"),
            (np.array(["a"]), DTypeError, r"tree\['a/0'\] has dtype <U1; wanted numbers in this machine's byte order"),
            (np.array([None]), DTypeError, "has dtype object"),
            (np.ones(2, ">f4"), DTypeError, "has dtype >f4"),
            (np.ma.masked_array([1.0, 2.0], [True, False]), DTypeError, "a masked array, whose mask would be lost"),
            (
                jax.ShapeDtypeStruct((2,), jnp.float32),
                DTypeError,
                r"tree\['a/0'\] is a shape and a dtype, but no array",
            ),
        ],
        ids=lambda value: None,
    )
    def test_leaves(self, leaf, error, message, tmp_path):
        with pytest.raises(error, match=message):
            save(tmp_path / "run", {"a": [leaf]})
        assert not list(tmp_path.iterdir())

    def test_donated_arrays(self, tmp_path):
        array = jnp.ones(3)
        array.delete()
        with pytest.raises(DataError, match=r"tree\['x'\] was donated to a compiled function, or deleted"):
            save(tmp_path / "run", {"x": array})

    def test_traced_arrays(self, tmp_path):
        with pytest.raises(DTypeError, match=r"tree\['x'\] is a traced value; call this outside of jit"):
            jax.jit(lambda x: save(tmp_path / "run", {"x": x}))(jnp.ones(3))

    @pytest.mark.parametrize("name", ["__metadata__", "a\nb", "\ud800"])
    def test_names(self, name, tmp_path):
        with pytest.raises(ConfigError, match="no leaf can be named"):
            save(tmp_path / "run", {name: np.ones(1)})

    def test_one_name_for_two_leaves(self, tmp_path):
        with pytest.raises(ConfigError, match="two leaves of tree are named 'a/b'; rename a key that contains '/'"):
            save(tmp_path / "run", {"a/b": np.ones(1), "a": {"b": np.ones(1)}})

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ([1], "metadata must be a dict, got list"),
            ({"x": np.ones(1)}, "metadata cannot be kept: Object of type ndarray is not JSON serializable"),
            ({(1, 2): 3}, "metadata cannot be kept: keys must be str"),
        ],
    )
    def test_metadata(self, metadata, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            save(tmp_path / "run", (), metadata=metadata)

    def test_metadata_that_are_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_file, "_MAX_HEADER", 1000)
        with pytest.raises(CheckpointError, match=r"save: the header would take 1,\d{3} bytes, and 1,000 are allowed"):
            save(tmp_path / "run", (), metadata={"x": "y" * 1000})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["text", "long text", "empty", "safetensors", "directory", "old", "pipe"])
    def test_what_is_no_checkpoint_is_not_replaced(self, kind, tmp_path):
        place = tmp_path / "thesis"
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "safetensors":
            from safetensors.numpy import save_file

            save_file({"0": np.ones(1)}, place, {"format": "pt"})
        elif kind in ("directory", "old"):
            place.mkdir()
            (place / ("manifest.json" if kind == "old" else "draft.tex")).write_text("draft")
        else:
            place.write_text({"text": "draft", "long text": "draft " * 99, "empty": ""}[kind])
        before = place.read_bytes() if place.is_file() else os.listdir(tmp_path)
        with pytest.raises(CheckpointError, match=r"save: .*thesis exists and is no checkpoint, so it is not replaced"):
            save(place, [np.ones(1)])
        assert before == (place.read_bytes() if place.is_file() else os.listdir(tmp_path))
        assert os.listdir(tmp_path) == ["thesis"]

    def test_a_damaged_checkpoint_is_replaced(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(1)])
        path.write_bytes(path.read_bytes()[:-1])
        assert load(save(path, [np.zeros(1)]), [np.ones(1)])[0] == 0


class TestFit:
    TREE: ClassVar = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32), "key": jax.random.key(0)}

    def test_all_that_does_not_fit_is_listed(self, tmp_path):
        path = save(tmp_path / "run", self.TREE)
        like = {"kernel": np.ones((2, 4), np.float32), "scale": np.ones(3), "key": jax.random.key(0, impl="rbg")}
        with pytest.raises(CheckpointError) as caught:
            load(path, like)
        assert str(caught.value) == (
            f"load: {path} does not fit the tree that it is loaded into:\n"
            "  1 missing from the file: 'scale'\n"
            "  1 in the file alone: 'bias'\n"
            "  2 different: 'kernel' is float32 (2, 3) in the file, float32 (2, 4) in the tree; "
            "'key' is key<threefry2x32> of uint32 (2,) in the file, key<rbg> of uint32 (4,) in the tree"
        )

    def test_nothing_is_cast(self, tmp_path):
        path = save(tmp_path / "run", self.TREE)
        message = r"1 different: 'bias' is float32 \(3,\) in the file, bfloat16 \(3,\) in the tree"
        with pytest.raises(CheckpointError, match=message):
            load(path, self.TREE | {"bias": jnp.ones(3, jnp.bfloat16)})

    def test_a_key_is_not_its_numbers(self, tmp_path):
        path = save(tmp_path / "run", self.TREE)
        message = r"'key' is key<threefry2x32> of uint32 \(2,\) in the file, uint32 \(2,\) in the tree"
        with pytest.raises(CheckpointError, match=message):
            load(path, self.TREE | {"key": np.zeros(2, np.uint32)})

    def test_long_lists_are_cut(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(1)] * 30)
        with pytest.raises(CheckpointError, match=r"30 in the file alone: '0', .*'9', and 20 more$"):
            load(path, [])

    def test_no_array_to_load_into(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(1)])
        with pytest.raises(DTypeError, match=r"load: like\['0'\] is no array but float"):
            load(path, [1.0])


def reseal(path, description=None, tensors=None, arrays=None, **changes):
    """Changes a file as one who means harm: its checksum is right again."""
    old = damage.unsealed(path.read_bytes())
    parts = [
        given if given is not None else was for given, was in zip((description, tensors, arrays), old, strict=True)
    ]
    table = parts[1] if isinstance(parts[1], list) else parts[1].items()
    path.write_bytes(_file.header(parts[0] | changes, table) + parts[2])


def end_of_header(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


class TestDamage:
    def test_every_flipped_bit_is_found(self, tmp_path):
        assert damage.flips(200, tmp_path, seed=1) == (200, 200)

    def test_every_truncation_is_found(self, tmp_path):
        path = save(tmp_path / "run", damage.TREE)
        whole, header = path.read_bytes(), end_of_header(path)
        for end in {*range(150), *range(header - 20, header + 20), *range(0, len(whole), 17), len(whole) - 1}:
            path.write_bytes(whole[:end])
            with pytest.raises(CheckpointError, match=r"load: .*run is (truncated|damaged: its size)"):
                load(path, damage.TREE)
            with pytest.raises(CheckpointError, match=r"read_metadata: .*run is (truncated|damaged: its size)"):
                read_metadata(path)
        for more in (b"\0", b" ", whole):
            path.write_bytes(whole + more)
            with pytest.raises(CheckpointError, match="is damaged: its size is not what was saved"):
                load(path, damage.TREE)
        path.write_bytes(whole)
        assert damage.outcome(path) == "read"

    def test_the_array_is_named(self, tmp_path):
        path = save(tmp_path / "run", {"a": np.ones(9), "b": np.ones(9)})
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"load: .*run is damaged: 'b' does not have its checksum"):
            load(path, {"a": np.ones(9), "b": np.ones(9)})
        assert load(path, np.zeros(9), under="a").sum() == 9  # which is not read for it

    def test_a_fuzzed_reader(self, tmp_path):
        outcomes = damage.fuzz(FUZZ_SECONDS, tmp_path, seed=2)
        assert outcomes["wrong"] == 0
        assert outcomes["refused"] > 100
        assert outcomes["read"]

    def test_the_oracle_of_the_fuzzer_sees_wrong_arrays(self, tmp_path, monkeypatch):
        path = save(tmp_path / "run", damage.TREE | {"again": damage.TREE["again"] + 1})
        assert damage.outcome(path) == "wrong"

    def test_foreign_things(self, tmp_path):
        from safetensors.numpy import save_file

        np.savez(tmp_path / "a.npz", x=np.ones(3))
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.ones(3)]))
        save_file({"0": np.ones(3)}, tmp_path / "a.safetensors", {"format": "np"})
        for name, text in [
            ("a.npz", "truncated, or no checkpoint of jaxnet"),
            ("a.pkl", "truncated, or no checkpoint of jaxnet"),
            ("a.safetensors", "no checkpoint of jaxnet; wanted the file that jaxnet.training.save wrote"),
        ]:
            with pytest.raises(CheckpointError, match=f"load: .*{name} is {text}"):
                load(tmp_path / name, [np.ones(3)])
        (tmp_path / "folder").mkdir()
        with pytest.raises(CheckpointError, match=r"load: .*folder is a directory, no checkpoint; .* knows the latest"):
            load(tmp_path / "folder", [np.ones(3)])
        (tmp_path / "folder" / "manifest.json").write_text("{}")
        with pytest.raises(
            CheckpointError, match=r"folder is a directory of older versions of jaxnet; wanted the file"
        ):
            load(tmp_path / "folder", [np.ones(3)])
        with pytest.raises(CheckpointError, match=r"read_metadata: .*nothing does not exist; wanted the file that"):
            read_metadata(tmp_path / "nothing")

    def test_nothing_is_unpickled(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        path = save(tmp_path / "run", [np.ones(3)])
        whole, header = path.read_bytes(), end_of_header(path)
        harm = pickle.dumps(Payload())
        for content in (harm, whole[:header] + harm, whole[:8] + harm + whole[8 + len(harm) :]):
            path.write_bytes(content)
            with pytest.raises(CheckpointError):
                load(path, [np.ones(3)])
        path.write_bytes(whole)
        reseal(path, arrays=harm, size=len(harm))
        with pytest.raises(CheckpointError):
            load(path, [np.ones(3)])
        assert not (tmp_path / "ran").exists()

    def test_pipes_and_devices_do_not_block(self, tmp_path):
        for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
            make(tmp_path / "run")
            with pytest.raises(CheckpointError, match="is no regular file"):
                load(tmp_path / "run", [np.ones(3)])
            (tmp_path / "run").unlink()

    def test_a_later_format(self, tmp_path):
        path = save(tmp_path / "run", ())
        reseal(path, version=3)
        with pytest.raises(CheckpointError, match=r"version 3 .* this jaxnet knows 2: take a newer jaxnet"):
            load(path, ())

    @pytest.mark.parametrize("version", [1, None, "2", 2.5, -1])
    def test_no_format_of_ours(self, version, tmp_path):
        path = save(tmp_path / "run", ())
        reseal(path, version=version)
        with pytest.raises(CheckpointError, match="is no checkpoint of jaxnet: what describes it is incomplete"):
            load(path, ())

    ENTRY: ClassVar = {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ([("0", ENTRY), ("0", ENTRY)], "duplicate keys"),
            ([("0", ENTRY), ("__metadata__", {"description": "{}"})], "duplicate keys"),
            ({"0": ENTRY | {"data_offsets": [8, 32]}}, "another '0' than its description"),
            ({"0": ENTRY | {"data_offsets": [-8, 16]}}, "another '0' than its description"),
            ({"0": ENTRY | {"data_offsets": [0, 99999999999999]}}, "another '0' than its description"),
            ({"0": ENTRY | {"data_offsets": [0.0, 24.0]}}, "another '0' than its description"),
            ({"0": ENTRY | {"data_offsets": [24]}}, "another '0' than its description"),
            ({"0": ENTRY | {"dtype": "F32", "shape": [6]}}, "another '0' than its description"),
            ({"0": {}}, "another '0' than its description"),
            ({"0": []}, "another '0' than its description"),
            ({"../../x": ENTRY}, "it holds other arrays than its description says"),
            ({"0": ENTRY, "1": []}, "it holds other arrays than its description says"),
            ({}, "it holds other arrays than its description says"),
        ],
    )
    def test_hostile_tables_with_the_right_checksum(self, tensors, message, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        reseal(path, tensors=tensors)
        with pytest.raises(CheckpointError, match=message):
            load(path, [np.ones(3)])

    @pytest.mark.parametrize(
        ("description", "message"),
        [
            ("[" * 100_000, "damaged, or of another format"),
            ("[]", "it holds no JSON object"),
            ('{"version": 2, "version": 2}', "duplicate keys"),
            (None, "damaged, or of another format"),
            ('{"version": 2, "size": 24, "leaves": {}}', "what describes it is incomplete"),
            ('{"version": 2, "size": 24, "leaves": {"0": []}, "metadata": {}}', "what describes it is incomplete"),
            ('{"version": 2, "size": 23, "leaves": {"0": {}}, "metadata": {}}', "its size is not what was saved"),
        ],
    )
    def test_hostile_descriptions_with_the_right_checksum(self, description, message, tmp_path, monkeypatch):
        path = save(tmp_path / "run", [np.ones(3)])
        _, tensors, arrays = damage.unsealed(path.read_bytes())
        with monkeypatch.context() as patch:
            dumps = json.dumps
            patch.setattr(_file.json, "dumps", lambda value: dumps(description) if value == "{}" else dumps(value))
            path.write_bytes(_file.header({}, tensors.items()) + arrays)
        with pytest.raises(CheckpointError, match=message):
            load(path, [np.ones(3)])

    def test_a_huge_header_length(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
        with pytest.raises(CheckpointError, match="truncated, or no checkpoint of jaxnet"):
            load(path, [np.ones(3)])

    def test_sizes_that_no_memory_holds(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        shape = (2**50,)
        reseal(
            path,
            tensors={"0": {"dtype": "F64", "shape": [*shape], "data_offsets": [0, 8 * shape[0]]}},
            leaves={"0": {"kind": "array", "dtype": "float64", "shape": [*shape], "crc32": "00000000"}},
        )
        like = np.broadcast_to(np.zeros(()), shape)
        with pytest.raises(CheckpointError, match=r"run is damaged"):
            load(path, [like])

    def test_names_are_no_paths_and_are_quoted(self, tmp_path):
        (tmp_path / "x").write_text("secret")
        tree = {"../x": np.ones(1), "..": {"..": np.ones(2)}}
        path = save(tmp_path / "run", tree)
        assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "x"]
        assert_same(load(path, tree), tree)
        name = "\x1b[2J" + "x" * 500
        reseal(path, tensors={name: {}}, leaves={name: {"dtype": "\x1b[2J"}})
        with pytest.raises(CheckpointError) as caught:
            load(path, ())
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 500


class TestWholeOrAbsent:
    def test_kill(self, tmp_path):
        report = kills.kills(KILLS, tmp_path, mebibytes=1)
        assert sum(record["inside"] for record in report.values()) > 0
        for way, record in report.items():
            assert record["readable"] == record["kills"] == KILLS // 2 + (kills.WAYS.index(way) < KILLS % 2), way
            assert record["left"] == 0

    def test_every_failure_of_the_disk(self, tmp_path, monkeypatch):
        old, new = [np.zeros(3)], [np.ones(3)]
        path = tmp_path / "run"
        calls, fails_at = 0, 0

        def failing(real):
            def call(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls == fails_at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **keywords)

            return call

        for name in ("fsync", "replace", "open"):
            monkeypatch.setattr(os, name, failing(getattr(os, name)))
        monkeypatch.setattr(_atomic, "write_all", failing(_atomic.write_all))
        found, messages = [], []
        for number in itertools.count(1):
            fails_at = 0
            save(path, old)
            assert not hidden(tmp_path)
            calls, fails_at = 0, number
            try:
                save(path, new)
                if calls < number:
                    break
            except CheckpointError as error:
                messages.append(error.message)
                fails_at = 0
                assert not hidden(tmp_path)
            fails_at = 0
            found.append(float(load(path, old)[0][0]))
        assert all("No space left on device" in message for message in messages)
        assert len(messages) >= 7
        assert set(found) == {0.0, 1.0}

    def test_a_file_that_cannot_grow(self, tmp_path):
        path = save(tmp_path / "run", [np.zeros(3)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(CheckpointError, match=r"cannot write .*File too large"):
                save(path, [np.ones(100_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert load(path, [np.ones(3)])[0].sum() == 0
        assert not hidden(tmp_path)

    def test_a_directory_that_cannot_be_written(self, tmp_path, monkeypatch):
        path = save(tmp_path / "run", [np.zeros(3)])

        def refuse(*arguments, **keywords):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        create = os.open
        monkeypatch.setattr(os, "mkdir", refuse)
        monkeypatch.setattr(
            os, "open", lambda path, flags, *mode: (refuse if flags & os.O_CREAT else create)(path, flags)
        )
        for place in (path, tmp_path / "other", tmp_path / "a" / "b"):
            with pytest.raises(CheckpointError, match=r"cannot write .*Read-only file system"):
                save(place, [np.ones(3)])
        assert load(path, [np.ones(3)])[0].sum() == 0
        assert [item.name for item in tmp_path.iterdir()] == ["run"]

    def test_an_interrupt_leaves_nothing(self, tmp_path, monkeypatch):
        path = save(tmp_path / "run", [np.zeros(3)])

        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(path, [np.ones(3)])
        assert load(path, [np.ones(3)])[0].sum() == 0
        assert not hidden(tmp_path)

    def test_all_is_forced_to_disk_before_the_name_is_there(self, tmp_path, monkeypatch):
        done = []
        fsync, replace = os.fsync, os.replace

        def log_fsync(descriptor):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            done.append((name, os.path.getsize(name)) if os.path.isfile(name) else name)
            fsync(descriptor)

        def log_replace(a, b):
            done.append(f"{a} to {Path(b).name}")
            replace(a, b)

        monkeypatch.setattr(os, "fsync", log_fsync)
        monkeypatch.setattr(os, "replace", log_replace)
        path = save(tmp_path / "run", [np.zeros(3)])
        (new, size), moved, directory = done
        assert size == path.stat().st_size
        assert (moved, directory) == (f"{new} to run", str(tmp_path))

    def test_a_directory_that_is_made_is_forced_to_disk_too(self, tmp_path, monkeypatch):
        """Else the file is safe in a directory that is gone after the machine stops."""
        done, fsync = [], os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file))[1]
        )
        path = save(tmp_path / "a" / "b" / "run", [np.zeros(3)])
        *made, new, directory = done
        assert made == [str(tmp_path), str(tmp_path / "a")]
        assert Path(new).name.startswith(".run.")
        assert directory == str(path.parent)

    def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_are_not(self, tmp_path):
        dead = tmp_path / f".run.{'0' * 16}.jaxnet-new"
        dead.write_text("half")
        mine = tmp_path / ".run.notes"
        mine.mkdir()
        with _atomic.replacing(tmp_path / "slow") as file:
            living = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
            save(tmp_path / "run", [np.ones(3)])
            assert not dead.exists()
            assert mine.exists()
            assert living.exists()
        assert (tmp_path / "slow").is_file()
        assert not living.exists()

    def test_where_files_cannot_be_locked(self, tmp_path, monkeypatch):
        import fcntl

        def refuse(*arguments):
            raise OSError(errno.EBADF, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        left = tmp_path / f".run.{'0' * 16}.jaxnet-new"
        left.write_text("half")
        save(tmp_path / "run", [np.ones(3)])
        assert hidden(tmp_path) == [left.name]  # it may be in use

    def test_concurrent_savers_and_readers(self, tmp_path):
        failures = []
        counts = [0] * 4

        def work(i):
            try:
                while min(counts) < 100 and not failures:  # so that each is at work while the others are
                    path = save(tmp_path / f"run{i % 2}", [np.full(999, i)], metadata={"i": i})
                    with checkpoint.opened(path) as found:  # whoever has written it by now
                        array = checkpoint.read(found, [np.zeros(999, int)])[0]
                    assert (array == found.description["metadata"]["i"]).all()
                    counts[i] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert sorted(item.name for item in tmp_path.iterdir()) == ["run0", "run1"]
        for i in range(2):
            path = tmp_path / f"run{i}"
            assert (load(path, [np.zeros(999, int)])[0] == read_metadata(path)["i"]).all()


class TestCheckpoints:
    TREE: ClassVar = {"w": np.zeros(3)}

    def names(self, checkpoints):
        return [path.name for path in sorted(checkpoints.directory.iterdir())]

    def test_nothing_yet(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "runs" / "1")
        assert checkpoints.latest() is checkpoints.best() is checkpoints.restore(self.TREE) is None
        checkpoints.save(0, self.TREE)
        assert checkpoints.best() is None
        assert checkpoints.latest() == tmp_path / "runs" / "1" / "000001-step-0.safetensors"

    @given(
        metrics=st.lists(st.sampled_from([None, np.nan, np.inf, -np.inf, 0.5, 1, 1.5, 2]), max_size=8),
        keep=st.integers(1, 4),
        keep_best=st.booleans(),
    )
    def test_the_last_and_the_best_are_kept(self, metrics, keep, keep_best, tmp_path_factory):
        directory = tmp_path_factory.mktemp("runs")
        for step, metric in enumerate(metrics):  # a new one each time, as after a restart
            Checkpoints(directory, keep=keep, keep_best=keep_best).save(10 * step, self.TREE, metric=metric)
        finite = [m for m in metrics if m is not None and np.isfinite(m)]
        wanted = set(range(len(metrics))[-keep:])
        best = None
        if finite and keep_best:
            best = metrics.index(min(finite))
            wanted |= {best}
        checkpoints = Checkpoints(directory)
        assert self.names(checkpoints) == [f"{i + 1:06d}-step-{10 * i}.safetensors" for i in sorted(wanted)]
        if keep_best:
            assert checkpoints.best() == (
                None if best is None else directory / f"{best + 1:06d}-step-{10 * best}.safetensors"
            )

    def test_restore(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(5, {"w": np.ones(3)}, metadata={"epoch": 1}, metric=jnp.float32(0.5))
        tree, metadata = checkpoints.restore(self.TREE)
        assert_same(tree, {"w": np.ones(3)})
        assert metadata == {"epoch": 1, "step": 5, "metric": 0.5}

    def test_a_step_that_is_saved_again(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step, value in [(10, 0), (20, 1), (20, 2)]:
            checkpoints.save(step, {"w": np.full(3, float(value))}, metric=1)
        assert self.names(checkpoints) == ["000001-step-10.safetensors", "000003-step-20.safetensors"]
        assert checkpoints.restore(self.TREE)[0]["w"][0] == 2

    def test_a_run_that_went_back(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step in (10, 20, 30, 15):
            checkpoints.save(step, self.TREE)
        assert checkpoints.latest().name == "000004-step-15.safetensors"
        assert self.names(checkpoints) == ["000003-step-30.safetensors", "000004-step-15.safetensors"]

    def test_a_save_that_fails_removes_none(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.save(1, self.TREE)

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.save(2, self.TREE)
        assert self.names(checkpoints) == ["000001-step-1.safetensors"]

    @pytest.mark.parametrize("damage", ["header", "size", "bit"])
    def test_a_damaged_newest_is_an_error_that_says_what_to_do(self, damage, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, {"w": np.full(3, float(step))}, metric=step)
        newest = tmp_path / "000002-step-2.safetensors"
        content = bytearray(newest.read_bytes())
        content[99 if damage == "header" else -1] ^= 1
        newest.write_bytes(content[:-1] if damage == "size" else content)
        message = (
            r"damaged.* delete .*000002-step-2.safetensors to fall back to the one before, 000001-step-1.safetensors$"
        )
        with pytest.raises(CheckpointError, match=f"^Checkpoints.restore: .*{message}"):
            checkpoints.restore(self.TREE)
        if damage != "bit":
            with pytest.raises(CheckpointError, match=f"^Checkpoints.latest: .*{message}"):
                checkpoints.latest()
            with pytest.raises(
                CheckpointError, match=r"^Checkpoints.best: .*Delete .*000002-step-2.safetensors to choose among"
            ):
                checkpoints.best()
            for step in (3, 4, 5, 6):  # training goes on, and what may be repaired stays
                checkpoints.save(step, self.TREE)
            assert newest.exists()
        newest.unlink()
        assert checkpoints.best().name == "000001-step-1.safetensors"
        assert checkpoints.restore(self.TREE)[1]["step"] in (1, 6)

    def test_the_only_one_damaged(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, self.TREE).write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"delete .*000001-step-1.safetensors to fall back to a new start"):
            checkpoints.latest()

    def test_those_of_older_versions_are_refused(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, self.TREE, metric=1.0)
        old = tmp_path / "000002-step-2"
        old.mkdir()
        (old / "manifest.json").write_text("{}")
        for door, read in [("restore", lambda: checkpoints.restore(self.TREE)), ("latest", checkpoints.latest)]:
            with pytest.raises(
                CheckpointError, match=f"^Checkpoints.{door}: .*step-2 is a directory of older versions of jaxnet"
            ):
                read()
        for keep_best in (True, False):  # and never touched
            Checkpoints(tmp_path, keep=1, keep_best=keep_best).save(3, self.TREE)
        assert self.names(checkpoints) == ["000002-step-2", "000004-step-3.safetensors"]

    def test_another_architecture_is_not_called_damage(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, self.TREE)
        with pytest.raises(CheckpointError, match=r"Checkpoints.restore: .* does not fit") as caught:
            checkpoints.restore({"w": np.zeros(4)})
        assert "delete" not in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"step": -1}, "Checkpoints.save: step must be an integer >= 0, got -1"),
            ({"step": 1.0}, "step must be an integer >= 0, got 1.0"),
            ({"metric": "0.5"}, "metric must be a number, lower is better, got '0.5'"),
            ({"metric": np.ones(2)}, "metric must be a number"),
            ({"metadata": {"step": 1}}, r"metadata\['step'\] is set from the argument step"),
            ({"metadata": [1]}, "metadata must be a dict, got list"),
        ],
    )
    def test_bad_arguments(self, arguments, message, tmp_path):
        with pytest.raises(ConfigError, match=message):
            Checkpoints(tmp_path).save(**({"step": 1, "tree": self.TREE} | arguments))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("arguments", [{"keep": 0}, {"keep": 1.5}, {"keep_best": 1}])
    def test_bad_construction(self, arguments, tmp_path):
        with pytest.raises(ConfigError, match=f"Checkpoints: {next(iter(arguments))} must be"):
            Checkpoints(tmp_path, **arguments)


def parts(path):
    return sorted(path.parent.glob(f"{path.name}.part-*"))


class TestManyHosts:
    @pytest.fixture
    def spread(self, monkeypatch):
        """Has every JAX array stored in pieces, as if it were on several hosts."""
        monkeypatch.setattr(checkpoint, "_over_hosts", lambda array: isinstance(array, jax.Array) and array.size > 0)

    @pytest.mark.devices(8)
    def test_into_another_sharding(self, spread, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rows, columns, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P(None, "data"), P()))
        blocks = NamedSharding(jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2), P("a", "b"))
        array = np.arange(64, dtype=np.float32).reshape(8, 8)
        tree = {"x": jax.device_put(array, rows), "y": jnp.ones((), jnp.bfloat16), "../z": np.arange(3)}
        tree |= {"key": jax.random.key(3), "empty": jnp.zeros((0, 2)), "moved": jax.device_put(array, columns)}
        tree |= {
            "same": jax.device_put(array, whole),
            "keys": jax.device_put(jax.random.split(jax.random.key(1), 8), rows),
        }
        path = tmp_path / "run"
        for i in range(2):
            save(path, tree, metadata={"i": i})
        assert not hidden(tmp_path)
        assert read_metadata(path) == {"i": 1}
        assert sorted(tmp_path.iterdir()) == [path, *parts(path)]
        assert len(parts(path)) == 1
        pieces = damage.unsealed(parts(path)[0].read_bytes())[1]
        assert sum(name.startswith("x[") for name in pieces) == 8
        assert sum(name.startswith("same[") for name in pieces) == 1  # one copy
        for sharding in (columns, blocks, whole, SingleDeviceSharding(jax.devices()[3])):
            like = tree | {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}
            like |= {"moved": np.zeros_like(array), "same": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=blocks)}
            found = load(path, like)
            assert found["x"].sharding == sharding
            assert not found["y"].committed
            assert_same(found, tree | {"moved": array})
        with pytest.raises(CheckpointError, match=r"'x' is float32 \(8, 8\) in the file, float32 \(8, 9\) in the tree"):
            load(path, like | {"x": jnp.ones((8, 9))})

    @pytest.mark.devices(8)
    def test_only_the_pieces_that_are_wanted_are_read(self, spread, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        array = jax.device_put(np.arange(8000.0, dtype=np.float32), NamedSharding(mesh, P("data")))
        path = save(tmp_path / "run", {"x": array, "y": jnp.ones(3)})
        part = parts(path)[0]
        damaged = bytearray(part.read_bytes())
        damaged[end_of_header(part) + 5] ^= 1  # of the first piece of x
        part.write_bytes(damaged)
        assert load(path, jnp.zeros(3), under="y").sum() == 3
        with pytest.raises(CheckpointError, match=r"load: .*part-0-.* is damaged: 'x\[0:1000\]' does not have its"):
            load(path, array, under="x")

    def test_damage(self, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.arange(100.0), np.ones(3)])
        for file in (path, *parts(path)):
            whole = file.read_bytes()
            for position in range(0, len(whole), 7):
                damaged = bytearray(whole)
                damaged[position] ^= 1
                for content in (damaged, whole[:position]):
                    file.write_bytes(content)
                    with pytest.raises(CheckpointError, match=rf"load: .*{file.name} is "):
                        load(path, [jnp.zeros(100), np.zeros(3)])
            file.write_bytes(whole)
        assert load(path, [jnp.zeros(100), np.zeros(3)])[0][-1] == 99
        parts(path)[0].unlink()
        with pytest.raises(CheckpointError, match=r"load: cannot read .*run.part-0-.*: No such file"):
            load(path, [jnp.zeros(100), np.zeros(3)])

    def test_another_saves_part_is_refused(self, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.zeros(3)])
        old = parts(path)[0].read_bytes()
        save(path, [jnp.ones(3)])
        parts(path)[0].write_bytes(old)
        with pytest.raises(CheckpointError, match=r"part-0-.* is damaged: it is no part of run"):
            load(path, [jnp.zeros(3)])

    @pytest.mark.parametrize(
        "described",
        [None, {}, [], {"token": "../../../../../x", "count": 1}, {"token": "0" * 16, "count": 0},
         {"token": "0" * 16, "count": 2**70}, {"token": "0" * 16, "count": "1"}, {"token": 10**15, "count": 1.0}],
    )  # fmt: skip
    def test_hostile_indices(self, described, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.arange(3.0)])
        reseal(path, parts=described)
        with pytest.raises(CheckpointError, match="run is damaged: it does not name its parts"):
            load(path, [jnp.zeros(3)])

    @pytest.mark.parametrize(
        ("spans", "message"),
        [
            ([[0, 4]], "is no piece of '0'"), ([[-1, 3]], "is no piece"), ([[2, 1]], "is no piece"),
            (None, "is no piece"), ([["a", 3]], "is no piece"), ([[0, 3], [0, 1]], "is no piece"),
            ([], "is no piece"), ([3], "is no piece"),
            ([[0, 2]], "than its description"), ([[3, 3]], "do not hold all of '0'"),
        ],
    )  # fmt: skip
    def test_hostile_pieces(self, spans, message, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.arange(3.0)])
        part = parts(path)[0]
        leaves = damage.unsealed(part.read_bytes())[0]["leaves"]
        reseal(part, leaves={name: leaf | {"spans": spans} for name, leaf in leaves.items()})
        with pytest.raises(CheckpointError, match=message):
            load(path, [jnp.zeros(3)])

    def test_parts_that_no_index_names_are_removed(self, spread, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=1)
        orphan = tmp_path / f"000001-step-5.safetensors.part-1-{'0' * 16}"
        orphan.write_text("half")
        notes = tmp_path / "000001-step-5.safetensors.part-one"
        notes.write_text("")
        for step in range(2):
            checkpoints.save(step, [jnp.full(3, float(step))])
        latest = checkpoints.latest()
        assert sorted(tmp_path.iterdir()) == [notes, latest, *parts(latest)]
        assert checkpoints.restore([jnp.zeros(3)])[0][0].sum() == 3

    def test_parts_of_a_damaged_index_stay(self, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.ones(3)])
        whole, kept = path.read_bytes(), parts(path)
        path.write_bytes(whole[:-1])
        Checkpoints(tmp_path).save(1, [jnp.ones(3)])
        path.write_bytes(whole)
        assert parts(path) == kept
        assert load(path, [jnp.zeros(3)])[0].sum() == 3

    def test_what_was_in_pieces_is_replaced_by_one_file(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_over_hosts", lambda array: True)
            path = save(tmp_path / "run", [jnp.ones(3)])
        assert parts(path)
        save(path, [jnp.zeros(3)])
        assert list(tmp_path.iterdir()) == [path]

    def test_the_index_is_written_last_and_a_failure_harms_nothing(self, spread, tmp_path, monkeypatch):
        path, done = save(tmp_path / "run", [jnp.zeros(3)]), []
        fsync, replace = os.fsync, os.replace

        def full(a, b):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        for allowed in range(2):
            monkeypatch.setattr(
                os, "replace", lambda a, b, n=allowed: (replace if len(done) < n else full)(done.append(b) or a, b)
            )
            del done[:]
            with pytest.raises(CheckpointError, match="No space left on device"):
                save(path, [jnp.ones(3)])
            assert load(path, [jnp.ones(3)])[0].sum() == 0
            assert len(list(tmp_path.iterdir())) == 2
        order = []
        monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b))[1])
        monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file))[1])
        save(path, [jnp.ones(3)])
        assert order == ["fsync", parts(path)[0].name, "fsync", "fsync", "run", "fsync"]

    def test_two_processes(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "NPROC": "16"}
        environment = os.environ | flags | {"PYTHONPATH": str(ROOT)}
        workers = [
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("checkpoint_process.py"), str(rank), port, str(tmp_path)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
        try:
            for rank, worker in enumerate(workers):
                output = worker.communicate(timeout=300)[0].decode()
                assert f"process {rank} is done" in output, output
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()

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
import time
import warnings
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
from jaxnet.errors import CheckpointError, ConfigError, DataError, DependencyError, DTypeError
from jaxnet.training import Checkpoints, _atomic, _manifest, _orbax, checkpoint, load, read_metadata, save
from jaxnet.training.checkpoint import ARRAYS, MANIFEST

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
        assert "optimizer/mu/0/kernel" in json.loads((path / MANIFEST).read_text())["leaves"]

    def test_64_bits(self, x64, tmp_path):
        tree = [jnp.arange(3.0) + 1e-12, jnp.array(2**40)]
        assert_same(load(save(tmp_path / "run", tree), tree), tree)
        with jax.enable_x64(False):
            with pytest.raises(ConfigError, match=r"like\['0'\] is float64, and JAX would make it float32; enable 64"):
                load(tmp_path / "run", [jax.ShapeDtypeStruct((3,), np.float64), tree[1]])
            on_host = [np.zeros(3), np.array(0)]
            assert_same(load(tmp_path / "run", on_host), jax.tree.map(np.asarray, tree))

    def test_non_contiguous_arrays(self, tmp_path):
        # safetensors 0.8.0 writes these wrongly, if it is given them as they are
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
        from safetensors.numpy import load_file

        path = save(tmp_path / "run", {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}, "b": np.arange(3)})
        found = load_file(path / ARRAYS)
        assert found["a/kernel"].dtype == dtype_of("bfloat16")
        np.testing.assert_array_equal(found["b"], np.arange(3))
        assert os.stat(path / ARRAYS).st_mode == os.stat(path / MANIFEST).st_mode

    def test_by_name_and_not_by_order(self, tmp_path):
        path = save(tmp_path / "run", [{"a": np.ones(2), "b": np.zeros(2)}])
        entries = json.loads((path / MANIFEST).read_text())
        entries["leaves"] = dict(reversed(entries["leaves"].items()))
        del entries["crc32"]
        _manifest.write(path / MANIFEST, entries)
        assert load(path, [{"b": np.ones(2), "a": np.ones(2)}])[0]["b"].sum() == 0

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
        code = "import sys, jaxnet.training; print({'safetensors', 'orbax'} & set(sys.modules))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == b"set()\n"


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
        with pytest.raises(DTypeError, match=r"tree\['x'\] is a traced value; call save outside of jit"):
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
        monkeypatch.setattr(_manifest, "_MAX_BYTES", 1000)
        with pytest.raises(CheckpointError, match=r"the manifest would take 1,\d{3} bytes, and 1,000 are allowed"):
            save(tmp_path / "run", (), metadata={"x": "y" * 1000})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_what_is_no_checkpoint_is_not_replaced(self, kind, tmp_path):
        place = tmp_path / "thesis"
        if kind == "file":
            place.write_text("draft")
        else:
            place.mkdir()
            (place / "draft.tex").write_text("draft")
        with pytest.raises(CheckpointError, match="thesis exists and is no checkpoint, so it is not replaced"):
            save(place, [np.ones(1)])
        assert (place if kind == "file" else place / "draft.tex").read_text() == "draft"


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


class TestDamage:
    def test_every_flipped_bit_is_found(self, tmp_path):
        assert damage.flips(200, tmp_path, seed=1) == (200, 200)

    def test_truncated_files(self, tmp_path):
        path = save(tmp_path / "run", damage.TREE)
        whole = {name: (path / name).read_bytes() for name in (MANIFEST, ARRAYS)}
        header = 8 + int.from_bytes(whole[ARRAYS][:8], "little")
        ends = {
            MANIFEST: [0, 1, 100, len(whole[MANIFEST]) - 24, len(whole[MANIFEST]) - 2, len(whole[MANIFEST]) - 1],
            ARRAYS: [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole[ARRAYS]) - 1],
        }
        for name, places in ends.items():
            for end in places:
                (path / name).write_bytes(whole[name][:end])
                with pytest.raises(CheckpointError, match=name):
                    load(path, damage.TREE)
            (path / name).write_bytes(whole[name] + b"\0")
            with pytest.raises(CheckpointError, match=f"{name} is damaged"):
                load(path, damage.TREE)
            (path / name).write_bytes(whole[name])
        assert damage.outcome(path) == "read"

    def test_the_array_is_named(self, tmp_path):
        path = save(tmp_path / "run", {"a": np.ones(9), "b": np.ones(9)})
        damaged = bytearray((path / ARRAYS).read_bytes())
        damaged[-1] ^= 1
        (path / ARRAYS).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"load: .*arrays.safetensors is damaged: 'b' does not have"):
            load(path, {"a": np.ones(9), "b": np.ones(9)})

    def test_a_fuzzed_reader(self, tmp_path):
        outcomes = damage.fuzz(FUZZ_SECONDS, tmp_path, seed=2)
        assert outcomes["wrong"] == 0
        assert outcomes["refused"] > 100
        assert outcomes["read"]

    def test_the_oracle_of_the_fuzzer_sees_wrong_arrays(self, tmp_path, monkeypatch):
        path = save(tmp_path / "run", damage.TREE | {"again": damage.TREE["again"] + 1})
        assert damage.outcome(path) == "wrong"

    def test_foreign_things(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.ones(3))
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.ones(3)]))
        (tmp_path / "folder").mkdir()
        for name in ("a.npz", "a.pkl"):
            with pytest.raises(CheckpointError, match=f"load: .*{name} is a file; wanted the directory that"):
                load(tmp_path / name, [np.ones(3)])
        with pytest.raises(CheckpointError, match=r"folder is no checkpoint of jaxnet: it holds no manifest.json"):
            load(tmp_path / "folder", [np.ones(3)])
        with pytest.raises(CheckpointError, match=r"read_metadata: .*nothing does not exist"):
            read_metadata(tmp_path / "nothing")

    def test_nothing_is_unpickled(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        path = save(tmp_path / "run", [np.ones(3)])
        for name in (MANIFEST, ARRAYS):
            whole = (path / name).read_bytes()
            (path / name).write_bytes(pickle.dumps(Payload()))
            with pytest.raises(CheckpointError):
                load(path, [np.ones(3)])
            (path / name).write_bytes(whole)
        assert not (tmp_path / "ran").exists()

    def test_pipes_and_devices_do_not_block(self, tmp_path):
        for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir):
            for name in (MANIFEST, ARRAYS):
                path = save(tmp_path / "run", [np.ones(3)])
                (path / name).unlink()
                make(path / name)
                with pytest.raises(CheckpointError, match=f"{name}"):
                    load(path, [np.ones(3)])
                (path / name).rmdir() if make is os.mkdir else (path / name).unlink()

    def test_a_later_format(self, tmp_path):
        path = save(tmp_path / "run", ())
        self.reseal(path, version=2)
        with pytest.raises(CheckpointError, match=r"version 2 .* this jaxnet knows 1: take a newer jaxnet"):
            load(path, ())

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ('{"0": {"dtype":"F64","shape":[3],"data_offsets":[0,24]}, "0": {"dtype":"F64","shape":[3],'
             '"data_offsets":[0,24]}}', "duplicate keys"),
            ('{"0": {"dtype":"F64","shape":[3],"data_offsets":[8,32]}}', "damaged"),
            ('{"0": {"dtype":"F64","shape":[3],"data_offsets":[0,99999999999999]}}', "damaged"),
            ('{"0": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}', "it holds other arrays than manifest"),
            ('{"../../x": {"dtype":"F64","shape":[3],"data_offsets":[0,24]}}', "it holds other arrays than"),
            ('{"0": {"dtype":"F64","shape":[3],"data_offsets":[0,24]}, "1": []}', "it holds other arrays than"),
            ("[" * 100_000, "damaged, or of another format"),
            ("[]", "it holds no JSON object"),
        ],
        ids=["duplicate", "hole", "beyond", "dtype", "name", "no entry", "deep", "list"],
    )  # fmt: skip
    def test_hostile_headers_with_the_right_checksums(self, header, message, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        start = len(header).to_bytes(8, "little") + header.encode()
        (path / ARRAYS).write_bytes(start + np.ones(3).tobytes())
        self.reseal(path, file={"size": len(start) + 24, "header_crc32": f"{_manifest.zlib.crc32(start):08x}"})
        with pytest.raises(CheckpointError, match=message):
            load(path, [np.ones(3)])

    def test_a_huge_header_length(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        (path / ARRAYS).write_bytes(struct.pack("<Q", 2**63) + b"{}")
        with pytest.raises(CheckpointError, match="truncated, or no file of safetensors"):
            load(path, [np.ones(3)])

    def test_sizes_that_no_memory_holds(self, tmp_path):
        path = save(tmp_path / "run", [np.ones(3)])
        shape = (2**50,)
        header = f'{{"0": {{"dtype":"F64","shape":[{shape[0]}],"data_offsets":[0,{8 * shape[0]}]}}}}'
        start = len(header).to_bytes(8, "little") + header.encode()
        (path / ARRAYS).write_bytes(start + bytes(24))
        self.reseal(
            path,
            file={"size": len(start) + 24, "header_crc32": f"{_manifest.zlib.crc32(start):08x}"},
            leaves={"0": {"kind": "array", "dtype": "float64", "shape": list(shape), "crc32": "00000000"}},
        )
        like = np.broadcast_to(np.zeros(()), shape)
        with pytest.raises(CheckpointError, match=r"arrays.safetensors is damaged"):
            load(path, [like])

    def test_names_are_no_paths_and_are_quoted(self, tmp_path):
        (tmp_path / "x").write_text("secret")
        tree = {"../x": np.ones(1), "..": {"..": np.ones(2)}}
        path = save(tmp_path / "run", tree)
        assert sorted(item.name for item in path.iterdir()) == [ARRAYS, MANIFEST]
        assert_same(load(path, tree), tree)
        self.reseal(path, leaves={"\x1b[2J" + "x" * 500: {"dtype": "\x1b[2J"}})
        with pytest.raises(CheckpointError) as caught:
            load(path, ())
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @staticmethod
    def reseal(path, **changes):
        """Changes a manifest as one who means harm: its checksum is right again."""
        manifest = json.loads((path / MANIFEST).read_text()) | changes
        del manifest["crc32"]
        _manifest.write(path / MANIFEST, manifest)


class TestWholeOrAbsent:
    def test_kill(self, tmp_path):
        report = kills.kills(KILLS, tmp_path, mebibytes=1)
        assert sum(record["inside"] for record in report.values()) > 0
        for way, record in report.items():
            assert record["readable"] == record["kills"] == KILLS // 3 + (kills.WAYS.index(way) < KILLS % 3), way
            assert record["left"] == 0

    @pytest.mark.parametrize("exchange", [True, False])
    def test_every_failure_of_the_disk(self, exchange, tmp_path, monkeypatch):
        if not exchange:
            monkeypatch.setattr(_atomic, "_exchange", lambda a, b: False)
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

        for name in ("fsync", "mkdir", "rename", "open"):
            monkeypatch.setattr(os, name, failing(getattr(os, name)))
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
        assert len(messages) >= 8
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

        monkeypatch.setattr(os, "mkdir", refuse)
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
        fsync, rename = os.fsync, os.rename

        def log_fsync(descriptor):
            done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def log_rename(a, b):
            done.append(f"rename to {Path(b).name}")
            rename(a, b)

        monkeypatch.setattr(os, "fsync", log_fsync)
        monkeypatch.setattr(os, "rename", log_rename)
        save(tmp_path / "run", [np.zeros(3)])
        new = done[2]
        assert set(done[:2]) == {f"{new}/{ARRAYS}", f"{new}/{MANIFEST}"}
        assert done[3:] == ["rename to run", str(tmp_path)]

    def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_are_not(self, tmp_path):
        dead = tmp_path / f".run.{'0' * 16}.jaxnet-new"
        dead.mkdir()
        (dead / ARRAYS).write_text("half")
        mine = tmp_path / ".run.notes"
        mine.mkdir()
        with _atomic.replacing(tmp_path / "slow") as living:
            save(tmp_path / "run", [np.ones(3)])
            assert not dead.exists()
            assert mine.exists()
            assert living.exists()
        assert (tmp_path / "slow").is_dir()

    def test_a_stop_between_two_renames(self, tmp_path, monkeypatch):
        path = save(tmp_path / "run", [np.ones(3)], metadata={"old": True})
        aside = tmp_path / f".run.{'0' * 16}.jaxnet-old"
        os.rename(path, aside)
        assert read_metadata(path) == {"old": True}  # readers find it
        save(tmp_path / "other", ())
        assert not aside.exists()  # and the next to save puts it back
        assert load(path, [np.zeros(3)])[0].sum() == 3

    def test_where_directories_cannot_be_locked(self, tmp_path, monkeypatch):
        import fcntl

        def refuse(*arguments):
            raise OSError(errno.EBADF, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        left = tmp_path / f".run.{'0' * 16}.jaxnet-new"
        left.mkdir()
        save(tmp_path / "run", [np.ones(3)])
        assert hidden(tmp_path) == [left.name]  # it may be in use

    @pytest.mark.parametrize("exchange", [True, False])
    def test_concurrent_savers(self, exchange, tmp_path, monkeypatch):
        if not exchange:
            monkeypatch.setattr(_atomic, "_exchange", lambda a, b: False)
        end = time.monotonic() + 1
        failures = []
        counts = [0] * 4

        def work(i):
            try:
                while time.monotonic() < end:
                    save(tmp_path / f"run{i % 2}", [np.full(999, i)], metadata={"i": i})
                    counts[i] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert min(counts) > 2
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
        assert checkpoints.latest() == tmp_path / "runs" / "1" / "000001-step-0"

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
        assert self.names(checkpoints) == [f"{i + 1:06d}-step-{10 * i}" for i in sorted(wanted)]
        if keep_best:
            assert checkpoints.best() == (None if best is None else directory / f"{best + 1:06d}-step-{10 * best}")

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
        assert self.names(checkpoints) == ["000001-step-10", "000003-step-20"]
        assert checkpoints.restore(self.TREE)[0]["w"][0] == 2

    def test_a_run_that_went_back(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step in (10, 20, 30, 15):
            checkpoints.save(step, self.TREE)
        assert checkpoints.latest().name == "000004-step-15"
        assert self.names(checkpoints) == ["000003-step-30", "000004-step-15"]

    def test_a_save_that_fails_removes_none(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.save(1, self.TREE)

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.save(2, self.TREE)
        assert self.names(checkpoints) == ["000001-step-1"]

    @pytest.mark.parametrize("damage", ["manifest", "size", "bit"])
    def test_a_damaged_newest_is_an_error_that_says_what_to_do(self, damage, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, {"w": np.full(3, float(step))}, metric=step)
        newest = tmp_path / "000002-step-2"
        file = newest / (MANIFEST if damage == "manifest" else ARRAYS)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content[:-1] if damage == "size" else content)
        message = r"damaged.* delete .*000002-step-2 to fall back to the one before, 000001-step-1$"
        with pytest.raises(CheckpointError, match=f"^Checkpoints.restore: .*{message}"):
            checkpoints.restore(self.TREE)
        if damage != "bit":
            with pytest.raises(CheckpointError, match=f"^Checkpoints.latest: .*{message}"):
                checkpoints.latest()
            with pytest.raises(CheckpointError, match=r"^Checkpoints.best: .*Delete .*000002-step-2 to choose among"):
                checkpoints.best()
            for step in (3, 4, 5, 6):  # training goes on, and what may be repaired stays
                checkpoints.save(step, self.TREE)
            assert newest.exists()
        for path in newest.iterdir():
            path.unlink()
        newest.rmdir()
        assert checkpoints.best().name == "000001-step-1"
        assert checkpoints.restore(self.TREE)[1]["step"] in (1, 6)

    def test_the_only_one_damaged(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        (checkpoints.save(1, self.TREE) / MANIFEST).unlink()
        with pytest.raises(CheckpointError, match=r"delete .*000001-step-1 to fall back to a new start"):
            checkpoints.latest()

    def test_another_architecture_is_not_called_damage(self, tmp_path):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, self.TREE)
        with pytest.raises(CheckpointError, match=r"Checkpoints.restore: .* does not fit") as caught:
            checkpoints.restore({"w": np.zeros(4)})
        assert "delete" not in str(caught.value)

    def test_a_removal_that_is_killed_leaves_no_half(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.save(1, self.TREE)
        with monkeypatch.context() as patch:
            patch.setattr(_atomic.shutil, "rmtree", lambda path, **_: None)  # killed before
            checkpoints.save(2, self.TREE)
        assert len(hidden(tmp_path)) == 1
        assert checkpoints.latest().name == "000002-step-2"
        checkpoints.save(3, self.TREE)
        assert self.names(checkpoints) == ["000003-step-3"]

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


class TestManyHosts:
    @pytest.fixture
    def spread(self, monkeypatch):
        """Has Orbax store every JAX array, as if it were on several hosts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Orbax imports
            pytest.importorskip("orbax.checkpoint")
        monkeypatch.setattr(checkpoint, "_over_hosts", lambda array: isinstance(array, jax.Array) and array.size > 0)

    @pytest.mark.devices(8)
    def test_into_another_sharding(self, spread, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rows, columns = (NamedSharding(mesh, spec) for spec in (P("data"), P(None, "data")))
        array = np.arange(64, dtype=np.float32).reshape(8, 8)
        tree = {"x": jax.device_put(array, rows), "y": jnp.ones((), jnp.bfloat16), "../z": np.arange(3)}
        tree |= {"key": jax.random.key(3), "empty": jnp.zeros((0, 2)), "moved": jax.device_put(array, columns)}
        path = tmp_path / "run"
        for i in range(2):
            save(path, tree, metadata={"i": i})
        assert not hidden(tmp_path)
        assert read_metadata(path) == {"i": 1}
        assert sorted(item.name for item in path.iterdir()) == [ARRAYS, MANIFEST, "orbax"]
        like = tree | {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns), "moved": np.zeros_like(array)}
        found = load(path, like)
        assert found["x"].sharding == columns
        assert not found["y"].committed
        assert_same(found, tree | {"moved": array})
        with pytest.raises(CheckpointError, match=r"'x' is float32 \(8, 8\) in the file, float32 \(8, 9\) in the tree"):
            load(path, like | {"x": jnp.ones((8, 9))})

    def test_damage(self, spread, tmp_path, monkeypatch):
        path = save(tmp_path / "run", [jnp.arange(1000.0)])
        files = [file for file in (path / "orbax").rglob("*") if file.is_file()]
        assert len(files) > 5
        for file in files:
            whole = file.read_bytes()
            damaged = bytearray(whole)
            damaged[len(damaged) // 2] ^= 1
            for content in (damaged, whole[:-1], b""):
                file.write_bytes(content)
                with pytest.raises(CheckpointError, match="orbax is damaged: its files are not those that were saved"):
                    load(path, [jnp.zeros(1000)])
            file.write_bytes(whole)
        (path / "orbax" / "more").write_text("")
        with pytest.raises(CheckpointError, match="orbax is damaged: its files are not those that were saved"):
            load(path, [jnp.zeros(1000)])
        (path / "orbax" / "more").unlink()
        assert load(path, [jnp.zeros(1000)])[0][-1] == 999
        monkeypatch.setattr(_orbax, "check", lambda directory, wanted: None)
        for file in files:
            file.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"load: Orbax cannot read .*orbax"):
            load(path, [jnp.zeros(1000)])

    def test_items_are_numbers(self, spread, tmp_path):
        path = save(tmp_path / "run", [jnp.arange(3.0)])
        leaves = json.loads((path / MANIFEST).read_text())["leaves"]
        leaves["0"]["orbax"] = "../../x"
        TestDamage.reseal(path, leaves=leaves)
        with pytest.raises(CheckpointError, match="it does not number the arrays in orbax"):
            load(path, [jnp.zeros(3)])

    def test_without_orbax(self, monkeypatch, tmp_path):
        monkeypatch.setattr(checkpoint, "_over_hosts", lambda array: True)
        monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
        with pytest.raises(DependencyError, match=r"needs orbax, which cannot be .*; pip install orbax-checkpoint"):
            save(tmp_path / "run", [jnp.ones(1)])
        assert not list(tmp_path.iterdir())

    def test_two_processes(self, tmp_path):
        pytest.importorskip("orbax.checkpoint")
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
                output = worker.communicate(timeout=90)[0].decode()
                assert f"process {rank} is done" in output, output
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()

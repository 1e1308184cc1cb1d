"""One of two processes that save and load arrays spread over both: ``checkpoint_process.py RANK PORT DIRECTORY``."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnet.errors import CheckpointError
from jaxnet.training import Checkpoints, _atomic, _file, load, read_metadata, save


def main(rank: int, port: str, directory: Path) -> None:
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=f"127.0.0.1:{port}",
        num_processes=2,
        process_id=rank,
        coordinator_bind_address=f"127.0.0.1:{port}",
        initialization_timeout=300,
        heartbeat_timeout_seconds=300,
    )
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, columns, everywhere = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), (None, "data"), ()))
    array = np.arange(64, dtype=np.float32).reshape(8, 8)

    def spread(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    key = jax.jit(lambda: jax.random.key(3), out_shardings=everywhere)()
    tree = {
        "x": spread(array, rows),
        "empty": spread(array[:0], everywhere),
        "key": key,
        "own": jnp.full(3, float(rank)),
        "host": np.arange(4),
    }
    for i in range(2):
        path = save(directory / "run", tree, metadata={"i": i})
    assert read_metadata(path) == {"i": 1}

    like = tree | {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns)}
    found = load(path, like)
    assert found["x"].sharding == columns
    for shard in found["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, array[shard.index])
    numbers, saved = (jax.random.key_data(k).addressable_data(0) for k in (found["key"], key))
    np.testing.assert_array_equal(numbers, saved)
    np.testing.assert_array_equal(found["own"], np.zeros(3))  # the first process's
    np.testing.assert_array_equal(found["host"], np.arange(4))

    checkpoints = Checkpoints(directory / "many", keep=1)
    for step in range(3):
        checkpoints.save(step, tree, metric=-step)
    restored = checkpoints.restore(like)
    assert restored is not None
    assert restored[1]["step"] == 2

    part = load(path, like["x"], under="x")
    np.testing.assert_array_equal(part.addressable_data(0), found["x"].addressable_data(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    write = _file.write

    def full_index(path, *arguments):
        (full if path.name == "run" else write)(path, *arguments)

    if rank == 0:
        _file.write = full_index  # after all have written their parts
    with pytest.raises(CheckpointError, match="No space left" if rank == 0 else "another process could not go on"):
        save(directory / "run", tree)
    _file.write = write
    if rank == 1:
        _atomic._make = full
    with pytest.raises(CheckpointError, match="No space left" if rank == 1 else "another process could not go on"):
        save(directory / "run", tree)
    multihost_utils.sync_global_devices("all have failed")
    assert sorted(path.name.split("-")[0] for path in directory.glob("run*")) == ["run", "run.part", "run.part"]
    assert load(path, like)["x"].sharding == columns

    if rank == 1:
        (part,) = directory.glob("run.part-1-*")
        part.write_bytes(part.read_bytes()[:-1] + b"?")
    multihost_utils.sync_global_devices("it is damaged")
    with pytest.raises(CheckpointError, match=r"is damaged: 'x.*checksum|another process could not go on"):
        load(path, like["x"], under="x")
    jax.distributed.shutdown()
    print(f"process {rank} is done")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

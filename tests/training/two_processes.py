"""What `test_distributed.py` runs in each of two processes: python -m tests.training.two_processes PORT PROCESS FOLDER.

Each writes FOLDER/results-PROCESS.json; then process 1 kills itself in the middle of a run.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples import distributed
from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import JaxnetError
from tests.training import calls, runs


def digest(train_state):
    """A hash of this process's pieces of all arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(train_state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        for piece in leaf.addressable_shards:
            found.update(np.asarray(piece.data).tobytes())
    return found.hexdigest()


def measured(fit):
    return {"history": fit.history.records, "digest": digest(fit.train_state)}


def own(array):
    """This process's half of a batch."""
    half = len(array) // 2
    return array[jax.process_index() * half :][:half]


def small_fit(data=None, features=4, **options):
    """One dense layer, for runs of which only the end matters."""
    options = {"mesh": jax.make_mesh((4,), ("data",)), "epochs": 2, "progress": False, **options}
    if data is None:
        data, options = (np.eye(16, 4), np.eye(16, features)), {"batch_size": 8, **options}
    if isinstance(data, (list, tuple)):
        data = jax.tree.map(np.float32, data)
    return calls.fit(layers.dense(features), losses.mse, optimizers.adam(0.1), data, **options)


def refused(**calls):
    """The errors that calls of `small_fit` end with."""
    messages = {}
    for name, options in calls.items():
        try:
            small_fit(**options)
        except JaxnetError as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def main(port, process, folder):
    first = process == 0
    distributed.join(f"127.0.0.1:{port}", 2, process)
    mesh = jax.make_mesh((4,), ("data",))
    results = {}

    results["arrays"] = measured(runs.fit(mesh=mesh))
    x, labels = runs.sounds(19, seed=1)
    mine = slice(0, 16) if first else slice(16, 19)  # two batches and one
    validation = [(x[mine][i : i + 8], labels[mine][i : i + 8]) for i in range(0, len(x[mine]), 8)]
    parts = [(own(x), own(labels)) for x, labels in runs.batches()]
    results["iterable"] = measured(
        runs.fit(parts, runs.averaging(), validation=validation, steps_per_epoch=4, mesh=mesh)
    )

    # Interrupted by a signal to one of the processes.
    def stop(record, train_state):
        if not first:
            signal.raise_signal(signal.SIGTERM)

    pieces = {"features": 256, "shard_parameters": True, "keep": folder / "pieces"}
    results["unbroken"] = measured(small_fit(**{**pieces, "keep": None}))
    try:
        small_fit(**pieces, callbacks=[stop])
    except SystemExit as left:
        results["left"] = left.code
    resumed = small_fit(**pieces)
    results["resumed"] = measured(resumed)
    # All predictions of whole arrays; of batches each process's own, of any number.
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    net, mine = layers.dense(256), iter([x[:4], x[4:]] if first else [x])
    trained = net, resumed.params, resumed.state
    whole = training.predict(*trained, x, batch_size=4, mesh=mesh)
    parts = list(training.predict(*trained, mine, mesh=mesh))
    results["predicted"] = [*whole.shape, len(parts), bool(np.allclose(np.concatenate(parts), whole, rtol=1e-5))]
    try:
        training.reestimate(net, resumed.train_state.params, resumed.state, (x, x), batch_size=4)
    except JaxnetError as error:
        results["reestimated"] = str(error)
    results["kernel"] = resumed.train_state.opt_state.mu["kernel"].addressable_shards[0].data.shape

    # A signal to one of the processes while it reads an iterable.
    def until(step):
        for i in range(40):
            if i == step and not first:
                signal.raise_signal(signal.SIGTERM)  # in the thread that fetches: Python's handler runs in the main one
            yield np.eye(4, 4, dtype=np.float32), np.eye(4, 4, dtype=np.float32)

    try:
        small_fit(until(15), steps_per_epoch=40, epochs=1, keep=folder / "iterable")
    except SystemExit as left:
        results["left the iterable"] = left.code
    resumed = small_fit(until(99), steps_per_epoch=40, epochs=1, keep=folder / "iterable")
    results["step of the iterable"] = int(resumed.train_state.step)

    # What only one process wants or has.
    stopped = small_fit(callbacks=[lambda record, train_state: record["epoch"] == 3 and not first], epochs=9)
    results["epochs"] = len(stopped.history)
    ones = np.ones((4 if first else 2, 4))
    small_fit(keep=folder / "disk")  # which the first process writes
    results["refused"] = refused(
        key={"key": process},
        data={"data": (np.full((16, 4), process),) * 2, "batch_size": 8},
        epochs={"epochs": 3 + process},
        mesh={"mesh": None},
        local={"mesh": jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))},
        steps={"data": [(ones, ones)]},
        shape={"data": [(ones, ones)], "steps_per_epoch": 1},
        divide={"data": [(np.ones((3, 4)), np.ones((3, 4)))], "steps_per_epoch": 1},
        nan={"data": [(np.full((2, 4), [1, 1, 1, np.nan if first else 1]),) * 2], "steps_per_epoch": 4,
             "max_skipped": 3},
        overflow={"data": (np.full((16, 4), 1e30),) * 2, "batch_size": 8, "max_skipped": 2},
        validation={"validation": [(ones[:2], ones[:2]), (np.full((2, 4), 1.0 if first else np.nan), ones[:2])]},
        disk={"keep": folder / ("disk" if first else "another")},
    )  # fmt: skip
    (folder / f"results-{process}.json").write_text(json.dumps(results))

    def die(record, train_state):
        if not first:
            os.kill(os.getpid(), signal.SIGKILL)

    small_fit(callbacks=[die], epochs=1000)


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""Two processes train as one, all end when one ends, and stopped runs go on with the same bits."""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.checkpoints import damage
from examples import distributed
from jaxnet.training import Checkpoints, checkpoint
from tests.training import runs, two_processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all that these runs do is to compile
    "PYTHONPATH": str(ROOT),
}
ENVIRONMENT.pop("NPROC", None)  # the wider thread pool of the other tests, which users do not have


def start(*command, devices, **environment):
    """A Python process in a session of its own, so that its children can be killed with it."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", ENVIRONMENT["XLA_FLAGS"])  # and those for quick compiling
    environment |= {**ENVIRONMENT, "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kill(process):
    """Ends a process and its children, whatever they do."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def history(result):
    return {name: [record[name] for record in result["history"]] for name in ("loss", "grad_norm", "validation_loss")}


REFUSED = {
    "key": "ConfigError: fit: the state to begin with of process 1 is not that of process 0; give all .* the same key",
    "data": "ConfigError: fit: the data of process 1 is not that of process 0; .* only of an iterable does each have",
    "epochs": r"ConfigError: fit: the call of process 1 is not that of process 0; all must make the same, here: ",
    "mesh": "ConfigError: fit: 2 processes must train together, and there is no mesh; give mesh=jax.make_mesh",
    "local": "ConfigError: fit: 2 processes must train together, and the mesh has devices of 1 of them",
    "steps": "ConfigError: fit: several processes must train on equally many batches each epoch; give training.stream",
    "shape": "ConfigError: fit: the shape of the first batch of process 1 is not that of process 0",
    "divide": "DataError: fit: epoch 1, batch 0: a batch of 3 cannot be shared among 2 devices; a batch_size of 2 or 4",
    "nan": "NonFiniteError: .* first value that was not finite is .* The batch's x holds NaN or Inf",
    "overflow": r"NonFiniteError: fit: 2 steps .* batch 1: samples \[\d+, .*None of them has changed the parameters",
    "validation": "DataError: fit: validation: (.*batch 1.*x.*nan|another process could not measure its part)",
    "disk": "ConfigError: fit: the checkpoint of process 1 is not that of process 0; all must see one file system",
}


@pytest.mark.devices(8)
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start("-m", "tests.training.two_processes", port, i, tmp_path, devices=2) for i in range(2)]
    try:
        one = {"arrays": runs.fit()}
        x, labels = runs.sounds(19, seed=1)
        one["iterable"] = runs.fit(runs.batches(), runs.averaging(), validation=[(x, labels)])
        printed = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            kill(process)
    files = [tmp_path / f"results-{i}.json" for i in range(2)]
    assert all(file.exists() for file in files), printed
    first, second = (json.loads(file.read_text()) for file in files)

    for name, fit in one.items():
        assert first[name]["digest"] == second[name]["digest"]
        assert history(first[name]) == history(second[name])
        for column, values in history(first[name]).items():
            np.testing.assert_allclose(values, fit.history[column], rtol=2e-4, err_msg=f"{name}: {column}")

    assert (first["epochs"], second["epochs"]) == (3, 3)
    for messages in (first["refused"], second["refused"]):
        assert messages.keys() == REFUSED.keys()
        for name, message in messages.items():
            assert re.match(REFUSED[name], message), message

    # Process 1 killed itself in a run of both: the other fails, and does not wait.
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 1
    assert "Error" in printed[0]

    for process, results in enumerate((first, second)):
        assert (results["left the iterable"], results["step of the iterable"]) == (143, 40)
        assert results["left"] == 143
        assert results["kernel"] == [4, 64]
        assert "reestimate: the parameters lie on the devices of several processes" in results["reestimated"]
        assert results["predicted"] == [6, 256, 2 - process, True]
        assert results["resumed"]["digest"] == results["unbroken"]["digest"]
    # What two processes have saved in pieces, one process takes up in others.
    options = {"features": 256, "shard_parameters": True, "mesh": jax.make_mesh((8,), ("data",))}
    whole = two_processes.small_fit(**options, epochs=3)
    resumed = two_processes.small_fit(**options, epochs=3, keep=tmp_path / "pieces")
    np.testing.assert_allclose(resumed.history["loss"], whole.history["loss"], rtol=1e-5)
    assert resumed.history[0]["seconds"] == first["resumed"]["history"][0]["seconds"]


@pytest.fixture(scope="module")
def launch():
    """Starts the example on two processes; what one has compiled, the next finds in the cache of all tests."""

    def start_in(out, epochs):
        options = ["--epochs", epochs, "--checkpoint-seconds", 0]
        return start("examples/distributed.py", "--out", out, *options, devices=1)

    return start_in


def until(process, text):
    """Reads what a process prints, to the line that has ``text``, or for five minutes."""
    guard = threading.Timer(300, kill, [process])
    guard.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            guard.cancel()
            return
    raise AssertionError("".join(lines))


def ended(process, status=0):
    """What a process printed, which ended well, or as it was told to."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == status, printed
    return printed


def final(out):
    """The arrays of the last checkpoint, as they lie on the disk, and the history."""
    newest = Checkpoints(out / "distributed").latest()
    assert newest is not None
    return damage.unsealed(newest.read_bytes())[2], checkpoint.read_metadata(newest)["step"]


@pytest.mark.devices(8)
def test_the_example_stops_at_sigterm_and_goes_on_with_the_same_bits(launch, tmp_path, monkeypatch):
    """They are those of one process that has both devices, and that nothing stopped."""
    whole, stopped, processes = tmp_path / "whole", tmp_path / "stopped", []
    try:
        processes.append(launch(stopped, 9999))  # however late the signal comes, it is not at its end
        until(processes[0], "1/9999")
        processes[0].send_signal(signal.SIGTERM)
        assert ended(processes[0], 143).count("SIGTERM: saved at step ") == 1
        epochs = final(stopped)[1] // 26 + 2
        processes.append(launch(stopped, epochs))
        printed = ended(processes[1])
        assert [printed.count(text) for text in ("resumed from", "test accuracy")] == [1, 1]
    finally:
        for process in processes:
            kill(process)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    arguments = argparse.Namespace(epochs=epochs, batch_size=48, checkpoint_seconds=1000.0, out=whole)
    distributed.train(arguments, progress=False)
    assert final(stopped) == final(whole)


# In the place of the example: ends, each process as the launcher was told, or would say that it was left alone.
CHILD = """
import os, signal, sys, time
from pathlib import Path

*ends, _, _, _, process = sys.argv[1:]
match ends[int(process)]:
    case "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    case "waits":
        time.sleep(600)
        Path("left").write_text("")
    case status:
        sys.exit(int(status))
"""


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (("0", "0"), 0, []),
        (("0", "143"), 143, []),
        (("waits", "dies"), 1, ["process 0 did not end, and was killed", "process 1 ended with -9"]),
        (("3", "waits", "0"), 1, ["process 0 ended with 3", "process 1 did not end, and was killed"]),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, tuple) else "",
)
def test_the_launcher_ends_when_one_process_does(ends, status, said, tmp_path, monkeypatch, capfd):
    """What the others do then, `test_two_processes_train_as_one` says; what is saved by then, `test_kill`."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "__file__", "child.py")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert distributed.launch(len(ends), [*ends]) == status
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert set(said) <= set(capfd.readouterr().err.splitlines())
    assert not (tmp_path / "left").exists()

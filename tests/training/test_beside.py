"""Checkpoints are written beside the training: what waits for what, and what becomes of a write that fails."""

import queue
import resource
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import CheckpointError
from jaxnet.training import Checkpoints, checkpoint, keeping, load, read_metadata
from jaxnet.training.keeping import Saver
from jaxnet.training.run import Run
from tests.training import calls

X = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
NET, ADAM = layers.dense(200), optimizers.adam(0.01)
Y = np.ones((32, 200), np.float32)


def fit(epochs=4, **options):
    return calls.fit(NET, losses.mse, ADAM, (X, Y), epochs=epochs, batch_size=16, progress=False, **options)


def at_the_end_of(epoch, do):
    return lambda record, train_state: do(train_state) if record["epoch"] == epoch else None


@pytest.fixture
def slow(monkeypatch):
    """Writes that wait until they are told to go on, and which of them have begun."""
    begun, go_on = queue.Queue(), threading.Event()
    write = checkpoint._file.write

    def waiting(place, *arguments):
        begun.put((place.name, threading.current_thread() is threading.main_thread()))
        assert go_on.wait(60)
        write(place, *arguments)

    monkeypatch.setattr(checkpoint._file, "write", waiting)
    monkeypatch.setattr(keeping, "SAVE_SHARE", np.inf)
    return begun, go_on


def test_training_goes_on_and_what_is_written_is_what_was_saved(slow, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxnet.training.devices.MOST_BYTES_KEPT", 0)  # the state is given to the next step
    begun, go_on = slow
    writes = []

    def look(record, train_state):
        if record["epoch"] == 4:
            writes.append(begun.get(timeout=60))  # the thread may be slow to start
            assert begun.empty()  # it is behind, but never by more
            go_on.set()

    result = fit(keep=training.keep(tmp_path, seconds=0, best=False, last=9), callbacks=[look])
    first, last = Checkpoints(tmp_path).paths()  # the run has waited for the last
    assert writes == [("000001-step-1.safetensors", False)]
    assert [main for _, main in begun.queue] == [False]
    assert (read_metadata(first)["step"], read_metadata(last)["step"]) == (1, 8)
    old, new = (load(path, result.params, under="train_state/params") for path in (first, last))
    jax.tree.map(np.testing.assert_array_equal, new, result.params)
    np.testing.assert_allclose(np.abs(old["bias"]), 0.01, rtol=1e-3)  # one step of Adam, although many came since


def test_an_error_in_writing_ends_the_run_with_the_state(tmp_path):
    """A disk that becomes full, as the kernel says it: no file may grow any more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))

    try:
        with pytest.raises(CheckpointError, match=r"fit: cannot write .*: File too large.* is whole: .*same call") as e:
            fit(keep=training.keep(tmp_path, seconds=0), callbacks=[at_the_end_of(2, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    step = int(e.value.train_state.step)
    assert 4 <= step <= 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(e.value.train_state.params))
    assert f"after step {step} is in error.train_state" in str(e.value)
    resumed, unbroken = fit(keep=tmp_path), fit()
    jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_write_and_saves_the_last_step(number, slow, tmp_path, monkeypatch):
    _, go_on = slow
    end = keeping.Beside.end

    def waited_for(beside):
        if beside.busy:
            go_on.set()
        end(beside)

    def press(_):
        signal.pthread_kill(threading.main_thread().ident, number)

    monkeypatch.setattr(keeping.Beside, "end", waited_for)

    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
        fit(keep=training.keep(tmp_path, seconds=0), callbacks=[at_the_end_of(2, press)])
    step = int(ended.value.train_state.step)
    assert [read_metadata(path)["step"] for path in Checkpoints(tmp_path).paths()] == [1, step]


@pytest.mark.parametrize("place", ["keeping.gathered", "checkpoint._file.write"])
def test_memory_that_does_not_suffice_for_the_copy_or_beside_the_training_is_told(place, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 1.00 GiB")

    monkeypatch.setattr(f"jaxnet.training.{place}", refuse)
    with pytest.raises(MemoryError, match="Unable to allocate") as ended:
        fit(keep=tmp_path)
    assert int(ended.value.train_state.step) == 8
    assert "could not be saved, but is in error.train_state: Unable to allocate" in ended.value.__notes__[0]


def test_only_what_the_training_waits_for_counts_in_its_share(tmp_path, monkeypatch):
    clock, take = [0.0], {"copy": 2.0, "write": 30.0}
    gather, write = checkpoint.gathered, checkpoint._file.write
    returned = threading.Event()  # what is written takes its time after `save`, not while that looks at the clock

    def timed(what, do):
        def f(*arguments, **options):
            assert what == "copy" or returned.wait(60)
            clock[0] += take[what]
            return do(*arguments, **options)

        return f

    monkeypatch.setattr(keeping.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(keeping, "gathered", timed("copy", gather))
    monkeypatch.setattr(checkpoint._file, "write", timed("write", write))
    run = Run(training.init(NET, ADAM, X[:1], 0), lambda state: (state.params, state.state), None)
    with Saver(training.keep(tmp_path, seconds=10), {}) as saver:
        saver.begin(run.history)
        clock[0] = 11.0
        assert saver.due()
        saver.save(run)
        returned.set()
        saver.written(run)
        assert clock[0] == 43.0
        saved = 13.0  # when the copy was made
        clock[0] = saved + 39  # two seconds of forty are a twentieth
        assert not saver.due()
        clock[0] = saved + 41
        assert saver.due()


def test_a_position_that_the_loader_changes_meanwhile(slow, tmp_path):
    begun, go_on = slow
    position = {"index": 1}
    run = Run(training.init(NET, ADAM, X[:1], 0), lambda state: (state.params, state.state), None)
    run.position = position
    with Saver(training.keep(tmp_path), {}) as saver:
        saver.begin(run.history)
        saver.save(run)
        position["index"] = 2
        assert not saver.due()
        go_on.set()
    assert begun.qsize() == 1
    saved = str(read_metadata(Checkpoints(tmp_path).latest())["position"])
    assert "1" in saved
    assert "2" not in saved
    assert jnp.isfinite(run.train_state.params["kernel"]).all()

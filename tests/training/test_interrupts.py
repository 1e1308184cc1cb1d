"""Ctrl-C, SIGTERM and errors in the middle of a run: it stops soon, says how to go on, and loses nothing."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import keeping
from tests.training import calls

X = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
Y = X[:, :1]
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]


def fit(data=(X, Y), **options):
    options = {"epochs": 3, "progress": False} | ({"batch_size": 16} if isinstance(data, tuple) else {}) | options
    return calls.fit(layers.dense(1), losses.mse, optimizers.sgd(0.01), data, **options)


def after(seconds, number=signal.SIGINT):
    """Sends the signal to this process's main thread a little later."""
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(threading.main_thread().ident, number))
    timer.daemon = True
    timer.start()


class Gate:
    """What a loader waits for, and what opens when the run has ended: no clock says whether the run waited for it."""

    def __init__(self):
        self._opened, self.in_vain = threading.Event(), False

    def wait(self):
        self.in_vain = not self._opened.wait(300)

    def open(self):
        self._opened.set()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()
    assert not gate.in_vain  # a run that waits for its loader ends after the loader's patience


def blocked(at, gate):
    """Batches of which one does not come, and while it is waited for, a signal does."""
    for i, batch in enumerate(BATCHES * 3):
        if i == at:
            after(0.3)
            gate.wait()
        yield batch


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_a_blocked_loader_does_not_keep_a_run_from_stopping(tmp_path, keep, at, capsys, gate):
    fit(BATCHES, epochs=1)  # compiled
    options = {"keep": tmp_path} if keep else {}
    if at == 0:  # the first batch is looked at before there is a run, so that an ordinary interrupt ends it
        with pytest.raises(KeyboardInterrupt):
            fit(blocked(0, gate), steps_per_epoch=4, **options)
        return
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(blocked(at, gate), steps_per_epoch=4, **options)
    step = int(stopped.value.train_state.step)
    assert step <= at  # less if the signal came while a slow machine compiled
    assert len(stopped.value.history) == step // 4
    if keep:
        assert f"SIGINT: saved at step {step} (epoch {step // 4 + 1}) in {tmp_path}" in capsys.readouterr().out
        resumed = fit(iter(BATCHES * 3), steps_per_epoch=4, keep=tmp_path)
        unbroken = fit(iter(BATCHES * 3), steps_per_epoch=4)
        jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)
    else:
        assert re.search(r"stopped at step .* the state is in error.train_state", str(stopped.value))


def test_without_a_checkpoint_the_state_is_on_the_exception_and_can_go_on():
    def press(record, _):
        if record["epoch"] == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(epochs=3, callbacks=[press])
    state = stopped.value.train_state
    assert 4 < int(state.step) <= 8
    assert len(stopped.value.history) == 1
    fit(start=(state.params, state.state))


def test_a_second_ctrl_c_ends_a_run_at_once_and_saves_nothing(tmp_path, capsys):
    pressed = []

    def press(record, _):
        if record["epoch"] == 2:
            for _ in range(2):
                pressed.append(1)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            pressed.append("went on")

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(callbacks=[press], keep=tmp_path, seconds=1000)
    assert pressed == [1, 1]
    assert training.Checkpoints(tmp_path).paths() == []
    assert "SIGINT" not in capsys.readouterr().out
    assert int(stopped.value.train_state.step) == 8


def test_a_checkpoint_that_is_being_written_is_waited_for_with_a_word(tmp_path, capsys, monkeypatch):
    written, waited_for = [], threading.Event()
    saver = keeping.Saver(keeping.given(tmp_path), {})
    end = saver._writer.end
    monkeypatch.setattr(saver._writer, "end", lambda: (waited_for.set(), end()))

    def write():
        written.append(waited_for.wait(60))

    def press():
        with saver:
            saver._writer.start(write)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        press()
    assert written == [True]
    assert "waiting for the checkpoint that is being written" in capsys.readouterr().out
    waited_for.clear()
    with saver:
        saver._writer.start(write)
    assert written == [True, True]
    assert not capsys.readouterr().out


def test_where_nothing_is_being_written_no_word_says_so(tmp_path, capsys):
    def press():
        with keeping.Saver(keeping.given(tmp_path), {}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        press()
    assert not capsys.readouterr().out


def test_a_validation_that_does_not_end_can_be_stopped(tmp_path):
    def endless(_):
        for i in range(10_000):
            if i == 3:  # the first is looked at before the run
                after(0.1)
            time.sleep(0.01)
            yield BATCHES[0]

    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(validation=endless, keep=tmp_path)
    assert int(stopped.value.train_state.step) == 4
    resumed = fit(validation=[BATCHES[1]], keep=tmp_path)
    unbroken = fit(validation=[BATCHES[1]])
    jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)
    np.testing.assert_array_equal(resumed.history["validation_loss"], unbroken.history["validation_loss"])


SCRIPT = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which the background of a shell script ignores
import numpy as np
from jaxnet import layers, losses, optimizers, training
from jaxnet.training import feed
feed.TARGET_SECONDS = 0.0  # a look after every step
x, taken = np.ones((8, 2), np.float32), threading.Event()
def look(measured, train_state):
    if measured["step"][-1] == 5:
        taken.set()
def batches():
    for i in range(100):
        if i == 5:
            assert taken.wait(300)
            print("blocked", flush=True)
            time.sleep(600)
        yield x, x[:, :1]
try:
    data = training.stream(batches(), steps_per_epoch=50)
    training.fit(
        layers.dense(1), losses.mse, optimizers.sgd(.01), data, epochs=2, progress=False,
        callbacks=[training.per_step(look)], {keep}
    )
finally:
    print("finally", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "keep", "status"),
    [
        (signal.SIGINT, True, -signal.SIGINT),  # which a shell calls 130
        (signal.SIGTERM, True, 143),
        (signal.SIGTERM, False, -signal.SIGTERM),  # there is nothing to save: as without jaxnet
    ],
)
def test_the_status_that_a_script_ends_with(tmp_path, number, keep, status):
    script = SCRIPT.replace("{keep}", f"keep={str(tmp_path / 'run')!r}" if keep else "")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    try:
        while "blocked" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=200)  # not the ten minutes
    finally:
        process.kill()
    assert process.returncode == status, err
    if keep:
        assert re.search(rf"{number.name}: saved at step 5 \(epoch 1\) in", out)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt: fit: " in err
    if status != -signal.SIGTERM:
        assert "finally" in out


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("where", ["callback", "loader", "evaluation"])
def test_an_error_of_the_users_code_loses_nothing(tmp_path, where, keep):
    def failing(*_):
        raise OSError("the share is gone")

    def loader(epoch):
        yield from BATCHES
        if epoch == 1:
            failing()

    def validation(_):
        calls.append(1)
        if len(calls) == 2:
            failing()
        yield BATCHES[0]

    def late(record, _):
        if record["epoch"] == 2:
            failing()

    calls = []
    options = {
        "callback": {"callbacks": [late]},
        "loader": {"data": loader},
        "evaluation": {"validation": validation},
    }[where]
    options |= {"keep": tmp_path} if keep else {}
    with pytest.raises(OSError, match="the share is gone") as failed:
        fit(**options)
    assert int(failed.value.train_state.step) == 8
    assert len(failed.value.history) == (2 if where == "callback" else 1)
    *place, note = failed.value.__notes__
    assert ["raised this for" in one for one in place] == [True] * (where != "callback")
    assert ("saved at step 8" if keep else "the state is in error.train_state") in note
    if keep:
        options = {"data": lambda epoch: BATCHES} if where == "loader" else {}
        options |= {"validation": lambda _: [BATCHES[0]]} if where == "evaluation" else {}
        resumed, unbroken = fit(**options, keep=tmp_path), fit(**options)
        jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)


def test_handlers_are_put_back_and_other_threads_have_none():
    mine = signal.signal(signal.SIGINT, handler := lambda *_: None)
    try:
        fit()
        assert signal.getsignal(signal.SIGINT) is handler
        results = []
        thread = threading.Thread(target=lambda: results.append(fit()))
        thread.start()
        thread.join()
        assert len(results) == 1
    finally:
        signal.signal(signal.SIGINT, mine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(tmp_path, number):
    """As in the background of a shell script."""

    def press(*_):
        signal.pthread_kill(threading.main_thread().ident, number)

    mine = signal.signal(number, signal.SIG_IGN)
    try:
        assert len(fit(callbacks=[press], keep=tmp_path).history) == 3
    except KeyboardInterrupt:  # which would end the tests
        pytest.fail("it was heard")
    finally:
        signal.signal(number, mine)


def test_a_signal_that_comes_with_the_last_epochs_callbacks_is_heard(tmp_path):
    def press(record, _):
        if record["epoch"] == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        fit(callbacks=[press], keep=tmp_path)
    assert stopped.value.code == 143
    assert int(stopped.value.train_state.step) == 12
    assert training.read_metadata(training.Checkpoints(tmp_path).latest())["step"] == 12


def test_a_callback_that_ends_the_program_is_saved_too(tmp_path):
    def leave(record, _):
        if record["epoch"] == 2:
            sys.exit(3)

    with pytest.raises(SystemExit) as left:
        fit(callbacks=[leave], keep=tmp_path, seconds=1000)
    assert left.value.code == 3
    assert "saved at step 8" in left.value.__notes__[0]
    assert len(fit(keep=tmp_path).history) == 3


def test_a_record_that_cannot_be_written_loses_nothing(tmp_path):
    def note(value):
        return lambda record, _: record.update(mine=value)

    history = fit(callbacks=[note(np.float32(0.5))], keep=tmp_path / "a").history
    assert history["mine"].tolist() == [0.5] * 3
    with pytest.raises(ConfigError, match="a callback has put 'mine' in the record") as failed:
        fit(callbacks=[note(object())], keep=tmp_path / "b")
    assert int(failed.value.train_state.step) == 4
    assert "saved at step 4" in failed.value.__notes__[0]
    assert "mine" not in failed.value.history.names


def test_a_resume_that_reads_what_it_knows_can_be_stopped(tmp_path, gate):
    read = []

    def batches(wait=lambda: None):
        for i, batch in enumerate(BATCHES * 10):
            read.append(threading.current_thread())
            if i == 2:
                wait()
            yield batch

    def wait():
        after(0.5)
        gate.wait()

    def stopped(*_):
        raise OSError("enough")

    with pytest.raises(OSError, match="enough"):
        fit(batches(), steps_per_epoch=36, epochs=1, keep=tmp_path, callbacks=[stopped])
    del read[:]
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        fit(batches(wait), steps_per_epoch=36, epochs=2, keep=tmp_path)
    gate.open()
    read[-1].join(60)
    assert len(read) == 3  # of 36: the thread that reads stops too


def test_an_error_of_the_step_does_not_wait_for_the_loader(gate):
    def batches():
        yield BATCHES[0]
        yield X[:16, :2], Y[:16]
        gate.wait()

    with pytest.raises(DataError, match=r"epoch 1, batch 1: x has shape \(16, 2\)"):
        fit(batches(), epochs=1)


def test_a_loader_that_a_stopped_run_still_holds_is_said_to_be(gate):
    loader = blocked(2, gate)
    with pytest.raises(KeyboardInterrupt):
        fit(loader, steps_per_epoch=4)
    with pytest.raises(DataError, match="still at work for a run that was stopped while it waited; make a new one"):
        fit(loader, steps_per_epoch=4)

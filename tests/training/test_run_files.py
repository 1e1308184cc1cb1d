"""What a run writes and holds: its history, its log, its directory; disks and file systems that refuse."""

import contextlib
import errno
import importlib.util
import json
import os
import stat
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.checkpoints import damage
from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DataError
from jaxnet.training import Checkpoints, History, _atomic, load, read_metadata, save
from jaxnet.training import history as histories
from jaxnet.training.beside import Beside
from jaxnet.training.history import Log
from jaxnet.training.keeping import Saver
from jaxnet.training.run import HISTORY, Run
from tests.training import calls

X, Y = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32), np.ones((64, 1), np.float32)
NET, SGD = layers.dense(1), optimizers.sgd(0.01)
pytestmark = pytest.mark.usefixtures("save_after_every_dispatch")


@pytest.fixture
def save_after_every_dispatch(monkeypatch):
    monkeypatch.setattr("jaxnet.training.keeping.SAVE_SHARE", np.inf)
    monkeypatch.setattr(Beside, "busy", False)  # the next one is due at once, and waits for the one before


def fit(epochs=3, **options):
    options = {"batch_size": 32, "progress": False, "seconds": 0.0, **options}
    return calls.fit(NET, losses.mse, SGD, (X, Y), epochs=epochs, **options)


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def new_run():
    return Run(training.init(NET, SGD, X[:1], 0), lambda state: (state.params, state.state), None)


def fake(count):
    """A history as long as that of a run of many epochs."""
    return History(
        [
            {"epoch": i, "step": 8 * i, "loss": 1 / i, "grad_norm": np.sqrt(i).item(), "loss_deviation": 0.1 / i,
             "skipped": 0, "validation_loss": 1.1 / i if i % 7 else float("nan"), "seconds": 0.25,
             "steps_per_second": 32.0}
            for i in range(1, count + 1)
        ]
    )  # fmt: skip


class TestHistory:
    def test_an_epoch_appends_a_line_and_a_reader_of_the_open_file_sees_it(self, tmp_path):
        log, kept, seen = tmp_path / "logs" / "a.jsonl", tmp_path / "run" / HISTORY, []

        def look(record, train_state):
            if not seen:
                seen.extend([open(log, "rb"), open(kept, "rb")])  # noqa: SIM115
            for file in seen:  # as `tail -f` does: it stays with the file that was there
                file.seek(0)
                assert len(file.readlines()) == record["epoch"] - 1

        result = fit(log=log, keep=tmp_path / "run", callbacks=[look])
        for file in seen:
            file.seek(0)
            assert [json.loads(line) for line in file] == result.history.records
            file.close()
        assert History.load(log).records == result.history.records

    def test_twenty_thousand_records(self, tmp_path, monkeypatch):
        run, written = new_run(), []
        run.history = fake(20_000)
        line = histories._line
        monkeypatch.setattr(histories, "_line", lambda record: written.append(1) or line(record))
        with Saver(training.keep(tmp_path / "run", seconds=0.0, log=tmp_path / "log.jsonl"), {}) as saver:
            saver.begin(run.history)
            assert len(written) == 40_000
            for i in range(2):
                del written[:]
                run.history.records.append({"epoch": 20_001 + i, "loss": 0.5})
                saver.record(run)
                saver.save(run)
                saver.written(run)
                assert len(written) == 2  # a line each, of the history and of the log
                assert saver.checkpoints.latest().stat().st_size < 6000
        assert len(json.dumps(read_metadata(saver.checkpoints.latest()))) < 600
        resumed = new_run()
        resumed.restore(saver.checkpoints, read_metadata(saver.checkpoints.latest()), in_place=True)
        assert json.dumps(resumed.history.records) == json.dumps(run.history.records)  # NaN is no NaN's equal
        assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "run" / HISTORY).read_bytes()
        assert resumed.history.names == run.history.names
        np.testing.assert_array_equal(resumed.history["loss"][:-2], 1 / np.arange(1, 20_001))
        assert "20002 epochs" in repr(resumed.history)

    def test_every_flipped_bit_and_every_truncation_is_found(self, tmp_path):
        found, tried = damage.history_flips(10**6, tmp_path)
        assert found == tried > 2000
        with Saver(training.keep(tmp_path / "run", seconds=0.0), {}) as saver:
            saver.begin(fake(2))
            seal, path = saver._kept.seal, saver._kept.path
        whole = path.read_bytes()
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            with pytest.raises(CheckpointError, match=r"history.jsonl is damaged: its first \d+ bytes are not what"):
                Log.read(path, seal)
        path.unlink()
        with pytest.raises(CheckpointError, match=r"cannot read .*history.jsonl: No such file"):
            Log.read(path, seal)

    def test_it_is_on_the_disk_before_the_checkpoint_that_needs_it(self, tmp_path, monkeypatch):
        done, run = [], new_run()
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(
            os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file))[1]
        )
        monkeypatch.setattr(os, "replace", lambda a, b: (done.append(str(b)), replace(a, b))[1])
        with Saver(training.keep(tmp_path, seconds=0.0), {}) as saver:
            saver.begin(run.history)
            run.history.records.append({"epoch": 1})
            del done[:]
            saver.save(run)
        assert done.index(str(tmp_path / HISTORY)) < done.index(str(saver.checkpoints.latest()))
        assert (tmp_path / HISTORY).read_bytes() == b'{"epoch": 1}\n'

    @pytest.mark.parametrize("tail", [b"", b'{"epoch": 4, "loss": 0.', b'{"epoch": 4}\n{"epoch": 5}\n', b"\0" * 99])
    def test_what_came_after_the_checkpoint_is_cut_off(self, tail, tmp_path):
        fit(epochs=2, keep=tmp_path)
        with open(tmp_path / HISTORY, "ab") as file:
            file.write(tail)
        resumed, unbroken = fit(epochs=4, keep=tmp_path), fit(epochs=4)
        for name in ("epoch", "step", "loss", "grad_norm"):
            np.testing.assert_array_equal(resumed.history[name], unbroken.history[name])
        np.testing.assert_array_equal(resumed.params["kernel"], unbroken.params["kernel"])
        assert History.load(tmp_path / HISTORY).records == resumed.history.records

    @pytest.mark.parametrize("place", ["first line", "last line"])
    def test_damage_says_what_helps(self, place, tmp_path):
        whole = fit(epochs=3, keep=tmp_path)
        newest, before = reversed([path.name for path in Checkpoints(tmp_path).paths()][-2:])
        text = lines(tmp_path / HISTORY)
        damaged = 0 if place == "first line" else 2
        text[damaged] = text[damaged].replace(b"loss", b"lose")
        (tmp_path / HISTORY).write_bytes(b"".join(text))
        with pytest.raises(CheckpointError, match=r"put a copy of it back .* begin anew from the weights") as caught:
            fit(epochs=4, keep=tmp_path)
        back = f"or delete {newest} to fall back to {before}"
        assert (back in str(caught.value)) == (place == "last line")
        params, state = training.load_best(tmp_path, NET, X)  # as the message says
        np.testing.assert_array_equal(params["kernel"], whole.params["kernel"])
        fit(epochs=1, start=(params, state), keep=tmp_path / "another")

    def test_falling_back_to_an_older_checkpoint(self, tmp_path):
        fit(epochs=3, keep=tmp_path)
        for path in Checkpoints(tmp_path).paths()[1:]:
            path.unlink()
        resumed, unbroken = fit(epochs=4, keep=tmp_path), fit(epochs=4)
        np.testing.assert_array_equal(resumed.history["loss"], unbroken.history["loss"])
        np.testing.assert_array_equal(resumed.params["kernel"], unbroken.params["kernel"])
        assert len(lines(tmp_path / HISTORY)) == 4

    def test_a_log_beside_the_checkpoints_is_the_history_itself(self, tmp_path):
        for epochs in (2, 3):
            fit(epochs=epochs, keep=tmp_path, log=tmp_path / "." / HISTORY)
            assert len(lines(tmp_path / HISTORY)) == epochs

    def test_a_half_last_line_is_dropped_and_any_other_is_refused(self, tmp_path):
        log = tmp_path / "log.jsonl"
        fake(3).save(log)
        whole = log.read_bytes()
        start = whole.rindex(b"\n", 0, -1) + 1
        for end in range(start, len(whole) - 1):  # an object without its newline is whole
            log.write_bytes(whole[:end])
            assert len(History.load(log)) == 2
        log.write_bytes(whole[:-1])
        assert len(History.load(log)) == 3
        for text in (b"{}\nno json\n", b"{}\nhalf\n{}\n", b"[1]\n", b"{}\n\xff\xfe\n"):
            log.write_bytes(text)
            with pytest.raises(DataError, match=r"line \d of .*log.jsonl is no JSON object"):
                History.load(log)

    def test_a_record_that_is_no_json(self, tmp_path):
        with pytest.raises(
            ConfigError,
            match=r"a callback has put 'mine' in the record of epoch 1, a ndarray of shape \(2,\); .*such as float",
        ):
            fit(log=tmp_path / "log.jsonl", callbacks=[lambda record, state: record.update(mine=np.ones(2))])


class Untrained:
    """A step that must never be called."""

    def __call__(self, train_state, batch):
        raise AssertionError("a step was taken")


def train(**options):
    step, state = Untrained(), training.init(NET, SGD, X[:1], 0)
    return calls.train(step, state, (X, Y), epochs=1, batch_size=32, progress=False, **options)


class TestRefusedBeforeTheFirstStep:
    @pytest.mark.parametrize("where", ["below a file", "no right", "read-only", "a full disk"])
    @pytest.mark.parametrize("argument", ["keep", "log"])
    def test_what_cannot_be_written(self, argument, where, tmp_path, monkeypatch):
        place = tmp_path / "there" / "run"
        if where == "below a file":
            (tmp_path / "there").write_text("")
            wanted = ".*there is a file, no directory"
        else:
            code = {"no right": errno.EACCES, "read-only": errno.EROFS, "a full disk": errno.ENOSPC}[where]
            wanted = os.strerror(code)

            def refuse(*arguments, **keywords):
                raise OSError(code, wanted)

            monkeypatch.setattr(os, "mkdir", refuse)
        kind, cure = (CheckpointError, "keep=") if argument == "keep" else (ConfigError, r"training.keep\(log=...\)")
        untrained = "nothing was trained yet: mend that"
        with pytest.raises(kind, match=rf"fit: cannot write .*run: ({wanted}); {untrained}, or give {cure} a place"):
            train(**{argument: place})

    def test_a_directory_that_is_there_and_takes_no_files(self, tmp_path, monkeypatch):
        (tmp_path / "run").mkdir()
        create = os.open

        def refuse(path, flags, *arguments, **keywords):
            if flags & os.O_CREAT:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return create(path, flags, *arguments, **keywords)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(CheckpointError, match=r"fit: cannot write .*run: Read-only file system"):
            train(keep=tmp_path / "run")

    def test_a_log_that_is_a_directory(self, tmp_path):
        with pytest.raises(ConfigError, match=r"fit: cannot write .*: (Is a directory|.*not empty)"):
            train(log=tmp_path)

    def test_missing_directories_are_made(self, tmp_path):
        with pytest.raises(AssertionError, match="a step was taken"):
            train(log=tmp_path / "a" / "b.jsonl", keep=tmp_path / "c" / "d")
        assert not list((tmp_path / "a").iterdir())  # it was tried, and nothing is left of that
        assert {path.name for path in (tmp_path / "c" / "d").iterdir()} == {".lock"}

    def test_of_an_exported_network(self, tmp_path, monkeypatch):
        pytest.importorskip("flatbuffers")
        (tmp_path / "file").write_text("")

        def never(*_):
            raise AssertionError("it was compiled")

        monkeypatch.setattr(jax, "eval_shape", never)
        with pytest.raises(OSError, match=r"file/net'"):
            training.export(NET, NET.init(0, X)[0], (), X, path=tmp_path / "file" / "net")

    def test_devices_are_written_to_and_not_replaced(self, tmp_path):
        fit(epochs=1, log="/dev/null")
        fake(1).save("/dev/null")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


class TestADiskThatBecomesFull:
    def test_the_log(self):
        with pytest.raises(CheckpointError, match="fit: cannot write /dev/full: No space left on device") as caught:
            fit(log="/dev/full")
        assert "saved before" not in str(caught.value)  # there are none
        assert int(caught.value.train_state.step) == 2

    def test_a_line_that_fits_in_part_is_taken_back(self, tmp_path):
        log, written = Log(tmp_path / "log"), []
        log.begin(fake(1))
        whole, file = log.path.read_bytes(), log._file

        class Full:
            truncate = file.truncate

            def write(self, view):
                if written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written.append(file.write(view[:10]))
                return written[0]

        log._file = Full()
        with pytest.raises(OSError, match="No space left"):
            log.append(fake(2))
        file.close()
        assert written == [10]
        assert log.path.read_bytes() == whole

    @pytest.mark.parametrize("file", ["history", "arrays"])
    def test_older_checkpoints_stay_and_the_same_call_goes_on(self, file, tmp_path, monkeypatch):
        fsync, full = os.fsync, [False]

        def limited(descriptor):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if full[0] and (name.endswith(HISTORY) if file == "history" else HISTORY not in name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        def fill(record, train_state):
            full[0] = record["epoch"] >= 3  # the thread that writes may come late

        monkeypatch.setattr(os, "fsync", limited)
        with pytest.raises(
            CheckpointError,
            match=r"cannot write .*No space left.* saved before is whole: .* after step [678] is in error",
        ) as caught:
            fit(epochs=4, keep=tmp_path, callbacks=[fill])
        step = int(caught.value.train_state.step)  # of the next dispatch, or of the last if the write before was late
        assert caught.value.__cause__ is not None
        full[0] = False
        assert 0 < read_metadata(Checkpoints(tmp_path).latest())["step"] < step
        resumed, unbroken = fit(epochs=4, keep=tmp_path), fit(epochs=4)
        np.testing.assert_array_equal(resumed.history["loss"], unbroken.history["loss"])
        np.testing.assert_array_equal(resumed.params["kernel"], unbroken.params["kernel"])


class TestFileSystemsThatCannotSyncDirectories:
    @staticmethod
    def answering(monkeypatch, code, of_directories):
        fsync = os.fsync

        def refuse(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_directories:
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)

    @pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES", "EPERM", "EBADF"])
    def test_all_go_on(self, code, tmp_path, monkeypatch):
        self.answering(monkeypatch, getattr(errno, code), True)
        path = save(tmp_path / "a" / "b", {"x": np.ones(2)})
        assert load(path, {"x": np.zeros(2)})["x"].sum() == 2
        Checkpoints(tmp_path / "many").save(1, {"x": np.ones(2)})
        fake(2).save(tmp_path / "c" / "log.jsonl")
        with Saver(training.keep(tmp_path / "run", seconds=0.0), {}) as saver:
            saver.begin(History())
            saver.save(run := new_run())
            saver.written(run)

    @pytest.mark.parametrize(("code", "of_directories"), [("EIO", True), ("ENOSPC", True), ("EINVAL", False)])
    def test_other_failures_are_told(self, code, of_directories, tmp_path, monkeypatch):
        self.answering(monkeypatch, getattr(errno, code), of_directories)
        with pytest.raises(CheckpointError, match=os.strerror(getattr(errno, code))):
            save(tmp_path / "run", {"x": np.ones(2)})
        with pytest.raises(OSError, match=os.strerror(getattr(errno, code))):
            fake(2).save(tmp_path / "log.jsonl")


def alone(code, *arguments):
    """A process that imports the locks and nothing of JAX."""
    source = importlib.util.find_spec("jaxnet.training._atomic").origin
    start = f"""
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("atomic", {source!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
directory = Path(sys.argv[1])
"""
    return subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


class TestOneRunADirectory:
    def test_a_run_in_a_run(self, tmp_path):
        messages = []

        def second(record, train_state):
            with pytest.raises(CheckpointError) as caught:
                train(keep=tmp_path)
            messages.append(str(caught.value))

        fit(epochs=1, keep=tmp_path, callbacks=[second])
        assert messages[0].startswith(f"fit: another run uses {tmp_path}: process {os.getpid()} on ")
        assert messages[0].endswith("wait for its end, stop it, or give keep= another directory")
        fit(epochs=2, keep=tmp_path)  # it has ended

    def test_two_threads(self, tmp_path):
        results = []

        def work():
            try:
                results.append(fit(epochs=200, keep=tmp_path))
            except CheckpointError as error:
                results.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        with _atomic.held(tmp_path):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all("another run uses" in result for result in results)

    def test_a_process_that_is_killed(self, tmp_path):
        fit(epochs=1, keep=tmp_path)
        holder = alone("with atomic.held(directory):\n print('held', flush=True)\n time.sleep(600)", tmp_path)
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=f"another run uses .*: process {holder.pid} on "):
                train(keep=tmp_path)
            training.load_best(tmp_path, NET, X)  # to read, no lock is needed
            Checkpoints(tmp_path).restore(jax.eval_shape(lambda: new_run().saved))
            Checkpoints(tmp_path / "own").save(1, {"x": np.ones(1)})
        finally:
            holder.kill()
            holder.communicate()
        fit(epochs=2, keep=tmp_path)

    def test_a_child_that_was_forked_does_not_hold_it_on(self, tmp_path):
        code = """
with atomic.held(directory):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
with atomic.held(directory):
    print("free", flush=True)
os.kill(child, 9)
"""
        process = alone(code, tmp_path)
        assert process.communicate(timeout=300)[0] == "free\n"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
    def test_whatever_ends_a_run(self, error, tmp_path):
        def end(record, train_state):
            raise error

        with pytest.raises(error) as kept:
            fit(keep=tmp_path, callbacks=[end])
        fit(epochs=1, keep=tmp_path)
        del kept

    def test_what_is_refused_is_given_back(self, tmp_path):
        fit(epochs=1, keep=tmp_path)
        with pytest.raises(ConfigError, match="what differs is seed 0, now 1"):
            fit(epochs=2, keep=tmp_path, seed=1)
        fit(epochs=2, keep=tmp_path)

    def test_where_files_cannot_be_locked(self, tmp_path, monkeypatch):
        import fcntl

        def refuse(*arguments):
            raise OSError(errno.ENOTSUP, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        fit(epochs=1, keep=tmp_path)

    def test_of_several_processes_the_first_alone_holds_and_writes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        run = new_run()
        with contextlib.nullcontext(Saver(training.keep(tmp_path / "run", log=tmp_path / "log"), {})) as saver, saver:
            saver.begin(run.history)
            run.history.records.append({"epoch": 1})
            saver.record(run)
        assert not list(tmp_path.iterdir())

    def test_by_hand_no_lock_is_needed(self, tmp_path):
        with _atomic.held(tmp_path):
            checkpoints = Checkpoints(tmp_path)
            checkpoints.save(1, {"x": jnp.ones(2)})
            assert checkpoints.restore({"x": jnp.zeros(2)})[0]["x"].sum() == 2
            assert checkpoints.latest() == checkpoints.paths()[0]

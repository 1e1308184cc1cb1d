"""What the trackers have written, read back with what each package reads it by; nothing leaves the machine."""

import json
import struct

import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]


def run(tracker):
    """Ten steps in two epochs; what every step has measured, and the history."""
    losses_ = []
    fit = training.fit(
        layers.dense(1), losses.mse, optimizers.sgd(0.1), (X, 2 * X), epochs=2, batch_size=8, validation=(X, 2 * X),
        progress=False,
        callbacks=[tracker, training.per_step(lambda measured, _: losses_.extend(measured["loss"].tolist()))],
    )  # fmt: skip
    return losses_, fit.history


def check(found, wrote):
    """Found by name: ``[(step, value), ...]``."""
    of_steps, history = wrote
    assert [step for step, _ in found["step/loss"]] == [3, 6, 9]
    np.testing.assert_allclose([value for _, value in found["step/loss"]], np.float32(of_steps)[2::3], rtol=1e-6)
    for name in ("loss", "validation_loss", "learning_rate"):
        assert [step for step, _ in found[f"epoch/{name}"]] == [5, 10]
        np.testing.assert_allclose([value for _, value in found[f"epoch/{name}"]], history[name], rtol=1e-6)


def by_name(rows):
    found = {}
    for step, values in rows:
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is the reader"
    )
    wrote = run(training.tensorboard(tmp_path / "run", every=3))
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    names = events.Tags()["tensors"]
    check({name: [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(name)] for name in names}, wrote)


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # which it reads as it is imported
    trackio = pytest.importorskip("trackio", reason="trackio is the reader")
    wrote = run(training.trackio(project="tests", name=tmp_path.name, every=3, auto_log_cpu=False, embed=False))
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("tests", tmp_path.name)
    check(by_name([(row["step"], {k: v for k, v in row.items() if "/" in k}) for row in rows]), wrote)


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is the reader")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wrote = run(training.wandb(project="tests", mode="offline", dir=str(tmp_path), every=3))
    wandb.teardown()  # its process has written all
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for history in histories(file.read_bytes()):
        values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        rows.append((values.pop("_step"), values))
    check(by_name(rows), wrote)


def histories(raw):
    """The records of wandb's own messages in a log of LevelDB's form, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, message = 7, b""
    while place + 7 <= len(raw):
        if 32768 - place % 32768 < 7:  # the rest of a block is padding
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", raw[place + 4 : place + 7])
        message += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, message = Record.FromString(message), b""
            if record.WhichOneof("record_type") == "history":
                yield record.history


class Begun:
    """A run of the user's, which is not ended."""

    def __init__(self):
        self.rows = []

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        raise AssertionError("it was ended")


@pytest.mark.parametrize("door", [training.wandb, training.trackio], ids=["wandb", "trackio"])
def test_a_run_that_the_user_has_begun_goes_on(door):
    begun = Begun()
    wrote = run(door(begun, every=3))
    check(by_name(begun.rows), wrote)
    epochs = Begun()
    run(door(epochs, every=0))
    assert [step for step, _ in epochs.rows] == [5, 10]
    with pytest.raises(ConfigError, match="a run that is there needs no project"):
        door(begun, project="a")
    with pytest.raises(ConfigError, match="every must be an integer >= 0"):
        door(begun, every=-1)

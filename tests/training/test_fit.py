"""`fit`: the same numbers as a loop written by hand, and what a user meets around it."""

import json
import re
import signal
import threading
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, data, layers, losses, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from jaxnet.training import EarlyStopping, targets
from jaxnet.training.devices import Place
from jaxnet.training.feed import Resident
from jaxnet.training.run import Run
from jaxnet.training.weighted import Weighted
from tests.training import calls

RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((50, 6)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)
TRAIN, VALIDATION = (X[:37], LABELS[:37]), (X[37:], LABELS[37:])
NET = layers.chain(layers.dense(8), layers.batch_norm(), activations.relu, layers.dropout(0.2), layers.dense(3))
ADAM = optimizers.adam(1e-2)
LINEAR, SGD = layers.dense(3), optimizers.sgd(0.1)
CE = losses.softmax_cross_entropy


def accuracy(logits, labels):
    return jnp.mean((logits.argmax(-1) == labels).astype(jnp.float32))


def fit(data=TRAIN, **options):
    options = {"epochs": 3, "progress": False} | ({"batch_size": 8} if isinstance(data, tuple) else {}) | options
    net, loss, optimizer = (options.pop(n, d) for n, d in (("net", NET), ("loss", CE), ("optimizer", ADAM)))
    return calls.fit(net, loss, optimizer, data, **options)


def linear(data=TRAIN, **options):
    """Of one dense layer and SGD, for what asks nothing of the network: a third of the time to compile."""
    return fit(data, **{"net": LINEAR, "optimizer": SGD} | options)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, _host(a), _host(b))


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), _host(a), _host(b))


def _host(tree):
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize("drop_last", [True, False])
def test_equals_the_loop_written_by_hand(drop_last):
    result = fit(drop_last=drop_last, key=5, seed=7, validation=VALIDATION, metrics={"accuracy": accuracy})
    train_state = training.init(NET, ADAM, X[:1], 5)
    step = jax.jit(training.make_step(NET, CE, ADAM, metrics={"accuracy": accuracy}))
    predict = jax.jit(NET.apply, static_argnames="train")
    for epoch in range(3):
        values, sizes = [], []
        for batch in data.batches(*TRAIN, batch_size=8, seed=7, first_epoch=epoch, drop_last=drop_last):
            train_state, metrics = step(train_state, batch)
            values.append(jax.device_get(metrics))
            sizes.append(len(batch[0]))
        record = result.history[epoch]
        assert record["step"] == int(train_state.step) == (epoch + 1) * (4 if drop_last else 5)
        for name in ("loss", "accuracy", "grad_norm"):
            mean = np.average([v[name] for v in values], weights=sizes)
            np.testing.assert_allclose(record[name], mean, rtol=1e-5)
        squares = np.average([(v["loss"] - record["loss"]) ** 2 for v in values], weights=sizes)
        np.testing.assert_allclose(record["loss_deviation"], np.sqrt(squares), rtol=1e-3, atol=1e-6)
        logits, _ = predict(train_state.params, train_state.state, VALIDATION[0], train=False)
        np.testing.assert_allclose(record["validation_loss"], CE(logits, VALIDATION[1]), rtol=1e-5)
        np.testing.assert_allclose(record["validation_accuracy"], accuracy(logits, VALIDATION[1]))
    assert_close((result.params, result.state), (train_state.params, train_state.state))
    assert list(record)[:4] == ["epoch", "step", "loss", "accuracy"]


def test_arrays_lists_loaders_and_functions_of_the_epoch_are_one():
    def of_epoch(epoch):
        return data.batches(*TRAIN, batch_size=8, first_epoch=epoch, drop_last=True)

    streamed = fit(of_epoch).train_state
    assert_close(streamed, fit().train_state)  # a program with many steps rounds as it likes
    endless = (batch for epoch in range(100) for batch in of_epoch(epoch))
    assert_same(fit(endless, steps_per_epoch=4).train_state, streamed)
    fixed = list(of_epoch(0))
    assert_same(fit(fixed).train_state, fit(lambda epoch: fixed).train_state)
    assert_same(fit(fixed, epochs=2).train_state, fit(fixed, steps_per_epoch=8, epochs=1).train_state)


def test_trees_of_arrays_are_data_too():
    def init(key, x):
        return {"slope": jnp.ones(())}, ()

    def apply(params, state, x, *, train, key=None):
        return {"sum": params["slope"] * (x["a"] + x["b"])}, state

    net = layers.Layer(init, apply)
    x = {"a": X[:, :1], "b": X[:, 1:2]}
    target = {"sum": 2 * (X[:, :1] + X[:, 1:2])}
    result = fit((x, target), net=net, loss=lambda p, t: losses.mse(p["sum"], t["sum"]), epochs=60, batch_size=10)
    assert abs(result.params["slope"] - 2) < 0.1


def test_early_stopping_returns_the_best_weights():
    target = (X[:37, :1] > 0).astype(np.float32)
    rising = optimizers.sgd(lambda count: jnp.where(count < 8, 0.05, 2.5))  # learns, then diverges
    weights = []
    result = fit(
        (X[:37], target), net=layers.dense(1), loss=losses.mse, optimizer=rising, epochs=50, early_stopping=3,
        validation=(X[37:], (X[37:, :1] > 0).astype(np.float32)),
        callbacks=[lambda record, train_state: weights.append(jax.device_get(train_state.params))],
    )  # fmt: skip
    best = int(np.argmin(result.history["validation_loss"]))
    assert len(result.history) == best + 1 + 3
    assert best < len(result.history) - 1
    assert_same(result.params, weights[best])
    assert any((a != b).any() for a, b in zip(_host(result.params), _host(result.train_state.params), strict=True))


@pytest.mark.parametrize(
    ("mode", "change", "values", "best", "waited"),
    [
        ("min", 0, [3, 2, 2, np.nan, 1], [0, 1, 4], 0),
        ("min", 0, [np.nan, np.nan, 5, np.nan], [2], 1),
        ("max", 0, [3, 4, np.nan, 4], [0, 1], 2),
        ("min", 0.5, [3, 2.6, 2.4, 2.0], [0, 2], 1),
        ("min", 0, [-np.inf, 1, 2], [0], 2),
    ],
)
def test_nan_is_never_an_improvement(mode, change, values, best, waited):
    from jaxnet.training.early_stopping import Best

    tracker = Best(EarlyStopping(9, "loss", mode, change))
    improved = [i for i, value in enumerate(values) if tracker.improved({"epoch": i + 1, "loss": value})]
    assert (improved, tracker.waited) == (best, waited)


def test_a_callback_ends_the_run():
    result = linear(epochs=10, callbacks=[lambda record, train_state: record["epoch"] == 2])
    assert len(result.history) == 2


def test_training_goes_on_from_given_weights():
    first = fit(epochs=2)
    second = fit(start=(first.params, first.state), epochs=1)
    assert second.history[0]["loss"] < first.history[0]["loss"]
    assert int(second.train_state.step) == 4
    assert_same(first.params, fit(epochs=2).params)  # what was given is not donated


def test_one_program_for_all_steps(caplog):
    traces = []

    def loss(logits, labels):
        traces.append(isinstance(logits, jax.core.Tracer))
        return CE(logits, labels)

    with jax.log_compiles():
        fit(loss=loss, epochs=6, validation=VALIDATION)
    assert caplog.text.count("Finished XLA compilation of jit(steps)") == 1
    assert sum(traces) <= 6  # two checks of labels, the step, and in evaluation the shapes, a batch and all


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [None, 2])
def test_resuming_between_epochs_changes_no_bit(tmp_path, early_stopping):
    options = {"validation": VALIDATION, "early_stopping": early_stopping, "metrics": {"accuracy": accuracy}}
    unbroken = fit(epochs=5, **options)
    for epochs in (2, 5):
        resumed = fit(epochs=epochs, keep=tmp_path, **options)
    assert_same(resumed[:2], unbroken[:2])
    assert_same(resumed.train_state, unbroken.train_state)
    columns = [name for name in unbroken.history.names if name not in ("seconds", "steps_per_second")]
    for name in columns:
        np.testing.assert_array_equal(resumed.history[name], unbroken.history[name])
    again = fit(epochs=5, keep=tmp_path, **options)  # nothing is left to do
    assert_same(again[:2], unbroken[:2])


def interrupt(number=signal.SIGTERM):
    """What `kill` and Ctrl-C do to a process, whose main thread handles it."""
    signal.pthread_kill(threading.main_thread().ident, number)


def assert_left_cleanly(run, capsys, name="SIGTERM"):
    with pytest.raises(SystemExit if name == "SIGTERM" else KeyboardInterrupt) as left:
        run()
    if name == "SIGTERM":
        assert left.value.code == 143
    else:
        assert re.fullmatch(r"fit: saved at step \d+ .*; the same call goes on from there", str(left.value))
    assert left.value.train_state.step > 0
    assert re.search(rf"{name}: saved at step \d+ \(epoch \d+\) in .*; the same call goes on", capsys.readouterr().out)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_two_steps_loses_nothing(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", 0)  # one step a dispatch
    callbacks = [lambda record, train_state: interrupt(number) if record["epoch"] == 2 else None]
    assert_left_cleanly(
        lambda: fit(epochs=4, keep=tmp_path, callbacks=callbacks, early_stopping=9, validation=VALIDATION),
        capsys,
        number.name,
    )
    saved = training.read_metadata(training.Checkpoints(tmp_path).latest())
    assert (saved["step"], saved["step_of_epoch"], saved["history"]["records"]) == (9, 1, 2)
    if number == signal.SIGINT:  # after which the rest is the same
        return
    lines = []
    resumed = fit(epochs=4, keep=tmp_path, early_stopping=9, validation=VALIDATION, progress=lines.append)
    assert "epoch 2 of 4 is done, and 1 steps of the next" in " ".join(lines)
    unbroken = fit(epochs=4, early_stopping=9, validation=VALIDATION)
    assert_same(resumed.train_state, unbroken.train_state)
    assert_same(resumed[:2], unbroken[:2])
    np.testing.assert_array_equal(resumed.history["loss"], unbroken.history["loss"])


def test_steps_skipped_before_a_stop_count_after_it(tmp_path, monkeypatch, capsys):
    """In the epoch's record, and in the row at which the run ends."""
    monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", 0)  # one step a dispatch
    bad = np.isin(np.arange(32) // 8, [0, 1, 3])[:, None]  # of 4 batches the first two and the last overflow
    x, y = np.where(bad, X[:32] * np.float32(1e30), X[:32]), X[:32, :1]
    options = {"net": layers.dense(1), "loss": losses.mse, "shuffle": False}
    options |= {"early_stopping": 9, "validation": (X[:8], X[:8, :1])}
    callbacks = [lambda record, train_state: interrupt() if record["epoch"] == 2 else None]
    for directory in (tmp_path / "counted", tmp_path / "in a row"):
        assert_left_cleanly(lambda at=directory: fit((x, y), keep=at, callbacks=callbacks, **options), capsys)
        saved = training.read_metadata(training.Checkpoints(directory).latest())
        assert (saved["step"], saved["step_of_epoch"], saved["skipped"]) == (9, 1, 1)
    assert fit((x, y), keep=tmp_path / "counted", **options).history["skipped"].tolist() == [3, 3, 3]
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* last was step 9 \(epoch 3, batch 1"):
        fit((x, y), keep=tmp_path / "in a row", max_skipped=3, **options)


def stream(epochs=range(3), stop_at=None):
    for epoch in epochs:
        for i, batch in enumerate(data.batches(*TRAIN, batch_size=8, first_epoch=epoch, drop_last=True)):
            if 4 * epoch + i == stop_at:
                interrupt()
            yield batch


@pytest.fixture(scope="module")
def streamed():
    """What the stream trains to, unbroken."""
    return fit(stream(), steps_per_epoch=4).train_state


@pytest.mark.parametrize("endless", [False, True])
def test_a_stream_resumes_in_the_middle_of_an_epoch(tmp_path, capsys, endless, streamed):
    def source(stop_at=None):
        return stream(stop_at=stop_at) if endless else lambda epoch: stream([epoch], stop_at)

    options = {"steps_per_epoch": 4} if endless else {}
    assert_left_cleanly(lambda: fit(source(6), keep=tmp_path, **options), capsys)
    assert 0 < training.read_metadata(training.Checkpoints(tmp_path).latest())["step"] < 12
    resumed = fit(source(), keep=tmp_path, **options)
    assert_same(resumed.train_state, streamed)


class Positioned:
    """An iterator that can say where it is, as Grain's can."""

    def __init__(self, stop_at=None):
        self.batches, self.at, self.read, self.stop_at = list(stream()), 0, [], stop_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == self.stop_at:
            interrupt()
        self.read.append(self.at)
        self.at += 1
        return self.batches[self.at - 1]

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def test_an_iterator_with_a_position_is_not_read_again(tmp_path, capsys, streamed):
    assert_left_cleanly(lambda: fit(Positioned(7), steps_per_epoch=4, keep=tmp_path), capsys)
    step = training.read_metadata(training.Checkpoints(tmp_path).latest())["step"]
    source = Positioned()
    resumed = fit(source, steps_per_epoch=4, keep=tmp_path)
    assert source.read == [0, *range(step, 12)]  # the first, for its shape
    assert_same(resumed.train_state, streamed)


def test_an_iterator_that_runs_on_is_not_read_again_between_epochs(tmp_path, streamed):
    fit(Positioned(), steps_per_epoch=4, epochs=2, keep=tmp_path)
    source = Positioned()
    resumed = fit(source, steps_per_epoch=4, keep=tmp_path)
    assert source.read == [0, 8, 9, 10, 11]
    assert_same(resumed.train_state, streamed)


def test_of_several_processes_no_position_is_saved(monkeypatch):
    run = Run(training.init(NET, ADAM, X[:1], 0), lambda state: state.params, None)
    run.position = {"at": 3}
    assert run.metadata["position"] == {"dict": [["at", 3]]}
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert run.metadata["position"] is None


def test_a_loader_is_begun_once_an_epoch():
    begun = []

    class Loader:
        def __iter__(self):
            begun.append(1)
            return iter([(X[:8], LABELS[:8])] * 2)

    linear(Loader(), epochs=3)
    assert len(begun) == 3


def test_a_signal_in_the_last_callback_ends_the_program_too(tmp_path, capsys):
    def stop(record, _):
        if record["epoch"] == 2:
            interrupt()

    assert_left_cleanly(lambda: linear(epochs=2, keep=tmp_path, callbacks=[stop]), capsys)
    assert len(linear(epochs=2, keep=tmp_path).history) == 2


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    options = {"epochs": 5, "keep": tmp_path, "early_stopping": 4, "validation": VALIDATION}
    assert len(linear(callbacks=[lambda record, _: record["epoch"] == 2], **options).history) == 2
    assert len(linear(**options).history) == 2


def test_a_best_by_another_measure_is_refused(tmp_path):
    options = {"keep": tmp_path, "validation": VALIDATION, "metrics": {"accuracy": accuracy}}
    last = linear(epochs=2, early_stopping=3, **options).history[-1]
    kept = training.read_metadata(training.Checkpoints(tmp_path).latest())
    assert kept["metric"] == last["validation_loss"]  # of a loss, less is better
    with pytest.raises(ConfigError, match=r"watched validation_loss \(min\), and this call watches validation_acc"):
        linear(epochs=4, early_stopping=EarlyStopping(3, "validation_accuracy", "max"), **options)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    linear(keep=tmp_path)
    with pytest.raises(ConfigError, match=r"what differs is batch_size 8, now 4.*another directory"):
        linear(keep=tmp_path, batch_size=4)
    with pytest.raises(
        ConfigError, match=r"watched nothing \(no early_stopping\), and this call watches validation_loss"
    ):
        linear(keep=tmp_path, early_stopping=2, validation=VALIDATION)
    with pytest.raises(CheckpointError, match=r"(?s)another network .* in the file alone: 'train_state/params/bias'"):
        linear(keep=tmp_path, net=layers.dense(3, bias=False))
    with pytest.raises(CheckpointError, match="opt_state"):
        linear(keep=tmp_path, optimizer=ADAM)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def with_value(array, value):
    array = array.copy()
    array[(5,) + (0,) * (array.ndim - 1)] = value
    return array


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (DataError, "x holds nan at index", lambda: fit((with_value(X, np.nan), LABELS))),
        (DataError, "x holds inf at index", lambda: fit(validation=(with_value(X, np.inf), LABELS))),
        (DataError, "label.*3", lambda: fit((X, with_value(LABELS, 3)))),
        (DataError, "label.*-1", lambda: fit((X, with_value(LABELS, -1)))),
        (DataError, "label.*7", lambda: fit(validation=(X, with_value(LABELS, 7)))),
        (DataError, "50, 40 samples", lambda: fit((X, LABELS[:40]))),
        (DataError, "the data are empty", lambda: fit((X[:0], LABELS[:0]))),
        (DataError, "a batch of 60 does not fill from 50 samples", lambda: fit((X, LABELS), batch_size=60)),
        (ConfigError, r"a pair of arrays \(x, target\), got a tuple of 4", lambda: fit((X, LABELS, LABELS, LABELS))),
        (ConfigError, "give batch_size", lambda: fit((X, LABELS), batch_size=None)),
        (ConfigError, "batch_size must be an integer >= 1", lambda: fit((X, LABELS), batch_size=0)),
        (ConfigError, "batch_size must not be given", lambda: fit([(X, LABELS)], batch_size=8)),
        (ConfigError, "data must be arrays", lambda: fit(7)),
        (ConfigError, "epochs must be an integer >= 1", lambda: fit(epochs=0)),
        (ConfigError, "there is no validation set", lambda: fit(early_stopping=3)),
        (ConfigError, "patience must be an integer >= 1", lambda: fit(early_stopping=0, validation=VALIDATION)),
        (ConfigError, "step must be what training.stepping returns", lambda: fit(step=3)),
        (ConfigError, "^fit: loss must be callable, got an optimizer; the order is", lambda: fit(loss=ADAM, optimizer=CE)),
        (ConfigError, "^fit: net must be a layer .*a dict of kernel; give the network of these", lambda: fit(net={"kernel": X})),
        (ConfigError, "^fit: metrics must be a dict .*got 'accuracy'; for example", lambda: fit(metrics="accuracy")),
        (ConfigError, "mesh must be a jax.sharding.Mesh", lambda: fit(mesh=8)),
        (ConfigError, "callbacks must be callable", lambda: fit(callbacks=[3])),
        (DataError, "the data held no batch", lambda: fit([])),
        (DataError, "read only once", lambda: fit(stream(range(1)), epochs=2)),
        (DataError, "ended after 2 batches of an epoch of steps_per_epoch=5", lambda: fit(stream(), steps_per_epoch=5)),
        (ConfigError, r"watches 'validation_accuracy', of which .*EarlyStopping\(2, 'validation_accuracy', mode='max'\)", lambda: fit(early_stopping=EarlyStopping(2, "validation_accuracy"), validation=VALIDATION, metrics={"accuracy": accuracy})),
        (ConfigError, "mode must be one of 'min', 'max'", lambda: fit(early_stopping=EarlyStopping(2, mode="most"), validation=VALIDATION)),
        (ConfigError, "accumulate=9 parts of batches of 8 would have no example each; give at most 8", lambda: fit((X, LABELS), batch_size=8, step=training.stepping(accumulate=9))),
        (DataError, "numbers from 0 to 1, got -1 to 1; of -1 and 1 take", lambda: fit((X, np.where(X[:, :1] > 0, 1, -1).astype(np.float32)), net=layers.dense(1), loss=losses.sigmoid_cross_entropy)),
        (DataError, "numbers from 0 to 1, got 5 to 5; several classes want", lambda: fit((X, np.full((len(X), 1), 5)), net=layers.dense(1), loss=losses.sigmoid_cross_entropy)),
        (DataError, "must be distributions, values from 0 to 1 that sum to 1", lambda: fit((X, np.ones((len(X), 3), np.float32)))),
        (DataError, "must be distributions", lambda: fit(validation=(X, np.ones((len(X), 3), np.float32)))),
        (ConfigError, "watches 'x', and the history has only loss, grad_norm, learning_rate, skipped, epoch, step", lambda: fit(early_stopping=EarlyStopping(2, "x"))),
    ],
)  # fmt: skip
def test_bad_input_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def of_a_third(prediction, target, weights):
    return CE(prediction, target, weights=weights)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (CE, np.arange(50) // 49 * 5),
        (partial(losses.sigmoid_cross_entropy, positive_weight=2.0), np.full((50, 3), -1.0, np.float32)),
        (of_a_third, Weighted(np.full(50, 5), np.ones(50, np.float32))),
        (of_a_third, Weighted(np.arange(50) // 49 * 5, np.arange(50) // 49 * np.float32(1))),
    ],
    ids=["of the last row", "of a partial", "with weights", "with a weight of the last row"],
)
def test_all_targets_are_asked_of_their_loss(monkeypatch, loss, target):
    monkeypatch.setattr(targets, "ROWS", 20)
    with pytest.raises(DataError, match=r"label 5|numbers from 0 to 1"):
        targets.check_targets(LINEAR, loss, (X, target))


def test_as_many_parts_as_a_batch_has_examples():
    assert_close(linear(epochs=1, accumulate=8).params, linear(epochs=1).params)


def mean_square(prediction, target):
    return jnp.mean((prediction - target) ** 2)


def square(p, t):  # what JAX makes of p - t, which the tests forbid it
    return mean_square(p, t if t.ndim > 1 else t[None])


@pytest.mark.parametrize(
    ("loss", "target", "warns"),
    [
        (square, X[:, 0], True),
        (jax.jit(square), X[:, 0], True),
        (lambda p, t: jnp.mean(jnp.where(t.ravel()[None] >= t.ravel()[:, None], p, 0.0)), X[:, 0], False),
        (mean_square, X[:, :1], False),
        (lambda p, t: mean_square(p[:, 0], t), X[:, 0], False),
        (lambda p, t: mean_square(p.squeeze(), t), X[:, 0], False),
    ],
    ids=["a row", "under jit", "all pairs on purpose", "a column", "the loss takes the column", "or squeezes"],
)
def test_a_column_against_a_row_is_warned_of(loss, target, warns):
    seen = pytest.warns(UserWarning, match=r"^fit: the loss broadcasts .*target\[:, None\]") if warns else nullcontext()
    with seen:
        fit((X, target), net=layers.dense(1), loss=loss, optimizer=optimizers.sgd(0.0), epochs=1)


def test_of_predictions_without_a_column_nothing_is_warned():
    """What a loss makes of (batch,) and (batch,) is its own: here all pairs, of targets as they come to it."""

    def pairs(p, t):
        return mean_square(p[None], t[:, None]) if t.ndim == 1 else mean_square(p, t[:, 0])

    fit((X, X[:, 0]), net=layers.chain(layers.dense(1), lambda x: x[:, 0]), loss=pairs, optimizer=SGD, epochs=1)


def test_a_network_that_takes_no_seven_rows_is_not_blamed():
    """It is of pairs of rows; the loss is asked why it diverged."""
    net = layers.chain(layers.dense(1), lambda x: x.reshape(-1, 2, 1).reshape(-1, 1))
    with pytest.raises(NonFiniteError):
        fit([(X[:8], X[:8, 0])] * 30, net=net, loss=lambda p, t: jnp.inf * mean_square(p[:, 0], t), optimizer=SGD)


@pytest.mark.parametrize("weights", [None, "all but one"])
@pytest.mark.parametrize("loss", [losses.sigmoid_cross_entropy, jax.jit(losses.sigmoid_cross_entropy)], ids=["", "jit"])
def test_shares_are_asked_for_under_weights_and_jit(loss, weights):
    target = np.full((len(X), 1), 0.5, np.float32)
    target[5] = -1
    of = np.ones(len(X), np.float32)
    if weights is None:
        with pytest.raises(DataError, match=r"numbers from 0 to 1, got -1 to 0\.5"):
            fit((X, target), net=layers.dense(1), loss=loss)
        return
    if hasattr(loss, "lower"):
        return  # it takes no weights
    with pytest.raises(DataError, match="numbers from 0 to 1"):
        fit((X, target, of), net=layers.dense(1), loss=loss, epochs=1)
    of[5] = 0
    fit((X, target, of), net=layers.dense(1), loss=loss, epochs=1)


def test_targets_are_asked_in_pieces_of_bounded_size(monkeypatch):
    monkeypatch.setattr(targets, "NUMBERS", 6)
    asked = []

    def loss(prediction, target):
        asked.append(prediction.shape)
        return losses.softmax_cross_entropy(prediction, target)

    loss.__module__ = "jaxnet.losses.cross_entropy"
    shares = np.eye(3, dtype=np.float32)[LABELS]
    targets.check_targets(NET, loss, (X, shares))
    assert asked == [(2, 3)] * 4  # of floating point four times as many in all
    asked.clear()
    targets.check_targets(NET, loss, (X[:7], LABELS[:7]))
    assert asked == [(6, 3), (1, 3)]


def test_an_error_in_the_data_reaches_the_caller():
    def broken():
        yield TRAIN[0][:8], TRAIN[1][:8]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        linear(broken(), epochs=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * np.float32(np.nan), y), "The batch's x holds NaN or Inf"),
        (lambda x, y: (x, y + 5), "The loss refuses the batch's targets: .*label"),
    ],
)
def test_bad_batches_are_skipped_and_at_last_explained(spoil, message):
    good = [(X[:8], LABELS[:8])] * 3
    bad = [spoil(X[:8], LABELS[:8])] * 4
    result = linear([*good, *bad], epochs=1)
    assert result.history[0]["skipped"] == 4
    assert np.isfinite(result.history[0]["loss"])
    with pytest.raises(NonFiniteError, match=message) as caught:
        linear([*good, *bad], epochs=1, max_skipped=4)
    assert "4 steps in a row were not finite; the last was step 6 (epoch 1, batch 6" in str(caught.value)
    assert_same(caught.value.train_state.params, linear(good, epochs=1).params)
    assert_same(caught.value.batch, bad[0])


def test_a_run_that_never_took_a_step_is_no_success():
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* The batch's x holds NaN or Inf"):
        linear([(X[:8] * np.float32(np.nan), LABELS[:8])], epochs=3)
    with pytest.raises(
        NonFiniteError, match=r"3 steps in a row .* The batch's x holds NaN or Inf"
    ):  # the first is best
        linear([(X[:8] * np.float32(np.nan), LABELS[:8])], epochs=9, early_stopping=2, validation=VALIDATION)


def test_a_run_with_nothing_left_says_so(tmp_path):
    linear(keep=tmp_path)
    lines = []
    linear(keep=tmp_path, progress=lines.append)
    assert any("nothing is left to train: take another directory" in line for line in lines)


@pytest.mark.parametrize("target_seconds", [0.0, 100.0], ids=["one step a dispatch", "all in one"])
def test_steps_in_a_row_are_counted_within_a_dispatch(tmp_path, monkeypatch, target_seconds):
    monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", target_seconds)
    x = np.where(np.arange(48)[:, None] // 8 % 6 < 3, X[:48] * np.float32(1e30), X[:48])  # 3 of 6 batches overflow
    options = {"net": layers.dense(1), "loss": losses.mse, "shuffle": False, "keep": tmp_path}
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* last was step 2 \(epoch 1, batch 2"):
        fit((x, X[:48, :1]), epochs=3, max_skipped=3, **options)
    assert training.Checkpoints(tmp_path).latest() is not None  # the error says so


def test_a_dispatch_done_again_has_the_bits_of_single_steps(monkeypatch):
    """Without the guard a dispatch goes on after a bad step; it must leave no trace, whatever the dispatch's length."""
    x = np.where(np.arange(48)[:, None] // 8 % 3 == 1, X[:48] * np.float32(1e30), X[:48])  # batches 1 and 4 overflow
    options = {"net": layers.dense(1), "loss": losses.mse, "shuffle": False}

    def run(target_seconds, bytes_kept=2**24):
        monkeypatch.setattr("jaxnet.training.feed.TARGET_SECONDS", target_seconds)
        monkeypatch.setattr("jaxnet.training.devices.MOST_BYTES_KEPT", bytes_kept)
        return fit((x, X[:48, :1]), **options)

    short, long, guarded = run(0.0), run(100.0), run(100.0, 0)
    assert_same(short.train_state, long.train_state)
    for result in (long, guarded):
        assert result.history["skipped"].tolist() == [2, 2, 2]
        assert result.history["loss"] == pytest.approx(short.history["loss"], rel=1e-6)
    assert_close(long.train_state, guarded.train_state)
    assert (int(long.train_state.guard.total), int(long.train_state.guard.step)) == (6, 16)


def test_a_repeated_dispatch_may_meet_another_bad_step():
    """As on a device whose sums have no order: the first time step 3 is bad, when repeated step 2, and then step 0."""
    bad = iter([3, 2, 0])
    state = training.init(layers.dense(1), optimizers.sgd(0.1), X[:1], 0)
    step, unguarded = (
        training.make_step(layers.dense(1), losses.mse, optimizers.sgd(0.1), guard=guard) for guard in (True, False)
    )
    arrays = training.arrays(X[:48], X[:48, :1], batch_size=8, shuffle=False)
    feed = Resident(step, arrays, Place(None, None, True, True), unguarded=unguarded)
    program = feed._programs["unguarded"]

    def unsteady(train_state, data, rows, start, stop):
        after, measured = program(train_state, data, rows, start, stop)
        spoiled = next(bad, 99)
        if start <= spoiled < stop:
            measured["loss"] = measured["loss"].at[spoiled].set(jnp.nan)
            after = jax.tree.map(lambda leaf: leaf * np.nan if leaf.dtype == jnp.float32 else leaf, after)
        return after, measured

    feed._programs["unguarded"] = unsteady
    feed._count = 6
    progress = next(feed.epoch(state, 0, 0))
    assert progress.steps == 1
    assert len(progress.measured["loss"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(progress.train_state.params))


def test_divergence_is_named_with_its_samples_and_leaf():
    with pytest.raises(NonFiniteError, match=r"samples \[\d+, .*Lower the learning rate") as caught:
        fit((X[:37], X[:37, :1]), optimizer=optimizers.sgd(1e15), net=layers.dense(1), loss=losses.mse, max_skipped=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(caught.value.train_state.params))


# --- what is said ---------------------------------------------------------------------------------------------------


def test_lines_log_and_picture(tmp_path, capsys):
    log = tmp_path / "sub" / "history.jsonl"
    result = linear(progress=True, validation=VALIDATION, metrics={"accuracy": accuracy}, log=log)
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where there is no terminal
    lines = printed.out.splitlines()
    assert lines[0].startswith("5 of 37 samples do not fill a batch and are left out, others each epoch")
    assert re.match(r"compiled the step in [\d.e+]+ s", lines[1])
    number = r"[\d.e+-]+"
    for i, line in enumerate(lines[2:], 1):
        assert re.fullmatch(
            rf"epoch {i}/3  loss {number}  accuracy {number}  validation loss {number}  validation accuracy {number}  "
            rf"{number} steps/s  (\d+ (h|min) )?\d+ (min|s) left",
            line,
        )
    assert len(lines) == 5
    assert (
        training.History.load(log).records
        == result.history.records
        == [json.loads(text) for text in log.read_text().splitlines()]
    )
    picture = result.history.plot(tmp_path / "curves.png", "digits")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no column 'lost'; there are epoch"):
        result.history["lost"]
    log.write_text("{}\nno json\n")
    with pytest.raises(DataError, match="line 2"):
        training.History.load(log)


def test_a_bar_on_a_terminal_alone(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    linear(progress=True, epochs=2)
    printed = capsys.readouterr()
    assert "epoch 2/2" in printed.err
    assert "step" in printed.err
    assert printed.out.count("epoch ") == 2  # the lines are not drawn over


def test_silence_when_asked(capfd):
    linear(progress=False)
    assert capfd.readouterr() == ("", "")


def test_evaluation_is_exact_whatever_the_batch_size():
    params, state = fit(epochs=1)[:2]
    logits, _ = jax.jit(NET.apply, static_argnames="train")(params, state, X, train=False)
    expected = {"loss": float(CE(logits, LABELS)), "accuracy": float(accuracy(logits, LABELS))}
    for size in (1, 7, 50, 64):
        evaluate = training.make_evaluate(NET, CE, metrics={"accuracy": accuracy}, batch_size=size)
        measured = evaluate(params, state, (X, LABELS))
        assert measured == pytest.approx(expected, rel=1e-5)
    batches = [(X[:30], LABELS[:30]), (X[30:], LABELS[30:])]
    assert evaluate(params, state, batches) == pytest.approx(expected, rel=1e-5)
    assert evaluate(params, state, lambda epoch: iter(batches)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match="held no batch"):
        evaluate(params, state, iter([]))

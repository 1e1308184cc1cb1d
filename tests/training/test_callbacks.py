"""What a run tells its callbacks, step by step and epoch by epoch; and the learning rate among it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError
from jaxnet.training import History
from tests.training import calls

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
SCHEDULE = optimizers.exponential_decay(0.2, 4, 0.5)
NET = layers.dense(1)


def fit(data=(X, 2 * X), rule=None, **options):
    rule = optimizers.sgd(SCHEDULE) if rule is None else rule
    options = {"batch_size": 8, "epochs": 3, "progress": False, **options}
    return calls.fit(NET, losses.mse, rule, data, **{k: v for k, v in options.items() if v is not None})


@pytest.mark.parametrize("data", ["arrays", "stream"])
def test_every_step_is_seen_once_and_in_order(tmp_path, data):
    """And what a callback puts in the record is a column of the history, of the log, and of the line."""
    seen, lines = [], []

    class Watch:
        closed = 0

        def on_steps(self, measured, train_state):
            assert int(train_state.step) == measured["step"][-1]
            seen.append(measured)

        def __call__(self, record, train_state):
            record["largest"] = jnp.max(train_state.params["kernel"])
            record["steps_seen"] = sum(len(part["step"]) for part in seen)

        def close(self):
            self.closed += 1

    watch, batches = Watch(), [(X[i : i + 8], 2 * X[i : i + 8]) for i in range(0, 40, 8)]
    given = {"data": (X, 2 * X)} if data == "arrays" else {"data": batches, "batch_size": None}
    result = fit(**given, callbacks=[watch], log=tmp_path / "log.jsonl", progress=lines.append)
    columns = {name: np.concatenate([part[name] for part in seen]) for name in seen[0]}
    assert columns["step"].tolist() == list(range(1, 16))
    np.testing.assert_allclose(columns["learning_rate"], [SCHEDULE(i) for i in range(15)], rtol=1e-6)
    for name in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(result.history[name], columns[name].reshape(3, 5).mean(1), rtol=1e-6)
    assert result.history["steps_seen"].tolist() == [5, 10, 15]
    assert type(result.history[0]["largest"]) is float
    np.testing.assert_array_equal(History.load(tmp_path / "log.jsonl")["largest"], result.history["largest"])
    assert "largest" in lines[-1]
    assert "learning rate" not in lines[-1]
    assert watch.closed == 1


def test_true_of_a_step_ends_the_run_at_once(tmp_path):
    def enough(measured, train_state):
        return measured["step"][-1] >= 2

    calls_ = []
    options = {"callbacks": [training.per_step(enough), lambda *_: calls_.append(1)], "keep": tmp_path}
    batches = [(X[i : i + 8], 2 * X[i : i + 8]) for i in range(0, 40, 8)] * 20
    ended = fit(batches, batch_size=None, validation=(X, 2 * X), **options)
    assert len(ended.history) == len(calls_) == 1
    assert 2 <= ended.history[0]["step"] < 100
    assert "validation_loss" in ended.history.names
    again = fit(batches, batch_size=None, validation=(X, 2 * X), **options)  # it stays ended
    assert again.history[-1]["step"] == ended.history[-1]["step"]


def test_processes_with_other_callbacks_meet_as_often(monkeypatch):
    """So that none waits for ever for one that was given a tracker, or for one without."""
    met = []
    monkeypatch.setattr("jaxnet.training.devices.any_process", lambda *flags: met.append(len(flags)) or flags)
    counts = []
    for callbacks in ([], [training.per_step(lambda *_: None)]):
        met.clear()
        fit([(X, X)], batch_size=None, epochs=1, callbacks=callbacks)
        counts.append(list(met))
    assert counts[0] == counts[1]


def test_an_error_of_a_callback_keeps_the_steps():
    def fail(measured, train_state):
        raise RuntimeError("mine")

    closed = []
    watch = training.per_step(fail)
    watch.close = lambda: closed.append(1)
    with pytest.raises(RuntimeError, match="mine") as caught:
        fit(callbacks=[watch])
    assert int(caught.value.train_state.step) > 0
    assert closed == [1]


@pytest.mark.parametrize("value", [np.ones(2), "text", None], ids=["array", "text", "None"])
def test_what_is_no_number_is_refused_in_a_record(value):
    with pytest.raises(ConfigError, match=r"a callback has put 'mine' in the record of epoch 1, a .*a number an epoch"):
        fit(callbacks=[lambda record, state: record.update(mine=value)])


def test_callbacks_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="per_step: function must be callable"):
        training.per_step(3)


def rates(rule, steps=3):
    """What the training step measures, and the update of a gradient of ones."""
    step = jax.jit(training.make_step(NET, losses.mse, rule))
    train_state = training.init(NET, rule, X, 0)
    found = []
    for _ in range(steps):
        train_state, measured = step(train_state, (X, 2 * X))
        found.append({name: float(value) for name, value in measured.items() if name.startswith("learning_rate")})
    return found


RULES = {
    "a number": (optimizers.adam(0.1), [0.1] * 3),
    "a schedule": (optimizers.adamw(SCHEDULE), [SCHEDULE(i) for i in range(3)]),
    "inside others": (
        optimizers.skip_nonfinite(
            optimizers.master_copy(
                optimizers.lookahead(
                    optimizers.flat(
                        optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.rmsprop(SCHEDULE))
                    ),
                    2,
                    0.5,
                )
            )
        ),
        [SCHEDULE(i) for i in range(3)],
    ),
    "averaged": (optimizers.ema(optimizers.swa(optimizers.sgd(SCHEDULE), 1), 0.9), [SCHEDULE(i) for i in range(3)]),
    "schedule-free": (optimizers.schedule_free_sgd(0.2), [0.2] * 3),
    "muon": (optimizers.muon(0.3, others=optimizers.sgd(0.1)), [0.3] * 3),
    "optax, injected": (optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.4, 0.0, 4)), [0.4, 0.3, 0.2]),
    "optax's plateau": (
        optax.chain(optax.inject_hyperparams(optax.sgd)(0.4), optax.contrib.reduce_on_plateau(0.5, 1, atol=9.0)),
        [0.4, 0.2, 0.1],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rate_is_measured_whatever_it_is_wrapped_in(name):
    rule, expected = RULES[name]
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        found = rates(rule)
    np.testing.assert_allclose([one["learning_rate"] for one in found], expected, rtol=1e-5)


def test_groups_have_rates_of_their_own_and_optax_hides_its():
    rule = optimizers.partition({"bias": optimizers.sgd(0.5), "*": optimizers.adam(SCHEDULE)})
    found = rates(rule, 2)
    expected = [{"learning_rate bias": 0.5, "learning_rate *": float(SCHEDULE(i))} for i in range(2)]
    assert found == [pytest.approx(one) for one in expected]
    assert rates(optax.sgd(0.1), 1) == [{}]

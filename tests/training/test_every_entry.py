"""What must hold wherever gradients are taken: arrays, streams, steps of the user's own, sweeps, two players."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, NonFiniteError
from jaxnet.training import state as states
from jaxnet.training.feed import Resident
from tests.training import calls

X = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5]])
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 64, 8)]
NET = layers.dense(1)
OPTIONS = {"progress": False}


def fit_arrays(net, loss, optimizer, data=(X, Y), **options):
    fit = calls.fit(net, loss, optimizer, data, **{"epochs": 3, "batch_size": 8, **OPTIONS, **options})
    return fit.params, fit.history, fit.train_state


def fit_stream(net, loss, optimizer, data=(X, Y), **options):
    batches = [jax.tree.map(lambda a, i=i: a[i : i + 8], data) for i in range(0, len(data[0]), 8)]
    fit = calls.fit(net, loss, optimizer, batches, **{"epochs": 3, **OPTIONS, **options})
    return fit.params, fit.history, fit.train_state


def train_own_step(net, loss, optimizer, data=(X, Y), **options):
    """A step that measures nothing but its loss, and has no guard."""

    def step(train_state, batch):
        def objective(params):
            return loss(net.apply(params, train_state.state, batch[0], train=True)[0], batch[1])

        value, grads = jax.value_and_grad(objective)(train_state.params)
        grads = optimizers.conjugate(grads)
        updates, opt_state = optimizer.update(grads, train_state.opt_state, train_state.params)
        params = optimizers.apply_updates(train_state.params, updates)
        return train_state._replace(params=params, opt_state=opt_state, step=train_state.step + 1), {"loss": value}

    begun = training.init(net, optimizer, data[0][:1], 0)
    trained = calls.train(step, begun, data, **{"epochs": 3, "batch_size": 8, **OPTIONS, **options})
    return trained.train_state.params, trained.history, trained.train_state


def train_gan(net, loss, optimizer, data=(X, Y), **options):
    """A generator that is judged by its distance alone, beside a discriminator that judges nothing."""
    judge = layers.stateless(lambda key, x: {"bias": jnp.zeros(())}, lambda p, x: p["bias"])
    step = training.make_gan_step(
        net, judge, lambda scores, other, made, real: loss(made, real), lambda real, made: (real + made) ** 2,
        optimizer, optimizers.sgd(0.1),
    )  # fmt: skip
    begun = training.init_gan(net, judge, optimizer, optimizers.sgd(0.1), data[0][:1], 0)
    trained = calls.train(step, begun, data, **{"epochs": 3, "batch_size": 8, **OPTIONS, **options})
    return trained.train_state.generator.params, trained.history, trained.train_state


ENTRIES = {"arrays": fit_arrays, "stream": fit_stream, "own step": train_own_step, "gan": train_gan}


@pytest.mark.parametrize("entry", ENTRIES)
def test_complex_parameters_descend(entry):
    net = layers.stateless(
        lambda key, x: {"z": jnp.zeros((), jnp.complex64)},
        lambda p, x: jnp.abs(p["z"] - x[:, :1].astype(jnp.complex64) * jnp.complex64(1 + 2j)) ** 2,
    )
    ones = np.ones((64, 1), np.float32)
    params, history, _ = ENTRIES[entry](
        net, lambda p, t: jnp.mean(p) + 0 * jnp.mean(t), optimizers.sgd(0.2), (ones, ones)
    )
    np.testing.assert_allclose(params["z"], 1 + 2j, atol=1e-3)
    assert history["loss"][-1] < history["loss"][0]


def test_complex_parameters_descend_in_a_sweep():
    net = layers.stateless(
        lambda key, x: {"z": jnp.zeros((), jnp.complex64)},
        lambda p, x: jnp.abs(p["z"] - x[:, :1].astype(jnp.complex64) * jnp.complex64(1 + 2j)) ** 2,
    )
    ones = np.ones((64, 1), np.float32)
    result = training.sweep(
        net, lambda p, t: jnp.mean(p) + 0 * jnp.mean(t), lambda rate: optimizers.sgd(rate), (ones, ones),
        settings=training.grid(seed=[0], rate=[0.1, 0.2]), epochs=3, batch_size=8,
    )  # fmt: skip
    np.testing.assert_allclose(result.params["z"], [1 + 2j] * 2, atol=0.02)


def at_one_step(bad, rate=0.05):
    """A schedule that is finite but at one step."""
    return optimizers.sgd(lambda count: jnp.where(count == 7, jnp.float32(bad), jnp.float32(rate)))


def without_count():
    """SGD at one step of which an update is infinite: by the state's own count, which a skipped step moves on."""
    return optax.GradientTransformation(
        lambda params: jnp.int32(0),
        lambda grads, count, params=None: (
            jax.tree.map(lambda g: jnp.where(count == 7, jnp.inf, -0.05 * g).astype(g.dtype), grads), count + 1,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("bad", "entry"), [*((np.inf, entry) for entry in ENTRIES), (np.nan, "arrays")])
def test_an_update_that_is_not_finite_is_skipped(entry, bad):
    """The optimizer's count does not move in a skipped step, so that this one stays where it is, until the run ends."""
    with pytest.raises(NonFiniteError, match=r"\d steps in a row were not finite") as ended:
        ENTRIES[entry](NET, losses.mse, at_one_step(bad), max_skipped=5)
    message = str(ended.value)
    assert "loss and gradient were finite" in message
    assert "rate" in message
    state = ended.value.train_state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    row, step = int(state.guard.in_row), int(state.step)
    assert (row, step) == (5, 12) or (entry == "stream" and row == step - 7 >= 5)  # it is looked at some steps at once
    assert f"{row} steps in a row" in message
    assert f"the last was step {step - 1}" in message


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_bad_update_costs_one_step(entry):
    """A rule that is infinite once, at a step that depends on the run's step: the others are as if it had not been."""
    calls = optimizers.sgd(0.05)

    def update(grads, state, params=None, **extra):
        updates, inner = calls.update(grads, state["inner"], params)
        largest = jnp.max(jnp.abs(grads["kernel"]))  # finite, and never the same: only the batch at hand is spoiled
        spoil = jnp.abs(largest - state["mark"]) < 1e-6
        return jax.tree.map(lambda u: jnp.where(spoil, jnp.inf, u), updates), {**state, "inner": inner}

    def init(params):
        return {"inner": calls.init(params), "mark": jnp.float32(mark)}

    norms = []
    mark = -1.0
    rule = optimizers.Optimizer(init, update)
    _, clean, _ = (
        ENTRIES[entry](NET, losses.mse, rule, epochs=1, shuffle=False)
        if entry != "stream"
        else fit_stream(NET, losses.mse, rule, epochs=1)
    )
    assert clean["skipped"].sum() == 0
    # The largest gradient of step 5, found by a run of that many steps by hand.
    state = training.init(NET, rule, X[:1], 0)
    params = state.params
    if entry == "gan":
        params = training.init_gan(NET, NET, rule, rule, X[:1], 0).generator.params
    gradient = jax.jit(jax.grad(lambda p, x, y: losses.mse(NET.apply(p, (), x, train=True)[0], y)))
    for x, y in BATCHES[:6]:
        grads = gradient(params, x, y)
        norms.append(float(jnp.max(jnp.abs(grads["kernel"]))))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    mark = norms[5]
    options = {} if entry == "stream" else {"shuffle": False}
    found, history, after = ENTRIES[entry](NET, losses.mse, rule, epochs=1, **options)
    assert history["skipped"].sum() == 1
    assert int(after.guard.step) == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_stream_goes_on_from_the_state_without_the_bad_update(monkeypatch, bad):
    """Within the epoch: windows of two steps, in one of which an update is infinite."""
    monkeypatch.setattr("jaxnet.training.streamed.WINDOW", 2)

    def update(grads, state, params=None, **extra):
        return jax.tree.map(lambda g: jnp.where(jnp.abs(g) > 1e3, jnp.inf, -0.05 * g), grads), state

    rule = optimizers.Optimizer(lambda params: (), update)
    y = Y + 1e6 * (np.arange(64)[:, None] // 8 == bad).astype(np.float32)
    params, history, after = fit_stream(NET, losses.mse, rule, (X, y), epochs=1)
    assert (history["skipped"].tolist(), int(after.step)) == ([1], 8)
    others = np.arange(64) // 8 != bad
    wanted, _, _ = fit_stream(NET, losses.mse, rule, (X[others], Y[others]), epochs=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, wanted)


def test_the_skips_of_an_optimizer_count():
    optimizer = optimizers.skip_nonfinite(optimizers.sgd(lambda count: 1 / (3 - count.astype(jnp.float32))))
    for entry in (fit_arrays, fit_stream):
        with pytest.raises(NonFiniteError, match=r"[45] steps in a row were not finite"):
            entry(NET, losses.mse, optimizer, max_skipped=4)
        _, history, _ = entry(NET, losses.mse, optimizer, epochs=1)
        assert history["skipped"].tolist() == [5]


def test_no_checkpoint_is_written_that_is_not_finite(tmp_path, monkeypatch):
    """Of a state too large to keep, the run ends, and what was saved before is good."""
    monkeypatch.setattr("jaxnet.training.devices.MOST_BYTES_KEPT", 0)
    for entry in (fit_arrays, fit_stream):
        directory = tmp_path / entry.__name__
        with pytest.raises(NonFiniteError, match=r"parameters are not finite.*loss and gradient were") as ended:
            entry(NET, losses.mse, at_one_step(np.inf), keep=directory, seconds=0)
        assert "rate" in str(ended.value)
        for path in directory.glob("*-step-*"):
            step = training.read_metadata(path)["step"]
            assert step <= 7
            params = training.load(path, NET.init(0, X)[0], under="train_state/params")
            assert np.isfinite(params["kernel"]).all()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ConfigError, r"member 1 \(rate=-0.01\): sgd: learning_rate must be", lambda: sweep(rate=[0.1, -0.01])),
        (ConfigError, "sweep: rate must be a finite number", lambda: sweep(rate=[np.nan])),
        (ConfigError, r"grid: rate must be a list of values, got 0.1; a single one is \[0", lambda: sweep(rate=0.1)),
        (ConfigError, r"grid: rate must be a list of values, got 'ab'", lambda: sweep(rate="ab")),
        (ConfigError, "grid: every name needs at least one value", lambda: sweep(rate=[])),
    ],
)  # fmt: skip
def test_a_sweep_checks_what_fit_checks(error, message, call):
    with pytest.raises(error, match=message):
        call()


def sweep(**values):
    return training.sweep(
        NET, losses.mse, lambda rate: optimizers.sgd(rate), (X, Y), settings=training.grid(seed=[0], **values),
        epochs=1, batch_size=8,
    )  # fmt: skip


def test_a_sweep_keeps_rates_in_64_bits(x64):
    rates = [0.1, 0.1 + 1e-12]
    result = training.sweep(
        NET, losses.mse, lambda rate: optimizers.sgd(rate), (X.astype(np.float64), Y.astype(np.float64)),
        settings=training.grid(seed=[0], rate=rates), epochs=1, batch_size=64,
    )  # fmt: skip
    assert result.params["kernel"].dtype == jnp.float64
    assert (result.params["kernel"][0] != result.params["kernel"][1]).all()


@pytest.mark.parametrize("rates", [[1.0, 1e-45], [1e-45, 1.0]])
def test_a_large_sweep_does_not_call_a_spoiled_network_the_best(monkeypatch, rates):
    """As below, of members too large for their updates to be looked at, and with equal losses."""
    monkeypatch.setattr(sys.modules[training.sweep.__module__], "MOST_BYTES_KEPT", 0)
    net = layers.stateless(lambda key, x: {"bias": jnp.zeros(())}, lambda p, x: jax.nn.relu(0 * x[:, :1] + p["bias"]))
    result = training.sweep(
        net, lambda p, t: jnp.mean(jnp.where(jnp.isfinite(p), p, 0)) + 1 + 0 * jnp.mean(t),
        lambda rate: optimizers.sgd(lambda count: 1 / rate - 1), (X, np.ones_like(Y)),
        settings={"seed": [0, 0], "rate": rates}, epochs=1, batch_size=8,
    )  # fmt: skip
    assert result.best == rates.index(1.0)


def test_a_sweep_does_not_call_a_spoiled_network_the_best():
    """An infinite bias before a relu: the loss is finite, and low."""
    net = layers.stateless(lambda key, x: {"bias": jnp.zeros(())}, lambda p, x: jax.nn.relu(0 * x[:, :1] + p["bias"]))
    result = training.sweep(
        net, lambda p, t: jnp.mean(jnp.where(jnp.isfinite(p), p, 0)) + 1 + 0 * jnp.mean(t),
        lambda rate: optimizers.sgd(lambda count: 1 / rate - 1), (X, np.ones_like(Y)),
        settings={"seed": [0, 1], "rate": [1.0, 1e-45]}, epochs=1, batch_size=8,
    )  # fmt: skip
    assert result.best in (0, -1)


@pytest.mark.parametrize("answer", [True, np.True_, np.bool_(True), jnp.bool_(True), np.array(True)])
def test_a_callback_ends_the_run_with_any_true(answer):
    assert len(fit_arrays(NET, losses.mse, optimizers.sgd(0.1), callbacks=[lambda record, _: answer])[1]) == 1


def test_a_callback_goes_on_with_anything_else():
    answers = [False, None, np.False_, 1, 7.5, "yes", [True], np.ones(3, bool), {"a": 1}]
    left = iter(answers)
    options = {"epochs": len(answers), "callbacks": [lambda record, _: next(left)]}
    assert len(fit_arrays(NET, losses.mse, optimizers.sgd(0.1), **options)[1]) == len(answers)


OURS = ["epoch", "step", "loss", "penalty", "grad_norm", "loss_deviation", "skipped", "seconds", "steps_per_second"]


@pytest.mark.parametrize("name", [*OURS, "validation_loss", "validation_x", 3])
def test_a_metric_may_not_take_a_column_of_ours(name):
    with pytest.raises(ConfigError, match=f"a metric needs a name of its own, a string, got {name!r}"):
        fit_arrays(NET, losses.mse, optimizers.sgd(0.1), metrics={name: losses.mae})
    if name in ("epoch", "seconds", "validation_loss"):
        step = training.make_step(NET, losses.mse, optimizers.sgd(0.1))

        def named(train_state, batch):
            train_state, measured = step(train_state, batch)
            return train_state, measured | {name: measured["loss"]}

        begun = training.init(NET, optimizers.sgd(0.1), X[:1], 0)
        for data in ({"data": (X, Y), "batch_size": 8}, {"data": BATCHES}):
            with pytest.raises(ConfigError, match=f"the step measures '{name}'.*use another"):
                calls.train(named, begun, epochs=1, **data, **OPTIONS)


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val_loss", "did you mean 'validation_loss'"),
        ("validation_los", "did you mean 'validation_loss'"),
        ("mea", "did you mean 'mae'"),
        (
            "penalty",
            "the history has only loss, mae, grad_norm, learning_rate, skipped, validation_loss, validation_mae",
        ),
        (3, "must be the name of a column of the history, such as 'validation_loss', got 3"),
    ],
)
def test_a_column_to_watch_is_looked_for_before_the_first_step(monitor, message):
    def never(record, train_state):
        raise AssertionError

    with pytest.raises(ConfigError, match=message):
        fit_arrays(
            NET, losses.mse, optimizers.sgd(0.1), validation=(X, Y), metrics={"mae": losses.mae},
            early_stopping=training.EarlyStopping(2, monitor), callbacks=[never],
        )  # fmt: skip


def test_what_fit_returns_does_not_die_with_the_state():
    fit = calls.fit(NET, losses.mse, optimizers.sgd(0.1), (X, Y), epochs=1, batch_size=8, progress=False)
    step = jax.jit(training.make_step(NET, losses.mse, optimizers.sgd(0.1)), donate_argnums=0)
    step(fit.train_state, BATCHES[0])
    assert fit.train_state.params["kernel"].is_deleted()
    np.asarray(fit.params["kernel"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_parameters_without_a_master_copy_are_warned_of(dtype):
    x, y = jnp.asarray(X, dtype), jnp.asarray(Y, dtype)
    with pytest.warns(UserWarning, match=rf"parameters are {jnp.dtype(dtype).name}.*optimizers.master_copy") as warned:
        training.fit(NET, losses.mse, optimizers.sgd(0.1), (x, y), epochs=1, batch_size=8, progress=False)
    assert [w.filename for w in warned] == [__file__]
    fit_arrays(NET, losses.mse, optimizers.master_copy(optimizers.sgd(0.1)), (x, y))


def test_an_update_that_is_not_finite_is_skipped_in_a_sweep():
    """Member by member as `fit` does: the second one has a rate that is infinite at its third step and from then on."""
    result = training.sweep(
        NET, losses.mse, lambda rate, at: optimizers.sgd(lambda count: jnp.where(count == at, jnp.inf, rate)), (X, Y),
        settings={"seed": [0, 1], "rate": [0.05, 0.05], "at": [99, 3]}, epochs=2, batch_size=8,
    )  # fmt: skip
    assert np.isfinite(result.params["kernel"]).all()
    assert result.history["skipped"].tolist() == [[0, 5], [0, 8]]
    alone = calls.fit(
        NET, losses.mse, optimizers.sgd(lambda count: jnp.where(count == 3, jnp.inf, 0.05)), (X, Y), key=1, seed=1,
        epochs=2, batch_size=8, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(result.params["kernel"][1], alone.params["kernel"], rtol=1e-5)


@pytest.mark.parametrize("entry", [fit_arrays, fit_stream])
def test_a_large_state_that_ends_early_is_looked_at(monkeypatch, entry):
    monkeypatch.setattr("jaxnet.training.devices.MOST_BYTES_KEPT", 0)
    with pytest.raises(NonFiniteError, match="parameters are not finite"):
        entry(NET, losses.mse, at_one_step(np.inf), epochs=50, callbacks=[lambda record, _: record["epoch"] == 2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_parameters_are_looked_at_in_any_dtype(dtype, monkeypatch):
    """By NumPy, which does not count bfloat16 among its numbers, and by a program where they are large."""
    for most in (states.MOST_BYTES_READ, 0):
        monkeypatch.setattr(states, "MOST_BYTES_READ", most)
        for last in (1.0, np.inf, np.nan):
            params = {"a": jnp.arange(2), "b": jnp.array([1.0, last], dtype), "c": jnp.ones(2)}
            assert states.sound(types.SimpleNamespace(params=params)) == (last == 1.0)


@pytest.mark.parametrize("entry", [fit_arrays, fit_stream])
def test_parameters_that_are_infinite_on_purpose_can_be_trained_with(entry):
    """A mask that nobody learns."""

    def masked(params, x):
        mask = jnp.isneginf(jax.lax.stop_gradient(params["mask"]))
        return jnp.sum(jnp.where(mask[None], 0, x * params["w"][None]), -1, keepdims=True)

    net = layers.stateless(lambda key, x: {"w": jnp.ones(3), "mask": jnp.array([0.0, 0.0, -jnp.inf])}, masked)
    _, history, _ = entry(net, losses.mse, optimizers.sgd(0.1))
    assert history["skipped"].sum() == 0
    assert history["loss"][-1] < history["loss"][0]


def test_a_guard_that_looks_at_the_update():
    optimizer = at_one_step(np.inf)
    step = jax.jit(training.make_step(NET, losses.mse, optimizer, guard="update"))
    state, skips = training.init(NET, optimizer, X[:1], 0), []
    for i in range(10):
        state, measured = step(state, BATCHES[i % 8])
        skips.append(int(measured["skipped"]))
    assert skips == [0] * 7 + [1] * 3
    assert np.isfinite(state.params["kernel"]).all()
    with pytest.raises(ConfigError, match="guard must be True or False"):
        training.make_step(NET, losses.mse, optimizer, guard="updates")


@pytest.mark.parametrize("entry", [fit_arrays, fit_stream])
def test_fit_takes_the_guard_that_stepping_names(entry):
    params, history, state = entry(NET, losses.mse, at_one_step(np.inf), guard="update", epochs=2)
    assert history["skipped"].tolist() == [1, 8]
    assert np.isfinite(params["kernel"]).all()
    assert int(state.guard.total) == 9
    with pytest.raises(ConfigError, match=r"^stepping: guard must be True or 'update', got False; .* make_step"):
        training.stepping(guard=False)


def test_a_step_without_a_guard_says_so_where_it_is_needed():
    step = training.make_step(NET, lambda p, y: losses.mse(p, y) + jnp.nan, optimizers.sgd(0.1), guard=False)
    state = training.init(NET, optimizers.sgd(0.1), X, 0)
    with pytest.raises(NonFiniteError, match="the step has no guard, so that they were taken; give it one"):
        training.train(step, state, (X, Y), epochs=9, batch_size=8, max_skipped=3, progress=False)


def test_a_state_of_the_users_own_is_a_named_tuple_or_a_dataclass():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Mine:
        params: dict
        step: jax.Array
        guard: training.Guard

    def step(state, batch):
        value = losses.mse(batch[0] @ state.params["w"], batch[1])
        w = state.params["w"] + jnp.where(state.step == 5, jnp.inf, 0.0)
        return dataclasses.replace(state, params={"w": w}, step=state.step + 1), {"loss": value}

    guard = training.init(NET, optimizers.sgd(0.1), X[:1], 0).guard
    begun = Mine({"w": jnp.ones((3, 1))}, jnp.int32(0), guard)
    options = {"epochs": 1, "weights": lambda state: state.params, "progress": False}
    trained = calls.train(step, begun, (X, Y), batch_size=8, **options)
    assert trained.history["skipped"].tolist() == [1]
    assert np.isfinite(trained.best["w"]).all()
    with pytest.raises(ConfigError, match="a named tuple or a dataclass with the fields step and guard, got dict"):
        calls.train(step, {"step": 1, "guard": guard}, (X, Y), batch_size=8, **options)


def test_the_skips_of_an_optimizer_cost_no_second_run(monkeypatch):
    """What the optimizer has left as it was need not be done again."""
    runs = []
    monkeypatch.setattr(Resident, "_run", lambda self, *a, run=Resident._run: runs.append(a[0]) or run(self, *a))
    optimizer = optimizers.skip_nonfinite(optimizers.sgd(lambda count: 1 / (3 - count.astype(jnp.float32))))
    _, history, _ = fit_arrays(NET, losses.mse, optimizer, epochs=1)
    assert history["skipped"].tolist() == [5]
    assert set(runs) == {"unguarded"}

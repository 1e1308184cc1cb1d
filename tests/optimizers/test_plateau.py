"""A rate that falls on a plateau: optax's and PyTorch's, by steps and by epochs, and the same in a run that goes on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError

CONFIGS = {
    "usual": {"factor": 0.5, "patience": 3},
    "averaged": {"patience": 2, "accumulation_size": 3, "rtol": 0.0, "atol": 0.1},
    "cooling": {"factor": 0.5, "patience": 1, "cooldown": 2, "min_scale": 0.05, "rtol": 0.05},
}
VALUES = st.lists(st.sampled_from([1.0, 0.99996, 0.98, 0.9, 0.5, 1.5, -1.0, np.nan]), min_size=30, max_size=30)


@functools.cache
def scales(ours, name):
    rule = (optimizers if ours else optax.contrib).reduce_on_plateau(**CONFIGS[name])

    def step(state, value):
        updates, state = rule.update(jnp.ones(1), state, value=value)
        return state, updates[0]

    return jax.jit(lambda values: jax.lax.scan(step, rule.init(jnp.ones(1)), values)[1])


@pytest.mark.parametrize("name", CONFIGS)
@given(values=VALUES)
def test_it_is_optaxs(name, values):
    values = np.float32(values)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        theirs = scales(False, name)(values)
    np.testing.assert_allclose(scales(True, name)(values), theirs, rtol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["min", "max"])
def test_by_the_epochs_measure_it_is_pytorchs(mode):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    weight = torch.nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        sgd, mode, factor=0.5, patience=1, threshold=0.01, cooldown=1, min_lr=0.1
    )
    rule = optimizers.chain(
        optimizers.sgd(1.0),
        optimizers.reduce_on_plateau(0.5, 2, rtol=0.01, cooldown=1, min_scale=0.1, monitor="score", mode=mode),
    )
    update, state = jax.jit(rule.update), rule.init(jnp.ones(1))
    updates, state = update(jnp.ones(1), state)  # before anything was measured
    assert updates[0] == -1
    scores = np.float32([3, 2, 2, 2, 2, 2, 1, 1, 0.999, 0.999, 0.999, np.nan, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    rates = set()
    for score in scores if mode == "min" else 1 / scores:
        theirs.step(float(score))
        state = optimizers.observe(state, {"score": score})
        for _ in range(2):  # the steps of an epoch
            updates, state = update(jnp.ones(1), state)
            np.testing.assert_allclose(-updates[0], sgd.param_groups[0]["lr"], rtol=1e-6)
        rates.add(float(-updates[0]))
    assert len(rates) == 5


X = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
WATCHING = {"patience": 1, "factor": 0.5, "rtol": 0.9, "monitor": "validation_loss"}


def run(epochs, **options):
    rule = optimizers.chain(optimizers.sgd(0.25), optimizers.reduce_on_plateau(**WATCHING))
    return training.fit(
        layers.dense(1), losses.mse, rule, (X, 2 * X), epochs=epochs, batch_size=8, validation=(X, 2 * X),
        progress=False, **options,
    )  # fmt: skip


def test_fit_and_sweep_watch_the_validation_loss_and_resume_exactly(tmp_path):
    unbroken = run(6)
    factor, best, expected = 1.0, np.inf, []
    for value in unbroken.history["validation_loss"]:
        expected.append(0.25 * factor)
        factor, best = (factor, value) if value < (1 - 0.9) * best else (factor / 2, best)
    np.testing.assert_allclose(unbroken.history["learning_rate"], expected, rtol=1e-6)
    assert len(set(expected)) > 2
    run(3, keep=tmp_path)
    resumed = run(6, keep=tmp_path)
    for a, b in zip(jax.tree.leaves(unbroken.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(resumed.history["learning_rate"], unbroken.history["learning_rate"])

    members = training.sweep(
        layers.dense(1), losses.mse,
        lambda factor: optimizers.chain(
            optimizers.sgd(0.25), optimizers.reduce_on_plateau(**{**WATCHING, "factor": factor})
        ),
        (X, 2 * X), settings={"seed": [0, 0], "factor": [0.9, 0.5]}, epochs=6, batch_size=8, validation=(X, 2 * X),
    )  # fmt: skip
    np.testing.assert_allclose(members.history["learning_rate"][:, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(members.history["validation_loss"][:, 1], unbroken.history["validation_loss"], rtol=1e-4)
    assert (members.history["learning_rate"][-1, 0] > expected[-1]).all()


def test_the_losses_of_steps_are_watched_in_fit():
    rule = optimizers.chain(optimizers.sgd(0.25), optimizers.reduce_on_plateau(0.5, 1, rtol=0.9, accumulation_size=4))
    seen = []
    fit = training.fit(
        layers.dense(1), losses.mse, rule, (X, 2 * X), epochs=4, batch_size=8, progress=False,
        callbacks=[training.per_step(lambda measured, _: seen.extend(measured["learning_rate"]))],
    )  # fmt: skip
    assert len(seen) == fit.history[-1]["step"] == 16
    assert seen[0] == 0.25
    assert set(np.diff(np.log2(seen))) == {0, -1}


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"factor must be a finite number in \(0, 1\), got 1.0", lambda: optimizers.reduce_on_plateau(1.0)),
        ("patience must be an integer >= 1", lambda: optimizers.reduce_on_plateau(patience=0)),
        ("rtol and atol are both 0", lambda: optimizers.reduce_on_plateau(rtol=0)),
        ("mode must be one of 'min', 'max'", lambda: optimizers.reduce_on_plateau(mode="less")),
        ("once an epoch, got 'loss' with accumulation_size=2", lambda: optimizers.reduce_on_plateau(accumulation_size=2, monitor="loss")),
        (r"call update\(gradients, state, params, value=loss\)", lambda: optimizers.reduce_on_plateau().update(X, optimizers.reduce_on_plateau().init(X))),
        ("watches 'a', and there is only b", lambda: optimizers.observe(optimizers.reduce_on_plateau(monitor="a").init(X), {"b": 1.0})),
        ("fit: reduce_on_plateau watches 'validation_loss', and the history has only loss", lambda: plain(optimizers.reduce_on_plateau(monitor="validation_loss"))),
        (".*did you mean 'grad_norm'", lambda: plain(optimizers.reduce_on_plateau(monitor="gradnorm"))),
    ],
)  # fmt: skip
def test_bad_input_is_refused(message, call):
    with pytest.raises(ConfigError, match=message):
        call()


def plain(rule):
    training.fit(layers.dense(1), losses.mse, rule, (X, X), epochs=1, batch_size=8, progress=False)

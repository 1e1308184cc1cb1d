"""Many networks at once are the same networks as one after the other."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((40, 8, 2)).astype(np.float32)
LABELS = (X.mean((1, 2)) > 0).astype(np.int32)
TRAIN, VALIDATION = (X[:30], LABELS[:30]), (X[30:], LABELS[30:])
NET = layers.chain(
    layers.conv(4, 3, bias=False),
    layers.batch_norm(),
    activations.relu,
    layers.flatten(),
    layers.dropout(0.1),
    layers.dense(2),
)
CE = losses.softmax_cross_entropy


def accuracy(logits, labels):
    return jnp.mean((logits.argmax(-1) == labels).astype(jnp.float32))


def momentum_and_rate(rate, momentum):
    return optimizers.sgd(rate, momentum=momentum)


@pytest.mark.parametrize("most_flops", [0.0, np.inf], ids=["one after the other", "side by side"])
def test_each_member_is_what_fit_trains(monkeypatch, most_flops):
    monkeypatch.setattr(sys.modules["jaxnet.training.sweep"], "MOST_FLOPS_AT_ONCE", most_flops)
    settings = {"seed": [3, 3, 9], "rate": [0.1, 0.02, 0.1], "momentum": [0.9, 0.5, 0.0]}
    options = {"epochs": 3, "batch_size": 8, "validation": VALIDATION, "metrics": {"accuracy": accuracy}}
    result = training.sweep(NET, CE, momentum_and_rate, TRAIN, settings=settings, **options)
    for m in range(3):
        seed, rate, momentum = (settings[name][m] for name in ("seed", "rate", "momentum"))
        alone = training.fit(
            NET, CE, momentum_and_rate(rate, momentum), TRAIN, key=seed, seed=seed, progress=False, **options
        )
        for name in ("loss", "accuracy", "grad_norm", "validation_loss", "validation_accuracy"):
            np.testing.assert_allclose(result.history[name][:, m], alone.history[name], rtol=2e-4, atol=1e-6)
        for a, b in zip(jax.tree.leaves(result.member(m)), jax.tree.leaves(alone[:2]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert result.best == int(np.argmin(result.history["validation_loss"][-1]))
    assert result.settings["rate"].tolist() == settings["rate"]


def test_a_diverged_network_is_never_the_best_and_harms_no_other():
    def rate(rate):
        return optimizers.sgd(rate)

    def regress(rates):
        return training.sweep(
            layers.dense(1), losses.mse, rate, (X[:, 0], X[:, 0, :1]), epochs=4, batch_size=10,
            settings={"seed": [0] * len(rates), "rate": rates},
        )  # fmt: skip

    together = regress([1e30, 0.1])
    assert together.best == 1
    np.testing.assert_allclose(together.history["loss"][:, 1], regress([0.1]).history["loss"][:, 0], rtol=1e-5)


def test_skipped_steps_count_as_in_fit():
    x = np.where(np.arange(40)[:, None] == 7, X[:, 0] * np.float32(1e30), X[:, 0])
    data, options = (x, X[:, 0, :1]), {"epochs": 3, "batch_size": 10}
    rates = [1e-6, 0.1]
    result = training.sweep(layers.dense(1), losses.mse, lambda rate: optimizers.sgd(rate), data,
                            settings={"seed": [0, 0], "rate": rates}, **options)  # fmt: skip
    assert result.best == 1
    for m, rate in enumerate(rates):
        alone = training.fit(layers.dense(1), losses.mse, optimizers.sgd(rate), data, progress=False, **options)
        assert alone.history["skipped"].tolist() == [1, 1, 1]
        np.testing.assert_allclose(result.history["loss"][:, m], alone.history["loss"], rtol=1e-4)


def test_when_all_diverge_none_is_best():
    result = training.sweep(
        layers.dense(1), losses.mse, lambda rate: optimizers.sgd(rate), (X[:, 0] * np.float32(1e30), X[:, 0, :1]),
        epochs=1, batch_size=10, settings={"seed": [0, 1], "rate": [0.1, 0.2]},
    )  # fmt: skip
    assert result.best == -1


def test_grid_makes_every_combination_once():
    settings = training.grid(seed=range(3), rate=[0.1, 0.2], name=["a"])
    assert len(settings["seed"]) == 6
    assert set(zip(*(v.tolist() for v in settings.values()), strict=True)) == {
        (seed, rate, "a") for seed in range(3) for rate in (0.1, 0.2)
    }


def sweep(settings=None, train=TRAIN, **options):
    settings = {"seed": [0, 1], "rate": [0.1, 0.2]} if settings is None else settings
    options = {"epochs": 1, "batch_size": 8} | options
    return training.sweep(NET, CE, lambda rate: optimizers.sgd(rate), train, settings=settings, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ConfigError, "a 'seed' a member", lambda: sweep({"rate": [0.1]})),
        (ConfigError, "a 'seed' a member", lambda: sweep([0.1])),
        (ConfigError, "one value a member each", lambda: sweep({"seed": [0, 1], "rate": [0.1]})),
        (ConfigError, "one value a member each", lambda: sweep({"seed": [], "rate": []})),
        (ConfigError, "one value a member each", lambda: sweep({"seed": 0, "rate": 0.1})),
        (ConfigError, "seed must be an integer >= 0", lambda: sweep({"seed": [0.5], "rate": [0.1]})),
        (ConfigError, r"seeds must be below 2\*\*32", lambda: sweep({"seed": [2**32], "rate": [0.1]})),
        (ConfigError, "rate must be a finite number", lambda: sweep({"seed": [0], "rate": [np.nan]})),
        (ConfigError, "the optimizer takes rate, not momentum", lambda: sweep({"seed": [0], "momentum": [0.1]})),
        (DataError, "does not fill from 30 samples", lambda: sweep(batch_size=31)),
        (DataError, "label", lambda: sweep(train=(X, LABELS + 2))),
        (DataError, "holds nan", lambda: sweep(train=(X * np.nan, LABELS))),
        (DTypeError, "no numeric array|must be|is no number", lambda: sweep(train=(np.array(["a"] * 9), LABELS[:9]))),
        (ConfigError, "member must be from 0 to 1, got 2", lambda: sweep().member(2)),
    ],
)
def test_bad_input_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()

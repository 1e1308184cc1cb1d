"""Many networks at once are the same networks as one after the other."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, data, layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError
from jaxnet.training.pruning import Pruning
from tests.training import calls

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
FLAT = layers.chain(layers.flatten(), layers.dense(2))
CE = losses.softmax_cross_entropy


def accuracy(logits, labels):
    return jnp.mean((logits.argmax(-1) == labels).astype(jnp.float32))


def momentum_and_rate(rate, momentum):
    return optimizers.sgd(rate, momentum=momentum)


MEMBERS = {"seed": [3, 3, 9], "rate": [0.1, 0.02, 0.1], "momentum": [0.9, 0.5, 0.0]}
OPTIONS = {"epochs": 3, "batch_size": 8, "validation": VALIDATION, "metrics": {"accuracy": accuracy}}


@pytest.fixture(scope="module")
def alone():
    """Each member as `fit` trains it; and its weights after each epoch."""
    members = []
    for seed, rate, momentum in zip(*MEMBERS.values(), strict=True):
        rule, weights = momentum_and_rate(rate, momentum), []
        keep = lambda _, s, weights=weights: weights.append(jax.device_get((s.params, s.state)))  # noqa: E731
        run = calls.fit(NET, CE, rule, TRAIN, key=seed, seed=seed, progress=False, callbacks=[keep], **OPTIONS)
        members.append((run, weights))
    return members


@pytest.mark.parametrize("most_flops", [0.0, np.inf], ids=["one after the other", "side by side"])
def test_each_member_is_what_fit_trains(monkeypatch, most_flops, alone):
    monkeypatch.setattr(sys.modules["jaxnet.training.sweep"], "MOST_FLOPS_AT_ONCE", most_flops)
    result = training.sweep(NET, CE, momentum_and_rate, TRAIN, settings=MEMBERS, **OPTIONS)
    for m, (one, _) in enumerate(alone):
        for name in ("loss", "accuracy", "grad_norm", "validation_loss", "validation_accuracy"):
            np.testing.assert_allclose(result.history[name][:, m], one.history[name], rtol=2e-4, atol=1e-6)
        for a, b in zip(jax.tree.leaves(result.member(m)), jax.tree.leaves(one[:2]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert result.best == int(np.argmin(result.history["validation_loss"][-1]))
    assert result.settings["rate"].tolist() == MEMBERS["rate"]
    assert result.epochs.tolist() == [3, 3, 3]


def close(result, alone, m, epochs, best=None):
    """Whether a member is what `fit` trains in so many epochs, and its weights those of the best, or the last."""
    one, weights = alone[m]
    assert result.epochs[m] == epochs
    for name in ("loss", "validation_loss", "validation_accuracy"):
        np.testing.assert_allclose(result.history[name][:epochs, m], one.history[name][:epochs], rtol=2e-4, atol=1e-6)
        assert np.isnan(result.history[name][epochs:, m]).all()
    expected = weights[(best or epochs) - 1]
    for a, b in zip(jax.tree.leaves(result.member(m)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_members_behind_at_a_rung_are_dropped(alone):
    result = training.sweep(
        NET, CE, momentum_and_rate, TRAIN, settings=MEMBERS, halving=training.Halving(2, first=1), **OPTIONS
    )
    first = int(np.argmin([one.history["validation_loss"][0] for one, _ in alone]))
    assert result.best == first
    for m in range(3):
        close(result, alone, m, 3 if m == first else 1)


def test_members_stop_each_at_its_time(alone):
    """By a measure that gets worse for some; the weights are those of the best epoch."""
    watch = training.EarlyStopping(1, monitor="validation_loss", mode="max")
    result = training.sweep(NET, CE, momentum_and_rate, TRAIN, settings=MEMBERS, early_stopping=watch, **OPTIONS)
    ends, scores = [], []
    for m, (one, _) in enumerate(alone):
        values = one.history["validation_loss"]
        end = next((i + 1 for i in range(1, 3) if not values[i] > values[:i].max()), 3)
        best = int(np.argmax(values[:end])) + 1
        close(result, alone, m, end, best)
        ends.append(end)
        scores.append(values[best - 1])
    assert result.best == int(np.argmax(scores))
    assert len(set(ends)) > 1, [one.history["validation_loss"] for one, _ in alone]


@pytest.mark.parametrize(
    ("members", "epochs", "halving", "rungs"),
    [
        (27, 27, training.Halving(3), {1: 9, 3: 3, 9: 1}),
        (27, 9, training.Halving(3), {1: 9, 3: 3}),
        (64, 100, training.Halving(4), {1: 16, 6: 4, 25: 1}),
        (10, 20, training.Halving(2, first=3), {3: 5, 6: 2, 12: 1}),
        (8, 12, training.Halving(3), {1: 2, 4: 1}),
        (1, 5, training.Halving(3), {}),
        (9, 1, training.Halving(3), {}),
    ],
    ids=str,
)
def test_rungs(members, epochs, halving, rungs):
    assert halving.rungs(members, epochs) == rungs


def test_a_measure_that_stays_infinite_is_waited_for():
    pruned = Pruning(1, {}, training.EarlyStopping(2), "loss")
    for epoch in (1, 2, 3):
        pruned.after(epoch, {"validation_loss": np.full(1, np.inf, np.float32)}, ({"kernel": jnp.ones((1, 2))}, ()))
    assert pruned.over
    assert pruned.result()[1] == -1


def test_a_member_that_was_dropped_is_not_the_best_although_another_gets_worse():
    pruned = Pruning(2, {1: 1}, None, "loss")
    weights = {"kernel": jnp.ones((2, 1, 2))}, ()
    assert pruned.after(1, {"loss": np.float32([1, 2])}, weights).tolist() == [0]
    pruned.after(2, {"loss": np.float32([3])}, jax.tree.map(lambda leaf: leaf[:1], weights))
    assert pruned.result()[1] == 0


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
        alone = calls.fit(layers.dense(1), losses.mse, optimizers.sgd(rate), data, progress=False, **options)
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
    return training.sweep(FLAT, CE, lambda rate: optimizers.sgd(rate), train, settings=settings, **options)


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
        (DataError, "label", lambda: sweep(validation=(X, LABELS + 2))),
        (DataError, "holds nan", lambda: sweep(train=(X * np.nan, LABELS))),
        (DTypeError, "no numeric array|must be|is no number", lambda: sweep(train=(np.array(["a"] * 9), LABELS[:9]))),
        (ConfigError, "member must be from 0 to 1, got 2", lambda: sweep().member(2)),
        (ConfigError, "halving by 3 would drop none of 2 members in 1 epochs; give more", lambda: sweep(halving=3)),
        (ConfigError, "halving's factor must be an integer >= 2", lambda: sweep(halving=1)),
        (ConfigError, "there is no validation set", lambda: sweep(early_stopping=3)),
        (
            ConfigError,
            "reduce_on_plateau watches 'validation_loss', and the history has only grad_norm, loss",
            lambda: training.sweep(
                NET,
                CE,
                lambda: optimizers.reduce_on_plateau(monitor="validation_loss"),
                TRAIN,
                settings={"seed": [0]},
                epochs=1,
                batch_size=8,
            ),
        ),
        (
            ConfigError,
            "early stopping watches 'los', .*did you mean 'loss'",
            lambda: sweep(early_stopping=training.EarlyStopping(3, "los")),
        ),
        (
            ConfigError,
            "watches 'grad_norm', of which less or more may be better",
            lambda: sweep(early_stopping=training.EarlyStopping(3, "grad_norm")),
        ),
    ],
)
def test_bad_input_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def out_of_memory(at, calls=None):
    """What stands in the place of a compiled program on a device that has too little memory for so many members."""

    def compiled(f, **options):
        program = jax.jit(f, **options)

        def call(train_state, *arguments):
            members = len(jax.tree.leaves(train_state)[0])
            if members >= at:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
            return program(train_state, *arguments)

        return call

    return compiled


class TestMembersThatDoNotFit:
    def test_how_many_would_is_said(self, monkeypatch):
        """A member holds 8,003 float32 of parameters and as much of momentum, beside what a step takes."""
        memory = sys.modules["jaxnet.training.memory"]
        counts, bytes_needed = [], memory.bytes_needed
        monkeypatch.setattr("jaxnet.training.nans.compiled", out_of_memory(6))
        data, order = 2 * sum(a.nbytes for a in TRAIN), 4 * (len(TRAIN[1]) // 8 * 8)  # of the next epoch, a member
        each = lambda: counts[1] - counts[0] + order  # noqa: E731
        monkeypatch.setattr(memory, "_limit", lambda device: data + counts[0] + order + 2 * each() + 5)
        monkeypatch.setattr(
            sys.modules["jaxnet.training.sweep"], "bytes_needed",
            lambda *arguments: counts.append(bytes_needed(*arguments)) or counts[-1],
        )  # fmt: skip
        net = layers.chain(layers.flatten(), layers.dense(400), layers.dense(3))
        options = {"epochs": 1, "batch_size": 8}
        rule = lambda rate: optimizers.sgd(rate, momentum=0.9)  # noqa: E731
        with pytest.raises(
            ConfigError, match=r"^sweep: 6 members do not fit in the memory of .*: at most about 3 fit"
        ) as e:
            training.sweep(net, CE, rule, TRAIN, settings={"seed": range(6), "rate": [0.1] * 6}, **options)
        state = 4 * 2 * sum(leaf.size for leaf in jax.tree.leaves(net.init(0, X[:1])[0]))
        assert counts[1] - counts[0] > 2 * state  # what goes in and what comes out
        needed = (data + counts[0] + order + 5 * each()) / 2**20
        assert f"they need about {needed:.3g} MiB" in str(e.value)
        assert isinstance(e.value.__cause__, jax.errors.JaxRuntimeError)
        training.sweep(net, CE, rule, TRAIN, settings={"seed": range(3), "rate": [0.1] * 3}, **options)

    def test_of_all_that_did_not_fit_it_never_says_that_they_would(self, monkeypatch):
        """A device may have room for all and yet have refused: what else lies there counts too."""
        monkeypatch.setattr("jaxnet.training.nans.compiled", out_of_memory(2))
        monkeypatch.setattr(sys.modules["jaxnet.training.memory"], "_limit", lambda device: 2**40)
        with pytest.raises(ConfigError, match=r"^sweep: 2 members do not fit .* at most about 1 fit; give fewer"):
            sweep()

    def test_where_the_device_does_not_say_what_it_has(self, monkeypatch):
        monkeypatch.setattr("jaxnet.training.nans.compiled", out_of_memory(2))
        monkeypatch.setattr(sys.modules["jaxnet.training.memory"], "_limit", lambda device: None)
        with pytest.raises(
            ConfigError, match=r"^sweep: 2 members do not fit .* each; give fewer, or a smaller batch_size$"
        ):
            sweep()

    def test_where_there_is_no_room_to_ask(self, monkeypatch):
        def compiling(*arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        monkeypatch.setattr("jaxnet.training.nans.compiled", out_of_memory(2))
        monkeypatch.setattr(sys.modules["jaxnet.training.sweep"], "bytes_needed", compiling)
        with pytest.raises(ConfigError, match=r"^sweep: 2 members do not fit in the memory of [^;]*; give fewer"):
            sweep()

    def test_any_other_error_stays_what_it_is(self, monkeypatch):
        def compiled(f, **options):
            def call(*arguments):
                raise jax.errors.JaxRuntimeError("INTERNAL: the bus is gone")

            return call

        monkeypatch.setattr("jaxnet.training.nans.compiled", compiled)
        with pytest.raises(jax.errors.JaxRuntimeError, match="the bus is gone"):
            sweep()


def test_the_next_orders_are_drawn_once_and_while_the_device_computes(monkeypatch):
    done = []
    draw = data.epoch_order

    def order(samples, *, seed, epoch):
        done.append((epoch, seed))
        return draw(samples, seed=seed, epoch=epoch)

    def compiled(f, **options):
        program = jax.jit(f, **options)
        return lambda *arguments: done.append("dispatched") or program(*arguments)

    monkeypatch.setattr(data, "epoch_order", order)
    monkeypatch.setattr("jaxnet.training.nans.compiled", compiled)
    sweep({"seed": [5, 2, 5], "rate": [0.1, 0.1, 0.2]}, epochs=3)
    assert done == [(0, 2), (0, 5), "dispatched", (1, 2), (1, 5), "dispatched", (2, 2), (2, 5), "dispatched"]

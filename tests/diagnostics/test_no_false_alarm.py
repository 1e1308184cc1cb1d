"""Programs with nothing wrong of the kind that a rule looks for, which once set it off; and the fault beside each."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, diagnostics, layers, losses, optimizers
from jaxnet.diagnostics import baseline, irreducible, refusals, score
from jaxnet.diagnostics.changes import changed
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.free_output import FreeOutput
from jaxnet.diagnostics.rules import outputs
from jaxnet.diagnostics.samples import usable
from jaxnet.diagnostics.trial import Task, Trial
from jaxnet.diagnostics.verdict import remedy
from jaxnet.training import History
from tests.diagnostics.test_faults import ONE_HOT, TEN, N, X, by_one_hot, column, ending, relu, sigmoid

TWO = (X[:, 0] > 0.3).astype(np.int32)
RATINGS = (1 + TEN % 5).astype(np.int32)
POSITIVE = np.abs(X[:, :1]) * 80
LOG = jax.nn.log_softmax
LEFT_OUT = np.select([TEN > 7, TEN > 4], [254, 255], TEN).astype(np.int32)


def of_column(loss):
    """A loss that takes the only column, and floating targets."""
    return lambda p, y: loss(p[:, 0], y.astype(jnp.float32))


def ranked(p, y):
    """A margin between the right class and the others."""
    right = jnp.take_along_axis(p, y[:, None], 1)
    return jnp.mean(jnp.maximum(0.0, 0.1 + p - right) * (1 - jax.nn.one_hot(y, p.shape[-1])))


def cosine(p, y):
    """Below 0, of directions alone."""
    return -jnp.mean(jnp.sum(p * y, -1) / (jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(y, axis=-1) + 1e-6))


RIGHT = {
    "a logit and integers": ((layers.dense(1),), of_column(losses.sigmoid_cross_entropy), TWO),
    "ratings": ((layers.dense(1),), of_column(losses.mse), RATINGS),
    "ratings through a sigmoid": ((layers.dense(1), sigmoid), lambda p, y: losses.mse(1 + 4 * p, y), column(RATINGS)),
    "logarithms": ((layers.dense(10), LOG), lambda p, y: -jnp.mean(jnp.sum(y * p, -1)), ONE_HOT),
    "targets scaled in the loss": ((layers.dense(1), sigmoid), lambda p, y: losses.mse(p, y / 255), POSITIVE),
    "a class a time step": ((layers.dense(30), lambda x: LOG(x.reshape(-1, 3, 10))),
                            lambda p, y: -jnp.mean(jnp.sum(y * p, -1)), np.stack([ONE_HOT] * 3, 1)),
    "labels that are left out": ((layers.dense(5),), by_one_hot, LEFT_OUT),
    "a margin of probabilities": ((layers.dense(10), activations.softmax), ranked, TEN),
    "a cosine": ((layers.dense(4), jnp.tanh), cosine, 3 * X),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_outputs_that_can_represent_the_targets(name):
    parts, loss, target = RIGHT[name]
    assert outputs.wrong_output(ending(*parts, loss=loss, target=target)) is None


def test_targets_in_units_of_which_the_loss_takes_the_column():
    free = FreeOutput.of(layers.dense(1), lambda p, y: losses.mse(p[:, 0], y), X, 1e4 + 1e3 * X[:, 0])
    assert free.floor() < 1e3
    far = FreeOutput.of(layers.dense(1), lambda p, y: losses.mse(p[:, 0], 1e4 * y), X, X[:, 0] + 3)
    far.floor()
    assert not far.resting  # what still falls is no floor


def test_shares_of_what_was_chosen_are_a_likelihood():
    chosen = np.maximum(ONE_HOT, np.roll(ONE_HOT, 1, 1))
    facts = ending(layers.dense(10), loss=lambda p, y: -jnp.mean(jnp.sum(y * LOG(p), -1)), target=chosen, trained=True)
    assert outputs.wrong_output(facts) is None
    chosen[:9] = 0
    facts = ending(layers.dense(10), loss=lambda p, y: -jnp.mean(jnp.sum(y * LOG(p), -1)), target=chosen, trained=True)
    assert "exactly one holds" in outputs.wrong_output(facts).cause


def test_kinds_of_targets():
    steps = np.stack([ONE_HOT] * 3, 1)
    soft = np.asarray(jax.nn.softmax(X))
    assert [score.targets(one).kind for one in (ONE_HOT, steps, soft, X)] == ["one hot", "one hot", "shares", "numbers"]
    assert score.targets(np.eye(9, dtype=np.float32)[:, :, None]).kind == "several"


def test_two_values_are_told_apart_where_the_loss_has_no_preference():
    p = jnp.asarray([-0.2, 0.4, 0.6, 1.1])[:, None]
    y = np.asarray([0, 0, 1, 1], np.float32)[:, None]
    for loss, wanted in ((losses.mse, 0.5), (losses.sigmoid_cross_entropy, 0.0), (losses.huber, 0.5)):
        free = FreeOutput.of(layers.dense(1), loss, X[:4], y)
        assert free.threshold(0.0, 1.0) == wanted
    assert float(score.score_of(score.targets(y), 0.5)(p, y)) == 1.0
    assert float(score.score_of(score.targets(y))(p, y)) == 0.75
    small = TEN.astype(np.uint8)
    assert float(score.score_of(score.targets(small))(jnp.asarray(ONE_HOT), jnp.asarray(small))) == 1.0


def test_the_best_constant_where_the_loss_is_of_something_else():
    net = layers.dense(1)
    scaled = baseline.constant_loss(net, lambda p, y: losses.mse(p, y / 255), (X, POSITIVE))
    np.testing.assert_allclose(scaled, np.var(POSITIVE / 255), rtol=1e-3)
    of_integers = baseline.constant_loss(net, of_column(losses.mse), (X, RATINGS))
    np.testing.assert_allclose(of_integers, np.var(RATINGS), rtol=1e-4)
    shares = np.bincount(TEN) / N
    of_logarithms = baseline.constant_loss(
        layers.chain(layers.dense(10), LOG), lambda p, y: -jnp.mean(jnp.sum(y * p, -1)), (X, ONE_HOT)
    )
    np.testing.assert_allclose(of_logarithms, -(shares * np.log(shares)).sum(), rtol=1e-4)


@dataclasses.dataclass
class Look:
    """Of a report, the loss."""

    loss: float


def ended(target, losses_of_run):
    """The facts of a run with these losses."""
    net, loss = layers.dense(4), losses.softmax_cross_entropy
    it = Facts.__new__(Facts)
    it.task = Task(net, loss, optimizers.sgd(0.1), None, (X, target), (X, target), 16, jax.random.key(0))
    it.free, it.x, it.target, it.kind = FreeOutput.of(net, loss, X, target), X, target, score.targets(target)
    records = [
        {"step": i, "loss": value, "training_loss": value, "validation_loss": value}
        for i, value in enumerate(losses_of_run)
    ]
    trial = Trial(History(records), [Look(np.float32(losses_of_run[0]))] * 3, (), (), np.nan)
    it.look_at(trial, baseline=baseline.constant_loss(net, loss, (X, target)))
    return it


def test_soft_targets_have_trained_at_their_entropy():
    soft = np.asarray(jax.nn.softmax(0.7 * X))
    entropy = -(soft * np.log(soft)).sum(1).mean()
    facts = ended(soft, np.linspace(1.5, entropy + 0.01, 9))
    assert not facts.trained
    less = irreducible.without_floor(facts)
    np.testing.assert_allclose(less.lowest, entropy, rtol=2e-3)
    assert less.trained
    assert less.learned
    assert outputs.hardly_representable(less) is None
    assert facts.history[-1]["training_loss"] > entropy  # as it was measured
    slow = irreducible.without_floor(ended(soft, np.linspace(1.5, 1.4, 9)))
    assert not slow.trained
    assert outputs.hardly_representable(slow) is None


def test_a_loss_less_its_floor_keeps_its_gradient():
    loss = irreducible.less(lambda p, y: jnp.sum(p * y), 10.0)
    value, gradient = jax.value_and_grad(loss)(jnp.ones(2), jnp.ones(2))
    assert (float(value), gradient.tolist()) == (0.0, [1.0, 1.0])
    assert float(loss(jnp.full(2, 8.0), jnp.ones(2))) == 6.0
    assert float(loss(jnp.full(2, jnp.inf), jnp.ones(2))) == np.inf


def reports(*rows):
    """As many looks, of two layers each."""
    made = [
        SimpleNamespace(
            update_ratio=np.array([ratio, np.nan]), weight_norm=np.array([weight, np.nan]),
            parameter_gradient=np.array([gradient, np.nan]), labels=("0 dense", "1 relu"),
        )
        for ratio, weight, gradient in rows
    ]  # fmt: skip
    free = SimpleNamespace(has_gradient=False, constant=False)
    return SimpleNamespace(
        trial=SimpleNamespace(reports=made), before=made[0], after=made[-1], free=free, final=1.0, left=1.0
    )


def test_nothing_moves_only_where_nothing_ever_did():
    assert outputs.nothing_moves(reports((0.0, 1.0, 0.1), (0.0, 1.0, 0.1), (0.0, 1.0, 0.2))).name == "nothing_moves"
    warm = reports((0.0, 1.0, 0.1), (0.1, 1.1, 0.1), (0.0, 1.2, 0.1))
    accumulated = reports((0.0, 1.0, 0.1), (0.0, 1.1, 0.1), (0.0, 1.2, 0.1))
    assert outputs.nothing_moves(warm) is outputs.nothing_moves(accumulated) is None
    assert outputs.loss_without_gradient(reports((0.0, 1.0, 0.0), (0.0, 1.0, 0.1), (0.0, 1.0, 0.0))) is None
    assert outputs.loss_without_gradient(reports((0.0, 1.0, 0.0), (0.0, 1.0, 0.0))).name == "no_gradient"


def test_features_that_are_frozen_on_purpose():
    net = layers.chain(layers.dense(5), relu, jax.lax.stop_gradient, layers.dense(3))
    free = FreeOutput.of(net, losses.softmax_cross_entropy, X, TEN % 3)
    facts = reports((0.0, 1.0, 0.0), (0.0, 1.0, 0.0))
    facts.free, facts.parts = free, free.parts
    for report in facts.trial.reports:
        report.labels = [call.label for call in free.parts.calls]
    assert outputs.no_gradient(facts).name == "no_gradient"
    facts.left = 0.05
    assert outputs.no_gradient(facts) is None


RESHAPED = [
    (((9,), (9, 1)), "target.reshape(len(target))."),
    (((9, 6, 6, 1), (9, 6, 6)), "target.reshape(len(target), 6, 6, 1)."),
    (((9, 3, 8), (9, 8, 3)), "targets with the axes of the prediction, (samples, 3, 8)."),
]


@pytest.mark.parametrize(("shapes", "words"), RESHAPED, ids=["a row", "a channel", "other axes"])
def test_how_a_target_is_reshaped(shapes, words):
    prediction, target = (np.zeros(shape, np.float32) + 0.5 for shape in shapes)
    cures = refusals._target(prediction, target, ValueError("shapes"), "").verdict.remedies
    assert cures[0].sentence.endswith(words)


DATA = {
    "single samples": (zip(X[:, 0], X[:, 1], strict=True), "wrong_input", "single samples"),
    "labels -1 and 1": ((X, 2 * TWO - 1), "wrong_target", "return_inverse=True"),
    "no label": ((X, TEN - 1), "wrong_target", "those of labels >= 0"),
    "booleans": ((X, TWO > 0), "wrong_target", "labels.astype(numpy.int32)"),
    "complex": ((np.where(X > 9, X, np.nan) + 1j, TEN), "non_finite_data", "the features 0, 1, 2, 3"),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data_end_in_a_verdict_with_a_remedy(name):
    data, wanted, words = DATA[name]
    (first,) = diagnostics.diagnose(layers.dense(10), losses.softmax_cross_entropy, optimizers.sgd(0.1), data).verdicts
    assert first.name == wanted
    assert words in str(first)


def test_numpy_inside_is_named():
    for net, loss in (
        (layers.dense(1), lambda p, y: jnp.mean(np.square(p - y))),
        (layers.chain(np.tanh, layers.dense(1)), losses.mse),
        (layers.dense(1), lambda p, y: losses.mse(p, y) if float(p.sum()) > 0 else losses.mae(p, y)),
    ):
        (first,) = diagnostics.diagnose(net, loss, optimizers.sgd(0.1), (X, X[:, :1])).verdicts
        assert (first.name, first.remedies[0].action) == ("not_traceable", "use_jax_numpy")


def test_a_list_of_two_batches():
    both = usable([(X[:9], TEN[:9]), (X[9:20], TEN[9:20])])
    assert len(both.numbers) == 20
    assert len(usable([X, TEN]).numbers) == N


@pytest.mark.parametrize("lowest", [np.nan, np.inf])
def test_a_lowest_value_that_is_no_number(lowest):
    assert "still falling" not in refusals.unbounded(lowest).verdict.evidence


def test_a_larger_network_is_not_larger_than_is_said():
    def task(width):
        net = layers.chain(layers.dense(width), relu, layers.dense(width), relu, layers.dense(10))
        return Task(
            net, losses.softmax_cross_entropy, optimizers.sgd(0.1), None, (X, TEN), (X, TEN), 16, jax.random.key(0)
        )

    def first(width):
        params, _ = jax.eval_shape(changed(task(width), remedy("widen")).net.init, jax.random.key(0), X)
        return params[0]["kernel"].shape[1] // width

    assert [first(16), first(512)] == [8, 4]

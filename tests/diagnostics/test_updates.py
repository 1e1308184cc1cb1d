"""Updates that are too small, regularization that is too much, and what is no lack of size: by made-up facts."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxnet import diagnostics, layers, optimizers
from jaxnet.diagnostics import ranking
from jaxnet.diagnostics.ranking import judged
from jaxnet.diagnostics.rules import Place, curves, network, rates, rule
from jaxnet.diagnostics.trial import Task
from jaxnet.diagnostics.updates import Updates, _rates, updates
from jaxnet.diagnostics.verdict import Verdict, remedies
from jaxnet.training import History
from tests.diagnostics.test_faults import MSE, REAL, X
from tests.diagnostics.test_rules import made, of, reached

LOOKS = np.arange(21)
DROPOUT = (layers.dense(5), layers.dropout(0.9), layers.dense(1))


def seen(ratio, gradient=0.5, weight=8.0, rate=None, size=10_000):
    """What is said of 600 steps of two layers, of which the second learns nothing."""
    of_looks = (np.broadcast_to(of, LOOKS.shape) for of in (ratio, gradient, weight))
    reports = [
        SimpleNamespace(**{
            name: np.array([of, np.nan])
            for name, of in zip(("update_ratio", "parameter_gradient", "weight_norm"), row, strict=True)
        })
        for row in zip(*of_looks, strict=True)
    ]  # fmt: skip
    rates = {} if rate is None else np.broadcast_to(rate, LOOKS.shape)
    records = [{"epoch": i} | ({} if rate is None else {"learning_rate": float(rates[i])}) for i in LOOKS[1:]]
    return updates(reports, History(records), 600, 2.0, size)


def test_how_far_updates_reach():
    clip = seen(1e-6, rate=0.1)
    np.testing.assert_allclose(clip.reach, 300 * 0.5 * 8e-6 / 2)  # steps, |g|, an update's norm, the loss
    np.testing.assert_allclose(clip.pull, 0.5 * 8 / 2)
    assert (clip.fallen, clip.rising, clip.cut) == (False, False, True)
    assert not seen(0.1 * 0.5 / 8, rate=0.1).cut  # what SGD makes of it
    assert not seen(0.1 * 100 / 8, gradient=1e6, rate=0.1).cut  # what signs do
    assert not seen(1e-6).cut  # the rate is not known
    assert (seen(0.02 * 0.1 * 0.5 / 8, rate=0.1).cut, seen(0.009 * 0.1 * 0.5 / 8, rate=0.1).cut) == (False, True)


def test_whether_a_rate_has_fallen():
    falls = 10.0 ** (-LOOKS / 5)
    assert seen(1e-3 * falls).fallen
    assert seen(1e-3, rate=falls).fallen
    assert seen(0.0).fallen  # of an optimizer that says no rate; one that never moved anything has a verdict already
    assert not seen(1e-3 * falls, gradient=falls).fallen  # the gradient has
    assert not seen(1e-3, gradient=1 / falls).fallen  # Adam's update is the same
    assert not seen(1e-3, rate=1 - 0.04 * LOOKS).fallen
    assert seen(1e-3, rate=LOOKS / 20).rising
    assert not seen(1e-3, rate=np.minimum(LOOKS, 5) / 5).rising


def test_of_several_groups_rates_the_largest():
    history = History(
        [{"learning_rate a": 0.1, "learning_rate b": 0.3}, {"learning_rate a": 0.2, "learning_rate b": 0.0}]
    )
    assert _rates(history).tolist() == [0.3, 0.2]


def test_where_the_looks_do_not_tell():
    assert seen(0.0, weight=8 + 0.1 * LOOKS) is None  # an update every so many steps, between the looks
    assert seen(1e-3, weight=8 + 0.1 * LOOKS) is not None
    assert seen(1e-3 * (LOOKS % 2), weight=8 + 0.1 * LOOKS) is not None  # the largest of them can
    moves, of_ten = 10 - 0.1 * (20 - LOOKS), 0.1 / (2 * 30 * 10)  # 30 steps a look, and as much again
    assert seen(1.02 * of_ten, weight=moves) is not None
    assert seen(0.98 * of_ten, weight=moves) is None
    assert seen(1e-3, gradient=np.inf) is seen(np.inf) is None


def test_what_a_run_says_of_its_rate_and_its_updates():
    """SGD behind a clip, at a rate that halves after 40 of 60 steps: by hand."""
    rate = optimizers.piecewise_constant_schedule(0.1, {40: 0.5})
    optimizer = optimizers.chain(optimizers.clip_by_global_norm(1e-4), optimizers.sgd(rate))
    pair = (X, 3 + REAL)
    facts = made(task=Task(layers.dense(1), MSE, optimizer, None, pair, pair, 16, jax.random.key(0)), steps=60)
    facts.look_at(facts.task.changed(factor=2.0).run(60), baseline=2.0)
    seen = facts.updates
    np.testing.assert_allclose(seen.rates, [0.2] * 13 + [(0.2 + 0.1 + 0.1) / 3] + [0.1] * 6, rtol=1e-5)
    np.testing.assert_allclose([seen.highest, seen.norm], [2e-5, 1e-5], rtol=1e-4)
    gradients = [float(report.parameter_gradient[0]) for report in facts.trial.reports[10:]]
    norms = np.array([2e-5] * 4 + [1e-5] * 7)  # of the step to come
    np.testing.assert_allclose(seen.reach, 30 * np.mean(gradients * norms) / 2, rtol=1e-3)
    assert (seen.cut, seen.fallen) == (True, False)


TINY = Updates(0.001, 6.0, 1e-6, 1e-5, 1e-5, 0.5, np.array([]), fallen=False, cut=False)
ENDED = {"rates": np.array([0.003, 0.0]), "fallen": True}
WARM = {"rates": np.array([1e-6, 1e-4])}
CUT = {"rates": np.array([0.1, 0.1]), "cut": True}


def small(end=0.9, left=0.6, rate=None, **known):
    """The verdict on updates, where plain Adam leaves this, and another rate that."""
    tried = {"plain_optimizer": None if left is None else reached(left)}
    ends = {0.1: 1.0, **(rate or {10.0: 0.9})}
    return rates.updates_too_small(made(end, tried, updates=TINY and TINY._replace(**known), rates=ends))


@pytest.mark.parametrize(
    ("known", "words", "cause"),
    [
        ({}, "1e-06 of the weights a step; the gradient is not", "A rate that is far too small, a clip to a tiny norm"),
        (ENDED, "the rate is 0 in the end, at its highest 0.003", "A schedule of the rate that ends before"),
        ({"fallen": True, "highest": 1e-2}, "an update is 1e-05 in the end, at its highest 0.01", "A schedule of"),
        (WARM, "the rate is 0.0001 in the end, at first 1e-06, and still rising", "A warmup that is longer"),
        (CUT, "the rate is 0.1, the gradient's norm 0.5 and an update's 1e-05", "A clip to a tiny norm, or a factor"),
    ],
    ids=["unknown", "schedule", "schedule that is not said", "warmup", "clip"],
)
def test_updates_that_are_too_small(known, words, cause):
    found = small(**known)
    assert (found.name, found.certainty, found.remedies[0].action) == ("updates_too_small", 0.88, "plain_optimizer")
    assert words in found.evidence
    assert found.cause.startswith(cause)
    assert found.remedies[0].sentence.startswith("Take optimizers.adam(1e-3) alone: a constant rate, and no clip or f")


def test_updates_that_are_not():
    assert small(reach=0.2) is None  # they could have
    assert small(pull=0.3) is None  # the gradient is small: something else is wrong
    assert small(end=0.3) is None  # the run has trained
    assert small(left=0.85) is None  # nor does Adam get further
    assert small(left=None) is None
    slow = {10.0: 0.1}
    assert small(rate=slow) is None  # a larger rate is all that it takes
    assert small(rate=slow, **ENDED).name == small(rate=slow, **CUT).name == "updates_too_small"
    assert rates.updates_too_small(made(0.9, updates=None)) is None


def test_regularization_without_which_a_run_gets_clearly_further():
    free = of(*DROPOUT)

    def found(left=0.7, validation=None, lowest=0.9):
        facts = made(0.9, {"less_regularization": reached(left, validation)}, free=free)
        facts.loss[-2] = lowest
        return network.much_regularization(facts)

    assert (found().name, found().certainty) == ("too_much_regularization", 0.75)
    assert found(left=0.75) is None
    assert found(validation=1.0) is None  # it learns by heart
    assert found(lowest=0.8) is None  # the loss varies by as much
    assert found(left=0.1) is None  # the other rule's, which is surer
    assert network.much_regularization(made(0.9, {"less_regularization": reached(0.5)})) is None  # there is none


def flat(end, **options):
    records = [{"epoch": i + 1, "step": 10 * i + 10, "loss": end, "validation_loss": end} for i in range(9)]
    return [verdict.name for verdict in diagnostics.curves_report(History(records), **options)]


def test_what_a_bias_alone_would_reach_is_no_lack_of_size():
    assert flat(1.2, baseline=1.0) == ["no_progress"]
    assert flat(1.02, baseline=1.0) == flat(0.8, baseline=1.0) == flat(1.2) == ["underfitting"]
    assert curves.no_progress(made(0.3)) is None


def told(facts, monkeypatch, *found):
    """What is told of these verdicts, each at a place."""
    made_up = [rule.rule(place, one.certainty)(lambda facts, one=one: one) for place, one in found]
    monkeypatch.setattr(ranking, "OF_RUNS", made_up)
    return judged(facts, lambda line: None)


UNDERFITTING = (Place.OUTCOME, Verdict("underfitting", 0.7, "", "", remedies("widen", ("scale_rate", 3.0))))


@pytest.mark.parametrize(
    ("left", "validation", "certainty"),
    [(0.89, 0.89, 0.35), (0.89, 0.7, 0.35), (0.7, 0.7, 0.7), (0.7, 0.95, 0.7), (0.1, 0.1, 0.85)],
)
def test_a_network_is_hardly_too_small_where_a_larger_one_gets_no_further(monkeypatch, left, validation, certainty):
    """For its own samples: one that learns them by heart is large enough."""
    (found,) = told(made(0.9, {"widen": reached(left, validation)}), monkeypatch, UNDERFITTING)
    assert round(found.certainty, 3) == certainty
    assert found.cause.startswith("Not the network's size") == (certainty < 0.5)


@pytest.mark.parametrize(("action", "stands"), [("clip", False), ("deepen", True)])
def test_a_network_that_was_seen_to_train_is_not_too_small(monkeypatch, action, stands):
    slow = (Place.RATE, Verdict("slow", 0.85, "", "", remedies(action)))
    found = told(made(0.9, {action: reached(0.1)}), monkeypatch, slow, UNDERFITTING)
    assert [one.name for one in found] == ["slow", *["underfitting"] * stands]


EVALUATION = (Place.EVALUATION, Verdict("evaluation_differs", 0.85, "", "", remedies("reestimate")))
RATE = (Place.RATE, Verdict("rate_too_large", 0.85, "", "", remedies(("scale_rate", 0.1), "normalize")))


def test_what_is_judged_in_evaluation_says_nothing_where_that_is_of_another_network(monkeypatch):
    def names(share):
        facts = made(0.9)
        for record, loss in zip(facts.history.records, np.broadcast_to(share, len(facts.history)), strict=True):
            record["loss"] = loss
        return [(one.name, one.certainty) for one in told(facts, monkeypatch, EVALUATION, RATE)]

    assert names(0.2) == [("evaluation_differs", 0.85)]  # it has trained, as it runs in training
    assert names(0.7) == [("evaluation_differs", 0.85), ("rate_too_large", 0.425)]
    assert names([0.7] * 11 + [0.2]) == names(0.7)  # one batch that is easy


def test_no_layer_is_advised_that_is_there(monkeypatch):
    def actions(*norms):
        facts = made(0.9)
        facts.before.norms = norms
        (found,) = told(facts, monkeypatch, RATE)
        return [cure.action for cure in found.remedies]

    assert actions(False, False) == ["scale_rate", "normalize"]
    assert actions(False, True) == ["scale_rate"]


def test_what_was_seen_to_hurt_comes_last_and_says_so(monkeypatch):
    cures = remedies("clip", "initialize", "normalize")
    found = (Place.RATE, Verdict("slow", 0.8, "", "", cures))

    def seen(**tried):
        (verdict,) = told(made(0.9, tried), monkeypatch, found)
        return [(cure.action, cure.seen.partition(":")[0]) for cure in verdict.remedies]

    assert seen(clip=reached(1.1), initialize=reached(0.85)) == [
        ("initialize", "tried"), ("normalize", "not tried"), ("clip", "tried, and it hurt"),
    ]  # fmt: skip
    assert seen(clip=reached(1.1, validation=0.9)) == [
        ("clip", "tried"), ("initialize", "not tried"), ("normalize", "not tried"),
    ]  # fmt: skip


def test_a_run_is_judged_by_this_one_after_as_many_steps():
    """Which had 0.76 left by then, and 0.3 in the end."""
    assert made(0.3).hurts(reached(0.9))
    assert not made(0.3).hurts(reached(0.8))
    assert not made(0.3).hurts(reached(0.9, validation=0.6))


def test_nothing_hurts_a_run_that_diverged():
    facts = made(0.9)
    facts.loss[2:] = facts.validation[:] = np.nan
    assert not facts.hurts(reached(5.0))
    assert facts.hurts(reached(np.nan)) is False
    assert facts.gains(reached(0.5), 0.8)


def test_a_run_is_compared_with_one_without_regularization():
    tried = {"less_regularization": reached(0.05), "widen": reached(0.3)}
    better = ranking.healthy(made(0.3, tried, free=of(*DROPOUT)))
    assert better.evidence.endswith("its lowest is 30%, and in as many steps with no regularization 5%")
    assert better.cause == "Nothing is out of order, but something else gets further"
    none = ranking.healthy(made(0.3, tried))
    assert none.evidence.endswith("and no lower by a tenth with a larger network 30%")
    assert none.cause == "Nothing is out of order"

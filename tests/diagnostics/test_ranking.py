"""What verdicts say in the end, and in which order: by made-up verdicts and outcomes, nothing is trained."""

import math
from types import SimpleNamespace

import pytest

from jaxnet.diagnostics import ranking
from jaxnet.diagnostics.ranking import agreeing, healthy, judged, ordered, ranked
from jaxnet.diagnostics.rules import OF_CURVES, OF_RUNS, Place, rule
from jaxnet.diagnostics.trial import LOOKS
from jaxnet.diagnostics.verdict import Verdict, remedies, remedy
from tests.diagnostics.test_rules import made, reached


def test_what_an_earlier_verdict_explains_counts_half():
    def verdict(name, certainty):
        return Verdict(name, certainty, "", "")

    found = [
        (Place.LEFT_OUT, verdict("data", 1.0)),
        (Place.OUTCOME, verdict("outcome", 0.8)),
        (Place.RATE, verdict("rate", 0.85)),
        (Place.SCALE, verdict("scale", 0.82)),
    ]
    order = [(one.name, one.certainty) for one in ranked(found)]
    assert order == [("data", 1.0), ("rate", 0.85), ("scale", 0.82), ("outcome", 0.4)]


def test_what_helped_most_comes_first_and_what_diverged_last():
    names = ("normalize", "use_rectifiers", "clip", "initialize", "widen", "train_longer")
    cures = tuple(map(remedy, names))
    shares = dict(zip(names, (math.inf, 1.2, 0.4, 0.3, 0.9), strict=False))
    facts = SimpleNamespace(
        looks=5,
        outcomes={(name, None, 5): SimpleNamespace(share=share) for name, share in shares.items()},
        mends=lambda outcome: outcome.share < 0.5,
        hurts=lambda outcome: outcome.share > 1,
    )
    found = [cure.action for cure in ordered(facts, cures)]
    assert found == ["initialize", "clip", "widen", "train_longer", "use_rectifiers", "normalize"]


def of_tries(left=0.99, **shares):
    """Facts of a run that left this much, and of what remedies left of the training and of the validation loss."""
    return made(left, {name: reached(*both) for name, both in shares.items()}, validation=1.0)


def test_of_remedies_that_help_alike_the_earliest_cause_comes_first():
    def verdicts(**shares):
        scale = Verdict("scale", 0.8, "", "", (remedy("standardize_target"),))
        rate = Verdict("rate", 0.85, "", "", (remedy("clip"),))
        found = ranking._tried(of_tries(**shares), [(Place.SCALE, scale), (Place.RATE, rate)])
        return [(one.name, round(one.certainty, 3)) for one in ranked(found)]

    alike = verdicts(standardize_target=(0.2, 0.2), clip=(0.1, 0.1))
    assert alike == [("scale", 0.9), ("rate", 0.425)]
    assert verdicts(standardize_target=(0.4, 0.4), clip=(0.01, 0.01)) == [("rate", 0.925), ("scale", 0.64)]
    assert verdicts(standardize_target=(0.95, 0.95), clip=(0.1, 0.1)) == [("rate", 0.925), ("scale", 0.4)]


@pytest.mark.parametrize(
    ("r2", "same", "own", "first"),
    [(0.4, False, -3.0, "scale"), (0.31, False, -3.0, "scale"), (0.29, False, -3.0, "rate"), (0.4, True, -3.0, "rate"),
     (0.4, False, 0.35, "rate")],
    ids=["more", "nearly as much", "less", "in the same units", "no more than the run"],
)  # fmt: skip
def test_losses_of_other_units_do_not_compare_but_scores_do(r2, same, own, first):
    """The target standardized leaves 0.6 of its loss, which is more than half, and R2 tells that it is as good."""
    tried = {"standardize_target": reached(0.6, 0.7, r2, same), "clip": reached(0.3, 0.4, 0.4)}
    scale = Verdict("scale", 0.8, "", "", (remedy("standardize_target"),))
    rate = Verdict("rate", 0.85, "", "", (remedy("clip"),))
    found = ranking._tried(made(0.99, tried, score=own), [(Place.SCALE, scale), (Place.RATE, rate)])
    assert ranked(found)[0].name == first


@pytest.mark.parametrize(
    ("training", "held_out", "counts"),
    [(0.3, 0.4, True), (0.3, 0.7, False), (0.6, 0.4, False), (0.1, 0.8, True), (0.1, 0.95, False)],
    ids=["elsewhere further", "not much further", "learns nothing", "here further", "by heart"],
)
def test_an_obstacle_counts_where_a_run_without_it_gets_further_for_other_samples(training, held_out, counts):
    """The run has trained and learned by heart: 0.29 of the training loss are left, and 1.0 of the other."""
    facts = of_tries(left=0.29, initialize=(training, held_out))
    found = Verdict("initialization_too_large", 0.95, "", "", (remedy("initialize"),))
    assert ranking._overcome(facts, Place.SCALE, found).certainty == (0.95 if counts else 0.475)


def rates(*factors):
    return tuple(remedy("scale_rate", factor) for factor in factors)


CLIP = (remedy("clip"),)
AGREEING = {  # remedies of the first verdict, of a later one, and what is left of these
    "smaller, larger": (rates(0.01), rates(3.0) + CLIP, CLIP),
    "smaller, smaller": (rates(0.01), rates(0.1) + CLIP, rates(0.1) + CLIP),
    "larger, smaller": (rates(10.0) + CLIP, CLIP + rates(0.3), CLIP),
    "behind another remedy": (CLIP + rates(0.1), rates(3.0) + CLIP, CLIP),
    "the first of two": (rates(0.1, 10.0), rates(3.0, 0.3), rates(0.3)),
    "nothing is left": (rates(10.0), rates(0.3), ()),
    "seen to help": (rates(10.0), rates(0.1), rates(0.1)),
    "seen not to help": (rates(0.1), rates(10.0) + CLIP, CLIP),
    "no rate first": (CLIP, rates(0.3), rates(0.3)),
    "no remedy first": ((), rates(0.3), rates(0.3)),
}


@pytest.mark.parametrize("name", AGREEING)
def test_a_later_verdict_does_not_advise_the_opposite_rate(name):
    first, second, left = AGREEING[name]
    facts = made(0.9, {("scale_rate", 0.1): reached(0.1), ("scale_rate", 10.0): reached(0.8)})
    later = agreeing(facts, Verdict("a", 1.0, "", "", first), Verdict("b", 0.5, "", "", second))
    assert later == Verdict("b", 0.5, "", "", left)
    assert str(later).count("\n") == 2 + len(left)


def rules(monkeypatch, *found):
    """Has these verdicts found, each at a place."""
    monkeypatch.setattr(
        ranking, "OF_RUNS", [rule.rule(place, one.certainty)(lambda facts, one=one: one) for place, one in found]
    )


def test_remedies_are_announced_tried_and_say_what_they_did(monkeypatch):
    slow = Verdict("slow", 0.8, "", "", remedies("clip", ("scale_rate", 10.0), "residual"))
    wrong = Verdict("wrong", 0.7, "", "", remedies(("use_cross_entropy", 3)))
    flat = Verdict("flat", 0.7, "", "", remedies("widen", ("scale_rate", 0.3), "train_longer"))
    rules(monkeypatch, (Place.RATE, slow), (Place.NETWORK, wrong), (Place.OUTCOME, flat))
    tried = {
        "clip": reached(0.95, score=0.25), ("scale_rate", 10.0): reached(0.1, score=0.9),
        ("use_cross_entropy", 3): reached(0.97, same=False),
    }  # fmt: skip
    events = []
    told = judged(made(0.96, tried, score=0.2, asked=events), events.append)
    line, *asked = events
    assert line.startswith(
        "the run has not trained: other rates and remedies are tried, at most 22 times for 150 steps and twice for as "
        "many as the run took, 7.5 times the run; "
    )
    assert asked == [("clip", None, 5), ("scale_rate", 10.0, 5), ("use_cross_entropy", 3, 5)]  # none of an outcome
    assert [(verdict.name, round(verdict.certainty, 3)) for verdict in told] == [
        ("slow", 0.9), ("flat", 0.35), ("wrong", 0.175),
    ]  # fmt: skip
    assert [[(cure.action, cure.seen) for cure in verdict.remedies] for verdict in told] == [
        [
            ("scale_rate", "tried: loss 0.96 to 0.1, R2 of validation 0.20 to 0.90, in 150 steps against 600"),
            ("clip", "tried: loss 0.96 to 0.95, R2 of validation 0.20 to 0.25, in 150 steps against 600"),
            ("residual", "not tried"),
        ],
        [("widen", "not tried"), ("train_longer", "not tried")],
        [
            (
                "use_cross_entropy",
                "tried: loss 96% to 97% of the best constant prediction's, in 150 steps against 600",
            )
        ],
    ]
    assert str(told[0]).endswith("layers.residual around every layer or two. [not tried]")


def test_a_run_that_trained_is_compared(monkeypatch):
    rules(monkeypatch)
    tried = {
        ("scale_rate", 10.0): reached(0.05, 0.1, score=0.9), ("scale_rate", 0.1): reached(0.5),
        "initialize": reached(0.2), "widen": None,
    }  # fmt: skip
    events = []
    (told,) = judged(made(0.3, tried, asked=events), events.append)
    line, *asked = events
    assert line == (
        "the run has trained, and 30% of the loss are left: it is compared with at most 5 others of as many steps"
    )
    assert {looks for _, _, looks in asked} == {20}
    assert told.name == "healthy"
    assert told.evidence.endswith(
        "; compared, the validation loss at its lowest is 30%, and in as many steps with 10 times the rate 10% "
        "(R2 0.90), with another initialization 20%"
    )
    tried |= {("scale_rate", 10.0): reached(0.05, 0.28, score=0.9), "initialize": None}
    assert healthy(made(0.3, tried)).evidence.endswith(
        "at its lowest is 30%, and no lower by a tenth with 10 times the rate 28%, 0.1 times the rate 50%"
    )
    assert healthy(made(0.3)).evidence.endswith("; nothing could be compared with it")


def test_of_two_runs_with_a_remedy_the_longer_is_told():
    facts = made(0.3)
    facts.outcomes = {("widen", None, looks): reached(share) for looks, share in ((facts.looks, 0.2), (LOOKS, 0.1))}
    assert ranking._seen(facts, remedy("widen")).share == 0.1
    del facts.outcomes["widen", None, LOOKS]
    assert ranking._seen(facts, remedy("widen")).share == 0.2


def test_of_a_run_that_left_little_nothing_is_tried(monkeypatch):
    rules(monkeypatch)
    events = []
    (told,) = judged(made(0.09, {"initialize": reached(0.0)}, asked=events), events.append)
    assert (told.name, "compared" in told.evidence, events) == ("healthy", False, [])


@pytest.mark.parametrize(
    ("end", "validation", "loss", "said"),
    [(0.3, 0.3, 0.3, ["at most 6 others of"]), (0.05, 0.2, 0.05, ["at most 1 other of"]), (0.05, 0.05, 0.05, []),
     (0.3, 0.3, 0.1, ["at most 7 others of"])],
    ids=["of both", "of other samples", "of neither", "and averages that are behind"],
)  # fmt: skip
def test_a_rectifier_at_the_end_is_one_more_to_compare(monkeypatch, end, validation, loss, said):
    rules(monkeypatch)
    kind, lines = SimpleNamespace(rectifier=True), []
    free = SimpleNamespace(parts=SimpleNamespace(calls=(), tail=(SimpleNamespace(kind=kind),)))
    facts = made(end, validation=validation, free=free)
    for record in facts.history.records:
        record["loss"] = loss
    judged(facts, lines.append)
    assert [line.partition("compared with ")[2].partition(" as many")[0] for line in lines] == said


def test_of_a_run_with_a_decay_one_more_try_is_announced(monkeypatch):
    rules(monkeypatch)
    lines = []
    judged(made(0.96, decay=0.1), lines.append)
    assert "and three times for as many as the run took, 8.5 times the run; " in lines[0]


def test_what_an_experiment_shows_is_not_told_again_by_the_curves(monkeypatch):
    seen = Verdict("underfitting", 0.75, "with a larger network", "", remedies("widen"))
    curve = Verdict("underfitting", 0.7, "flat", "", remedies("widen"))
    rules(monkeypatch, (Place.NETWORK, seen), (Place.OUTCOME, curve))
    assert [one.evidence for one in judged(made(0.96), len)] == ["with a larger network"]
    rules(monkeypatch, (Place.OUTCOME, curve))
    assert [one.evidence for one in judged(made(0.96), len)] == ["flat"]


def test_a_rule_that_another_file_asks_is_asked_once():
    for of in (OF_RUNS, OF_CURVES):
        assert len({rule.look for rule in of}) == len(of)

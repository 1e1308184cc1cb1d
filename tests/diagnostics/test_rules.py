"""Rules that go by what a try reached: each with made-up facts and outcomes, where it is to speak and where not."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers
from jaxnet.diagnostics import score
from jaxnet.diagnostics.anatomy import anatomy
from jaxnet.diagnostics.facts import Facts
from jaxnet.diagnostics.free_output import FreeOutput
from jaxnet.diagnostics.rules import labels, network, outputs, rates
from jaxnet.diagnostics.rules import layers as of_layers
from jaxnet.diagnostics.trial import LOOKS, Outcome, Task, Trial
from jaxnet.training import History
from tests.diagnostics.test_faults import MSE, REAL, TWO, X, binary, relu, sigmoid

KIND = score.targets(X)


class Tries(dict):
    """Outcomes by remedy; what is not among them cannot be carried out. ``asked`` are those that were asked for."""

    def __init__(self, outcomes, asked):
        super().__init__(outcomes)
        self.asked = asked

    def __contains__(self, key):
        self.asked.append(key)
        return True

    def __missing__(self, key):
        return None


def reached(training, validation=None, score=math.nan, same=True):
    """An outcome of 150 steps, in shares of the best constant prediction's loss."""
    return Outcome(training, training if validation is None else validation, score, 1.0, 150, same, None)


def made(end=1.0, tried=None, *, score=math.nan, validation=None, asked=None, **known):
    """The facts of 600 steps that fall to ``end``, where the best constant prediction has a loss of 1."""
    it = Facts.__new__(Facts)
    fields = {"task": SimpleNamespace(batch_size=32, regularizer=None), "train": SimpleNamespace(numbers=range(1000)),
              "target": X, "kind": KIND, "steps": 600, "decay": 0.0,
              "free": SimpleNamespace(parts=SimpleNamespace(calls=(), tail=()))}  # fmt: skip
    vars(it).update(fields | {name: known.pop(name) for name in [*fields, "x"] if name in known})
    pairs = {key if isinstance(key, tuple) else (key, None): value for key, value in (tried or {}).items()}
    outcomes = {(*key, looks): value for key, value in pairs.items() for looks in (it.looks, LOOKS)}
    it.outcomes = Tries(outcomes, [] if asked is None else asked)
    curve = np.maximum(np.geomspace(2, 0.01, 12), end)
    records = [
        {"step": 50 * i + 50, "loss": loss, "training_loss": loss, "skipped": 0,
         "validation_loss": loss if validation is None else validation}
        for i, loss in enumerate(curve)
    ]  # fmt: skip
    reports = known.pop("reports", [SimpleNamespace(loss=np.float32(2), gradient_ratio=math.nan, norms=())] * 2)
    it.look_at(Trial(History(records), reports, (), (), score), baseline=1.0, batch_size=32)
    vars(it).update(known)
    return it


POSITIVE = np.abs(REAL)
BETTER, NO_BETTER = reached(0.1), reached(0.8)


def of(*parts):
    """The end of a network, not asked for what it can give."""
    return SimpleNamespace(parts=anatomy(layers.chain(*parts), X))


def test_missing_activations():
    free = of(layers.dense(5), layers.dense(1))
    found = network.no_activations(made(0.9, {"add_activations": BETTER}, free=free))
    assert found.name == "missing_activations"
    assert found.evidence.endswith("0 dense and 1 dense; with relu there: loss 0.9 to 0.1, in 150 steps against 600")
    assert found.remedies[0].sentence == "Put an activation between 0 dense and 1 dense: activations.relu."
    assert network.no_activations(made(0.9, {"add_activations": NO_BETTER}, free=free)) is None
    by_heart = reached(0.1, validation=2.0)
    assert network.no_activations(made(0.9, {"add_activations": by_heart}, free=free)) is None
    assert network.no_activations(made(0.09, {"add_activations": reached(0.0)}, free=free)) is None  # little is left
    between = of(layers.dense(5), relu, layers.dense(1))
    assert network.no_activations(made(0.9, {"add_activations": BETTER}, free=between)) is None


def test_too_much_regularization():
    def found(end=0.9, outcome=BETTER, free=None, regularizer=None, decay=0.0):
        task = SimpleNamespace(regularizer=regularizer)
        free = free or SimpleNamespace(parts=SimpleNamespace(calls=()))
        tried = {"less_regularization": outcome}
        return network.too_much_regularization(made(end, tried, task=task, free=free, penalty=7.0, decay=decay))

    penalty = found(regularizer=sum)
    assert penalty.name == "too_much_regularization"
    assert penalty.remedies[0].sentence == (
        "Regularize less: a smaller penalty, which is 7 at the start where the loss is 1."
    )
    assert penalty.evidence == "without any of it: loss 0.9 to 0.1, in 150 steps against 600"
    assert found(decay=1e-3).cause.endswith(": the decay, which takes 0.001 of the weights each step")
    dropout = found(free=of(layers.dense(5), layers.dropout(0.9), layers.dense(1)))
    assert dropout.remedies[0].sentence == "Regularize less: a smaller rate in 1 dropout."
    assert found() is None  # there is none
    assert found(decay=1e-4) is None  # 6 % of the weights in 600 steps
    assert found(regularizer=sum, outcome=NO_BETTER) is None
    assert found(regularizer=sum, end=0.3, outcome=reached(0.0)) is None  # it has trained


def test_what_a_decay_takes_off_is_measured():
    decayed = optimizers.chain(optimizers.add_decayed_weights(0.1), optimizers.sgd(0.2))
    pair = (X, REAL)
    task = Task(layers.dense(1), MSE, decayed, None, pair, pair, 16, jax.random.key(0))
    facts = made(task=task)
    del facts.decay
    np.testing.assert_allclose(facts.decay, 0.02, rtol=1e-5)


def test_averages_that_are_behind():
    """0.1 of the training set's loss in training, 0.3 in evaluation: not so far apart that it is sure without a try."""

    def found(in_training=0.1, end=0.3, share=0.05):
        facts = made(end, {"reestimate": reached(share, score=0.9)}, score=0.5)
        for record in facts.history.records:
            record["loss"] = in_training
        return network.averages_behind(facts)

    assert (found().name, [cure.action for cure in found().remedies]) == ("evaluation_differs", ["reestimate"])
    seen = "is 0.1 as the network runs in training, and 0.3 in evaluation (limit 50%); with averages made anew: loss"
    assert seen in found().evidence
    assert found(share=0.2) is None  # more than half of it is left
    assert found(in_training=0.16) is None
    assert found(in_training=0.02, end=0.09, share=0.01) is None  # little is left
    assert found(in_training=0.1, end=0.45) is None  # sure without a try


def test_a_network_that_is_too_small():
    def found(end=0.3, training=0.05, r2=0.9):
        return network.too_small(made(end, {"widen": reached(training, score=r2)}, score=0.5))

    assert (found().name, found().remedies[0].action) == ("underfitting", "widen")
    assert found().evidence.startswith("with a larger network: loss 0.3 to 0.05, R2 of validation 0.50 to 0.90, in 150")
    assert found(r2=0.55) is None
    assert found(training=0.2) is None
    assert found(end=0.09) is None
    assert found(end=0.9) is None  # flat, not trained: what it wants then is tried with the others


def test_a_network_that_is_too_small_and_still_falls():
    """At 60 % of the loss, falling by a tenth of it in each third."""

    def found(training=0.05, fall=0.1, rates=None):
        facts = made(0.6, {"widen": reached(training, score=0.9)}, score=0.5, rates=rates or {})
        facts.fall = fall
        return network.too_small(facts)

    assert found().name == "underfitting"
    assert found(training=0.4) is None  # not half of what is left
    assert found(fall=0.0) is None  # flat
    assert found(rates={10.0: 0.1}) is None  # the rate is at fault


def test_a_rate_with_which_as_many_steps_get_further():
    def found(end=0.3, factor=0.1, training=0.05, r2=0.9, validation=None):
        tried = {("scale_rate", factor): reached(training, validation, score=r2)}
        return rates.another_rate_in_as_many_steps(made(end, tried, score=0.5))

    large, small = found(), found(factor=10.0)
    assert (large.name, small.name) == ("rate_too_large", "rate_too_small")
    assert large.evidence.startswith("with 0.1 times the rate: loss 0.3 to 0.05, R2 of validation 0.50 to 0.90, in 150")
    assert [(cure.action, cure.value) for cure in large.remedies] == [("scale_rate", 0.1), ("clip", None)]
    assert [cure.action for cure in small.remedies] == ["scale_rate", "train_longer"]
    assert found(r2=0.59) is found(r2=math.nan) is None
    assert found(training=0.2) is found(validation=0.3) is None
    assert (
        found(end=0.09) is found(end=0.9) is None
    )  # next to nothing is left; not trained, and then all rates are tried
    assert found(factor=100.0) is None  # which no run that trained is compared with


def test_a_run_that_trained_is_compared_with_runs_of_as_many_steps():
    asked = []
    facts = made(0.3, score=0.5, asked=asked)
    for record in facts.history.records:
        record["loss"] = 0.1
    for look in (network.averages_behind, network.too_small, rates.another_rate_in_as_many_steps):
        assert look(facts) is None
    assert [(action, looks) for action, _, looks in asked] == [
        ("reestimate", LOOKS), ("widen", LOOKS), ("scale_rate", LOOKS), ("scale_rate", LOOKS),
    ]  # fmt: skip


def test_a_batch_that_is_too_large():
    def found(factor, loss, batch=500):
        task = SimpleNamespace(batch_size=batch)
        return rates.another_rate(made(0.9, task=task, rates={factor: loss, 1e3: math.inf}))

    large = found(10.0, 0.1)
    assert large.name == "batch_too_large"
    assert large.evidence.startswith("500 of 1000 samples a step; at 10 times the rate the training loss reaches 0.1 ")
    told = [(cure.action, cure.value) for cure in large.remedies]
    assert told[:2] == [("scale_rate", 10.0), ("smaller_batch", 32)]
    assert told[2][0] == "train_longer"
    assert found(10.0, 0.1, batch=400).name == "rate_too_small"
    assert found(0.1, 0.1).name == "rate_too_large"
    assert found(10.0, 0.5) is None  # not half of what the run left


def test_targets_that_have_nothing_to_do_with_the_inputs():
    def found(validation=1.02, witnesses=(0.0, 0.04), tried=None, samples=10_000):
        held_out = SimpleNamespace(numbers=range(samples))
        facts = made(
            0.6, tried, validation=validation, witnesses=witnesses, held_out_baseline=1.0, held_out=held_out
        )  # fmt: skip
        return labels.unrelated_targets(facts)

    assert (found().name, found().remedies[0].action) == ("unrelated_targets", "pair_again")
    assert "below 102% of the best constant prediction's, and 60% in training; a sample's nearest" in found().evidence
    assert found(validation=0.9) is found(validation=0.97) is None
    assert found(validation=0.91, samples=100) is not None  # of so few, chance may take off a tenth
    assert found(validation=0.89, samples=100) is None
    assert found(witnesses=(0.3, 0.0)) is found(witnesses=(0.0, 0.3)) is None
    assert found(witnesses=None) is None
    assert found(tried={("scale_rate", 0.1): reached(0.9)}) is None  # another run learned something that holds
    assert found(tried={("scale_rate", 0.1): reached(0.5, validation=1.1)}) is not None


@pytest.fixture(scope="module")
def probability():
    """One probability a sample."""
    return FreeOutput.of(layers.chain(layers.dense(1), sigmoid), MSE, X, TWO)


def test_squared_errors_of_classes(probability):
    def found(end=0.9, accuracy=0.9, free=probability, target=TWO):
        tried = {"use_sigmoid_cross_entropy": reached(0.3, score=accuracy, same=False)}
        kind = score.targets(target)
        return outputs.squares_of_classes(made(end, tried, score=0.5, free=free, target=target, kind=kind))

    assert (found().name, found().remedies[0].action) == ("wrong_output", "use_sigmoid_cross_entropy")
    assert "accuracy is 0.90 after 150 steps, with this loss 0.50 after 600" in found().evidence
    assert found(accuracy=0.59) is None
    assert found(end=0.3) is None
    assert found(target=REAL) is None
    assert found(target=2 * TWO - 1) is None
    assert found(free=dataclasses.replace(probability, loss=binary)) is None
    assert found(free=dataclasses.replace(probability, loss=lambda p, y: 3 * losses.mse(p, y))) is not None


def test_a_rectifier_in_front_of_the_loss(probability):
    free = FreeOutput.of(layers.chain(layers.dense(1), relu), MSE, X, POSITIVE)

    def found(end=0.9, outcome=BETTER, free=free, target=POSITIVE, floor=0.0, **more):
        tried, kind = {"drop_output_function": outcome}, score.targets(target)
        facts = made(end, tried, free=free, target=target, kind=kind, floor=floor, score=0.85, **more)
        return outputs.rectified_output(facts)

    assert (found().name, found().remedies[0].sentence) == ("wrong_output", "Leave out 1 relu behind the last layer.")
    assert "without it the loss ends at 10% of the best constant prediction's after 150 steps" in found().evidence
    assert found(outcome=NO_BETTER) is None
    trained = {"end": 0.3, "outcome": reached(0.0, 0.01, score=0.95)}
    assert found(**trained).name == "wrong_output"
    assert found(**trained | {"outcome": reached(0.0, 0.01, score=0.89)}) is None  # no more than 0.05 above
    assert found(**trained | {"outcome": reached(0.2, 0.01, score=0.95)}) is None
    by_heart, asked = trained | {"end": 0.05, "validation": 0.2}, []
    assert found(**by_heart, asked=asked) is not None
    assert [looks for *_, looks in asked] == [LOOKS]  # as many steps as the run
    assert found(**by_heart | {"validation": 0.09}) is None  # little is left of either loss
    assert found(free=probability, target=TWO) is None
    assert found(target=REAL, floor=0.3) is None  # then it is sure without a try that these targets are out of reach


def test_what_even_a_free_table_leaves(probability):
    def found(end=0.9, floor=0.8, resting=True):
        free = dataclasses.replace(probability, resting=resting)
        facts = made(end, free=free, target=TWO, kind=score.targets(TWO), floor=floor)
        return outputs.hardly_representable(facts)

    assert found().name == "wrong_output"
    assert "before 1 sigmoid and the loss, it still has 80% of the best constant" in found().evidence
    assert [cure.action for cure in found().remedies] == ["change_loss", "drop_output_function"]
    assert found(floor=0.5) is found(end=0.3) is found(resting=False) is None


def test_units_that_died():
    def report(*dead):
        return SimpleNamespace(dead=np.array(dead), labels=("0 dense", "1 relu", "3 relu"), loss=np.float32(2))

    def found(before, after, end=0.9):
        return of_layers.died(made(end, reports=[report(math.nan, *before), report(math.nan, *after)], x=X))

    assert found((0.0, 0.1), (0.2, 0.6)).evidence.startswith("60% of the units of 3 relu are 0 on the whole batch at")
    assert found((0.0, 0.1), (0.2, 0.4)) is None
    assert found((0.0, 0.6), (0.2, 0.6)) is None  # born so
    assert found((0.0, 0.1), (0.2, 0.6), end=0.3) is None

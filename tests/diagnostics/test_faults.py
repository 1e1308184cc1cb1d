"""What real programs get wrong: outputs that cannot represent the targets, no gradient, labels, data that nothing can
be trained on; each rule asked by itself, with as few compiled programs as that takes."""

import re
import textwrap
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, diagnostics, layers, losses, optimizers
from jaxnet.diagnostics import refusals, score, witnesses
from jaxnet.diagnostics.anatomy import anatomy, is_flat, missing_activations
from jaxnet.diagnostics.changes import CHANGES, changed
from jaxnet.diagnostics.facts import Curves
from jaxnet.diagnostics.free_output import FreeOutput
from jaxnet.diagnostics.irreducible import less
from jaxnet.diagnostics.rules import curves, labels, outputs
from jaxnet.diagnostics.samples import usable
from jaxnet.diagnostics.trial import Task
from jaxnet.diagnostics.verdict import ACTIONS, remedy
from jaxnet.training import History

N = 64
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
TEN = (np.arange(N) % 10).astype(np.int32)
REAL = X[:, :1] - 0.3
SEVERAL = (X[:, :3] > 0.2).astype(np.float32)
CE, MSE = losses.softmax_cross_entropy, losses.mse
relu, sigmoid, softmax = activations.relu, activations.sigmoid, activations.softmax


def binary(p, y):
    """By hand."""
    p = jnp.clip(p, 1e-7, 1 - 1e-7)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def by_one_hot(p, y):
    """What one_hot does not know it makes a row of zeros of."""
    return -jnp.mean(jnp.sum(jax.nn.one_hot(y, p.shape[-1]) * jax.nn.log_softmax(p), -1))


class Ending(SimpleNamespace):
    """Facts of the output."""

    @cached_property
    def floor(self):
        return self.free.floor() / self.free.baseline(self.net, X)


def ending(*parts, loss, target, trained=False):
    """What the rules of the output ask for."""
    net = layers.chain(layers.dense(5), relu, *parts)
    free = FreeOutput.of(net, loss, X, target)
    lowest = free.floor() if free.dips else 0.0
    if shifted := lowest < 0:
        free.loss, free.shift = less(loss, lowest), lowest
    return Ending(
        net=net, free=free, kind=score.targets(target), target=target, x=X, trained=trained, shifted=shifted,
        parts=free.parts,
    )  # fmt: skip


def column(values):
    return np.asarray(values, np.float32)[:, None]


TWO = column(TEN % 2)
ONE_HOT = np.eye(10, dtype=np.float32)[TEN]

WRONG = {
    "one softmax": ((layers.dense(1), softmax), binary, TWO, "Softmax over one unit", "use_sigmoid_cross_entropy"),
    "one sigmoid": ((layers.dense(1), sigmoid), binary, column(TEN), "10 classes, one output", "use_cross_entropy"),
    "sigmoid": ((layers.dense(1), sigmoid), MSE, REAL, "cannot reach the targets", "drop_output_function"),
    "relu": ((layers.dense(1), relu), MSE, REAL, "cannot reach the targets", "drop_output_function"),
    "-1 and 1": ((layers.dense(1), sigmoid), binary, 2 * TWO - 1, "written -1 and 1", "use_sigmoid_cross_entropy"),
    "softmax twice": ((layers.dense(10), softmax), CE, TEN, "Softmax twice", "drop_output_function"),
    "several labels": ((layers.dense(3),), lambda p, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(p), -1)), SEVERAL,
                       "exactly one holds", "use_sigmoid_cross_entropy"),
    "from 1 to 10": ((layers.dense(10),), by_one_hot, TEN + 1, "counted from 0", "shift_labels"),
    "five outputs": ((layers.dense(5),), by_one_hot, TEN, "Fewer outputs", "use_cross_entropy"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_output_that_cannot_represent_the_targets_is_named(name):
    parts, loss, target, cause, action = WRONG[name]
    found = outputs.wrong_output(ending(*parts, loss=loss, target=target))
    assert found.name == "wrong_output"
    assert cause in found.cause
    assert found.remedies[0].action == action
    assert "{" not in str(found)


RIGHT = {
    "classes": ((layers.dense(10),), CE, TEN),
    "probabilities": ((layers.dense(10), softmax), losses.cross_entropy, ONE_HOT),
    "one probability": ((layers.dense(1), sigmoid), binary, TWO),
    "several labels": ((layers.dense(3),), losses.sigmoid_cross_entropy, SEVERAL),
    "a number": ((layers.dense(1),), MSE, 1e4 * REAL + 7e4),
    "a positive number": ((layers.dense(1), relu), MSE, np.abs(REAL)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_an_output_that_can_is_not(name):
    parts, loss, target = RIGHT[name]
    facts = ending(*parts, loss=loss, target=target)
    assert outputs.wrong_output(facts) is None
    if name in ("one probability", "a positive number"):  # a table in front of it comes near the targets
        assert facts.free.floor() < 0.02 * np.var(target)


def test_a_column_against_a_row_is_found_by_what_the_loss_does():
    row = (REAL[:, 0] / REAL.std() * np.sqrt(0.5)).astype(np.float32)

    def broadcast(p, y):
        return jnp.mean(jnp.square(jnp.broadcast_to(p, (N, N)) - jnp.broadcast_to(y[None], (N, N))))

    found = outputs.wrong_output(ending(layers.dense(1), loss=broadcast, target=row))
    assert "broadcast" in found.cause
    assert found.remedies[0].sentence == "Reshape the target to the prediction's shape, target.reshape(len(target), 1)."
    fine = ending(layers.dense(1), loss=lambda p, y: MSE(p[:, 0], y), target=row)
    assert outputs.wrong_output(fine) is None


@pytest.mark.parametrize(
    ("f", "flat"),
    [
        (jnp.round, True), (jax.lax.stop_gradient, True), (lambda x: x.astype(jnp.int32).astype(x.dtype), True),
        (lambda x: jax.nn.one_hot(x.argmax(-1), 5, dtype=x.dtype), True), (relu, False), (softmax, False),
        (lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x), False),
    ],
    ids=["round", "stop", "cast", "argmax", "relu", "softmax", "straight through"],
)  # fmt: skip
def test_what_lets_no_gradient_through(f, flat):
    calls = anatomy(layers.chain(layers.dense(5), f, layers.dense(1)), X).calls
    assert [is_flat(call) for call in calls] == [False, flat, False]


def test_a_loss_that_counts_has_no_gradient():
    free = FreeOutput.of(layers.dense(3), lambda p, y: jnp.mean((p.argmax(-1) == y).astype(p.dtype)), X, TEN % 3)
    assert not free.has_gradient
    assert FreeOutput.of(layers.dense(3), CE, X, TEN % 3).has_gradient


def test_layers_with_straight_lines_between_them():
    between = [layers.dropout(0.5), layers.batch_norm(), lambda x: 2 * x + 1]
    net = layers.chain(layers.dense(5), *between, layers.residual(layers.dense(5)), jnp.tanh, layers.dense(1))
    found = missing_activations(anatomy(net, X))
    assert [(one.label, other.label) for one, other in found] == [("0 dense", "4.branch dense")]


def test_the_labels():
    def facts(target, held=None, x=X, outputs=10):
        held = target if held is None else held
        return SimpleNamespace(
            x=x, target=target, kind=score.targets(target), held_out=SimpleNamespace(pair=(x, held)),
            free=SimpleNamespace(outputs=outputs),
        )  # fmt: skip

    assert "all 64 targets are 0" in labels.one_class(facts(TEN // 255)).evidence
    assert labels.one_class(facts(TEN)) is None
    assert labels.constant_input(facts(TEN, x=0 * X)).name == "constant_input"
    found = labels.missing_classes(facts(TEN % 3, TEN % 5))
    assert "3, 4" in found.evidence
    assert labels.missing_classes(facts(TEN % 5, TEN % 3)) is None
    assert labels.missing_classes(facts(TEN % 3, TEN % 5, outputs=1)) is None  # whole numbers of a regression
    many = np.arange(N, dtype=np.int32)
    assert labels.missing_classes(facts(many, many + 60)) is None  # tokens, or counts
    assert labels.duplicates(facts(TEN)).name == "duplicates"
    few_values = np.round(np.repeat(X[:8], 8, 0))
    assert labels.duplicates(facts(TEN, x=few_values)) is None


def test_witnesses_tell_related_targets_from_others():
    random = np.random.default_rng(1)
    x = random.standard_normal((400, 3)).astype(np.float32)
    for target, classes in ((x[:, :1] + x[:, 1:2], False), ((x[:, 0] > 0).astype(np.int32), True)):
        assert max(witnesses.explained(x, target, classes)) > 0.3
        apart = target[random.permutation(400)]
        assert max(witnesses.explained(x, apart, classes)) < 0.05


def test_how_many_steps_are_needed():
    # exp(-t / 400) of 1 is 1/2 at t = 277.
    steps = np.arange(1, 21) * 10
    history = History([{"step": int(s), "training_loss": float(np.exp(-s / 400)), "loss": 1.0} for s in steps])
    assert curves.steps_needed(Curves(history, baseline=1.0)) == 280
    found = curves.not_converged(Curves(history, baseline=1.0))
    assert found.remedies[0].sentence == "Train longer, about 280 steps if the loss goes on falling as it did."


def test_a_loss_that_is_larger_in_evaluation():
    records = [{"step": i, "loss": 0.1, "training_loss": 2.0} for i in range(5)]
    names = [verdict.name for verdict in diagnostics.curves_report(History(records), baseline=1.0)]
    assert "evaluation_differs" in names
    records = [{"step": i, "loss": 0.3, "training_loss": 0.2} for i in range(5)]
    assert [v.name for v in diagnostics.curves_report(History(records), baseline=1.0)] == ["healthy"]


def test_the_callback_of_the_guide_shows_averages_that_do_not_follow(capsys):
    page = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text()
    (block,) = re.findall(r"^  ```python\n(.*?training_loss.*?)^  ```", page, re.MULTILINE | re.DOTALL)
    net = layers.chain(layers.dense(8), layers.batch_norm(decay=0.9999), relu, layers.dense(3))
    x = 20 + 3 * X
    exec(textwrap.dedent(block), globals() | {"net": net, "x": x, "labels": (X[:, 0] > 0).astype(np.int32)})
    assert "evaluation differs (certainty 0.85)" in capsys.readouterr().out


def task(net, loss, target):
    return Task(net, loss, optimizers.adam(1e-2), None, (X, target), (X, target), 16, jax.random.key(0))


def test_every_change_keeps_the_rest():
    """What each remedy makes of one network, by what it computes and not by how."""
    net = layers.chain(layers.dense(5), jnp.tanh, layers.dense(3), layers.dropout(0.5), layers.dense(10), softmax)
    values = {"scale_rate": 0.1, "larger_batch": 32, "smaller_batch": 8, "use_cross_entropy": 10}
    it = task(net, losses.cross_entropy, TEN)

    def shapes(other):
        params, _ = other.net.init(0, X)
        return [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]

    words = {"add_activations": {"between": "two"}, "less_regularization": {"less": "all"},
             "drop_output_function": {"function": "it"}}  # fmt: skip
    made: dict[str, Any] = {
        action: changed(it, remedy(action, values.get(action, 1), **words.get(action, {})))
        for action in CHANGES
        if action not in ("use_sigmoid_cross_entropy", "reshape_target", "standardize_target")
    }
    assert shapes(made["widen"]) == [(4, 40), (40, 24), (24, 10)]
    assert shapes(made["deepen"]) == [(4, 5), (5, 3), (3, 64), (64, 10)]
    assert shapes(made["use_cross_entropy"]) == shapes(it) == [(4, 5), (5, 3), (3, 10)]
    assert made["scale_rate"].factor == 0.1
    assert made["larger_batch"].batch_size == 32
    assert made["use_leaky_rectifiers"] is None  # it has no rectifiers
    x, _ = made["standardize_input"].train
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    params = made["initialize"].begin(jax.random.key(0)).params
    np.testing.assert_allclose(params[0]["kernel"].std(), 0.5, rtol=0.5)
    calls = anatomy(made["add_activations"].net, X).calls
    assert [call.label for call in calls][2:4] == ["2.0 dense", "2.1 relu"]
    net = made["less_regularization"].net
    params, state = net.init(0, X)
    np.testing.assert_array_equal(
        net.apply(params, state, X, train=True)[0], net.apply(params, state, X, train=False)[0]
    )
    assert not FreeOutput.of(made["drop_output_function"].net, CE, X, TEN).sums_to_one


REFUSED = {
    "nothing": ((X[:0], TEN[:0]), "too_few_samples", "0 samples"),
    "one sample": ((X[:1], TEN[:1]), "too_few_samples", "1 sample,"),
    "columns of NaN": ((X + np.array([0, np.nan, 0, 0], np.float32), TEN), "non_finite_data", "the features 1 in all"),
    "lengths": ((X, TEN[:9]), "wrong_target", "hold 64, 9 samples"),
    "words": ((np.full((N, 4), "a"), TEN), "wrong_input", "cannot be read"),
    "one array": (X, "wrong_input", "a batch is a pair"),
    "an iterable that ends": (iter([(X[:2], TEN[:2])]), "too_few_samples", "2 samples"),
    "integers": ((X.astype(np.int32), TEN), "wrong_input", "the network refuses the inputs"),
    "several inputs": (({"a": X, "b": X}, TEN), "wrong_input", "the network refuses the inputs"),
    "labels that are no class": ((X, TEN + 90), "wrong_target", "is no class"),
    "floating labels": ((X, TEN.astype(np.float32)), "wrong_target", "ShapeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_end_in_a_verdict(name):
    data, wanted, evidence = REFUSED[name]
    found = diagnostics.diagnose(layers.dense(10), CE, optimizers.sgd(0.1), data)
    (first,) = found.verdicts
    assert first.name == wanted
    assert evidence in first.evidence
    assert str(found).startswith("no step was made\n\n" + wanted.replace("_", " "))
    assert not found.healthy


def test_a_verdict_without_a_run_is_a_page_too(tmp_path):
    found = diagnostics.diagnose(layers.dense(10), CE, optimizers.sgd(0.1), (X[:1], TEN[:1]))
    assert "too few samples" in found.html(tmp_path / "page.html").read_text()


def test_batches_are_gathered():
    both = usable(iter([(X[:9], TEN[:9]), (X[9:], TEN[9:])]))
    assert sorted(both.numbers) == list(range(N))
    np.testing.assert_array_equal(both.pair[0], X[both.numbers])
    endless = ((X, TEN) for _ in iter(int, 1))
    assert len(usable(endless).numbers) == 8192


def test_every_remedy_that_a_rule_names_has_a_sentence():
    assert set(CHANGES) <= set(ACTIONS)
    assert refusals.unbounded(-3.0).verdict.remedies[0].action == "shift_loss"

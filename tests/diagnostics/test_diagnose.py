"""Planted pathologies are found, and the first remedy heals: one of a kind of `python -m benchmarks diagnosis`."""

import functools
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.diagnosis import cases, report
from jaxnet import activations, diagnostics, initializers, layers, losses, optimizers
from jaxnet.diagnostics import pictures
from jaxnet.diagnostics.baseline import constant_loss
from jaxnet.diagnostics.rules import OF_RUNS, Place, data, rule
from jaxnet.diagnostics.rules import layers as of_layers
from jaxnet.diagnostics.trial import Task
from jaxnet.diagnostics.verdict import ACTIONS, Verdict, remedy
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import History

ROOT = Path(__file__).parents[2]


def planted(*names):
    found = {case.name: case for case in cases.CASES}
    return pytest.mark.parametrize("case", [found[name] for name in names], ids=names)


# Of the units, of the rate, of the scale of the weights, of the data.
@planted("relu killed by bias", "rate x 100", "initialization x 0.01", "40 % wrong labels")
def test_a_pathology_comes_first_and_its_first_remedy_heals(case):
    record = report.run(case, size=0, seed=0, steps=400)
    assert record["first"] == case.verdict, record
    assert record["remedied"], record
    assert case.name in report.confusion([record])


@planted("20 sigmoid layers", "exploding linear stack", "initialization x 10", "tanh on raw input")
def test_a_pathology_is_seen_before_the_first_step(case):
    setup = cases.setup(case.plans[0], 0)
    params, state = setup.net.init(0, setup.data[0])
    report = diagnostics.layer_report(setup.net, setup.loss, params, state, setup.data)
    assert case.verdict in [verdict.name for verdict in at_the_start(report, *setup.data)]


@planted("healthy: relu, Adam", "healthy: conv, batch norm")
def test_healthy_runs_are_called_healthy(case):
    found = report.diagnosed(cases.setup(case.plans[0], 0), 0, steps=400)
    assert [verdict.name for verdict in found.verdicts] == ["healthy"], str(found)
    assert found.healthy
    assert report.trains(found)


def test_the_report_the_pictures_and_the_page(tmp_path, monkeypatch):
    """By the guide's program, of a network and data of ours."""
    plan = cases.Plan("rings", width=64, samples=40)
    setup = cases.setup(plan, 0)
    program, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "diagnostics.md").read_text(), re.DOTALL)
    program = re.sub(r"^(net|x, labels) = .*", "", program, flags=re.MULTILINE)
    program = program.replace("1e-3", str(plan.rate)).replace('.html"', '.html", "Rings <1>"')
    scope = {"net": setup.net, "x": setup.data[0], "labels": setup.data[1]}
    own = {"validation": setup.validation, "steps": 200, "progress": False}
    monkeypatch.setattr(diagnostics, "diagnose", functools.partial(diagnostics.diagnose, **own))
    monkeypatch.chdir(tmp_path)
    exec(program, scope)
    found = scope["diagnosis"]
    assert found.verdicts[0].name == "overfitting"
    text = str(found)
    for words in (
        "200 steps: training loss",
        "overfitting (certainty 0.80)",
        "evidence: validation loss",
        "cause: ",
        "1. ",
    ):
        assert words in text
    page = (tmp_path / "diagnosis.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Rings &lt;1&gt;" in page
    assert "http" not in page  # it needs nothing else
    steps = [0, *found.history["step"]]
    drawn = [
        pictures.activation_functions(tmp_path / "functions.png"),
        pictures.activation_histograms(tmp_path / "histograms.png", setup.net, *found.last, setup.data[0]),
        pictures.gradient_flow(tmp_path / "flow.png", [found.reports[0]], ["start"]),
        pictures.learning_curves(
            tmp_path / "curves.png", found.history, baseline=found.baseline, verdict=found.verdicts[0]
        ),
        pictures.weights_over_time(tmp_path / "weights.svg", found.reports, steps),
    ]
    for path in drawn:
        assert path.stat().st_size > 5_000
    assert drawn[0].read_bytes().startswith(b"\x89PNG")


def test_the_samples_to_drop_are_the_callers():
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 3)).astype(np.float32)
    y = x[:, :1].copy()
    x[17, 2], y[40] = np.inf, np.nan
    found = diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.adam(0.05), (x, y), steps=200, batch_size=16)
    first = found.verdicts[0]
    assert (first.name, first.certainty) == ("non_finite_data", 1.0)
    assert first.remedies[0].value == (17, 40)
    assert "Drop or repair 2 samples: 17, 40." in str(first)


def test_what_diagnose_refuses():
    x = np.zeros((20, 3), np.float32)
    with pytest.raises(ConfigError, match="steps must be an integer >= 60"):
        diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, x[:, :1]), steps=3)
    with pytest.raises(ConfigError, match="progress must be True or False"):
        diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, x[:, :1]), progress="no")


def diagnosed(net, loss, optimizer, data, **options):
    """Of a run long enough to see."""
    return diagnostics.diagnose(net, loss, optimizer, data, **{"steps": 100} | options)


N = 400
NORMAL = np.random.default_rng(5).standard_normal((N, 8)).astype(np.float32)
THREE = NORMAL[:, :3].argmax(1).astype(np.int32)
CROSS_ENTROPY = losses.softmax_cross_entropy


def mlp(outputs, width=16):
    """A small network."""
    return layers.chain(layers.dense(width), activations.relu, layers.dense(outputs))


def names(found):
    """Of all verdicts."""
    return [verdict.name for verdict in found.verdicts]


TWO = mlp(2)
ADAM = optimizers.adam(1e-2)


def test_a_minority_is_not_called_mislabelled():
    labels = (np.random.default_rng(0).random(N) < 1 / (1 + np.exp(1.6 - 0.7 * NORMAL[:, 0]))).astype(np.int32)
    found = diagnosed(TWO, CROSS_ENTROPY, ADAM, (NORMAL, labels))
    assert 0.1 < labels.mean() < 0.25
    assert "wrong_labels" not in names(found)


def test_of_overlapping_classes_the_samples_are_to_be_looked_at():
    labels = np.random.default_rng(0).integers(0, 2, N).astype(np.int32)
    x = NORMAL.copy()
    x[:, 0] += 1.7 * (labels - 0.5)
    first = diagnosed(TWO, CROSS_ENTROPY, ADAM, (x, labels)).verdicts[0]
    assert first.name == "wrong_labels"
    assert "overlap" in first.cause
    assert first.remedies[0].action == "drop_samples"
    assert first.remedies[0].sentence.startswith(f"Look at these {len(first.remedies[0].value)} samples first")
    assert "drop or correct what is wrong" in first.remedies[0].sentence


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_the_baseline_is_the_entropy_of_the_shares(share):
    def sigmoid_cross_entropy(p, y):
        return jnp.mean(jnp.logaddexp(0.0, p) - p * y)

    labels = (np.arange(N) < share * N).astype(np.int32)
    p = labels.mean()
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    binary = labels[:, None].astype(np.float32)
    for net, loss, target in (
        (mlp(2), CROSS_ENTROPY, labels),
        (mlp(2), CROSS_ENTROPY, np.eye(2, dtype=np.float32)[labels]),
        (layers.chain(mlp(2), activations.softmax), losses.cross_entropy, labels),
        (mlp(1), sigmoid_cross_entropy, binary),
    ):
        np.testing.assert_allclose(constant_loss(net, loss, (NORMAL, target)), entropy, rtol=1e-4)
    np.testing.assert_allclose(constant_loss(mlp(1), losses.mse, (NORMAL, binary)), p * (1 - p), rtol=1e-4)


@pytest.mark.parametrize("by", [100.0, 0.5], ids=["before the run", "on the way"])
def test_a_loss_below_0_is_measured_from_its_lowest_value(by):
    y = NORMAL[:, :1]
    found = diagnosed(layers.dense(1), lambda p, y: losses.mse(p, y) - by, optimizers.adam(5e-2), (NORMAL, y))
    assert found.healthy


def test_a_loss_without_a_lowest_value_is_refused():
    found = diagnosed(layers.dense(1), lambda p, y: jnp.mean(p * y), ADAM, (NORMAL, NORMAL[:, :1]))
    assert names(found) == ["negative_loss"]


def before_training(net, x, target, trained=False):
    """The verdicts before the first step."""
    params, state = net.init(0, x)
    report = diagnostics.layer_report(net, CROSS_ENTROPY, params, state, (x, target))
    return report, at_the_start(report, x, target, trained)


def at_the_start(report, x, target, trained=False):
    """What the rules say that look at nothing later."""
    facts = SimpleNamespace(x=x, target=target, before=report, trained=trained)
    rules = [rule for rule in OF_RUNS if Place.SCALE <= rule.place <= Place.GRADIENT or rule is of_layers.born_dead]
    return [verdict for rule in rules if (verdict := rule(facts))]


class TestWhatDoesNoHarm:
    """Facts that are unusual but keep nothing from training."""

    def test_a_network_that_standardizes_its_input(self):
        net = layers.chain(lambda x: (x - 50) / 20, mlp(3))
        assert before_training(net, 50 + 20 * NORMAL, THREE)[1] == []

    def test_a_norm_behind_the_first_layer(self):
        net = layers.chain(layers.dense(16), layers.layer_norm(), activations.relu, layers.dense(3))
        assert before_training(net, 50 + 20 * NORMAL, THREE)[1] == []

    def test_small_kernels_before_norms(self):
        small = layers.dense(16, kernel_init=initializers.normal(0.02))
        net = layers.chain(small, layers.layer_norm(), activations.relu, small, layers.layer_norm(), layers.dense(3))
        assert before_training(net, NORMAL, THREE)[1] == []

    def test_small_kernels_that_train(self):
        small = initializers.normal(0.02)
        net = layers.chain(layers.dense(16, kernel_init=small), activations.relu, layers.dense(3, kernel_init=small))
        found = diagnosed(net, CROSS_ENTROPY, ADAM, (NORMAL, THREE), steps=200)
        assert names(found) == ["healthy", "initialization_too_small"]
        assert found.verdicts[1].certainty == 0.95 / 2
        assert found.healthy

    def test_one_hot_inputs(self):
        x = np.eye(64, dtype=np.float32)[np.arange(N) % 64]
        assert before_training(mlp(3), x, THREE)[1] == []


@pytest.mark.parametrize(
    ("scale", "dtype", "evidence"),
    [(1e-4, jnp.float32, "below 0.2"), (50.0, jnp.float32, "above 5"), (50.0, jnp.bfloat16, "above 5")],
)
def test_inputs_too_small_and_too_large(scale, dtype, evidence):
    (first,) = before_training(mlp(3), (scale * NORMAL).astype(dtype), THREE)[1]
    assert first.name == "unnormalized_input"
    assert evidence in first.evidence


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (1e6 + 1e3 * NORMAL, True),
        (1e-3 * NORMAL, True),
        (1e3 + NORMAL, True),
        ((50 * NORMAL).astype(jnp.bfloat16), True),
        (NORMAL, False),
        ((NORMAL > 2.5).astype(np.float32), False),  # a rare class
        (THREE, False),
    ],
)
def test_targets_in_units_of_measurement(target, wanted):
    found = data.unnormalized_target(SimpleNamespace(target=target, trained=False))
    assert (found is not None and found.name == "unnormalized_target") is wanted
    assert data.unnormalized_target(SimpleNamespace(target=target, trained=True)) is None


def test_such_targets_come_before_the_rate_and_what_was_tried_is_counted(monkeypatch):
    y, took = 1e4 + 1e3 * NORMAL[:, :1], []
    orders = Task.orders
    monkeypatch.setattr(Task, "orders", lambda task, steps: took.append(steps) or orders(task, steps))
    found = diagnosed(mlp(1), losses.mse, optimizers.adam(1e-3), (NORMAL, y), progress=took.append)
    run, line, *tries = took  # what the tries cost is said before they begin
    assert run == 100
    most, steps, times = map(
        float, re.search(r"at most (\d+) times for (\d+) steps .*, ([\d.]+) times the", line).groups()
    )
    assert set(tries) == {steps} == {60.0}
    assert len(tries) >= 6
    assert found.cost == (run + sum(tries)) / run <= times
    assert len(tries) <= most
    seen = {(cure.action, cure.value): cure.seen for verdict in found.verdicts for cure in verdict.remedies}
    assert re.fullmatch(r"tried: loss .* to .*, in 60 steps against 100", seen["scale_rate", 1000.0])
    assert seen["train_longer", None] == "not tried"
    assert names(found)[:2] == ["unnormalized_target", "rate_too_small"]
    assert found.verdicts[0].remedies[0].action == "standardize_target"
    assert "overfitting" not in names(found)


def test_nan_in_validation_is_reported():
    held_out = NORMAL[:50].copy()
    held_out[7, 0] = np.nan
    y = NORMAL[:, :1]
    options = {"net": layers.dense(1), "loss": losses.mse, "optimizer": optimizers.adam(0.05), "data": (NORMAL, y)}
    first = diagnosed(**options, validation=(held_out, y[:50])).verdicts[0]
    assert (first.name, first.remedies[0].action) == ("non_finite_data", "drop_validation_samples")
    assert first.evidence == "validation sample 7 holds NaN or Inf, 1 of 50"
    assert first.remedies[0].value == (7,)
    few = diagnosed(**options, validation=(NORMAL[:3], y[:3])).verdicts[0]
    assert few.evidence.startswith("3 samples of validation, at least 4 are needed")


def test_a_gradient_of_exactly_0_has_vanished(tmp_path, monkeypatch):
    net = layers.chain(layers.dense(16, bias_init=initializers.constant(40.0)), jnp.tanh, layers.dense(3))
    report, (first,) = before_training(net, NORMAL, THREE)
    assert first.name == "vanishing_gradient"
    assert report.gradient_ratio == 0
    labels = []
    monkeypatch.setattr(
        pictures, "saved", lambda picture, path: labels.extend(picture.axes[0].get_legend().get_texts())
    )
    pictures.gradient_flow(tmp_path / "flow.png", [report], ["start"])
    assert [text.get_text() for text in labels] == ["start", "exactly 0"]
    with pytest.raises(ConfigError, match="gradient_flow: 12 reports can be told apart, got 21"):
        pictures.gradient_flow(tmp_path / "flow.png", [report] * 21, [str(i) for i in range(21)])


@pytest.mark.parametrize("end", [np.inf, np.nan])
def test_a_run_that_ended_in_no_number_is_told_without_a_warning(end):
    found = diagnostics.curves_report(curves([1.0, 0.5, *[end] * 4]))
    assert [verdict.name for verdict in found] == ["divergence"]


def curves(loss, validation=None, deviation=0.0, skipped=0):
    """A history with these columns."""
    records = []
    for i, value in enumerate(loss):
        record = {"epoch": i + 1, "step": 10 * i + 10, "loss": value, "loss_deviation": deviation, "skipped": skipped}
        records.append(record | ({} if validation is None else {"validation_loss": validation[i]}))
    return History(records)


TIME = np.arange(20)


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        (curves(np.exp(-TIME / 4), np.exp(-TIME / 4) + 0.02), "healthy"),
        (curves(np.exp(-TIME / 4), 0.3 + 0.05 * TIME), "overfitting"),
        (curves(0.8 + 0.2 * np.exp(-TIME), 0.82 + 0.2 * np.exp(-TIME)), "underfitting"),
        (curves(0.8 + 0.2 * np.exp(-TIME)), "plateau"),
        (curves(1 - 0.4 * TIME / 19), "not_converged"),
        (curves(1 - 0.004 * TIME), "rate_too_small"),
        (curves(1.2**TIME), "divergence"),
        (curves([1.0, 0.8, 0.6, np.nan]), "divergence"),
        (curves(np.exp(-TIME / 4), skipped=6), "divergence"),
        (curves(np.exp(-TIME / 4), skipped=5), "healthy"),  # of 10 steps: what a loss scale does
        (curves(np.exp(-TIME / 4), np.where(TIME < 19, 0.1, np.nan)), "divergence"),
        (curves([np.nan, 1.0, 0.4, 0.1]), "healthy"),
        (curves([1.0, 0.3, 0.1, 0.12, 0.3, 0.32, 0.35, 0.34, 0.36]), "rate_too_large"),
        (curves([1.0, 0.1, 0.01, 1e-4, *[1e-3] * 5]), "healthy"),  # ten times its minimum, and next to nothing
        (curves(0.8 + 0.2 * np.exp(-TIME), deviation=0.5), "noisy_gradient"),
    ],
)
def test_curves(history, wanted):
    assert wanted in [verdict.name for verdict in diagnostics.curves_report(history)]


def test_curves_need_records():
    with pytest.raises(DataError, match="curves_report: at least three records are needed to see a curve, got 2"):
        diagnostics.curves_report(curves([1.0, 0.5]))


def test_curves_need_positive_losses():
    with pytest.raises(
        DataError, match=r"a loss of -1\.3 is below 0, and ratios of losses .* a cross-entropy is below 0 only"
    ):
        diagnostics.curves_report(curves([1.0, 0.0, -1.3, -1.2]))
    with pytest.raises(DataError, match="below 0"):
        diagnostics.curves_report(curves([1.0, 0.5, 0.2], validation=[1.0, 0.1, -0.1]))
    with pytest.raises(DataError, match="the loss starts at 0"):
        diagnostics.curves_report(curves([0.0, 0.5, 0.2]))


def test_what_is_worse_than_a_constant_does_not_overfit():
    found = diagnostics.curves_report(curves(np.full(9, 4.8), np.full(9, 6.4)), baseline=4.0)
    assert "overfitting" not in [verdict.name for verdict in found]


def test_a_loss_that_rose_before_it_fell_is_no_straight_line():
    found = diagnostics.curves_report(curves(0.95 + 0.03 * np.sin(np.pi * TIME / 19)))
    assert [verdict.name for verdict in found] == ["plateau"]


def test_every_remedy_is_a_sentence_with_a_topic_of_the_chapter():
    topics = {
        "activation", "initialization", "normalization", "residual", "clipping", "regularization", "rate", "batch",
        "data", "architecture", "training", "loss",
    }  # fmt: skip
    for action in ACTIONS:
        values = {"scale_rate": 0.1, "drop_samples": [3], "drop_validation_samples": [3]} | {"reshape_target": (6, 1)}
        words = dict.fromkeys(("between", "less", "function", "loss", "layer", "features", "how", "what"), "it")
        made = remedy(action, values.get(action, 64), **words)
        assert made.topic in topics
        assert made.sentence.endswith(".")
        assert "{" not in made.sentence
    assert "0, 1, 2, 3, 4, 5, 6, 7, ..." in remedy("drop_samples", range(20)).sentence


def test_a_new_rule_is_a_function_in_one_file():
    module = ModuleType("mine")

    @rule.rule(Place.RATE, 0.6)
    def mine(facts):
        return rule.verdict("mine", "", "", ()) if facts else None

    module.__dict__.update(mine=mine, other=len)
    assert rule.rules_in(module) == (mine,)
    assert mine(True) == Verdict("mine", 0.6, "", "")
    assert mine(False) is None


def test_it_is_a_benchmark():
    assert "diagnosis" in benchmarks.names()

"""Planted pathologies are found, and the first remedy heals: one seed and size of `python -m benchmarks diagnosis`."""

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.diagnosis import cases, report
from jaxnet import diagnostics, layers, losses, optimizers
from jaxnet.diagnostics import pictures
from jaxnet.diagnostics.verdict import ACTIONS, remedy
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import History


@pytest.fixture(autouse=True)
def _quickly(quick_compilation):
    """None of this needs fast programs."""


@pytest.mark.parametrize("case", cases.PATHOLOGIES, ids=lambda case: case.name)
def test_a_pathology_comes_first_and_its_first_remedy_heals(case):
    record = report.run(case, size=0, seed=0, steps=400)
    assert record["first"] == case.verdict, record
    assert record["remedied"], record
    assert case.name in report.confusion([record])


@pytest.mark.parametrize("case", cases.HEALTHY, ids=lambda case: case.name)
def test_healthy_runs_are_called_healthy(case):
    found = report.diagnosed(cases.setup(case.plans[0], 0), 0, steps=400)
    assert [verdict.name for verdict in found.verdicts] == ["healthy"], str(found)
    assert found.healthy
    assert report.trains(found)


def test_the_report_the_pictures_and_the_page(tmp_path):
    setup = cases.setup(cases.Plan("rings", width=64, samples=40), 0)
    found = report.diagnosed(setup, 0, steps=200)
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
    page = found.html(tmp_path / "page.html", "Rings <1>").read_text()
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
    with pytest.raises(DataError, match=r"diagnose: x and target must hold one entry a sample, got lengths \[10, 20\]"):
        diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, x[:10, :1]))
    with pytest.raises(DataError, match="at least four samples without NaN or Inf are needed, got 0"):
        diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), (x * np.nan, x[:, :1]))
    with pytest.raises(DataError, match="7"):
        diagnostics.diagnose(layers.dense(3), losses.softmax_cross_entropy, optimizers.sgd(0.1), (x, np.full(20, 7)))
    with pytest.raises(ConfigError, match="steps must be an integer >= 60"):
        diagnostics.diagnose(layers.dense(1), losses.mse, optimizers.sgd(0.1), (x, x[:, :1]), steps=3)


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
        (curves(np.exp(-TIME / 4), skipped=3), "divergence"),
        (curves([1.0, 0.3, 0.1, 0.12, 0.3, 0.32, 0.35, 0.34, 0.36]), "rate_too_large"),
        (curves(0.8 + 0.2 * np.exp(-TIME), deviation=0.5), "noisy_gradient"),
    ],
)
def test_curves(history, wanted):
    assert wanted in [verdict.name for verdict in diagnostics.curves_report(history)]


def test_curves_need_records():
    with pytest.raises(DataError, match="curves_report: at least three records are needed to see a curve, got 2"):
        diagnostics.curves_report(curves([1.0, 0.5]))


def test_every_remedy_is_a_sentence_with_a_topic_of_the_chapter():
    topics = {
        "activation", "initialization", "normalization", "residual", "clipping", "regularization", "rate", "batch",
        "data", "architecture", "training",
    }  # fmt: skip
    for action in ACTIONS:
        made = remedy(action, {"drop_samples": range(20), "scale_rate": 0.1, "larger_batch": 64}.get(action))
        assert made.topic in topics
        assert made.sentence.endswith(".")
        assert "{" not in made.sentence
    assert "0, 1, 2, 3, 4, 5, 6, 7, ..." in remedy("drop_samples", range(20)).sentence


def test_it_is_a_benchmark():
    assert "diagnosis" in benchmarks.names()

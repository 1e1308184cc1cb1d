"""The comparison with Griffin-Lim: its table, its picture, its timing, and what it refuses."""

import json
import shutil
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from examples.vocoder import data, evaluate, griffin_lim, mel, planning, samples
from examples.vocoder.mel import MelConfig
from jaxnet import training
from jaxnet.errors import ConfigError, DataError, DependencyError

SPEECH = Path(__file__).parent / "speech"
CONFIG = MelConfig()


@pytest.fixture
def vocoder(monkeypatch):
    """A stand-in for a trained network, whose polish is Griffin-Lim itself; it records what it was asked for."""
    asked, can_polish = [], [True]

    def load_generator(run, phase):
        def vocoder(log_mel, polish=0):
            asked.append((str(run), polish))
            return np.asarray(griffin_lim.from_log_mel(CONFIG, log_mel, polish))

        vocoder.config, vocoder.can_polish = CONFIG, can_polish[0]
        return vocoder

    monkeypatch.setattr(evaluate.synthesize, "load_generator", load_generator)
    monkeypatch.setattr(evaluate.synthesize, "best_phase", lambda run: "spectral")
    return types.SimpleNamespace(asked=asked, can_polish=can_polish)


def test_a_run_is_compared_with_griffin_lim(speech, vocoder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pystoi", reason="the package pystoi is not installed")
    monkeypatch.setattr(evaluate, "_core_counts", lambda: [1, 2])
    monkeypatch.setattr(evaluate, "_clock_apart", lambda cores, args, wave: dict.fromkeys(ROWS, 0.25 / cores))
    monkeypatch.setattr(evaluate, "NEEDS", {**evaluate.NEEDS, "PESQ-wb": "absent", "PESQ-wb, any frames": "absent"})
    result = evaluate.main(
        ["--run", "a-run", "--polish", "5", "--data", str(SPEECH), "--out", str(tmp_path), "--per-prompt"]
    )
    assert set(vocoder.asked) == {("a-run", 0), ("a-run", 5)}
    table = result["prompts"]
    assert list(table) == ROWS
    error = {row: columns["mel error"]["demo-echodone.g722"] for row, columns in table.items()}
    assert error["Griffin-Lim 60"] < error["Griffin-Lim 32"] < error["network, polish 5"] < error["network"]
    wave = speech.test["demo-echodone.g722"]
    made = griffin_lim.from_log_mel(CONFIG, mel.log_mel(CONFIG, jnp.asarray(wave)), 60, key=1)
    difference = mel.log_mel(CONFIG, jnp.asarray(wave)) - mel.log_mel(CONFIG, made)
    assert error["Griffin-Lim 60, seed 1"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    printed = capsys.readouterr().out
    assert "not installed, so their columns are left out: absent; pip install absent" in printed
    assert "|  | STOI | ESTOI | mel error | LSD, dB | MCD13, dB | RTF, 1 core | RTF, 2 cores |" in printed
    assert "| 0.2500 | 0.1250 |" in printed
    assert f"| demo-echodone.g722 | {table['network']['STOI']['demo-echodone.g722']:.3f} |" in printed
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["prompts"] == table
    assert written["phases"] == {"a-run": "spectral"}
    assert written["config"] == CONFIG._asdict()
    assert (tmp_path / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


ROWS = ["Griffin-Lim 32", "Griffin-Lim 60", "Griffin-Lim 60, seed 1", "network", "network, polish 5"]


def test_a_generator_without_magnitudes_has_no_polished_row(vocoder):
    run = [Path("a-run")]
    assert list(evaluate.synthesizers(run, 5)[1]) == ROWS
    assert list(evaluate.synthesizers(run, 0)[1]) == ROWS[:4]
    vocoder.can_polish[0] = False
    assert list(evaluate.synthesizers(run, 5)[1]) == ROWS[:4]
    assert list(evaluate.synthesizers([*run, Path("other")], 5)[1]) == [*ROWS[:3], "a-run", "other"]
    with pytest.raises(ConfigError, match="named after the runs' folders, of which two have one name"):
        evaluate.synthesizers([*run, Path("b/a-run")], 5)


def test_curves_are_drawn_of_what_was_measured(tmp_path):
    history = training.History([{"seconds": 60.0, "validation_mel": 0.3}, {"seconds": 30.0, "validation_mel": 0.2}])
    both = {"a": {"spectral": history, "adversarial": history}, "b": {"spectral": history}}
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, dpi: drawn.update(axes=figure.axes))
        samples.draw_curves(tmp_path / "curves.png", both)
    (axes,) = drawn["axes"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["a"] == [[1, 0.3], [1.5, 0.2], [2.5, 0.3], [3, 0.2]]
    assert lines["b"] == [[1, 0.3], [1.5, 0.2]]
    scored = training.History([{"seconds": 60.0, "validation_mel": 0.3, "validation_pesq": 2.0}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, dpi: drawn.update(axes=figure.axes))
        samples.draw_curves(tmp_path / "curves.png", {"a": {"spectral": history, "adversarial": scored}})
    pesq, _ = drawn["axes"]
    (line,) = (line for line in pesq.lines if line.get_label() == "a")
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, np.nan, 2.0])


def test_a_run_is_tested_on_what_it_held_out(tmp_path):
    pytest.importorskip("av", reason="PyAV, which decodes the bundled speech, is not installed")
    folder = tmp_path / "speech"
    shutil.copytree(SPEECH, folder)
    first = data.load(folder)
    held_out = {"folder": str(folder), "validation": [*first.validation], "test": ["something-terribly-wrong.g722"]}
    planning.Run(tmp_path / "run", {}, held_out).plan("spectral", lambda: planning.Plan(1, 1))
    args = types.SimpleNamespace(run=[tmp_path / "run"], data=None)
    assert list(evaluate._prompts(args, CONFIG)) == ["something-terribly-wrong.g722"]
    args.data = SPEECH  # the same files elsewhere
    assert list(evaluate._prompts(args, CONFIG)) == ["something-terribly-wrong.g722"]
    planning.Run(tmp_path / "other", {}, {**held_out, "test": [*first.test]}).plan(
        "spectral", lambda: planning.Plan(1, 1)
    )
    args.run.append(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other and .*run hold out different recordings; evaluate them apart"):
        evaluate._prompts(args, CONFIG)
    args.run[:] = [tmp_path / "other"]
    (folder / next(iter(first.validation))).unlink()
    args.data = folder.rename(tmp_path / "another")  # which has not what the run held out
    assert planning.held_out(args.run[0], args.data) is None
    (tmp_path / "run" / "run.json").write_text('{"settings": {}, "plan": {}}')
    assert planning.held_out(tmp_path / "run", folder) is None


def test_prompts_without_a_score_are_left_out_of_the_mean(speech):
    pytest.importorskip("pystoi", reason="the package pystoi is not installed")
    prompts = {"speech": next(iter(speech.test.values()))[:32000], "too short": np.ones(5120, np.float32)}
    table = evaluate.measure(CONFIG, {"noise": lambda log_mel: np.ones(256 * len(log_mel), np.float32)}, prompts)
    assert np.isnan(table["noise"]["STOI"]["too short"])
    assert 0 <= table["noise"]["STOI"]["speech"] < 0.6
    assert np.isfinite(table["noise"]["mel error"]["too short"])
    nan = float("nan")
    assert evaluate.markdown({"a": {"m": {"p": nan, "q": 3.0, "r": 1.0}, "n": {"p": nan, "q": nan}}}, {}).endswith(
        "| a | 2.000 ± 1.000 (of 2) | - |"
    )


def test_timing_in_a_process_of_its_own(speech):
    args = types.SimpleNamespace(run=[], polish=1, phase=None)
    factors = evaluate._clock_apart(1, args, next(iter(speech.test.values())))
    assert list(factors) == ROWS[:3]
    assert all(0 < factor < np.inf for factor in factors.values())
    args.run = [Path("absent")]
    with pytest.raises(DataError, match=r"(?s)the timing on 1 cores failed:.*absent holds no generator"):
        evaluate._clock_apart(1, args, np.ones(5120, np.float32))


def test_clock_leaves_out_the_first_call_and_gives_each_row_its_own_factor():
    def taking(*seconds):
        calls = iter(seconds)

        def speak(log_mel):
            elapsed[0] += next(calls)

        return speak

    elapsed = [0.0]
    rows = {
        "slow": taking(5.0, *range(evaluate.REPEATS)),  # a first call of 5 s, then 0, 1, 2, 3, 4 s
        "quick": taking(5.0, *[0.5] * evaluate.REPEATS),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.time, "perf_counter", lambda: elapsed[0])
        factors = evaluate.clock(CONFIG, rows, np.zeros(32000, np.float32))
    assert factors == {"slow": 1.0, "quick": 0.25}


def test_means_and_deviations():
    table = {"a": {"m": {"p": 1.0, "q": 3.0}, "n": {"p": 0.5, "q": 0.5}}}
    assert evaluate.markdown(table, {1: {"a": 0.1}, 4: {"a": 0.03}}).splitlines() == [
        "|  | m | n | RTF, 1 core | RTF, 4 cores |",
        "|---|---|---|---|---|",
        "| a | 2.000 ± 1.000 | 0.500 ± 0.000 | 0.1000 | 0.0300 |",
    ]
    assert evaluate.markdown_by_prompt(table).splitlines()[2:] == ["| p | 1.000 | 0.500 |", "| q | 3.000 | 0.500 |"]


def test_refusals(tmp_path, monkeypatch):
    wave = 0.1 * np.ones(5120, np.float32)
    with pytest.raises(DataError, match="there are no test prompts"):
        evaluate.measure(CONFIG, {}, {})
    with pytest.raises(DataError, match="measure: broken made NaN or Inf of a; its training went wrong"):
        evaluate.measure(CONFIG, {"broken": lambda log_mel: np.full(5120, np.nan)}, {"a": wave})
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(DependencyError, match="the package matplotlib is needed"):
        samples.draw_spectrograms(tmp_path / "a.png", CONFIG, {"a": wave})

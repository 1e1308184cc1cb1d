"""The vocoder learns within seconds, goes on exactly where it was, and speaks."""

import importlib.util
import itertools
import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.vocoder import audio, losses, mel, phases, planning, samples, synthesize, time_generators, train
from jaxnet import layers, training
from jaxnet.errors import ConfigError, ShapeError

pytest.importorskip("av")

SPEECH = Path(__file__).parent / "speech"
CONFIG = mel.MelConfig()
BRIEF = ["--generator", "S", "--batch-size", "2", "--length", "4096"]


class Fingerprint:
    """In the place of validation: a number that two runs have in common only where they have all their weights."""

    def __init__(self, *arguments):
        pass

    def __call__(self, params):
        return {"mel": sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(params))}

    def write(self, params, name):
        pass


@pytest.fixture
def tiny(monkeypatch):
    """A generator, discriminators and a loss of one resolution: of a size at which only compiling takes time."""

    def describe(config, wave):
        magnitude = mel.magnitude(config, wave)
        return losses.Target(wave, (magnitude,), mel.compress(config, magnitude))

    monkeypatch.setattr(losses, "describe", describe)
    monkeypatch.setattr(train, "Validation", Fingerprint)
    size = phases.SIZES["S"]._replace(width=8, dilations=(1,))
    monkeypatch.setitem(train.GENERATORS, "S", lambda config: phases.frame_generator(config, size))
    monkeypatch.setattr(
        phases.discriminators, "period_discriminator_tiny", lambda: phases.discriminators.multi_period((2,), (4, 4))
    )
    monkeypatch.setattr(
        phases.discriminators,
        "spectrogram_discriminator",
        lambda config: phases.discriminators.multi_period((3,), (4, 4)),
    )


def test_seconds_of_training_teach_it_to_speak(tmp_path, capsys):
    """From 5 s of speech, 150 steps take a fourth off an untrained network's error on a sentence never heard.

    Untrained, it is two rounds of Griffin-Lim from the pseudo-inverse's magnitudes.
    """
    speech = train.data.load(SPEECH, CONFIG)
    net = train.GENERATORS["S"](CONFIG)
    validation = train.Validation(CONFIG, net, speech.validation, tmp_path)
    untrained = validation(net.init(jax.random.key(0), jnp.zeros((1, 32, 80)))[0])["mel"]
    assert 0.35 < untrained < 0.45
    histories = train.main(
        ["--data", str(SPEECH), *BRIEF, "--length", "8192", "--steps", "150", "0", "--out", str(tmp_path)]
    )
    errors = histories["spectral"]["validation_mel"]
    assert errors[-1] < 0.76 * untrained, untrained  # 0.751 on a processor without AVX-512
    losses, mels = (histories["spectral"][name] for name in ("loss", "mel"))
    assert losses[-1] < 0.85 * losses[0]
    assert mels[-1] < 0.75 * mels[0]
    if importlib.util.find_spec("pystoi"):
        stoi = histories["spectral"]["validation_stoi"]
        assert stoi[0] < stoi[-1] < 1
        assert stoi[-1] > 0.88
    printed = capsys.readouterr().out
    assert "S: 1,260,291 parameters" in printed
    assert "left" in printed
    assert (tmp_path / "samples" / "spectral-006.png").read_bytes().startswith(b"\x89PNG")
    assert training.History.load(tmp_path / "spectral.jsonl")["validation_mel"][-1] == errors[-1]

    vocoder = synthesize.load_generator(tmp_path)
    assert vocoder.config == CONFIG
    ((name, recording),) = train.data.load(SPEECH, CONFIG).test.items()
    log_mel = np.asarray(mel.log_mel(CONFIG, recording))
    polished = {}
    for polish in (0, 8):
        wave = vocoder(log_mel, polish)
        assert wave.dtype == np.float32
        assert wave.shape == recording.shape
        polished[polish] = np.mean(np.abs(np.asarray(mel.log_mel(CONFIG, wave)) - log_mel))
    assert polished[0] < 0.33
    assert polished[8] < polished[0]
    with pytest.raises(ShapeError, match=r"must be \(T, 80\), got \(1, 3, 80\)"):
        vocoder(log_mel[None, :3])

    synthesize.main([str(SPEECH / name), str(tmp_path / "made.wav"), "--run", str(tmp_path)])
    made = audio.read(tmp_path / "made.wav", 16000)
    np.testing.assert_allclose(made[:16000], np.clip(vocoder(log_mel), -1, 1)[:16000], atol=1e-4)


def test_minutes_become_a_plan_that_is_kept_by_a_run_that_is_stopped_and_goes_on_exactly(
    tiny, tmp_path, capsys, monkeypatch
):
    measured = []

    def plan_seconds(*seconds):
        measured.append(seconds)
        return planning.Plan(2, 6)

    monkeypatch.setattr(train, "plan_seconds", plan_seconds)
    arguments = ["--data", str(SPEECH), *BRIEF, "--minutes", "100", "--adversarial", "0.25", "--out"]
    unbroken = train.main([*arguments, str(tmp_path / "unbroken")])
    assert capsys.readouterr().out.count("ms a step") == 2
    (spectral, *times), (adversarial, *more_times) = measured
    assert 3000 < spectral < 4500  # three fourths of the time, but for what has gone by
    assert 750 <= adversarial < 6000
    assert all(0 < time < 600 for time in (*times, *more_times))
    assert json.loads((tmp_path / "unbroken/run.json").read_text())["plan"] == {
        phase: {"epochs": 2, "steps_per_epoch": 6} for phase in train.PHASES
    }

    def stop(self, params, name):
        """Ctrl-C after the first epoch of the second phase: the run is saved at its next step."""
        if name == "adversarial-001":
            signal.raise_signal(signal.SIGINT)

    shutil.copytree(tmp_path / "unbroken", tmp_path / "broken", ignore=shutil.ignore_patterns("adversarial*"))
    with monkeypatch.context() as patch:
        patch.setattr(Fingerprint, "write", stop)
        with pytest.raises(KeyboardInterrupt, match="saved at step"):
            train.main([*arguments, str(tmp_path / "broken")])
    assert "ms a step" not in capsys.readouterr().out  # what was planned is not measured again
    broken = train.main([*arguments, str(tmp_path / "broken")])
    printed = capsys.readouterr().out
    assert len(measured) == 2
    assert "spectral: epoch 2 of 2 is done" in printed
    assert "adversarial: epoch 1 of 2 is done" in printed
    for phase in train.PHASES:
        like = jax.eval_shape(lambda: train.GENERATORS["S"](CONFIG).init(0, jnp.zeros((1, 32, 80)))[0])
        pair = [training.load(tmp_path / run / phase, like) for run in ("broken", "unbroken")]
        jax.tree.map(np.testing.assert_array_equal, *pair)
        assert broken[phase]["step"][-1] == 12
        for name in ("loss", "validation_mel"):
            np.testing.assert_array_equal(broken[phase][name], unbroken[phase][name])


def test_another_run_is_not_overwritten(tmp_path):
    run = planning.Run(tmp_path, {"seed": 0, "generator": "S"}, {})
    made = run.plan("spectral", lambda: planning.Plan(3, 100))
    again = planning.Run(tmp_path, {"seed": 0, "generator": "S"}, {})
    assert again.plan("spectral", lambda: pytest.fail("it was planned already")) == made
    with pytest.raises(ConfigError, match="had other settings \\(seed 0, now 1\\)"):
        planning.Run(tmp_path, {"seed": 1, "generator": "S"}, {})


def test_plans_keep_to_the_time():
    for seconds, step, epoch in itertools.product((20, 100, 1000), (0.01, 0.3), (0.1, 1.0)):
        plan = planning.plan_seconds(seconds, step, epoch)
        takes = plan.steps * step + plan.epochs * epoch
        assert seconds - plan.epochs * step - 1e-9 <= takes <= seconds
    assert planning.plan_seconds(120, 1.0, 20.0) == planning.Plan(1, 100)  # not 160 s of validating
    assert planning.plan_steps(800) == planning.Plan(20, 40)
    assert planning.plan_steps(0).epochs == 1


def test_the_average_follows_the_parameters():
    optimizer = phases.ema(phases.optimizers.sgd(1.0), 0.9)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([-1.0, 2.0])}
    state = optimizer.init(params)
    average = np.zeros(2)
    for _ in range(5):
        updates, state = optimizer.update(grads, state, params)
        params = phases.optimizers.apply_updates(params, updates)
        average = 0.9 * average + 0.1 * np.asarray(params["w"])
    np.testing.assert_allclose(params["w"], [5, -10])
    np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)


def test_the_better_phase_is_told_by_the_validation_set(tmp_path):
    records = {"spectral": [{"validation_mel": 0.2, "validation_pesq": 2.0}] * 2, "adversarial": [{}]}
    for name in phases.PHASES:
        (tmp_path / name).write_text("")

    def best(**adversarial):
        records["adversarial"] = [adversarial]
        for name, lines in records.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return synthesize.best_phase(tmp_path)

    assert best(validation_mel=0.3, validation_pesq=2.1) == "adversarial"
    assert best(validation_mel=0.1, validation_pesq=1.9) == "spectral"
    assert best(validation_mel=0.1) == "adversarial"
    assert best(validation_mel=0.3, validation_pesq=float("nan")) == "spectral"
    (tmp_path / "adversarial.jsonl").unlink()  # its first epoch was not finished
    assert synthesize.best_phase(tmp_path) == "spectral"


def test_what_fills_up_a_spectrogram_does_not_fade_the_wave(tmp_path):
    """A length that is no multiple of 64 frames gives what the generator alone makes of it, but for the last frames."""
    net = phases.GENERATORS["S"](CONFIG)
    log_mel = np.random.default_rng(0).normal(-4, 1, (50, 80)).astype(np.float32)
    params, state = net.init(jax.random.key(0), log_mel[None])
    alone = jax.jit(net.apply, static_argnames="train")(params, state, log_mel[None], train=False)[0].wave[0]
    vocoder = synthesize.Vocoder(CONFIG, net, params)
    filled = vocoder(log_mel)
    assert filled.shape == alone.shape
    scale = float(np.abs(alone).max())
    end = len(alone) - 32 * CONFIG.hop  # what sees the end
    np.testing.assert_allclose(filled[:end], alone[:end], atol=1e-4 * scale)
    seen = []
    vocoder._wave = lambda params, x: (seen.append(x), np.zeros(64 * CONFIG.hop))[1]
    vocoder(log_mel)
    np.testing.assert_array_equal(seen[0], np.concatenate([log_mel, log_mel[: -64 + 49 : -1]]))  # as in a mirror


SMALL = time_generators.HiFiGAN(8, (16, 16), (32, 32), (3, 5), ((1, 2), (1, 3)), two_convolutions=False)


def test_a_causal_generator_makes_the_wave_as_the_frames_come():
    net = time_generators.hifi_gan(SMALL, causal=True)
    log_mel = np.random.default_rng(0).normal(-4, 1, (10, 80)).astype(np.float32)
    params, _ = net.init(jax.random.key(0), log_mel[None])
    params = jax.tree.map(lambda leaf: 10 * leaf, params)  # which start near 0
    vocoder = synthesize.Vocoder(CONFIG, net, params)
    whole = vocoder(log_mel)
    pieces = list(vocoder.pieces(log_mel, 4))
    assert [len(piece) // CONFIG.hop for piece in pieces] == [4, 4, 2]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4 * np.abs(whole).max())
    stream = layers.streaming(net)  # as it is trained, weight-normed
    memory, pieces = (
        layers.stream_state(stream, params, net.init(jax.random.key(0), log_mel[None])[1], log_mel[None]),
        [],
    )
    step = jax.jit(lambda params, memory, x: stream.apply(params, memory, x, train=False))
    for piece in (log_mel[None, :5], log_mel[None, 5:]):
        made, memory = step(params, memory, piece)
        pieces.append(made.wave[0])
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4 * np.abs(whole).max())
    said = synthesize.streamed(vocoder, log_mel, 4, whole)
    assert re.match(r"4 frames at a time \(64 ms\): at most \d\.\de[+-]\d+ from the whole; [\d.]+ ms a piece", said)
    assert said.endswith("88 of which are the frames'")  # four of 256 samples, and the 384 that the last sees beyond
    with pytest.raises(ConfigError, match="are no two pieces of 10"):
        synthesize.streamed(vocoder, log_mel, 10, whole)


def test_a_generator_that_looks_ahead_is_refused():
    net = time_generators.hifi_gan(SMALL)
    log_mel = np.zeros((4, 80), np.float32)
    vocoder = synthesize.Vocoder(CONFIG, net, net.init(jax.random.key(0), log_mel[None])[0])
    with pytest.raises(ConfigError, match=r"^chain\[0\]: streaming: conv cannot be fed piece by piece.*'causal'"):
        next(vocoder.pieces(log_mel, 1))


def test_excerpts_that_are_no_whole_frames_are_refused(tmp_path):
    arguments = ["--data", str(SPEECH), "--out", str(tmp_path), "--length"]
    with pytest.raises(ConfigError, match=r"--length must be a multiple of 256.*got 16000; 15872 is the nearest"):
        train.main([*arguments, "16000"])
    with pytest.raises(ConfigError, match=r"and at least 1024, got 256; 1024 is the nearest"):
        train.main([*arguments, "256"])


def test_a_folder_without_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no generator, wanted any; train one with python -m examples"):
        synthesize.load_generator(tmp_path)


def test_a_wave_file_is_what_was_written(tmp_path):
    wave = np.array([0, 0.5, -0.5, 1, -1, 2, -2] * 100, np.float32)
    samples.write_wav(tmp_path / "x.wav", wave, 16000)
    np.testing.assert_allclose(audio.read(tmp_path / "x.wav", 16000), np.clip(wave, -1, 1), atol=1e-4)

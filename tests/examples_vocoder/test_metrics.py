"""The distances against their sums in float64, the scores against the packages and what listening would say."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from examples.vocoder import mel, metrics
from examples.vocoder.mel import MelConfig
from jaxnet.errors import DataError, DependencyError, ShapeError

CONFIG = MelConfig()


def waves(seed=0, samples=5120):
    rng = np.random.default_rng(seed)
    original = 0.1 * rng.standard_normal(samples)
    return original.astype(np.float32), (original + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def test_distances_are_their_sums():
    a, b = waves()
    x, y = (np.asarray(mel.magnitude(CONFIG, jnp.asarray(w)), np.float64) for w in (a, b))
    bank = mel.filterbank(CONFIG).astype(np.float64)
    difference = np.log(x @ bank) - np.log(y @ bank)
    np.testing.assert_allclose(metrics.mel_error(CONFIG, a, b), np.abs(difference).mean(), rtol=1e-4)
    decibels = 20 * np.log10(np.maximum(x, 1e-3)) - 20 * np.log10(np.maximum(y, 1e-3))
    expected = np.sqrt((decibels**2).mean(1)).mean()
    np.testing.assert_allclose(metrics.log_spectral_distance(CONFIG, a, b), expected, rtol=1e-4)
    cepstra = scipy.fft.dct(difference)[:, 1:14] / 80  # scipy's sums are doubled
    expected = 10 / np.log(10) * np.sqrt(2 * (cepstra**2).sum(1)).mean()
    np.testing.assert_allclose(metrics.mel_cepstral_distortion(CONFIG, a, b), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["mel error", "LSD, dB", "MCD13, dB"])
def test_distances_of_a_wave_to_itself_and_to_silence(name):
    a, b = waves()
    metric = metrics.METRICS[name]
    assert metric(CONFIG, a, a) == 0
    assert 0 < metric(CONFIG, a, b) < metric(CONFIG, a, np.zeros_like(a))


def test_gains_are_what_they_are():
    a, _ = waves()
    np.testing.assert_allclose(metrics.mel_error(CONFIG, a, a / 2), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics.log_spectral_distance(CONFIG, a, a / 2), 20 * np.log10(2), rtol=1e-4)
    np.testing.assert_allclose(metrics.mel_cepstral_distortion(CONFIG, a, a / 2), 0, atol=1e-4)  # c_0 is left out


def test_stoi_falls_with_noise(speech):
    pytest.importorskip("pystoi", reason="the package pystoi is not installed")
    wave = speech.test["demo-echodone.g722"]
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    for metric in (metrics.stoi, metrics.estoi):
        scores = [metric(CONFIG, wave, wave + np.float32(level) * noise) for level in (0, 0.01, 0.1)]
        assert scores[0] == pytest.approx(1, abs=1e-6)
        assert scores[0] > scores[1] > scores[2]


def test_pesq_falls_with_noise_and_knows_its_frames(speech):
    package = pytest.importorskip("pesq", reason="the package pesq is not installed")
    wave = speech.test["demo-echodone.g722"]
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    scores = [metrics.pesq(CONFIG, wave, wave + np.float32(level) * noise) for level in (0, 0.001, 0.05)]
    assert scores[0] == pytest.approx(4.644, abs=1e-3)
    assert scores[0] > scores[1] > scores[2] >= 1
    noisy = wave + np.float32(0.01) * noise
    at = {n: package.pesq(16000, np.r_[np.zeros(n), wave], np.r_[np.zeros(n), noisy], "wb") for n in (0, 64, 128, 192)}
    assert metrics.pesq(CONFIG, wave, noisy) == pytest.approx(at[128], abs=1e-3)
    assert metrics.pesq_of_any_frames(CONFIG, wave, noisy) == pytest.approx(np.mean(list(at.values())), abs=1e-3)
    with pytest.raises(DataError, match="pesq: silence of 16000 samples has no score"):
        metrics.pesq(CONFIG, np.zeros(16000), np.zeros(16000))


@pytest.mark.parametrize(("name", "package"), [("PESQ-wb", "pesq"), ("STOI", "pystoi"), ("ESTOI", "pystoi")])
def test_missing_packages_are_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"the package {package} is needed for this score; pip install {package}"
    with pytest.raises(DependencyError, match=message):
        metrics.METRICS[name](CONFIG, *waves())


@pytest.mark.parametrize("name", metrics.METRICS)
def test_lengths_must_agree(name):
    a, b = waves()
    with pytest.raises(ShapeError, match=r"must have the same length, \(samples,\), got \(5120,\) and \(5119,\)"):
        metrics.METRICS[name](CONFIG, a, b[1:])

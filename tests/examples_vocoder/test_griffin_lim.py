"""Griffin-Lim against its own equations in float64, and on a chord."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.vocoder import griffin_lim, mel, stft
from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, ShapeError

SMALL = MelConfig(n_fft=128, hop=32, bands=20)


def chord(samples):
    t = np.arange(samples) / 16000
    wave = sum(np.sin(2 * np.pi * f * t + f) / 8 for f in (440.0, 1234.5, 2950.0))
    return jnp.asarray(wave * np.hanning(samples), jnp.float32)


def literal_refine(magnitude, phase, iterations, momentum, n_fft, hop):
    """The equations of `refine`, frame by frame."""
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    length = (len(magnitude) - 1) * hop + n_fft

    def istft(spectrum):
        wave, weight = np.zeros(length), np.zeros(length)
        for t, row in enumerate(spectrum):
            wave[t * hop :][:n_fft] += window * np.fft.irfft(row)
            weight[t * hop :][:n_fft] += window**2
        return np.where(weight > 1e-6, wave / np.maximum(weight, 1e-6), 0)

    previous = np.zeros_like(phase)
    for _ in range(iterations):
        wave = istft(magnitude * phase)
        consistent = np.stack([np.fft.rfft(window * wave[t * hop :][:n_fft]) for t in range(len(magnitude))])
        moved = consistent - momentum / (1 + momentum) * previous
        previous, phase = consistent, moved / np.maximum(np.abs(moved), 1e-10)
    pad = (n_fft - hop) // 2
    return istft(magnitude * phase)[pad : pad + len(magnitude) * hop]


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_refine_is_its_equations(momentum):
    rng = np.random.default_rng(0)
    magnitude = rng.uniform(0.1, 1, (6, 65))
    phase = np.exp(2j * np.pi * rng.uniform(size=(6, 65)))
    phase[:, [0, -1]] = 1
    wanted = literal_refine(magnitude, phase, 5, momentum, 128, 32)
    found = griffin_lim.refine(SMALL, magnitude.astype(np.float32), phase.astype(np.complex64), 5, momentum)
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


def test_true_phases_give_the_wave_itself():
    wave = chord(1600)
    spectrum = np.asarray(stft.stft(jnp.pad(wave, SMALL.padding, mode="reflect"), 128, 32))
    magnitude = np.abs(spectrum)
    for iterations in (0, 3):
        found = griffin_lim.refine(SMALL, magnitude, spectrum / magnitude, iterations)
        np.testing.assert_allclose(found, wave, atol=1e-4)


def test_momentum_and_iterations_bring_the_magnitudes_nearer():
    wave = chord(4096)
    magnitude = mel.magnitude(SMALL, wave)

    def distance(iterations, momentum):
        found = griffin_lim.griffin_lim(SMALL, magnitude, iterations, momentum, key=1)
        assert found.shape == wave.shape
        return np.linalg.norm(mel.magnitude(SMALL, found) - magnitude) / np.linalg.norm(magnitude)

    assert distance(0, 0.0) > 0.4
    assert distance(60, 0.99) < distance(30, 0.0) < 0.25


def test_the_key_decides():
    magnitude = mel.magnitude(SMALL, chord(640))
    first = griffin_lim.griffin_lim(SMALL, magnitude, 2, key=0)
    np.testing.assert_array_equal(first, griffin_lim.griffin_lim(SMALL, magnitude, 2, key=jax.random.key(0)))
    assert np.abs(first - griffin_lim.griffin_lim(SMALL, magnitude, 2, key=1)).max() > 0.01


def test_mel_spectrograms_are_inverted():
    wave = chord(4096)
    spectrum = mel.log_mel(SMALL, wave)
    found = mel.log_mel(SMALL, griffin_lim.from_log_mel(SMALL, spectrum, 60))
    loud = spectrum > spectrum.max() - 3
    assert np.mean(np.abs(found - spectrum)[loud]) < 0.2
    silence = griffin_lim.from_log_mel(SMALL, jnp.full((8, 20), np.log(np.float32(1e-5))), 4)
    assert np.abs(silence).max() < 1e-3


def test_refusals():
    magnitude = jnp.ones((4, 65))
    with pytest.raises(ShapeError, match=r"griffin_lim: magnitude must be \(T, 65\), got \(65,\); one spectrogram"):
        griffin_lim.griffin_lim(SMALL, magnitude[0])
    with pytest.raises(ShapeError, match=r"refine: phase must have magnitude's shape \(4, 65\), got \(3, 65\)"):
        griffin_lim.refine(SMALL, magnitude, jnp.ones((3, 65), jnp.complex64), 1)
    with pytest.raises(ConfigError, match="iterations must be an integer >= 0, got -1"):
        griffin_lim.griffin_lim(SMALL, magnitude, -1)
    with pytest.raises(ConfigError, match=r"momentum must be from 0 to 1, got 1.5"):
        griffin_lim.griffin_lim(SMALL, magnitude, 1, 1.5)
    with pytest.raises(ShapeError, match=r"magnitude: log_mel must be \(..., T, 20\), got \(4, 65\)"):
        griffin_lim.from_log_mel(SMALL, magnitude)

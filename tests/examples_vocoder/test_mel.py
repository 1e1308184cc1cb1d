"""The mel spectrogram against the literal sums in float64, scipy, and numbers printed by librosa."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.vocoder import mel, stft
from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, DTypeError, ShapeError

SMALL = MelConfig(n_fft=64, hop=16, bands=8)


def noise(*shape, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def literal_magnitude(config, wave):
    """|sum_n x[n] hann[n] e^(-2 pi i k n / N)| of every frame, as written."""
    padded = np.pad(wave.astype(np.float64), (config.n_fft - config.hop) // 2, mode="reflect")
    n = np.arange(config.n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / config.n_fft)
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(config.n_fft // 2 + 1), n) / config.n_fft)
    starts = range(0, len(padded) - config.n_fft + 1, config.hop)
    return np.abs(np.stack([kernel @ (window * padded[s : s + config.n_fft]) for s in starts]))


def test_filterbank_is_librosas():
    # librosa 0.11: librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    bank = mel.filterbank(MelConfig())
    np.testing.assert_allclose(bank[2:4, 0], [0.0225345604, 0.0199049897], rtol=1e-6)
    np.testing.assert_allclose(bank[510:512, 79], [3.50593007e-4, 1.75296504e-4], rtol=1e-4)  # near 0: rounded edges
    band = bank[:, 30]
    assert np.flatnonzero(band).tolist() == [73, 74, 75, 76, 77]
    np.testing.assert_allclose(band[73:78], [0.0061201, 0.01397166, 0.02182322, 0.01500737, 0.00745162], atol=1e-8)
    assert np.count_nonzero(bank) == 1001
    np.testing.assert_allclose(bank.sum(dtype=np.float64), 5.118657639835874, rtol=1e-6)


def test_filterbank_equals_librosa_where_it_is_installed():
    filters = pytest.importorskip("librosa.filters", reason="librosa is not installed")
    for config in (MelConfig(), MelConfig(22050, 2048, 512, 100, 20.0, 7600.0), MelConfig(8000, 512, 128, 40, 0, 4000)):
        theirs = filters.mel(
            sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.bands, fmin=config.low, fmax=config.high
        )
        np.testing.assert_allclose(mel.filterbank(config), theirs.T, atol=1e-6)


def test_inverse_filterbank_inverts():
    config = MelConfig()
    product = mel.inverse_filterbank(config) @ mel.filterbank(config)
    np.testing.assert_allclose(product, np.eye(80), atol=1e-4)


@pytest.mark.parametrize("samples", [64, 65, 160, 175])
def test_log_mel_is_the_literal_sum(samples):
    wave = noise(samples)
    expected = literal_magnitude(SMALL, wave)
    assert len(expected) == samples // SMALL.hop
    np.testing.assert_allclose(mel.magnitude(SMALL, jnp.asarray(wave)), expected, atol=2e-6)
    bands = expected @ mel.filterbank(SMALL).astype(np.float64)
    np.testing.assert_allclose(
        jax.jit(mel.log_mel, static_argnums=0)(SMALL, jnp.asarray(wave)), np.log(np.maximum(bands, 1e-5)), atol=1e-4
    )


def test_frames_lie_around_their_own_hop():
    clicks = mel.magnitude(SMALL, jnp.eye(160, dtype=jnp.float32))  # one at each sample
    assert clicks.shape[:2] == (160, 10)
    loudest = np.argmax(clicks.sum(2), axis=1)
    # Where nothing is reflected; the first sample of a hop is as far from the frame before.
    middle = np.array([n for n in range(3 * 16, 7 * 16) if n % SMALL.hop])
    np.testing.assert_array_equal(loudest[middle], middle // SMALL.hop)


def test_batches_equal_single_waves():
    waves = jnp.asarray(noise(2, 3, 160))
    together = mel.log_mel(SMALL, waves)
    assert together.shape == (2, 3, 10, 8)
    np.testing.assert_allclose(together[1, 2], mel.log_mel(SMALL, waves[1, 2]), atol=1e-5)


@settings(max_examples=8)
@given(
    half=st.integers(4, 20), hop=st.integers(1, 20), win=st.integers(2, 40), extra=st.integers(0, 50), b=st.booleans()
)
def test_stft_is_scipys_and_istft_inverts_it(half, hop, win, extra, b):
    n_fft = 2 * half
    win, hop = min(win, n_fft), min(hop, n_fft)
    wave = noise(*((2,) if b else ()), n_fft + extra)
    window = np.zeros(n_fft)
    window[(n_fft - win) // 2 :][:win] = scipy.signal.get_window("hann", win)
    cut = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), n_fft, -1)[..., ::hop, :]
    spectrum = jax.jit(lambda wave: stft.stft(wave, n_fft, hop, win))(wave)
    np.testing.assert_allclose(spectrum, np.fft.rfft(cut * window), atol=3e-6)
    back = np.asarray(jax.jit(lambda spectrum: stft.istft(spectrum, n_fft, hop, win))(spectrum))
    count = cut.shape[-2]
    weight = np.zeros((count - 1) * hop + n_fft)
    for t in range(count):
        weight[t * hop : t * hop + n_fft] += window**2
    assert back.shape[-1] == len(weight)
    seen = weight > 1e-3
    np.testing.assert_allclose(back[..., seen], wave[..., : len(weight)][..., seen], atol=1e-5)
    assert np.isfinite(back).all()
    assert not np.any(back[..., weight == 0])


def test_istft_is_the_least_squares_wave():
    rng = np.random.default_rng(1)
    n_fft, hop, count = 8, 2, 3
    spectrum = (rng.standard_normal((count, 5)) + 1j * rng.standard_normal((count, 5))).astype(np.complex64)
    spectrum[:, [0, -1]] = spectrum[:, [0, -1]].real  # what the spectrum of a real wave has
    length = (count - 1) * hop + n_fft
    window = scipy.signal.get_window("hann", n_fft)
    rows = np.zeros((count * n_fft, length))
    for t in range(count):
        rows[t * n_fft + np.arange(n_fft), t * hop + np.arange(n_fft)] = window
    frames = np.fft.irfft(spectrum, n_fft).reshape(-1)
    wanted = np.linalg.lstsq(rows, frames, rcond=None)[0]
    np.testing.assert_allclose(stft.istft(jnp.asarray(spectrum), n_fft, hop), wanted, atol=1e-5)


def test_gradient_is_finite_at_silence_and_right_elsewhere():
    gradient = jax.grad(lambda wave: jnp.sum(mel.log_mel(SMALL, wave) + mel.magnitude(SMALL, wave)[:, :8]))
    assert not np.any(gradient(jnp.zeros(160)))
    half = jnp.asarray(np.r_[noise(80), np.zeros(80, np.float32)])
    assert np.isfinite(gradient(half)).all()


def test_gradient_agrees_with_finite_differences(x64):
    wave = jnp.asarray(noise(96).astype(np.float64))
    direction = jnp.asarray(noise(96, seed=1).astype(np.float64))

    def value(wave):
        return jnp.sum(mel.magnitude(SMALL, wave) ** 1.5)

    step = 1e-6
    slope = (value(wave + step * direction) - value(wave - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(value)(wave), direction), slope, rtol=1e-5)


def test_silence_is_the_floor():
    np.testing.assert_allclose(mel.log_mel(MelConfig(), jnp.zeros(2560)), np.full((10, 80), np.log(1e-5)), rtol=1e-6)


def test_json():
    config = MelConfig(22050, 2048, 512, 100, 20.0, 7600.0, 1e-4)
    assert MelConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="is no JSON"):
        MelConfig.from_json("mel")
    with pytest.raises(ConfigError, match="fields must be sample_rate, n_fft"):
        MelConfig.from_json('{"n_fft": 1024}')
    with pytest.raises(ConfigError, match="n_fft must be an integer >= 1, got 0"):
        MelConfig.from_json(config._replace(n_fft=0).to_json())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hop": 0}, "hop must be an integer >= 1, got 0"),
        ({"bands": 2.5}, "bands must be an integer >= 1, got 2.5"),
        ({"hop": 255}, "must be even, hop at most n_fft, got n_fft=1024, hop=255"),
        ({"hop": 2048}, "hop at most n_fft"),
        ({"high": 9000.0}, r"0 <= low < high <= 8000, got low=0.0, high=9000.0"),
        ({"low": 8000.0}, "got low=8000.0"),
        ({"floor": 0.0}, "floor must be a positive number, got 0.0"),
        ({"n_fft": 256, "bands": 128}, "of 128 bands hold no frequency of n_fft=256 at 16000 Hz, .*; use fewer bands"),
    ],
)
def test_configurations_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        mel.filterbank(MelConfig(**wrong))


def test_waves_refused():
    config = MelConfig()
    with pytest.raises(ShapeError, match=r"magnitude: wave must have at least 385 samples .* got shape \(300,\)"):
        mel.log_mel(config, jnp.zeros(300))
    with pytest.raises(ShapeError, match="magnitude: wave must have at least 385 samples"):
        mel.magnitude(config, jnp.zeros(()))
    with pytest.raises(DTypeError, match="must be floating point, got int16; divide int16 samples by 32768"):
        mel.log_mel(config, jnp.zeros(2560, jnp.int16))
    with pytest.raises(ShapeError, match=r"stft: wave must have at least n_fft=1024 samples .*, got \(1000,\)"):
        stft.stft(jnp.zeros(1000), 1024, 256)
    with pytest.raises(ShapeError, match=r"istft: spectrum must be \(..., T, 513\) for n_fft=1024, got \(4, 512\)"):
        stft.istft(jnp.zeros((4, 512), jnp.complex64), 1024, 256)
    with pytest.raises(ConfigError, match="hop and win from 1 to n_fft, got n_fft=64, hop=16, win=65"):
        stft.stft(jnp.zeros(1000), 64, 16, 65)

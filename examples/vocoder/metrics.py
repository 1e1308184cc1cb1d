"""How near a synthesized wave is to the original: two predictions of listeners' scores, three distances of spectra.

None of them is a listener. PESQ and STOI predict one; the mel error is what Griffin-Lim itself makes small; two
independent noises of the same spectrum already have a log-spectral distance of 8 dB, and smooth spectra are rewarded.
"""

import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import mel
from examples.vocoder.audio import resample
from examples.vocoder.mel import MelConfig
from jaxnet.errors import DataError, DependencyError, ShapeError

Metric = Callable[[MelConfig, np.ndarray, np.ndarray], float]

RATE = 16000  # Hz, of wide-band PESQ
PESQ_HOP = 256  # samples


def pesq(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Perceptual evaluation of speech quality, wide band: from 1 (bad) to 4.64; higher is better.

    Both waves are filtered, aligned in time, and turned into loudness over Bark bands; with the symmetric and the
    asymmetric disturbance D and A between them, raw = 4.5 - 0.1 D - 0.0309 A, mapped to the scale of opinions by
      PESQ = 0.999 + 4 / (1 + exp(-1.3669 raw + 3.8224)).

    It looks at frames of 512 samples every 256, which is a spectrogram's usual hop too, and the errors of a wave that
    was put together from frames come at their rate. So where PESQ's frames lie between them decides much: from 2.0 to
    2.6 for Griffin-Lim. Here they have the spectrogram's centres, which is best for Griffin-Lim, and so the baseline
    at its strongest; `pesq_of_any_frames` is the mean over places.

    Args:
      config: sample rate and hop; waves of another rate than 16 kHz are resampled.
      original: float array (samples,), in -1..1.
      synthesized: the same.

    Raises:
      DataError: waves in which PESQ finds no speech.
      DependencyError: the package pesq is not installed.
      ShapeError: waves of different lengths.

    Source: ITU-T P.862 and P.862.2, through the package pesq.
    """
    middle = config.hop * RATE // (2 * config.sample_rate)  # of frame 0; PESQ's are at multiples of its hop
    return _pesq("pesq", config, original, synthesized, (-middle % PESQ_HOP,))


def pesq_of_any_frames(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """The mean of four `pesq`, with 0, 64, 128 and 192 zeros before both waves: its frames at any place."""
    return _pesq("pesq_of_any_frames", config, original, synthesized, range(0, PESQ_HOP, PESQ_HOP // 4))


def stoi(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Short-time objective intelligibility, from 0 to 1; higher is better.

    With X and Y the envelopes of 15 third-octave bands over 384 ms, silent frames of the original left out, Y scaled
    to X's energy and clipped at 1 + 10^(15 / 20) times X:
      STOI = mean over bands and times of the correlation of X and Y.

    Args:
      config: the sample rate.
      original: float array (samples,), at least 0.4 s of speech.
      synthesized: the same.

    Raises:
      DataError: less than 0.4 s of the original is not silent.
      DependencyError: the package pystoi is not installed.
      ShapeError: waves of different lengths.

    Source: Taal et al., 2011, through the package pystoi.
    """
    return _stoi("stoi", config, original, synthesized, extended=False)


def estoi(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Extended STOI, from 0 to 1: the bands' envelopes are correlated together, which also sees modulated noise.

    ESTOI = mean over times of the mean over frames of x . y, where x and y are the columns (bands at one frame) of
    X and Y, after their rows and then their columns were brought to mean 0 and norm 1.

    Source: Jensen and Taal, 2016, through the package pystoi. Arguments and errors are those of `stoi`.
    """
    return _stoi("estoi", config, original, synthesized, extended=True)


def mel_error(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Mean absolute error of the mel spectrograms, in natural logarithms; lower is better.

    mean over t and b of |L[t, b] - L'[t, b]|

    Args:
      config: the spectrogram's definition.
      original: float array (samples,), in -1..1.
      synthesized: the same.

    Raises:
      ShapeError: waves of different lengths, or too short for a frame.

    Source: HiFi-GAN's validation error (Kong et al., 2020).
    """
    return float(_mel_error(config, *_pair("mel_error", original, synthesized)))


def log_spectral_distance(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Log-spectral distance in dB; lower is better.

    mean over t of sqrt(mean over k of (S[t, k] - S'[t, k])^2),  S[t, k] = 20 log10 max(|X[t, k]|, 0.001)

    Args:
      config: the spectrogram's definition.
      original: float array (samples,), in -1..1.
      synthesized: the same.

    Raises:
      ShapeError: waves of different lengths, or too short for a frame.

    Source: Gray and Markel, "Distance measures for speech processing", 1976.
    """
    return float(_log_spectral_distance(config, *_pair("log_spectral_distance", original, synthesized)))


def mel_cepstral_distortion(config: MelConfig, original: np.ndarray, synthesized: np.ndarray) -> float:
    """Mel-cepstral distortion of 13 coefficients, in dB; lower is better.

    10 / ln 10 * mean over t of sqrt(2 sum over d = 1..13 of (c[t, d] - c'[t, d])^2),
    c[t, d] = 2 / bands * sum over b of L[t, b] cos(pi d (b + 1/2) / bands)

    c is the cepstrum of the bands' power, which makes this the distance in dB of mel spectra smoothed to 13 cosines,
    whatever their level. Papers whose cepstra come from another vocoder's analysis, or which warp
    the time first, have other numbers: compare only within one table.

    Args:
      config: the spectrogram's definition.
      original: float array (samples,), in -1..1.
      synthesized: the same.

    Raises:
      ShapeError: waves of different lengths, or too short for a frame.

    Source: Kubichek, "Mel-cepstral distance measure for objective speech quality assessment", 1993.
    """
    return float(_mel_cepstral_distortion(config, *_pair("mel_cepstral_distortion", original, synthesized)))


METRICS: dict[str, Metric] = {
    "PESQ-wb": pesq,
    "PESQ-wb, any frames": pesq_of_any_frames,
    "STOI": stoi,
    "ESTOI": estoi,
    "mel error": mel_error,
    "LSD, dB": log_spectral_distance,
    "MCD13, dB": mel_cepstral_distortion,
}
"""The columns of a table, in their order."""

NEEDS = {"PESQ-wb": "pesq", "PESQ-wb, any frames": "pesq", "STOI": "pystoi", "ESTOI": "pystoi"}
"""The packages that some of them need."""


@functools.partial(jax.jit, static_argnums=0)
def _mel_error(config, original, synthesized):
    return jnp.mean(jnp.abs(mel.log_mel(config, original) - mel.log_mel(config, synthesized)))


@functools.partial(jax.jit, static_argnums=0)
def _log_spectral_distance(config, original, synthesized):
    floor = 1e-3
    difference = 20 * (
        jnp.log10(jnp.maximum(mel.magnitude(config, original), floor))
        - jnp.log10(jnp.maximum(mel.magnitude(config, synthesized), floor))
    )
    return jnp.mean(jnp.sqrt(jnp.mean(difference**2, axis=-1)))


@functools.partial(jax.jit, static_argnums=0)
def _mel_cepstral_distortion(config, original, synthesized):
    difference = mel.log_mel(config, original) - mel.log_mel(config, synthesized)
    cepstra = jnp.matmul(difference, _cosines(config.bands, 13), precision="highest")
    return 10 / math.log(10) * jnp.mean(jnp.sqrt(2 * jnp.sum(cepstra**2, axis=-1)))


def _cosines(bands: int, coefficients: int) -> np.ndarray:
    """The matrix from log magnitudes of ``bands`` to the power's cepstrum 1 to ``coefficients``."""
    b, d = np.arange(bands)[:, None], np.arange(1, coefficients + 1)
    return (2 / bands * np.cos(np.pi * d * (b + 0.5) / bands)).astype(np.float32)


def _pesq(who, config, original, synthesized, shifts):
    original, synthesized = _pair(who, original, synthesized)
    try:
        import pesq as package
    except ImportError as error:
        raise DependencyError(_missing("pesq")) from error
    waves = [resample(wave, config.sample_rate, RATE) for wave in (original, synthesized)]
    if not original.any() or not synthesized.any():
        raise DataError(f"{who}: silence of {len(original)} samples has no score; leave the prompt out")
    scores = []
    try:
        for zeros in shifts:
            reference, degraded = (np.pad(wave, (zeros, 0)) for wave in waves)
            scores.append(package.pesq(RATE, reference, degraded, "wb"))
    except package.PesqError as error:
        raise DataError(f"{who}: there is no score for these {len(waves[0])} samples: {error!r}") from error
    return float(np.mean(scores))


def _stoi(who, config, original, synthesized, extended):
    original, synthesized = _pair(who, original, synthesized)
    try:
        import pystoi
    except ImportError as error:
        raise DependencyError(_missing("pystoi")) from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Not enough STFT frames")  # where it would return 0.00001
            return float(pystoi.stoi(original, synthesized, config.sample_rate, extended=extended))
    except RuntimeWarning as error:
        raise DataError(f"{who}: less than 0.4 s of {len(original)} samples is speech; leave the prompt out") from error


def _pair(who, original, synthesized):
    original, synthesized = np.asarray(original, np.float32), np.asarray(synthesized, np.float32)
    if original.ndim != 1 or original.shape != synthesized.shape:
        raise ShapeError(
            f"{who}: original and synthesized must have the same length, (samples,), got {original.shape} and "
            f"{synthesized.shape}; cut both to a whole number of hops"
        )
    return original, synthesized


def _missing(package: str) -> str:
    return f"metrics: the package {package} is needed for this score; pip install {package}"

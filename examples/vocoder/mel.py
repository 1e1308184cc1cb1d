"""The mel spectrogram, in one definition: data, losses, synthesis and metrics all use this file.

It is HiFi-GAN's: reflect padding of (n_fft - hop) / 2 samples on each side and no centering, so that frame t sees the
samples around its own hop and a wave of T hop samples has T frames; magnitudes, not powers; Slaney's mel scale and
norm; the natural logarithm, clipped from below.
"""

import functools
import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder.stft import absolute, read_only, stft
from jaxnet.errors import ConfigError, ShapeError


class MelConfig(NamedTuple):
    """What defines a mel spectrogram; two of them may only be compared where these are equal.

    Args:
      sample_rate: samples per second of the wave, Hz.
      n_fft: samples a frame, and its window's length.
      hop: samples from one frame to the next.
      bands: mel bands.
      low: lower edge of the lowest band, Hz.
      high: upper edge of the highest band, Hz.
      floor: the smallest mel magnitude before the logarithm.

    Example:
      >>> config = MelConfig(bands=64)
      >>> MelConfig.from_json(config.to_json()) == config
      True
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 256
    bands: int = 80
    low: float = 0.0
    high: float = 8000.0
    floor: float = 1e-5

    @property
    def bins(self) -> int:
        """Frequencies of a frame's spectrum, n_fft / 2 + 1 from 0 Hz to half the sample rate."""
        return self.n_fft // 2 + 1

    @property
    def padding(self) -> int:
        """Samples that are reflected at each end."""
        return (self.n_fft - self.hop) // 2

    def to_json(self) -> str:
        """Returns the configuration as text, for a checkpoint's metadata."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "MelConfig":
        """Returns the configuration that `to_json` wrote.

        Raises:
          ConfigError: text that is no such configuration: a field too many, too few, or nonsense.
        """
        try:
            fields = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"MelConfig.from_json: {text!r} is no JSON; pass what to_json returned") from error
        if not isinstance(fields, dict) or set(fields) != set(cls._fields):
            raise ConfigError(
                f"MelConfig.from_json: the fields must be {', '.join(cls._fields)}, got {text!r}; "
                f"pass what to_json returned"
            )
        return check(cls(**fields))


def check(config: MelConfig) -> MelConfig:
    """Returns ``config``, refusing what no spectrogram can be made with.

    Raises:
      ConfigError: a size that is no positive integer, an odd ``n_fft`` or ``n_fft - hop``, a hop longer than a frame,
        or bands outside of 0 Hz to half the sample rate.
    """
    who = "MelConfig"
    for name in ("sample_rate", "n_fft", "hop", "bands"):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{who}: {name} must be an integer >= 1, got {value!r}")
    if config.n_fft % 2 or (config.n_fft - config.hop) % 2 or config.hop > config.n_fft:
        raise ConfigError(
            f"{who}: n_fft and hop must be even, hop at most n_fft, got n_fft={config.n_fft}, hop={config.hop}; "
            f"half of n_fft - hop is reflected at each end. Try n_fft=1024, hop=256"
        )
    if not 0 <= config.low < config.high <= config.sample_rate / 2:
        raise ConfigError(
            f"{who}: bands must lie between 0 Hz and half the sample rate, 0 <= low < high <= "
            f"{config.sample_rate / 2:g}, got low={config.low!r}, high={config.high!r}"
        )
    if not 0 < config.floor < math.inf:
        raise ConfigError(f"{who}: floor must be a positive number, got {config.floor!r}; the logarithm needs one")
    return config


@functools.lru_cache
def filterbank(config: MelConfig) -> np.ndarray:
    """Returns the weight of every frequency in every mel band: triangles of area 1 (in Hz), half overlapping.

    Slaney's scale is linear up to 1 kHz and logarithmic above:
      mel(f) = 3 f / 200 for f < 1000 Hz, else 15 + 27 ln(f / 1000) / ln 6.4,
    band b rises from edge b to edge b + 1 and falls to edge b + 2, of bands + 2 edges equally far apart in mel, and
    is divided by half its width in Hz.

    Returns:
      float32 array (n_fft / 2 + 1, bands), read-only.

    Raises:
      ConfigError: nonsense in the configuration, or bands so narrow that one has no frequency in it.

    Example:
      >>> filterbank(MelConfig()).shape
      (513, 80)

    Source: Slaney, Auditory Toolbox, 1998; equal to `librosa.filters.mel`, transposed.
    """
    check(config)
    edges = _mel_to_hz(np.linspace(_hz_to_mel(config.low), _hz_to_mel(config.high), config.bands + 2))
    f = np.linspace(0, config.sample_rate / 2, config.bins)[:, None]
    rise = (f - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - f) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])
    empty = np.flatnonzero(~bank.any(0))
    if len(empty):
        raise ConfigError(
            f"filterbank: {len(empty)} of {config.bands} bands hold no frequency of n_fft={config.n_fft} at "
            f"{config.sample_rate} Hz, the first is band {empty[0]}; use fewer bands or a longer n_fft"
        )
    return read_only(bank.astype(np.float32))


@functools.lru_cache
def inverse_filterbank(config: MelConfig) -> np.ndarray:
    """Returns the pseudo-inverse of `filterbank`: mel @ inverse is the smallest spectrum with that mel spectrum.

    Some of its products are negative: clip them.

    Returns:
      float32 array (bands, n_fft / 2 + 1), read-only.
    """
    return read_only(np.linalg.pinv(filterbank(config).astype(np.float64)).astype(np.float32))


def magnitude(config: MelConfig, wave: jax.Array) -> jax.Array:
    """The magnitude of every frequency in every frame, |X[t, k]|.

    The wave is reflected by (n_fft - hop) / 2 samples at each end, so that frame t is centred on the middle of the
    samples t hop to (t + 1) hop.

    Its gradient is finite everywhere, and 0 where the magnitude is below 1e-10.

    Args:
      config: the spectrogram's definition.
      wave: float array (..., samples), in -1..1.

    Returns:
      array (..., T, n_fft / 2 + 1), T = samples // hop.

    Raises:
      ShapeError: a wave too short to be reflected.
    """
    return absolute(stft(_pad("magnitude", config, wave), config.n_fft, config.hop))


def log_mel(config: MelConfig, wave: jax.Array) -> jax.Array:
    """The mel spectrogram: the natural logarithm of each band's magnitude.

    L[t, b] = ln max(floor, sum_k |X[t, k]| filterbank[k, b])

    Args:
      config: the spectrogram's definition.
      wave: float array (..., samples), in -1..1.

    Returns:
      array (..., T, bands), T = samples // hop.

    Raises:
      ShapeError: a wave too short to be reflected.

    Example:
      >>> log_mel(MelConfig(), jnp.zeros(2560)).shape
      (10, 80)

    Source: Kong et al., "HiFi-GAN", 2020, and its code, meldataset.py.
    """
    return compress(config, magnitude(config, wave))


def compress(config: MelConfig, magnitude: jax.Array) -> jax.Array:
    """The mel spectrogram (..., T, bands) of magnitudes (..., T, n_fft / 2 + 1) that are already there."""
    # Without "highest", a GPU would round the magnitudes to ten bits first.
    bands = jnp.matmul(magnitude, filterbank(config), precision="highest")
    return jnp.log(jnp.maximum(bands, config.floor))


def _pad(who: str, config: MelConfig, wave: jax.Array) -> jax.Array:
    check(config)
    least = max(config.hop, config.padding + 1)
    if wave.ndim < 1 or wave.shape[-1] < least:
        raise ShapeError(
            f"{who}: wave must have at least {least} samples on its last axis to be reflected by "
            f"{config.padding}, got shape {tuple(wave.shape)}; pad it with zeros"
        )
    return jnp.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(config.padding, config.padding)], mode="reflect")


def _hz_to_mel(f: float) -> float:
    return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))

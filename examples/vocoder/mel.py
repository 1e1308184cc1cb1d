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

from jaxnet.errors import ConfigError, DTypeError, ShapeError


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
        """Samples that `frames` reflects at each end."""
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
    return _read_only(bank.astype(np.float32))


@functools.lru_cache
def inverse_filterbank(config: MelConfig) -> np.ndarray:
    """Returns the pseudo-inverse of `filterbank`: mel @ inverse is the smallest spectrum with that mel spectrum.

    Some of its products are negative: clip them.

    Returns:
      float32 array (bands, n_fft / 2 + 1), read-only.
    """
    return _read_only(np.linalg.pinv(filterbank(config).astype(np.float64)).astype(np.float32))


@functools.lru_cache
def hann(n_fft: int, win: int) -> np.ndarray:
    """Returns the periodic Hann window, sin^2(pi n / win), in the middle of ``n_fft`` samples; float32, read-only."""
    window = np.zeros(n_fft, np.float32)
    start = (n_fft - win) // 2
    window[start : start + win] = np.sin(np.pi * np.arange(win) / win) ** 2
    return _read_only(window)


def stft(wave: jax.Array, n_fft: int, hop: int, win: int | None = None) -> jax.Array:
    """The short-time Fourier transform, with a periodic Hann window and no padding: that is the caller's.

    X[t, k] = sum_n wave[t hop + n] hann[n] e^(-2 pi i k n / n_fft)

    Args:
      wave: float array (..., samples), at least n_fft of them.
      n_fft: samples a frame, even.
      hop: samples from one frame to the next.
      win: samples of the window, in the middle of the frame (default: n_fft).

    Returns:
      complex array (..., T, n_fft / 2 + 1), T = 1 + (samples - n_fft) // hop.

    Raises:
      ConfigError: sizes that are no frame.
      DTypeError: a wave that is not floating point.
      ShapeError: a wave shorter than a frame.

    Example:
      >>> stft(jnp.zeros((2, 2048)), 1024, 256).shape
      (2, 5, 513)
    """
    win = _check_sizes("stft", n_fft, hop, win)
    # On a CPU the FFT is twice (n_fft 256) to five times (1024) as fast as a product with the DFT matrix.
    pieces = _cut("stft", wave, n_fft, hop)
    return jnp.fft.rfft(pieces * _along_last(hann(n_fft, win), pieces))


def istft(spectrum: jax.Array, n_fft: int, hop: int, win: int | None = None) -> jax.Array:
    """The wave whose `stft` is nearest to ``spectrum``, in least squares.

    wave[n] = sum_t hann[n - t hop] irfft(X[t])[n - t hop] / sum_t hann[n - t hop]^2

    Args:
      spectrum: complex array (..., T, n_fft / 2 + 1).
      n_fft: samples a frame, even.
      hop: samples from one frame to the next.
      win: samples of the window, in the middle of the frame (default: n_fft).

    Returns:
      float array (..., (T - 1) hop + n_fft); samples that no window reached are 0.

    Raises:
      ConfigError: sizes that are no frame.
      ShapeError: a spectrum of another n_fft.

    Source: Griffin and Lim, "Signal estimation from modified short-time Fourier transform", 1984, equation 6.
    """
    win = _check_sizes("istft", n_fft, hop, win)
    if spectrum.ndim < 2 or spectrum.shape[-1] != n_fft // 2 + 1 or not spectrum.shape[-2]:
        raise ShapeError(
            f"istft: spectrum must be (..., T, {n_fft // 2 + 1}) for n_fft={n_fft}, got {tuple(spectrum.shape)}"
        )
    window = hann(n_fft, win)
    pieces = jnp.fft.irfft(spectrum, n_fft)
    wave = _overlap_add(pieces * _along_last(window, pieces), hop)
    frame_count = spectrum.shape[-2]
    weight = np.zeros(wave.shape[-1], np.float32)
    for t in range(frame_count):
        weight[t * hop : t * hop + n_fft] += window**2
    # Where the weight is rounding error the sum is one as well, and their quotient would be noise.
    return wave * _along_last(np.where(weight > 1e-6, 1 / np.maximum(weight, 1e-6), 0).astype(np.float32), wave)


def frames(config: MelConfig, wave: jax.Array) -> jax.Array:
    """Cuts a wave into the overlapping frames that the spectrogram is made of, not yet windowed.

    The wave is reflected by (n_fft - hop) / 2 samples at each end, so that frame t is centred on the middle of the
    samples t hop to (t + 1) hop.

    Args:
      config: the spectrogram's definition.
      wave: float array (..., samples).

    Returns:
      array (..., T, n_fft), T = samples // hop.

    Raises:
      ShapeError: a wave too short to be reflected.

    Example:
      >>> frames(MelConfig(), jnp.zeros(2560)).shape
      (10, 1024)
    """
    return _cut("frames", _pad("frames", config, wave), config.n_fft, config.hop)


def magnitude(config: MelConfig, wave: jax.Array) -> jax.Array:
    """The magnitude of every frequency in every frame, |X[t, k]|.

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


def absolute(spectrum: jax.Array) -> jax.Array:
    """|z| with a gradient of 0, not NaN, at 0; at least 1e-10."""
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.sqrt(jnp.maximum(power, 1e-20))


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


def _cut(who: str, wave: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Overlapping frames (..., T, n_fft) of a wave, as shifted copies of its blocks of ``hop`` samples.

    A gather would do, but XLA's, and its gradient's scatter above all, are many times slower on a CPU.
    """
    if not jnp.issubdtype(wave.dtype, jnp.floating):
        raise DTypeError(f"{who}: wave must be floating point, got {wave.dtype}; divide int16 samples by 32768")
    if wave.ndim < 1 or wave.shape[-1] < n_fft:
        raise ShapeError(
            f"{who}: wave must have at least n_fft={n_fft} samples on its last axis, got {tuple(wave.shape)}"
        )
    count = 1 + (wave.shape[-1] - n_fft) // hop
    overlap = -(-n_fft // hop)
    wanted = (count - 1 + overlap) * hop
    missing = max(0, wanted - wave.shape[-1])  # of the last block, where hop does not divide n_fft
    wave = jnp.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(0, missing)])[..., :wanted]
    blocks = wave.reshape(*wave.shape[:-1], -1, hop)
    return jnp.concatenate([blocks[..., r : r + count, :] for r in range(overlap)], axis=-1)[..., :n_fft]


def _overlap_add(pieces: jax.Array, hop: int) -> jax.Array:
    """The transpose of `_cut`: frames (..., T, n_fft) summed where they overlap, (..., (T - 1) hop + n_fft)."""
    *batch, count, n_fft = pieces.shape
    overlap = -(-n_fft // hop)
    lead = [(0, 0)] * len(batch)
    pieces = jnp.pad(pieces, [*lead, (0, 0), (0, overlap * hop - n_fft)])
    blocks = pieces.reshape(*batch, count, overlap, hop)
    shifted = [jnp.pad(blocks[..., r, :], [*lead, (r, overlap - 1 - r), (0, 0)]) for r in range(overlap)]
    wave = functools.reduce(jnp.add, shifted)
    return wave.reshape(*batch, -1)[..., : (count - 1) * hop + n_fft]


def _check_sizes(who: str, n_fft: int, hop: int, win: int | None) -> int:
    win = n_fft if win is None else win
    if n_fft % 2 or not 1 <= hop <= n_fft or not 1 <= win <= n_fft:
        raise ConfigError(
            f"{who}: n_fft must be even, hop and win from 1 to n_fft, got n_fft={n_fft}, hop={hop}, win={win}"
        )
    return win


def _along_last(vector: np.ndarray, like: jax.Array) -> jax.Array:
    return jnp.asarray(vector, like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _hz_to_mel(f: float) -> float:
    return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array

"""The short-time Fourier transform and its inverse, by the FFT and by shifted copies, which a CPU does quickly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.errors import ConfigError, DTypeError, ShapeError


@functools.lru_cache
def hann(n_fft: int, win: int) -> np.ndarray:
    """Returns the periodic Hann window, sin^2(pi n / win), in the middle of ``n_fft`` samples; float32, read-only."""
    window = np.zeros(n_fft, np.float32)
    start = (n_fft - win) // 2
    window[start : start + win] = np.sin(np.pi * np.arange(win) / win) ** 2
    return read_only(window)


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
    pieces = cut("stft", wave, n_fft, hop)
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


def absolute(spectrum: jax.Array) -> jax.Array:
    """|z| with a gradient of 0, not NaN, at 0; at least 1e-10."""
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.sqrt(jnp.maximum(power, 1e-20))


def cut(who: str, wave: jax.Array, n_fft: int, hop: int) -> jax.Array:
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
    """The transpose of `cut`: frames (..., T, n_fft) summed where they overlap, (..., (T - 1) hop + n_fft)."""
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


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, which a cache may hand out since nobody can change it."""
    array.flags.writeable = False
    return array

"""Griffin-Lim: a wave from magnitudes alone, the phases found by going back and forth. The baseline to beat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import mel, stft
from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, ShapeError


def griffin_lim(
    config: MelConfig,
    magnitude: jax.Array | np.ndarray,
    iterations: int = 60,
    momentum: float = 0.99,
    key: jax.Array | int = 0,
) -> jax.Array:
    """Returns a wave with (nearly) the given magnitudes, from random phases.

    Args:
      config: the spectrogram's definition.
      magnitude: float array (T, n_fft / 2 + 1).
      iterations: how often `refine` goes back and forth.
      momentum: of `refine`, from 0 (the classic method) up to 1.
      key: JAX key, or integer seed, of the first phases.

    Returns:
      float array (T hop).

    Raises:
      ConfigError: a negative number of iterations, or a momentum outside of 0 to 1.
      ShapeError: magnitudes of another spectrogram.

    Example:
      >>> config = MelConfig()
      >>> griffin_lim(config, mel.magnitude(config, jnp.ones(2560)), iterations=2).shape
      (2560,)

    Source: Griffin and Lim, "Signal estimation from modified short-time Fourier transform", 1984; Perraudin, Balazs
    and Søndergaard, "A fast Griffin-Lim algorithm", 2013. As `librosa.griffinlim`, whose frames are others.
    """
    magnitude = jnp.asarray(magnitude)
    _check("griffin_lim", config, magnitude, iterations, momentum)
    return _from_noise(config, magnitude, iterations, momentum, jax.random.key(key) if isinstance(key, int) else key)


def refine(
    config: MelConfig,
    magnitude: jax.Array | np.ndarray,
    phase: jax.Array | np.ndarray,
    iterations: int,
    momentum: float = 0.99,
) -> jax.Array:
    """Returns the wave after some iterations from given phases; with none, that of magnitudes and phases as they are.

    With M the magnitudes, C_0 = 0, and Z_1 the first phases (with |Z_1| = 1), one iteration is
      C_i = stft(istft(M Z_i)),  D_i = C_i - momentum / (1 + momentum) C_(i - 1),  Z_(i + 1) = D_i / |D_i|.

    Args:
      config: the spectrogram's definition.
      magnitude: float array (T, n_fft / 2 + 1).
      phase: complex array of the same shape, of absolute value 1.
      iterations: how often to go back and forth.
      momentum: from 0 (the classic method) up to 1.

    Returns:
      float array (T hop).

    Raises:
      ConfigError: a negative number of iterations, or a momentum outside of 0 to 1.
      ShapeError: magnitudes of another spectrogram, or phases of another shape.
    """
    magnitude, phase = jnp.asarray(magnitude), jnp.asarray(phase)
    _check("refine", config, magnitude, iterations, momentum)
    if phase.shape != magnitude.shape:
        raise ShapeError(f"refine: phase must have magnitude's shape {magnitude.shape}, got {phase.shape}")
    return _refine(config, magnitude, phase, iterations, momentum)


def from_log_mel(
    config: MelConfig,
    log_mel: jax.Array | np.ndarray,
    iterations: int = 60,
    momentum: float = 0.99,
    key: jax.Array | int = 0,
) -> jax.Array:
    """Returns a wave from a mel spectrogram (T, bands): `griffin_lim` of the `magnitude` that it gives.

    Example:
      >>> config = MelConfig()
      >>> from_log_mel(config, mel.log_mel(config, jnp.ones(2560)), iterations=2).shape
      (2560,)
    """
    return griffin_lim(config, magnitude(config, log_mel), iterations, momentum, key)


@functools.partial(jax.jit, static_argnums=0)
def magnitude(config: MelConfig, log_mel: jax.Array | np.ndarray) -> jax.Array:
    """Returns magnitudes (..., T, n_fft / 2 + 1) for a mel spectrogram (..., T, bands).

    max(floor, exp(log_mel) @ inverse_filterbank): what non-negative least squares gives is no better by any metric
    here, and takes far longer.

    Raises:
      ShapeError: a spectrogram of another number of bands.
    """
    log_mel = jnp.asarray(log_mel)
    if log_mel.ndim < 2 or log_mel.shape[-1] != config.bands:
        raise ShapeError(f"magnitude: log_mel must be (..., T, {config.bands}), got {log_mel.shape}")
    return jnp.maximum(jnp.matmul(jnp.exp(log_mel), mel.inverse_filterbank(config), precision="highest"), config.floor)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _from_noise(config, magnitude, iterations, momentum, key):
    angle = jax.random.uniform(key, magnitude.shape, magnitude.dtype, 0, 2 * np.pi)
    return _refine(config, magnitude, jax.lax.complex(jnp.cos(angle), jnp.sin(angle)), iterations, momentum)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _refine(config, magnitude, phase, iterations, momentum):
    n_fft, hop = config.n_fft, config.hop
    share = jnp.asarray(momentum / (1 + momentum), magnitude.dtype)

    def iterate(_, carry):
        phase, previous = carry
        consistent = stft.stft(stft.istft(_scale(magnitude, phase), n_fft, hop), n_fft, hop)
        moved = consistent - _scale(share, previous)
        return _scale(1 / stft.absolute(moved), moved), consistent

    phase, _ = jax.lax.fori_loop(0, iterations, iterate, (phase, jnp.zeros_like(phase)))
    wave = stft.istft(_scale(magnitude, phase), n_fft, hop)
    return wave[config.padding : config.padding + len(magnitude) * hop]


def _scale(factor, z):
    """A real factor times complex numbers, without the product by its imaginary part, 0."""
    return jax.lax.complex(factor * z.real, factor * z.imag)


def _check(who, config, magnitude, iterations, momentum):
    mel.check(config)
    if magnitude.ndim != 2 or magnitude.shape[1] != config.bins or not len(magnitude):
        raise ShapeError(f"{who}: magnitude must be (T, {config.bins}), got {magnitude.shape}; one spectrogram a call")
    if not isinstance(iterations, int) or iterations < 0:
        raise ConfigError(f"{who}: iterations must be an integer >= 0, got {iterations!r}")
    if not 0 <= momentum <= 1:
        raise ConfigError(f"{who}: momentum must be from 0 to 1, got {momentum!r}")

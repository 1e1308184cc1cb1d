"""The flagship: a generator that works at the frame rate, and leaves the rate of samples to the inverse DFT.

All its wide convolutions see one position a frame, 62.5 a second instead of 16,000, which is what makes it quick enough
to train on a laptop's CPU. It gives a magnitude and a phase for each frequency, as Vocos and APNet do. Two rounds of
Griffin-Lim bring them nearer to what a wave can have; then the inverse DFT, or a transposed convolution that starts as
it, adds them up to a wave.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import mel, stft
from examples.vocoder.mel import MelConfig
from jaxnet import activations, initializers, layers

MAGNITUDE_FLOOR = 1e-3
"""The smallest magnitude that is told apart; that of a full-scale sine is n_fft / 4 = 256, so this is 108 dB below."""


class Made(NamedTuple):
    """What a generator makes.

    Attributes:
      wave: float array (batch, samples).
      log_magnitude: natural logarithm of the magnitudes that the wave should have, (batch, T, n_fft / 2 + 1), for
        Griffin-Lim to keep; () of generators that tell none.
      phase: phases in radians that Griffin-Lim can begin at; () of generators that tell none.
    """

    wave: Any
    log_magnitude: Any = ()
    phase: Any = ()


class FrameSize(NamedTuple):
    """How large a `frame_generator` is.

    Attributes:
      width: channels of all hidden layers.
      dilations: of the residual blocks, one each.
    """

    width: int
    dilations: tuple[int, ...]


SIZES = {
    "S": FrameSize(192, (1, 3, 1, 3)),
    "P1": FrameSize(288, (1, 3, 1, 3, 9)),
    "L": FrameSize(512, (1, 3, 1, 3, 9, 1, 3, 9)),
}
"""1.26 M parameters for tests, 3.05 M for a CPU, 13.59 M for a GPU (of 80 bands and 513 frequencies)."""


def frame_generator(
    config: MelConfig, size: FrameSize = SIZES["P1"], *, rounds: int = 2, learned_inverse: bool = False
) -> layers.Layer:
    """Makes a wave from a mel spectrogram by way of a complex spectrum.

    With M the filter bank and M+ its pseudo-inverse, h the trunk's output, and one position a frame::

        log S  = log max(M+ exp(mel), 0.001) + U h + u        what the wave is made from
        phase  = pi (V h + v)
        log T  = log max(M+ exp(mel), 0.001) + W h + w        what the spectrum should be, then `mel_consistent`
        wave   = inverse STFT of  S e^(i phase),  after ``rounds`` times `toward_consistency`

    The network corrects what the filter bank blurred, instead of learning to undo it: at the start it says what the
    pseudo-inverse says. S and T differ, because where the phases cannot be known, the wave is nearer with a smaller S;
    Griffin-Lim, which finds other phases, wants T.

    Args:
      config: the spectrogram's definition.
      size: one of `SIZES`, or your own.
      rounds: how often the spectrum goes to a wave and back, as in Griffin-Lim, before the wave; trained through.
      learned_inverse: whether the transposed convolution that makes the wave learns (n_fft * 2 bins more parameters,
        and a slower step) or stays the inverse DFT, computed by the FFT. Both start as the same function.

    Returns:
      A layer from log mel spectrograms (batch, T, bands) to `Made` of T * hop samples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = frame_generator(MelConfig(), SIZES["S"])
      >>> params, state = net.init(0, jnp.zeros((1, 32, 80)))
      >>> net.apply(params, state, jnp.zeros((2, 32, 80)), train=False)[0].wave.shape
      (2, 8192)

    Source: Siuzdak 2023, "Vocos", arXiv 2306.00814, and Ai and Ling 2023, "APNet", arXiv 2305.07952, for the two heads;
    Lv et al. 2024, "FreeV", arXiv 2406.08196, for the pseudo-inverse; Masuyama et al. 2019, "Deep Griffin-Lim
    iteration", arXiv 1903.03971, for rounds inside a network.
    """
    slope, bins = 0.1, config.bins
    small = initializers.VarianceScaling(0.01, "fan_in", "normal")  # a tenth of the usual deviation
    trunk = layers.chain(
        lambda log_mel: (log_mel + 4.0) / 3.0,  # speech to about mean 0 and deviation 1
        layers.conv(size.width, 5, padding="same"),
        *(layers.residual(_branch(size.width, dilation, slope)) for dilation in size.dilations),
        _leaky_relu(slope),
    )
    heads = layers.parallel(
        layers.conv(bins, 1, kernel_init=small), layers.conv(bins, 1), layers.conv(bins, 1, kernel_init=small),
        combine="concatenate",
    )  # fmt: skip

    def prior(log_mel):
        # "highest": the pseudo-inverse's products cancel.
        magnitude = jnp.matmul(jnp.exp(log_mel), mel.inverse_filterbank(config), precision="highest")
        log_magnitude = jnp.log(jnp.maximum(magnitude, MAGNITUDE_FLOOR))
        return jnp.concatenate([log_magnitude, jnp.zeros_like(log_magnitude), log_magnitude], axis=-1)

    def wave_part(spectrum):
        return toward_consistency(config, spectrum[..., : 2 * bins], rounds)

    def made(outputs):
        spectrum, wave = outputs
        _, phase, log_magnitude, log_mel = jnp.split(spectrum, (bins, 2 * bins, 3 * bins), axis=-1)
        return Made(wave, mel_consistent(config, log_magnitude, log_mel), jnp.pi * phase)

    spectrum = layers.parallel(prior, layers.chain(trunk, heads), combine="sum")
    inverse = inverse_dft(config) if learned_inverse else _fixed_inverse(config)
    return layers.chain(
        layers.parallel(spectrum, _identity, combine="concatenate"),
        layers.parallel(_identity, layers.chain(wave_part, inverse), combine=made),
    )


def _branch(width: int, dilation: int, slope: float) -> layers.Layer:
    last = initializers.VarianceScaling(0.09, "fan_in", "normal")  # so that depth does not add up at first
    return layers.chain(
        _leaky_relu(slope), layers.conv(width, 3, dilation=dilation, padding="same"),
        _leaky_relu(slope), layers.conv(width, 3, padding="same", kernel_init=last),
    )  # fmt: skip


def inverse_dft(config: MelConfig) -> layers.Layer:
    """A transposed convolution that starts as the inverse short-time Fourier transform.

    Its kernel holds, at sample n of a frame, a windowed cosine for each real part and a windowed sine for each
    imaginary one, with N = n_fft and c_k = 1 for k = 0 and N / 2, else 2::

        kernel[n, k]            =   hann[n] c_k cos(2 pi k n / N) / N
        kernel[n, N/2 + 1 + k]  = - hann[n] c_k sin(2 pi k n / N) / N

    What it adds up is divided by the sum of the hann^2 that reached a sample, as `stft.istft` does.

    Returns:
      A layer from real and imaginary parts, (batch, T, 2 bins), to waves (batch, T * hop).
    """
    n_fft, hop = config.n_fft, config.hop
    trim = config.padding

    def kernel(key, shape, dtype):
        del key
        angle = 2 * np.pi / n_fft * (np.arange(n_fft)[:, None] * np.arange(config.bins) % n_fft)
        twice = np.where(np.arange(config.bins) % (n_fft // 2) == 0, 1.0, 2.0)
        both = np.concatenate([twice * np.cos(angle), -twice * np.sin(angle)], axis=1) / n_fft
        # The layer's kernel runs backwards in time.
        return jnp.asarray((both * stft.hann(n_fft, n_fft)[:, None])[::-1, :, None].reshape(shape), dtype)

    def divided(wave):
        return wave[..., 0] / jnp.asarray(_overlap(config, wave.shape[1] // hop), wave.dtype)[None]

    transposed = layers.conv_transpose(
        1, n_fft, strides=hop, padding=n_fft - 1 - trim, bias=False, kernel_init=kernel
    )  # fmt: skip
    return layers.chain(transposed, divided)


def toward_consistency(config: MelConfig, spectrum: jax.Array, rounds: int) -> jax.Array:
    """Brings a spectrum nearer to one that a wave can have, by rounds of Griffin-Lim that keep its magnitudes.

    With S the magnitudes, one round is a differentiable one of `griffin_lim.refine`, without momentum, and with
    d = 0.3 to keep the gradient of the division within bounds::

        C = stft(istft(Z)),   Z' = S C (1 + d) / (|C| + d S)

    Args:
      config: the spectrogram's definition.
      spectrum: log magnitudes and phases / pi, (batch, T, 2 bins).
      rounds: how many.

    Returns:
      Real and imaginary parts, (batch, T, 2 bins).
    """
    log_magnitude, angle = jnp.split(spectrum, 2, axis=-1)
    magnitude, angle = jnp.exp(log_magnitude), jnp.pi * angle
    real, imaginary = magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)
    for _ in range(rounds):
        wave = stft.istft(jax.lax.complex(real, imaginary), config.n_fft, config.hop)
        consistent = stft.stft(wave, config.n_fft, config.hop)
        scale = 1.3 * magnitude / (stft.absolute(consistent) + 0.3 * magnitude)
        real, imaginary = scale * consistent.real, scale * consistent.imag
    return jnp.concatenate([real, imaginary], axis=-1)


def mel_consistent(config: MelConfig, log_magnitude: jax.Array, log_mel: jax.Array) -> jax.Array:
    """Log magnitudes whose mel spectrogram is nearer to the one that is given.

    Each frequency is corrected by what its bands lack, L being the mel spectrogram and M the filter bank::

        log T[k] + sum over b of M[k, b] (L[b] - log sum over j of T[j] M[j, b]) / sum over b of M[k, b]

    Args:
      config: the spectrogram's definition.
      log_magnitude: (batch, T, bins).
      log_mel: (batch, T, bands).

    Returns:
      Log magnitudes, (batch, T, bins).
    """
    bank = mel.filterbank(config)
    share = bank.T / np.maximum(bank.sum(1), 1e-8)
    lack = log_mel - mel.compress(config, jnp.exp(log_magnitude))
    return log_magnitude + jnp.matmul(lack, share, precision="highest")


def _fixed_inverse(config: MelConfig) -> layers.Layer:
    def f(params, spectrum):
        del params
        real, imaginary = jnp.split(spectrum, 2, axis=-1)
        wave = stft.istft(jax.lax.complex(real, imaginary), config.n_fft, config.hop)
        return wave[:, config.padding : wave.shape[1] - config.padding]

    return layers.stateless(None, f, name="inverse_dft")


def _overlap(config: MelConfig, frames: int) -> np.ndarray:
    """The sum of hann^2 at each sample of T * hop."""
    window = stft.hann(config.n_fft, config.n_fft).astype(np.float64) ** 2
    total = np.zeros((frames - 1) * config.hop + config.n_fft)
    for t in range(frames):
        total[t * config.hop : t * config.hop + config.n_fft] += window
    return total[config.padding : len(total) - config.padding]


def _leaky_relu(slope: float):
    def leaky_relu(x):
        return activations.leaky_relu(x, slope)

    return leaky_relu


def _identity(x: jax.Array) -> jax.Array:
    return x

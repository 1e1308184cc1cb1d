"""What the vocoder minimizes: distances between spectra, and the adversarial terms.

`jaxnet.losses.multi_resolution_stft` is a like distance between signals. Here it is between magnitudes, so that the
target's first one, of which the network's input, the mel error's target and that of the generator's magnitude head are
made, is computed once a step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from examples.vocoder import mel
from examples.vocoder.discriminators import Judged
from examples.vocoder.frame_generator import MAGNITUDE_FLOOR, Made
from examples.vocoder.mel import MelConfig
from jaxnet import activations, losses

QUIET = 0.1
"""The least root mean square of magnitudes that errors are measured against: noise at 46 dB below full scale (n_fft
1024). Without it one excerpt of a pause would outweigh all speech of its batch."""


class Target(NamedTuple):
    """What a generator should make, and what is compared with it.

    Attributes:
      wave: float array (batch, samples).
      magnitudes: of the wave at each resolution, (batch, T, n_fft / 2 + 1); the mel spectrogram's first.
      log_mel: (batch, T, bands).
    """

    wave: jax.Array
    magnitudes: tuple[jax.Array, ...]
    log_mel: jax.Array


class Weights(NamedTuple):
    """How much each term of `spectral_loss` counts.

    Attributes:
      mel: of the mel error.
      head: of the distance of the magnitude head from the target's magnitudes.
    """

    mel: float = 2.0
    head: float = 1.0


def describe(config: MelConfig, wave: jax.Array) -> Target:
    """Computes the spectra of a wave (batch, samples): the mel spectrogram's, at a half and at a quarter of its frames.

    Example:
      >>> import jax.numpy as jnp
      >>> [m.shape for m in describe(MelConfig(), jnp.zeros((2, 8192))).magnitudes]
      [(2, 32, 513), (2, 64, 257), (2, 128, 129)]
    """
    magnitudes = tuple(
        mel.magnitude(config._replace(n_fft=config.n_fft // k, hop=config.hop // k), wave) for k in (1, 2, 4)
    )
    return Target(wave, magnitudes, mel.compress(config, magnitudes[0]))


def spectral_distance(made: jax.Array, target: jax.Array) -> jax.Array:
    """Spectral convergence, log-magnitude distance and distance of compressed magnitudes, a mean over the batch.

    With S the target's and T the made one's magnitudes, n of them, f = 0.001 and q = `QUIET`::

        |S - T|_F / max(|S|_F, q sqrt(n))  +  mean of |log max(S, f) - log max(T, f)|
            +  mean of |max(S, f)^0.3 - max(T, f)^0.3| / mean of max(S, f)^0.3

    The first term hears what is loudest, the second counts what is soft as much as what is loud; the third is between
    them, as hearing is.

    Args:
      made: float array (batch, T, bins), not negative.
      target: the same shape.

    Returns:
      A scalar.

    Source: Yamamoto et al. 2019, arXiv 1910.11480, eq. 4 and 5, for the first two terms; Ephrat et al. 2018, arXiv
    1804.03619, for the power 0.3.
    """
    difference = jnp.sum(jnp.square(target - made), axis=(1, 2))
    energy = jnp.sum(jnp.square(target), axis=(1, 2))
    floor = jnp.asarray(MAGNITUDE_FLOOR, made.dtype)
    least = QUIET**2 * target[0].size
    convergence = jnp.sqrt(jnp.maximum(difference, 1e-12) / jnp.maximum(energy, least))  # no derivative at sqrt(0)
    made, target = jnp.log(jnp.maximum(made, floor)), jnp.log(jnp.maximum(target, floor))
    logs = jnp.mean(jnp.abs(made - target))
    made, target = jnp.exp(0.3 * made), jnp.exp(0.3 * target)  # a power costs XLA's CPU many times what these do
    return jnp.mean(convergence) + logs + jnp.mean(jnp.abs(made - target)) / jnp.mean(target)


def spectral_loss(config: MelConfig, made: Made, target: Target, weights: Weights = Weights()) -> jax.Array:  # noqa: B008
    """The loss of the first phase, without an adversary::

        mean over resolutions of spectral_distance  +  mel * mel_error  +  head * spectral_distance of the head

    The last term tells the magnitude head what to say before the phases are any good; it is left out for generators
    that have none.

    Args:
      config: the spectrogram's definition.
      made: what the generator made.
      target: what `describe` gave for the true wave.
      weights: of the terms.

    Returns:
      A scalar.
    """
    of_made = describe(config, made.wave)
    distances = [spectral_distance(m, t) for m, t in zip(of_made.magnitudes, target.magnitudes, strict=True)]
    total = sum(distances) / len(distances) + weights.mel * losses.mae(of_made.log_mel, target.log_mel)
    if not isinstance(made.log_magnitude, tuple):
        total = total + weights.head * spectral_distance(jnp.exp(made.log_magnitude), target.magnitudes[0])
    return total


def mel_error(config: MelConfig) -> Callable[[Made, Target], jax.Array]:
    """The mean absolute difference of log mel spectrograms, as HiFi-GAN reports it, as a metric."""

    def mel_error(made, target):
        return losses.mae(mel.log_mel(config, made.wave), target.log_mel)

    return mel_error


def discriminator_hinge(real: Sequence[Judged], made: Sequence[Judged]) -> jax.Array:
    """The discriminators' hinge loss, mean max(0, 1 - D(real)) + mean max(0, 1 + D(made)), averaged over them.

    (`jaxnet.losses.hinge` is the one between classes.)

    Source: Lim and Ye 2017, arXiv 1705.02894; Kumar et al. 2019, arXiv 1910.06711, eq. 1.
    """
    values = [
        jnp.mean(activations.relu(1.0 - r.score)) + jnp.mean(activations.relu(1.0 + m.score))
        for r, m in zip(real, made, strict=True)
    ]
    return sum(values[1:], start=values[0]) / len(values)


def generator_hinge(made: Sequence[Judged]) -> jax.Array:
    """The generator's side of it, - mean D(made), averaged over the discriminators.

    Source: Kumar et al. 2019, arXiv 1910.06711, eq. 2.
    """
    values = [-jnp.mean(m.score) for m in made]
    return sum(values[1:], start=values[0]) / len(values)


def feature_matching(made: Sequence[Judged], real: Sequence[Judged]) -> jax.Array:
    """The distance of what the discriminators see in both waves, relative to how large it is in the real one::

        mean over discriminators and layers of   mean |F(made) - F(real)|  /  mean |F(real)|

    The published loss lacks the denominator, so that a discriminator could change its weight by scaling its features.

    Returns:
      A scalar; it has no gradient with respect to ``real``.

    Source: Kumar et al. 2019, arXiv 1910.06711, eq. 3.
    """
    values = []
    for m, r in zip(made, real, strict=True):
        for of_made, of_real in zip(m.features, r.features, strict=True):
            of_real = jax.lax.stop_gradient(of_real)
            size = jnp.maximum(jnp.mean(jnp.abs(of_real)), 1e-6)
            values.append(jnp.mean(jnp.abs(of_made - of_real)) / size)
    return sum(values[1:], start=values[0]) / len(values)

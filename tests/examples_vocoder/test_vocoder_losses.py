"""The vocoder's losses against their literal sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from examples.vocoder import losses, mel, phases
from examples.vocoder.discriminators import Judged
from examples.vocoder.frame_generator import Made

CONFIG = mel.MelConfig()
describe = jax.jit(lambda wave: losses.describe(CONFIG, wave))
slope = jax.jit(jax.value_and_grad(lambda x, target: losses.spectral_loss(CONFIG, Made(x), target)))


def wave(seed, scale=0.1, shape=(2, 4096)):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def literal_magnitude(x, n_fft, hop):
    x = np.pad(x.astype(np.float64), ((0, 0), ((n_fft - hop) // 2,) * 2), mode="reflect")
    _, _, spectrum = scipy.signal.stft(
        x, nperseg=n_fft, noverlap=n_fft - hop, boundary=None, padded=False, window="hann"
    )
    return np.abs(np.moveaxis(spectrum, 1, 2)) * n_fft / 2


def literal_distance(made, target):
    convergence = [np.linalg.norm(t - m) / np.linalg.norm(t) for m, t in zip(made, target, strict=True)]
    made, target = np.maximum(made, 1e-3), np.maximum(target, 1e-3)
    compressed = np.abs(made**0.3 - target**0.3).mean() / (target**0.3).mean()
    return np.mean(convergence) + np.mean(np.abs(np.log(made) - np.log(target))) + compressed


def test_spectral_loss_is_its_equation():
    made, true, head = wave(0), wave(1), np.abs(wave(2, 1.0, (2, 16, 513))) + 0.1
    target = describe(true)
    weights = losses.Weights(mel=3.0, head=0.7)
    loss = jax.jit(lambda x, head, target: losses.spectral_loss(CONFIG, Made(x, jnp.log(head), head), target, weights))
    value = loss(made, head, target)
    resolutions = [(1024, 256), (512, 128), (256, 64)]
    pairs = [(literal_magnitude(made, *r), literal_magnitude(true, *r)) for r in resolutions]
    mels = [np.log(np.maximum(m @ mel.filterbank(CONFIG), 1e-5)) for m in pairs[0]]
    expected = np.mean([literal_distance(*pair) for pair in pairs]) + 3 * np.mean(np.abs(mels[0] - mels[1]))
    expected += 0.7 * literal_distance(head, pairs[0][1])
    np.testing.assert_allclose(value, expected, rtol=2e-5)


def test_without_a_magnitude_head_its_term_is_left_out():
    target = describe(wave(1))
    alike = losses.spectral_loss(CONFIG, Made(jnp.asarray(wave(1))), target, losses.Weights(head=100.0))
    np.testing.assert_allclose(alike, 0, atol=1e-5)


@pytest.mark.parametrize("made", [np.zeros((2, 4096), np.float32), wave(0)], ids=["silence", "the target itself"])
def test_the_gradient_is_finite(made):
    assert np.all(np.isfinite(slope(made, describe(wave(0)))[1]))


def test_the_gradient_is_finite_for_a_silent_target():
    value, gradient = slope(wave(0), describe(np.zeros((2, 4096), np.float32)))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_a_pause_does_not_outweigh_speech():
    """Against a silent target, the spectral convergence of noise 60 dB below full scale is below that of two noises."""
    silence = describe(np.zeros((2, 4096), np.float32)).magnitudes[0][:1]
    hiss = np.asarray(mel.magnitude(CONFIG, jnp.asarray(wave(0, 1e-3, (1, 4096)))))
    expected = np.linalg.norm(hiss) / (losses.QUIET * np.sqrt(hiss.size))
    expected += np.mean(np.abs(np.log(hiss) - np.log(1e-3))) + np.mean(hiss**0.3) / 1e-3**0.3 - 1
    np.testing.assert_allclose(losses.spectral_distance(jnp.asarray(hiss), silence), expected, rtol=1e-3)
    assert np.linalg.norm(hiss) / (losses.QUIET * np.sqrt(hiss.size)) < 0.3


def test_the_gradient_is_the_slope():
    true, at = jnp.asarray(wave(1)), jnp.asarray(wave(0))
    target = describe(true)

    @jax.jit
    @jax.value_and_grad
    def loss(step):
        return losses.spectral_loss(CONFIG, Made(at + step * (true - at)), target)

    half, width = np.float32([0.5, 1e-2])
    expected = (loss(half + width)[0] - loss(half - width)[0]) / (2 * width)
    np.testing.assert_allclose(loss(half)[1], expected, rtol=0.03)


def judged(seed):
    rng = np.random.default_rng(seed)
    return tuple(
        Judged(
            jnp.asarray(rng.normal(size=(2, n, 1)), jnp.float32),
            tuple(jnp.asarray(rng.normal(size=(2, n, 3)) * scale, jnp.float32) for scale in (1.0, 50.0)),
        )
        for n in (5, 9)
    )


def test_the_second_phase_weighs_its_terms():
    real, made = judged(0), judged(1)
    target, wrong = describe(wave(1)), Made(jnp.asarray(wave(0)))
    recipe = phases.Recipe(spectral_weight=2.0, adversarial_weight=3.0, matching_weight=5.0)
    expected = 2 * losses.spectral_loss(CONFIG, wrong, target, recipe.weights) - 3 * np.mean(
        [np.mean(np.asarray(m.score)) for m in made]
    )
    # Relative to the real wave's features, and so not the same the other way round.
    expected += 5 * losses.feature_matching(made, real)
    assert abs(losses.feature_matching(made, real) - losses.feature_matching(real, made)) > 1e-3
    np.testing.assert_allclose(phases.adversarial_loss(CONFIG, recipe)(made, real, wrong, target), expected, rtol=1e-5)


def test_hinge_is_its_equation():
    real, made = judged(0), judged(1)
    expected = np.mean(
        [
            np.mean(np.maximum(0, 1 - np.asarray(r.score))) + np.mean(np.maximum(0, 1 + np.asarray(m.score)))
            for r, m in zip(real, made, strict=True)
        ]
    )
    np.testing.assert_allclose(losses.discriminator_hinge(real, made), expected, rtol=1e-5)
    np.testing.assert_allclose(
        losses.generator_hinge(made), -np.mean([np.mean(np.asarray(m.score)) for m in made]), rtol=1e-5
    )


def test_feature_matching_is_relative():
    real, made = judged(0), judged(1)
    expected = np.mean(
        [
            np.mean(np.abs(np.asarray(f) - np.asarray(g))) / np.mean(np.abs(np.asarray(g)))
            for m, r in zip(made, real, strict=True)
            for f, g in zip(m.features, r.features, strict=True)
        ]
    )
    np.testing.assert_allclose(losses.feature_matching(made, real), expected, rtol=1e-5)
    scaled = jax.tree.map(lambda leaf: 7.0 * leaf, (made, real))
    np.testing.assert_allclose(losses.feature_matching(*scaled), expected, rtol=1e-5)
    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(losses.feature_matching, argnums=1)(made, real)))

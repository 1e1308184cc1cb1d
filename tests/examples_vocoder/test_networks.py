"""The vocoder's networks: published sizes, and a transposed convolution that is the inverse transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from examples.vocoder import discriminators, frame_generator, mel, phases, stft, time_generators
from jaxnet.errors import ConfigError

CONFIG = mel.MelConfig()
MEL = jax.ShapeDtypeStruct((1, 8, 80), jnp.float32)
WAVE = jax.ShapeDtypeStruct((1, 8192), jnp.float32)


NETWORKS = {
    "S": (frame_generator.frame_generator(CONFIG, frame_generator.SIZES["S"]), MEL, 1_260_291),
    "P1": (frame_generator.frame_generator(CONFIG), MEL, 3_051_459),
    "P1-learned": (frame_generator.frame_generator(CONFIG, learned_inverse=True), MEL, 3_051_459 + 1026 * 1024),
    "L": (frame_generator.frame_generator(CONFIG, frame_generator.SIZES["L"]), MEL, 13_585_923),
    "melgan": (time_generators.melgan(weight_norm=False), MEL, 4_260_257),
    "hifi-gan-v1": (time_generators.hifi_gan(time_generators.V1, weight_norm=False), MEL, 13_926_017),
    "hifi-gan-v2": (time_generators.hifi_gan(time_generators.V2, weight_norm=False), MEL, 925_985),
    "hifi-gan-v3": (time_generators.hifi_gan(time_generators.V3, weight_norm=False), MEL, 1_462_273),
    "hifi-gan-v3-causal": (
        time_generators.hifi_gan(time_generators.V3, causal=True, weight_norm=False), MEL, 1_462_273,
    ),
    "multi-period": (discriminators.multi_period(normalized=False), WAVE, 41_092_165),
    "multi-scale": (discriminators.multi_scale(normalized=False), WAVE, 29_610_627),
    "melgan-discriminator": (discriminators.melgan_discriminator(normalized=False), WAVE, 16_913_859),
    # A length more for each output of a convolution, and for each input of a transposed one.
    "melgan-normed": (time_generators.melgan(), MEL, 4_260_257 + 512 + 960 + 9 * 480 + 1),
    "v3-normed": (time_generators.hifi_gan(time_generators.V3), MEL, 1_462_273 + 256 + 448 + 6 * 224 + 1),
    "melgan-causal-normed": (time_generators.melgan(causal=True), MEL, 4_260_257 + 512 + 960 + 9 * 480 + 1),
    "multi-period-normed": (discriminators.multi_period(), WAVE, 41_092_165 + 5 * 2721),
    # Of the first scale the spectrum is normalized.
    "multi-scale-normed": (discriminators.multi_scale(), WAVE, 29_610_627 + 2 * 4097),
    "melgan-discriminator-normed": (discriminators.melgan_discriminator(), WAVE, 16_913_859 + 3 * 3409),
    "period-tiny": (discriminators.period_discriminator_tiny(), WAVE, 632_547),
    "spectrogram": (discriminators.spectrogram_discriminator(CONFIG), WAVE, 839_043),
}  # fmt: skip


@functools.cache
def begun(name):
    """The shapes of a network's parameters and state: of the large ones even tracing takes a second."""
    net, x, _ = NETWORKS[name]
    return jax.eval_shape(net.init, jax.random.key(0), x)


def made(name):
    """The shapes of what a network makes."""
    net, x, _ = NETWORKS[name]
    return jax.eval_shape(lambda params, state, x: net.apply(params, state, x, train=True)[0], *begun(name), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(begun(name)[0])) == NETWORKS[name][2]


@pytest.mark.parametrize(
    "name",
    ["P1", "melgan-normed", "hifi-gan-v1", "hifi-gan-v2", "v3-normed", "melgan-causal-normed", "hifi-gan-v3-causal"],
)
def test_a_frame_becomes_a_hop_of_samples(name):
    assert made(name).wave.shape == (1, 8 * CONFIG.hop)


@pytest.mark.filterwarnings("ignore:NOLA condition failed")  # beyond the samples that are compared
def test_the_transposed_convolution_starts_as_the_inverse_transform():
    spectrum = np.random.default_rng(0).normal(size=(2, 12, 2 * CONFIG.bins)).astype(np.float32)
    net = frame_generator.inverse_dft(CONFIG)
    made, _ = net.apply(*net.init(jax.random.key(0), spectrum), spectrum, train=False)
    complex_spectrum = spectrum[..., : CONFIG.bins] + 1j * spectrum[..., CONFIG.bins :]
    ours = stft.istft(jnp.asarray(complex_spectrum), CONFIG.n_fft, CONFIG.hop)
    trim = slice(CONFIG.padding, ours.shape[1] - CONFIG.padding)
    np.testing.assert_allclose(made, ours[:, trim], atol=2e-5)
    _, theirs = scipy.signal.istft(
        np.moveaxis(complex_spectrum, 1, 2), nperseg=1024, noverlap=768, boundary=False, window="hann"
    )
    # scipy's spectra are divided by the window's sum
    np.testing.assert_allclose(made, theirs[:, trim] / 512, atol=2e-5)


def test_both_inverses_make_the_same_wave():
    log_mel = np.random.default_rng(0).normal(-5, 2, (2, 12, 80)).astype(np.float32)
    waves = []
    for learned in (False, True):
        net = frame_generator.frame_generator(CONFIG, frame_generator.SIZES["S"], learned_inverse=learned)
        program = jax.jit(lambda x, net=net: net.apply(*net.init(jax.random.key(0), x), x, train=True)[0].wave)
        waves.append(program(log_mel))
    np.testing.assert_allclose(waves[0], waves[1], atol=1e-4 * float(jnp.abs(waves[0]).max()))


def test_rounds_are_griffin_lims_and_nearer_to_a_wave():
    rng = np.random.default_rng(0)
    log_magnitude, angle = rng.normal(size=(2, 12, CONFIG.bins)), rng.uniform(-1, 1, (2, 12, CONFIG.bins))
    polar = jnp.asarray(np.concatenate([log_magnitude, angle], -1), jnp.float32)

    def inconsistency(rounds):
        real, imaginary = np.split(np.asarray(frame_generator.toward_consistency(CONFIG, polar, rounds)), 2, axis=-1)
        z = real + 1j * imaginary
        return z, np.linalg.norm(z - stft.stft(stft.istft(jnp.asarray(z), 1024, 256), 1024, 256)) / np.linalg.norm(z)

    (at_first, error), (once, error_once), (_, error_twice) = map(inconsistency, range(3))
    np.testing.assert_allclose(at_first, np.exp(log_magnitude + 1j * np.pi * angle), atol=1e-5)
    consistent = np.asarray(stft.stft(stft.istft(jnp.asarray(at_first), 1024, 256), 1024, 256))
    magnitude = np.exp(log_magnitude)
    np.testing.assert_allclose(
        once, magnitude * consistent * 1.3 / (np.abs(consistent) + 0.3 * magnitude), rtol=1e-3, atol=1e-4
    )
    assert error_twice < error_once < 0.8 * error


def test_magnitudes_are_corrected_by_what_their_bands_lack():
    rng = np.random.default_rng(0)
    log_magnitude, log_mel = rng.normal(size=(1, 3, CONFIG.bins)), rng.normal(-3, 1, (1, 3, 80))
    corrected = frame_generator.mel_consistent(CONFIG, *(jnp.asarray(a, jnp.float32) for a in (log_magnitude, log_mel)))
    bank = mel.filterbank(CONFIG).astype(np.float64)
    lack = log_mel - np.log(np.exp(log_magnitude) @ bank)
    literal = log_magnitude + np.divide(lack @ bank.T, bank.sum(1), out=np.zeros((1, 3, 513)), where=bank.sum(1) > 0)
    np.testing.assert_allclose(corrected, literal, atol=1e-4)
    remains = log_mel - np.log(np.exp(np.asarray(corrected, np.float64)) @ bank)
    assert np.abs(remains).mean() < 0.5 * np.abs(lack).mean()


def test_a_generator_starts_from_the_pseudo_inverse():
    """With heads that say nothing, the magnitudes are those that the mel spectrogram gives by itself."""
    wave = np.random.default_rng(0).normal(size=(1, 4096)).astype(np.float32)
    log_mel = mel.log_mel(CONFIG, wave)
    net = frame_generator.frame_generator(CONFIG, frame_generator.SIZES["S"])
    params, state = jax.eval_shape(net.init, jax.random.key(0), log_mel)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    made = jax.jit(lambda params, x: net.apply(params, state, x, train=False)[0])(zeros, log_mel)
    literal = np.maximum(np.exp(log_mel) @ np.linalg.pinv(mel.filterbank(CONFIG).astype(np.float64)), 1e-3)
    literal = frame_generator.mel_consistent(CONFIG, jnp.log(jnp.asarray(literal, jnp.float32)), log_mel)
    np.testing.assert_allclose(made.log_magnitude, literal, atol=5e-3)
    assert not np.any(made.phase)


def test_periods_are_columns_of_the_folded_wave():
    """The first features are a convolution along each column of the wave folded into rows of three."""
    net = discriminators.multi_period((3,), (4, 4))
    wave = np.random.default_rng(0).normal(size=(1, 90)).astype(np.float32)
    params, state = net.init(jax.random.key(0), wave)
    (judged,), _ = jax.jit(net.apply, static_argnames="train")(params, state, wave, train=False)
    kernel, bias = (np.asarray(params[0][0][1][0][name]) for name in ("kernel", "bias"))
    rows = np.pad(wave.reshape(30, 3), ((2, 2), (0, 0)))
    literal = [[kernel[:, 0].T @ rows[3 * i : 3 * i + 5, column] + bias for i in range(10)] for column in range(3)]
    literal = np.asarray(literal)
    np.testing.assert_allclose(judged.features[0], np.where(literal > 0, literal, 0.1 * literal), rtol=1e-4, atol=1e-5)
    assert judged.score.shape == (3, 10, 1)


@pytest.mark.parametrize(
    ("name", "scores", "features"),
    [
        # Four strides of 3, in columns of 8192 / p samples, p of them an example.
        ("multi-period-normed", [(2, 51), (3, 34), (5, 21), (7, 15), (11, 10)], 5),
        # Strides 2, 2, 4, 4 of 8192, 4097 and 2049 samples.
        ("multi-scale-normed", [(1, 128), (1, 65), (1, 33)], 7),
        # Four strides of 4 of 8192, 4096 and 2048 samples.
        ("melgan-discriminator-normed", [(1, 32), (1, 16), (1, 8)], 6),
        ("spectrogram", [(1, 32), (1, 64), (1, 128)], 3),
    ],
    ids=["multi-period", "multi-scale", "melgan", "spectrogram"],
)
def test_discriminators_tell_scores_and_features(name, scores, features):
    judged = made(name)
    assert [one.score.shape[:-1] for one in judged] == scores
    for one in judged:
        assert one.score.shape[-1] == 1
        assert len(one.features) == features


def test_several_discriminators_see_the_wave():
    net = discriminators.of_wave(
        discriminators.multi_period((2,), (4,)), discriminators.spectrogram_discriminator(CONFIG, [(256, 64)])
    )
    made = frame_generator.Made(jax.ShapeDtypeStruct((2, 1024), jnp.float32))
    judged = jax.eval_shape(lambda made: net.apply(*net.init(jax.random.key(0), made), made, train=True)[0], made)
    assert [one.score.shape for one in judged] == [(4, 512, 1), (2, 16, 1)]


def test_a_step_of_both_weight_normed_players():
    """Traced: the spectra's vectors move with the discriminators' state, and all fits together again."""
    net = time_generators.hifi_gan(time_generators.HiFiGAN(8, (16, 16), (32, 32), (3,), ((1,),)))
    judges = discriminators.of_wave(
        discriminators.multi_period((2,), (4,)), discriminators.multi_scale(((4, 15, 1, 1), (4, 41, 4, 4)))
    )
    log_mel = jax.ShapeDtypeStruct((1, 32, 80), jnp.float32)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), log_mel)[0])
    phase = phases.adversarial_phase(CONFIG, net, judges, params, 4, 0, phases.RECIPE)
    start = jax.eval_shape(lambda params: phases.adversarial_phase(
        CONFIG, net, judges, params, 4, 0, phases.RECIPE).start(), params)  # fmt: skip
    first_scale = start.discriminator.state[1][0]
    assert first_scale[0][1][0].keys() == {"left", "right"}
    assert {"kernel", "scale", "bias"} == start.discriminator.params[1][1][0][1][0].keys()
    after, metrics = jax.eval_shape(phase.step, start, (WAVE, WAVE))
    assert jax.tree.structure(after) == jax.tree.structure(start)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(metrics))


def test_the_tree_of_another_network_is_refused():
    net = frame_generator.frame_generator(CONFIG, frame_generator.SIZES["S"])
    params, state = jax.eval_shape(net.init, jax.random.key(0), MEL)
    larger = frame_generator.frame_generator(CONFIG)
    with pytest.raises(ConfigError, match="must be a tuple of 8"):
        larger.apply(params, state, jnp.zeros(MEL.shape), train=False)

"""Discriminators: each looks at a wave in several ways, and tells its scores and what it saw on the way to them.

What it saw, the features, is what feature matching compares. The published ones, MelGAN's and HiFi-GAN's, are
normalized as their authors have them, weights or spectra; the counts of parameters are those without, which
``normalized=False`` leaves out. `period_discriminator_tiny` and `spectrogram_discriminator` are for a CPU.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from examples.vocoder import mel
from jaxnet import activations, initializers, layers


class Judged(NamedTuple):
    """What one discriminator says of a batch of waves.

    Attributes:
      score: float array (batch', positions, 1), high for real.
      features: the outputs of the layers before, the first first.
    """

    score: Any
    features: tuple[Any, ...]


def judge(view: Callable[[Any], Any], stages: Sequence[layers.Layer], score: layers.Layer) -> layers.Layer:
    """Chains layers and keeps what each gives.

    Args:
      view: what turns a wave (batch, samples) into the first layer's input (batch', positions, channels).
      stages: the layers whose outputs are features.
      score: the last layer.

    Returns:
      A layer from waves to `Judged`.
    """
    return _judge(layers.chain(view, stages[0]), *stages[1:], score)


def _judge(*members: layers.Layer) -> layers.Layer:
    parts = tuple((str(i), member) for i, member in enumerate(members))

    def init(key, wave):
        params, state = [], []
        x = wave
        for member, part_key in zip(members, jax.random.split(key, len(members)), strict=True):
            part_params, part_state = member.init(part_key, x)
            x = jax.eval_shape(lambda p, s, v, m=member: m.apply(p, s, v, train=False)[0], part_params, part_state, x)
            params.append(part_params)
            state.append(part_state)
        return tuple(params), tuple(state)

    def apply(params, state, wave, *, train, key):
        del key
        outputs, states = [wave], []
        for member, p, s in zip(members, params, state, strict=True):
            y, s = member.apply(p, s, outputs[-1], train=train)
            outputs.append(y)
            states.append(s)
        return Judged(outputs[-1], tuple(outputs[1:-1])), tuple(states)

    return layers.layer("judge", init, apply, parts=parts, rebuild=_judge)


def of_wave(*discriminators: layers.Layer) -> layers.Layer:
    """Several discriminators of the ``wave`` of what a generator made, or of what it should have made.

    Args:
      *discriminators: layers from waves to `Judged` or tuples of it.

    Returns:
      A layer from anything with a field ``wave`` to a flat tuple of `Judged`.
    """
    together = layers.parallel(*discriminators, combine=_flatten)

    def init(key, x):
        return together.init(key, x.wave)

    def apply(params, state, x, *, train, key):
        return together.apply(params, state, x.wave, train=train, key=key)

    return layers.layer("of_wave", init, apply, parts=together.about.parts, rebuild=of_wave)


def multi_period(
    periods: Sequence[int] = (2, 3, 5, 7, 11),
    channels: Sequence[int] = (32, 128, 512, 1024, 1024),
    *,
    normalized: bool = True,
) -> layers.Layer:
    """HiFi-GAN's multi-period discriminator, 41,092,165 parameters: each sees every p-th sample of the wave.

    The wave is folded into rows of p samples, and convolved along the columns alone, which are therefore laid out as
    examples of one batch. All strides are 3 but the last one's, which is 1.

    Args:
      periods: p of each discriminator.
      channels: of each convolution of 5 rows.
      normalized: whether weights are, as published.

    Returns:
      A layer from waves (batch, samples) to a tuple of `Judged`.

    Source: Kong et al. 2020, arXiv 2010.05646, and its code, models.py.
    """

    def one(period):
        def fold(wave):
            batch, samples = wave.shape
            wave = jnp.pad(wave, ((0, 0), (0, -samples % period)), mode="reflect")
            return jnp.moveaxis(wave.reshape(batch, -1, period), 2, 1).reshape(batch * period, -1, 1)

        strides = [3] * (len(channels) - 1) + [1]
        stages = [_column(layers.conv(c, 5, strides=s, padding=2)) for c, s in zip(channels, strides, strict=True)]
        return judge(fold, [_stage(stage, 0.1) for stage in stages], _column(layers.conv(1, 3, padding=1)))

    net = layers.parallel(*map(one, periods), combine=tuple)
    return layers.weight_norm(net) if normalized else net


def _column(convolution: layers.Layer) -> layers.Layer:
    """The same layer, whose kernel is two-dimensional in PyTorch, and one column wide."""
    torch = {leaf: (leaf, name, into) for leaf, name, into in convolution.about.torch}
    _, name, into = torch["kernel"]

    def column(kernel):
        return (into(kernel) if into else kernel)[..., None]

    return convolution.described(torch=tuple({**torch, "kernel": ("kernel", name, column)}.values()))


def period_discriminator_tiny() -> layers.Layer:
    """A `multi_period` discriminator for a CPU, 632,547 parameters."""
    return multi_period((2, 5, 11), (16, 64, 128, 128, 128), normalized=False)


SCALES = (
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16), (1024, 41, 4, 16), (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)  # fmt: skip
"""HiFi-GAN's convolutions of each scale: channels, size, stride, groups."""


def multi_scale(convolutions: Sequence[tuple[int, int, int, int]] = SCALES, *, normalized: bool = True) -> layers.Layer:
    """HiFi-GAN's multi-scale discriminator, 29,610,627 parameters: of the wave, and of its averages over 2 and 4.

    Args:
      convolutions: of each scale, before the one that scores.
      normalized: whether they are as published: the spectra of the first scale's kernels, the weights of the others'.

    Returns:
      A layer from waves (batch, samples) to a tuple of three `Judged`.

    Source: Kong et al. 2020, arXiv 2010.05646, and its code, models.py.
    """

    def one(halvings):
        def view(wave):
            x = wave[..., None]
            for _ in range(halvings):
                x, _ = layers.avg_pool(4, strides=2, padding=2).apply((), (), x, train=False)
            return x

        stages = [
            _stage(layers.conv(filters, size, strides=stride, groups=groups, padding=size // 2), 0.1)
            for filters, size, stride, groups in convolutions
        ]
        net = judge(view, stages, layers.conv(1, 3, padding=1))
        if not normalized:
            return net
        return layers.weight_norm(net) if halvings else layers.spectral_norm(net)

    return layers.parallel(*map(one, range(3)), combine=tuple)


def melgan_discriminator(
    channels: Sequence[int] = (16, 64, 256, 1024, 1024, 1024), *, normalized: bool = True
) -> layers.Layer:
    """MelGAN's discriminator of three scales with grouped convolutions, 16,913,859 parameters.

    Args:
      channels: of each convolution: one of 15 samples, some of 41 with stride 4 in groups of 4, one of 5.
      normalized: whether weights are, as published.

    Returns:
      A layer from waves (batch, samples) to a tuple of three `Judged`.

    Source: Kumar et al. 2019, arXiv 1910.06711, and its code, mel2wav/modules.py.
    """
    init = initializers.normal(0.02)

    def halve(x):
        """The mean over four samples, at the ends over those that there are."""
        pool = layers.avg_pool(4, strides=2, padding=1)
        total, _ = pool.apply((), (), x, train=False)
        count, _ = pool.apply((), (), jnp.ones_like(x), train=False)
        return total / count

    def one(halvings):
        def view(wave):
            x = wave[..., None]
            for _ in range(halvings):
                x = halve(x)
            return jnp.pad(x, ((0, 0), (7, 7), (0, 0)), mode="reflect")

        stages = [_stage(layers.conv(channels[0], 15, kernel_init=init), 0.2)]
        for before, filters in itertools.pairwise(channels[:-1]):
            down = layers.conv(filters, 41, strides=4, groups=before // 4, padding=20, kernel_init=init)
            stages.append(_stage(down, 0.2))
        stages.append(_stage(layers.conv(channels[-1], 5, padding=2, kernel_init=init), 0.2))
        return judge(view, stages, layers.conv(1, 3, padding=1, kernel_init=init))

    net = layers.parallel(*map(one, range(3)), combine=tuple)
    return layers.weight_norm(net) if normalized else net


def spectrogram_discriminator(
    config: mel.MelConfig, resolutions: Sequence[tuple[int, int]] = ((1024, 256), (512, 128), (256, 64))
) -> layers.Layer:
    """Judges log-magnitude spectrograms of several resolutions by convolutions along time, frequencies as channels.

    That is far cheaper than the two-dimensional convolutions of UnivNet's, 839,043 parameters at the usual resolutions.

    Args:
      config: whose padding is used.
      resolutions: (n_fft, hop) of each discriminator.

    Returns:
      A layer from waves (batch, samples) to a tuple of `Judged`.

    Source: after Jang et al. 2021, "UnivNet", arXiv 2106.07889.
    """

    def one(n_fft, hop):
        def view(wave):
            magnitude = mel.magnitude(config._replace(n_fft=n_fft, hop=hop), wave)
            return (jnp.log(jnp.maximum(magnitude, 1e-3)) + 2.0) / 3.0

        stages = [_stage(layers.conv(128, size, padding=size // 2), 0.2) for size in (3, 5, 5)]
        return judge(view, stages, layers.conv(1, 3, padding=1))

    return layers.parallel(*(one(*resolution) for resolution in resolutions), combine=tuple)


def _stage(convolution: layers.Layer, slope: float) -> layers.Layer:
    def leaky_relu(x):
        return activations.leaky_relu(x, slope)

    return layers.chain(convolution, leaky_relu)


def _flatten(judged: Any) -> tuple[Judged, ...]:
    return tuple(jax.tree.leaves(list(judged), is_leaf=lambda node: isinstance(node, Judged)))

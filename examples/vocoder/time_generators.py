"""Generators that work at the rate of samples: MelGAN and HiFi-GAN, with the parameter counts their authors publish.

Both upsample a mel spectrogram by transposed convolutions and refine it by residual blocks. They are here to be
compared with, and for a GPU: on a CPU a step takes far too long to learn anything in an hour. As published, every
convolution is weight-normed while it learns. The counts that the authors publish are those without, as the networks are
used once trained, which is what ``weight_norm=False`` makes; `layers.merged` takes trained parameters there.

Either can be made causal, of as many parameters: a sample then depends on the frames up to its own alone, so that
`layers.streaming` makes the wave while the frames come.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from examples.vocoder.frame_generator import Made
from jaxnet import activations, initializers, layers


class HiFiGAN(NamedTuple):
    """A configuration of `hifi_gan`.

    Attributes:
      channels: before the first upsampling; halved by each.
      rates: factors of upsampling; their product is the hop.
      kernels: of the transposed convolutions.
      block_kernels: kernel sizes of the residual blocks, whose outputs are averaged.
      block_dilations: a tuple for each of those.
      two_convolutions: whether a dilated convolution is followed by one without dilation ("ResBlock1").
    """

    channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    two_convolutions: bool = True


V1 = HiFiGAN(512, (8, 8, 2, 2), (16, 16, 4, 4))
V2 = HiFiGAN(128, (8, 8, 2, 2), (16, 16, 4, 4))
V3 = HiFiGAN(256, (8, 8, 4), (16, 16, 8), (3, 5, 7), ((1, 2), (2, 6), (3, 12)), two_convolutions=False)


def hifi_gan(size: HiFiGAN, *, causal: bool = False, weight_norm: bool = True) -> layers.Layer:
    """The generator of HiFi-GAN: V1 has 13,926,017 parameters, V2 925,985, V3 1,462,273.

    Args:
      size: one of the above.
      causal: whether to pad by zeros before the signal alone.
      weight_norm: whether kernels are learned as direction and length, which has one parameter a filter more.

    Returns:
      A layer from log mel spectrograms (batch, T, 80) to `Made` of T * 256 samples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net, log_mel = hifi_gan(V2), jnp.zeros((1, 8, 80))
      >>> jax.eval_shape(lambda: net.apply(*net.init(0, log_mel), log_mel, train=False)[0]).wave.shape
      (1, 2048)

    Source: Kong et al. 2020, arXiv 2010.05646, and its code, models.py.
    """
    init, padding = initializers.normal(0.01), "causal" if causal else "same"
    channels = size.channels
    parts: list[Any] = [layers.conv(channels, 7, padding=padding)]
    for rate, kernel in zip(size.rates, size.kernels, strict=True):
        channels //= 2
        parts += [_leaky_relu(0.1), _upsample(channels, kernel, rate, init, causal)]
        branches = []
        for block_kernel, dilations in zip(size.block_kernels, size.block_dilations, strict=True):
            blocks = []
            for dilation in dilations:
                branch: list[Any] = [
                    _leaky_relu(0.1),
                    layers.conv(channels, block_kernel, dilation=dilation, padding=padding, kernel_init=init),
                ]
                if size.two_convolutions:
                    branch += [_leaky_relu(0.1), layers.conv(channels, block_kernel, padding=padding, kernel_init=init)]
                blocks.append(layers.residual(layers.chain(*branch)))
            branches.append(layers.chain(*blocks))
        parts.append(layers.parallel(*branches, combine="mean"))
    parts += [_leaky_relu(0.01), layers.conv(1, 7, padding=padding, kernel_init=init), jnp.tanh, _as_made]
    net = layers.chain(*parts)
    return layers.weight_norm(net) if weight_norm else net


def melgan(channels: int = 512, *, causal: bool = False, weight_norm: bool = True) -> layers.Layer:
    """The generator of MelGAN, 4,260,257 parameters.

    Args:
      channels: before the first upsampling; halved by each of four.
      causal: whether to pad by zeros before the signal alone, instead of by its reflection on both sides.
      weight_norm: whether kernels are learned as direction and length, which has one parameter a filter more.

    Returns:
      A layer from log mel spectrograms (batch, T, 80) to `Made` of T * 256 samples.

    Source: Kumar et al. 2019, arXiv 1910.06711, and its code, mel2wav/modules.py.
    """
    init = initializers.normal(0.02)

    def conv(filters, size, dilation=1):
        reach = dilation * (size - 1)
        padded = layers.conv(filters, size, dilation=dilation, padding=(reach * causal, 0), kernel_init=init)
        return [padded] if causal else [_reflect(reach // 2), padded]

    parts: list[Any] = [*conv(channels, 7)]
    for rate in (8, 8, 2, 2):
        channels //= 2
        parts += [_leaky_relu(0.2), _upsample(channels, 2 * rate, rate, init, causal)]
        for dilation in (1, 3, 9):
            branch = layers.chain(
                _leaky_relu(0.2), *conv(channels, 3, dilation),
                _leaky_relu(0.2), layers.conv(channels, 1, kernel_init=init),
            )  # fmt: skip
            parts.append(layers.residual(branch, layers.conv(channels, 1, kernel_init=init)))
    parts += [_leaky_relu(0.2), *conv(1, 7), jnp.tanh, _as_made]
    net = layers.chain(*parts)
    return layers.weight_norm(net) if weight_norm else net


def _upsample(filters: int, kernel: int, rate: int, init: Any, causal: bool) -> layers.Layer:
    """PyTorch's transposed convolution with padding (kernel - rate) / 2, which gives ``rate`` samples for each."""
    padding = "causal" if causal else kernel - 1 - (kernel - rate) // 2
    return layers.conv_transpose(filters, kernel, strides=rate, padding=padding, kernel_init=init)


def _reflect(width: int):
    def reflect(x):
        return jnp.pad(x, ((0, 0), (width, width), (0, 0)), mode="reflect")

    return reflect


def _leaky_relu(slope: float):
    def leaky_relu(x):
        return activations.leaky_relu(x, slope)

    return leaky_relu


def _as_made(x: Any) -> Made:
    return Made(x[..., 0])

"""The networks as data, which every library builds its own layers from, and what their steps are trained on."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Weights = dict[str, dict[str, np.ndarray]]
"""Name of a convolution -> ``kernel`` (K, C_in / g, C_out), not flipped, and ``bias`` (C_out,): our own layout."""


class Conv(NamedTuple):
    """A convolution, or a transposed one, that keeps the length but for its stride."""

    name: str
    channels: int
    filters: int
    size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    transposed: bool = False

    @property
    def torch_padding(self) -> int:
        """PyTorch's and Equinox's padding, in either direction."""
        return (self.size - self.stride) // 2 if self.transposed else self.dilation * (self.size - 1) // 2

    @property
    def padding(self) -> tuple[int, int]:
        """What lax, Flax, Haiku and we pad the (stuffed) input with, before and after."""
        pad = self.size - 1 - self.torch_padding if self.transposed else self.torch_padding
        return pad, pad


class LeakyRelu(NamedTuple):
    """x where x > 0, slope * x elsewhere."""

    slope: float


class Tanh(NamedTuple):
    """The hyperbolic tangent."""


class Residual(NamedTuple):
    """branch(x) + shortcut(x); an empty shortcut is the identity."""

    branch: "Parts"
    shortcut: "Parts" = ()


class Mean(NamedTuple):
    """The mean of several branches on one input."""

    branches: "tuple[Parts, ...]"


Part = Conv | LeakyRelu | Tanh | Residual | Mean
Parts = tuple[Part, ...]


class Task(NamedTuple):
    """One training step: a network, its batch, its loss.

    Attributes:
      network: the name of the pair of networks.
      name: "generator" or "discriminator".
      parts: the network.
      x: its input (batch, length, channels).
      target: what the loss compares with, broadcastable to the output.
      loss: ``f(y, target)``, of what JAX's arrays and PyTorch's tensors both have.
    """

    network: str
    name: str
    parts: Parts
    x: np.ndarray
    target: np.ndarray
    loss: Callable[[Any, Any], Any]

    @property
    def parameters(self) -> int:
        """How many weights the network has."""
        return sum(leaf.size for w in initial_weights(self.parts).values() for leaf in w.values())


def forward(parts: Parts, x: Any, convolve: Callable[[Conv, Any], Any], leaky_relu: Any, tanh: Any) -> Any:
    """Runs a network with a library's own convolutional layers and activations."""
    for part in parts:
        if isinstance(part, Conv):
            x = convolve(part, x)
        elif isinstance(part, LeakyRelu):
            x = leaky_relu(x, part.slope)
        elif isinstance(part, Residual):
            around = forward(part.shortcut, x, convolve, leaky_relu, tanh)
            x = forward(part.branch, x, convolve, leaky_relu, tanh) + around
        elif isinstance(part, Mean):
            x = sum(forward(b, x, convolve, leaky_relu, tanh) for b in part.branches) / len(part.branches)
        else:
            x = tanh(x)
    return x


def convolutions(parts: Parts) -> Iterator[Conv]:
    """All convolutions of a network, in the order of computation, shortcuts after their branches."""
    for part in parts:
        if isinstance(part, Conv):
            yield part
        elif isinstance(part, Residual):
            yield from convolutions(part.branch)
            yield from convolutions(part.shortcut)
        elif isinstance(part, Mean):
            for branch in part.branches:
                yield from convolutions(branch)


def initial_weights(parts: Parts) -> Weights:
    """The weights that every library starts from: normal kernels that keep the variance, small biases."""
    rng = np.random.default_rng(0)

    def draw(conv):
        shape = (conv.size, conv.channels // conv.groups, conv.filters)
        fan_in = shape[0] * shape[1] / (conv.stride if conv.transposed else 1)
        kernel = rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
        return {"kernel": kernel, "bias": rng.normal(0, 0.01, conv.filters).astype(np.float32)}

    return {conv.name: draw(conv) for conv in convolutions(parts)}


def multiply_adds(parts: Parts, length: int) -> int:
    """Multiplications by a weight that one example costs forward; the gradient costs twice as many again."""
    total = 0
    for conv in convolutions(parts):
        taps = conv.size * conv.channels // conv.groups * conv.filters
        if conv.transposed:
            total, length = total + taps * length, length * conv.stride
        else:
            length = -(-length // conv.stride)
            total += taps * length
    return total


def generator() -> Parts:
    """A MelGAN-size generator, 80 mel bands to a waveform 256 times as long, 1.14 M parameters."""
    slope, channels = LeakyRelu(0.2), 256
    parts: list[Part] = [Conv("pre", 80, channels, 7)]
    for i, (filters, size, stride) in enumerate([(128, 16, 8), (64, 16, 8), (32, 4, 2), (16, 4, 2)]):
        parts += [slope, Conv(f"up{i}", channels, filters, size, stride, transposed=True)]
        for dilation in (1, 3, 9):
            name = f"stage{i}_dilation{dilation}"
            wide = Conv(f"{name}_wide", filters, filters, 3, dilation=dilation)
            branch = (slope, wide, slope, Conv(f"{name}_point", filters, filters, 1))
            parts.append(Residual(branch, (Conv(f"{name}_shortcut", filters, filters, 1),)))
        channels = filters
    return (*parts, slope, Conv("post", channels, 1, 7), Tanh())


def discriminator() -> Parts:
    """Its discriminator of grouped, strided convolutions, 64 samples a score, 0.42 M parameters."""
    convs = [
        Conv("wide", 1, 16, 15),
        Conv("down0", 16, 64, 41, 4, groups=4),
        Conv("down1", 64, 256, 41, 4, groups=16),
        Conv("down2", 256, 256, 41, 4, groups=64),
        Conv("top", 256, 256, 5),
    ]
    return (*(part for conv in convs for part in (conv, LeakyRelu(0.2))), Conv("score", 256, 1, 3))


def hifi_gan_v1() -> Parts:
    """The generator V1 of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646), 80 mel bands, 13.9 M parameters."""
    slope, channels = LeakyRelu(0.1), 512
    parts: list[Part] = [Conv("pre", 80, channels, 7)]
    for i, (size, stride) in enumerate([(16, 8), (16, 8), (4, 2), (4, 2)]):
        filters = channels // 2
        parts += [slope, Conv(f"up{i}", channels, filters, size, stride, transposed=True)]
        branches = []
        for size in (3, 7, 11):
            blocks = []
            for dilation in (1, 3, 5):
                name = f"stage{i}_size{size}_dilation{dilation}"
                wide = Conv(f"{name}_wide", filters, filters, size, dilation=dilation)
                blocks.append(Residual((slope, wide, slope, Conv(f"{name}_dense", filters, filters, size))))
            branches.append(tuple(blocks))
        parts.append(Mean(tuple(branches)))
        channels = filters
    return (*parts, LeakyRelu(0.01), Conv("post", channels, 1, 7), Tanh())


def _absolute_error(y: Any, target: Any) -> Any:
    return abs(y - target).mean()


def _hinge(y: Any, target: Any) -> Any:
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)), in one mean over as many real as fake examples."""
    return 2 * (1 - target * y).clip(0).mean()


def melgan(batch: int, frames: int) -> list[Task]:
    """The generator's and the discriminator's step; the latter sees ``batch`` real and ``batch`` fake waveforms."""
    rng = np.random.default_rng(1)

    def noise(*shape):
        return rng.normal(size=shape).astype(np.float32)

    name, length = "MelGAN-size", 256 * frames
    judged = noise(2 * batch, length, 1)
    real = np.where(np.arange(2 * batch) < batch, 1, -1).astype(np.float32).reshape(-1, 1, 1)
    sound = np.tanh(noise(batch, length, 1))
    return [
        Task(name, "generator", generator(), noise(batch, frames, 80), sound, _absolute_error),
        Task(name, "discriminator", discriminator(), judged, real, _hinge),
    ]


def v1_generator(batch: int, frames: int) -> list[Task]:
    """HiFi-GAN V1's generator with the same loss."""
    melgan_generator = melgan(batch, frames)[0]
    return [melgan_generator._replace(network="HiFi-GAN V1", parts=hifi_gan_v1())]

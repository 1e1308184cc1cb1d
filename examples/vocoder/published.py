"""The checkpoints that MelGAN's and HiFi-GAN's authors publish, and those of their code: the names of their modules.

A generator is read whole, with its spectrogram, to make waves with (``synthesize --published``)::

    config, net, params = published.load("generator_v1", "hifi-gan-v1")

and anything else by the names of its convolutions, such as both of HiFi-GAN's discriminators to go on training with::

    net = discriminators.of_wave(discriminators.multi_period(), discriminators.multi_scale())
    params, state = zip(*(
        interop.from_torch(published.read(file, key), part, wave, rename=published.rename(part, names))
        for key, part, names in (
            ("mpd", discriminators.multi_period(), published.hifi_gan_discriminator(5, 5)),
            ("msd", discriminators.multi_scale(), published.hifi_gan_discriminator(3, 7)),
        )
    ))

Weight norm may be there in either of PyTorch's spellings, or removed (``weight_norm=False``, ``normalized=False``).
Back to the authors' code goes what `state_dict` returns.

Source: github.com/jik876/hifi-gan, models.py; github.com/descriptinc/melgan-neurips, mel2wav/modules.py.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from examples.vocoder import mel, time_generators
from jaxnet import interop, layers
from jaxnet.errors import CheckpointError, ConfigError, DependencyError, JaxnetError


def hifi_gan(size: time_generators.HiFiGAN) -> list[str]:
    """The names of the convolutions of HiFi-GAN's generator, in the order in which they are used.

    Example:
      >>> hifi_gan(time_generators.V3)[:4]
      ['conv_pre', 'ups.0', 'resblocks.0.convs.0', 'resblocks.0.convs.1']
    """
    names, convolutions = ["conv_pre"], ("convs1", "convs2") if size.two_convolutions else ("convs",)
    for i in range(len(size.rates)):
        names.append(f"ups.{i}")
        for j, dilations in enumerate(size.block_dilations):
            block = f"resblocks.{i * len(size.block_dilations) + j}"
            names += [f"{block}.{convolution}.{k}" for k in range(len(dilations)) for convolution in convolutions]
    return [*names, "conv_post"]


def melgan() -> list[str]:
    """The names of the convolutions of MelGAN's generator: places in its one chain, padding and activations counted.

    Example:
      >>> melgan()[:5]
      ['model.1', 'model.3', 'model.4.block.2', 'model.4.block.4', 'model.4.shortcut']
    """
    names, inside = ["model.1"], ("block.2", "block.4", "shortcut")
    for i in range(3, 23, 5):
        names += [f"model.{i}", *(f"model.{i + j}.{one}" for j in (1, 2, 3) for one in inside)]
    return [*names, "model.24"]


def hifi_gan_discriminator(discriminators: int, convolutions: int) -> list[str]:
    """The names of the convolutions of HiFi-GAN's discriminators, of 5 periods (5 each) or 3 scales (7 each)."""
    each = [*(f"convs.{j}" for j in range(convolutions)), "conv_post"]
    return [f"discriminators.{i}.{one}" for i in range(discriminators) for one in each]


def melgan_discriminator(convolutions: int = 6) -> list[str]:
    """The names of the convolutions of MelGAN's discriminator, whose first has padding before it."""
    each = ["layer_0.1", *(f"layer_{j}.0" for j in range(1, convolutions)), f"layer_{convolutions}"]
    return [f"model.disc_{i}.model.{one}" for i in range(3) for one in each]


class Published(NamedTuple):
    """A generator as its authors publish it.

    Attributes:
      make: the network, with weight norm or without.
      names: of its convolutions.
      config: the spectrogram that it was trained with.
      logarithm: what the base of that one's logarithm is.
    """

    make: Callable[..., layers.Layer]
    names: Sequence[str]
    config: mel.MelConfig
    logarithm: float = math.e


_CONFIG = mel.MelConfig(sample_rate=22050)

GENERATORS: dict[str, Published] = {
    "melgan": Published(time_generators.melgan, melgan(), _CONFIG._replace(high=11025.0), 10.0),
    **{
        name: Published(functools.partial(time_generators.hifi_gan, size), hifi_gan(size), _CONFIG)
        for name, size in {
            "hifi-gan-v1": time_generators.V1,
            "hifi-gan-v2": time_generators.V2,
            "hifi-gan-v3": time_generators.V3,
        }.items()
    },
}
"""Name -> the generator that has been published under it."""


def rename(net: layers.Layer, names: Sequence[str]) -> dict[str, str]:
    """The names of a network's convolutions in jaxnet, each with the authors' one, for `interop`.

    Args:
      net: the network, in which convolutions come in the order in which they are used.
      names: the authors', in the same order.

    Raises:
      ConfigError: another number of them.

    Example:
      >>> rename(layers.chain(jnp.tanh, layers.conv(4, 3), layers.conv(1, 1)), ["head", "tail"])
      {'1': 'head', '2': 'tail'}
    """
    ours = list(_convolutions(net))
    if len(ours) != len(names):
        raise ConfigError(f"rename: the network has {len(ours)} convolutions, and names are given for {len(names)}")
    return dict(zip(ours, names, strict=True))


def _convolutions(net: layers.Layer, path: str = "") -> Iterator[str]:
    if net.about.fan_in is not None:
        yield path.rstrip(".")
    for label, part in net.about.parts:
        yield from _convolutions(part, f"{path}{label}.")


_OLDER = {
    "0._u": "weight_u",
    "0._v": "weight_v",
    "original": "weight_orig",
    "original0": "weight_g",
    "original1": "weight_v",
}


def state_dict(net: layers.Layer, params: Any, state: Any, names: Sequence[str]) -> dict[str, Any]:
    """The arrays of a network as the authors' code loads them, with ``load_state_dict``.

    It is what `interop.to_torch` returns with their names, and in the older spelling of weight norm and spectral norm,
    which their code has.

    Args:
      net: the network.
      params: its own.
      state: its own.
      names: as for `rename`.

    Example:
      >>> net = layers.weight_norm(layers.chain(layers.conv(4, 3)))
      >>> sorted(state_dict(net, *net.init(0, jnp.ones((1, 9, 2))), ["conv_pre"]))
      ['conv_pre.bias', 'conv_pre.weight_g', 'conv_pre.weight_v']
    """
    arrays = {}
    for name, array in interop.to_torch(params, state, net, rename=rename(net, names)).items():
        module, found, which = name.partition("parametrizations.weight.")
        arrays[module + _OLDER[which] if found else name] = array
    return arrays


def read(path: str | os.PathLike[str], key: str | None = None) -> Mapping[str, Any]:
    """The arrays of a checkpoint by their names.

    Args:
      path: a file of safetensors, by its ending, or else one that PyTorch wrote; that is read as data, and nothing in
        it is run.
      key: where one file holds several networks, as HiFi-GAN's do: "generator", "mpd", "msd". One that is not there is
        taken for the only one's.

    Raises:
      CheckpointError: no such file, or it cannot be read.
      DependencyError: a file that only PyTorch can read, where it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"read: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        import torch

        arrays = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise DependencyError(
            f"read: {path} is a file that PyTorch alone reads; pip install torch, or write its arrays where that is "
            f'installed: safetensors.torch.save_file(torch.load(...)["generator"], "generator.safetensors")'
        ) from error
    except Exception as error:  # what damaged files make of the libraries' own
        raise CheckpointError(f"read: {path} is no checkpoint of arrays: {error}") from error
    arrays = arrays.get(key, arrays) if isinstance(arrays, Mapping) else arrays
    if not isinstance(arrays, Mapping) or not all(hasattr(value, "shape") for value in arrays.values()):
        holds = f"holds {', '.join(map(str, arrays))}" if isinstance(arrays, Mapping) else "maps no names to arrays"
        raise CheckpointError(f"read: {path} {holds}; wanted a state_dict{f', or one under {key!r}' * bool(key)}")
    return arrays


def load(path: str | os.PathLike[str], generator: str) -> tuple[mel.MelConfig, layers.Layer, Any]:
    """A published generator, ready to speak.

    Args:
      path: its checkpoint, as for `read`. A ``config.json`` beside it, which HiFi-GAN's have, says what spectrogram it
        was trained with, or else it is the published one: 22,050 Hz.
      generator: which of `GENERATORS` it is.

    Returns:
      ``(config, net, params)`` for `synthesize.Vocoder`: a layer from log mel spectrograms, in natural logarithms
      whatever its authors take, to `frame_generator.Made`, with weight norm where the file has it.

    Raises:
      ConfigError: an unknown name, or a ``config.json`` of what our spectrograms cannot be.
      CheckpointError: as from `read`, or another network's arrays.
      DependencyError: as from `read`.
    """
    if generator not in GENERATORS:
        raise ConfigError(f"load: generator must be one of {', '.join(GENERATORS)}, got {generator!r}")
    published, arrays = GENERATORS[generator], read(path, "generator")
    config = _config_beside(Path(path)) or published.config
    normed = any(name.endswith(("weight_g", "weight.original0")) for name in arrays)
    net = published.make(weight_norm=normed)
    example = jax.ShapeDtypeStruct((1, 32, config.bands), jnp.float32)
    params, _ = interop.from_torch(arrays, net, example, rename=rename(net, published.names))
    if published.logarithm == math.e:
        return config, net, params

    def in_its_base(log_mel):
        return log_mel / math.log(published.logarithm)

    return config, layers.chain(in_its_base, net), ((), params)


def _config_beside(path: Path) -> mel.MelConfig | None:
    path = path.with_name("config.json")
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
        rate, n_fft, hop = (fields[name] for name in ("sampling_rate", "n_fft", "hop_size"))
        high = fields["fmax"] or rate / 2
        config = mel.check(mel.MelConfig(rate, n_fft, hop, fields["num_mels"], fields["fmin"], high))
        window = fields.get("win_size", n_fft)
    except (JaxnetError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"load: {path} is no configuration of HiFi-GAN: {error!r}") from error
    if window != n_fft or hop != mel.MelConfig().hop:
        raise ConfigError(
            f"load: {path} has windows of {window} samples, n_fft {n_fft} and hop_size {hop}; wanted windows as long "
            f"as n_fft, and {mel.MelConfig().hop} samples from one to the next, which is what the generators make"
        )
    return config

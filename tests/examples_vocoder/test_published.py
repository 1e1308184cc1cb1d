"""Checkpoints as the authors' code writes them, against their networks written in PyTorch."""

import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from examples.vocoder import audio, discriminators, mel, published, samples, synthesize, time_generators
from jaxnet import interop, layers
from jaxnet.errors import CheckpointError, ConfigError, DependencyError

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")]
torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

TWICE = time_generators.HiFiGAN(8, (4, 2), (8, 4), (3, 5), ((1, 3), (1, 2)))
ONCE = time_generators.HiFiGAN(8, (16, 16), (32, 32), (3, 5), ((1, 2), (1, 3)), two_convolutions=False)
SCALES = ((8, 15, 1, 1), (8, 41, 2, 4), (8, 5, 1, 1))
OLD, NEW = torch.nn.utils, torch.nn.utils.parametrizations


class ResBlock(nn.Module):
    def __init__(self, size, wrap, channels, kernel, dilations):
        super().__init__()

        def convolutions(dilations):
            return nn.ModuleList(
                wrap(nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2))
                for d in dilations
            )

        if size.two_convolutions:
            self.convs1, self.convs2 = convolutions(dilations), convolutions([1] * len(dilations))
        else:
            self.convs = convolutions(dilations)

    def forward(self, x):
        pairs = zip(self.convs1, self.convs2, strict=True) if hasattr(self, "convs1") else ((c,) for c in self.convs)
        for pair in pairs:
            y = x
            for convolution in pair:
                y = convolution(functional.leaky_relu(y, 0.1))
            x = x + y
        return x


class HiFiGAN(nn.Module):
    def __init__(self, size, norms):
        super().__init__()
        wrap, c, n = norms.weight_norm, size.channels, len(size.block_kernels)
        self.conv_pre = wrap(nn.Conv1d(80, c, 7, padding=3))
        self.ups = nn.ModuleList(
            wrap(nn.ConvTranspose1d(c >> i, c >> (i + 1), k, r, padding=(k - r) // 2))
            for i, (r, k) in enumerate(zip(size.rates, size.kernels, strict=True))
        )
        self.resblocks = nn.ModuleList(
            ResBlock(size, wrap, c >> (i + 1), size.block_kernels[j], size.block_dilations[j])
            for i, j in itertools.product(range(len(size.rates)), range(n))
        )
        self.conv_post, self.n = wrap(nn.Conv1d(c >> len(size.rates), 1, 7, padding=3)), n

    def forward(self, x):
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, 0.1))
            x = sum(block(x) for block in self.resblocks[i * self.n : (i + 1) * self.n]) / self.n
        return torch.tanh(self.conv_post(functional.leaky_relu(x)))


class ResnetBlock(nn.Module):
    def __init__(self, wrap, channels, dilation):
        super().__init__()
        self.block = nn.Sequential(
            nn.LeakyReLU(0.2), nn.ReflectionPad1d(dilation), wrap(nn.Conv1d(channels, channels, 3, dilation=dilation)),
            nn.LeakyReLU(0.2), wrap(nn.Conv1d(channels, channels, 1)),
        )  # fmt: skip
        self.shortcut = wrap(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        return self.shortcut(x) + self.block(x)


class MelGAN(nn.Module):
    def __init__(self, channels, norms):
        super().__init__()
        wrap = norms.weight_norm
        parts = [nn.ReflectionPad1d(3), wrap(nn.Conv1d(80, channels, 7))]
        for rate in (8, 8, 2, 2):
            up = nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, padding=rate // 2)
            channels //= 2
            parts += [nn.LeakyReLU(0.2), wrap(up), *(ResnetBlock(wrap, channels, d) for d in (1, 3, 9))]
        parts += [nn.LeakyReLU(0.2), nn.ReflectionPad1d(3), wrap(nn.Conv1d(channels, 1, 7)), nn.Tanh()]
        self.model = nn.Sequential(*parts)

    def forward(self, x):
        return self.model(x)


class Judge(nn.Module):
    """One of HiFi-GAN's discriminators: of a wave, or folded into rows of ``period``."""

    def __init__(self, wrap, convolutions, post, period=0):
        super().__init__()
        self.convs, self.conv_post, self.period = nn.ModuleList(map(wrap, convolutions)), wrap(post), period

    def forward(self, x):
        if self.period:
            x = functional.pad(x, (0, -x.shape[-1] % self.period), "reflect")
            x = x.view(*x.shape[:2], -1, self.period)
        seen = []
        for convolution in self.convs:
            x = functional.leaky_relu(convolution(x), 0.1)
            seen.append(x)
        return [*seen, self.conv_post(x)]


class MultiPeriod(nn.Module):
    def __init__(self, norms):
        super().__init__()
        self.discriminators = nn.ModuleList(
            Judge(
                norms.weight_norm,
                [
                    nn.Conv2d(1, 4, (5, 1), (3, 1), padding=(2, 0)),
                    nn.Conv2d(4, 6, (5, 1), padding=(2, 0)),
                ],
                nn.Conv2d(6, 1, (3, 1), padding=(1, 0)),
                period,
            )
            for period in (2, 3)
        )

    def forward(self, x):
        return [discriminator(x) for discriminator in self.discriminators]


class MultiScale(nn.Module):
    def __init__(self, norms):
        super().__init__()
        self.discriminators = nn.ModuleList(
            Judge(
                norms.weight_norm if i else norms.spectral_norm,
                [
                    nn.Conv1d(before, c, k, s, padding=k // 2, groups=g)
                    for before, (c, k, s, g) in zip((1, 8, 8), SCALES, strict=True)
                ],
                nn.Conv1d(8, 1, 3, padding=1),
            )
            for i in range(3)
        )

    def forward(self, x):
        results = []
        for discriminator in self.discriminators:
            results.append(discriminator(x))
            x = functional.avg_pool1d(x, 4, 2, padding=2)
        return results


class NLayer(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "layer_0": nn.Sequential(nn.ReflectionPad1d(7), wrap(nn.Conv1d(1, 4, 15)), nn.LeakyReLU(0.2)),
                "layer_1": nn.Sequential(wrap(nn.Conv1d(4, 8, 41, 4, padding=20)), nn.LeakyReLU(0.2)),
                "layer_2": nn.Sequential(wrap(nn.Conv1d(8, 8, 41, 4, padding=20, groups=2)), nn.LeakyReLU(0.2)),
                "layer_3": nn.Sequential(wrap(nn.Conv1d(8, 8, 5, padding=2)), nn.LeakyReLU(0.2)),
                "layer_4": wrap(nn.Conv1d(8, 1, 3, padding=1)),
            }
        )

    def forward(self, x):
        results = []
        for layer in self.model.values():
            x = layer(x)
            results.append(x)
        return results


class MelGANDiscriminator(nn.Module):
    def __init__(self, norms):
        super().__init__()
        self.model = nn.ModuleDict({f"disc_{i}": NLayer(norms.weight_norm) for i in range(3)})

    def forward(self, x):
        results = []
        for discriminator in self.model.values():
            results.append(discriminator(x))
            x = functional.avg_pool1d(x, 4, 2, padding=1, count_include_pad=False)
        return results


class Without:
    """Neither norm."""

    @staticmethod
    def weight_norm(layer):
        return layer

    spectral_norm = weight_norm


NETWORKS = {
    "hifi-gan": (
        lambda normed: time_generators.hifi_gan(TWICE, weight_norm=normed),
        published.hifi_gan(TWICE),
        functools.partial(HiFiGAN, TWICE),
    ),
    "hifi-gan-v3": (
        lambda normed: time_generators.hifi_gan(ONCE, weight_norm=normed),
        published.hifi_gan(ONCE),
        functools.partial(HiFiGAN, ONCE),
    ),
    "melgan": (
        lambda normed: time_generators.melgan(16, weight_norm=normed),
        published.melgan(),
        functools.partial(MelGAN, 16),
    ),
    "multi-period": (
        lambda normed: discriminators.multi_period((2, 3), (4, 6), normalized=normed),
        published.hifi_gan_discriminator(2, 2),
        MultiPeriod,
    ),
    "multi-scale": (
        lambda normed: discriminators.multi_scale(SCALES, normalized=normed),
        published.hifi_gan_discriminator(3, 3),
        MultiScale,
    ),
    "melgan-discriminator": (
        lambda normed: discriminators.melgan_discriminator((4, 8, 8, 8), normalized=normed),
        published.melgan_discriminator(4),
        MelGANDiscriminator,
    ),
}


def spread(theirs):
    """Lengths that carry the signal to the end, and are not those of the directions."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith((".weight_g", ".original0", ".weight")):
                parameter.mul_(2.0)
    return theirs.eval()


def in_our_layout(outputs):
    """What a discriminator saw and says, each as (batch', positions, channels)."""
    if torch.is_tensor(outputs):
        return [outputs.detach().numpy()[:, 0]]
    flat = [y.detach().numpy() for one in outputs for y in one]
    return [
        np.moveaxis(y, (3, 1), (1, 3)).reshape(-1, y.shape[2], y.shape[1]) if y.ndim == 4 else np.moveaxis(y, 1, 2)
        for y in flat
    ]


def flattened(outputs):
    if isinstance(outputs[0], discriminators.Judged):
        return [y for one in outputs for y in (*one.features, one.score)]
    return [outputs.wave]


@pytest.mark.parametrize("name", NETWORKS)
def test_both_spellings_compute_what_pytorch_does(name):
    make, names, torchs = NETWORKS[name]
    random = np.random.default_rng(0)
    waves = "multi" in name or "discriminator" in name
    x = random.standard_normal((2, 301) if waves else (2, 5, 80)).astype(np.float32)
    tx = torch.from_numpy(x[:, None] if waves else np.moveaxis(x, 1, 2).copy())
    net = make(True)
    rename = published.rename(net, names)
    apply = jax.jit(lambda params, state: flattened(net.apply(params, state, x, train=False)[0]))

    def check(theirs, params, state):
        ours, expected = apply(params, state), in_our_layout(theirs(tx))
        assert len(ours) == len(expected)
        assert np.std(expected[-1]) > 0.01
        for y, ty in zip(ours, expected, strict=True):
            np.testing.assert_allclose(y, ty, rtol=1e-5, atol=1e-5)

    for norms in (OLD, NEW):
        torch.manual_seed(0)
        theirs = spread(torchs(norms)).train()
        theirs(tx)  # where the older spectral norm takes its first step
        theirs.eval()
        assert any(key.endswith("weight_g") for key in theirs.state_dict()) == (norms is OLD)
        params, state = interop.from_torch(theirs.state_dict(), net, x, rename=rename)
        check(theirs, params, state)

    back = interop.to_torch(params, state, net, rename=rename)
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(back[key], value.numpy())
    torch.manual_seed(1)
    another = torchs(NEW).eval()
    another.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=True)
    check(another, params, state)
    authors = torchs(OLD).eval()
    arrays = published.state_dict(net, params, state, names)
    authors.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=True)
    check(authors, params, state)

    bare = torchs(Without)  # the kernels that the norms gave, in a network that has none
    modules = {name: module for name, module in theirs.named_modules() if hasattr(module, "bias")}
    bare.load_state_dict(
        {f"{name}.{leaf}": getattr(module, leaf) for name, module in modules.items() for leaf in ("weight", "bias")}
    )
    plain, plain_params, plain_state = layers.merged(net, params, state)
    expected = interop.from_torch(bare.state_dict(), make(False), x, rename=published.rename(make(False), names))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (plain_params, plain_state), expected
    )
    again = interop.to_torch(plain_params, plain_state, plain, rename=rename)
    assert again.keys() == bare.state_dict().keys()


@pytest.fixture
def small(monkeypatch):
    """V3 and MelGAN of a size at which they are made quickly."""
    make = functools.partial(time_generators.hifi_gan, ONCE)
    entry = published.GENERATORS["hifi-gan-v3"]._replace(make=make, names=published.hifi_gan(ONCE))
    monkeypatch.setitem(published.GENERATORS, "hifi-gan-v3", entry)
    entry = published.GENERATORS["melgan"]._replace(make=functools.partial(time_generators.melgan, 16))
    monkeypatch.setitem(published.GENERATORS, "melgan", entry)


def test_a_checkpoint_speaks(small, tmp_path, capsys):
    pytest.importorskip("av")
    torch.manual_seed(0)
    theirs = spread(HiFiGAN(ONCE, OLD))
    torch.save({"generator": theirs.state_dict()}, tmp_path / "g_02500000")
    recording = 0.1 * np.random.default_rng(0).standard_normal(22050 // 2).astype(np.float32)
    samples.write_wav(tmp_path / "in.wav", recording, 22050)
    arguments = [str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--published", str(tmp_path / "g_02500000")]
    synthesize.main([*arguments, "--generator", "hifi-gan-v3"])
    assert "s of speech" in capsys.readouterr().out
    made = audio.read(tmp_path / "out.wav", 22050)

    config = mel.MelConfig(sample_rate=22050)
    log_mel = np.asarray(mel.log_mel(config, jnp.asarray(audio.read(tmp_path / "in.wav", 22050))))
    filled = np.pad(log_mel, ((0, -len(log_mel) % 64), (0, 0)), mode="symmetric")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(filled.T[None].copy()))[0, 0].numpy()
    assert len(made) == len(log_mel) * 256
    np.testing.assert_allclose(made, expected[: len(made)], atol=1e-4)  # 16 bits a sample
    with pytest.raises(SystemExit):
        synthesize.main(arguments)
    assert "--published and --generator go together" in capsys.readouterr().err


def test_melgan_takes_decimal_logarithms(small, tmp_path):
    torch.manual_seed(0)
    theirs = spread(MelGAN(16, NEW))
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "melgan.safetensors")
    config, net, params = published.load(tmp_path / "melgan.safetensors", "melgan")
    assert config.high == 11025
    log_mel = np.random.default_rng(0).normal(-4, 2, (1, 5, 80)).astype(np.float32)
    _, state = jax.eval_shape(net.init, jax.random.key(0), log_mel)
    wave = jax.jit(lambda params: net.apply(params, state, log_mel, train=False)[0].wave)(params)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.moveaxis(np.log10(np.exp(log_mel)), 1, 2).copy()))[:, 0]
    np.testing.assert_allclose(wave, expected.numpy(), rtol=0, atol=3e-5)


def test_a_configuration_beside_it_is_used(small, tmp_path):
    torch.save({"generator": HiFiGAN(ONCE, Without).state_dict()}, tmp_path / "g")
    fields = {"sampling_rate": 24000, "n_fft": 1024, "hop_size": 256, "win_size": 1024, "num_mels": 80, "fmin": 0}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "fmax": None}))
    config, net, params = published.load(tmp_path / "g", "hifi-gan-v3")
    assert config == mel.MelConfig(24000, 1024, 256, 80, 0, 12000.0)
    assert params[0].keys() == {"kernel", "bias"}  # no weight norm is in the file
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 80), jnp.float32))[0]
    )
    (tmp_path / "config.json").write_text(json.dumps({**fields, "fmax": 8000, "hop_size": 300}))
    with pytest.raises(ConfigError, match=r"hop_size 300; wanted windows as long as n_fft, and 256 samples"):
        published.load(tmp_path / "g", "hifi-gan-v3")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json is no configuration of HiFi-GAN: KeyError"):
        published.load(tmp_path / "g", "hifi-gan-v3")


def test_what_cannot_be_read_is_refused(small, tmp_path, monkeypatch):
    file = tmp_path / "g"
    with pytest.raises(CheckpointError, match="there is no file"):
        published.read(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="is no checkpoint of arrays"):
        published.read(file)
    state_dict = HiFiGAN(ONCE, OLD).state_dict()
    torch.save({"mpd": state_dict, "steps": 3}, file)
    assert published.read(file, "mpd").keys() == state_dict.keys()
    with pytest.raises(CheckpointError, match="holds mpd, steps; wanted a state_dict, or one under 'generator'"):
        published.load(file, "hifi-gan-v3")
    torch.save(state_dict, file)
    with pytest.raises(ConfigError, match=r"generator must be one of melgan, hifi-gan-v1.*got 'v1'"):
        published.load(file, "v1")
    with pytest.raises(CheckpointError, match=r"does not fit the network chain:\n  missing: model\.1\."):
        published.load(file, "melgan")
    with pytest.raises(ConfigError, match="the network has 12 convolutions, and names are given for 31"):
        published.rename(time_generators.hifi_gan(ONCE), published.melgan()[:31])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError, match="a file that PyTorch alone reads; pip install torch, or write"):
        published.load(file, "hifi-gan-v3")

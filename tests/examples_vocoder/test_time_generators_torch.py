"""MelGAN's and HiFi-GAN's generators against PyTorch: the same weights, the networks written again in its functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.vocoder import time_generators
from tests.oracles import by_platform

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
functional = torch.nn.functional


class Weights:
    """A network's kernels and biases in the order in which it uses them, in PyTorch's layout."""

    def __init__(self, params):
        self.left = [{k: np.asarray(v) for k, v in leaf.items()} for leaf in _convolutions(params)]

    def conv(self, x, **options):
        weight, bias = self._next(lambda kernel: np.transpose(kernel, (2, 1, 0)))
        return functional.conv1d(x, weight, bias, **options)

    def upsample(self, x, rate):
        weight, bias = self._next(lambda kernel: np.transpose(kernel[::-1], (1, 2, 0)))
        return functional.conv_transpose1d(x, weight, bias, stride=rate, padding=(weight.shape[-1] - rate) // 2)

    def _next(self, layout):
        leaf = self.left.pop(0)
        return torch.from_numpy(layout(leaf["kernel"]).copy()), torch.from_numpy(leaf["bias"].copy())


def _convolutions(params):
    """The leaves ``{"kernel", "bias"}``, a residual's branch before its shortcut."""
    if isinstance(params, dict) and "kernel" in params:
        return [params]
    parts = params.values() if isinstance(params, dict) else params
    return [leaf for part in parts for leaf in _convolutions(part)]


def hifi_gan(size, weights, x):
    """Kong et al. 2020, section 2.2 and figure 1; the dilated blocks are "ResBlock1" or "2"."""
    x = weights.conv(x, padding=3)
    for rate in size.rates:
        x = weights.upsample(functional.leaky_relu(x, 0.1), rate)
        total = 0
        for kernel, dilations in zip(size.block_kernels, size.block_dilations, strict=True):
            block = x
            for dilation in dilations:
                inner = weights.conv(
                    functional.leaky_relu(block, 0.1), dilation=dilation, padding=dilation * (kernel - 1) // 2
                )
                if size.two_convolutions:
                    inner = weights.conv(functional.leaky_relu(inner, 0.1), padding=(kernel - 1) // 2)
                block = block + inner
            total = total + block
        x = total / len(size.block_kernels)
    return torch.tanh(weights.conv(functional.leaky_relu(x), padding=3))  # PyTorch's default slope is 0.01


def melgan(weights, x):
    """Kumar et al. 2019, section 2.1: reflection padding, and a 1x1 shortcut around every dilated block."""
    x = weights.conv(functional.pad(x, (3, 3), mode="reflect"))
    for rate in (8, 8, 2, 2):
        x = weights.upsample(functional.leaky_relu(x, 0.2), rate)
        for dilation in (1, 3, 9):
            branch = functional.pad(functional.leaky_relu(x, 0.2), (dilation, dilation), mode="reflect")
            branch = weights.conv(branch, dilation=dilation)
            branch = weights.conv(functional.leaky_relu(branch, 0.2))
            x = branch + weights.conv(x)
    x = functional.pad(functional.leaky_relu(x, 0.2), (3, 3), mode="reflect")
    return torch.tanh(weights.conv(x))


GENERATORS = {
    "melgan": (lambda: time_generators.melgan(weight_norm=False), melgan),
    **{
        name: (
            lambda size=size: time_generators.hifi_gan(size, weight_norm=False),
            lambda w, x, size=size: hifi_gan(size, w, x),
        )
        for name, size in {"V1": time_generators.V1, "V2": time_generators.V2, "V3": time_generators.V3}.items()
    },
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_pytorchs(name):
    make, theirs = GENERATORS[name]
    net = make()
    mel = jax.random.normal(jax.random.key(1), (2, 12, 80))
    params, state = jax.eval_shape(net.init, jax.random.key(0), mel)
    # Kernels of a variance that carries the signal to the end, where the papers' 0.01 would leave nothing but biases.
    random, gain = np.random.default_rng(2), 1.1 if name == "melgan" else 1.5

    def spread(leaf):
        scale = gain * (leaf.size // leaf.shape[-1]) ** -0.5 if leaf.ndim == 3 else 0.1
        return np.float32(scale) * random.standard_normal(leaf.shape, np.float32)

    params = jax.tree.map(spread, params)
    assert not jax.tree.leaves(state)
    wave = jax.jit(lambda params, mel: net.apply(params, state, mel, train=False)[0].wave)(params, mel)
    weights = Weights(params)
    with torch.no_grad():
        expected = theirs(weights, torch.from_numpy(np.array(jnp.swapaxes(mel, 1, 2))))
    assert not weights.left
    assert 0.05 < float(jnp.std(wave)) < 0.9  # neither lost on the way nor saturated
    np.testing.assert_allclose(wave, expected[:, 0].numpy(), rtol=0, atol=by_platform(cpu=2e-4, gpu=1e-3))

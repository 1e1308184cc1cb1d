"""Norms and dropout: output, and gradients by input and parameters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sequence.libraries import Contestant, Work, derivatives, normal, torch_derivatives
from jaxnet import layers

EPSILON = 1e-5
RATE = 0.1
TORCH = {"scale": "weight", "offset": "bias"}


def works(
    rows: tuple[int, int] = (8192, 512),
    images: tuple[int, int, int, int] = (8, 64, 64, 128),
    dropped: tuple[int, int] = (2048, 2048),
) -> list[Work]:
    """Three norms, and dropout."""
    found = [
        work("layer_norm", "layer norm", rows),
        work("rms_norm", "RMS norm", rows),
        work("group_norm", "group norm", images),
    ]
    makers: Any = {"ours": our_dropout, "flax": flax_dropout, "equinox": equinox_dropout, "torch": torch_dropout}
    makers |= {"torch.compile": partial(torch_dropout, compiled=True)}
    makers = {library: partial(make, dropped) for library, make in makers.items()}
    # Each draws its own mask: what can be compared is how much is kept, and what becomes of it.
    return [*found, Work("dropout", f"dropout, {_sizes(dropped)}", makers, tolerance=5e-3)]


def work(name: str, label: str, shape: tuple[int, ...]) -> Work:
    makers: Any = {"ours": ours, "flax": flax, "equinox": equinox, "torch": torch}
    makers |= {"torch.compile": partial(torch, compiled=True)}
    return Work(
        name, f"{label}, {_sizes(shape)}", {library: partial(make, name, shape) for library, make in makers.items()}
    )


def start(name: str, channels: int) -> dict[str, np.ndarray]:
    """Scale and offset, where there is one."""
    both = {"scale": 1 + normal(channels, seed=1, scale=0.1), "offset": normal(channels, seed=2, scale=0.1)}
    return {"scale": both["scale"]} if name == "rms_norm" else both


def arrays(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Input, and what the output is weighed with."""
    return 0.3 + normal(*shape, seed=3), normal(*shape, seed=4)


def groups(shape: tuple[int, ...]) -> int:
    """32, as in the paper, or of narrow layers one of two channels."""
    return min(32, shape[-1] // 2)


def ours(name: str, shape: tuple[int, ...]) -> Contestant:
    """`layers.layer_norm` and its like."""
    make: Any = getattr(layers, name)
    net = make(groups(shape), epsilon=EPSILON) if name == "group_norm" else make(epsilon=EPSILON)
    function = lambda params, x: net.apply(params, (), x, train=True)[0]  # noqa: E731
    return derivatives(function, start(name, shape[-1]), *arrays(shape))


def flax(name: str, shape: tuple[int, ...]) -> Contestant:
    """`nn.LayerNorm`, `nn.RMSNorm`, `nn.GroupNorm`."""
    from flax import linen as nn

    kinds: Any = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "group_norm": nn.GroupNorm}
    options = {"num_groups": groups(shape)} if name == "group_norm" else {}
    net = kinds[name](epsilon=EPSILON, **options)
    names = {"scale": "scale", "offset": "bias"}
    params = {names[leaf]: value for leaf, value in start(name, shape[-1]).items()}
    return derivatives(
        lambda params, x: net.apply({"params": params}, x),
        params,
        *arrays(shape),
        lambda grads: {leaf: grads[names[leaf]] for leaf in start(name, shape[-1])},
    )


def equinox(name: str, shape: tuple[int, ...]) -> Contestant:
    """`eqx.nn.LayerNorm`, `RMSNorm`, `GroupNorm`, of one example, batched by vmap."""
    import equinox as eqx

    weights = start(name, shape[-1])
    kinds: Any = {"layer_norm": eqx.nn.LayerNorm, "rms_norm": eqx.nn.RMSNorm, "group_norm": eqx.nn.GroupNorm}
    arguments = (groups(shape), shape[-1]) if name == "group_norm" else (shape[-1],)
    net = kinds[name](*arguments, eps=EPSILON, **({"use_bias": False} if name == "rms_norm" else {}))
    names = [TORCH[leaf] for leaf in weights]
    net = eqx.tree_at(lambda n: [getattr(n, leaf) for leaf in names], net, list(map(jnp.asarray, weights.values())))
    params, static = eqx.partition(net, eqx.is_array)

    def function(params, x):
        net = eqx.combine(params, static)
        if name == "group_norm":  # channels first
            return jnp.moveaxis(jax.vmap(net)(jnp.moveaxis(x, -1, 1)), 1, -1)
        return jax.vmap(net)(x)

    return derivatives(
        function, params, *arrays(shape), lambda grads: {leaf: getattr(grads, TORCH[leaf]) for leaf in weights}
    )


def torch(name: str, shape: tuple[int, ...], compiled: bool = False) -> Contestant:
    """`nn.LayerNorm`, `nn.RMSNorm`, and, channels first, `nn.GroupNorm`."""
    import torch

    kinds: Any = {"layer_norm": torch.nn.LayerNorm, "rms_norm": torch.nn.RMSNorm, "group_norm": torch.nn.GroupNorm}
    arguments = (groups(shape), shape[-1]) if name == "group_norm" else (shape[-1],)
    weights = start(name, shape[-1])
    return torch_derivatives(
        kinds[name](*arguments, eps=EPSILON),
        {TORCH[leaf]: value for leaf, value in weights.items()},
        *arrays(shape),
        lambda grads: {leaf: grads[TORCH[leaf]] for leaf in weights},
        compiled=compiled,
        channels_first=name == "group_norm",
    )


def kept(y: np.ndarray, dx: np.ndarray, x: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """What dropout's output and gradient have in common in all libraries."""
    there = y != 0
    off = (
        np.abs(np.where(there, x / (1 - RATE), 0) - y).max()
        + np.abs(np.where(there, weight / (1 - RATE), 0) - dx).max()
    )
    return {"kept": np.float32(there.mean()), "factor": np.float32(1 + off)}


def our_dropout(shape: tuple[int, int]) -> Contestant:
    """`layers.dropout`."""
    net = layers.dropout(RATE)
    return _jax_dropout(lambda key, x: net.apply((), (), x, train=True, key=key)[0], shape)


def flax_dropout(shape: tuple[int, int]) -> Contestant:
    """`nn.Dropout`."""
    from flax import linen as nn

    net = nn.Dropout(RATE, deterministic=False)
    return _jax_dropout(lambda key, x: net.apply({}, x, rngs={"dropout": key}), shape)


def equinox_dropout(shape: tuple[int, int]) -> Contestant:
    """`eqx.nn.Dropout`."""
    import equinox as eqx

    net = eqx.nn.Dropout(RATE)
    return _jax_dropout(lambda key, x: net(x, key=key), shape)


def _jax_dropout(function: Any, shape: tuple[int, int]) -> Contestant:
    x, weight = arrays(shape)
    key, given, cotangent = jax.random.key(0), jnp.asarray(x), jnp.asarray(weight)

    @jax.jit
    def program(x, key, cotangent):
        y, pullback = jax.vjp(lambda x: function(key, x), x)
        return y, *pullback(cotangent)

    def outputs(out):
        y, dx = out
        return kept(np.asarray(y), np.asarray(dx), x, weight)

    return Contestant(lambda: jax.block_until_ready(program(given, key, cotangent)), outputs)


def torch_dropout(shape: tuple[int, int], compiled: bool = False) -> Contestant:
    """`nn.Dropout`."""
    import torch

    x, weight = arrays(shape)
    found = torch_derivatives(torch.nn.Dropout(RATE), {}, x, weight, compiled=compiled)

    def outputs(y):
        raw = found.outputs(y)
        return kept(raw["y"], raw["dx"], x, weight)

    return Contestant(found.run, outputs)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

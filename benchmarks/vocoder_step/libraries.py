"""One function a library: a task as a training step written as that library's users write it."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.vocoder_step.contestant import RATE, Contestant, Network, cast_to, jax_contestant
from benchmarks.vocoder_step.networks import (
    Conv,
    LeakyRelu,
    Mean,
    Parts,
    Residual,
    Task,
    Weights,
    convolutions,
    forward,
    initial_weights,
)
from jaxnet import activations, layers, optimizers


def ours(task: Task, dtype: str) -> Contestant:
    """jaxnet: `layers.chain`, `optimizers.adam`, `layers.mixed_precision` for bfloat16, on a GPU `layers.raveled`.

    There many steps a dispatch are timed too, which is how `training.fit` goes through arrays.
    """

    def layer(part):
        if isinstance(part, Conv):
            make = layers.conv_transpose if part.transposed else layers.conv
            arguments: Any = {} if part.transposed else {"groups": part.groups, "dilation": part.dilation}
            return make(part.filters, part.size, strides=part.stride, padding=part.padding, **arguments)
        if isinstance(part, LeakyRelu):
            return lambda x: activations.leaky_relu(x, part.slope)
        if isinstance(part, Residual):
            return layers.residual(chain(part.branch), chain(part.shortcut) if part.shortcut else None)
        if isinstance(part, Mean):
            return layers.parallel(*map(chain, part.branches), combine="mean")
        return activations.tanh

    def chain(parts: Parts) -> layers.Layer:
        return layers.chain(*map(layer, parts))

    def arranged(parts: Parts, by_name: Any) -> tuple[Any, ...]:
        """What ``by_name`` has for every convolution, in the shape of the chain's params."""

        def of(part):
            if isinstance(part, Conv):
                return by_name[part.name]
            if isinstance(part, Residual):
                return {"branch": arranged(part.branch, by_name), "shortcut": arranged(part.shortcut, by_name)}
            return tuple(arranged(b, by_name) for b in part.branches) if isinstance(part, Mean) else ()

        return tuple(map(of, parts))

    def unpack(params):
        names = arranged(task.parts, {c.name: {k: (c.name, k) for k in ("kernel", "bias")} for c in every})
        is_name = {"is_leaf": lambda v: isinstance(v, tuple) and len(v) == 2 and isinstance(v[0], str)}
        weights: Weights = {c.name: {} for c in every}
        for (name, leaf), value in zip(jax.tree.leaves(names, **is_name), jax.tree.leaves(params), strict=True):
            weights[name][leaf] = np.asarray(value)
        return weights

    every = list(convolutions(task.parts))
    on_gpu = jax.default_backend() == "gpu"
    net = layers.raveled(chain(task.parts)) if on_gpu else chain(task.parts)
    if dtype != "float32":
        net = layers.mixed_precision(net)
    _, state = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(task.x.shape, jnp.float32))
    network = Network(
        lambda params, x: net.apply(params, state, x, train=True)[0],
        lambda weights: optimizers.ravel(arranged(task.parts, weights)) if on_gpu else arranged(task.parts, weights),
        lambda params: unpack(params.unravel() if on_gpu else params),
    )
    return jax_contestant(task, network, optimizers.adam(RATE), loop=on_gpu)


def flax(task: Task, dtype: str) -> Contestant:
    """Flax linen: one compact module."""
    import optax
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return forward(task.parts, x, convolve, nn.leaky_relu, jnp.tanh)

    def convolve(conv, x):
        options: Any = {"padding": [conv.padding], "dtype": jnp.dtype(dtype), "name": conv.name}
        if conv.transposed:
            return nn.ConvTranspose(conv.filters, (conv.size,), (conv.stride,), **options)(x)
        options |= {"kernel_dilation": (conv.dilation,), "feature_group_count": conv.groups}
        return nn.Conv(conv.filters, (conv.size,), (conv.stride,), **options)(x)

    net = Net()
    # A variable's layout is our own, and the names are those of the records.
    network = Network(
        lambda params, x: net.apply({"params": params}, x), lambda weights: weights, lambda params: params
    )
    return jax_contestant(task, network, optax.adam(RATE))


def haiku(task: Task, dtype: str) -> Contestant:
    """Haiku: a transformed function."""
    import haiku as hk
    import optax

    def convolve(conv, x):
        options: Any = {"stride": conv.stride, "padding": [conv.padding], "name": conv.name}
        if conv.transposed:
            return hk.Conv1DTranspose(conv.filters, conv.size, **options)(x)
        options |= {"rate": conv.dilation, "feature_group_count": conv.groups}
        return hk.Conv1D(conv.filters, conv.size, **options)(x)

    def net(x):
        return forward(task.parts, x, convolve, jax.nn.leaky_relu, jnp.tanh)

    transposed = {conv.name: conv.transposed for conv in convolutions(task.parts)}

    def exchanged(name, kernel):  # Haiku's transposed kernel has the axes (K, C_out, C_in)
        return kernel.swapaxes(1, 2) if transposed[name] else kernel

    transformed = hk.without_apply_rng(hk.transform(net))
    network = Network(
        cast_to(transformed.apply, dtype),
        lambda weights: {n: {"w": exchanged(n, w["kernel"]), "b": w["bias"]} for n, w in weights.items()},
        lambda params: {n: {"kernel": exchanged(n, p["w"]), "bias": p["b"]} for n, p in params.items()},
    )
    return jax_contestant(task, network, optax.adam(RATE))


def equinox(task: Task, dtype: str) -> Contestant:
    """Equinox: a module of layers, channels first, under `jax.vmap`."""
    import equinox as eqx
    import optax

    def layer(conv):
        options: Any = {"stride": conv.stride, "padding": conv.torch_padding, "key": jax.random.key(0)}
        if conv.transposed:
            return eqx.nn.ConvTranspose1d(conv.channels, conv.filters, conv.size, **options)
        options |= {"dilation": conv.dilation, "groups": conv.groups}
        return eqx.nn.Conv1d(conv.channels, conv.filters, conv.size, **options)

    class Net(eqx.Module):
        layers: dict[str, eqx.Module]

        def __call__(self, x):
            return forward(task.parts, x, lambda conv, x: self.layers[conv.name](x), jax.nn.leaky_relu, jnp.tanh)  # pyright: ignore[reportCallIssue]

    def pack(weights):
        def filled(name, layer):
            kernel, bias = jnp.asarray(weights[name]["kernel"].T), jnp.asarray(weights[name]["bias"][:, None])
            return eqx.tree_at(lambda part: (part.weight, part.bias), layer, (kernel, bias))

        return Net({name: filled(name, layer) for name, layer in shell.layers.items()})

    shell = Net({conv.name: layer(conv) for conv in convolutions(task.parts)})
    _, static = eqx.partition(shell, eqx.is_inexact_array)
    network = Network(
        cast_to(lambda params, x: jax.vmap(eqx.combine(params, static))(x), dtype),
        lambda weights: eqx.filter(pack(weights), eqx.is_inexact_array),
        lambda params: {n: {"kernel": p.weight.T, "bias": p.bias[:, 0]} for n, p in params.layers.items()},
        channels_first=True,
    )
    return jax_contestant(task, network, optax.adam(RATE))


def torch(task: Task, dtype: str, *, mode: Literal["eager", "compile", "CUDA graph"] = "eager") -> Contestant:
    """PyTorch: modules, autograd, `torch.optim.Adam`; on a GPU if JAX is on one, then fused, and with TF32 as ours.

    On a GPU cuDNN looks for its fastest algorithms, and the mode "CUDA graph" captures the whole step in one graph.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({conv.name: layer(conv) for conv in convolutions(task.parts)})

        def forward(self, x):
            return forward(
                task.parts, x, lambda conv, x: self.layers[conv.name](x), nn.functional.leaky_relu, torch.tanh
            )

    def layer(conv):
        options: Any = {"stride": conv.stride, "padding": conv.torch_padding}
        if conv.transposed:
            return nn.ConvTranspose1d(conv.channels, conv.filters, conv.size, **options)
        options |= {"dilation": conv.dilation, "groups": conv.groups}
        return nn.Conv1d(conv.channels, conv.filters, conv.size, **options)

    def theirs(conv, kernel):  # (K, I, O) to (O, I, K), or flipped to (I, O, K)
        return kernel[::-1].transpose(1, 2, 0).copy() if conv.transposed else kernel.T.copy()

    def back(conv, kernel):
        return kernel.transpose(2, 0, 1)[::-1] if conv.transposed else kernel.T

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    net = Net()
    start = initial_weights(task.parts)
    every = {conv.name: conv for conv in convolutions(task.parts)}
    with torch.no_grad():
        for name, weights in start.items():
            net.layers[name].weight.copy_(torch.from_numpy(theirs(every[name], weights["kernel"])))  # pyright: ignore
            net.layers[name].bias.copy_(torch.from_numpy(weights["bias"]))  # pyright: ignore
    net.to(device)
    x, target = (torch.from_numpy(a.swapaxes(1, 2).copy()).to(device) for a in (task.x, task.target))
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=on_gpu, capturable=on_gpu)
    if mode == "compile":
        torch.compiler.reset()  # the networks share their code, and PyTorch gives up after some recompilations
    # On a CPU "max-autotune" looks among matrix products that are compiled in C++, for minutes.
    apply = torch.compile(net, mode="max-autotune" if on_gpu else None) if mode == "compile" else net

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=mode != "CUDA graph"):
            y = apply(x)
        loss = task.loss(y.float(), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    replay = _captured(step, net, optimizer) if mode == "CUDA graph" else step

    def run(count: int = 1):
        for _ in range(count - 1):
            replay()
        loss = replay()
        if on_gpu:
            torch.cuda.synchronize()
        return loss

    def present():
        def of(name, part):
            return {
                "kernel": back(every[name], part.weight.detach().cpu().numpy()),
                "bias": part.bias.detach().cpu().numpy(),
            }

        return {name: of(name, part) for name, part in net.layers.items()}

    return Contestant(run, present, run if on_gpu else None)  # on a GPU, waiting for many steps at once as ours does


def _captured(step: Callable[[], Any], net: Any, optimizer: Any) -> Callable[[], Any]:
    """A step as one CUDA graph, as PyTorch's manual captures it; the steps that warm it up leave no trace."""
    import torch

    weights = [p.detach().clone() for p in net.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for p, weight in zip(net.parameters(), weights, strict=True):
            p.copy_(weight)
        for slots in optimizer.state.values():
            for value in slots.values():
                value.zero_()
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay(held: Any = (step, net, optimizer)):  # with them would go the arrays that the graph reads and writes
        del held
        graph.replay()
        return loss

    return replay


LIBRARIES: dict[str, tuple[Callable[[Task, str], Contestant], tuple[str, ...]]] = {
    "ours": (ours, ()),
    "flax": (flax, ("flax", "optax")),
    "haiku": (haiku, ("haiku", "optax")),
    "equinox": (equinox, ("equinox", "optax")),
    "torch": (torch, ("torch",)),
    "torch.compile": (partial(torch, mode="compile"), ("torch",)),
    "torch, CUDA graph": (partial(torch, mode="CUDA graph"), ("torch",)),
}
"""Name -> the function that makes a contestant, and the packages that it needs."""


def contestants(task: Task, names: list[str], dtype: str = "float32") -> tuple[dict[str, Contestant], list[str]]:
    """The contestants that can run here, and why the others cannot; ours comes first."""
    found, missing = {}, []
    for name in names:
        make, packages = LIBRARIES[name]
        absent = [package for package in packages if not importlib.util.find_spec(package)]
        if absent:
            missing.append(f"{name}: {', '.join(absent)} not installed")
            continue
        if name == "torch, CUDA graph" and jax.default_backend() != "gpu":
            missing.append(f"{name}: no GPU here")
            continue
        if name == "torch.compile":  # it needs a C++ compiler, and fails when it first runs
            try:
                make(task, dtype).run()
            except Exception as error:
                missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
        found[name] = make(task, dtype)
    return found, missing

"""A recipe in PyTorch as its best users run it: eager, compiled, and on a GPU as one CUDA graph a step."""

import os
from typing import Any

import jax
import numpy as np

from benchmarks.speedrun.contestant import Contestant
from benchmarks.speedrun.images import DEVIATION, MEAN, Images
from benchmarks.speedrun.ours import network
from benchmarks.speedrun.recipes import (
    EDGE,
    BatchNorm,
    Conv,
    Dense,
    MaxPool,
    Parts,
    Patches,
    Recipe,
    Relu,
    Residual,
    Scale,
)
from jaxnet import interop


def module(parts: Parts) -> Any:
    """The network of a recipe; names of arrays are those of `interop.to_torch`."""
    from torch import nn

    class Branch(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.branch = module(parts)

        def forward(self, x):
            return x + self.branch(x)

    class Function(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    def make(part):
        if isinstance(part, Conv):
            return nn.Conv2d(part.channels, part.filters, part.size, part.stride, part.padding, bias=False)
        if isinstance(part, BatchNorm):
            return nn.BatchNorm2d(part.channels)
        if isinstance(part, Patches):
            return nn.PixelUnshuffle(part.size)
        if isinstance(part, MaxPool):
            return nn.MaxPool2d(part.size)
        if isinstance(part, Dense):
            return nn.Linear(part.inputs, part.units)
        if isinstance(part, Residual):
            return Branch(part.branch)
        if isinstance(part, Scale):
            return Function(lambda x: x * part.factor)
        if isinstance(part, Relu):
            return nn.ReLU(inplace=True)
        return Function(lambda x: x.permute(0, 2, 3, 1).flatten(1))  # position by position, as in memory

    return nn.Sequential(*map(make, parts))


def optimizer(recipe: Recipe, net: Any, rate: Any, on_gpu: bool) -> Any:
    """Its own rules, fused."""
    import torch

    common: dict[str, Any] = {"lr": rate, "weight_decay": recipe.decay, "fused": True}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), capturable=on_gpu, **common)
    return torch.optim.SGD(net.parameters(), momentum=recipe.momentum, nesterov=True, **common)


def contestant(
    recipe: Recipe,
    images: Images,
    *,
    dtype: str = "float32",
    on_gpu: bool = False,
    compiled: bool = False,
    threads: int | None = None,
) -> Contestant:
    """PyTorch, channels last.

    Args:
      recipe: what to train.
      images: the data set, which goes to the device here.
      dtype: "bfloat16" for autocast.
      on_gpu: whether on a GPU, where a whole step is one CUDA graph, captured here.
      compiled: whether `torch.compile` makes the forward pass, the cutting of the images included, and its gradient.
      threads: that compute on a CPU, if not one a core: small steps may be faster in one.
    """
    import torch
    from torch.nn import functional

    device = "cuda" if on_gpu else "cpu"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    net = module(recipe.parts).to(device, memory_format=torch.channels_last)
    rate = torch.zeros((), device=device)
    rules = optimizer(recipe, net, rate if on_gpu else 0.0, on_gpu)
    padding = ((0, 0), (recipe.shift, recipe.shift), (recipe.shift, recipe.shift))
    train = torch.from_numpy(np.pad(images.train, padding)).to(device)
    train_labels = torch.from_numpy(images.train_labels).long().to(device)
    test, test_labels = torch.from_numpy(images.test.copy()).to(device), torch.from_numpy(images.test_labels).to(device)
    span = torch.arange(EDGE, device=device)
    averages = [p.detach().clone() for p in net.parameters()] if recipe.average else []

    def normalized(x):
        x = (x.float() - MEAN) / DEVIATION
        return x[:, None].contiguous(memory_format=torch.channels_last)

    def forward(rows, shift, flip):
        if recipe.shift or recipe.flip:
            along = torch.where(flip[:, None], span.flip(0), span) + shift[:, 1, None]
            x = train[rows[:, None, None], (span + shift[:, 0, None])[:, :, None], along[:, None, :]]
        else:
            x = train[rows]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False):
            logits = net(normalized(x))
        return functional.cross_entropy(logits.float(), train_labels[rows], label_smoothing=recipe.smoothing)

    if compiled:
        torch.compiler.reset()  # the recipes share their code, and PyTorch gives up after some recompilations
        forward = torch.compile(forward)

    def step(rows, shift, flip, of_average):
        rules.zero_grad(set_to_none=True)
        loss = forward(rows, shift, flip)
        loss.backward()
        rules.step()
        for average, p in zip(averages, net.parameters(), strict=bool(averages)):
            average.lerp_(p.detach(), of_average)
        return loss.detach()

    held: dict[str, Any] = {"taken": 0}

    def begin(params, state):
        torch.set_num_threads(threads or os.cpu_count() or 1)
        net.load_state_dict({k: torch.from_numpy(v) for k, v in _arrays(recipe, params, state).items()})
        held["taken"] = 0
        for slots in rules.state.values():
            for value in slots.values():
                value.zero_()
        net.train()

    def tensors(plan):
        first, steps = held["taken"], len(plan.rate)
        held["taken"] += steps
        beta = recipe.average
        parts = (1 - beta) / (1 - beta ** np.arange(first + 1, first + steps + 1)) if beta else np.ones(steps)
        arrays = (plan.rows.astype(np.int64), plan.shift.astype(np.int64), plan.flip, parts.astype(np.float32))
        return [torch.from_numpy(a) for a in arrays], torch.from_numpy(plan.rate)

    def eager(plan):
        given, _ = tensors(plan)
        held["losses"] = []
        for i, value in enumerate(plan.rate):
            rules.param_groups[0]["lr"] = float(value)
            held["losses"].append(step(*(a[i] for a in given)))

    def replayed(plan):
        given, rates = tensors(plan)
        if "graph" not in held:
            _capture(held, given, rates, step, rate, net, rules)
        for to, value in zip(held["given"], (*given, rates), strict=True):
            to.copy_(value, non_blocking=True)
        held["at"].zero_()
        for _ in range(len(plan.rate)):
            held["graph"].replay()

    def accuracy():
        net.eval()
        weights = dict(zip((name for name, _ in net.named_parameters()), averages, strict=True)) if averages else {}
        right = 0
        cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.no_grad(), cast:
            for x, labels in zip(test.split(1000), test_labels.split(1000), strict=True):
                views = [x, x.flip(2)][: recipe.views]
                logits = [torch.func.functional_call(net, weights, normalized(view)).float() for view in views]
                right += (torch.stack(logits).sum(0).argmax(1) == labels).sum()
        net.train()
        return int(right) / len(test)

    def weights():
        shapes = jax.ShapeDtypeStruct((1, EDGE, EDGE, 1), np.float32)
        state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
        return interop.from_torch(state, network(recipe.parts), shapes)

    return Contestant(
        begin,
        replayed if on_gpu else eager,
        torch.cuda.synchronize if on_gpu else lambda: None,
        accuracy,
        lambda: torch.stack(list(held["losses"])).cpu().numpy(),
        weights,
    )


def _arrays(recipe: Recipe, params: Any, state: Any) -> dict[str, np.ndarray]:
    return interop.to_torch(params, state, network(recipe.parts))


def _capture(held: dict[str, Any], given: Any, rates: Any, step: Any, rate: Any, net: Any, rules: Any) -> None:
    """A step as one CUDA graph, which counts the steps of a plan itself; what warms it up leaves no trace."""
    import torch

    device = rate.device
    buffers = [torch.empty_like(value, device=device).copy_(value) for value in (*given, rates)]
    at, losses = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros_like(buffers[-1])

    def counted():
        now = [buffer.index_select(0, at)[0] for buffer in buffers]
        rate.copy_(now[-1])
        losses.index_copy_(0, at, step(*now[:-1])[None])
        at.add_(1)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            at.zero_()
            counted()
    torch.cuda.current_stream().wait_stream(stream)
    at.zero_()
    rules.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counted()
    net.load_state_dict(before)
    for slots in rules.state.values():
        for value in slots.values():
            value.zero_()
    held.update(graph=graph, given=buffers, at=at, losses=losses)

"""A problem as the training loop that users of PyTorch write."""

import jax

from benchmarks.training.problems import (
    RATE,
    BatchNorm,
    Contestant,
    Conv,
    Dense,
    Epoch,
    Flatten,
    Pool,
    Problem,
    Relu,
    Residual,
    channels_first,
    laid_out,
)


def torch(problem: Problem, validate: bool, *, fused: bool = False, compiled: bool = False) -> Contestant:
    """PyTorch: modules, autograd, `torch.optim.Adam`, plain or fused; eager or through `torch.compile`."""
    import torch
    from torch import nn

    class Branch(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.branch = nn.Sequential(*map(make, parts))

        def forward(self, x):
            return self.branch(x) + x

    def make(part):
        if isinstance(part, Residual):
            return Branch(part.branch)
        if isinstance(part, Dense):
            return filled(nn.Linear(part.positions * part.channels, part.units), part)
        if isinstance(part, Conv):
            return filled(nn.Conv1d(part.channels, part.filters, part.size, padding=part.size // 2), part)
        if isinstance(part, BatchNorm):
            return nn.BatchNorm1d(part.channels, momentum=0.1)
        if isinstance(part, Pool):
            return nn.AvgPool1d(part.size)
        if isinstance(part, Relu):
            return nn.ReLU()
        return nn.Flatten() if isinstance(part, Flatten) else nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())

    def filled(layer, part):
        kernel, bias = weights[part.name]["kernel"], weights[part.name]["bias"]
        kernel = channels_first(part, kernel) if isinstance(part, Dense) else kernel
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias))
        return layer

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    weights = problem.weights()
    net = nn.Sequential(*map(make, problem.parts)).to(device)
    if compiled:
        torch.compiler.reset()  # the problems share their code, and PyTorch gives up after some recompilations
    apply = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=fused)
    loss = nn.CrossEntropyLoss()
    (x, labels), (held_out, truth) = (
        (torch.from_numpy(laid_out(x, False)).to(device), torch.from_numpy(labels).long().to(device))
        for x, labels in (problem.train, problem.held_out)
    )
    done = 0

    def epoch():
        nonlocal done
        net.train()
        values = []
        for rows in torch.from_numpy(problem.order(done)).to(device):
            optimizer.zero_grad()
            value = loss(apply(x[rows]), labels[rows])
            value.backward()
            optimizer.step()
            values.append(value.detach())
        done += 1
        measured = None
        if validate:
            net.eval()
            with torch.no_grad():
                measured = (net(held_out).argmax(1) == truth).float().mean().item()
        return Epoch(torch.stack(values).mean().item(), measured)

    return lambda epochs: [epoch() for _ in range(epochs)][-1]

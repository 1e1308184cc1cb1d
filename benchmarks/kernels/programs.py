"""Each case in each mode as three programs: ours, the plain lax form and PyTorch."""

import importlib.util
import itertools
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.kernels.cases import Case
from jaxnet import kernels

STEPS = 3  # of a scan
RATE = 0.1
# Relative to the largest entry. A GPU's float32 products are TF32 in all three libraries.
TOLERANCE = {("cpu", "float32"): 1e-4, ("gpu", "float32"): 1e-2, ("cpu", "bfloat16"): 5e-2, ("gpu", "bfloat16"): 5e-2}

Outputs = dict[str, np.ndarray]


class Data(NamedTuple):
    """What a program is called with, float32, in our layout: input, kernel (none for pooling), the output's weights."""

    operands: dict[str, np.ndarray]
    cotangent: np.ndarray


class Contestant(NamedTuple):
    """A program to time.

    Attributes:
      run: calls it and waits for what it returns.
      outputs: what ``run`` returned, as numpy arrays in our layout: ``y`` of "forward"; ``value`` and the gradients
        ``x`` and ``kernel`` of the others; of "scan" the values of all steps and the operands after them.
      compile_seconds: what tracing and compiling it took; 0 where nothing is compiled.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Outputs]
    compile_seconds: float = 0.0


def batched(case: Case, mode: str) -> dict[str, bool]:
    """Which operands have a leading axis of copies: the kernel (pooling: the input) or all."""
    names = ["x"] if case.pooling else ["x", "kernel"]
    return {name: mode == "vmap both" or (mode == "vmap" and name == names[-1]) for name in names}


def data(case: Case, mode: str) -> Data:
    """Normal data; the kernel keeps the variance, and the summed output has variance 1."""
    rng = np.random.default_rng(0)
    shapes = {"x": (case.batch, *case.lengths, case.channels), "kernel": case.kernel_shape}
    scales = {"x": 1.0, "kernel": float(np.prod(case.kernel_shape[:-1])) ** -0.5}

    def draw(shape, scale):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    operands = {
        name: draw(((case.copies,) if copied else ()) + shapes[name], scales[name])
        for name, copied in batched(case, mode).items()
    }
    shape = (case.batch, *case.out_lengths, case.filters)
    return Data(operands, draw(shape, float(np.prod(shape)) ** -0.5))


def ours(case: Case) -> Callable[..., jax.Array]:
    """The function of `jaxnet.kernels`."""
    ndim = len(case.lengths)
    options: Any = {"strides": case.stride, "padding": case.padding if ndim == 1 else (case.padding,) * ndim}
    function = getattr(kernels, case.operation)
    if case.pooling:
        return lambda x: function(x, (case.size,) * ndim, **options)
    return lambda x, kernel: function(x, kernel, dilation=case.dilation, groups=case.groups, **options)


def plain_lax(case: Case) -> Callable[..., jax.Array]:
    """What Flax, Haiku and Equinox run."""
    ndim = len(case.lengths)
    each, border = (case.stride,) * ndim, (case.padding,) * ndim
    if case.pooling:
        window, strides, pads = (1, *(case.size,) * ndim, 1), (1, *each, 1), ((0, 0), *border, (0, 0))
        if case.operation == "max_pool":
            return lambda x: lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, strides, pads)
        average = 1 / case.size**ndim
        return lambda x: average * lax.reduce_window(x, np.asarray(0, x.dtype), lax.add, window, strides, pads)
    axes = "XYZ"[:ndim]
    transposed = case.operation == "conv_transpose"
    options: Any = {
        "window_strides": (1,) * ndim if transposed else each,
        "lhs_dilation": each if transposed else None,
        "padding": border,
        "rhs_dilation": (case.dilation,) * ndim,
        "dimension_numbers": (f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        "feature_group_count": case.groups,
    }
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, **options)


def jax_contestant(function: Callable[..., jax.Array], case: Case, mode: str, given: Data, dtype: str) -> Contestant:
    """A function of the operands, compiled in one of the modes."""
    names = tuple(given.operands)

    def derivatives(cotangent, *operands):
        y, pullback = jax.vjp(function, *operands)
        return {"y": y, **dict(zip(names, pullback(cotangent), strict=True))}

    def steps(cotangent, *operands):
        # Input and kernel both take the step, and the output is summed: XLA would drop what nothing uses.
        def step(operands, _):
            out = derivatives(cotangent, *operands)
            value = jnp.sum((out["y"] * cotangent).astype(jnp.float32))
            return tuple(o - RATE * out[name] for name, o in zip(names, operands, strict=True)), value

        operands, values = lax.scan(step, operands, None, length=STEPS)
        return {"value": values, **dict(zip(names, operands, strict=True))}

    if mode == "forward":
        program: Callable[..., Any] = lambda cotangent, *operands: {"y": function(*operands)}  # noqa: E731
    elif mode == "gradient":
        program = derivatives
    elif mode == "scan":
        program = steps
    else:
        axes = (None, *(0 if copied else None for copied in batched(case, mode).values()))
        program = jax.vmap(derivatives, axes)
    arguments = [jnp.asarray(a, dtype) for a in (given.cotangent, *given.operands.values())]
    began = time.perf_counter()
    compiled = jax.jit(program).lower(*arguments).compile()
    return Contestant(
        lambda: jax.block_until_ready(compiled(*arguments)),
        lambda out: {name: np.asarray(value, np.float32) for name, value in out.items()},
        time.perf_counter() - began,
    )


def torch_contestants(
    case: Case, mode: str, given: Data, dtype: str, *, compiled: bool = False, last: bool = False
) -> dict[str, Contestant]:
    """PyTorch as its users write it, channels first; batched it has two forms, a loop over the copies and ``vmap``.

    With ``last`` images are in its memory format ``channels_last``; with ``compiled`` the operation is compiled.
    """
    import torch
    from torch.nn import functional

    ndim = len(case.lengths)
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()

    def tensor(array):
        made = torch.from_numpy(np.ascontiguousarray(array)).to("cuda" if on_gpu else "cpu", getattr(torch, dtype))
        return made.to(memory_format=torch.channels_last) if last else made

    def eager(x, *kernel):
        f = getattr(functional, f"{case.operation}{ndim}d")
        before, after = case.padding
        if case.operation == "conv_transpose":
            padding, output_padding = case.torch_transposed_padding
            return f(x, *kernel, None, case.stride, padding, output_padding, case.groups, case.dilation)
        if before != after:
            x, before = functional.pad(x, (before, after) * ndim), 0
        if case.pooling:
            return f(x, case.size, case.stride, before)
        return f(x, *kernel, None, case.stride, before, case.dilation, case.groups)

    function = torch.compile(eager, dynamic=False) if compiled else eager

    def derivatives(*operands):
        operands = [o.detach().requires_grad_() for o in operands]
        y = function(*operands)
        return y.detach(), torch.autograd.grad(y, operands, cotangent)

    def forward():
        with torch.no_grad():
            return function(*operands)

    def steps():
        present, values = operands, []
        for _ in range(STEPS):
            y, gradients = derivatives(*present)
            values.append((y * cotangent).float().sum())
            present = [torch.sub(o, g, alpha=RATE) for o, g in zip(present, gradients, strict=True)]
        return torch.stack(values), present

    def loop():
        pairs = zip(*(o if c else [o] * case.copies for o, c in zip(operands, copied, strict=True)), strict=True)
        values, gradients = zip(*(derivatives(*pair) for pair in pairs), strict=True)
        return values, list(zip(*gradients, strict=True))

    def vmapped():
        def whole(*operands):
            pair: Any = torch.func.vjp(function, *operands)
            return pair[0], pair[1](cotangent)

        return torch.func.vmap(whole, tuple(0 if c else None for c in copied))(*operands)

    def host(value):
        return np.stack([host(v) for v in value]) if isinstance(value, tuple) else value.detach().float().cpu().numpy()

    def outputs(out):
        if mode == "forward":
            return {"y": _channels_last(host(out), ndim)}
        y = host(out[0])
        result = {"value": y} if mode == "scan" else {"y": _channels_last(y, ndim)}
        for name, value in zip(names, out[1], strict=True):
            value = host(value)
            result[name] = _channels_last(value, ndim) if name == "x" else _kernel_from_torch(value, case)
        return result

    names, copied = list(given.operands), list(batched(case, mode).values())
    cotangent = tensor(_channels_first(given.cotangent, ndim))
    operands = [
        tensor(_channels_first(a, ndim) if name == "x" else _kernel_to_torch(a, case))
        for name, a in given.operands.items()
    ]
    runs: dict[str, Callable[[], Any]] = {
        "forward": {"torch": forward},
        "gradient": {"torch": lambda: derivatives(*operands)},
        "scan": {"torch": steps},
    }.get(mode, {"torch loop": loop, "torch vmap": vmapped})
    how = ", channels last" * last + ", compiled" * compiled
    return {name + how: Contestant(_waiting(run) if on_gpu else run, outputs) for name, run in runs.items()}


def _waiting(run: Callable[[], Any]) -> Callable[[], Any]:
    def run_and_wait():
        import torch

        out = run()
        torch.cuda.synchronize()
        return out

    return run_and_wait


def contestants(
    case: Case, mode: str, dtype: str, *, libraries: Collection[str] = ("ours", "lax", "torch"), compiled: bool = False
) -> dict[str, Contestant]:
    """All programs for a case in a mode; without lax, which is what `compare` compares with, none is compared."""
    given = data(case, mode)
    functions = {"ours": ours, "lax": plain_lax}
    result = {
        name: jax_contestant(function(case), case, mode, given, dtype)
        for name, function in functions.items()
        if name in libraries
    }
    if "torch" in libraries and importlib.util.find_spec("torch"):
        # Images that are not batched have a memory format of their own.
        formats = (False, True) if len(case.lengths) == 2 and "vmap" not in mode else (False,)
        how = itertools.product((False, True)[: 1 + (compiled and "vmap" not in mode)], formats)
        for compiling, last in how:
            result |= torch_contestants(case, mode, given, dtype, compiled=compiling, last=last)
    return result


def compare(programs: dict[str, Contestant], where: str, dtype: str = "float32") -> None:
    """Runs every program once; all must return what the plain lax form returns.

    Raises:
      AssertionError: which program, which output, and by how much.
    """
    tolerance = TOLERANCE[jax.default_backend(), dtype]
    results = {name: program.outputs(program.run()) for name, program in programs.items()}
    for name, result in results.items():
        for output, expected in results["lax"].items():
            got = result[output]
            # The sums are near 1 by chance alone, and what they are of is near 1.
            scale = max(np.abs(expected).max(), 1.0 if output == "value" else 0.0)
            if got.shape != expected.shape:
                raise AssertionError(f"{where}: {output} of {name} has shape {got.shape}, of lax {expected.shape}")
            error = np.abs(got - expected).max() / scale
            if not error <= tolerance:
                raise AssertionError(f"{where}: {output} of {name} is off by {error:.1e} of the largest entry")


def _channels_first(a: np.ndarray, ndim: int) -> np.ndarray:
    return np.moveaxis(a, -1, -ndim - 1)


def _channels_last(a: np.ndarray, ndim: int) -> np.ndarray:
    return np.moveaxis(a, -ndim - 1, -1)


def _kernel_to_torch(kernel: np.ndarray, case: Case) -> np.ndarray:
    """``(*K, I / g, O)`` to ``(O, I / g, *K)``, or transposed to ``(I, O / g, *K)`` with the taps reversed."""
    ndim = len(case.lengths)
    if kernel.ndim > ndim + 2:
        return np.stack([_kernel_to_torch(one, case) for one in kernel])
    if case.operation == "conv":
        return np.moveaxis(kernel, (-1, -2), (0, 1))
    taps, channels = kernel.shape[:ndim], kernel.shape[-2]
    split = np.flip(kernel, tuple(range(ndim))).reshape(*taps, channels, case.groups, -1)
    first = np.moveaxis(split, (-2, -3, -1), (0, 1, 2))  # (g, I / g, O / g, *K)
    return first.reshape(case.channels, -1, *taps)


def _kernel_from_torch(kernel: np.ndarray, case: Case) -> np.ndarray:
    """The reverse."""
    ndim = len(case.lengths)
    if kernel.ndim > ndim + 2:
        return np.stack([_kernel_from_torch(one, case) for one in kernel])
    if case.operation == "conv":
        return np.moveaxis(kernel, (0, 1), (-1, -2))
    taps = kernel.shape[2:]
    split = kernel.reshape(case.groups, case.channels // case.groups, -1, *taps)
    last = np.moveaxis(split, (0, 1, 2), (-2, -3, -1))
    return np.flip(last.reshape(*taps, case.channels // case.groups, case.filters), tuple(range(ndim)))

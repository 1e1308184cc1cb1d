"""What is timed: one function a library, which runs a work once, and what it computed, to be compared first."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, Any]


class Contestant(NamedTuple):
    """A library at a work.

    Attributes:
      run: does the work once; what it returns is waited for.
      outputs: from what ``run`` returned to arrays by name, in our layouts. Names that others have too are compared.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], Arrays]


class Work(NamedTuple):
    """Something to be done by several libraries.

    Attributes:
      name: for the command line.
      label: for the table.
      makers: library -> a function that makes the contestant.
      tolerance: how far apart results may be, of the largest entry.
    """

    name: str
    label: str
    makers: dict[str, Callable[[], Contestant]]
    tolerance: float = 1e-4


LIBRARIES = {
    "ours": (),
    "flax": ("flax",),
    "equinox": ("equinox",),
    "jax.nn": (),
    "optax": ("optax",),
    "torch": ("torch",),
    "torch.compile": ("torch",),
}
"""Library -> the packages that it needs."""


def contestants(work: Work, libraries: list[str]) -> tuple[dict[str, Contestant], list[str]]:
    """Those that can run here, and why others cannot."""
    found, missing = {}, []
    for name, make in work.makers.items():
        if name not in libraries:
            continue
        absent = [package for package in LIBRARIES[name] if not importlib.util.find_spec(package)]
        if absent:
            missing.append(f"{name}: {', '.join(absent)} not installed")
            continue
        try:
            contestant = make()
            contestant.run()
        except Exception as error:  # torch.compile needs a C++ compiler, and fails when it first runs
            if name != "torch.compile":
                raise
            missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        found[name] = contestant
    return found, missing


def compare(work: Work, found: dict[str, Contestant]) -> None:
    """Runs all once; every array that two name must be the same.

    Raises:
      AssertionError: who differs from whom, in what and by how much.
    """
    known: dict[str, tuple[str, np.ndarray]] = {}
    for name, contestant in found.items():
        for output, value in contestant.outputs(contestant.run()).items():
            first, expected = known.setdefault(output, (name, value))
            if value.shape != expected.shape:
                raise AssertionError(f"{work.name}: {output} of {name} is {value.shape}, of {first} {expected.shape}")
            error = np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
            if not error <= work.tolerance:
                raise AssertionError(f"{work.name}: {output} of {name} is {error:.1e} from {first}'s, of the largest")


def derivatives(
    function: Callable[[Any, Any], Any],
    params: Any,
    x: np.ndarray,
    weight: np.ndarray,
    unpack: Callable[[Any], Arrays] = dict,
) -> Contestant:
    """The value of ``function(params, x)``, and what a cotangent ``weight`` is for params and x, as one program."""

    @jax.jit
    def program(params, x, cotangent):
        y, pullback = jax.vjp(function, params, x)
        return y, pullback(cotangent)

    params, given, cotangent = jax.tree.map(jnp.asarray, params), jnp.asarray(x), jnp.asarray(weight)

    def outputs(out):
        y, (grads, dx) = out
        found = {"y": y, "dx": dx, **unpack(grads)}
        return {name: np.asarray(value) for name, value in found.items()}

    return Contestant(lambda: jax.block_until_ready(program(params, given, cotangent)), outputs)


def torch_derivatives(
    module: Any,
    weights: Arrays,
    x: np.ndarray,
    weight: np.ndarray,
    unpack: Callable[[Arrays], Arrays] = dict,
    *,
    compiled: bool = False,
    of_output: Callable[[Any], Any] = lambda y: y,
    channels_first: bool = False,
) -> Contestant:
    """The same of a PyTorch module, whose parameters by name are ``weights``."""
    import torch

    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    if channels_first:
        x, weight = (np.moveaxis(a, -1, 1) for a in (x, weight))
    given = torch.from_numpy(np.array(x, order="C")).requires_grad_()
    cotangent = torch.from_numpy(np.array(weight, order="C"))
    call = torch.compile(module) if compiled else module

    def run():
        module.zero_grad(set_to_none=True)
        given.grad = None
        y = of_output(call(given))
        y.backward(cotangent)
        return y.detach()

    def outputs(y):
        grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
        dx: Any = given.grad
        found = {"y": y.numpy(), "dx": dx.numpy()}
        if channels_first:
            found = {name: np.moveaxis(value, 1, -1) for name, value in found.items()}
        return found | unpack(grads)

    return Contestant(run, outputs)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """The same numbers for all."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)

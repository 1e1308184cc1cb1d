"""Muon: against optax.contrib, a float64 singular value decomposition, and PyTorch; which leaves are matrices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnet import layers, optimizers
from jaxnet.errors import ConfigError, ShapeError

RNG = np.random.default_rng(0)
EXACT = {"ns_steps": 30, "ns_coeffs": (1.875, -1.25, 0.375)}  # this quintic has its fixed point at exactly 1


def tree():
    shapes = {"tall": (7, 3), "wide": (3, 7), "square": (3, 3), "other": (4, 5), "again": (4, 5), "bias": (5,)}
    return {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def gradient(params):
    return jax.tree.map(lambda x: jnp.sin(3 * x) + x * x, params)


def run(optimizer, params, steps=12):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optimizers.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]


@pytest.mark.parametrize(
    "fixed",
    [
        {"nesterov": True, "weight_decay": 0.1, "consistent_rms": 0.2, "ns_steps": 5},
        {"nesterov": False, "ns_steps": 4},
    ],
    ids=["all", "plain"],
)
def test_as_optax(fixed):
    @jax.jit
    def run_at(beta):
        return [run(library.muon(0.02, beta=beta, **fixed), params) for library in (optimizers, optax.contrib)]

    params = tree()
    for beta in (0.0, 0.5, 0.99):
        with jax.numpy_dtype_promotion("standard"):
            ours, theirs = run_at(jnp.float32(beta))
        chex.assert_trees_all_close(ours, theirs, rtol=2e-4, atol=2e-5)


def polar(m):
    u, _, v = np.linalg.svd(np.asarray(m, np.complex128 if np.iscomplexobj(m) else np.float64), full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(6, 4), (3, 8), (3, 3), (2, 4, 5), (1, 4)])
@pytest.mark.parametrize("imaginary", [False, True])
def test_a_step_is_the_nearest_orthogonal_matrix(shape, imaginary):
    """By a singular value decomposition in float64; a kernel of three axes is one matrix, its last axis the outputs."""
    g = RNG.normal(size=shape) + (1j * RNG.normal(size=shape) if imaginary else 0.0)
    g = jnp.asarray(g, jnp.complex64 if imaginary else jnp.float32)
    optimizer = optimizers.muon(1.0, nesterov=False, matrices="*", **EXACT)
    updates, _ = jax.jit(optimizer.update)({"w": g}, optimizer.init({"w": g}), {"w": jnp.zeros_like(g)})
    flat = np.asarray(g).reshape(-1, shape[-1])
    wanted = -(max(1.0, flat.shape[1] / flat.shape[0]) ** 0.5) * polar(flat)
    np.testing.assert_allclose(np.asarray(updates["w"]).reshape(flat.shape), wanted, atol=2e-5)


def test_copies_of_a_layer_are_as_many_matrices():
    net = layers.repeat(layers.dense(4), 3)
    params, _ = net.init(0, jnp.ones((1, 4)))
    grads = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), params)

    def updates(**arguments):
        optimizer = optimizers.muon(1.0, nesterov=False, matrices="kernel", **EXACT, **arguments)
        return optimizer.update(grads, optimizer.init(params), params)[0]["kernel"]

    together = updates(stacked="kernel")
    for i in range(3):
        np.testing.assert_allclose(together[i], -polar(grads["kernel"][i]), atol=2e-5)
    assert float(jnp.abs(updates() - together).max()) > 0.1


@pytest.mark.peers
def test_as_pytorch():
    """PyTorch's kernels are transposed, and its products are in bfloat16: loosely."""
    torch = pytest.importorskip("torch")
    params = {name: leaf for name, leaf in tree().items() if leaf.ndim == 2}
    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(leaf).T.copy())) for name, leaf in params.items()}
    optimizer = torch.optim.Muon(list(theirs.values()), lr=0.02, weight_decay=0.1, nesterov=False)
    for _ in range(10):
        for p in theirs.values():
            p.grad = (torch.sin(3 * p) + p * p).detach()
        optimizer.step()
    ours = run(optimizers.muon(0.02, weight_decay=0.1, nesterov=False), params, 10)
    for name, p in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[name]).T, p.detach().numpy(), atol=6e-3, err_msg=name)
        assert np.abs(np.asarray(ours[name]) - np.asarray(params[name])).max() > 0.05


def test_the_rest_is_adamws_or_what_is_given():
    params = tree()
    rest = functools.partial(run, params={"bias": params["bias"]})
    for others, alone in (
        (None, optimizers.adamw(0.02, weight_decay=0.0, nesterov=True)),
        (optimizers.sgd(0.1), optimizers.sgd(0.1)),
    ):
        mine = run(optimizers.muon(0.02, others=others), params)["bias"]
        np.testing.assert_allclose(mine, rest(alone)["bias"], rtol=1e-5)


@pytest.mark.parametrize(("platform", "products"), [("cuda", 2), ("cpu", 20)])
def test_matrices_of_one_shape_are_one_stack_but_on_a_cpu(platform, products):
    """On a GPU twenty matrices cost as many operations to compile as two."""
    params = [jnp.zeros((4, 6)), jnp.zeros((6, 4))] * 10
    optimizer = optimizers.muon(0.1)
    traced = jax.jit(optimizer.update).trace(params, optimizer.init(params), params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("call @newton_schulz") == products


def test_what_an_accelerator_runs_is_what_a_cpu_runs(monkeypatch):
    params = tree()
    here = run(optimizers.muon(0.02), params, 2)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    chex.assert_trees_all_close(run(optimizers.muon(0.02), params, 2), here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.muon(0.1, ns_steps=0), "muon: ns_steps must be an integer >= 1"),
        (lambda: optimizers.muon(0.1, ns_coeffs=(1.0, 2.0)), r"muon: ns_coeffs must be three numbers \(a, b, c\)"),
        (lambda: optimizers.muon(0.1, beta=1.0), "muon: beta must be"),
        (lambda: optimizers.muon(0.1, consistent_rms=0.0), "muon: consistent_rms must be"),
        (lambda: optimizers.muon(0.1, others=optimizers.sgd), r"call it first: sgd\(\.\.\.\)"),
        (lambda: optimizers.muon(0.1, matrices="kern").init(tree()), "the pattern 'kern' fits no leaf; the paths are"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_no_matrix_is_refused_by_its_path():
    params = tree()
    optimizer = optimizers.muon(0.1, matrices="*")
    with pytest.raises(ShapeError, match=r"bias has the shape \(5,\), and is no matrix; choose others by matrices="):
        optimizer.update(params, optimizer.init(params), params)

"""Against PyTorch in float64, where the two define a rule alike; docs/optimizers.md lists where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers

o = optimizers

# ours; PyTorch's class; its arguments
CONFIGURATIONS = [
    (o.sgd(0.01), "SGD", {"lr": 0.01}),
    (o.sgd(0.01, momentum=0.9), "SGD", {"lr": 0.01, "momentum": 0.9}),
    (o.sgd(0.01, momentum=0.9, nesterov=True), "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    (
        o.chain(o.add_decayed_weights(0.1), o.sgd(0.01, momentum=0.9)),
        "SGD",
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    ),
    (o.adam(0.01), "Adam", {"lr": 0.01}),
    (o.adam(0.02, b1=0.8, b2=0.95, eps=1e-4), "Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4}),
    (o.chain(o.add_decayed_weights(0.1), o.adam(0.01)), "Adam", {"lr": 0.01, "weight_decay": 0.1}),
    (o.adamw(0.01, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    (
        o.rmsprop(0.01, decay=0.99, eps_in_sqrt=False),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.99},
    ),
    (
        o.rmsprop(0.01, decay=0.9, eps=1e-3, eps_in_sqrt=False, centered=True, momentum=0.5),
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "centered": True, "momentum": 0.5},
    ),
    (
        o.adagrad(0.1, initial_accumulator_value=0.5, eps=0.0),
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 0.0},
    ),
]


def start():
    return [np.linspace(-2.0, 2.0, 12).reshape(3, 4), np.array(0.3)]


def loss(params, numeric):
    w, s = params
    return numeric.sum((w**2 - s) ** 2) + 0.1 * numeric.sum(numeric.sin(3 * w)) + s**2


@pytest.mark.peers
@pytest.mark.parametrize(("optimizer", "name", "arguments"), CONFIGURATIONS)
def test_same_parameters_after_60_steps(x64, optimizer, name, arguments):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")

    theirs = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in start()]
    torch_optimizer = getattr(torch.optim, name)(theirs, **arguments)
    for _ in range(60):
        torch_optimizer.zero_grad()
        loss(theirs, torch).backward()
        torch_optimizer.step()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, jnp), state, params)
        return (optimizers.apply_updates(params, updates), state), None

    params = [jnp.asarray(p) for p in start()]
    ours = jax.lax.scan(step, (params, optimizer.init(params)), None, length=60)[0][0]
    for a, b in zip(ours, theirs, strict=True):
        # Later than this some configurations oscillate around the minimum, and amplify roundings without end.
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.peers
def test_documented_difference_of_adagrads_epsilon():
    """PyTorch adds it to the root, optax and we inside: at a tiny first gradient that is another step."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.full((1,), 1e-6)
    torch.optim.Adagrad([p], lr=1.0, eps=1e-6).step()
    optimizer = optimizers.adagrad(1.0, initial_accumulator_value=0.0, eps=1e-6)
    updates, _ = optimizer.update(jnp.full(1, 1e-6), optimizer.init(jnp.zeros(1)))
    assert float(p.detach()[0]) == pytest.approx(-0.5, rel=1e-3)
    assert float(updates[0]) == pytest.approx(-1e-3, rel=1e-3)

"""Schedule-free: against optax.contrib and the authors' package; what is evaluated, and where it is found."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxnet import optimizers as o
from jaxnet.errors import ConfigError, ShapeError

STEPS = 30
EVALUATED = {
    o: o.averaged,
    optax.contrib: optax.contrib.schedule_free_eval_params,
}


def start(dtype: Any = np.float64):
    rng = np.random.default_rng(0)
    return {"kernel": rng.normal(size=(3, 4)).astype(dtype), "bias": np.linspace(0.0, 1.0, 3).astype(dtype)}


def gradient(params):
    return jax.tree.map(lambda p: jnp.sin(3 * p) + p * p - 0.3, params)


def trained(optimizer, evaluated, params, steps=STEPS):
    """The parameters that are trained, and those to evaluate, after some steps."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (o.apply_updates(params, updates), state), None

    params, state = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0]
    return params, evaluated(state, params)


def assert_close(ours, theirs, **tolerances):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerances)


@functools.cache
def beside_optax(rule):
    """Both libraries' runs as one program of the arguments."""

    def run(arguments):
        for library, evaluated in EVALUATED.items():
            yield trained(getattr(library, f"schedule_free_{rule}")(**arguments), evaluated, start())

    return jax.jit(lambda arguments: list(run(arguments)))


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@settings(max_examples=20, phases=[Phase.generate])
@given(data=st.data())
def test_as_optax(rule, data):
    draw = data.draw
    arguments = {
        "learning_rate": draw(st.floats(1e-3, 0.1)),
        "b1": draw(st.floats(0.1, 1.0)),
        "weight_decay": draw(st.sampled_from([0.0, 0.05])),
        "weight_lr_power": draw(st.sampled_from([0.0, 2.0])),
    }
    if rule == "adamw":
        arguments |= {"b2": draw(st.floats(0.5, 0.999)), "eps": draw(st.sampled_from([1e-8, 1e-3]))}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = beside_optax(rule)(jax.tree.map(jnp.float64, arguments))
    assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_as_optax_around_another_rule_with_a_warm_up(x64):
    """Its average takes the rate of the next step, and so needs another schedule than its optimizer."""

    def rate(step):
        return 0.05 * jnp.minimum(1.0, (step + 1) / 10.0)

    with jax.numpy_dtype_promotion("standard"):
        ours = trained(o.schedule_free(optax.lion(rate, 0.0), rate, 0.8), o.averaged, start())
        wrapped = optax.contrib.schedule_free(optax.lion(rate, 0.0), lambda step: rate(step - 1), 0.8)
        theirs = trained(wrapped, optax.contrib.schedule_free_eval_params, start())
    assert_close(ours, theirs, rtol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_as_the_authors_package(x64, rule):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("schedulefree")
    theirs = {name: torch.tensor(p, requires_grad=True) for name, p in start().items()}
    shared = {"lr": 0.05, "warmup_steps": 10, "weight_decay": 0.1}
    if rule == "sgd":
        optimizer = package.SGDScheduleFree(list(theirs.values()), momentum=0.8, **shared)
        ours = o.schedule_free_sgd(0.05, 10, 0.8, 0.1)
    else:
        optimizer = package.AdamWScheduleFree(list(theirs.values()), betas=(0.8, 0.99), **shared)
        ours = o.schedule_free_adamw(0.05, 10, 0.8, 0.99, weight_decay=0.1)
    optimizer.train()
    for _ in range(STEPS):
        for p in theirs.values():
            p.grad = (torch.sin(3 * p) + p * p - 0.3).detach()
        optimizer.step()
    trained_there = {name: p.detach().numpy().copy() for name, p in theirs.items()}
    optimizer.eval()
    evaluated_there = {name: p.detach().numpy() for name, p in theirs.items()}
    assert_close(trained(ours, o.averaged, start()), (trained_there, evaluated_there), rtol=1e-6)


def literal(rate, b1, grads, start):
    """The paper's three sequences, with a weight of 1 / i each, as a loop in float64."""
    x = z = start
    for i, g in enumerate(grads, start=1):
        y = (1 - b1) * z + b1 * x
        z = z - rate * g(y)
        x = (1 - 1 / i) * x + z / i
    return (1 - b1) * z + b1 * x, x


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.bfloat16, jnp.float32])
def test_by_the_paper(dtype):
    """In 16 bits with a master copy, where z and y are float32 and the average finds the copy."""
    first = np.linspace(-1, 1, 5) + (1j * np.linspace(0, 2, 5) if dtype == jnp.complex64 else 0)
    first = np.asarray(jnp.asarray(first, dtype).astype(jnp.complex64 if dtype == jnp.complex64 else jnp.float32))
    optimizer = o.schedule_free_sgd(0.2, b1=0.7)
    optimizer = o.master_copy(optimizer) if dtype == jnp.bfloat16 else optimizer

    def seen(y):  # the network sees the rounded parameters
        return np.asarray(jnp.asarray(y, dtype).astype(first.dtype)) * 0.5 - 0.3

    y, x = literal(0.2, 0.7, [seen] * 20, first.astype(np.complex128 if dtype == jnp.complex64 else np.float64))
    params, state = jnp.asarray(first, dtype), optimizer.init(jnp.asarray(first, dtype))
    update = jax.jit(optimizer.update)
    for _ in range(20):
        grads = params * jnp.asarray(0.5, dtype) - jnp.asarray(0.3, dtype)
        grads = jnp.asarray(seen(params.astype(first.dtype))) if dtype == jnp.bfloat16 else grads
        updates, state = update(grads, state, params)
        params = o.apply_updates(params, updates)
    tolerance = {"rtol": 2**-7 if dtype == jnp.bfloat16 else 2e-5, "atol": 1e-6}
    found = o.averaged(state, params)
    assert found.dtype == params.dtype == dtype
    assert_close([a.astype(first.dtype) for a in (params, found)], [y, x], **tolerance)


def test_the_average_is_found_inside_others():
    """In a chain, a group and the flat layout it is that of the rule alone; a group's others are the parameters."""
    params = start(np.float32)
    rule = functools.partial(o.schedule_free_adamw, 0.1, 3)
    _, alone = trained(rule(), o.averaged, params, 5)
    group = o.partition({"kernel": rule(), "*": o.sgd(0.1)})
    for optimizer in (o.chain(rule()), o.flat(rule()), o.skip_nonfinite(rule()), group):
        y, x = trained(optimizer, o.averaged, params, 5)
        assert_close(x["kernel"], alone["kernel"], rtol=1e-5)
        assert_close(x["bias"], (y if optimizer is group else alone)["bias"], rtol=1e-5)
        assert float(jnp.abs(x["kernel"] - y["kernel"]).max()) > 1e-3


def test_a_rate_of_zero_averages_nothing_and_is_not_nan():
    optimizer = o.schedule_free_sgd(lambda step: jnp.where(step >= 2, 0.1, 0.0))
    params, state = jnp.ones(2), optimizer.init(jnp.ones(2))
    for wanted in (1.0, 1.0, 0.9):
        updates, state = optimizer.update(jnp.ones(2), state, params)
        params = o.apply_updates(params, updates)
        np.testing.assert_allclose(o.averaged(state, params), wanted, rtol=1e-6)


def test_of_a_rate_that_falls_the_largest_so_far_weighs_the_average():
    """That of the first step, so that all steps weigh the same."""
    optimizer = o.schedule_free_sgd(lambda step: jnp.where(step == 0, 1.0, 0.5))
    params, state, z = jnp.ones(2), optimizer.init(jnp.ones(2)), []
    for moved in (0.0, -0.5, -1.0):
        updates, state = optimizer.update(jnp.ones(2), state, params)
        params = o.apply_updates(params, updates)
        z.append(moved)
        np.testing.assert_allclose(o.averaged(state, params), np.mean(z), rtol=1e-5, atol=1e-6)


def test_z_is_kept_in_the_dtype_that_was_asked_for():
    optimizer = o.schedule_free_sgd(0.1, state_dtype=jnp.bfloat16)
    state = optimizer.init(jnp.ones(2))
    updates, after = optimizer.update(jnp.ones(2), state, jnp.ones(2))
    assert state.z.dtype == after.z.dtype == jnp.bfloat16
    assert updates.dtype == o.averaged(after, jnp.ones(2)).dtype == jnp.float32
    updates, after = optimizer.update(jnp.full(2, 0.01), state, jnp.ones(2))
    np.testing.assert_array_equal(after.z, state.z)  # a step that z rounds away
    np.testing.assert_allclose(updates, [-0.001] * 2, rtol=1e-4)  # moves the parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: o.schedule_free_sgd(0.1, b1=0.0), r"schedule_free_sgd: b1 must be a finite number in \(0, 1\]"),
        (lambda: o.schedule_free_adamw(0.1, warmup_steps=0), "schedule_free_adamw: warmup_steps must be an integer >="),
        (lambda: o.schedule_free_adamw(eps=0.0), "schedule_free_adamw: eps must be"),
        (lambda: o.schedule_free(o.sgd, 0.1), r"schedule_free: .*call it first: sgd\(\.\.\.\)"),
        (lambda: o.schedule_free(o.sgd(0.1), -0.1), "schedule_free: learning_rate must be"),
        (lambda: o.schedule_free_sgd(b1=cast(Any, abs)), "b1 takes no schedule"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_the_parameters_or_with_others():
    optimizer = o.schedule_free_sgd()
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ConfigError, match="the average needs the parameters"):
        optimizer.update(jnp.ones(2), state)
    with pytest.raises(ShapeError, match="z in the state do not fit the parameters"):
        optimizer.update(jnp.ones(3), state, jnp.ones(3))

"""A hyperparameter has a value and no dtype: whatever it comes as, state and updates keep theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import optimizers
from jaxnet.optimizers import EmptyState

o = optimizers

KINDS = {
    "float": float,
    "float64": np.float64,
    "float32": np.float32,
    "0-d": np.asarray,
    "0-d float32": lambda value: np.asarray(value, np.float32),
    "jax float32": jnp.float32,
    "jax widest": lambda value: jnp.asarray(value, jnp.result_type(float)),
    "jax weak": lambda value: jnp.sin(value),
    "bfloat16": jnp.bfloat16,
}

RULES = {  # every hyperparameter that may be a schedule
    "sgd": lambda s: o.sgd(s),
    "sgd momentum": lambda s: o.sgd(s, s, True),
    "adam": lambda s: o.adam(s, s, s, s, s),
    "adam nesterov": lambda s: o.adam(s, s, s, s, s, nesterov=True),
    "adam half mu": lambda s: o.adam(s, s, s, mu_dtype=jnp.bfloat16),
    "adamw": lambda s: o.adamw(s, s, s, s, s, weight_decay=s),
    "adagrad": lambda s: o.adagrad(s, eps=s),
    "rmsprop": lambda s: o.rmsprop(s, s, s, centered=True, momentum=s, nesterov=True, bias_correction=True),
    "rmsprop eps outside": lambda s: o.rmsprop(s, s, s, eps_in_sqrt=False),
    "adabelief": lambda s: o.adabelief(s, s, s, s, s),
    "angulargrad": lambda s: o.angulargrad(s, s, s, s),
    "add_decayed_weights": lambda s: o.add_decayed_weights(s),
    "lookahead": lambda s: o.lookahead(o.sgd(s, s), 3, 0.5),
    "flat": lambda s: o.flat(o.adam(s, s)),
    "skip_nonfinite": lambda s: o.skip_nonfinite(o.adam(s)),
    "master_copy": lambda s: o.master_copy(o.adam(s)),
}

CONSTANTS = {  # and those that may not
    **RULES,
    "lookahead": lambda c: o.lookahead(o.sgd(c), 3, c),
    "clip_by_global_norm": o.clip_by_global_norm,
    "clip_by_value": o.clip_by_value,
    "adagrad": lambda c: o.adagrad(c, c, c),
    "rmsprop": lambda c: o.rmsprop(c, c, c, initial_scale=c),
}


def tree(name):
    dtypes = {"half": jnp.bfloat16, "single": jnp.float32, "double": jnp.result_type(float)}
    if name not in ("angulargrad", "clip_by_value", "adam half mu"):
        dtypes["complex"] = jnp.complex64
    return {key: jnp.ones(2, dtype) for key, dtype in dtypes.items()}


def described(tree):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def assert_stable(name, optimizer):
    params = tree(name)
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert described(after) == described(state)
    wanted = {key: jnp.float32 if key == "half" else p.dtype for key, p in params.items()}
    assert {key: u.dtype for key, u in updates.items()} == wanted


@pytest.mark.parametrize("wide", [False, True], ids=["", "x64"])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_are_stable(kind, wide):
    """By `jax.eval_shape` under strict promotion: what a scan's carry demands, without compiling anything."""
    with jax.enable_x64(wide):
        value = KINDS[kind](0.25)
        for name, make in RULES.items():
            assert_stable(name, make(lambda step: value))
        for name, make in CONSTANTS.items():
            assert_stable(name, make(value))


@pytest.mark.parametrize("wide", [False, True], ids=["", "x64"])
def test_integers_and_numpy_schedules(wide):
    with jax.enable_x64(wide):
        for value in (1, np.int64(1), np.uint8(1), jnp.int32(1), True):
            for make in (o.sgd, o.adam, o.rmsprop, lambda s: o.adamw(0.1, weight_decay=s)):
                assert_stable("integers", make(lambda step, value=value: value))
        assert_stable("adam", o.adam(lambda step: 0.1 / (1 + step.astype(jnp.result_type(float)))))


@pytest.mark.parametrize("wide", [False, True], ids=["", "x64"])
@pytest.mark.parametrize("kind", KINDS)
def test_schedules_take_all_kinds(kind, wide):
    with jax.enable_x64(wide):
        k = KINDS[kind]
        for schedule in (
            o.constant_schedule(k(0.25)),
            o.exponential_decay(k(0.25), 10, k(0.5)),
            o.exponential_decay(k(0.25), 10, k(0.5), 2, True, k(0.125)),
            o.warmup_cosine_decay_schedule(k(0.125), k(0.25), 3, 10, k(0.125), k(1.0)),
            o.warmup_cosine_decay_schedule(0.0, k(0.25), 0, 10),
            o.piecewise_constant_schedule(k(0.25), {3: k(0.5)}),
        ):
            assert_stable("sgd", o.sgd(schedule))


def test_the_row_of_a_numpy_schedule(x64):
    """A schedule that returns np.float64 made float64 of float32 moments."""
    optimizer = o.rmsprop(lambda step: np.float64(0.1), momentum=0.9)
    params = jnp.ones(2, jnp.float32)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert {updates.dtype, state.nu.dtype, state.trace.dtype} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_a_python_float(kind):
    params = jnp.linspace(-1.0, 1.0, 5)
    for make in (lambda r: o.adam(r, 0.5), lambda r: o.sgd(r, 0.5)):
        ours, plain = make(lambda step: KINDS[kind](0.25)), make(0.25)
        updates, _ = ours.update(params, ours.init(params), params)
        expected, _ = plain.update(params, plain.init(params), params)
        # bfloat16 and the weak scalar are not quite 0.25: sin(0.25)
        np.testing.assert_allclose(updates, expected, rtol=2e-2 if kind == "jax weak" else 0)


def test_a_clip_of_no_dtype(x64):
    clip = o.clip_by_global_norm(np.asarray(0.5))
    clipped, _ = clip.update({"a": jnp.ones(2, jnp.float32)}, EmptyState())
    assert clipped["a"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["sgd momentum", "adam", "adagrad", "rmsprop", "adabelief"])
def test_wider_gradients_leave_the_state_as_narrow_as_it_was(name, x64):
    optimizer = RULES[name](0.25)
    state = optimizer.init(jnp.ones(2, jnp.float32))
    _, after = jax.eval_shape(optimizer.update, jnp.ones(2, jnp.float64), state)
    assert described(after) == described(state)

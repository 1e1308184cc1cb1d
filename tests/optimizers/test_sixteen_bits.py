"""Parameters of 16 bits: every rule is the float32 rule, and a master copy keeps what rounding would lose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DTypeError
from jaxnet.optimizers.master_copy import keeps_master
from tests.optimizers.conftest import OPTIMIZERS

DTYPES = [jnp.float16, jnp.bfloat16]
RULES = {name: make for name, make in OPTIMIZERS.items() if name != "master copy"}
STEPS, SIZE = 20, 6


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def start():
    """Both kinds of 16 bits beside float32, so that one program tests all."""
    return {dtype.__name__: jnp.linspace(-1, 1, SIZE, dtype=dtype) for dtype in (*DTYPES, jnp.float32)}


def as_in(params, grads):
    """The same gradients for every parameter, in its dtype."""
    return jax.tree.map(lambda p: grads.astype(p.dtype), params)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-5, atol=1e-12)


@st.composite
def gradients(draw):
    """Gradients of 20 steps, of a scale of its own in each: zero, tiny, ordinary, large."""
    scales = draw(st.lists(st.sampled_from([0.0, 5e-8, 1e-4, 5e-3, 1.0, 3e3]), min_size=STEPS, max_size=STEPS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(STEPS, SIZE)) * np.array(scales)[:, None]


@functools.cache
def beside_float32(name):
    """The rule on 16-bit trees, and on the same values in float32, in one compiled scan."""
    optimizer = RULES[name]()

    def step(carry, g):
        params, state, state32 = carry
        updates, state = optimizer.update(g, state, params)
        updates32, state32 = optimizer.update(widened(g), state32, widened(params))
        params = optimizers.apply_updates(params, updates)
        return (params, state, state32), (updates, updates32)

    @jax.jit
    def run(grads):
        params = start()
        carry = (params, optimizer.init(params), optimizer.init(widened(params)))
        return jax.lax.scan(step, carry, as_in(params, grads))

    return run


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=4, phases=[Phase.generate])
@given(grads=gradients())
def test_every_rule_is_the_float32_rule(name, grads):
    (params, state, state32), (updates, updates32) = beside_float32(name)(jnp.asarray(grads, jnp.float32))
    assert {name: p.dtype.name for name, p in params.items()} == {name: name for name in params}
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    assert finite((params, state, updates))
    assert_close(updates, updates32)
    if name != "flat":  # whose vectors are one per dtype of the parameters
        assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(state32)]
        assert_close(state, state32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_by_hand(dtype):
    """A zero gradient gave 0 / 0, and 5e-3, whose square float16 rounds to 0, gave -Inf."""
    optimizer = optimizers.adam(0.1)
    params = jnp.zeros(4, dtype)
    grads = jnp.array([0.0, 5e-3, 5e-8, -200.0], dtype)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    g = np.asarray(grads, np.float64)
    np.testing.assert_allclose(updates, -0.1 * g / (np.abs(g) + 1e-8), rtol=1e-5)
    np.testing.assert_allclose(state.nu, 1e-3 * g**2, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_accumulators_dtype_that_was_asked_for_is_kept(dtype):
    params = jnp.ones(3, dtype)
    for optimizer, name in (
        (optimizers.adam(0.1, mu_dtype=jnp.bfloat16), "mu"),
        (optimizers.adamw(0.1, mu_dtype=jnp.bfloat16), "mu"),
        (optimizers.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16), "trace"),
    ):
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        assert getattr(state, name).dtype == getattr(after, name).dtype == jnp.bfloat16
        assert updates.dtype == jnp.float32


def test_float32_gradients_are_taken_as_they_are(optimizer):
    params = start()
    small = as_in(widened(params), jnp.full(SIZE, 1e-9))  # 0 in float16
    updates, state = optimizer.update(small, optimizer.init(params), params)
    expected, _ = optimizer.update(small, optimizer.init(widened(params)), widened(params))
    if not keeps_master(state):
        assert_close(updates, expected)
    with pytest.raises(DTypeError, match=r"of another dtype.*float16 for float32"):
        optimizer.update(jax.tree.map(lambda x: x.astype(jnp.float16), small), state, widened(params))


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_gradients_in_flat_without_parameters(dtype):
    params = {"a": jnp.ones(2, dtype), "b": jnp.ones(3), "c": jnp.ones((), dtype)}
    grads = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones((), dtype)}
    for inner in (optimizers.adam(0.1), optimizers.sgd(0.1)):
        optimizer = optimizers.flat(inner)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        assert_close(updates, inner.update(grads, inner.init(params))[0])


STEPPED = ["sgd", "adam half mu", "lookahead", "skip nonfinite", "flat", "muon", "schedule free sgd", "master copy"]


@pytest.mark.parametrize(("name", "dtype"), list(zip(STEPPED, DTYPES * 4, strict=True)))
def test_a_training_step(name, dtype):
    net, optimizer = layers.dense(1), OPTIMIZERS[name]()
    x = jnp.linspace(-1, 1, 16, dtype=dtype)[:, None]
    step = training.make_step(net, losses.mse, optimizer)
    train_state = training.init(net, optimizer, x, 0)

    def losses_of(train_state):
        return jax.lax.scan(lambda state, _: step(state, (x, x + 1)), train_state, None, length=50)

    after, metrics = jax.jit(losses_of)(train_state)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype(dtype)}
    assert finite((after.params, after.opt_state, metrics))
    assert int(after.guard.total) == 0
    assert metrics["loss"][-1] < metrics["loss"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", [lambda rule: rule, optimizers.master_copy])
@pytest.mark.filterwarnings("ignore:fit. parameters are:UserWarning")
def test_fit(dtype, wrap):
    x = jnp.linspace(-1, 1, 32, dtype=dtype)[:, None]
    net, optimizer = layers.dense(1), wrap(optimizers.adam(0.05))
    fit = training.fit(net, losses.mse, optimizer, (x, 2 * x + 1), epochs=40, batch_size=8, progress=False)
    assert finite(fit.params)
    np.testing.assert_allclose(np.float32(fit.params["kernel"]), [[2]], atol=0.1)


# The master copy


def bits(dtype, low=-(2**15), high=2**15 - 1):
    return st.lists(st.integers(low, high), min_size=16, max_size=16).map(
        lambda values: jnp.asarray(np.array(values, np.int16).view(dtype))
    )


@functools.cache
def jitted(f):
    return jax.jit(f)


def follow(params, state, changes):
    """One step by an inner rule whose update is ``changes``, whatever the gradient."""
    optimizer = optimizers.master_copy((lambda params: (), lambda updates, state, params=None: (changes, state)))
    updates, state = optimizer.update(jnp.zeros_like(params), state, params)
    return optimizers.apply_updates(params, updates), updates, state


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_parameters_are_the_rounded_master_whatever_the_step(dtype, data):
    params = data.draw(bits(dtype))
    ordinary = jnp.isfinite(params) & (jnp.abs(params) > 1e-30)  # below lie float32's own subnormals
    params = jnp.where(ordinary, params, jnp.zeros((), dtype))
    # A master anywhere within half a unit of the parameter, and a target anywhere: near, far, tiny, opposite.
    unit = np.spacing(np.asarray(jnp.abs(params))).astype(np.float32)
    inside = np.array(data.draw(st.lists(st.floats(-0.5, 0.5, width=32), min_size=16, max_size=16)), np.float32)
    master = jnp.asarray(np.asarray(params, np.float32) + inside * unit)
    master = jnp.where(master.astype(dtype) == params, master, params.astype(jnp.float32))
    near = st.lists(st.floats(-2, 2, width=32), min_size=16, max_size=16)
    towards = jnp.asarray(np.array(data.draw(near), np.float32)) * master
    anywhere = data.draw(bits(dtype)).astype(jnp.float32)
    tiny = data.draw(st.integers(-3, 3)) * 2.0**-23 * master
    for target in (towards, jnp.where(jnp.isfinite(anywhere), anywhere, 0.0), tiny, jnp.zeros_like(master)):
        changes = target - master
        wanted = master + changes
        after, updates, state = jitted(follow)(params, optimizers.MasterCopyState(master, ()), changes)
        reached = np.asarray(state.master)
        np.testing.assert_array_equal(np.asarray(after), np.asarray(state.master.astype(dtype)))
        fell = np.abs(np.asarray(wanted)) < np.abs(np.float32(params)) * 2.0**-13
        np.testing.assert_array_equal(reached[~fell], np.asarray(wanted)[~fell])
        np.testing.assert_array_less(np.abs(reached - wanted)[fell], (2.0**-22 * np.abs(np.float32(params)))[fell])
        with jax.numpy_dtype_promotion("standard"):
            np.testing.assert_array_equal(np.asarray(after), np.asarray(optax.apply_updates(params, updates)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_the_update_needs_a_25th_bit_the_master_gives_way(dtype):
    """2 is what 2 - 2^-23 rounds to; from there, no float32 leads to -3 units of 2^-23."""
    params, unit = jnp.full(1, 2, dtype), np.float32(2.0**-23)
    master = jnp.full(1, 2 - 4 * unit)
    after, _, state = follow(params, optimizers.MasterCopyState(master, ()), -3 * unit - master)
    assert after[0] == state.master[0].astype(dtype)
    assert abs(float(state.master[0]) + 3 * unit) <= unit


# With and without the parameters, with a state that holds them, in groups, in vectors.
COPIED = ["sgd momentum", "adamw", "lookahead reset", "schedule free adamw", "muon", "flat"]


@pytest.mark.parametrize("name", COPIED)
@settings(max_examples=3, phases=[Phase.generate])
@given(grads=gradients())
def test_a_master_copy_is_float32_training(name, grads):
    params, state, params32 = mastered(name)(jnp.asarray(grads, jnp.float32))
    assert state.master["float32"] is None
    assert finite(state)
    for dtype in DTYPES:
        master = state.master[dtype.__name__]
        np.testing.assert_array_equal(np.asarray(params[dtype.__name__]), np.asarray(master.astype(dtype)))
        np.testing.assert_allclose(master, params32[dtype.__name__], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["float32"], params32["float32"], rtol=1e-5, atol=1e-6)


@functools.cache
def mastered(name):
    inner = RULES[name]()
    optimizer = optimizers.master_copy(inner)

    def step(carry, g):
        params, state, params32, state32 = carry
        updates, state = optimizer.update(g, state, params)
        updates32, state32 = inner.update(widened(g), state32, params32)
        return (
            optimizers.apply_updates(params, updates),
            state,
            optimizers.apply_updates(params32, updates32),
            state32,
        ), None

    @jax.jit
    def run(grads):
        params = start()
        carry = (params, optimizer.init(params), widened(params), inner.init(widened(params)))
        return jax.lax.scan(step, carry, as_in(params, grads))[0][:3]

    return run


def test_small_steps_add_up():
    """Steps of 0.001 from 1, which bfloat16 rounds away; float32 reaches 0.6."""

    def after(optimizer):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jnp.full(1, 1e-3, jnp.float32), state, params)
            return (optimizers.apply_updates(params, updates), state), None

        params = jnp.ones(1, jnp.bfloat16)
        return float(jax.lax.scan(step, (params, optimizer.init(params)), None, length=400)[0][0][0])

    assert after(optimizers.sgd(1.0)) == 1
    assert after(optimizers.master_copy(optimizers.sgd(1.0))) == float(jnp.bfloat16(0.6))


def test_a_parameter_that_something_else_changed_is_taken_as_it_is():
    optimizer = optimizers.master_copy(optimizers.sgd(1.0))
    params = jnp.array([1.0, 1.0], jnp.bfloat16)
    grads = jnp.full(2, 1e-3, jnp.bfloat16)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    params = optimizers.apply_updates(params, updates).at[1].set(3)
    _, state = optimizer.update(grads, state, params)
    np.testing.assert_allclose(state.master, [0.998, 2.999], rtol=1e-5)


COMPOSED = {
    "skip outside": lambda: optimizers.skip_nonfinite(optimizers.master_copy(optimizers.sgd(0.1, 0.9))),
    "skip inside": lambda: optimizers.master_copy(optimizers.skip_nonfinite(optimizers.sgd(0.1, 0.9))),
    "chain": lambda: optimizers.master_copy(
        optimizers.chain(optimizers.clip_by_global_norm(1.0), optimizers.sgd(0.1, 0.9))
    ),
    "lookahead": lambda: optimizers.master_copy(optimizers.lookahead(optimizers.sgd(0.1), 3, 0.5)),
    "flat": lambda: optimizers.flat(optimizers.master_copy(optimizers.sgd(0.1))),
    "optax": lambda: optax.chain(optimizers.master_copy(optax.sgd(0.1, momentum=0.9))),
    "in parts": lambda: optax.partition({"a": optimizers.master_copy(optax.sgd(0.1)), "b": optax.sgd(0.1)}, "a"),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions_of_a_master_copy(name, tmp_path):
    optimizer = COMPOSED[name]()
    params = {"half": jnp.linspace(-1, 1, 4, dtype=jnp.float16), "nothing": None, "single": jnp.ones(2)}
    state = optimizer.init(params)
    assert keeps_master(state)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optimizers.apply_updates(params, updates), state

    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    params32 = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)  # before the donation
    for _ in range(4):
        params, state = step(params, state, grads)
    training.save(tmp_path / "state", (params, state))
    params, state = training.load(tmp_path / "state", (params, state))
    for _ in range(4):
        params, state = step(params, state, grads)

    plain = {  # the same without the copy, on float32
        "lookahead": optimizers.lookahead(optimizers.sgd(0.1), 3, 0.5),
        "flat": optimizers.sgd(0.1),
        "in parts": optimizers.sgd(0.1),
    }.get(name, optimizers.sgd(0.1, 0.9))
    state32 = plain.init(params32)
    for _ in range(8):
        updates, state32 = plain.update(widened(grads), state32, params32)
        params32 = optimizers.apply_updates(params32, updates)
    np.testing.assert_allclose(
        np.float32(params["half"]), np.asarray(params32["half"].astype(jnp.float16), np.float32), atol=1e-3, rtol=1e-3
    )
    if "skip" in name:
        before = jax.tree.map(np.asarray, params)
        spoiled = jax.tree.map(lambda g: g * jnp.nan, grads)
        params, state = step(params, state, spoiled)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (before, params)), strict=True))


def test_nothing_to_copy():
    optimizer = optimizers.master_copy(optimizers.adam(0.1))
    params = {"w": jnp.ones(3)}
    updates, state = optimizer.update(params, optimizer.init(params), params)
    expected, _ = optimizers.adam(0.1).update(params, optimizers.adam(0.1).init(params), params)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    assert jax.tree.leaves(state.master) == []
    with pytest.raises(ConfigError, match="master_copy: the rounding of the float32 copy needs the parameters"):
        optimizer.update(params, state)
    assert not keeps_master(optimizers.adam(0.1).init(params))

"""Against optax: the same parameters, bit for bit, after 1,000 compiled steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from jaxnet import optimizers

pytestmark = pytest.mark.usefixtures("full_compilation")
STEPS = 1000


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """What is promised: a GPU's compiler may fuse, and so round, otherwise."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def tree():
    return {
        "kernel": jnp.linspace(-2.0, 2.0, 35).reshape(5, 7),
        "nested": [{"bias": jnp.linspace(0.1, 1.0, 3)}, (jnp.float32(0.3),)],
        "complex": jax.lax.complex(jnp.linspace(-1.0, 1.0, 4), jnp.linspace(0.2, 0.4, 4)),
        "empty": jnp.zeros((0, 3)),
        "nothing": None,
    }


def quadratic(params):
    terms = [jnp.abs(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(params)]
    return sum(jnp.sum((i + 1) * (x - 0.7) ** 2) for i, x in enumerate(terms))


def rosenbrock(params):
    x = jnp.concatenate([jnp.abs(leaf).astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(params)])
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2) * 1e-3


def network(params):
    x = jnp.sin(jnp.arange(40.0)).reshape(8, 5)
    h = jnp.tanh(x @ params["kernel"])
    out = h[:, :3] * params["nested"][0]["bias"][None, :] + params["nested"][1][0]
    return jnp.mean((out - x[:, :3]) ** 2) + 1e-2 * jnp.sum(jnp.abs(params["complex"]) ** 2)


LOSSES = {"quadratic": quadratic, "rosenbrock": rosenbrock, "network": network}


def train(optimizer, loss, params, steps=STEPS):
    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params, state: jax.lax.scan(step, (params, state), None, length=steps)[0][0])
    return run(params, optimizer.init(params))


def assert_same_bits(name, arguments, loss, params):
    """Returns whether the parameters stayed finite; what a run that diverged ends with proves nothing."""
    with jax.numpy_dtype_promotion("standard"):  # optax promotes implicitly
        ours = train(getattr(optimizers, name)(**arguments), loss, params)
        theirs = train(getattr(optax, name)(**arguments), loss, params)
    finite = [
        np.array([np.all(np.isfinite(np.asarray(leaf, np.complex128))) for leaf in jax.tree.leaves(tree)])
        for tree in (ours, theirs)
    ]
    np.testing.assert_array_equal(*finite, err_msg=f"{name} {arguments}: which leaves stay finite")
    if not finite[0].all():
        return False
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=f"{name} {arguments} {path}")
        assert a.dtype == b.dtype
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True)
    moved = [np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs]
    assert any(moved), f"{name} {arguments} moved nothing, which proves nothing"
    return True


rates = st.one_of(
    st.sampled_from([1e-3, 0.02]),
    st.builds(functools.partial(optax.exponential_decay, transition_steps=300, decay_rate=0.5), st.just(0.03)),
)
decays = st.floats(0.0, 0.99)
dtypes = st.sampled_from([None, jnp.bfloat16, jnp.float32])
small = st.sampled_from([1e-8, 1e-4, 1e-2])
moments = {"b1": decays, "b2": st.floats(0.5, 0.9999), "nesterov": st.booleans()}

ARGUMENTS = {
    "sgd": st.one_of(
        st.fixed_dictionaries({"learning_rate": rates}),
        st.fixed_dictionaries(
            {"learning_rate": rates, "momentum": decays, "nesterov": st.booleans(), "accumulator_dtype": dtypes}
        ),
    ),
    "adam": st.fixed_dictionaries(
        {"learning_rate": rates, "eps": small, "eps_root": st.sampled_from([0.0, 1e-8]), "mu_dtype": dtypes, **moments}
    ),
    "adamw": st.fixed_dictionaries(
        {
            "learning_rate": rates,
            "weight_decay": st.one_of(st.sampled_from([0.0, 0.1]), st.just(lambda step: 0.1 / (step + 1))),
            "mask": st.sampled_from([None, lambda t: jax.tree.map(lambda p: p.ndim > 1, t)]),
            "eps": small,
            "eps_root": st.sampled_from([0.0, 1e-8]),
            "mu_dtype": dtypes,
            **moments,
        }
    ),
    "adagrad": st.fixed_dictionaries(
        {"learning_rate": rates, "initial_accumulator_value": st.sampled_from([0.0, 0.1, 1.0]), "eps": small}
    ),
    "rmsprop": st.one_of(
        st.fixed_dictionaries(
            {
                "learning_rate": rates,
                "decay": decays,
                "eps": small,
                "initial_scale": st.sampled_from([0.0, 1.0]),
                "eps_in_sqrt": st.booleans(),
                "bias_correction": st.booleans(),
            },
            optional={"momentum": decays},
        ),
        st.fixed_dictionaries(  # eps in the root, where it outweighs a variance that rounding made negative
            {
                "learning_rate": rates,
                "decay": decays,
                "eps": st.sampled_from([1e-4, 1e-2]),
                "centered": st.just(True),
                "momentum": decays,
                "nesterov": st.booleans(),
            }
        ),
    ),
    "lion": st.fixed_dictionaries(
        {
            "learning_rate": rates,
            "b1": decays,
            "b2": decays,
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "mu_dtype": dtypes,
        }
    ),
    "adan": st.fixed_dictionaries(
        {
            "learning_rate": rates,
            "b1": decays,
            "b2": st.just(0.5),  # optax has 1 - b2 where the paper and its authors' code have b2
            "b3": st.floats(0.5, 0.9999),
            "eps": small,
            "eps_root": st.sampled_from([0.0, 1e-8]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "mask": st.sampled_from([None, lambda t: jax.tree.map(lambda p: p.ndim > 1, t)]),
        }
    ),
    "adabelief": st.fixed_dictionaries(
        {"learning_rate": rates, "eps": small, "eps_root": st.sampled_from([1e-16, 1e-8]), **moments}
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])  # a failure needs no minutes of shrinking
@given(data=st.data(), loss=st.sampled_from(sorted(LOSSES)))
def test_bit_for_bit(name, data, loss):
    arguments, params = data.draw(ARGUMENTS[name]), tree()
    if arguments.get("accumulator_dtype") or arguments.get("mu_dtype"):  # a real momentum of a complex leaf
        params["complex"] = jnp.abs(params["complex"])
    assume(assert_same_bits(name, arguments, LOSSES[loss], params))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adam", {"eps": 0.0, "eps_root": 1e-8}),
        ("rmsprop", {"centered": True, "momentum": 0.9, "nesterov": True}),
        ("rmsprop", {"centered": True, "bias_correction": True, "eps": 1e-3}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_bit_for_bit_in_float64(x64, name, arguments):
    params = {"wide": jnp.linspace(-2, 2, 21, dtype=jnp.float64), "single": jnp.linspace(-1, 1, 5, dtype=jnp.float32)}

    def loss(params):
        return sum(jnp.sum((leaf.astype(jnp.float64) - 0.7) ** 4) for leaf in params.values())

    assert assert_same_bits(name, {"learning_rate": 0.01, **arguments}, loss, params)


def test_centered_rmsprop_survives_where_optax_is_nan():
    """A constant gradient has variance 0; rounding makes it negative, and its root NaN."""
    arguments = {"learning_rate": 0.01, "centered": True, "eps_in_sqrt": False, "bias_correction": True, "eps": 1e-3}

    def loss(params):
        return jnp.sum(params * jnp.linspace(0.1, 2.0, 7))

    with jax.numpy_dtype_promotion("standard"):
        ours = train(optimizers.rmsprop(**arguments), loss, jnp.zeros(7), 50)
        theirs = train(optax.rmsprop(**arguments), loss, jnp.zeros(7), 50)
    assert bool(jnp.any(jnp.isnan(theirs)))
    assert bool(jnp.all(jnp.isfinite(ours)))


def clipped(library, max_norm):
    return library.chain(library.clip_by_global_norm(max_norm), library.sgd(0.05))


@pytest.mark.parametrize("max_norm", [0.1, 5.0])
def test_clip_by_global_norm(max_norm):
    params = tree()
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (train(clipped(library, max_norm), quadratic, params) for library in (optimizers, optax))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_max_ulp(np.asarray(a).view(np.float32), np.asarray(b).view(np.float32), maxulp=2)


def test_clip_by_value_is_clip():
    grads = {"a": jnp.linspace(-3.0, 3.0, 9), "half": jnp.linspace(-3, 3, 9, dtype=jnp.bfloat16)}
    ours, _ = optimizers.clip_by_value(0.7).update(grads, optimizers.EmptyState())
    theirs, _ = optax.clip(0.7).update(grads, optax.EmptyState())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=2**-8 if b.dtype == jnp.bfloat16 else 0)


def test_lookahead_is_optax_lookahead_up_to_rounding():
    params = {"w": jnp.linspace(-1.0, 1.0, 7)}

    def loss(params):
        return jnp.sum((params["w"] - 0.5) ** 2)

    ours, theirs = optimizers.lookahead(optimizers.sgd(0.05), 5, 0.5), optax.lookahead(optax.sgd(0.05), 5, 0.5)
    pair = optax.LookaheadParams.init_synced(params)
    state, their_state = ours.init(params), theirs.init(pair)
    for _ in range(23):
        updates, state = ours.update(jax.grad(loss)(params), state, params)
        params = optimizers.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            updates, their_state = theirs.update(jax.grad(loss)(pair.fast), their_state, pair)
        pair = optax.apply_updates(pair, updates)
    np.testing.assert_allclose(params["w"], pair.fast["w"], rtol=2e-6)
    np.testing.assert_allclose(state.slow["w"], pair.slow["w"], rtol=2e-6)


SCHEDULES = [
    ("constant_schedule", (0.1,)),
    ("exponential_decay", (0.1, 7, 0.5)),
    ("exponential_decay", (0.1, 7, 0.5, 3, True, 0.02)),
    ("exponential_decay", (0.1, 7, 1.5, 0, False, 0.3)),
    ("warmup_cosine_decay_schedule", (0.0, 0.1, 5, 20)),
    ("warmup_cosine_decay_schedule", (0.01, 0.1, 0, 20, 0.001, 2.0)),
    ("piecewise_constant_schedule", (0.1,)),
    ("piecewise_constant_schedule", (0.1, {3: 0.5, 9: 0.1})),
]


@pytest.mark.parametrize(("name", "arguments"), SCHEDULES)
def test_schedules(name, arguments):
    steps = jnp.arange(30, dtype=jnp.int32)
    ours = jax.jit(jax.vmap(getattr(optimizers, name)(*arguments)))(steps) if name != "constant_schedule" else 0.1
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(jax.vmap(lambda step: jnp.asarray(getattr(optax, name)(*arguments)(step))))(steps)
    np.testing.assert_array_max_ulp(np.broadcast_to(np.float32(ours), 30), np.asarray(theirs, np.float32), maxulp=2)

"""Nonsense is refused where it enters, with the class and the telling part of the message."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxnet import optimizers
from jaxnet.errors import ConfigError, DTypeError, ShapeError

o = optimizers
RATE = [-0.1, float("nan"), float("inf"), None, "0.1", True, jnp.ones(3), jnp.array(-1.0), 1j]

HYPERPARAMETERS = [
    *[(lambda rate=rate: o.adam(rate), "adam: learning_rate must be") for rate in RATE],
    *[(lambda rate=rate: o.sgd(rate), "pass a float, a scalar array, or a schedule") for rate in RATE],
    (lambda: o.adagrad(-1.0), "adagrad: learning_rate"),
    (lambda: o.rmsprop(None), "rmsprop: learning_rate"),
    (lambda: o.adabelief("x"), "adabelief: learning_rate"),
    (lambda: o.angulargrad(-1.0), "angulargrad: learning_rate"),
    (lambda: o.adam(jnp.ones(3)), "one optimizer per group"),
    (lambda: o.adam(0.1, b1=1.0), r"b1 must be a finite number in \[0, 1\), got 1.0"),
    (lambda: o.adam(0.1, b2=1), r"b2 must be a finite number in \[0, 1\), got 1"),
    (lambda: o.adam(0.1, b2=jnp.bfloat16(0.999)), "b2 must be"),  # rounds to 1
    (lambda: o.adam(0.1, b1=-1.0), "b1 must be"),
    (lambda: o.adam(0.1, eps=0.0), "eps and eps_root are both 0"),
    (lambda: o.adabelief(0.1, eps=0, eps_root=0), "eps and eps_root are both 0"),
    (lambda: o.adam(0.1, mu_dtype=jnp.int32), "mu_dtype must be a floating-point dtype"),
    (lambda: o.adam(0.1, mu_dtype="nonsense"), "mu_dtype must be a floating-point dtype"),
    (lambda: o.adam(0.1, nesterov=1), "nesterov must be True or False"),
    (lambda: o.adamw(0.1, weight_decay=-1e-4), "weight_decay must be"),
    (lambda: o.adamw(0.1, mask={"w": 3}), "mask must be a tree of bools"),
    (lambda: o.add_decayed_weights(-1.0), "weight_decay must be"),
    (lambda: o.sgd(0.1, momentum=1.0), "momentum must be"),
    (lambda: o.sgd(0.1, nesterov=True), "nesterov=True without momentum"),
    (lambda: o.rmsprop(0.1, nesterov=True), "nesterov=True without momentum"),
    (lambda: o.rmsprop(0.1, eps=0.0), r"eps must be a finite number in \(0, inf\]"),
    (lambda: o.rmsprop(0.1, decay=1.0), "decay must be"),
    (lambda: o.rmsprop(0.1, initial_scale=lambda step: 1.0), "initial_scale takes no schedule"),
    (lambda: o.adagrad(0.1, initial_accumulator_value=-0.1), "initial_accumulator_value must be"),
    (lambda: o.lookahead(o.sgd(0.1), 0, 0.5), "sync_period must be an integer >= 1"),
    (lambda: o.lookahead(o.sgd(0.1), 5, 1.5), "slow_step_size must be"),
    (lambda: o.lookahead(o.sgd, 5, 0.5), r"pair with init and update, got .*call it first: sgd\(\.\.\.\)"),
    (lambda: o.angulargrad(0.1, variant="sin"), "variant must be one of 'cos', 'tan'"),
    (lambda: o.angulargrad(0.1, eps=0.0), "both 0"),
    (lambda: o.clip_by_global_norm(0.0), "max_norm must be"),
    (lambda: o.clip_by_value(-1.0), "max_delta must be"),
    (lambda: o.chain(), "pass at least one optimizer"),
    (lambda: o.chain([o.sgd(0.1)]), "one by one"),
    (lambda: o.chain(o.clip_by_value(1.0), o.adam), r"chain\[1\]: an optimizer is a pair"),
    (lambda: o.skip_nonfinite(0.1), "pair with init and update"),
    (lambda: o.flat(None), "pair with init and update"),
    (lambda: o.flat(optax.masked(optax.sgd(0.1), True)).init(jnp.ones(2)), "masks or partitions"),
    (lambda: o.constant_schedule("x"), "value must be"),
    (lambda: o.exponential_decay(0.1, 0, 0.5), "transition_steps must be"),
    (lambda: o.exponential_decay(0.1, 10, 0.0), "decay_rate must be"),
    (lambda: o.warmup_cosine_decay_schedule(0.0, 0.1, 10, 10), "decay_steps=20"),
    (lambda: o.piecewise_constant_schedule(0.1, {10: -1.0}), "the scale at step 10 must be"),
    (lambda: o.piecewise_constant_schedule(0.1, [(10, 0.1)]), "must be a dict"),
]


@pytest.mark.parametrize(("make", "message"), HYPERPARAMETERS)
def test_hyperparameters(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert isinstance(error.value, ValueError)


def test_traced_hyperparameters_pass_and_traced_vectors_do_not():
    updates = jax.jit(lambda rate: o.adam(rate).update(jnp.ones(2), o.adam(rate).init(jnp.ones(2)))[0])
    assert updates(0.1).shape == (2,)
    with pytest.raises(ConfigError, match=r"got an array of shape \(3,\)"):
        updates(jnp.ones(3))


def test_a_schedule_must_return_one_number():
    for schedule, message in ((lambda step: jnp.ones(2), r"shape \(2,\)"), (lambda step: None, "got None")):
        optimizer = o.adam(schedule)
        with pytest.raises(ConfigError, match=message):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(1), "deep": {"scale": jnp.ones(3)}}

GRADIENTS = [
    (PARAMS | {"b": jnp.ones(5)}, ShapeError, r"of another shape: \['b'\]: float32\[5\] for float32\[1\]"),
    (PARAMS | {"w": jnp.ones(3)}, ShapeError, r"\['w'\]: float32\[3\] for float32\[4, 3\]"),
    ({"w": PARAMS["w"], "deep": PARAMS["deep"]}, ShapeError, r"missing: \['b'\] float32\[1\]"),
    (PARAMS | {"b": None}, ShapeError, r"missing: \['b'\]"),
    (PARAMS | {"extra": jnp.ones(2)}, ShapeError, r"unexpected: \['extra'\]"),
    (
        PARAMS | {"deep": {"offset": jnp.ones(3)}},
        ShapeError,
        r"missing: \['deep'\]\['scale'\].*unexpected: \['deep'\]\['o",
    ),
    (PARAMS | {"b": jnp.ones(1, jnp.bfloat16)}, DTypeError, r"of another dtype: \['b'\]: bfloat16 for float32; cast"),
    (PARAMS | {"b": jnp.ones(1, jnp.int32)}, DTypeError, "int32 for float32"),
    (PARAMS | {"b": "text"}, ShapeError, "a str"),
]


@pytest.mark.parametrize(("grads", "error", "message"), GRADIENTS)
def test_gradients(optimizer, grads, error, message):
    state = optimizer.init(PARAMS)
    with pytest.raises(error, match=message):
        optimizer.update(grads, state, PARAMS)


@pytest.mark.parametrize(("grads", "message"), [(case[0], case[2]) for case in GRADIENTS[:4]])
def test_gradients_are_checked_against_the_state_where_no_parameters_are_given(grads, message):
    for optimizer in (o.adam(0.1), o.sgd(0.1, momentum=0.9), o.rmsprop(0.1), o.adagrad(0.1)):
        with pytest.raises(ShapeError, match="the gradients do not fit the optimizer's state.*" + message):
            optimizer.update(grads, optimizer.init(PARAMS))


def test_checked_while_tracing():
    optimizer = o.adam(0.1)
    with pytest.raises(ShapeError, match="another shape"):
        jax.eval_shape(optimizer.update, PARAMS | {"b": jnp.ones(5)}, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones(2), "step": jnp.array(3)}, r"\['step'\]: int32 of shape \(\)"),
        ({"w": "kernel"}, r"\['w'\]: str 'kernel'"),
        ([jnp.ones(2), jax.nn.relu], r"\[1\]"),
        ({"w": jnp.ones(2, bool)}, "bool"),
    ],
)
def test_parameters(optimizer, params, message):
    with pytest.raises(DTypeError, match=message):
        optimizer.init(params)


def test_states():
    params = jnp.ones(2)
    adam, sgd = o.adam(0.1), o.sgd(0.1)
    for state, came in ((sgd.init(params), "SgdState"), (None, "None"), (optax.adam(0.1).init(params), "tuple")):
        with pytest.raises(ConfigError, match=f"this state is not an AdamState, it is .*{came}"):
            adam.update(params, state)
    with pytest.raises(ConfigError, match="not a SgdState"):
        sgd.update(params, adam.init(params))
    with pytest.raises(ConfigError, match="holds no momentum"):
        o.sgd(0.1, momentum=0.9).update(params, sgd.init(params))
    with pytest.raises(ConfigError, match="not a tuple of 2 states, it is a AdamState"):
        o.chain(sgd, adam).update(params, adam.init(params))
    with pytest.raises(ConfigError, match="not an EmptyState"):
        o.clip_by_value(1.0).update(params, adam.init(params))
    with pytest.raises(ShapeError, match="do not fit the optimizer's state"):
        adam.update(params, adam.init(jnp.ones(3)), params)


def test_missing_parameters():
    for optimizer in (o.adamw(0.1), o.add_decayed_weights(0.1), o.lookahead(o.sgd(0.1), 2, 0.5)):
        with pytest.raises(ConfigError, match=r"needs the parameters; call update\(gradients, state, params\)"):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_masks_that_do_not_fit():
    for mask in ({"w": True}, lambda tree: {"nothing": True}):
        optimizer = o.adamw(0.1, mask=mask)
        with pytest.raises(ConfigError, match="a tree of bools must be a prefix of the tree"):
            optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_apply_updates():
    with pytest.raises(ShapeError, match=r"the updates do not fit the parameters; of another shape: \['b'\]"):
        o.apply_updates(PARAMS, PARAMS | {"b": jnp.ones(5)})


def test_complex():
    for optimizer in (o.sgd(0.1, 0.9, accumulator_dtype=jnp.float32), o.adam(0.1, mu_dtype=jnp.bfloat16)):
        with pytest.raises(DTypeError, match="lose its imaginary part"):
            optimizer.init(jnp.ones(2, jnp.complex64))
    with pytest.raises(DTypeError, match="complex"):
        o.angulargrad(0.1).init(jnp.ones(2, jnp.complex64))
    with pytest.raises(DTypeError, match="complex"):
        o.clip_by_value(1.0).update(jnp.ones(2, jnp.complex64), o.EmptyState())

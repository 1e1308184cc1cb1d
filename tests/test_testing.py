"""`check_layer` passes good layers and catches each planted fault by name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, testing

X = jax.random.normal(jax.random.key(7), (3, 6, 4))


def nothing(key, x):
    return (), ()


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        pytest.param(layers.conv(5, 3, padding="same", groups=1), {}, id="conv"),
        pytest.param(layers.chain(layers.dense(3), jnp.tanh, layers.dropout(0.3)), {"needs_key": True}, id="chain"),
        pytest.param(layers.batch_norm(), {"gradients": False}, id="batch_norm"),
        pytest.param(
            layers.mixed_precision(layers.dense(3)), {"gradients": False, "rtol": 1e-2, "atol": 1e-2}, id="mixed"
        ),
    ],
)
def test_good_layers_pass(layer, options):
    assert testing.check_layer(layer, X, **options) is None


def faulty(fault):
    counter = itertools.count(1)

    def apply(params, state, x, *, train, key=None):
        if fault == "one output":
            return x
        if fault == "state dtype":
            return x, (jnp.zeros((), jnp.int32),)
        if fault == "impure":
            return x * float(next(counter)), state
        if fault == "batch in evaluation":
            return x - jnp.mean(x, 0, keepdims=True), state
        if fault == "weak type":
            return jnp.zeros(()) + 1.0 * 2 if not train else jnp.broadcast_to(jnp.asarray(1.0), x.shape), state
        if fault == "dtype":
            return x.astype(jnp.bfloat16), state
        if fault == "derivative" or (fault == "derivative in training" and train):
            return wrong_square(x), state
        if fault == "second derivative":
            return square_of_wrong_curvature(x), state
        if fault == "derivative in training":
            return x * x, state
        if fault == "key":
            return x + jax.random.normal(jax.random.key(next(counter)), x.shape, x.dtype), state
        raise AssertionError(fault)

    return layers.Layer(nothing, apply, "faulty")


COMPLEX = jax.lax.complex(X, X[::-1])


@pytest.mark.parametrize("fault", ["none", "batch in evaluation", "derivative"])
def test_complex_numbers_are_compared_whole(fault):
    """The fault is in the imaginary part alone."""

    def f(params, x):
        imaginary = {"none": jnp.imag, "batch in evaluation": lambda x: x.imag - jnp.mean(x.imag)}
        part = imaginary.get(fault, lambda x: wrong_square(x.imag))(x)
        return jax.lax.complex(x.real, part) * params["factor"][None, None]

    def init(key, x):
        return {"factor": jnp.full((4,), 1 + 2j, jnp.complex64)}

    layer = layers.stateless(init, f)
    if fault == "none":
        testing.check_layer(layer, COMPLEX)
        return
    message = {"batch in evaluation": "examples are independent", "derivative": "derivatives in evaluation disagree"}
    with pytest.raises(AssertionError, match=message[fault]):
        testing.check_layer(layer, COMPLEX)


@jax.custom_jvp
def wrong_square(x):
    return x * x


@wrong_square.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return x * x, 3 * x * t


@jax.custom_jvp
def square_of_wrong_curvature(x):
    return x * x


@square_of_wrong_curvature.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return x * x, 2 * jax.lax.stop_gradient(x) * t


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one output", r"apply must return \(y, state\)"),
        ("state dtype", "keeps the state's structure"),
        ("impure", "is a function of its arguments"),
        ("batch in evaluation", "examples are independent"),
        ("dtype", "evaluation turns float32 into bfloat16"),
        ("weak type", "weakly typed"),
        ("derivative", "derivatives in evaluation disagree"),
        ("derivative in training", "derivatives in training disagree"),
        ("second derivative", "(?s)derivatives in evaluation disagree.*second, forward"),
        ("key", "is a function of its arguments"),
    ],
)
def test_planted_faults_are_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_layer(faulty(fault), X)


@pytest.mark.usefixtures("x64")
def test_the_way_back_is_compared_with_the_way_forth():
    """A wrong transpose under a right derivative forward."""

    def f(moving):
        return [jax.custom_derivatives.linear_call(lambda _, x: 1.0 * x, lambda _, y: 2.0 * y, (), moving[0])]

    with pytest.raises(AssertionError, match="first, in reverse"):
        testing._agree_with_differences(f, [np.ones(3)], [np.ones(3)])


def test_init_that_reads_values_is_caught():
    def init(key, x):
        return {"scale": jnp.mean(x)}, ()

    layer = layers.Layer(init, lambda p, s, x, *, train, key=None: (x * p["scale"], s), "peeking")
    with pytest.raises((AssertionError, TypeError)):
        testing.check_layer(layer, X)


def test_one_example_is_not_enough():
    with pytest.raises(AssertionError, match="at least two examples"):
        testing.check_layer(layers.dense(2), X[:1])


def test_a_missing_key_and_a_state_that_is_no_array_are_named():
    with pytest.raises(AssertionError, match=r"dropout: training fails without a key, .*\(layer, x, needs_key=True\)"):
        testing.check_layer(layers.dropout(0.5), X)
    halves = layers.layer("halves", lambda key, x: ((), jnp.zeros(())), lambda p, s, x, *, train, key: (x, 0.5))
    with pytest.raises(AssertionError, match=r"keeps the state.*is a float, no array; make it one, jnp.asarray\(0.5"):
        testing.check_layer(halves, X)

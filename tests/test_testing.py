"""`check_layer` passes good layers and catches each planted fault by name."""

import itertools

import jax
import jax.numpy as jnp
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
        if fault == "derivative":
            return wrong_square(x), state
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
        ("key", "is a function of its arguments"),
    ],
)
def test_planted_faults_are_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_layer(faulty(fault), X)


def test_init_that_reads_values_is_caught():
    def init(key, x):
        return {"scale": jnp.mean(x)}, ()

    layer = layers.Layer(init, lambda p, s, x, *, train, key=None: (x * p["scale"], s), "peeking")
    with pytest.raises((AssertionError, TypeError)):
        testing.check_layer(layer, X)


def test_one_example_is_not_enough():
    with pytest.raises(AssertionError, match="at least two examples"):
        testing.check_layer(layers.dense(2), X[:1])

"""Layers of a user's that break the protocol: what was returned, what was wanted, and how to mend it."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from jaxnet.layers.next_state import check_next

X = np.ones((2, 3), np.float32)


def draws(key, x):
    return {"scale": jnp.ones((), x.dtype)}, ()


def draws_params_alone(key, x):
    return {"scale": jnp.ones((), x.dtype)}


def scales(params, state, x, *, train, key=None):
    return params["scale"] * x, state


def scales_alone(params, state, x, *, train, key=None):
    return params["scale"] * x


MAKE = {"layer": lambda init, apply: layers.layer("own", init, apply), "pair": layers.Layer}
INIT = (
    r"init must return two things, \(params, state\), got a dict of \['scale'\] float32 \(\); return params, \(\), or"
)
APPLY = r"apply must return two things, \(y, state\), got float32 \(2, 3\); return y, state, or .*stateless"


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(
    ("init", "apply", "said"), [(draws_params_alone, scales, INIT), (draws, scales_alone, APPLY)], ids=["init", "apply"]
)
def test_one_thing_for_two(make, init, apply, said):
    """Alone as well as in a container; an array of two rows could be unpacked without a word."""
    own = make(init, apply)
    with pytest.raises(ConfigError, match=rf"chain\[1\].*{said}"):
        layers.chain(layers.dense(3), own, jnp.tanh).init(0, X)
    step = training.make_step(own, losses.mse, optimizers.sgd(0.1))
    with pytest.raises(ConfigError, match=said):
        step(training.init(own, optimizers.sgd(0.1), X, 0), (X, X))
    doors = [
        lambda: training.make_evaluate(own, losses.mse)(*draws(0, X), (X, X)),
        lambda: training.predict(own, *draws(0, X), X),
        lambda: training.export(own, *draws(0, X), X),
    ]
    for door in doors if init is draws else ():
        with pytest.raises(ConfigError, match=said):
            door()
    with pytest.raises(ConfigError, match=said):
        training.init_gan(own, own, optimizers.sgd(0.1), optimizers.sgd(0.1), X, 0)


def gan_step(generator, discriminator):
    """A step of two players, traced."""
    rule = optimizers.sgd(0.1)
    step = training.make_gan_step(
        generator, discriminator, lambda *seen: seen[0].mean(), lambda real, made: real.mean(), rule, rule
    )
    return jax.eval_shape(step, training.init_gan(generator, discriminator, rule, rule, X, 0), (X, X))


def test_one_thing_for_two_of_a_generator_that_does_so_in_training_alone():
    own = layers.Layer(
        draws, lambda p, s, x, *, train, key=None: scales_alone(p, s, x, train=train) if train else (x, s)
    )
    with pytest.raises(ConfigError, match=APPLY):
        gan_step(own, layers.dense(1))


def test_a_parameter_that_is_no_array():
    own = layers.stateless(lambda key, x: {"scale": 1.0}, lambda params, x: params["scale"] * x)
    counting = layers.layer("own", lambda key, x: ((), {"seen": 0}), lambda params, state, x, train, key: (x, state))
    with pytest.raises(DTypeError, match=r"init gives int at state\['seen'\], no array; make it one, jnp.asarray\(0"):
        training.init(counting, optimizers.sgd(0.1), X, 0)
    with pytest.raises(
        DTypeError, match=r"init gives float at params\[0\]\['scale'\], no array; .*asarray\(1.0, x.dty"
    ):
        training.init(layers.chain(own), optimizers.sgd(0.1), X, 0)
    for one in (np.ones((), np.float32), np.float32(1)):
        scale = layers.stateless(lambda key, x, one=one: {"scale": one}, lambda params, x: params["scale"] * x)
        assert training.init(scale, optimizers.sgd(0.1), X, 0).params["scale"] == 1


@pytest.mark.parametrize("key", [None, "a", 1.5])
def test_no_key(key):
    drawn = layers.layer("own", lambda key, x: (jax.random.normal(key, x.shape), ()), scales)
    with pytest.raises(ConfigError, match=r"own: key must be a JAX PRNG key, got .*; pass jax.random.key\(seed\)"):
        drawn.init(key, X)
    assert drawn.init(0, X)[0].shape == (2, 3)


def test_functions_of_other_arguments():
    with pytest.raises(
        ConfigError, match=r"f must take \(params, x\), got a function of x alone; .* without stateless"
    ):
        layers.stateless(None, jnp.tanh)
    with pytest.raises(ConfigError, match=r"f must take \(params, x\), got a function of \(params\)"):
        layers.stateless(draws, lambda params: params)
    with pytest.raises(ConfigError, match=r"init must take \(key, x\), got a function of \(key\)"):
        layers.stateless(lambda key: key, lambda params, x: x)
    with pytest.raises(
        ConfigError, match=r"apply must take \(params, state, x, \*, train, key\), got a function of \(p"
    ):
        layers.layer("own", draws, lambda params, state, x, train: (x, state))
    assert layers.layer("own", draws, lambda params, state, x, **options: (x, state)).name == "own"


def test_an_entry_too_many_or_a_list():
    for returned, said in (
        (lambda x, s: [x, s], r"got a list, no tuple, of 2 \(float32 \(2, 3\); \(\)\); return y, state"),
        (lambda x, s: (x, s, 3), r"got a tuple of 3 \(float32 \(2, 3\); \(\); int\)"),
    ):
        own = layers.layer("own", None, lambda params, state, x, train, key, f=returned: f(x, state))
        with pytest.raises(ConfigError, match=rf"^own: apply must return two things, \(y, state\), {said}"):
            own.apply((), (), X, train=False)


def counting(then):
    """Counts in its state, which training sets to ``then(state)``."""
    start = lambda key, x: ((), {"n": jnp.zeros((), jnp.int32)})  # noqa: E731
    return layers.layer("counting", start, lambda params, state, x, train, key: (x, then(state) if train else state))


def traced_step(net):
    step = training.make_step(net, losses.mse, optimizers.sgd(0.1))
    return jax.eval_shape(step, training.init(net, optimizers.sgd(0.1), X, 0), (X, X))


OTHER_STATES = {
    "dtype": (lambda s: {"n": s["n"].astype(jnp.float32)}, r"\['n'\] float32 \(\), wanted int32 \(\); .* next step"),
    "shape": (lambda s: {"n": jnp.zeros(2, jnp.int32)}, r"\['n'\] int32 \(2,\), wanted int32 \(\)"),
    "more": (lambda s: {**s, "m": s["n"]}, r"\['m'\] int32 \(\) is new"),
    "less": (lambda s: (), r"\['n'\] is missing"),
    "none": (lambda s: None, r"\['n'\] is missing"),
    "no array": (lambda s: {"n": "one"}, r"\['n'\] str, wanted int32 \(\)"),
    "list": (lambda s: [s["n"]], r"\['n'\] is missing, \[0\] int32 \(\) is new"),
}


@pytest.mark.parametrize(("then", "said"), OTHER_STATES.values(), ids=OTHER_STATES)
def test_a_state_that_is_not_as_init_made_it(then, said):
    """By the path, where `jax.lax.cond` and `scan` would name no layer."""
    net = layers.chain(jnp.tanh, layers.residual(layers.mixed_precision(layers.repeat(counting(then), 2))))
    alone, said = counting(then), f"counting: apply returned a state that is not as init made it: {said}"
    with pytest.raises(ConfigError, match=f"^{said}"):
        traced_step(alone)
    if then is OTHER_STATES["dtype"][0]:
        deep = said.replace(r"\(\)", r"\(2,\)")
        with pytest.raises(ConfigError, match=rf"^chain\[1\]/residual\.branch/mixed_precision/repeat: {deep}"):
            traced_step(net)
        with pytest.raises(ConfigError, match=rf"^chain\[1\]: {said}"):
            training.fit(
                layers.chain(jnp.tanh, alone), losses.mse, optimizers.sgd(0.1), (X, X), epochs=1, batch_size=1,
                progress=False,
            )  # fmt: skip
        for players in ((alone, layers.dense(1)), (layers.dense(1), alone)):  # the generator, the discriminator
            with pytest.raises(ConfigError, match=said):
                gan_step(*players)


def differs(new, state):
    """What is said of a state that differs."""
    with pytest.raises(ConfigError) as raised:
        check_next(layers.dense(1), None, new, state)
    return str(raised.value).partition("init made it: ")[2].partition("; it goes")[0]


def test_how_many_leaves_differ_and_which_container_came():
    ones = {name: jnp.ones(()) for name in "abcde"}
    assert differs({}, ones) == "['a'] is missing, ['b'] is missing, ['c'] is missing, ['d'] is missing and 1 more"
    del ones["e"]
    assert differs({}, ones) == "['a'] is missing, ['b'] is missing, ['c'] is missing, ['d'] is missing"
    assert differs([jnp.ones(())], (jnp.ones(()),)) == "a list, wanted a tuple of the same"


def test_states_that_are_as_init_made_them():
    """A weak type is no difference, keys are arrays, a Python number is one of 32 bits."""
    traced_step(counting(lambda s: {"n": 1}))
    keys = layers.layer(
        "keys", lambda key, x: ((), jax.random.key(0)), lambda p, s, x, train, key: (x, jax.random.split(s)[0])
    )
    frozen = layers.frozen(layers.dense(3), {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)})
    traced_step(layers.chain(keys, frozen, layers.batch_norm(), counting(lambda s: dict(s))))


def test_state_and_output_exchanged():
    own = layers.layer(
        "own", lambda key, x: ((), {"n": jnp.zeros(())}), lambda params, state, x, train, key: (state, x)
    )
    said = r"own: apply must return \(y, state\), and returned .* and float32 \(2, 3\), where .* return y, state"
    with pytest.raises(ConfigError, match=rf"^chain\[1\]: {said}"):
        layers.chain(jnp.tanh, own, layers.dense(3)).init(0, X)
    with pytest.raises(ConfigError, match=f"^{said}"):
        traced_step(own)
    before = layers.layer("before", lambda key, x: ((), jnp.zeros(x.shape)), lambda p, state, x, train, key: (state, x))
    traced_step(layers.chain(before, layers.dense(3)))  # the input before, which is like the output


APPLY_TAKES = r"^chain: apply takes \(params, state, x, \*, train, key=None\), "
CALLS = {
    "train": (lambda net, p, s: net.apply(p, s, X), rf"{APPLY_TAKES}and train did not come; call y, state = net.app"),
    "state": (lambda net, p, s: net.apply(p, X, train=True), f"{APPLY_TAKES}and 1 of params, state and x did not"),
    "by place": (lambda net, p, s: net.apply(p, s, X, True), f"{APPLY_TAKES}got 4 arguments without a name"),
    "other": (lambda net, p, s: net.apply(p, s, X, training=True), f"{APPLY_TAKES}got 'training', which it does not"),
    "twice": (lambda net, p, s: net.apply(p, s, X, state=s, train=True), f"{APPLY_TAKES}got state twice"),
    "key": (lambda net, p, s: net.init(X), r"^chain: init takes \(key, x\), and key did not come; call net.init\(jax"),
    "x": (lambda net, p, s: net.init(jax.random.key(0)), "^chain: init takes .*, and x did not come"),
    "pretrained": (
        lambda net, p, s: training.pretrained(net, p, s).init(*[X]),
        "^chain: init takes .* key did not come",
    ),
    "branch": (lambda net, p, s: layers.residual(net).init(*[X]), "^residual: init takes .* key did not come"),
}


@pytest.mark.parametrize(("call", "said"), CALLS.values(), ids=CALLS)
def test_what_is_missing_in_a_call(call, said):
    net = layers.chain(jnp.tanh)
    with pytest.raises(ConfigError, match=said):
        call(net, *net.init(0, X))
    assert list(inspect.signature(net.apply).parameters) == ["params", "state", "x", "train", "key"]


def test_a_wrong_call_inside_a_layer_is_the_users_own():
    own = layers.layer("own", None, lambda params, state, x, train, key: (scales(*[params], train=train), state))
    with pytest.raises(TypeError, match=r"scales\(\) missing 2 required"):
        own.apply((), (), X, train=False)


def test_a_random_number_without_a_key():
    noise = layers.layer(
        "noise", None, lambda p, s, x, train, key: (x + jax.random.normal(key, x.shape) if train else x, s)
    )
    with pytest.raises(ConfigError, match=r"^chain\[1\]: noise: training draws random numbers and no key came; call "):
        layers.chain(jnp.tanh, noise).apply(((), ()), ((), ()), X, train=True)
    always = layers.layer("noise", None, lambda p, s, x, train, key: (x + jax.random.normal(key, x.shape), s))
    with pytest.raises(ConfigError, match=r"^chain\[0\]: noise: evaluation draws random numbers and no key came"):
        layers.chain(always).init(0, X)
    other = layers.layer("noise", None, lambda p, s, x, train, key: (x + jax.random.normal(None, x.shape), s))
    with pytest.raises(TypeError, match="PRNG key"):  # a key came, and the layer draws with something else
        other.apply((), (), X, train=True, key=jax.random.key(0))


PEEKING = {"function": lambda x: jnp.mean(x), "method": lambda x: x.mean(), "arithmetic": lambda x: x + 1}


@pytest.mark.parametrize("peek", PEEKING.values(), ids=PEEKING)
def test_an_init_that_reads_values(peek):
    own = layers.stateless(lambda key, x: {"scale": peek(x)}, lambda params, x: x, name="own")
    with pytest.raises(ConfigError, match=r"^own: init reads the values of x, .*ShapeDtypeStruct; take x.shape and "):
        own.init(0, X)


def test_params_that_are_no_arrays():
    act = layers.layer("act", lambda key, x: ({"act": "relu"}, ()), scales)
    with pytest.raises(DTypeError, match=r"^act: init gives str at params\['act'\], no array; what is no number"):
        act.init(0, X)
    pair = layers.stateless(draws, lambda params, x: params["scale"] * x, name="pair")
    with pytest.raises(ConfigError, match=r"^chain\[0\]: pair: the params are \(params, \(\)\), .*params alone"):
        layers.chain(pair).init(0, X)
    got = layers.stateless(draws, lambda params, x: params.get("scale") * x, name="got")
    with pytest.raises(ConfigError, match=r"^chain\[0\]: got: the params are \(params, \(\)\)"):
        layers.chain(got).init(0, X)
    whole = layers.chain(layers.dense(2), jnp.tanh)  # whose params are a pair with () by right
    layers.chain(
        layers.stateless(lambda k, x: whole.init(k, x)[0], lambda p, x: whole.apply(p, ((), ()), x, train=True)[0])
    ).init(0, X)
    for norm, state in ((layers.layer_norm(), ()), (layers.batch_norm(), {"mean": 0.0, "variance": 1.0})):
        with pytest.raises(ShapeError, match=rf"{norm.name}: an array of the layer has shape \(\), and 3 channels "):
            norm.apply({"scale": 1.0, "offset": 0.0}, state, X, train=False)
    with pytest.raises(ShapeError, match=r"dense: the kernel must have 2 axes \(N_in, N_out\), got shape \(\)"):
        layers.dense(3).apply({"kernel": 1.0, "bias": 0.0}, (), X, train=False)


class Bare:
    pass


class Called:
    def __call__(self, x):
        return x


class OfX:
    def __init__(self, x):
        pass


PARTS = {
    "bare class": (
        Bare,
        r"a part must .*, got Bare\(\); it is a class; make a layer of your own by layers.layer\(name, init, apply",
    ),
    "class of x": (OfX, r"OfX: the output is OfX, no array; give an array, or a pytree"),
    "two arguments": (lambda a, b: a, r"a part must be .*, got function\(a, b\); make it a layer by layers.layer"),
    "a word": (lambda x: "word", "function: the output is str, no array"),
}


@pytest.mark.parametrize(("part", "said"), PARTS.values(), ids=PARTS)
def test_parts_that_are_no_functions_of_an_array(part, said):
    with pytest.raises((ConfigError, DTypeError), match=rf"^chain\[1\]: {said}"):
        layers.chain(jnp.tanh, part).init(0, X)
    layers.chain(Called(), jnp.float32, tuple, lambda rows: rows[0]).init(0, X)


def test_exceptions_of_ones_own_carry_the_path():
    own = layers.layer("own", None, lambda params, state, x, train, key: (x @ jnp.ones((7, 2)), state))
    net = layers.chain(jnp.tanh, layers.residual(layers.repeat(own, 2)))
    for run in (
        lambda: net.init(0, X),
        lambda: layers.chain(jnp.tanh, own).apply(((), ()), ((), ()), X, train=True),
    ):
        with pytest.raises(TypeError, match="contracting") as raised:
            run()
        where = [note for note in raised.value.__notes__ if note.startswith("jaxnet: ")]
        assert where in (["jaxnet: in chain[1]/residual.branch/repeat: own"], ["jaxnet: in chain[1]: own"])
    pair = layers.Layer(lambda key, x: jnp.ones((7, 2)) @ jnp.ones(3), scales, "pair")
    with pytest.raises(TypeError, match="contracting") as raised:
        layers.chain(jnp.tanh, pair).init(0, X)
    assert raised.value.__notes__[-1] == "jaxnet: in chain[1]: pair"


def test_a_decorator_may_take_other_arguments_than_what_it_wraps():
    def plain(f):
        @functools.wraps(f)
        def apply(params, state, x, *, train, key):
            return f(params, x), state

        return apply

    own = layers.layer("own", draws, plain(lambda params, x: params["scale"] * x))
    assert own.apply(*own.init(0, X), X, train=False)[0].shape == (2, 3)
    with pytest.raises(ConfigError, match=r"f must take \(params, x\), got a function of x alone"):
        layers.stateless(None, jax.jit(lambda x: x))  # whose own signature takes anything

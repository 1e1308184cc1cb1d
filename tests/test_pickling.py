"""Networks, initializers and what they are made of, through pickle: the same functions on the other side."""

import copy
import functools
import importlib
import inspect
import multiprocessing
import os
import pickle
import pkgutil
import re
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import activations, initializers, layers, losses, optimizers, regularizers
from jaxnet._made import made
from jaxnet.errors import ConfigError
from tests.layers.test_layers_table import IN_FLOAT64, TABLE

KEY = jax.random.key(1)


def through(value):
    return pickle.loads(pickle.dumps(value))


def double(x):
    return 2 * x


@jax.jit
def jitted_double(x):
    return 2 * x


def draw_ones(key, x, factor=1.0):
    return {"w": factor * jnp.ones(x.shape[-1:], x.dtype)}


def multiply(params, x):
    return x * params["w"][None, None]


def first(outputs):
    return outputs[0]


def own_init(key, x):
    return (), {"count": jnp.zeros((), jnp.int32)}


def own_apply(params, state, x, *, train, key=None):
    return x + 1, {"count": state["count"] + 1}


def network():
    """Every way to make a layer, from functions that have a name."""
    return layers.chain(
        layers.conv(4, 3, padding="same", kernel_init=initializers.normal(0.1), bias_init=initializers.constant(0.5)),
        jnp.tanh,
        jax.nn.relu,
        activations.leaky_relu,
        double,
        jitted_double,
        functools.partial(jnp.clip, min=-3.0),
        functools.partial(activations.leaky_relu, slope=0.3),
        layers.residual(layers.chain(layers.batch_norm(), layers.prelu(per_channel=True))),
        layers.repeat(layers.residual(layers.conv(4, 3, padding="same"), layers.conv(4, 1)), 2, remat=True),
        layers.parallel(layers.max_pool(2), layers.avg_pool(2), combine=first),
        layers.mixed_precision(layers.conv_transpose(4, 2, strides=2, groups=2), compute=jnp.float32),
        layers.stateless(functools.partial(draw_ones, factor=3.0), multiply),
        layers.Layer(own_init, own_apply, "own"),
        layers.layer_norm()._replace(name="the norm"),
        layers.dropout(0.5),
        layers.flatten(),
        layers.reshape(-1),
        layers.dense(2),
    )


X = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)


def outputs(net, x, quickly):
    """Drawn, then trained and evaluated: everything that a network computes."""
    jax.config.update("jax_disable_most_optimizations", quickly)  # another process is to compile as this one does

    def run(key, x):
        params, state = net.init(key, x)
        y, state = net.apply(params, state, x, train=True, key=key)
        return params, y, net.apply(params, state, x, train=False)

    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(5), x))


def test_a_network_in_a_fresh_process_gives_the_same_bits():
    """The row's own example, by pickle and by multiprocessing's spawn."""
    net = network()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        quickly = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
        there = pool.submit(outputs, net, X, quickly).result(timeout=300)
    jax.tree.map(np.testing.assert_array_equal, there, outputs(net, X, quickly))


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("stateless", "layer")])
def test_every_layer_is_the_same_program_afterwards(name):
    case = TABLE[name]
    x = jax.ShapeDtypeStruct(case.shape, jnp.float64 if name in IN_FLOAT64 else jnp.float32)
    with jax.enable_x64(name in IN_FLOAT64):

        def program(layer):
            params, state = jax.eval_shape(layer.init, KEY, x)
            evaluate = jax.make_jaxpr(lambda p, s, x: layer.apply(p, s, x, train=True, key=KEY))
            return str(jax.make_jaxpr(lambda key: layer.init(key, x))(KEY)), str(evaluate(params, state, x))

        layer = case.make()
        other = through(layer)
        assert program(other) == program(layer)
        assert (other.name, [label for label, _ in other.about.parts]) == (
            layer.name,
            [label for label, _ in layer.about.parts],
        )
        assert program(through(layer._replace(name="other"))) == program(layer)
        assert through(layer._replace(name="other")).name == "other"


@pytest.mark.parametrize(
    "initializer",
    [
        initializers.zeros,
        initializers.ones,
        initializers.constant(0.5),
        initializers.normal(0.1),
        initializers.uniform(0.1),
        *(
            getattr(initializers, f"{name}_{kind}")()
            for name in ("lecun", "glorot", "he")
            for kind in ("normal", "uniform")
        ),
    ],
    ids=lambda initializer: str(initializer).split(" at ")[0],
)
def test_initializers(initializer):
    shape = (3, 4)
    np.testing.assert_array_equal(through(initializer)(KEY, shape, "float32"), initializer(KEY, shape, "float32"))


@pytest.mark.parametrize("name", ["l1", "l2", "proximal_l1"])
def test_regularizers(name):
    one = getattr(regularizers, name)(0.5, where=is_kernel)
    arguments = ({"kernel": jnp.array([1.0, -3.0]), "bias": jnp.array([9.0])}, *([0.1] * (name == "proximal_l1")))
    jax.tree.map(np.testing.assert_array_equal, through(one)(*arguments), one(*arguments))


def is_kernel(path, leaf):
    return path.endswith("kernel")


# What these return is used within the library alone, and never kept.
NOT_KEPT = {
    "scaled",
    "as_layer",
    "rebuilt",
    "loss",
    "metric",
    "rule",
    "composed",
    "recurrent",
    "starting",
    "every_kernel",
    "evaluating",
    "inlined",
    "entered",
    "score_of",
    "less",
    "without_output_function",
    "undecayed",
    "remade",
    "with_layer",
    "table",
    "mapped",
}


def test_every_function_that_returns_functions_knows_the_call():
    """Of the whole library but what is compiled, steps and kernels: by what their signatures say they return."""
    found = set()
    for module in pkgutil.walk_packages(jaxnet.__path__, "jaxnet."):
        compiled = module.name.startswith(("jaxnet.training", "jaxnet.kernels.lowering"))
        if compiled or module.name.rpartition(".")[2].startswith("_"):
            continue
        for name, f in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            returned = str(inspect.signature(f).return_annotation)
            makes = re.search(r"^(\w+\.)*(Callable|Schedule)\b|\b(Layer|Optimizer|Initializer)('>)?$", returned)
            if makes and not name.startswith("_") and f.__module__ == module.name and name not in NOT_KEPT:
                found.add(name)
                assert f.__code__.co_filename.endswith("_made.py"), f"{module.name}.{name} is not under made"
    assert {"dense", "flat", "adam", "l1", "exponential_decay", "normal"} <= found


@pytest.mark.parametrize("module", [activations, losses])
def test_functions_of_the_library(module):
    for name, f in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("_"):
            through(f)


@made
def descent(rate):
    def init(params):
        return ()

    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda g: -rate * g, updates), state

    return optimizers.Optimizer(init, update)


def test_any_pair_of_functions_under_made():
    """Optimizers are pairs too, and go as fields of a plain named tuple."""
    init, update = through(descent(0.5))
    assert update({"w": 2.0}, init(None))[0] == {"w": -1.0}
    assert through(through(descent(rate=0.25))).update(4.0, ())[0] == -1.0
    chained = through((descent(0.5), network()))
    assert chained[0].update(2.0, ())[0] == -1.0


@pytest.mark.parametrize("schedule", ["rate", "exponential_decay", "warmup_cosine_decay_schedule", "constant_schedule"])
def test_optimizers_and_schedules(schedule):
    arguments = {
        "exponential_decay": {"init_value": 0.1, "transition_steps": 10, "decay_rate": 0.5},
        "warmup_cosine_decay_schedule": {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2, "decay_steps": 9},
        "constant_schedule": {"value": 0.1},
    }
    rate = 0.1 if schedule == "rate" else getattr(optimizers, schedule)(**arguments[schedule])
    optimizer = optimizers.skip_nonfinite(
        optimizers.chain(
            optimizers.clip_by_global_norm(1.0),
            optimizers.add_decayed_weights(0.1),
            optimizers.adam(rate, nesterov=True),
        )
    )
    params = {"w": jnp.arange(3.0)}
    for one in (
        optimizer,
        optimizers.lookahead(optimizers.sgd(rate), 5, 0.5),
        optimizers.flat(optimizers.rmsprop(rate)),
    ):
        again, state = through(one), one.init(params)
        for ours, theirs in (
            (one.init(params), again.init(params)),
            *zip(*_updates(one, again, params, state), strict=True),
        ):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _updates(one, other, params, state):
    grads = {"w": jnp.array([1.0, -2.0, 0.5])}
    return one.update(grads, state, params), other.update(grads, state, params)


def test_one_function_of_a_layer():
    layer = layers.dense(3)
    apply, init = through((layer.apply, layer.init))
    np.testing.assert_array_equal(init(KEY, X)[0]["kernel"], layer.init(KEY, X)[0]["kernel"])
    assert apply.__name__ == "apply"
    mixed = through(layer._replace(apply=own_apply))
    assert mixed.apply is own_apply
    np.testing.assert_array_equal(mixed.init(KEY, X)[0]["kernel"], layer.init(KEY, X)[0]["kernel"])


def test_rebuilt_networks():
    net = network()
    again = through(net.about.rebuild(*(part for _, part in net.about.parts)))
    assert [part.name for _, part in again.about.parts] == [part.name for _, part in net.about.parts]


def test_layers_stay_what_they_were_as_static_arguments():
    net, other = layers.dense(3), layers.dense(3)
    assert net not in (other, through(net))
    assert {net: 1}[net] == 1
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(net, x):
        traces.append(None)
        return net.init(KEY, x)[0]

    run(net, X), run(net, X)
    assert len(traces) == 1


def test_copies_are_the_network_itself():
    net = layers.chain(layers.dense(3), lambda x: x)
    for other in (copy.copy(net), copy.deepcopy(net), copy.deepcopy({"net": [net]})["net"][0]):
        assert other is net
    optimizer = descent(0.5)
    assert copy.deepcopy(optimizer) == optimizer


def local(x):
    def inner(y):
        return y

    return inner


def last(first, second):
    return second


REFUSED = {
    "a lambda in a chain": (lambda: layers.chain(layers.dense(2), lambda x: x), r"chain\[1\]: pickle: .*<lambda>"),
    "far inside": (
        lambda: layers.chain(jnp.tanh, layers.residual(layers.chain(layers.repeat(layers.chain(local(0)), 2)))),
        r"chain\[1\]/residual\.branch/chain\[0\]/repeat\.layer/chain\[0\]: pickle: local\.<locals>\.inner \(line \d+",
    ),
    "an initializer": (
        lambda: layers.chain(layers.dense(2, kernel_init=lambda key, shape, dtype: None)),
        r"chain\[0\]/dense\.kernel_init: pickle",
    ),
    "a stateless layer": (lambda: layers.stateless(draw_ones, lambda p, x: x), r"stateless\.f: pickle"),
    "in a partial": (lambda: layers.chain(functools.partial(local(0))), r"chain\[0\]: pickle"),
    "in the arguments of a partial": (
        lambda: layers.chain(functools.partial(last, {"f": [local(0)]})),
        r"chain\[0\]: pickle",
    ),
    "under jit": (lambda: layers.chain(jax.jit(lambda x: x)), r"chain\[0\]: pickle"),
    "a combination": (lambda: layers.parallel(jnp.tanh, combine=lambda ys: ys), r"parallel\.combine: pickle"),
    "one's own layer": (
        lambda: layers.chain(layers.Layer(own_init, lambda *a, **k: None, "mine")),
        r"chain\[0\]/mine\.apply: pickle",
    ),
    "a layer replaced": (lambda: layers.dense(2)._replace(name="head", apply=lambda *a: None), r"head\.apply: pickle"),
    "a function of a layer": (lambda: layers.chain(lambda x: x).apply, r"chain\[0\]: pickle"),
    "an optimizer": (lambda: descent(lambda step: 0.1), r"descent\.rate: pickle"),
    "in a list": (lambda: [layers.chain(lambda x: x)], r"chain\[0\]: pickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_without_a_name_is_refused_by_its_place(name):
    make, message = REFUSED[name]
    with pytest.raises(ConfigError, match="^" + message + ".* write it with def at the top of a module"):
        pickle.dumps(make())


def test_cloudpickle_takes_functions_without_a_name_as_before():
    cloudpickle = pytest.importorskip("cloudpickle")
    net = layers.chain(layers.dense(2), lambda x: 3 * x)
    other = pickle.loads(cloudpickle.dumps(net))
    params, state = net.init(KEY, X)
    expected = net.apply(params, state, X, train=False)[0]
    np.testing.assert_array_equal(other.apply(params, state, X, train=False)[0], expected)


def test_deep_networks_take_no_more_than_their_size():
    net = layers.dense(3)
    for _ in range(20):
        net = layers.residual(layers.chain(net))
    assert len(pickle.dumps(net)) < 10_000

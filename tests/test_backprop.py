"""backprop: the graph, its values and its adjoints, against jax.grad, closed forms and finite differences."""

import itertools
import math
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from examples import backprop as example
from jaxnet import activations, backprop, layers, losses
from jaxnet.backprop.layout import Item, layout
from jaxnet.errors import ConfigError, DTypeError, ShapeError
from tests.layers.test_layers_table import TABLE, start

ROOT = Path(__file__).parents[1]
F = jnp.float32


# Figure 4.8


def test_figure_4_8():
    w1, w2, w3 = 2.0, 0.5, 3.0
    graph = backprop.trace(example.waves, w1, w2, w3)
    sin, cos = math.sin(w2), math.cos(w2)
    expected = [
        ("v1", "sin", ("w2",), sin, w1),
        ("v2", "cos", ("w2",), cos, w3),
        ("v3", "mul", ("w1", "v1"), w1 * sin, 1.0),
        ("v4", "mul", ("w3", "v2"), w3 * cos, 1.0),
        ("v5", "add", ("v3", "v4"), w1 * sin + w3 * cos, 1.0),
    ]
    assert [node[:3] for node in graph.nodes] == [row[:3] for row in expected]
    np.testing.assert_allclose([node[3:] for node in graph.nodes], [row[3:] for row in expected], rtol=1e-6)
    np.testing.assert_allclose(graph.gradients, (sin, w1 * cos - w3 * sin, cos), rtol=1e-6)
    np.testing.assert_allclose(graph.value, w1 * sin + w3 * cos, rtol=1e-6)
    assert [(a.name, a.operation, a.value, a.adjoint) for a in graph.arguments] == [
        (name, "argument", value, gradient)
        for name, value, gradient in zip(("w1", "w2", "w3"), (w1, w2, w3), graph.gradients, strict=True)
    ]
    assert graph["v4"] is graph.nodes[3]
    assert graph["w2"] is graph.arguments[1]


# Any graph

UNARY = {
    "sin": (jnp.sin, np.sin),
    "cos": (jnp.cos, np.cos),
    "tanh": (jnp.tanh, np.tanh),
    "exp": (jnp.exp, np.exp),
    "logistic": (lax.logistic, lambda x: 1 / (1 + np.exp(-x))),
    "neg": (jnp.negative, np.negative),
    "square": (lax.square, np.square),
    "integer_pow 3": (lambda x: lax.integer_pow(x, 3), lambda x: x**3),
}
BINARY = {
    "add": (jnp.add, np.add),
    "sub": (jnp.subtract, np.subtract),
    "mul": (jnp.multiply, np.multiply),
    "atan2": (jnp.arctan2, np.arctan2),
}
NUMPY = {name: of_numpy for name, (_, of_numpy) in (UNARY | BINARY).items()} | {"reduce_sum": np.sum}


@st.composite
def expressions(draw):
    """A random graph over two arrays: each operation reads whatever there is so far, or a constant."""
    plan = []
    for i in range(draw(st.integers(1, 9))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        plan.append((name, *(draw(st.integers(0, i + 1)) for _ in range(1 + (name in BINARY))), draw(st.booleans())))

    def f(w, x):
        values = [w, x]
        for name, first, *second, constant in plan:
            if name in UNARY:
                values.append(UNARY[name][0](0.5 * jnp.tanh(values[first])))
            else:
                values.append(BINARY[name][0](values[first], 1.5 if constant else values[second[0]]))
        return sum(jnp.sum(value) for value in values[-3:])

    return f


def evaluate(graph, changed, value):
    """The graph's value with one node's replaced, computed by NumPy from what the nodes say of themselves."""
    values = {node.name: np.asarray(node.value) for node in graph.arguments}
    values[changed] = value
    for node in graph.nodes:
        if node.name not in values:
            values[node.name] = NUMPY[node.operation](*(values[i] if i in values else float(i) for i in node.inputs))
    return values[graph.nodes[-1].name]


@given(expressions(), st.integers(0, 99))
@settings(max_examples=10)
@pytest.mark.usefixtures("x64")
def test_of_any_graph_adjoints_are_finite_differences_and_gradients_those_of_jax(f, seed):
    rng = np.random.default_rng(seed)
    w, x = (jnp.asarray(rng.standard_normal(3)) for _ in range(2))
    graph = backprop.trace(f, w, x)
    np.testing.assert_allclose(graph.value, f(w, x), rtol=1e-12)
    chex.assert_trees_all_close(graph.gradients, jax.grad(f, (0, 1))(w, x), rtol=1e-10, atol=1e-12)
    for node in (*graph.nodes, *graph.arguments):
        direction = rng.standard_normal(node.value.shape)
        h = 1e-6
        after, before = (evaluate(graph, node.name, node.value + sign * h * direction) for sign in (1, -1))
        slope = np.vdot(node.adjoint, direction)
        np.testing.assert_allclose((after - before) / (2 * h), slope, rtol=1e-5, atol=1e-6 * (1 + abs(graph.value)))


@jax.custom_vjp
def twice_as_steep(x):
    return jnp.sin(x)


twice_as_steep.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (2 * g * jnp.cos(x),))


@jax.custom_jvp
def flat(x):
    return x**2


flat.defjvp(lambda primals, tangents: (flat(*primals), 0.25 * tangents[0]))


def scanned(x, reverse=False):
    def step(carry, row):
        return jnp.tanh(carry + row), carry * row

    last, rows = lax.scan(step, x[0], x, reverse=reverse)
    return last.sum() + (rows * jnp.arange(rows.size, dtype=rows.dtype).reshape(rows.shape)).sum()


PROGRAMS = {
    "jit": lambda x: jax.jit(lambda x: jnp.where(x > 0, jax.jit(jnp.sin)(x), x))(x).sum(),
    "custom_vjp": lambda x: twice_as_steep(x).sum(),
    "custom_jvp": lambda x: jax.jit(flat)(x).sum(),
    "scan": scanned,
    "scan, reversed": lambda x: scanned(x, reverse=True),
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, v: jnp.sin(v), x).sum(),
    "cond": lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x).sum(),
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x).sum(),
    "stop_gradient": lambda x: (x * lax.stop_gradient(jnp.sin(x))).sum(),
    "integers": lambda x: (x[jnp.argmax(x[:, 0])] * jnp.sum(x > 0).astype(x.dtype)).sum(),
    "several outputs": lambda x: sum(i * part.sum() for i, part in enumerate(jnp.split(x, 3), 1)),
    "sorted with indices": lambda x: (lambda v, i: (v * i).sum())(*lax.sort_key_val(x[:, 0], jnp.arange(3.0))),
    "complex": lambda x: jnp.abs(jnp.fft.rfft(x, axis=0)).sum(),
    "a loop that no gradient passes": lambda x: x.sum() * lax.while_loop(lambda v: v < 5, lambda v: 2 * v, F(1.0)),
    "a loop over what is stopped": lambda x: (
        x.sum() * lax.while_loop(lambda v: v < 5, lambda v: 2 * v, lax.stop_gradient(jnp.exp(x[0, 0])))
    ),
    "vmap of grad": lambda x: jax.vmap(jax.grad(lambda row: jnp.sin(row).prod()))(x).sum(),
    "an argument itself": lambda x: x[0, 0],
    "a constant": lambda x: jnp.float32(3.0),
    "a Python number": lambda x: 3.0,
    "captured arrays": lambda x: (x * CAPTURED).sum(),
    "nothing but an argument, twice": lambda x: (x * x).sum(),
}
CAPTURED = jnp.asarray(np.arange(9.0).reshape(3, 3), F)


@pytest.mark.parametrize("program", PROGRAMS)
def test_of_any_program_gradients_are_those_of_jax(program):
    f = PROGRAMS[program]
    x = jax.random.normal(jax.random.key(0), (3, 3))
    graph = backprop.trace(f, x)
    np.testing.assert_allclose(graph.value, f(x), rtol=1e-5)
    np.testing.assert_allclose(graph.gradients[0], jax.grad(f)(x), rtol=1e-5, atol=1e-6)


def test_compiled_functions_are_open_and_custom_derivatives_closed():
    def operations(program):
        return [node.operation for node in backprop.trace(PROGRAMS[program], jnp.ones((3, 3))).nodes]

    assert operations("jit") == ["gt", "sin", "select_n", "reduce_sum"]
    assert operations("custom_vjp") == ["twice_as_steep", "reduce_sum"]
    assert operations("custom_jvp") == ["flat", "reduce_sum"]
    assert operations("checkpoint") == ["checkpoint", "reduce_sum"]
    assert operations("cond")[-2:] == ["cond", "reduce_sum"]
    assert operations("sorted with indices").count("sort:0") == 1


def test_what_is_no_real_number_or_depends_on_no_argument_has_no_adjoint():
    graph = backprop.trace(
        lambda x, i, scale: (x * (x > 0).astype(F) * scale)[i], jnp.ones(3), 1, jnp.ones(3), argnums=0
    )
    adjoints = {node.operation: node.adjoint for node in graph.nodes}
    assert adjoints["gt"] is None
    assert adjoints["mul"] is not None
    assert [a.adjoint is None for a in graph.arguments] == [False, True, True]
    assert "bool (3,)" in str(graph)


def test_what_the_value_does_not_need_is_left_out():
    graph = backprop.trace(lambda x: (jnp.sin(x), {"aux": jnp.cos(x)}), 1.0, has_aux=True)
    assert [node.operation for node in graph.nodes] == ["sin"]


def test_a_scan_opens_into_its_steps():
    x = jax.random.normal(jax.random.key(1), (4, 3))
    for reverse, order in ((False, (0, 1, 2, 3)), (True, (3, 2, 1, 0))):
        closed = backprop.trace(lambda x, reverse=reverse: scanned(x, reverse), x)
        assert "scan" in {node.operation for node in closed.nodes}
        opened = closed.open("scan")
        steps = [node.name for node in opened.nodes if node.operation == "step"]
        assert [name.partition(":")[0] for name in steps if not name.endswith(":1")] == [f"scan[{i}]" for i in order]
        chex.assert_trees_all_close(opened.gradients, closed.gradients, rtol=1e-5, atol=1e-6)
        inside = opened.open(f"scan[{order[0]}]")
        assert "tanh" in {node.operation for node in inside.nodes}
        chex.assert_trees_all_close(inside.gradients, closed.gradients, rtol=1e-5, atol=1e-6)


# Arguments


def test_argnums_is_that_of_jax_grad():
    def f(a, b, *rest):
        return jnp.sum(a["x"] * b) + sum(rest)

    args = ({"x": jnp.arange(3.0), "y": jnp.ones(2)}, jnp.ones(3), 1.0, 2.0)
    for argnums in (0, 1, (1, 0), (3,), [0, 2]):
        expected = jax.grad(f, argnums)(*args)
        chex.assert_trees_all_equal(backprop.trace(f, *args, argnums=argnums).gradients, expected)
    graph = backprop.trace(f, *args)
    chex.assert_trees_all_equal(graph.gradients, jax.grad(f, (0, 1, 2, 3))(*args))
    assert [a.name for a in graph.arguments] == ["a['x']", "a['y']", "b", "rest[0]", "rest[1]"]


def test_arguments_that_are_no_real_numbers_have_none_for_a_gradient():
    def f(w, labels, key):
        return (w["a"] * labels.astype(F) * jax.random.normal(key, (2,))).sum()

    w = {"a": jnp.ones(2)}
    key, labels = jax.random.key(0), jnp.array([1, 2])
    gradients = backprop.trace(f, w, labels, key).gradients
    assert gradients[1:] == (None, None)
    chex.assert_trees_all_close(gradients[0], jax.grad(f)(w, labels, key), rtol=1e-6)


def test_arguments_without_a_signature_are_numbered():
    assert [a.name for a in backprop.trace(jnp.hypot, 3.0, 4.0).arguments] == ["x1", "x2"]


def refuse(f, *args, **keywords):
    return lambda: backprop.trace(f, *args, **keywords)


ERRORS = {
    "vector": (refuse(jnp.sin, jnp.ones(3)), ShapeError, r"must return one number, got shape \(3,\); reduce it"),
    "tuple": (refuse(lambda x: (x, x), 1.0), ShapeError, r"got tuple; pass has_aux=True if it is"),
    "aux": (refuse(jnp.sin, 1.0, has_aux=True), ConfigError, r"must return \(value, aux\), got"),
    "integer value": (refuse(jnp.argmax, jnp.ones(3)), DTypeError, "must return a floating-point number, got int32"),
    "Python int": (refuse(example.waves, 2, 0.5, 3.0), DTypeError, r"w1 has dtype int32.*pass 2.0, or .*argnums=\(0,"),
    "integers named": (
        refuse(lambda x, i: x[i], jnp.ones(3), jnp.array(1), argnums=1),
        DTypeError,
        "i has dtype int32",
    ),
    "complex": (refuse(lambda x: jnp.abs(x), jnp.ones((), "complex64")), DTypeError, "x has dtype complex64"),
    "no numbers": (refuse(lambda i: F(1.0), jnp.arange(3)), DTypeError, "no argument is a floating-point array"),
    "no arguments": (refuse(lambda: F(1.0)), DTypeError, r"nothing to differentiate by; pass .* as arguments"),
    "no array": (refuse(lambda x, s: x, 1.0, "s"), DTypeError, "backprop: s must be an array, got str"),
    "argnums": (refuse(example.waves, 1.0, 2.0, 3.0, argnums=3), ConfigError, "argnums=3 names no argument.* given 3"),
    "negative": (refuse(jnp.sin, 1.0, argnums=-1), ConfigError, "argnums must be an integer >= 0"),
    "no function": (refuse(3.0, 1.0), ConfigError, "f must be callable"),
    "under jit": (
        lambda: jax.jit(refuse_traced)(1.0),
        ConfigError,
        "x is a traced value.* call backprop.trace outside",
    ),
    "captured": (
        lambda: jax.grad(lambda y: backprop.trace(lambda x: x * y, 1.0).value)(2.0),
        ConfigError,
        "the function captured is a traced value",
    ),
    "while_loop": (
        refuse(lambda x: lax.while_loop(lambda v: v < 5, lambda v: 2 * v, jnp.sin(x)), 1.0),
        ConfigError,
        "v2 = while_loop holds a loop of unknown length.* use lax.scan",
    ),
    "while_loop, inside": (
        refuse(lambda x: jax.checkpoint(lambda x: lax.while_loop(lambda v: v < 5, lambda v: 2 * v, x))(x), 1.0),
        ConfigError,
        "v1 = checkpoint holds a loop",
    ),
    "fori_loop": (
        refuse(lambda x, n: lax.fori_loop(0, n, lambda i, v: 2 * v, x), 1.0, jnp.array(3)),
        ConfigError,
        "v1 = while_loop.* lax.fori_loop a number of steps that is a Python int",
    ),
    "no node": (lambda: backprop.trace(jnp.sin, 1.0)["v2"], ConfigError, "no node 'v2'; there are x, v1"),
    "nothing to open": (lambda: backprop.trace(jnp.sin, 1.0).open("v1"), ConfigError, "'v1' cannot be opened; nothing"),
    "no picture": (lambda: backprop.trace(jnp.sin, 1.0).draw("a.txt"), ConfigError, "must be .png, .svg or .pdf"),
    "too large": (
        lambda: backprop.trace(lambda x: sum(x * i for i in range(90)), 1.0).draw("a.png"),
        ConfigError,
        "too many for a picture .* trace.dot",
    ),
}


def refuse_traced(x):
    return backprop.trace(jnp.sin, x).value


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


# Networks


# What a layer computes is a node, whose derivatives are JAX's. Here is one of each kind of node: with parameters,
# state or keys, with none of them, with rules and loops of its own, and every container, which opens into its parts.
KINDS = (
    "dense", "conv-depthwise-causal", "conv_transpose-awkward", "max_pool-2-D", "dropout", "batch_norm-positions",
    "spectral_norm", "weight_norm-network", "low_rank-repeat", "lstm-both", "embedding", "tied", "on_first",
    "pad-reflect", "attention-dropout", "reshape", "stateless", "layer", "chain", "residual-shortcut",
    "parallel-concatenate", "repeat-remat", "mixed_precision", "frozen-given", "raveled", "watched",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("x64")
def test_of_every_kind_of_layer_gradients_are_those_of_jax(name):
    layer, params, state, x = start(TABLE[name])
    net = layers.chain(layer)

    def loss(params, state, x, key):
        y, new = net.apply((params,), (state,), x, train=True, key=key)
        return sum(jnp.sum(jnp.cos(jnp.arange(1.0, 1 + a.size)).reshape(a.shape) * a) for a in jax.tree.leaves(y)), new

    args = (params, state, x, jax.random.key(3))
    graph = backprop.trace(loss, *args, argnums=(0, 1, 2), has_aux=True)
    value, expected = jax.jit(jax.value_and_grad(lambda *args: loss(*args)[0], (0, 1, 2)))(*args)
    np.testing.assert_allclose(graph.value, value, rtol=1e-10)
    chex.assert_trees_all_close(graph.gradients, expected, rtol=1e-9, atol=1e-10)
    assert "chain[0]" in {node.name.partition(":")[0] for node in graph.nodes}
    if layer.about.parts:
        chex.assert_trees_all_close(graph.open().gradients, expected, rtol=1e-9, atol=1e-10)


def network():
    return layers.chain(
        layers.conv(4, 3, padding="same"),
        activations.leaky_relu,
        layers.batch_norm(),
        layers.residual(layers.chain(layers.conv(4, 3, padding="same"), jnp.tanh)),
        layers.repeat(layers.residual(layers.conv(4, 3, padding="same")), 3),
        layers.flatten(),
        layers.dense(3),
    )


@pytest.fixture(scope="module")
def traced():
    """A network, its parameters and input, and the trace of its loss."""
    net, x, y = network(), jax.random.normal(jax.random.key(1), (5, 6, 2)), jnp.arange(5) % 3
    params, state = net.init(jax.random.key(0), x)

    def loss(params, x, y):
        logits, new = net.apply(params, state, x, train=True)
        return losses.softmax_cross_entropy(logits, y), new

    return net, params, state, x, y, backprop.trace(loss, params, x, y, argnums=(0, 1), has_aux=True)


def test_a_networks_loss_is_a_node_a_layer(traced):
    *_, graph = traced
    assert [(node.name, node.operation) for node in graph.nodes[:-1]] == [
        ("chain[0]", "conv"),
        ("chain[1]", "leaky_relu"),
        ("chain[2]", "batch_norm"),
        ("chain[3]", "residual"),
        ("chain[4]", "repeat"),
        ("chain[5]", "flatten"),
        ("chain[6]", "dense"),
    ]
    assert graph.nodes[-1].name == "softmax_cross_entropy"
    assert re.fullmatch(r"\d+ operations", graph.nodes[-1].operation)
    assert graph["chain[2]"].inputs == ("chain[1]", "params[2]['scale']", "params[2]['offset']")
    assert "chain[1], params[2]  " in str(graph)


def test_the_adjoint_of_a_layer_is_the_gradient_of_the_rest(traced):
    net, params, state, x, y, graph = traced

    @jax.jit
    def expected(params, state, x):
        found = []
        for i in range(len(net.about.parts)):
            value, _ = layers.chain(*(part for _, part in net.about.parts[: i + 1])).apply(
                params[: i + 1], state[: i + 1], x, train=True
            )

            def rest(value, i=i):
                if i + 1 < len(net.about.parts):
                    after = layers.chain(*(part for _, part in net.about.parts[i + 1 :]))
                    value, _ = after.apply(params[i + 1 :], state[i + 1 :], value, train=True)
                return losses.softmax_cross_entropy(value, y)

            found.append((value, jax.grad(rest)(value)))
        return found

    for i, (value, adjoint) in enumerate(expected(params, state, x)):
        node = graph[f"chain[{i}]"]
        np.testing.assert_allclose(node.value, value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(node.adjoint, adjoint, rtol=1e-3, atol=1e-5)


def test_layers_open_on_request(traced):
    *_, graph = traced
    names = [node.name for node in graph.open("chain[3]/residual.branch", "chain[4]/scan").nodes]
    assert names[3:6] == ["chain[3]/residual.branch/chain[0]", "chain[3]/residual.branch/chain[1]", "v1"]
    assert names[6:9] == ["chain[4]/scan[0]", "chain[4]/scan[1]", "chain[4]/scan[2]"]
    everything = graph.open()
    assert [n.name for n in everything.nodes if not re.fullmatch(r"v\d+", n.name)] == ["chain[4]/scan"]
    for opened in (everything, everything.open("chain[4]/scan").open()):
        chex.assert_trees_all_close(opened.gradients, graph.gradients, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"'chain\[9\]' cannot be opened; there are chain\[0\], chain\[1\]"):
        graph.open("chain[9]")


def test_a_network_applied_twice_is_two_nodes_a_layer():
    net = layers.chain(layers.dense(2), jnp.tanh)
    params, state = net.init(0, jnp.ones((1, 2)))

    def f(params, x):
        for _ in range(2):
            x, _ = net.apply(params, state, x, train=True)
        return x.sum()

    args = params, jnp.ones((3, 2))
    graph = backprop.trace(f, *args)
    assert [node.name for node in graph.nodes] == ["chain[0]", "chain[1]", "chain[0]#2", "chain[1]#2", "v1"]
    chex.assert_trees_all_close(graph.gradients, jax.grad(f, (0, 1))(*args), rtol=1e-5)
    assert all(node.name.startswith(("v", "chain[1]")) for node in graph.open("chain[0]").nodes)


def test_a_network_under_vmap_and_grad_is_a_node_a_layer():
    net = layers.chain(jnp.sin, jnp.cos)
    params, state = net.init(0, jnp.ones(2))

    def apply(x):
        return net.apply(params, state, x, train=True)[0].sum()

    for f, names in (
        (lambda x: jax.vmap(apply)(x).sum(), ["chain[0]", "chain[1]"]),
        (lambda x: jax.vmap(jax.grad(apply))(x).sum(), ["chain[0]:0", "chain[0]:1", "chain[1]"]),
    ):
        x = jnp.arange(6.0).reshape(3, 2)
        graph = backprop.trace(f, x)
        assert set(names) <= {node.name for node in graph.nodes}
        np.testing.assert_allclose(graph.gradients[0], jax.grad(f)(x), rtol=1e-5, atol=1e-6)


def test_names_of_arguments_are_not_taken_twice():
    graph = backprop.trace(lambda v1, v3: jnp.cos(v3 * jnp.sin(v1)), 1.0, 2.0)
    assert [(node.name, node.inputs) for node in graph.nodes] == [
        ("v2", ("v1",)),
        ("v4", ("v3", "v2")),
        ("v5", ("v4",)),
    ]


def test_any_named_scope_is_closed():
    def f(x):
        with jax.named_scope("angle"):
            y = jnp.arctan2(jnp.sin(x), jnp.cos(x))
        return y**2

    graph = backprop.trace(f, 0.5)
    assert graph.nodes[0][:3] == ("angle", "3 operations", ("x",))
    np.testing.assert_allclose(graph["angle"].adjoint, 2 * 0.5, rtol=1e-6)


def test_layers_name_their_place_in_a_compiled_program():
    net = layers.chain(jnp.sin, layers.residual(layers.repeat(jnp.cos, 2)))
    params, state = net.init(0, jnp.ones(3))
    text = jax.jit(lambda x: net.apply(params, state, x, train=False)[0]).lower(jnp.ones(3)).as_text(debug_info=True)
    for place in ("chain[0] sin/sin", "chain[1] residual/residual.branch repeat/while/body/", "repeat cos/cos"):
        assert place in text


# As text and as picture


def test_long_tables_are_shortened():
    graph = backprop.trace(lambda x: sum(jnp.sin(x * i) for i in range(2, 40)), 1.0)
    lines = str(graph).splitlines()
    (cut,) = (line for line in lines if line.startswith("..."))
    assert cut == f"... {len(graph.nodes) - 40} more; all of them: print(trace.table(rows=None))"
    assert all(re.search(rf"^{node.name} ", graph.table(rows=None), re.MULTILINE) for node in graph.nodes)
    assert "..." not in graph.table(rows=None)
    assert sum(line.startswith("v") for line in graph.table(rows=7).splitlines()) == 7


def test_tables_hold_any_value():
    def f(x, key, none):
        z = jnp.fft.fft(x)
        return jnp.abs(z.sum()) + 0 * none.sum() + jax.random.normal(key)

    text = str(backprop.trace(f, jnp.ones(3), jax.random.key(0), jnp.ones((0, 2))))
    assert re.search(r"fft +v1 +complex64 \(3,\) +norm 3, mean 1\+0j", text)
    assert re.search(r"none +float32 \(0, 2\) +empty +empty", text)
    assert re.search(r"key +key<fry> \(\) +- +-", text)


def test_dot_has_every_node_and_both_passes():
    text = backprop.trace(example.waves, 2.0, 0.5, 3.0).dot()
    assert text.startswith("digraph {")
    forward = set(re.findall(r'^  "(\w+)" -> "(\w+)";$', text, re.MULTILINE))
    backward = set(re.findall(r'^  "(\w+)" -> "(\w+)" \[style=dashed, constraint=false\];$', text, re.MULTILINE))
    edges = {
        ("w2", "v1"),
        ("w2", "v2"),
        ("w1", "v3"),
        ("v1", "v3"),
        ("w3", "v4"),
        ("v2", "v4"),
        ("v3", "v5"),
        ("v4", "v5"),
    }
    assert forward == edges
    assert backward == {(b, a) for a, b in edges}
    assert '"v1" [label="v1\\nsin(w2)\\nvalue 0.4794\\nadjoint 2"];' in text


def test_of_what_has_no_adjoint_no_edge_leads_back(traced):
    *_, graph = traced
    text = graph.dot()
    assert '"y" -> "softmax_cross_entropy";' in text
    assert '"softmax_cross_entropy" -> "y"' not in text
    assert '"params[2]" -> "chain[2]";' in text
    assert '"chain[2]" -> "params[2]" [style=dashed' in text


@pytest.mark.parametrize("extension", ["png", "svg", "pdf"])
def test_pictures(traced, tmp_path, extension):
    *_, graph = traced
    path = graph.draw(tmp_path / "new" / f"net.{extension}")
    start = path.read_bytes()[:200]
    assert {"png": b"PNG", "svg": b"<?xml", "pdf": b"%PDF"}[extension] in start
    assert path.stat().st_size > 5_000
    backprop.trace(lambda x: F(1.0), 1.0).draw(tmp_path / f"nothing.{extension}")


@given(
    st.integers(1, 14).flatmap(
        lambda n: st.tuples(
            st.lists(st.tuples(st.floats(20, 300), st.floats(10, 90)), min_size=n, max_size=n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=24),
            st.sets(st.integers(0, 3)),
        )
    )
)
@settings(max_examples=40)
def test_no_boxes_overlap_and_no_edge_runs_through_one(case):
    sizes, pairs, sources = case
    edges = sorted({(a, b) for a, b in pairs if a < b and b not in sources}, key=lambda edge: edge[1])
    sources &= set(range(len(sizes)))
    places = layout([Item(*size, 1.0) for size in sizes], sources, edges)
    boxes = range(len(sizes))
    for a, b in edges:
        assert places.row[a] < places.row[b]
    for i, j in itertools.combinations(places.x, 2):
        if places.row[i] == places.row[j]:
            widths = [sizes[k][0] if k in boxes else 12.0 for k in (i, j)]
            assert abs(places.x[i] - places.x[j]) > sum(widths) / 2
    for edge, stops in zip(edges, places.route, strict=True):
        assert (stops[0], stops[-1]) == edge
        assert [places.row[s] for s in stops] == list(range(places.row[edge[0]], places.row[edge[1]] + 1))


def test_the_page_shows_what_it_and_the_example_print(tmp_path, capsys, monkeypatch):
    example.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "backprop.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert capsys.readouterr().out in printed
    assert (tmp_path / "out" / "backprop.png").exists()
    figure, by_layer, copies = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert figure in printed

    def words(text):
        return re.sub(r"-?\d+\.\d+(e-\d+)?", "", re.sub(r"[ -]+", " ", text))

    assert words(by_layer) in words(printed)
    assert words(copies) in words(printed)
    for name in ("backprop.png", "backprop-network.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in page
        assert (ROOT / "docs" / name).exists()

"""Inputs that are tuples, dicts and trees of arrays, with tokens, masks and keys in them: through every container."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import activations, backprop, diagnostics, interop, layers, losses, optimizers, testing, training
from jaxnet.errors import DTypeError, JaxnetError, ShapeError
from jaxnet.training import History
from tests.compiled import apply

KEY = jax.random.key(3)
RANDOM = np.random.default_rng(0)
F = jnp.float32

TOKENS = np.array([[0, 3, 6, 6], [2, 1, 0, 5], [4, 4, 1, 2], [5, 0, 3, 3]], np.int32)
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
X = {"tokens": jax.device_put(TOKENS), "mask": jax.device_put(MASK)}
Y = jax.device_put(RANDOM.standard_normal((4, 2)).astype(F))


def embedding():
    """Tokens to rows of a table; the mask goes along."""
    return layers.stateless(
        lambda key, x: {"table": jax.random.normal(key, (7, 3), F)},
        lambda params, x: {"h": params["table"][x["tokens"]], "mask": x["mask"]},
        name="embedding",
    ).described(torch=(("table", "weight", None),))


def on_h(layer):
    """A layer on one entry of a dict."""
    return layers.Layer(
        lambda key, x: layer.init(key, x["h"]),
        lambda params, state, x, *, train, key=None: (
            {**x, "h": layer.apply(params, state, x["h"], train=train, key=key)[0]},
            state,
        ),
        layer.name,
        layer.about,
    )


def masked_sum(x):
    return jnp.sum(jnp.where(x["mask"][..., None], x["h"], jnp.zeros((), x["h"].dtype)), 1)


def network():
    """Dicts through repeat, residual and chain; then a tuple from a parallel that goes on."""
    return layers.chain(
        embedding(),
        layers.repeat(layers.residual(layers.chain(on_h(layers.dense(3)), on_h(layers.prelu()))), 2),
        masked_sum,
        layers.parallel(layers.dense(2), layers.dense(2, bias=False)),
        lambda pair: pair[0] * pair[1],
    )


def right(params, tokens, mask):
    """The same in float64, sample by sample."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows = []
    for sample, kept in zip(tokens, mask, strict=True):
        total = np.zeros(3)
        for token, keep in zip(sample, kept, strict=True):
            h = params[0]["table"][token]
            for i in range(2):
                dense, prelu = params[1]["branch"]
                z = h @ dense["kernel"][i] + dense["bias"][i]
                h = h + np.where(z > 0, z, prelu["slope"][i] * z)
            total += keep * h
        left, other = params[3]
        rows.append((total @ left["kernel"] + left["bias"]) * (total @ other["kernel"]))
    return np.array(rows)


@pytest.fixture(scope="module")
def drawn():
    return network().init(KEY, X)


def test_a_parallels_tuple_goes_on_in_a_chain():
    """The row's own example."""
    net = layers.chain(layers.parallel(layers.dense(2), layers.dense(3)), lambda ys: ys[0] + ys[1][..., :2])
    x = RANDOM.standard_normal((5, 4)).astype(F)
    params, state = net.init(0, x)
    y, _ = apply(net, params, state, x, train=False)
    kernels = [np.asarray(p["kernel"], np.float64) for p in params[0]]
    np.testing.assert_allclose(y, x @ kernels[0] + (x @ kernels[1])[:, :2], rtol=1e-5, atol=1e-5)


def test_the_network_is_right_with_a_dict(drawn):
    y, _ = apply(network(), *drawn, X, train=False)
    np.testing.assert_allclose(y, right(drawn[0], TOKENS, MASK), rtol=1e-5, atol=1e-5)


def test_a_network_of_structs(drawn):
    struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), X)
    params, _ = network().init(KEY, struct)
    jax.tree.map(np.testing.assert_array_equal, params, drawn[0])


# Any tree, through any container.

LEAVES = st.sampled_from(
    [
        np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        np.arange(4, dtype=np.int32).reshape(2, 2),
        np.array([True, False]),
        np.ones((2, 1), np.complex64),
        jax.random.key(7),
        np.float32(2.5),
    ]
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner),
        st.tuples(inner, inner, st.none()),
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1),
        st.builds(layers.Watched, inner, inner),  # any pytree will do
    ),
    max_leaves=5,
)


def identity(x):
    return x


def nothing(path, layer, params, state, x, y):
    return ()


CONTAINERS = {
    "chain": layers.chain(identity, identity),
    "stateless": layers.stateless(lambda key, x: (), lambda params, x: x),
    "parallel": layers.chain(layers.parallel(identity, identity), lambda pair: pair[1]),
    "repeat": layers.repeat(identity, 2),
    "remat": layers.repeat(identity, 1, remat=True),
    "mixed_precision": layers.mixed_precision(identity, compute=jnp.float32),
    "residual": layers.residual(
        lambda x: jax.tree.map(lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a, x)
    ),
    "watched": layers.watched(layers.chain(identity), nothing),
}


@given(x=TREES, name=st.sampled_from(sorted(CONTAINERS)))
@settings(max_examples=60)
def test_any_tree_goes_through_any_container_as_it_is(x, name):
    x = jax.tree.map(jnp.asarray, x)
    net = CONTAINERS[name]
    params, state = net.init(KEY, x)
    y, _ = net.apply(params, state, x, train=False)
    assert jax.tree.structure(y) == jax.tree.structure(x)
    for got, wanted in zip(jax.tree.leaves(y), jax.tree.leaves(x), strict=True):
        assert got.dtype == wanted.dtype
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            got, wanted = jax.random.key_data(got), jax.random.key_data(wanted)
        np.testing.assert_array_equal(got, wanted)
    if "watched" not in name:
        assert layers.summary(net, x).parameters == 0


@given(x=TREES)
def test_mixed_precision_casts_what_floats_and_nothing_else(x):
    x = jax.tree.map(jnp.asarray, x)
    seen = []
    net = layers.mixed_precision(lambda x: seen.append(x) or x, output=jnp.float16)
    y, _ = net.apply(*net.init(KEY, x), x, train=False)
    for before, inside, after in zip(*map(jax.tree.leaves, (x, seen[-1], y)), strict=True):
        floats = before.dtype == jnp.float32
        assert (inside.dtype, after.dtype) == ((jnp.bfloat16, jnp.float16) if floats else (before.dtype,) * 2)


def test_mixed_precision_of_tokens():
    net = layers.mixed_precision(embedding(), params=jnp.float16, compute=jnp.bfloat16)
    params, state = net.init(KEY, X)
    assert params["table"].dtype == jnp.float16
    y, _ = apply(net, params, state, X, train=False)
    assert (y["h"].dtype, y["mask"].dtype) == (jnp.float32, jnp.bool_)
    np.testing.assert_allclose(y["h"], np.asarray(params["table"], np.float32)[TOKENS], rtol=1e-2)


@given(x=TREES)
def test_residual_adds_what_floats_and_passes_on_the_rest(x):
    x = {"x": jax.tree.map(jnp.asarray, x)}
    doubled, _ = layers.residual(identity).apply(
        {"branch": (), "shortcut": ()}, {"branch": (), "shortcut": ()}, x, train=False
    )
    for got, wanted in zip(jax.tree.leaves(doubled), jax.tree.leaves(x), strict=True):
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            assert got is wanted
        else:
            np.testing.assert_array_equal(got, 2 * wanted if jnp.issubdtype(wanted.dtype, jnp.inexact) else wanted)


def test_residual_passes_on_the_shortcuts_part_and_adds_complex_numbers():
    branch = layers.stateless(lambda key, x: (), lambda params, x: {"n": x["n"] + 1, "z": x["z"] * x["z"]})
    x = {"n": np.arange(3, dtype=np.int32), "z": np.array([1j, 2.0], np.complex64)}
    y, _ = apply(layers.residual(branch), *layers.residual(branch).init(0, x), x, train=False)
    np.testing.assert_array_equal(y["n"], x["n"])
    np.testing.assert_array_equal(y["z"], [-1 + 1j, 6])


# Tools.


def test_check_layer_takes_trees_and_tokens():
    testing.check_layer(network(), X)


def test_check_layer_takes_an_integer_array_and_still_sees_faults():
    table = layers.stateless(lambda key, x: {"t": jax.random.normal(key, (7, 2), F)}, lambda p, x: p["t"][x])
    testing.check_layer(table, X["tokens"])
    testing.check_layer(lambda x: x["tokens"] * 2, X)  # nothing to differentiate

    @jax.custom_jvp
    def wrong(t):
        return t * t

    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, 3 * primals[0] * tangents[0]))
    with pytest.raises(AssertionError, match="derivatives in evaluation disagree"):
        testing.check_layer(
            table._replace(apply=lambda p, s, x, *, train, key=None: (wrong(p["t"])[x], s)), X["tokens"]
        )
    with pytest.raises(AssertionError, match="evaluation turns float32 into float16"):
        testing.check_layer(lambda x: (x[0].astype(jnp.float16), x[1]), (Y, X["mask"]))
    with pytest.raises(
        AssertionError, match=r"at least two examples .* got a dict of \['a'\] float32 \(4, 2\), \['b'\]"
    ):
        testing.check_layer(identity, {"a": Y, "b": jnp.ones(3)})


def test_summary_of_dicts_and_tuples():
    table = layers.summary(network(), X)
    rows = {row.path: row for row in table.rows}
    assert rows[("0",)].parameters == 21
    assert rows[("3",)].output == ((4, 2), (4, 2))
    assert rows[()].output == (4, 2)
    assert "float32" in str(table)


def test_weights_go_to_pytorchs_names_and_back(drawn):
    theirs = interop.to_torch(*drawn, network())
    assert theirs["1.0.branch.0.weight"].shape == (3, 3)
    assert theirs["0.weight"].shape == (7, 3)
    params, _ = interop.from_torch(theirs, network(), X)
    jax.tree.map(np.testing.assert_array_equal, params, drawn[0])


def test_backprop_shows_tokens_without_adjoints(drawn):
    params, state = drawn
    net = network()

    def loss(params, x):
        return losses.mse(net.apply(params, state, x, train=False)[0], Y)

    graph = backprop.trace(loss, params, X)
    expected = jax.jit(jax.grad(loss))(params, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), graph.gradients[0], expected)
    assert graph.gradients[1] == {"mask": None, "tokens": None}


def test_diagnostics_of_dicts_and_tuples(drawn, tmp_path):
    net = layers.chain(network(), activations.relu, layers.dense(2))
    params, state = net.init(KEY, X)
    report = diagnostics.layer_report(net, losses.mse, params, state, (X, Y), optimizer=optimizers.sgd(0.1))
    assert report.labels[0] == "0.0 embedding"
    np.testing.assert_allclose(report.mean[0], np.mean(np.asarray(params[0][0]["table"])[TOKENS]), rtol=1e-5)
    table_gradient = report.parameter_gradient[0]

    def loss(params):
        return losses.mse(net.apply(params, state, X, train=True)[0], Y)

    np.testing.assert_allclose(
        table_gradient, np.linalg.norm(jax.jit(jax.grad(loss))(params)[0][0]["table"]), rtol=1e-4
    )
    assert report.activation_gradient[0] > 0
    dead = diagnostics.dead_units(net, params, state, X, batch_size=3)
    assert dead.labels == ("1 relu",)
    y = apply(network(), params[0], state[0], X, train=False)[0]
    np.testing.assert_array_equal(dead.indices[0], np.flatnonzero((np.asarray(y) <= 0).all(0)))
    scale = diagnostics.noise_scale(net, losses.mse, params, state, (X, Y), parts=2)
    assert np.isfinite(scale.noise)
    pytest.importorskip("matplotlib")
    assert diagnostics.pictures.activation_histograms(tmp_path / "h.png", net, params, state, X).exists()


def test_a_layer_that_gives_only_integers_has_no_gradient():
    net = layers.chain(lambda x: x["tokens"], lambda t: jax.nn.one_hot(t, 7, dtype=F)[:, 0], layers.dense(2))
    report = diagnostics.layer_report(net, losses.mse, *net.init(KEY, X), (X, Y))
    assert np.isnan(report.activation_gradient[0])
    assert report.activation_gradient[1] > 0


def test_training_and_diagnosis_of_a_dict():
    many = jax.tree.map(lambda leaf: np.tile(leaf, (8,) + (1,) * (leaf.ndim - 1)), jax.tree.map(np.asarray, X))
    target = np.tile(np.asarray(Y), (8, 1))
    net = network()
    adam = optimizers.adam(0.02)
    fit = training.fit(
        net, losses.mse, adam, (many, target), epochs=30, batch_size=8, validation=(many, target), progress=False
    )
    assert isinstance(fit.history, History)
    assert fit.history["validation_loss"][-1] < 0.3 * fit.history["validation_loss"][0]
    measured = training.make_evaluate(net, losses.mse)(fit.params, fit.state, (many, target))["loss"]
    y = right(fit.params, TOKENS, MASK)
    np.testing.assert_allclose(measured, np.mean((y - np.asarray(Y, np.float64)) ** 2), rtol=1e-3)
    small = layers.chain(embedding(), masked_sum, layers.dense(2))  # of what diagnose tries, each is a program
    found = diagnostics.diagnose(small, losses.mse, adam, (many, target), steps=60)
    assert found.verdicts
    rates = diagnostics.rate_range_test(net, losses.mse, optimizers.sgd(1.0), (many, target), steps=20, high=1e3)
    assert rates.losses.shape == (20,)


# What cannot be done says so, with the cure that is right there.

PAIR = layers.parallel(layers.dense(2), layers.dense(2))
STRUCT = jax.ShapeDtypeStruct((4, 3), F)
REFUSED = {
    "a tuple to dense": (lambda: layers.dense(2).init(0, (Y, Y)), r"^dense: x must be an array, got a tuple of 2; take a part .*lambda x: x\[0\]; a parallel gives one array with combine='concatenate'"),
    "a parallel before dense": (lambda: layers.chain(PAIR, layers.dense(1)).init(0, STRUCT), r"^chain\[1\]: dense: x must be an array, got a tuple of 2; .*combine='concatenate'"),
    "inside a residual": (lambda: layers.chain(jnp.tanh, layers.residual(layers.chain(PAIR, layers.flatten()))).init(0, STRUCT), r"^chain\[1\]/residual\.branch/chain\[1\]: flatten: x must be an array, got a tuple of 2"),
    "a dict to conv": (lambda: layers.conv(2, 3).init(0, X), r"^conv: x must be an array, got a dict of tokens, mask; take a part with a function before it, such as lambda x: x\['tokens'\]"),
    "what apply returned": (lambda: layers.dense(2).apply({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, (), (Y, ()), train=False), r"a layer's apply returns two things: output, state = net\.apply"),
    "tokens to dense": (lambda: layers.chain(layers.dense(2)).init(0, X["tokens"]), r"^chain\[0\]: dense: x must be floating point, got int32; .* of tokens, look their rows up in a table"),
    "a key to dense": (lambda: layers.dense(2).init(0, KEY), r"a PRNG key is passed as key="),
    "complex to dense": (lambda: layers.dense(2).init(0, jnp.ones((1, 2), jnp.complex64)), r"got complex64; take its parts apart"),
    "a number among arrays": (lambda: layers.chain(identity).init(0, (Y, 3.0)), r"^chain: x\[1\] must be an array, got float; pass a jax or numpy array"),
    "a string among arrays": (lambda: layers.chain(identity).init(0, {"a": Y, "b": "c"}), r"^chain: x\['b'\] must be an array, got str"),
    "rows of numbers": (lambda: layers.chain(identity).init(0, [[1.0, 2.0], [3.0, 4.0]]), r"^chain: x must be an array, got list; pass one array, numpy\.asarray"),
    "a shape": (lambda: layers.chain(identity).init(0, (1, 3)), r"pass jax\.ShapeDtypeStruct\(\(1, 3\)"),
    "None": (lambda: layers.chain(identity).init(0, None), r"^chain: x must be an array, got NoneType"),
    "an empty dict": (lambda: layers.summary(layers.chain(identity), {}), r"^summary: x must be an array, got an empty dict"),
    "residual of other entries": (lambda: layers.residual(lambda x: x["mask"]).init(0, X), r"^residual: the branch gives bool \(4, 4\) and the shortcut a dict of \['mask'\] bool \(4, 4\), \['tokens'\] int32 \(4, 4\); they must have one structure"),
    "residual of other shapes": (lambda: layers.residual(lambda x: {**x, "mask": x["mask"][:, :2]}).init(0, X), r"^residual: the branch gives \(4, 2\) and the shortcut \(4, 4\) at \['mask'\]"),
    "residual of other dtypes": (lambda: layers.residual(lambda x: (x[0].astype(jnp.float16), x[1])).init(0, (Y, Y)), r"^residual\[0\]: dtypes differ: branch float16, shortcut float32"),
    "a sum of tuples": (lambda: layers.parallel(identity, identity, combine="sum").init(0, (Y, Y)) and layers.parallel(identity, identity, combine="sum").apply(((), ()), ((), ()), (Y, Y), train=False), r"^parallel: to be combined, each branch must give one array, but \[0\] gives a tuple of \[0\] float32 \(4, 2\)"),
    "a concatenation of dtypes": (lambda: layers.parallel(identity, lambda x: x.astype(jnp.float16), combine="concatenate").apply(((), ()), ((), ()), Y, train=False), r"^parallel: dtypes differ: \[0\] float32, \[1\] float16"),
    "repeat of what changes": (lambda: layers.repeat(lambda x: {"mask": x["mask"]}, 2).init(0, X), r"^repeat: the layer turns a dict of .* into a dict of \['mask'\] bool \(4, 4\); only a layer that keeps"),
    "a matrix of a dict": (lambda: layers.as_matrix(identity, (), X), r"^as_matrix: x must be an array, got a dict of tokens, mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_its_cure(name):
    call, message = REFUSED[name]
    with pytest.raises(JaxnetError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert isinstance(caught.value, (DTypeError, ShapeError))

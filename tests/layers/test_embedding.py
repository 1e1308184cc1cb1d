"""Embedding and its tied projection against PyTorch and NumPy's indexing; tokens that are none; the padding entry."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, initializers, interop, layers, losses, optimizers, testing, training
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError
from tests.compiled import apply

ENTRIES, FEATURES = 7, 3
TOKENS = np.array([[0, 3, 6, 6], [2, 6, 0, 5]], np.int32)
TABLE = np.random.default_rng(0).standard_normal((ENTRIES, FEATURES))
LAYER = layers.embedding(ENTRIES, FEATURES)
PADDED = layers.embedding(ENTRIES, FEATURES, padding=6)


def rows(table, tokens, layer=LAYER):
    return layer.apply({"table": table}, (), tokens, train=True)[0]


def tied_network():
    return layers.tied(
        layers.embedding(ENTRIES, FEATURES, table_init=initializers.normal(0.02)),
        layers.chain(layers.dense(FEATURES), activations.tanh),
    )


@pytest.mark.peers
@pytest.mark.parametrize("padding", [None, 6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients_are_pytorchs(dtype, padding):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    theirs = torch.nn.Embedding(ENTRIES, FEATURES, padding_idx=padding, dtype=getattr(torch, dtype))
    cotangent = np.cos(np.arange(TOKENS.size * FEATURES)).reshape(*TOKENS.shape, FEATURES).astype(dtype)
    expected = theirs(torch.tensor(TOKENS))
    expected.backward(torch.tensor(cotangent))
    layer = layers.embedding(ENTRIES, FEATURES, padding=padding)
    with jax.enable_x64(dtype == "float64"):
        net = layers.mixed_precision(layer, params=dtype, compute=dtype, output=dtype)
        params, _ = interop.from_torch(theirs.state_dict(), net, TOKENS)

        @jax.jit
        def both(table, cotangent):
            y, pull = jax.vjp(lambda t: rows(t, TOKENS, layer), table)
            return y, *pull(cotangent)

        y, gradient = both(params["table"], cotangent)
        assert gradient.dtype == dtype
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_allclose(gradient, theirs.weight.grad.numpy(), rtol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.peers
def test_tied_values_and_gradients_are_pytorchs(x64):
    """One tensor in two modules; its gradient is the sum of both uses."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    nn = torch.nn
    embedding, dense = (nn.Embedding(ENTRIES, FEATURES).double(), nn.Linear(FEATURES, FEATURES).double())
    head = nn.Linear(FEATURES, ENTRIES, bias=False).double()
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "body": nn.ModuleDict({"0": dense}), "head": head})
    logits = head(torch.tanh(dense(embedding(torch.tensor(TOKENS)))))
    nn.functional.cross_entropy(logits.reshape(-1, ENTRIES), torch.tensor(TOKENS.reshape(-1)).long()).backward()

    net = layers.mixed_precision(tied_network(), params="float64", compute="float64", output="float64")
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays.pop("head.weight")
    params, state = interop.from_torch(arrays, net, TOKENS)

    def step(params):
        y, _ = net.apply(params, state, TOKENS, train=True)
        return losses.softmax_cross_entropy(y, TOKENS), y

    (_, y), gradient = jax.jit(jax.value_and_grad(step, has_aux=True))(params)
    np.testing.assert_allclose(y, logits.detach().numpy(), rtol=1e-12)
    for name, ours in interop.to_torch(gradient, state, net).items():
        np.testing.assert_allclose(ours, model.get_parameter(name).grad.numpy(), rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("layer", [LAYER, PADDED], ids=["plain", "padded"])
def test_the_contract(layer):
    testing.check_layer(layer, TOKENS)


def test_the_contract_of_tied():
    testing.check_layer(tied_network(), TOKENS)
    masked = layers.tied(layers.on_first(LAYER), layers.on_first(layers.dense(FEATURES)))
    testing.check_layer(masked, (TOKENS, TOKENS > 2))


@pytest.mark.parametrize("around", [layers.frozen, layers.raveled, layers.mixed_precision, layers.on_first])
def test_a_tied_embedding_may_be_wrapped(around):
    """The logits are made by the layer as it is given, not of a leaf that must lie somewhere in its params."""
    net = layers.tied(around(LAYER), layers.dense(FEATURES))
    params, state = net.init(0, TOKENS)
    y, _ = apply(net, params, state, TOKENS, train=True)
    wrapped = state["embedding"] if around is layers.frozen else params["embedding"]
    table = np.asarray(next(leaf for leaf in jax.tree.leaves(wrapped))).reshape(ENTRIES, FEATURES)
    dense = jax.tree.map(np.asarray, params["body"])
    right = (table[TOKENS] @ dense["kernel"] + dense["bias"].reshape(1, 1, -1)) @ table.T
    digits = 3e-2 if around is layers.mixed_precision else 1e-5
    np.testing.assert_allclose(y, right, rtol=digits, atol=digits)


def test_derivatives_of_the_table_are_linear_in_it(x64):
    """Forward, reverse, under vmap of tables and of tokens, and the derivative of the gradient, which is 0."""
    table, tangent = TABLE, np.cos(TABLE)
    y, moved = jax.jit(lambda t, u: jax.jvp(lambda t: rows(t, TOKENS), (t,), (u,)))(table, tangent)
    np.testing.assert_array_equal(y, TABLE[TOKENS])
    np.testing.assert_array_equal(moved, np.cos(TABLE)[TOKENS])

    @jax.jit
    def gradient(table, tokens):
        return jax.grad(lambda t: jnp.sum(jnp.sin(rows(t, tokens))))(table)

    expected = np.zeros_like(TABLE)
    np.add.at(expected, TOKENS, np.cos(TABLE[TOKENS]))
    np.testing.assert_allclose(gradient(table, TOKENS), expected, rtol=1e-12)
    together = jax.jit(jax.vmap(gradient))(np.stack([table, -table]), np.stack([TOKENS, TOKENS[::-1]]))
    for got, (one, tokens) in zip(together, ((table, TOKENS), (-table, TOKENS[::-1])), strict=True):
        np.testing.assert_allclose(got, gradient(one, tokens), rtol=1e-12)
    second = jax.jit(lambda t, u: jax.jvp(lambda t: gradient(t, TOKENS), (t,), (u,))[1])(table, tangent)
    count = np.bincount(TOKENS.ravel(), minlength=ENTRIES)[:, None]
    np.testing.assert_allclose(second, -count * np.sin(TABLE) * np.cos(TABLE), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_tables_gradient_is_summed_in_float32(dtype):
    """4,000 ones: in bfloat16 their sum ends at 256."""
    table = np.zeros((2, 1), jnp.dtype(dtype))
    tokens = np.zeros(4000, np.int32)
    gradient = jax.jit(jax.grad(lambda t: rows(t, tokens, layers.embedding(2, 1)).astype(jnp.float32).sum()))(table)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, np.asarray([[4000], [0]], table.dtype))


@pytest.mark.parametrize("bad", [-1, ENTRIES, 2**31 - 1, -(2**31)])
def test_what_is_no_token_raises_outside_jit_and_gives_nan_inside(bad):
    tokens = TOKENS.copy()
    tokens[1, 2] = bad
    params = {"table": jax.device_put(TABLE.astype(np.float32))}
    for given in (tokens, jax.device_put(tokens)):
        with pytest.raises(DataError, match=rf"embedding: token {bad} at index \(1, 2\) is none of the 7 entries"):
            rows(params["table"], given)

    @jax.jit
    def step(table, tokens, weight):
        y, pull = jax.vjp(lambda t: rows(t, tokens), table)
        return y, jnp.exp(y), pull(weight)[0]

    weight = np.ones((*TOKENS.shape, 1), np.float32) * np.arange(1, 4, dtype=np.float32)
    y, exponentials, gradient = step(params["table"], tokens, weight)
    for shown in (y, exponentials):
        np.testing.assert_array_equal(np.isnan(shown).any(-1), tokens == bad)
        np.testing.assert_array_equal(np.isnan(shown).all(-1), tokens == bad)
    # No row learns of it, neither the first, nor the last, nor the one that it would be modulo 7.
    count = np.bincount(tokens[tokens != bad], minlength=ENTRIES)
    np.testing.assert_array_equal(gradient, count[:, None] * np.arange(1.0, 4.0))


def test_narrow_tokens_of_many_entries():
    """A comparison in 8 bits would take 300 for 44."""
    layer = layers.embedding(300, 2)
    table = np.arange(600, dtype=np.float32).reshape(300, 2)
    looked_up = jax.jit(lambda table, tokens: rows(table, tokens, layer))
    for dtype in (np.uint8, np.int8, np.uint32):
        tokens = np.asarray([0, 44, 127], dtype)
        np.testing.assert_array_equal(looked_up(table, tokens), table[tokens])
    assert np.isnan(looked_up(table, np.asarray([-1, -1, -1], np.int8))).all()


def test_a_padding_entry_is_0_and_learns_nothing():
    params, _ = PADDED.init(0, TOKENS)
    drawn = np.asarray(params["table"])
    np.testing.assert_array_equal(drawn[6], 0)
    assert (np.abs(drawn[:6]) > 0).all()

    @jax.jit
    def both(table):
        y = rows(table, TOKENS, PADDED)
        return y, jax.grad(lambda t: jnp.sum(jnp.cos(rows(t, TOKENS, PADDED) + 1)))(table)

    table = TABLE.astype(np.float32)
    y, gradient = map(np.asarray, both(table))
    np.testing.assert_array_equal(gradient[6], 0)
    assert np.abs(gradient[0]).min() > 0
    np.testing.assert_array_equal(y, np.where(TOKENS[..., None] == 6, 0, table[TOKENS]))


def test_it_trains_in_one_call():
    """Each token's own successor is learned by a tied network, by way of fit."""
    tokens = np.arange(ENTRIES, dtype=np.int32)[:, None]
    net = layers.tied(layers.embedding(ENTRIES, 16), layers.dense(16))
    data = tokens, np.roll(tokens, -1, 0)
    fit = training.fit(
        net, losses.softmax_cross_entropy, optimizers.adam(0.05), data, epochs=60, batch_size=7, progress=False
    )
    logits, _ = apply(net, fit.params, fit.state, tokens, train=False)
    np.testing.assert_array_equal(np.argmax(logits, -1), data[1])


def test_on_first_hands_the_others_on():
    x, mask = TABLE.astype(np.float32), TABLE[:, 0] > 0
    layer = layers.on_first(layers.chain(layers.batch_norm(), layers.dropout(0.5), layers.dense(2)))
    params, state = layer.init(0, (x, mask, 3 * x))
    inner = layer.about.parts[0][1]
    chex.assert_trees_all_equal((params, state), inner.init(0, x))
    key = jax.random.key(1)
    (y, *others), new = apply(layer, params, state, (x, mask, 3 * x), train=True, key=key)
    chex.assert_trees_all_equal((y, new), apply(inner, params, state, x, train=True, key=key))
    chex.assert_trees_all_equal(others, [mask, 3 * x])
    chex.assert_trees_all_equal(apply(layer, params, state, x, train=True, key=key), (y, new))
    assert type(apply(layer, params, state, (x,), train=False)[0]) is tuple


def test_on_first_in_containers_and_tools():
    """Two entries, of which a residual adds the one; PyTorch's names know nothing of it."""
    x, mask = TABLE.astype(np.float32), TABLE[:, 0] > 0
    net = layers.repeat(layers.residual(layers.on_first(layers.chain(layers.dense(3), jnp.tanh))), 2)
    testing.check_layer(net, (x, mask))
    params, state = net.init(0, (x, mask))
    assert interop.to_torch(params, state, net).keys() == {
        f"{i}.branch.0.{name}" for i in range(2) for name in ("weight", "bias")
    }
    assert layers.summary(net, (x, mask)).parameters == 2 * 12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layers.embedding(0, 3), ConfigError, "embedding: entries must be an integer >= 1, got 0"),
        (lambda: layers.embedding(3, 2.5), ConfigError, "embedding: features must be an integer >= 1, got 2.5"),
        (lambda: layers.embedding(3, 2, padding=3), ConfigError, "padding must be a token, 0 to 2, got 3"),
        (lambda: layers.embedding(3, 2, padding=-1), ConfigError, "padding must be an integer >= 0"),
        (lambda: layers.embedding(3, 2, table_init="normal"), ConfigError, "table_init must be callable"),
        (
            lambda: LAYER.init(0, TABLE.astype(np.float32)),
            DTypeError,
            r"embedding: x must be tokens, .* got float.*astype\('int32'\)",
        ),
        (lambda: rows(jnp.ones((7, 3)), TOKENS > 1), DTypeError, "must be tokens, which are integers, got bool"),
        (lambda: rows(jnp.ones((8, 3)), TOKENS), ShapeError, r"the table \(8, 3\) is another layer's"),
        (lambda: rows(jnp.ones((7, 3)), TOKENS.astype(np.float32)), ShapeError, r"got shape \(2, 4\); tokens are int"),
        (lambda: layers.tied(LAYER, layers.dense(4)).init(0, TOKENS), ShapeError, r"vectors \(\.\.\., 3\), got shape"),
        (lambda: layers.tied(LAYER, 3), ConfigError, "tied: a part must be a layer"),
        (lambda: layers.on_first(jnp.tanh).init(0, ()), DTypeError, "x must be an array, got"),
        (lambda: layers.on_first(jnp.tanh).apply((), (), (), train=False), ShapeError, "on_first: x is an empty tuple"),
        (lambda: layers.on_first(3), ConfigError, "on_first: a part must be a layer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

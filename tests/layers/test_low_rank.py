"""`low_rank`: the layer with a small change to learn, by its formula in PyTorch, frozen, and merged."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import interop, layers
from jaxnet.errors import ConfigError, ShapeError
from jaxnet.paths import select

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 4)).astype(np.float32)
NETWORKS = {
    "repeat": lambda: layers.repeat(layers.residual(layers.chain(jnp.tanh, layers.attention(2))), 2),
    "mixed": lambda: layers.mixed_precision(layers.chain(layers.dense(4), layers.batch_norm()), compute=jnp.bfloat16),
    "beside a frozen one": lambda: layers.chain(layers.frozen(layers.dense(4)), layers.dense(3)),
}


def drawn(params):
    """Other numbers for all of them, those that begin at 0 too."""
    return jax.tree.map(lambda p: jnp.asarray(RNG.standard_normal(p.shape), p.dtype), params)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_begins_as_the_layer_and_is_merged_into_it(name):
    net = NETWORKS[name]()
    adapted = layers.low_rank(net, 2)
    plain, state = net.init(3, X)
    params, same = adapted.init(3, X)
    chex.assert_trees_all_equal(same, state)
    given = layers.low_rank(net, 2, drawn(plain), state).init(3, X)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(given, params)
    begun, _ = jax.jit(lambda p: adapted.apply(p, state, X, train=False))(params)
    np.testing.assert_array_equal(begun, jax.jit(lambda p: net.apply(p, state, X, train=False))(plain)[0])

    params = drawn(params)
    merged, merged_params, merged_state = layers.merged(adapted, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes((merged_params, merged_state), (plain, state))
    ours, theirs = (
        n.apply(p, s, X, train=False)[0]
        for n, p, s in ((adapted, params, state), (merged, merged_params, merged_state))
    )
    tolerance = 5e-2 if name == "mixed" else 1e-5
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=tolerance, atol=tolerance
    )
    assert [row.name for row in layers.summary(adapted, X).rows] == [row.name for row in layers.summary(net, X).rows]


@pytest.mark.peers
def test_it_is_the_formula_in_pytorch_with_pefts_names():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")
    adapted = layers.low_rank(layers.conv(6, 3, groups=2), 2, alpha=6)
    params, state = adapted.init(0, X)
    params = drawn(params)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in interop.to_torch(params, state, adapted).items()}
    shapes = {name: tuple(a.shape) for name, a in theirs.items()}
    assert shapes == {
        "base_layer.weight": (6, 2, 3), "base_layer.bias": (6,), "lora_A.weight": (2, 2, 3), "lora_B.weight": (6, 2)
    }  # fmt: skip
    change = torch.einsum("or,rik->oik", theirs["lora_B.weight"], theirs["lora_A.weight"])
    weight = theirs["base_layer.weight"] + 3 * change
    y = torch.nn.functional.conv1d(torch.tensor(np.moveaxis(X, -1, 1)), weight, theirs["base_layer.bias"], groups=2)
    y.square().sum().backward()
    found, grads = jax.value_and_grad(lambda p: jnp.sum(adapted.apply(p, state, X, train=True)[0] ** 2))(params)
    np.testing.assert_allclose(found, y.square().sum().detach(), rtol=1e-5)
    wanted, _ = interop.from_torch({name: a.grad for name, a in theirs.items()}, adapted, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grads, wanted)


def test_kernels_are_chosen_by_their_paths():
    """In the guide to fine-tuning they are trained alone."""
    tokens = jnp.arange(8).reshape(2, 4)
    net = layers.chain(layers.embedding(8, 4), layers.attention(2), layers.batch_norm(), layers.dense(2))
    adapted = layers.low_rank(net, 1, which=["1/*", "*table", "!*output_kernel"])
    params, _ = jax.eval_shape(lambda: adapted.init(0, tokens))
    assert [list(layer.get("low_rank", ())) for layer in params] == [["table"], ["kernel"], [], []]
    both = layers.low_rank(layers.lstm(3, direction="both"), 1, which="*backward/kernel")
    drawn, _ = jax.eval_shape(lambda: both.init(0, X))
    assert jax.tree.map(lambda leaf: leaf.shape, drawn["low_rank"]) == {
        "backward/kernel": {"down": (4, 1), "up": (1, 12)}
    }
    merged, _ = jax.eval_shape(lambda p: layers.merged(both, p, ())[1:], drawn)
    assert merged["backward"]["kernel"].shape == (4, 12)
    chosen = select(params, "!*low_rank")
    assert [all(jax.tree.leaves(layer)) for layer in chosen] == [False, False, True, True]


def test_the_first_factor_is_drawn_by_what_goes_into_it():
    """By the inputs of the kernel, 5 x 80; not by the rank."""
    params, _ = layers.low_rank(layers.conv(1, 5), 50).init(0, jnp.ones((1, 5, 80)))
    down = params["low_rank"]["kernel"]["down"]
    assert down.shape == (5, 80, 50)
    np.testing.assert_allclose(jnp.std(down), 400**-0.5, rtol=0.05)


def test_it_is_pickled():
    net = layers.low_rank(layers.chain(layers.conv(3, 2), layers.dense(2)), 2)
    again = pickle.loads(pickle.dumps(net))
    chex.assert_trees_all_equal(again.init(0, X), net.init(0, X))


DENSE = layers.dense(2)
PLAIN, _ = DENSE.init(0, X)
ADAPTED, _ = layers.low_rank(DENSE, 1).init(0, X)
BAD = {
    "rank": (lambda: layers.low_rank(DENSE, 0), ConfigError, "low_rank: rank must be an integer >= 1"),
    "alpha": (lambda: layers.low_rank(DENSE, 1, alpha=0.0), ConfigError, "low_rank: alpha must be"),
    "no kernel": (lambda: layers.low_rank(layers.chain(jnp.tanh), 1), ConfigError, "no layer in the chain has a ker"),
    "no such kernel": (
        lambda: layers.low_rank(layers.chain(DENSE), 1, which="1/*"),
        ConfigError,
        r"the pattern '1/\*' fits no leaf; the paths are 0/kernel",
    ),
    "a function that chooses none": (
        lambda: layers.low_rank(layers.chain(DENSE), 1, which=lambda path, _: path == "1/kernel"),
        ConfigError,
        "low_rank: the function chooses no leaf, and so would do nothing; it was asked of 0/kernel",
    ),
    "raveled": (
        lambda: layers.low_rank(layers.chain(layers.raveled(DENSE)), 1),
        ConfigError,
        r"nothing can be put into a raveled; adapt the network inside it, layers\.raveled\(layers\.low_rank",
    ),
    "a state alone": (
        lambda: layers.low_rank(DENSE, 1, state={"mean": jnp.ones(1)}),
        ConfigError,
        r"give both, low_rank\(layer, rank, params, state\)",
    ),
    "params of the layer itself": (
        lambda: layers.low_rank(DENSE, 1).apply(PLAIN, (), X, train=False),
        ConfigError,
        "dense: params must have a low_rank; pass what this layer's init returned, or params=",
    ),
    "of another layer": (
        lambda: layers.low_rank(layers.chain(DENSE), 1, ({**PLAIN, "kernel": jnp.ones((4, 3))},)).init(0, X),
        ConfigError,
        r"low_rank: params do not fit the layer at 0/kernel: float32 \(4, 3\) for float32 \(4, 2\)",
    ),
    "another rank": (
        lambda: layers.low_rank(DENSE, 2).apply(ADAPTED, (), X, train=False),
        ShapeError,
        r"kernel \(4, 2\) has a down and an up of shapes \(4, 2\) and \(2, 2\), got \(4, 1\) and \(1, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()

"""Weight norm and spectral norm against PyTorch, and in every container."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import interop, layers, sizes
from jaxnet.errors import ConfigError, ShapeError
from tests.compiled import apply
from tests.differences import assert_derivatives

X = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}


def network():
    return layers.chain(
        layers.conv(6, 3, groups=2, padding=1),
        jnp.tanh,
        layers.conv_transpose(6, 4, strides=2, padding=sizes.torch_padding(4, 1)),
        layers.residual(layers.conv(6, 1, bias=False)),
    )


def torch_network(torch, wrap):
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.branch = branch

        def forward(self, x):
            return self.branch(x) + x

    return nn.Sequential(
        wrap(nn.Conv1d(4, 6, 3, groups=2, padding=1)),
        nn.Tanh(),
        wrap(nn.ConvTranspose1d(6, 6, 4, stride=2, padding=1)),
        Residual(wrap(nn.Conv1d(6, 6, 1, bias=False))),
    )


SPELLINGS = ("weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_is_pytorchs(spelling, dtype):
    """Outputs, gradients by their parameters, and the state after, of weights in both spellings.

    The older spectral norm makes its half steps in the other order, and is compared in evaluation.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    old, name = spelling.startswith("old"), spelling.split()[-1]
    wrap = getattr(torch.nn.utils if old else torch.nn.utils.parametrizations, name)
    torch.manual_seed(0)
    theirs = torch_network(torch, wrap).to(getattr(torch, dtype))
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith(("weight_g", "original0")):
                parameter.mul_(1.5)
    with jax.enable_x64(dtype == "float64"):
        x = X.astype(dtype)
        net = getattr(layers, name)(network())
        start = {key: value.clone() for key, value in theirs.state_dict().items()}
        params, state = interop.from_torch(start, net, x)
        train = spelling != "old spectral_norm"
        ty = theirs.train(train)(torch.tensor(np.moveaxis(x, -1, 1)))
        ty.square().sum().backward()

        @jax.jit
        def step(params, state):
            def loss(params):
                y, new = net.apply(params, state, x, train=train)
                return jnp.sum(y**2), (y, new)

            return jax.grad(loss, has_aux=True)(params)

        grads, (y, new) = step(params, state)
        np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), ty.detach().numpy(), **TOLERANCE[dtype])
        gradients = {key: p.grad for key, p in theirs.named_parameters()}
        after = theirs.state_dict()
        tree, _ = interop.from_torch({**after, **gradients}, net, x)
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        near = {"rtol": 10 * TOLERANCE[dtype]["rtol"], "atol": scale * TOLERANCE[dtype]["atol"]}
        jax.tree.map(functools.partial(np.testing.assert_allclose, **near), grads, tree)
        _, moved = interop.from_torch(after, net, x)
        jax.tree.map(functools.partial(np.testing.assert_allclose, **TOLERANCE[dtype]), new, moved)
        evaluated, same = apply(net, params, new, x, train=False)
        chex.assert_trees_all_equal(same, new)
        expected = theirs.eval()(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
        np.testing.assert_allclose(np.moveaxis(np.asarray(evaluated), -1, 1), expected, **TOLERANCE[dtype])
        if not old:
            back = interop.to_torch(params, state, net)
            assert back.keys() == start.keys()
            for key, value in back.items():
                np.testing.assert_array_equal(value, start[key].numpy())


def host(tree):
    """In NumPy, whose arithmetic needs no program."""
    return jax.tree.map(np.asarray, tree)


NETWORKS = {
    "dense": lambda: layers.dense(3),
    "grouped": lambda: layers.conv_transpose(6, 3, groups=2),
    "chain": network,
    "repeat": lambda: layers.repeat(layers.residual(layers.chain(jnp.tanh, layers.dense(4))), 2),
    "mixed": lambda: layers.mixed_precision(layers.dense(4), compute=jnp.bfloat16),
    "beside a frozen one": lambda: layers.chain(layers.frozen(layers.dense(4)), layers.dense(4)),
    "parallel": lambda: layers.parallel(layers.dense(4), layers.batch_norm(), combine="sum"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_kept_at_the_start(name):
    net = NETWORKS[name]()
    normed = layers.weight_norm(net)
    (plain, state), (params, same) = (jax.jit(one.init)(jax.random.key(3), X) for one in (net, normed))
    chex.assert_trees_all_equal(same, state)
    bare = jax.tree_util.tree_map_with_path(
        lambda path, leaf: None if getattr(path[-1], "key", None) == "scale" and leaf.ndim > 1 else leaf, params
    )
    chex.assert_trees_all_equal(jax.tree.leaves(bare), jax.tree.leaves(plain))
    ours, theirs = (apply(n, p, state, X, train=False)[0] for n, p in ((normed, params), (net, plain)))
    close = {"rtol": 2e-2, "atol": 2e-2} if name == "mixed" else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(theirs, np.float32), **close)
    assert layers.summary(normed, X).multiply_adds == layers.summary(net, X).multiply_adds
    assert [row.name for row in layers.summary(normed, X).rows] == [row.name for row in layers.summary(net, X).rows]


@pytest.mark.parametrize("wrap", [layers.weight_norm, layers.spectral_norm])
def test_it_is_pickled(wrap):
    net = wrap(layers.chain(layers.conv(3, 2), layers.dense(2)))
    again = pickle.loads(pickle.dumps(net))
    params, state = net.init(0, X)
    chex.assert_trees_all_equal(again.init(0, X), (params, state))
    part = pickle.loads(pickle.dumps(net.about.parts[0][1]))
    chex.assert_trees_all_equal(part.init(0, X), net.about.parts[0][1].init(0, X))


def test_the_length_is_the_scale_and_of_no_direction_nothing_is_left():
    layer = layers.weight_norm(layers.conv(5, 3, bias=False))
    params, _ = layer.init(0, X)
    kernel = np.where(np.arange(5) == 1, np.float32(0), params["kernel"])
    params = {"kernel": kernel, "scale": np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)}
    w = layers.as_matrix(layer, params, X[:1, :3])
    lengths = np.where(np.arange(5) == 1, 0.0, np.arange(1.0, 6))
    np.testing.assert_allclose(np.linalg.norm(w.reshape(5, -1), axis=1), lengths, rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(layer.apply(p, (), X, train=True)[0] ** 2)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_sixteen_bits_have_lengths_of_float32():
    layer = layers.weight_norm(layers.dense(2, bias=False))
    v = np.full((4096, 2), 300.0, np.float16)  # whose squares overflow
    scale = np.full((1, 2), 64.0, np.float16)
    y, _ = apply(layer, {"kernel": v, "scale": scale}, (), np.ones((1, 4096), np.float16), train=False)
    np.testing.assert_allclose(np.asarray(y, np.float32), 4096.0, rtol=2e-3)


def test_spectral_norm_converges_to_the_largest_singular_value():
    layer = layers.spectral_norm(layers.conv(5, 3, bias=False), iterations=4)
    params, state = layer.init(0, X)
    for _ in range(60):
        _, state = apply(layer, params, state, X, train=True)
    w = layers.as_matrix(layer, params, X[:1, :3], state=state)
    np.testing.assert_allclose(np.linalg.norm(w, 2), 1.0, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_spectral_norms_derivatives_with_its_vectors_held():
    """In evaluation, where the vectors do not follow: first and second, against differences."""
    layer = layers.spectral_norm(layers.conv(2, 2))
    params, state = layer.init(0, X.astype(np.float64))
    assert_derivatives(lambda p: layer.apply(p, state, X.astype(np.float64), train=False)[0], params)


BAD = {
    "no kernel": (
        lambda: layers.weight_norm(layers.chain(jnp.tanh)),
        ConfigError,
        "weight_norm: no layer in the chain",
    ),
    "a layer without": (lambda: layers.weight_norm(layers.prelu()).init(0, X), ConfigError, "'prelu' has no kernel"),
    "raveled": (
        lambda: layers.spectral_norm(layers.chain(layers.raveled(layers.dense(2)))),
        ConfigError,
        r"chain\[0\]: spectral_norm: nothing can be put into a raveled.*layers\.raveled\(layers\.spectral_norm",
    ),
    "twice": (
        lambda: layers.weight_norm(layers.weight_norm(layers.dense(2))).init(0, X),
        ConfigError,
        "has a param 'scale' of its own",
    ),
    "iterations": (
        lambda: layers.spectral_norm(layers.dense(2), iterations=0),
        ConfigError,
        "iterations must be an int",
    ),
    "params of the layer itself": (
        lambda: layers.weight_norm(layers.dense(2)).apply(layers.dense(2).init(0, X)[0], (), X, train=False),
        ConfigError,
        "dense: params must have a kernel and a scale",
    ),
    "one length for all": (
        lambda: layers.weight_norm(layers.dense(2)).apply(
            {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2), "scale": jnp.ones((1, 1))}, (), X, train=False
        ),
        ShapeError,
        r"a kernel \(4, 2\) has a scale of shape \(1, 2\), got \(1, 1\)",
    ),
    "another state": (
        lambda: layers.spectral_norm(layers.dense(2)).apply(layers.dense(2).init(0, X)[0], (), X, train=False),
        ConfigError,
        "the state must have left and right",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("wrap", [layers.weight_norm, layers.spectral_norm])
def test_merged_it_computes_the_same(wrap, name):
    net = NETWORKS[name]()
    normed = wrap(net)
    params, state = jax.jit(normed.init)(jax.random.key(3), X)
    params = jax.tree.map(lambda leaf: (leaf * 1.5 if leaf.ndim > 1 else leaf + 0.1).astype(leaf.dtype), host(params))
    plain, plain_params, plain_state = layers.merged(normed, params, state)
    structs = jax.eval_shape(net.init, jax.random.key(3), X)
    chex.assert_trees_all_equal_shapes_and_dtypes((plain_params, plain_state), structs)
    ours, theirs = (
        apply(n, p, s, X, train=False)[0] for n, p, s in ((normed, params, state), (plain, plain_params, plain_state))
    )
    tolerance = 1e-2 if name == "mixed" else 1e-6  # bfloat16 is divided, or what is divided is rounded to it
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=tolerance, atol=tolerance
    )
    assert layers.merged(plain, plain_params, plain_state)[0] is plain


def test_merged_refuses():
    net = layers.chain(layers.raveled(layers.weight_norm(layers.dense(2))))
    with pytest.raises(ConfigError, match=r"^chain\[0\]: merged: nothing can be put into a raveled.*inside it"):
        layers.merged(net, *net.init(0, X))
    net = layers.chain(layers.weight_norm(layers.dense(2)), jnp.tanh)
    params, state = net.init(0, X)
    with pytest.raises(ConfigError, match=r"chain has the parts 0, 1, but params or state are no tuple"):
        layers.merged(net, params[0], state)
    with pytest.raises(ConfigError, match=r"^chain\[0\]: merged: params must have a kernel and a scale"):
        layers.merged(net, (layers.dense(2).init(0, X)[0], ()), state)
    with pytest.raises(ConfigError, match="merge the network first"):
        layers.merged(net, params, layers.Memory(state, ()))

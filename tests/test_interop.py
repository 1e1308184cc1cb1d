"""Weights from PyTorch and for PyTorch: the same outputs on both sides, and no array without its place."""

import itertools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnet import activations, diagnostics, interop, layers, losses, optimizers, sizes
from jaxnet.errors import CheckpointError, ConfigError, DTypeError, ShapeError

X = np.random.default_rng(0).standard_normal((3, 20, 4)).astype(np.float32)


def torch_flatten(x):
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


def network():
    """Every layer that learns, in every container."""
    return layers.chain(
        layers.conv(6, 4, strides=2, padding=3, dilation=2, groups=2),
        activations.leaky_relu,
        layers.batch_norm(decay=0.8),
        layers.residual(
            layers.chain(layers.conv(6, 3, padding=1, groups=3), layers.prelu(per_channel=True)),
            layers.conv(6, 1, bias=False),
        ),
        layers.repeat(layers.residual(layers.chain(layers.batch_norm(), jnp.tanh, layers.conv(6, 3, padding=1))), 3),
        layers.conv_transpose(4, 4, strides=3, padding=sizes.torch_padding(4, 1, output_padding=2), groups=2),
        layers.parallel(layers.conv(3, 3, padding=1), layers.conv(3, 1), combine="sum"),
        layers.prelu(),
        layers.max_pool(2),
        torch_flatten,
        layers.layer_norm(),
        layers.dropout(0.3),
        layers.mixed_precision(layers.dense(5), compute=jnp.float32),
    )


def torch_network(torch):
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self, branch, shortcut):
            super().__init__()
            self.branch, self.shortcut = branch, shortcut

        def forward(self, x):
            return self.branch(x) + self.shortcut(x)

    class Parallel(nn.ModuleList):
        def forward(self, x):
            return sum(branch(x) for branch in self)

    def block():
        return Residual(nn.Sequential(nn.BatchNorm1d(6), nn.Tanh(), nn.Conv1d(6, 6, 3, padding=1)), nn.Identity())

    return nn.Sequential(
        nn.Conv1d(4, 6, 4, stride=2, padding=3, dilation=2, groups=2),
        nn.LeakyReLU(),
        nn.BatchNorm1d(6, momentum=0.2),
        Residual(nn.Sequential(nn.Conv1d(6, 6, 3, padding=1, groups=3), nn.PReLU(6)), nn.Conv1d(6, 6, 1, bias=False)),
        nn.Sequential(block(), block(), block()),
        nn.ConvTranspose1d(6, 4, 4, stride=3, padding=1, output_padding=2, groups=2),
        Parallel([nn.Conv1d(4, 3, 3, padding=1), nn.Conv1d(4, 3, 1)]),
        nn.PReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.LayerNorm(45),
        nn.Dropout(0.3),
        nn.Linear(45, 5),
    )


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle; it is in the `peers` extra")


@pytest.fixture(scope="module")
def trained():
    """The network after a few steps, so that no array has its starting value."""
    net = network()
    params, state = net.init(0, X)
    optimizer = optimizers.adam(1e-2)
    opt_state = optimizer.init(params)
    labels = jnp.array([0, 3, 1])

    @jax.jit
    def step(params, state, opt_state, key):
        def loss(params):
            y, new = net.apply(params, state, X, train=True, key=key)
            return losses.softmax_cross_entropy(y, labels), new

        grads, state_ = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optimizers.apply_updates(params, updates), state_, opt_state

    for i in range(4):
        params, state, opt_state = step(params, state, opt_state, jax.random.key(i))
    return params, state


def evaluate(net, params, state, x):
    return jax.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0])(params, state, x)


def torch_evaluate(torch, model, x):
    model.eval()
    with torch.no_grad():
        return model(torch.tensor(np.moveaxis(x, -1, 1).copy())).numpy()


@pytest.mark.peers
def test_pytorch_computes_what_our_trained_network_does(torch, trained):
    model = torch_network(torch)
    arrays = interop.to_torch(*trained, network())
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()}, strict=True)
    expected = evaluate(network(), *trained, X)
    np.testing.assert_allclose(torch_evaluate(torch, model, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("as_numpy", [False, True])
def test_we_compute_what_a_model_that_pytorch_trained_does(torch, as_numpy):
    torch.manual_seed(0)
    model = torch_network(torch).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x, labels = torch.tensor(np.moveaxis(X, -1, 1).copy()), torch.tensor([0, 3, 1])
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    state_dict = model.state_dict()
    if as_numpy:
        state_dict = {name: tensor.numpy() for name, tensor in state_dict.items()}
    params, state = interop.from_torch(state_dict, network(), jax.ShapeDtypeStruct(X.shape, X.dtype))
    expected = torch_evaluate(torch, model, X)
    np.testing.assert_allclose(evaluate(network(), params, state, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.peers
def test_batch_norms_decay_is_one_less_pytorchs_momentum(torch):
    """Both train on from the same averages, and their averages stay the same."""
    norm, theirs = layers.batch_norm(decay=0.8), torch.nn.BatchNorm1d(4, momentum=0.2)
    params, state = norm.init(0, X)
    for i in range(3):
        x = X + np.float32(i)
        _, state = norm.apply(params, state, x, train=True)
        theirs.train()(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    arrays = interop.to_torch(params, state, norm)
    np.testing.assert_allclose(arrays["running_mean"], theirs.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(arrays["running_var"], theirs.running_var.numpy(), rtol=1e-6)


@st.composite
def convolution_layers(draw, ndim, transposed):
    """Ours and the arguments of PyTorch's, with groups."""
    groups = draw(st.integers(1, 3))
    size, strides, dilation = (draw(st.tuples(*[st.integers(1, most)] * ndim)) for most in (4, 3, 3))
    reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    padding = tuple(draw(st.integers(0, min(r, 2))) for r in reach)
    arguments = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": size,
        "stride": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    ours = {"strides": strides, "dilation": dilation, "groups": groups, "bias": arguments["bias"]}
    if transposed:
        extra = arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilation, strict=True)
        )
        ours["padding"] = [
            sizes.torch_padding(k, p, dilation=d, output_padding=e)
            for k, p, d, e in zip(size, padding, dilation, extra, strict=True)
        ]
    else:
        ours["padding"] = [(p, p) for p in padding]
    layer = (layers.conv_transpose if transposed else layers.conv)(arguments["out_channels"], size, **ours)
    lengths = tuple(r + 2 + i for i, r in enumerate(reach))
    return layer, f"Conv{'Transpose' * transposed}{ndim}d", arguments, (2, *lengths, arguments["in_channels"])


@pytest.mark.peers
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@settings(max_examples=2)
@given(data=st.data())
def test_every_convolution_converts_both_ways(torch, ndim, transposed, data):
    layer, name, arguments, shape = data.draw(convolution_layers(ndim, transposed))
    torch.manual_seed(0)
    model = getattr(torch.nn, name)(**arguments)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    params, state = interop.from_torch(model.state_dict(), layer, x)
    expected = torch_evaluate(torch, model, x)
    y = evaluate(layer, params, state, x)
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), expected, rtol=1e-5, atol=1e-5)
    back = interop.to_torch(params, state, layer)
    assert back.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back[key], tensor.numpy())


@pytest.mark.peers
def test_a_dense_layer_after_flatten_needs_pytorchs_order(torch):
    """The recipe in the docstring; with our own flatten the outputs would differ."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(80, 3))
    expected = torch_evaluate(torch, model, X)
    for flatten, same in ((torch_flatten, True), (layers.flatten(), False)):
        net = layers.chain(flatten, layers.dense(3))
        y = evaluate(net, *interop.from_torch(model.state_dict(), net, X), X)
        assert np.allclose(y, expected, atol=1e-5) == same


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_dtypes_are_kept(torch, dtype):
    net = layers.chain(layers.conv(4, 3, groups=2), layers.prelu())
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, groups=2), torch.nn.PReLU()).to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        params, state = interop.from_torch(model.state_dict(), net, jax.ShapeDtypeStruct(X.shape, dtype))
        arrays = interop.to_torch(params, state, net)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((params, arrays))} == {dtype}
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(arrays[name].astype(np.float64), tensor.double().numpy())


@pytest.mark.peers
def test_a_safetensors_file_of_the_documented_line_loads_in_pytorch(torch, trained, tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "net.safetensors"
    numpy_files.save_file(interop.to_torch(*trained, network()), path)
    model = torch_network(torch)
    model.load_state_dict(torch_files.load_file(path), strict=True)
    expected = evaluate(network(), *trained, X)
    np.testing.assert_allclose(torch_evaluate(torch, model, X), expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(interop.from_torch(numpy_files.load_file(path), network(), X), trained)


# Without PyTorch.


def awkward(struct):
    """Values that arithmetic would change: -0.0, infinities, subnormal numbers, NaN."""
    special = itertools.cycle([-0.0, np.inf, -np.inf, 1e-42, np.nan, 3.1])
    values = np.fromiter(special, np.float32, int(np.prod(struct.shape)))
    return jnp.asarray(values.reshape(struct.shape))


def test_a_round_trip_keeps_every_bit_and_needs_no_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    trees = jax.tree.map(awkward, jax.eval_shape(network().init, jax.random.key(0), X))
    arrays = interop.to_torch(*trees, network())
    back = interop.from_torch(arrays, network(), X)
    chex.assert_trees_all_equal_structs(back, trees)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(trees), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_arrays_are_writable_and_in_c_order(trained):
    arrays = interop.to_torch(*trained, network())
    assert all(type(a) is np.ndarray and a.flags.c_contiguous and a.flags.writeable for a in arrays.values())


def test_names_and_layouts():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"0.weight": (6, 2, 4), "0.bias": (6,)}
    expected |= {f"2.{name}": (6,) for name in norm[:-1]} | {"2.num_batches_tracked": ()}
    expected |= {"3.branch.0.weight": (6, 2, 3), "3.branch.0.bias": (6,), "3.branch.1.weight": (6,)}
    expected |= {"3.shortcut.weight": (6, 6, 1)}
    for i in range(3):
        expected |= {f"4.{i}.branch.0.{name}": (6,) for name in norm[:-1]}
        expected |= {f"4.{i}.branch.0.num_batches_tracked": ()}
        expected |= {f"4.{i}.branch.2.weight": (6, 6, 3), f"4.{i}.branch.2.bias": (6,)}
    expected |= {"5.weight": (6, 2, 4), "5.bias": (4,)}
    expected |= {"6.0.weight": (3, 4, 3), "6.0.bias": (3,), "6.1.weight": (3, 4, 1), "6.1.bias": (3,)}
    expected |= {"7.weight": (1,), "10.weight": (45,), "10.bias": (45,), "12.weight": (5, 45), "12.bias": (5,)}
    trees = jax.tree.map(awkward, jax.eval_shape(network().init, jax.random.key(0), X))
    arrays = interop.to_torch(*trees, network())
    assert {name: a.shape for name, a in arrays.items()} == expected
    assert arrays["2.num_batches_tracked"].dtype == np.int64


def test_one_layer_and_a_network_without_arrays():
    norm = layers.layer_norm(offset=False)
    assert interop.to_torch({"scale": jnp.ones(4)}, (), norm).keys() == {"weight"}
    nothing = layers.chain(layers.dropout(0.1), layers.repeat(jnp.tanh, 2))
    params, state = nothing.init(0, X)
    assert interop.to_torch(params, state, nothing) == {}
    assert interop.from_torch({}, nothing, X) == (params, state)


SMALL = layers.chain(layers.conv(6, 3), layers.residual(layers.batch_norm()))


def small():
    return interop.to_torch(*SMALL.init(0, X), SMALL)


def test_the_count_of_batches_may_be_missing():
    """As in files of models from before it existed; every other name must be there."""
    arrays = small()
    del arrays["1.branch.num_batches_tracked"]
    chex.assert_trees_all_equal(interop.from_torch(arrays, SMALL, X), SMALL.init(0, X))


def test_all_that_does_not_fit_is_told_at_once():
    arrays = small()
    arrays["head.weight"] = arrays.pop("0.weight")
    arrays["1.branch.running_mean"] = np.zeros(5, np.float32)
    arrays["1.branch.bias"] = arrays["1.branch.bias"].astype(np.float16)
    del arrays["1.branch.running_var"]
    with pytest.raises(CheckpointError) as caught:
        interop.from_torch(arrays, SMALL, X)
    assert str(caught.value).splitlines() == [
        "from_torch: the state dict does not fit the network chain:",
        "  missing: 0.weight, 1.branch.running_var",
        "  unexpected: head.weight",
        "  mismatched: 1.branch.bias is float16 (6,), the network has float32 (6,)",
        "  mismatched: 1.branch.running_mean is float32 (5,), the network has float32 (6,)",
        "Other names are given as rename={'ours': 'theirs'}; nothing is cast: convert the arrays, or x.",
    ]


def test_a_network_of_another_architecture_is_refused():
    for other in (layers.conv(6, 3), layers.chain(layers.conv(6, 3)), layers.chain(layers.conv_transpose(6, 3))):
        with pytest.raises(CheckpointError, match="does not fit the network"):
            interop.from_torch(small(), other, X)


@pytest.mark.parametrize(
    "rename",
    [
        {"0": "stem", "1.branch": "blocks.0.norm"},
        {"0.weight": "stem.weight", "0.bias": "stem.bias", "1": "blocks.0", "1.branch": "blocks.0.norm"},
        lambda name: name.replace("0.", "stem.", 1) if name[0] == "0" else name.replace("1.branch", "blocks.0.norm"),
    ],
)
def test_rename_goes_both_ways(rename):
    trees = SMALL.init(0, X)
    if isinstance(rename, dict) and "1" in rename:  # the longer one wins, so that this one does nothing
        with pytest.raises(ConfigError, match=r"to_torch: rename replaces '1' nowhere; .* of modules: 0\.weight"):
            interop.to_torch(*trees, SMALL, rename=rename)
        del rename["1"]
    arrays = interop.to_torch(*trees, SMALL, rename=rename)
    assert {name.rpartition(".")[0] for name in arrays} == {"stem", "blocks.0.norm"}
    chex.assert_trees_all_equal(interop.from_torch(arrays, SMALL, X, rename=rename), trees)


def test_renames_that_lose_an_array_are_refused():
    with pytest.raises(ConfigError, match=r"rename gives both 0\.weight and 1\.branch\.weight the name 'a\.weight'"):
        interop.to_torch(*SMALL.init(0, X), SMALL, rename={"0": "a", "1.branch": "a"})
    with pytest.raises(ConfigError, match="from_torch: rename must be callable, got 3"):
        interop.from_torch(small(), SMALL, X, rename=3)


def test_layers_of_ones_own_are_refused_by_name():
    scale = layers.stateless(lambda key, x: {"scale": jnp.ones(4)}, lambda p, x: x * p["scale"], name="gain")
    net = layers.chain(jnp.tanh, layers.residual(scale))
    params, state = net.init(0, X[0, 0])
    with pytest.raises(
        ConfigError, match=r"to_torch: 1\.branch is a layer 'gain', which does not say how PyTorch keeps"
    ):
        interop.to_torch(params, state, net)
    with pytest.raises(ConfigError, match=r"from_torch: 1\.branch is a layer 'gain'"):
        interop.from_torch({}, net, X[0, 0])


def test_params_of_another_network_are_refused():
    params, state = SMALL.init(0, X)
    with pytest.raises(ConfigError, match="to_torch: the network is a chain of the parts 0, 1, but its params are no"):
        interop.to_torch(params[:1], state, SMALL)
    with pytest.raises(ConfigError, match="1 is a residual of the parts branch, shortcut, but its state"):
        interop.to_torch(params, ((), ()), layers.chain(layers.conv(6, 3), layers.residual(layers.dense(4))))
    with pytest.raises(ConfigError, match="0 is a layer 'dense', whose arrays are kernel, bias, got offset, scale"):
        interop.to_torch(({"scale": jnp.ones(2), "offset": jnp.ones(2)},), ((),), layers.chain(layers.dense(2)))
    with pytest.raises(ConfigError, match="whose arrays are kernel, bias, got something else"):
        interop.to_torch(jnp.ones(3), (), layers.dense(2))
    with pytest.raises(ConfigError, match=r"is a repeat, whose arrays are stacked, all to one depth, got depths 2, 3"):
        interop.to_torch(
            {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((2, 2))}, (), layers.repeat(layers.dense(2), 3)
        )
    with pytest.raises(ShapeError, match=r"a dense kernel must have 2 axes \(N_in, N_out\)"):
        interop.to_torch({"kernel": jnp.ones(3)}, (), layers.dense(2, bias=False))


def test_what_is_no_mapping_of_arrays_is_refused():
    with pytest.raises(DTypeError, match="state_dict must map names to arrays, got list; pass model"):
        interop.from_torch([], SMALL, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match=r"0\.weight is object \(\), the network has float32 \(6, 4, 3\)"):
        interop.from_torch(small() | {"0.weight": small()}, SMALL, X)
    with pytest.raises(DTypeError, match=r"0\.bias cannot be read as an array: setting an array element"):
        interop.from_torch(small() | {"0.bias": [[1.0], 2.0]}, SMALL, X)


def test_a_watched_layer_converts_as_the_layer():
    """It is the layer itself that says how many groups it has."""
    layer = layers.conv_transpose(4, 3, groups=2)
    params, state = layer.init(0, X)
    watched = layers.watched(layer, lambda path, layer, params, state, x, y: ())
    chex.assert_trees_all_equal(interop.to_torch(params, state, watched), interop.to_torch(params, state, layer))


def own_dense(**says):
    """A user's layer that is called as one of ours and keeps its kernel as PyTorch does, (out, in)."""
    return layers.stateless(
        lambda key, x: {"kernel": jax.random.normal(key, (x.shape[-1], x.shape[-1]), x.dtype)},
        lambda params, x: x @ params["kernel"].T,
        name="dense",
    ).described(**says)


def test_a_layer_goes_by_what_it_says_and_not_by_its_name():
    """The row's own example: a square kernel, so that a wrong transposition has the right shape."""
    x = jnp.asarray(X[:, 0])
    net = layers.chain(own_dense(), jnp.tanh)
    params, state = net.init(0, x)
    with pytest.raises(ConfigError, match=r"0 is a layer 'dense', which does not say .*layer\.described\(torch="):
        interop.to_torch(params, state, net)
    with pytest.raises(ConfigError, match="0 is a layer 'dense', which does not say how PyTorch keeps its arrays"):
        interop.from_torch({"0.weight": np.ones((4, 4), np.float32)}, net, x)
    net = layers.chain(own_dense(torch=(("kernel", "weight", None),)), jnp.tanh)
    arrays = interop.to_torch(params, state, net)
    np.testing.assert_array_equal(arrays["0.weight"], params[0]["kernel"])
    chex.assert_trees_all_equal(interop.from_torch(arrays, net, x)[0], params)


@pytest.mark.parametrize(
    "name", ["dense", "conv", "conv_transpose", "batch_norm", "layer_norm", "prelu", "repeat", "mixed_precision"]
)
def test_no_name_of_ours_means_anything(name):
    own = layers.stateless(lambda key, x: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, lambda p, x: x, name=name)
    with pytest.raises(ConfigError, match=f"a layer '{name}', which does not say"):
        interop.to_torch(*own.init(0, X), own)
    renamed = layers.dense(3)._replace(name=name)
    params, state = renamed.init(0, X)
    np.testing.assert_array_equal(interop.to_torch(params, state, renamed)["weight"], params["kernel"].T)
    container = layers.chain(layers.dense(3), jnp.tanh)._replace(name=name)
    assert "0.weight" in interop.to_torch(*container.init(0, X), container)
    assert diagnostics.layer_report(container, lambda y, t: jnp.mean(y), *container.init(0, X), (X, X)).labels == (
        "0 dense",
        "1 tanh",
    )


@given(st.permutations(range(3)), st.booleans())
@settings(max_examples=12)
def test_any_layout_that_moves_elements_has_a_way_back(axes, flipped):
    def into(kernel):
        return jnp.flip(jnp.transpose(kernel, axes), 0) if flipped else jnp.transpose(kernel, axes)

    net = layers.stateless(lambda key, x: {"w": jax.random.normal(key, (2, 3, 4))}, lambda p, x: x)
    net = net.described(torch=(("w", "theirs", into),))
    params, state = net.init(0, X)
    arrays = interop.to_torch(params, state, net)
    expected = np.transpose(np.asarray(params["w"]), axes)
    np.testing.assert_array_equal(arrays["theirs"], expected[::-1] if flipped else expected)
    chex.assert_trees_all_equal(interop.from_torch(arrays, net, X)[0], params)


@pytest.mark.parametrize(
    "into", [lambda k: 2 * k, lambda k: k[:1], lambda k: k.at[0].set(k[1]), lambda k: k.astype("float32")]
)
def test_a_layout_that_changes_elements_is_refused(into):
    net = layers.dense(3).described(torch=(("kernel", "weight", into), ("bias", "bias", None)))
    with pytest.raises(
        ConfigError, match=r"takes 'kernel' of the network into PyTorch's layout must move its 12 elements"
    ):
        interop.to_torch(*net.init(0, X), net)


def test_several_arrays_are_one_in_pytorch():
    net = layers.stateless(lambda key, x: {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 1))}, lambda p, x: x)
    net = net.described(torch=((("a", "b"), "theirs", lambda a, b: jnp.concatenate([a, b], 1)),))
    params, state = net.init(0, X)
    arrays = interop.to_torch(params, state, net)
    np.testing.assert_array_equal(arrays["theirs"], [[1, 1, 1, 0]] * 2)
    chex.assert_trees_all_equal(interop.from_torch(arrays, net, X)[0], params)
    with pytest.raises(ConfigError, match="whose arrays are a, b, got a; pass what"):
        interop.to_torch({"a": params["a"]}, state, net)
    twice = net.described(torch=((("a", "b"), "theirs", lambda a, b: jnp.concatenate([a, a[:, :1]], 1)),))
    with pytest.raises(
        ConfigError, match="takes 'a' and 'b' of the network into PyTorch's layout must move its 8 elem"
    ):
        interop.to_torch(params, state, twice)


def test_a_users_kernel_has_no_gain_by_its_name_alone():
    """Its fan-in is not to be seen from its shape: a layer says it, or has none."""
    x = X[:, 0]
    report = diagnostics.layer_report(own_dense(), losses.mse, *own_dense().init(0, x), (x, x))
    assert np.isnan(report.gain[0])
    says = own_dense(fan_in=lambda shape: shape[1])
    params, state = says.init(0, x)
    report = diagnostics.layer_report(says, losses.mse, params, state, (x, x))
    np.testing.assert_allclose(report.gain[0], np.sqrt(4 * np.mean(np.square(params["kernel"]))), rtol=1e-5)

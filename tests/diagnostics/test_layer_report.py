"""The layer report is what one finds by writing every layer out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, diagnostics, initializers, layers, losses, optimizers
from jaxnet.diagnostics import _rows
from jaxnet.diagnostics.trial import Task
from jaxnet.errors import ConfigError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((16, 5)).astype(np.float32)
Y = RANDOM.standard_normal((16, 3)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 16).astype(np.int32)


def test_every_column_is_the_written_out_one():
    bias = initializers.constant(-1.0)
    net = layers.chain(layers.dense(6, bias_init=bias), activations.relu, layers.dense(4), jnp.tanh, layers.dense(3))
    params, state = net.init(1, X)
    params[2]["kernel"] *= 4
    optimizer = optimizers.adam(0.01)

    def outputs(params, offsets):
        found, x = [], jnp.asarray(X)
        for i, f in enumerate((None, jax.nn.relu, None, jnp.tanh, None)):
            x = f(x) if f else x @ params[i]["kernel"] + params[i]["bias"][None]
            x = x + offsets[i]
            found.append(x)
        return found

    def objective(params, offsets):
        return jnp.mean((outputs(params, offsets)[-1] - Y) ** 2)

    zeros = [jnp.zeros((16, n)) for n in (6, 6, 4, 4, 3)]
    of_params, of_outputs = jax.grad(objective, argnums=(0, 1))(params, zeros)
    updates, _ = optimizer.update(of_params, optimizer.init(params), params)
    values = [np.asarray(y) for y in outputs(params, zeros)]

    report = diagnostics.layer_report(net, losses.mse, params, state, (X, Y), optimizer=optimizer)
    assert report.labels == ("0 dense", "1 relu", "2 dense", "3 tanh", "4 dense")

    def close(name, wanted):
        np.testing.assert_allclose(getattr(report, name), np.array(wanted, np.float32), rtol=2e-5, atol=1e-7)

    def of_kernels(tree, f):
        return [f(tree[0]), np.nan, f(tree[2]), np.nan, f(tree[4])]

    def norm(tree):
        return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))

    close("mean", [y.mean() for y in values])
    close("deviation", [y.std() for y in values])
    close("activation_gradient", [np.linalg.norm(g) for g in of_outputs])
    close("parameter_gradient", of_kernels(of_params, norm))
    close("weight_norm", of_kernels(params, norm))
    ratios = [
        np.nan if np.isnan(w) else u / w for u, w in zip(of_kernels(updates, norm), report.weight_norm, strict=True)
    ]
    close("update_ratio", ratios)
    close("gain", of_kernels(params, lambda p: np.sqrt(np.mean(np.asarray(p["kernel"]) ** 2) * p["kernel"].shape[0])))
    close("dead", [np.nan, (values[1] == 0).all(0).mean(), np.nan, np.nan, np.nan])
    close("saturated", [np.nan] * 3 + [(np.abs(values[3]) > 0.95).mean(), np.nan])
    assert report.dead[1] > 0
    assert report.saturated[3] > 0
    close("nonfinite", [0] * 5)
    close("loss", objective(params, zeros))
    slope = np.polyfit(range(3), np.log([np.linalg.norm(of_outputs[i]) for i in (0, 2, 4)]), 1)[0]
    np.testing.assert_allclose(report.slope, slope, rtol=1e-4)
    np.testing.assert_allclose(report.gradient_ratio, np.exp(-2 * slope), rtol=1e-3)


def test_copies_in_a_repeat_are_rows_of_their_own():
    block = layers.residual(layers.chain(layers.layer_norm(), layers.dense(5), jnp.tanh))
    looped = layers.chain(layers.repeat(layers.repeat(block, 2), 3), layers.dense(3))
    params, state = looped.init(0, X)
    unrolled = layers.chain(*[block] * 6, layers.dense(3))
    copies = [jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], params[0]) for i in range(3) for j in range(2)]
    a = diagnostics.layer_report(looped, losses.mse, params, state, (X, Y), optimizer=optimizers.sgd(0.1))
    b = diagnostics.layer_report(
        unrolled, losses.mse, (*copies, params[1]), unrolled.init(0, X)[1], (X, Y), optimizer=optimizers.sgd(0.1)
    )
    assert a.labels[:5] == (
        "0.0.0.branch.0 layer_norm", "0.0.0.branch.1 dense", "0.0.0.branch.2 tanh", "0.0.0.shortcut identity",
        "0.0.1.branch.0 layer_norm",
    )  # fmt: skip
    assert len(a.labels) == len(b.labels) == 25
    chex.assert_trees_all_close(jax.tree.leaves(a), jax.tree.leaves(b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("around", [lambda layer: layers.repeat(layer, 2), layers.mixed_precision])
def test_a_container_whose_params_are_its_parts(around):
    net = around(layers.dense(5))
    params, state = net.init(0, X)
    report = diagnostics.layer_report(net, losses.mse, params, state, (X, X))
    assert {label.split()[-1] for label in report.labels} == {"dense"}
    assert np.all(report.weight_norm > 0)


def test_it_goes_through_jit_vmap_and_mixed_precision():
    net = layers.mixed_precision(
        layers.chain(layers.dense(8), layers.batch_norm(), activations.relu, layers.dropout(0.5), layers.dense(3))
    )
    keys = jax.random.split(jax.random.key(0), 3)
    params, state = jax.vmap(lambda key: net.init(key, X))(keys)

    def report(params, state, key):
        return diagnostics.layer_report(net, losses.softmax_cross_entropy, params, state, (X, LABELS), key=key)

    many = jax.jit(jax.vmap(report))(params, state, keys)
    assert many.mean.shape == (3, 5)
    assert str(many) == "LayerReport of 5 layers, arrays of shape (3, 5)"
    one = report(*jax.tree.map(lambda leaf: leaf[1], (params, state)), keys[1])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], many), one, rtol=0.02, atol=0.01)
    assert np.isfinite(one.activation_gradient).all()
    assert np.isnan(one.update_ratio).all()
    # Half of what dropout lets through is 0, and the other half is doubled.
    plain = diagnostics.layer_report(
        net, losses.mse, *jax.tree.map(lambda leaf: leaf[1], (params, state)), (X, Y), key=2
    )
    assert plain.deviation[3] > plain.deviation[2]


def test_it_says_where_values_cease_to_be_finite():
    net = layers.chain(layers.dense(4), lambda x: jnp.log(x), layers.dense(3))
    params, state = net.init(0, X)
    report = diagnostics.layer_report(net, losses.mse, params, state, (X, Y))
    assert int(report.first_nonfinite) == 1
    assert report.nonfinite[0] == 0
    assert report.nonfinite[1] > 0
    assert "the first value that is not finite comes from 1 function" in str(report)


def test_the_table():
    net = layers.chain(layers.dense(2), activations.relu)
    params = ({"kernel": jnp.eye(2), "bias": jnp.zeros(2)}, ())
    x = jnp.array([[1.0, -2.0], [3.0, -4.0]])
    report = diagnostics.layer_report(
        net, losses.mse, params, ((), ()), (x, jnp.zeros((2, 2))), optimizer=optimizers.sgd(1.0)
    )
    head, _, dense, relu = str(report).splitlines()[:4]
    assert head.split() == [
        "layer",
        "mean",
        "deviation",
        "saturated",
        "dead",
        "activation",
        "gradient",
        "parameter",
        "gradient",
        "weight",
        "norm",
        "update",
        "ratio",
        "gain",
    ]
    assert dense.split() == [
        "0",
        "dense",
        "-0.5",
        "2.69",
        "1.58",
        "8.83",
        "1.41",
        "6.24",
        "1",
    ]  # sqrt(78), sqrt(2), sqrt(39)
    assert relu.split() == ["1", "relu", "1", "1.22", "0.5", "1.58"]


def test_params_of_another_network_are_refused():
    net, other = layers.chain(layers.dense(4), layers.dense(3)), layers.dense(3)
    params, state = other.init(0, X)
    with pytest.raises(ConfigError, match="layer_report: params must be of this network, as its init returns them"):
        diagnostics.layer_report(net, losses.mse, params, state, (X, Y))
    with pytest.raises(ConfigError, match=r"layer_report: a batch is a pair \(x, target\)"):
        diagnostics.layer_report(other, losses.mse, params, state, X)


@pytest.mark.parametrize(
    ("f", "rectifier", "bounds"),
    [
        (activations.relu, True, None),
        (jax.nn.relu6, True, (0, 6)),
        (lambda x: jnp.maximum(x, 0), True, None),
        (activations.leaky_relu, False, None),
        (activations.elu, False, None),
        (activations.gelu, False, None),
        (jax.nn.silu, False, None),
        (activations.sigmoid, False, (0, 1)),
        (jnp.tanh, False, (-1, 1)),
        (lambda x: 2 * jnp.tanh(x) + 1, False, (-1, 3)),
        (activations.softmax, False, None),
        (jnp.sin, False, None),
        (lambda x: x.reshape(2, -1), False, None),
        (lambda x: x, False, None),
    ],
)
def test_an_activation_is_known_by_what_it_does(f, rectifier, bounds):
    kind = _rows.kind(layers.chain(f).about.parts[0][1], jnp.float32)
    assert kind.rectifier is rectifier
    assert (kind.bounds is None) is (bounds is None)
    if bounds:
        np.testing.assert_allclose(kind.bounds, bounds, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_numbers_beyond_float32_are_measured_in_float64():
    """In the report, in a trial's losses, and in the noise scale; targets of 1e25 have squares of 1e50."""
    x, target = np.float64(X), 1e25 * np.float64(Y)
    net = layers.chain(layers.dense(4), activations.sigmoid, layers.dense(3))
    params, state = net.init(0, x)
    params[2]["kernel"] *= 1e25
    report = diagnostics.layer_report(net, losses.mse, params, state, (x, target), optimizer=optimizers.sgd(1.0))
    loss, grads = jax.value_and_grad(lambda p: losses.mse(net.apply(p, state, x, train=True)[0], target))(params)
    np.testing.assert_allclose(report.loss, loss, rtol=1e-12)
    norms = [np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(layer))) for layer in grads]
    np.testing.assert_allclose(report.parameter_gradient, [norms[0], np.nan, norms[2]], rtol=1e-12)
    numbers = [getattr(report, name) for name in ("mean", "deviation", "activation_gradient", "slope")]
    assert {leaf.dtype.name for leaf in numbers} == {"float64"}
    assert all(np.isfinite(leaf).all() for leaf in numbers)
    noise = diagnostics.noise_scale(net, losses.mse, params, state, (x, target), parts=4)
    assert all(np.isfinite(noise))
    task = Task(net, losses.mse, optimizers.sgd(1e-3), None, (x, target), (x, target), 8, jax.random.key(0))
    run = task.run(20)
    assert run.history["training_loss"][0] > 1e48
    assert np.isfinite(run.history["training_loss"]).all()

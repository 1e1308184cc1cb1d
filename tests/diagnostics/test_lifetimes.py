"""What the tools leave behind: no traced value, and no network or array once their owner has let go of them."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, backprop, diagnostics, interop, layers, losses, optimizers, testing, training

RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((64, 3)).astype(np.float32)
Y = (X[:, :1] > 0).astype(np.float32)


class Net:
    """A network and a loss of its own, with an array that only the loss holds, and one that only the network does."""

    def __init__(self):
        weights, scale = jnp.full(1, 2.0), jnp.full(3, 1.5)
        self.layer = layers.chain(layers.dense(3), lambda x: x * scale[None], activations.relu, layers.dense(1))
        self.loss = lambda y, target: losses.mse(y * weights[None], target)
        self.params, self.state = self.layer.init(0, X)
        self.refs = [weakref.ref(value) for value in (weights, scale, self.layer.apply, self.loss)]

    def report(self):
        sgd = optimizers.sgd(0.1)
        return diagnostics.layer_report(self.layer, self.loss, self.params, self.state, (X, Y), optimizer=sgd)


def twice(net):
    """From an outer program, which sees the report as a part of itself; the loss closes over a traced value."""

    def report(factor):
        def loss(y, target):
            return factor * net.loss(y, target)

        return diagnostics.layer_report(net.layer, loss, net.params, net.state, (X, Y)).loss

    return jax.jit(report)(2.0), net.report()


def histograms(net, path):
    pytest.importorskip("matplotlib")
    return diagnostics.pictures.activation_histograms(path / "h.png", net.layer, net.params, net.state, X)


ENTRIES = {
    "diagnose": lambda net, path: diagnostics.diagnose(net.layer, net.loss, optimizers.sgd(1e-7), (X, 0 * Y), steps=60),
    "layer_report": lambda net, path: net.report(),
    "layer_report inside": lambda net, path: twice(net),
    "dead_units": lambda net, path: diagnostics.dead_units(net.layer, net.params, net.state, X),
    "noise_scale": lambda net, path: diagnostics.noise_scale(net.layer, net.loss, net.params, net.state, (X, Y)),
    "rate_range_test": lambda net, path: diagnostics.rate_range_test(
        net.layer, net.loss, optimizers.sgd(1.0), (X, Y), steps=30
    ),
    "activation_histograms": histograms,
    "diagnose with tries": lambda net, path: diagnostics.diagnose(
        net.layer, net.loss, optimizers.sgd(1e-7), (X, Y), steps=60
    ),
    "summary": lambda net, path: layers.summary(net.layer, X),
    "as_matrix": lambda net, path: layers.as_matrix(net.layer.about.parts[0][1], net.params[0], X[:1]),
    "evaluate": lambda net, path: training.make_evaluate(net.layer, net.loss)(net.params, net.state, (X, Y)),
    "predict": lambda net, path: training.predict(net.layer, net.params, net.state, X),
    "backprop": lambda net, path: backprop.trace(
        lambda params: net.loss(net.layer.apply(params, net.state, X, train=False)[0], Y), net.params
    ),
    "check_layer": lambda net, path: testing.check_layer(net.layer, X[:2], gradients=False),
    "interop": lambda net, path: interop.from_torch(interop.to_torch(net.params, net.state, net.layer), net.layer, X),
    "fit": lambda net, path: training.fit(
        net.layer, net.loss, optimizers.sgd(0.01), (X, Y), epochs=1, batch_size=32, progress=False
    ),
}


@pytest.mark.parametrize("name", list(ENTRIES)[:7])  # of the diagnostics
def test_no_traced_value_leaks(name, tmp_path):
    with jax.checking_leaks():
        ENTRIES[name](Net(), tmp_path)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_network_and_what_its_loss_holds_are_freed(name, tmp_path):
    net = Net()
    refs = net.refs
    ENTRIES[name](net, tmp_path)
    del net
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


def test_a_report_is_compiled_once_for_a_network():
    net, traces = Net(), []

    def loss(y, target):
        traces.append(None)
        return losses.mse(y, target)

    for _ in range(3):
        diagnostics.layer_report(net.layer, loss, net.params, net.state, (X, Y))
    assert len(traces) == 1


def test_of_many_losses_the_last_alone_is_kept():
    net = Net()
    held = [jnp.full(1, float(i)) for i in range(3)]
    for array in held:
        diagnostics.layer_report(
            net.layer, lambda y, target, array=array: losses.mse(y * array[None], target), net.params, net.state, (X, Y)
        )
    refs = [weakref.ref(array) for array in held]
    del held, array
    gc.collect()
    assert [ref() is None for ref in refs[:2]] == [True, True]

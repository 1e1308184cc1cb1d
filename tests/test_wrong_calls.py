"""Calls that a newcomer gets wrong: the class of the error, and that it says the call that works.

Arguments under another library's names or in another place, functions of other arguments, what two functions return in
the place of one of them. `test_bad_input` has wrong values.
"""

import functools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import activations, layers, losses, metrics, optimizers, training
from jaxnet.errors import CheckpointError, ConfigError, DataError, DTypeError, ShapeError

X = jnp.ones((4, 3))
Y = jnp.array([0, 1, 1, 0])
NET = layers.chain(layers.dense(2), layers.flatten())
SGD = optimizers.sgd(0.1)
PARAMS, STATE = NET.init(0, X)


def fit(net=NET, loss=losses.softmax_cross_entropy, optimizer=SGD, data=(X, Y), **options):
    return training.fit(net, loss, optimizer, data, **{"epochs": 1, "batch_size": 4, "progress": False, **options})


def with_leaky(**options):
    net = layers.chain(functools.partial(activations.leaky_relu, **options))
    return net.init(0, X)


def stepped_twice():
    step = training.make_step(NET, losses.softmax_cross_entropy, SGD)
    train_state = training.init(NET, SGD, X, 0)
    step((train_state, {"loss": 0.0}), (X, Y))


def sweep(optimizer, **settings):
    return training.sweep(
        NET, losses.softmax_cross_entropy, optimizer, (X, Y), settings=training.grid(**settings), epochs=1, batch_size=4
    )


ONE_OUTPUT = r"one output an example is no score of classes: give it two, .*losses\.sigmoid_cross_entropy"
ONE_ROW = r"for one row an example, put flatten\(\) or global_avg_pool\(\) before the last dense layer$"
ORDER = r"the order is \(net, params, state, x\)$"

ROWS = {
    "slope of PyTorch": (
        lambda: activations.leaky_relu(X, negative_slope=0.1),
        TypeError,
        r"^leaky_relu\(\) got an unexpected keyword argument; negative_slope= is slope= here$",
    ),
    "slope of PyTorch in a chain": (
        lambda: with_leaky(negative_slope=0.1),
        TypeError,
        r"negative_slope= is slope= here\n",
    ),
    "an activation of two": (
        lambda: activations.relu(X, X),
        TypeError,
        r"^relu\(\) takes 1 .*; it is called relu\(x\)$",
    ),
    "an argument that an activation does not have": (
        lambda: activations.tanh(X, alpha=1),
        TypeError,
        r"unexpected keyword argument 'alpha'; it is called tanh\(x\)$",
    ),
    "an argument that a loss does not have": (
        lambda: losses.mse(X, X, epsilon=1),
        TypeError,
        r"unexpected keyword argument 'epsilon'; it is called mse\(prediction, target, \*, weights, reduction\)$",
    ),
    "a loss of the params": (
        lambda: fit(loss=lambda params, p, t: p.mean()),
        ConfigError,
        r"^fit: loss must take \(prediction, target\), got a function of \(params, p, t\)$",
    ),
    "a metric of the prediction alone": (
        lambda: fit(metrics={"a": lambda p: p.mean()}),
        ConfigError,
        r"^fit: metric 'a' must take \(prediction, target\), got a function of \(p\)$",
    ),
    "data in the place of the loss": (
        lambda: training.fit(NET, (X, Y), losses.mse, SGD, epochs=1),
        ConfigError,
        r"got a tuple of 2, .*; the order is \(net, loss, optimizer\), and data come after them$",
    ),
    "x and target apart": (
        lambda: training.fit(NET, losses.mse, SGD, X, Y, epochs=1),
        TypeError,
        r"were given; x and target are one argument, \(x, target\); it is called fit\(net, loss, optimizer, data, \*,",
    ),
    "a callback of nothing": (
        lambda: fit(callbacks=[lambda: None]),
        ConfigError,
        r"^fit: callbacks must take \(record, train_state\), got a function of \(\)$",
    ),
    "a callback of three": (
        lambda: fit(callbacks=[lambda epoch, loss, m: None]),
        ConfigError,
        r"got a function of \(epoch, loss, m\)$",
    ),
    "a callback without its list": (
        lambda: fit(callbacks=lambda record, train_state: None),
        ConfigError,
        r"^fit: callbacks must be a list of functions, got a function; callbacks=\[\.\.\.\]$",
    ),
    "a function of steps of nothing": (
        lambda: training.per_step(lambda: None),
        ConfigError,
        r"^per_step: function must take \(measured, train_state\), got a function of \(\)$",
    ),
    **{
        f"{name} of fit": (lambda name=name: fit(**{name: 1}), TypeError, rf"argument; {name}= {said}$")
        for name, said in {
            "patience": "is early_stopping= here",
            "validation_data": "is validation= here",
            "verbose": "is progress= here",
            "criterion": "is loss= here",
            "lr": r"goes into the optimizer, such as optimizers\.adam\(0\.001\)",
            "learning_rate": r"goes into the optimizer, such as optimizers\.adam\(0\.001\)",
            "seed": r"is key= of the parameters here; seed= goes into data=training\.arrays\(seed=\.\.\.\)",
        }.items()
    },
    "bools for labels": (
        lambda: losses.softmax_cross_entropy(jnp.ones((4, 2)), Y > 0),
        DTypeError,
        r"got bool; convert with \.astype\(int\)$",
    ),
    "bools for distributions": (
        lambda: losses.softmax_cross_entropy(jnp.ones((2, 2)), jnp.eye(2, dtype=bool)),
        DTypeError,
        r"got bool; convert with \.astype\('float32'\)$",
    ),
    "one output and labels": (lambda: losses.softmax_cross_entropy(X[:, :1], Y), DataError, ONE_OUTPUT),
    "one output and labels, trained": (lambda: fit(layers.dense(1)), DataError, ONE_OUTPUT),
    "one output and a column of labels": (lambda: metrics.accuracy(X[:, :1], Y[:, None]), ShapeError, ONE_OUTPUT),
    "one output and a column of floats": (
        lambda: metrics.accuracy(X[:, :1], jnp.float32(Y[:, None])),
        DataError,
        ONE_OUTPUT,
    ),
    "labels from 1": (
        lambda: losses.softmax_cross_entropy(X, jnp.array([1, 2, 3, 3])),
        DataError,
        r"classes are counted from 0: take target - 1; to leave",
    ),
    "an image of scores": (lambda: losses.softmax_cross_entropy(jnp.ones((4, 8, 8, 2)), Y), ShapeError, ONE_ROW),
    "an image of scores and distributions": (
        lambda: losses.softmax_cross_entropy(jnp.ones((4, 8, 8, 2)), jnp.ones((4, 2)) / 2),
        ShapeError,
        ONE_ROW,
    ),
    "an image of predictions": (lambda: losses.mse(jnp.ones((4, 8, 8, 1)), jnp.ones((4, 1))), ShapeError, ONE_ROW),
    "guesses for scores": (
        lambda: metrics.accuracy(X.argmax(-1), Y),
        DTypeError,
        r"^accuracy: scores must be .*, got int32 \(4,\); give the scores of all classes, not their argmax$",
    ),
    "what a step returns": (
        stepped_twice,
        ConfigError,
        r"takes a TrainState, got tuple; a step returns two things, train_state, measured = step\(\.\.\.\)$",
    ),
    "x after the network, exported": (lambda: training.export(NET, X, PARAMS, ((), ())), ConfigError, ORDER),
    "x after the network, predicted": (lambda: training.predict(NET, X, PARAMS, ((), ())), ConfigError, ORDER),
    "a path for the tree": (
        lambda: training.save(PARAMS, "weights"),
        ConfigError,
        r"^save: tree must be a tree of arrays, got 'weights'; the order is \(path, tree\)$",
    ),
    "a network for its params": (
        lambda: training.save("weights", NET),
        ConfigError,
        r"tree must be a tree of arrays, got the layer chain; give the trees that its init returned",
    ),
    "an optimizer for the settings' function": (
        lambda: sweep(SGD, seed=[0], rate=[0.1]),
        ConfigError,
        r"got an optimizer; give what makes one of the settings, lambda rate: optimizers\.adam\(rate\)$",
    ),
    "settings without seeds": (
        lambda: sweep(lambda rate: optimizers.sgd(rate), rate=[0.1]),
        ConfigError,
        r"'seed' a member, got a dict of rate; add seed=\[0\]$",
    ),
    "settings of other names": (
        lambda: sweep(lambda rate: optimizers.sgd(rate), seed=[0], lr=[0.1]),
        ConfigError,
        r"the optimizer takes rate, not lr; name the settings as it does$",
    ),
    "a state for the updates": (
        lambda: optimizers.apply_updates(PARAMS, optimizers.adam(0.1).init(PARAMS)),
        ShapeError,
        r"got a state that an optimizer returned; give the first of the two: updates, opt_state = optimizer\.update\(",
    ),
    "updates and state for the updates": (
        lambda: optimizers.apply_updates({"w": X}, SGD.update({"w": X}, SGD.init({"w": X}))),
        ShapeError,
        r"^apply_updates: the updates must be a tree like the parameters, got ",
    ),
    "init after f": (
        lambda: layers.stateless(lambda p, x: p, lambda key, x: {"scale": x}).init(0, X),
        ConfigError,
        r"init must return params, and returned the key itself; the order is \(init, f\)$",
    ),
    "init after f, of x": (
        lambda: layers.stateless(lambda p, x: x, lambda key, x: {"scale": x}).init(0, X),
        ConfigError,
        r"returned the shape and dtype of x itself; the order is \(init, f\)$",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ROWS.values(), ids=ROWS.keys())
def test_a_wrong_call_is_told_the_right_one(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_layer_says_what_it_is_made_of():
    net = layers.chain(layers.dense(2), jnp.tanh, layers.residual(layers.dense(2)))
    assert repr(net) == "Layer(chain of dense, tanh, residual)"
    assert repr(layers.dense(2)) == "Layer(dense)"
    assert repr(layers.chain(*[layers.dense(2)] * 9)).endswith("dense and 1 more)")
    with pytest.raises(TypeError) as caught:
        jax.jit(net)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "f", [lambda x: jnp.asarray(np.tanh(np.asarray(x))), lambda x: x if x.sum() > 0 else -x], ids=("numpy", "if")
)
def test_a_function_that_reads_values_is_told_to_wait(f):
    with pytest.raises(jax.errors.JAXTypeError) as caught:
        layers.chain(jnp.tanh, f).init(0, X)
    place, cure = caught.value.__notes__[-2:]
    assert place == "jaxnet: in chain[1]: function"
    assert cure.startswith("jaxnet: function reads numbers, and there are none yet")
    assert "write jax.numpy for numpy, jnp.where(condition, a, b) for an if" in cure


def test_a_metric_that_reads_values_is_told_to_wait():
    def accuracy(prediction, target):
        return float((prediction.argmax(-1) == target).mean())

    with pytest.raises(jax.errors.JAXTypeError) as caught:
        fit(metrics={"accuracy": accuracy})
    (cure,) = (note for note in caught.value.__notes__ if note.startswith("jaxnet"))
    assert cure.startswith("jaxnet: the metric 'accuracy' reads numbers")
    assert cure.endswith("and leave out float()")


def test_files_of_pytorch_are_known(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as file:
        file.writestr("data.pkl", b"")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02" + bytes(20))
    for name in ("weights.pt", "old.pt"):
        with pytest.raises(CheckpointError, match=r"interop\.from_torch takes what torch\.load reads"):
            training.load(tmp_path / name, PARAMS)
    training.save(tmp_path / "weights", PARAMS)
    with pytest.raises(ConfigError, match=r"^load: like must be a tree of arrays, got the layer chain; give the trees"):
        training.load(tmp_path / "weights", NET)

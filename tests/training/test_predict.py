"""`training.predict`: what evaluation gives, batch by batch, in one program, on the host."""

import gc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError

RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((11, 3)).astype(np.float32)
TRACED = []


def counted(x):
    TRACED.append(x.shape)
    return x


NET = layers.chain(counted, layers.batch_norm(), layers.dropout(0.5), layers.dense(2))
PARAMS, STATE = NET.init(0, X[:1])
STATE = jax.tree.map(lambda leaf: leaf + 0.5, STATE)  # statistics that no batch has
WHOLE = np.asarray(NET.apply(PARAMS, STATE, X, train=False)[0])


def test_arrays_in_one_program_with_the_bits_of_the_whole():
    del TRACED[:]
    y = training.predict(NET, PARAMS, STATE, X, batch_size=4)
    np.testing.assert_array_equal(y, WHOLE)
    assert type(y) is np.ndarray
    assert y.flags.writeable
    assert TRACED == [(4, 3)]
    for x in (X[:9], jnp.asarray(X[:9]), X[:4], X[:0], X[:9].tolist()):  # NumPy's, JAX's, none, a list of numbers
        y = training.predict(NET, PARAMS, STATE, x, batch_size=4)
        np.testing.assert_array_equal(y, WHOLE[: len(x)])
        assert y.shape == (len(x), 2)
    assert set(TRACED) <= {(4, 3), (1, 3)}  # of no examples, one is computed
    assert len(TRACED) <= 2


def test_batches_give_an_iterator_and_one_program():
    del TRACED[:]
    read = []

    def batches():
        for size in (4, 0, 2, 4, 1):
            read.append(size)
            yield X[:size]

    found = training.predict(NET, PARAMS, STATE, batches())
    assert read == []  # as it is read
    np.testing.assert_array_equal(next(found), WHOLE[:4])
    assert len(read) == 2  # the next is on its way
    assert [len(y) for y in found] == [0, 2, 4, 1]
    assert TRACED in ([(4, 3)], [])  # or compiled by another test
    endless = training.stream(itertools.cycle([X[:4], X[4:8]]), steps_per_epoch=3)
    joined = np.concatenate(list(training.predict(NET, PARAMS, STATE, endless)))
    np.testing.assert_array_equal(joined, np.concatenate([WHOLE[:8], WHOLE[:4]]))


@pytest.mark.parametrize("batches", [pytest.param(False, id="an-array"), pytest.param(True, id="a-stream")])
def test_the_device_holds_two_batches_and_their_predictions(batches):
    live = []

    def look(x):
        jax.debug.callback(lambda: live.append(sum(array.nbytes for array in jax.live_arrays())))
        return x

    net = layers.chain(look, lambda x: x + 1)
    x = np.ones((40 * 8, 500), np.float32)  # 16 kB a batch, and as much to predict
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    if batches:
        count = sum(len(y) for y in training.predict(net, ((),) * 2, ((),) * 2, iter(np.split(x, 40))))
    else:
        count = len(training.predict(net, ((),) * 2, ((),) * 2, x, batch_size=8))
    jax.effects_barrier()
    assert (count, len(live)) == (320, 40)
    assert 16_000 < max(live) - before <= 4 * 16_000


@pytest.mark.devices(8)
def test_over_a_mesh():
    mesh = jax.make_mesh((8,), ("data",))
    for x in (X, [X], []):
        if isinstance(x, list):
            parts = list(training.predict(NET, PARAMS, STATE, iter(x), mesh=mesh)) if x else []
            assert [part.shape for part in parts] == [(11, 2)] * len(x)
            continue
        np.testing.assert_allclose(training.predict(NET, PARAMS, STATE, x, batch_size=5, mesh=mesh), WHOLE, rtol=1e-5)


def test_trees_in_and_out():
    inside = layers.parallel(layers.dense(2), layers.dense(3))
    net = layers.chain(lambda x: x["a"] + x["b"][0], inside)
    x = {"b": (X,), "a": 2 * X}
    params, state = net.init(0, x)
    whole = net.apply(params, state, x, train=False)[0]
    found = training.predict(net, params, state, x, batch_size=4)
    assert type(found) is type(whole)
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_one_array_of_float64_warns_once_at_the_callers_line():
    with pytest.warns(UserWarning, match="^predict: x is float64") as caught:
        y = training.predict(NET, PARAMS, STATE, X.astype(np.float64), batch_size=4)
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(y, WHOLE)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, DTypeError, "predict: x must be an array, a tree of arrays or an iterable of batches, got None"),
        ("text", DTypeError, r"predict: x must be an array, got str"),
        (np.float32(1), DataError, "predict: x is a scalar; samples lie along the first axis"),
        ((X, X[:3]), DataError, "predict: the arrays have 11, 3 samples"),
        (X[:, :2], ShapeError, r"chain\[3\]: dense: "),
        (iter([]), DataError, "predict: epoch 1 held no batch"),
        (iter([X, X[0, 0]]), DataError, "predict: batch 1: x is a scalar"),
        (iter([X, [print]]), DTypeError, r"predict: batch 1: x\[0\] must be an array, got builtin"),
    ],
    ids=str.split("nothing text scalar lengths features none batch kind"),
)
def test_bad_input(x, error, message):
    net = layers.chain(lambda x: x, lambda x: x, lambda x: x, layers.dense(2))
    params = ((), (), (), {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)})
    with pytest.raises(error, match=message):
        list(training.predict(net, params, ((),) * 4, x))


def test_a_prediction_without_examples_is_refused():
    net = layers.chain(lambda x: {"mean": jnp.mean(x)})
    with pytest.raises(
        ShapeError, match=r"predict: of 4 examples the network predicts a dict of \['mean'\] float32 \(\)"
    ):
        training.predict(net, ((),), ((),), X, batch_size=4)
    with pytest.raises(
        ShapeError, match=r"of 3 examples the network predicts float32 \(2,\).*of a single example give x\[None\]"
    ):
        training.predict(layers.dense(2), *layers.dense(2).init(0, X[0]), X[0])
    with pytest.raises(ConfigError, match="batch_size"):
        training.predict(NET, PARAMS, STATE, X, batch_size=0)


def test_what_was_trained_predicts_what_evaluation_measures():
    fit = training.fit(NET, losses.mse, optimizers.sgd(0.1), (X, X[:, :2]), epochs=1, batch_size=4, progress=False)
    y = training.predict(NET, fit.params, fit.state, X, batch_size=4)
    measured = training.make_evaluate(NET, losses.mse, batch_size=4)(fit.params, fit.state, (X, X[:, :2]))["loss"]
    assert np.mean((y - X[:, :2]).astype(np.float64) ** 2) == pytest.approx(measured, rel=1e-6)

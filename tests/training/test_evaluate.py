"""`make_evaluate`, and what `fit` validates on: what is finite, how much of an iterable is read, and when."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, metrics, optimizers, training
from jaxnet.errors import ConfigError, DataError
from jaxnet.training.evaluate import on_arrays
from tests.training import calls

RANDOM = np.random.default_rng(7)
X = RANDOM.standard_normal((12, 2)).astype(np.float32)
Y = X[:, :1] + np.float32(1)
NET = layers.dense(1)
PARAMS, STATE = NET.init(0, X[:1])
EVALUATE = training.make_evaluate(NET, losses.mse, batch_size=8)


def batches(*values):
    """Batches whose loss, with parameters that are zero, is the square of each value."""
    return [(X[:4], np.full((4, 1), value, np.float32)) for value in values]


def still(validation, epochs=3, **options):
    """The losses of validation of a network that stays zero."""
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    return calls.fit(
        NET, losses.mse, optimizers.sgd(0.0), (X, Y), batch_size=4, epochs=epochs, start=(zero, STATE),
        validation=validation, progress=False, **options,
    ).history["validation_loss"].tolist()  # fmt: skip


# --- NaN and Inf -----------------------------------------------------------------------------------------------------

KINDS = {
    "NumPy": lambda x, y: (x, y),
    "JAX": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "one of each": lambda x, y: (jnp.asarray(x), y),
    "a tree": lambda x, y: ([jnp.asarray(x)], [y]),
    "batches of NumPy": lambda x, y: [(X.astype(x.dtype), Y.astype(x.dtype)), (x, y)],
    "batches of JAX": lambda x, y: [(X.astype(x.dtype), Y.astype(x.dtype)), (jnp.asarray(x), jnp.asarray(y))],
    "a generator": lambda x, y: (pair for pair in [(X.astype(x.dtype), Y.astype(x.dtype)), (jnp.asarray(x), y)]),
    "a function": lambda x, y: lambda epoch: [(jnp.asarray(x), y)],
    "on a mesh": lambda x, y: jax.device_put((x, y), _everywhere()),
}


def _everywhere():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@pytest.mark.parametrize("which", ["x", "target"])
@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (-np.inf, jnp.bfloat16)])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.devices(2) if kind == "on a mesh" else ()) for kind in KINDS]
)
def test_data_that_are_not_finite_are_refused_wherever_they_are(kind, value, dtype, which):
    x, y = X.astype(dtype), Y.astype(dtype)
    (x if which == "x" else y)[5, 0] = value
    given = KINDS[kind](x, y)

    def loss(prediction, target):  # one that would hide it
        return losses.mse(jnp.zeros_like(jax.tree.leaves(target)[0]), jax.tree.leaves(target)[0])

    net = layers.stateless(lambda key, x: (), lambda params, x: x)
    with pytest.raises(DataError, match=rf"^evaluate: .*{which}.* holds {value} at index \(5, 0\) \(1 such values\)"):
        training.make_evaluate(net, loss)((), (), given)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("a tree", "on a mesh")])
def test_a_prediction_that_is_not_finite_is_measured_as_it_is(kind):
    params = PARAMS | {"bias": jnp.full(1, jnp.nan)}
    assert np.isnan(EVALUATE(params, STATE, KINDS[kind](X, Y))["loss"])


def test_integers_are_finite():
    evaluate = training.make_evaluate(layers.dense(3), losses.softmax_cross_entropy)
    params, state = layers.dense(3).init(0, X[:1])
    assert np.isfinite(evaluate(params, state, (X, jnp.zeros(12, jnp.int32)))["loss"])


def test_arrays_on_the_device_have_equal_lengths():
    with pytest.raises(DataError, match=r"^evaluate: the arrays have 12, 9 samples"):
        EVALUATE(PARAMS, STATE, (jnp.asarray(X), jnp.asarray(Y)[:9]))


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["one of ours", "one that needs all", "one that wraps ours"])
def test_predictions_are_kept_once_and_only_for_what_needs_them(loss):
    wide = layers.dense(500)
    params, state = wide.init(0, X[:1])
    x = RANDOM.standard_normal((200, 2)).astype(np.float32)
    labels = np.arange(200, dtype=np.int32)

    @functools.wraps(losses.softmax_cross_entropy)
    def squared(logits, labels):
        return losses.softmax_cross_entropy(logits, labels) ** 2

    def largest(logits, labels):
        return jnp.max(logits) + 0 * jnp.mean(labels.astype(jnp.float32))

    mine = {"one of ours": losses.softmax_cross_entropy, "one that needs all": largest, "one that wraps ours": squared}
    measured = {"accuracy": metrics.accuracy}
    f = jax.jit(on_arrays(wide, mine[loss], measured, 8))
    compiled = f.lower(params, state, x, labels).compile()
    predictions = 200 * 500 * 4
    temporary = compiled.memory_analysis().temp_size_in_bytes
    logits = wide.apply(params, state, x, train=False)[0]
    found = compiled(params, state, x, labels)
    assert sorted(found) == ["accuracy", "loss"]
    np.testing.assert_allclose(found["loss"], mine[loss](logits, jnp.asarray(labels)), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], metrics.accuracy(logits, jnp.asarray(labels)), rtol=1e-5)
    if loss != "one that wraps ours":  # which makes arrays of that size itself
        assert temporary < (0.5 if loss == "one of ours" else 1.5) * predictions


def test_arrays_of_keys_are_cut_into_batches_too():
    net = layers.stateless(lambda key, x: (), lambda params, x: x[0] + jax.vmap(jax.random.uniform)(x[1])[:, None])
    x = (jnp.asarray(X[:, :1]), jax.random.split(jax.random.key(0), 12))
    at_once = losses.mse(net.apply((), (), x, train=False)[0], jnp.asarray(Y))
    measured = training.make_evaluate(net, losses.mse, batch_size=5)((), (), (x, jnp.asarray(Y)))
    assert measured["loss"] == pytest.approx(float(at_once), rel=1e-6)
    y = training.predict(net, (), (), x, batch_size=5)
    np.testing.assert_allclose(y, net.apply((), (), x, train=False)[0], rtol=1e-6)


# --- how much is read ------------------------------------------------------------------------------------------------


def test_steps_bound_what_is_read_of_an_iterable():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    endless = itertools.cycle(batches(1, 3))
    assert EVALUATE(zero, STATE, training.stream(endless, steps_per_epoch=2))["loss"] == pytest.approx(5)
    assert EVALUATE(zero, STATE, training.stream(endless, steps_per_epoch=1))["loss"] == pytest.approx(1)  # read on
    with pytest.raises(DataError, match=r"^evaluate: the data ended after 2 batches of an epoch of steps_per_epoch=3"):
        EVALUATE(zero, STATE, training.stream(batches(1, 3), steps_per_epoch=3))
    with pytest.raises(
        ConfigError, match=r"^stream: data must be .*an iterable of batches.*got a pair of arrays; .*training.arrays"
    ):
        training.stream((X, Y), steps_per_epoch=3)


class Loader:
    """One that is begun anew each time, and counts it."""

    def __init__(self, *values):
        self.values, self.begun = values, 0

    def __iter__(self):
        self.begun += 1
        return iter(batches(*self.values))


def test_validation_is_read_as_training_data_are():
    assert still(batches(1, 3)) == pytest.approx([5, 5, 5])
    assert still(lambda epoch: batches(epoch + 1)) == pytest.approx([1, 4, 9])
    loader = Loader(1, 3)
    assert still(loader) == pytest.approx([5, 5, 5])
    assert loader.begun == 3
    assert still(Loader(1, 3, 9), validation_steps=2) == pytest.approx([5, 5, 5])  # the same examples each time
    assert still(iter(batches(1, 2, 3, 4, 5, 6)), validation_steps=2) == pytest.approx([2.5, 12.5, 30.5])
    assert still(itertools.cycle(batches(1, 3)), validation_steps=2) == pytest.approx([5, 5, 5])
    assert still(iter(batches(1, 3)), epochs=1) == pytest.approx([5])


def test_what_is_read_on_goes_on_after_a_resume(tmp_path):
    unbroken = still(iter(batches(*range(1, 9))), epochs=4, validation_steps=2)
    still(iter(batches(*range(1, 9))), epochs=2, validation_steps=2, keep=tmp_path)
    assert still(iter(batches(*range(1, 9))), epochs=4, validation_steps=2, keep=tmp_path) == unbroken


@pytest.mark.parametrize(
    ("error", "message", "validation", "options"),
    [
        (DataError, "validation: the data held no batch", [], {}),
        (DataError, "validation: the data are an iterator, .* 3 epochs; .*or training.stream", iter(batches(1)), {}),
        (DataError, "validation: the data ended after 1 batches of an epoch of steps_per_epoch=2", iter(batches(1)), {"validation_steps": 2}),
        (DataError, "validation: epoch 2 held no batch", lambda epoch: batches(1)[epoch:], {}),
    ],
)  # fmt: skip
def test_validation_that_cannot_be_is_refused(error, message, validation, options):
    with pytest.raises(error, match=rf"^fit: .*{message}"):
        still(validation, **options)


def test_labels_of_validation_batches_are_looked_at_before_training():
    with pytest.raises(DataError, match="label 5"):
        calls.fit(
            layers.dense(3), losses.softmax_cross_entropy, optimizers.sgd(0.1), (X, np.zeros(12, np.int32)), epochs=1,
            batch_size=4, validation=[(X, np.full(12, 5))], progress=False,
        )  # fmt: skip

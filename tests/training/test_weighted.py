"""Weights of examples and masks of targets: parts, epochs and evaluation as the mean over the whole, in one number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, metrics, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError
from jaxnet.training import pairs
from jaxnet.training.divergence import what_is_wrong
from jaxnet.training.run import Epoch
from jaxnet.training.sweep import _mean
from jaxnet.training.weighted import Weighted, applied
from tests.training import calls

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((24, 5, 3))
LABELS = RANDOM.integers(4, size=(24, 5)).astype(np.int32)
MASK = np.arange(5) < (np.arange(24) % 6)[:, None]  # of every sixth example, nothing
WEIGHTS = np.where(MASK, RANDOM.uniform(0.1, 3, MASK.shape), 0.0)
NET = layers.dense(4)
CE = losses.softmax_cross_entropy
IGNORED = np.where(MASK, LABELS, -1).astype(np.int32)


def ignoring(logits, target):
    return CE(logits, target, ignore_label=-1)


def written_out(params, weights):
    """The weighted mean of the losses and the gradient of the kernel, in NumPy."""
    scores = X @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    right = np.eye(4)[LABELS]
    loss = (weights * -np.log((p * right).sum(-1))).sum() / weights.sum()
    return loss, np.einsum("bti,btc->ic", X, weights[..., None] * (p - right)) / weights.sum()


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("how", ["weights", "mask", "count"])
def test_the_mean_over_a_batch_in_parts_is_that_over_the_whole(x64, how, parts):
    batch = {"weights": (X, LABELS, WEIGHTS), "mask": (X, LABELS, MASK), "count": (X, IGNORED)}[how]
    options = {"count": lambda target: (target != -1).sum()} if how == "count" else {}
    loss, optimizer = (ignoring if how == "count" else CE), optimizers.sgd(1.0)
    step = jax.jit(training.make_step(NET, loss, optimizer, accumulate=parts, metrics={"again": loss}, **options))
    begun = training.init(NET, optimizer, X, 0)
    after, measured = step(begun, batch)
    weights = WEIGHTS if how == "weights" else MASK.astype(float)
    value, gradient = written_out(begun.params, weights)
    np.testing.assert_allclose(begun.params["kernel"] - after.params["kernel"], gradient, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose([measured["loss"], measured["again"]], value, rtol=1e-12)
    np.testing.assert_allclose(measured["weight"], weights.sum(), rtol=1e-12 if how == "weights" else 0)


def test_a_rate_is_measured_where_a_weight_is_not_finite():
    """The step is skipped, and its learning rate, a number, counts nothing: in an epoch of `fit`, and of `sweep`."""
    epoch = Epoch()
    rates, counts = np.float32([0.5, 0.25, 0.125]), np.float32([3, np.nan, np.inf])
    epoch.add({"loss": np.float32([1, np.nan, np.nan]), "learning_rate": rates, "weight": counts}, 8)
    assert epoch.means() == {"loss": 1.0, "learning_rate": 0.5, "loss_deviation": 0.0}
    assert _mean(rates, counts, np.isfinite(rates)) == 0.5


def test_a_part_in_which_nothing_counts_changes_nothing():
    """Not by a NaN either; and where nothing counts at all, the regularizer's gradient is what it is."""
    weights = np.zeros(24, np.float32)
    weights[18:] = 1
    x = X.astype(np.float32)
    spoiled = np.where(weights[:, None, None] == 0, np.nan, x)
    optimizer, l2 = optimizers.sgd(0.1), lambda params: jnp.sum(params["kernel"] ** 2)
    step = jax.jit(training.make_step(NET, CE, optimizer, accumulate=4, regularizer=l2))
    begun = training.init(NET, optimizer, x, 0)
    (good, _), (same, measured) = step(begun, (x, LABELS, weights)), step(begun, (spoiled, LABELS, weights))
    np.testing.assert_array_equal(good.params["kernel"], same.params["kernel"])
    assert measured["skipped"] == 0
    after, measured = step(begun, (x, LABELS, 0 * weights))
    assert measured["loss"] == 0
    np.testing.assert_allclose(after.params["kernel"], 0.8 * begun.params["kernel"], rtol=1e-6)


def batches(size, *arrays):
    return [tuple(array[i : i + size] for array in arrays) for i in range(0, 24, size)]


def test_an_epochs_means_and_validation_count_by_the_weights():
    """At a rate of 0 every epoch measures the same weights: arrays, batches and validation are one weighted mean."""
    data = tuple(array.astype(np.float32) if array.dtype == np.float64 else array for array in (X, LABELS, WEIGHTS))
    plain = tuple(array.astype(np.float32) if array.dtype == np.float64 else array for array in (X, IGNORED))
    options = {"epochs": 1, "progress": False, "metrics": {"accuracy": metrics.accuracy}}
    by_count = {"epochs": 1, "progress": False, "count": lambda target: (target != -1).sum()}
    sgd, found = optimizers.sgd(0.0), {}
    found["arrays"] = calls.fit(NET, CE, sgd, data, batch_size=8, validation=batches(6, *data), **options)
    found["named"] = training.fit(NET, CE, sgd, training.arrays(*data, batch_size=5, drop_last=False), **options)
    found["batches"] = training.fit(NET, CE, sgd, batches(5, *data), validation=data, **options)
    found["count"] = calls.fit(NET, ignoring, sgd, plain, batch_size=8, validation=batches(6, *plain), **by_count)
    weighted, _ = written_out(found["arrays"].params, WEIGHTS)
    masked, _ = written_out(found["arrays"].params, MASK.astype(float))
    scores = NET.apply(found["arrays"].params, (), data[0], train=False)[0]
    accuracy = metrics.accuracy(scores, data[1], weights=data[2])
    for name, fit in found.items():
        expected = masked if name == "count" else weighted
        for column in fit.history.names:
            if column.endswith("loss"):
                np.testing.assert_allclose(fit.history[column], expected, rtol=1e-5, err_msg=f"{name} {column}")
            if column.endswith("accuracy"):
                np.testing.assert_allclose(fit.history[column], accuracy, rtol=1e-5, err_msg=f"{name} {column}")
    assert "weight" not in found["arrays"].history.names
    members = {"settings": {"seed": [0], "rate": [0.0]}, "epochs": 1, "batch_size": 8, "validation": data}
    swept = training.sweep(NET, CE, lambda rate: optimizers.sgd(rate), data, **members)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(swept.history[name][0], weighted, rtol=1e-5)


@pytest.mark.peers
def test_a_dataloader_with_sample_weights_is_pytorchs_loop():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x, target = X[:, 0].astype(np.float32), LABELS[:, 0]
    weights = WEIGHTS[:, 1].astype(np.float32)
    dataset = torch.utils.data.TensorDataset(*map(torch.tensor, (x, target, weights)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=7)

    ours = training.fit(NET, CE, optimizers.sgd(0.5), loader, epochs=2, progress=False)

    begun = training.init(NET, optimizers.sgd(0.5), x, 0).params
    kernel, bias = (torch.tensor(np.asarray(begun[name]), requires_grad=True) for name in ("kernel", "bias"))
    optimizer = torch.optim.SGD([kernel, bias], lr=0.5)
    for _ in range(2):
        for xs, targets, counts in loader:
            values = torch.nn.functional.cross_entropy(xs @ kernel + bias, targets.long(), reduction="none")
            optimizer.zero_grad()
            ((counts * values).sum() / counts.sum()).backward()
            optimizer.step()
    np.testing.assert_allclose(ours.params["kernel"], kernel.detach(), rtol=1e-5, atol=1e-6)


ONES = np.ones((4, 2), np.float32)
FAULTS = {
    "integers": ((ONES, ONES, np.ones(4, int)), DTypeError, "weights must be floating point or bools, got int.*the third are"),
    "negative": ((ONES, ONES, -ONES[:, 0]), DataError, r"weights must not be negative, got -1.0 at index \(0,\)"),
    "a tree": ((ONES, ONES, {"a": ONES}), DTypeError, "weights must be one array, got dict"),
    "too few": ((ONES, ONES, ONES[:3]), DataError, "the arrays have 4, 4, 3 samples"),
    "NaN": ((ONES, ONES, ONES * np.float32(np.nan)), DataError, r"weights holds nan at index \(0, 0\)"),
    "of other axes": ((ONES, ONES, np.float32(np.ones((4, 3)))), ValueError, r"mse: weights must have the shape \(4, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_none_are_refused(fault):
    data, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        training.fit(layers.dense(2), losses.mse, optimizers.sgd(0.1), data, epochs=1, batch_size=4, progress=False)


def test_a_batch_with_weights_that_are_nan_is_said_to_be_one():
    batch = pairs.batch((ONES, ONES, ONES * np.float32(np.nan)), {})
    assert what_is_wrong(layers.dense(2), losses.mse, batch).startswith("The batch's weights holds NaN or Inf")


def test_a_loss_that_hands_on_what_it_is_given_takes_weights():
    def handing_on(prediction, target, **options):
        return losses.mse(prediction, target, **options)

    target = Weighted(jnp.zeros((2, 1)), jnp.array([1.0, 0.0]))
    assert applied("the loss", handing_on, jnp.array([[2.0], [9.0]]), target) == 4


def test_a_loss_or_metric_that_takes_no_weights_is_refused():
    def plain(prediction, target):
        return jnp.mean((prediction - target) ** 2)

    def run(loss, **options):
        data = ONES, ONES, ONES
        return calls.fit(
            layers.dense(2), loss, optimizers.sgd(0.1), data, epochs=1, batch_size=4, progress=False, **options
        )

    with pytest.raises(ConfigError, match=r"the data have weights, and the loss, plain, takes none; .*plain\(pred"):
        run(plain)
    with pytest.raises(ConfigError, match="and the metric 'plain', plain, takes none"):
        run(losses.mse, metrics={"plain": plain})
    with pytest.raises(ConfigError, match="and the count, lambda, takes none"):
        run(losses.mse, count=lambda target: target.size)
    with pytest.raises(ConfigError, match=r"count must return one real number, got float32 \(4, 2\)"):
        run(losses.mse, count=lambda target, weights: weights)
    with pytest.raises(ConfigError, match="stepping: count must be callable"):
        training.stepping(count=3)

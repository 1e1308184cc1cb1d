"""Metrics against scikit-learn and PyTorch, at their edges, and in fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, losses, metrics, optimizers, training
from jaxnet.errors import ConfigError, DataError, DTypeError

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.standard_normal((40, 5)).astype(np.float32)
LABELS = RANDOM.integers(5, size=40).astype(np.int32)
Y, T = (RANDOM.standard_normal((40, 3)).astype(np.float32) for _ in range(2))
WEIGHTS = RANDOM.uniform(0, 2, 40).astype(np.float32)


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS > 1], ids=["all", "weights", "mask"])
def test_they_are_scikit_learns(weights):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
    w = None if weights is None else np.float64(weights)
    right = {
        "accuracy": theirs.accuracy_score(LABELS, SCORES.argmax(-1), sample_weight=w),
        "top": theirs.top_k_accuracy_score(LABELS, SCORES, k=2, sample_weight=w),
        "mae": theirs.mean_absolute_error(T, Y, sample_weight=w),
        "r2": theirs.r2_score(T, Y, sample_weight=w),
        "r2 of one": theirs.r2_score(T[:, 0], Y[:, 0], sample_weight=w),
    }
    ours = {
        "accuracy": metrics.accuracy(SCORES, LABELS, weights=weights),
        "top": metrics.top_k_accuracy(SCORES, LABELS, k=2, weights=weights),
        "mae": jax.jit(partial(metrics.mean_absolute_error, weights=weights))(Y, T),
        "r2": jax.jit(partial(metrics.r2, weights=weights))(Y, T),
        "r2 of one": metrics.r2(Y[:, 0], T[:, 0], weights=weights),
    }
    for name, value in right.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_pytorchs(k):
    torch = pytest.importorskip("torch", reason="PyTorch is an oracle")
    top = torch.topk(torch.tensor(SCORES), k).indices.numpy()
    expected = (top == LABELS[:, None]).any(-1).mean()
    np.testing.assert_allclose(metrics.top_k_accuracy(SCORES, LABELS, k=k), expected, rtol=1e-6)


def test_accuracy_at_its_edges():
    assert metrics.accuracy(jnp.zeros((2, 3)), jnp.array([0, 1])) == 0.5  # of equal scores the first
    assert metrics.top_k_accuracy(jnp.zeros((2, 3)), jnp.array([0, 1]), k=1) == 0.5
    assert metrics.accuracy(SCORES, LABELS, ignore_label=2) == metrics.accuracy(SCORES, LABELS, weights=LABELS != 2)
    soft = jax.nn.one_hot(LABELS, 5)
    assert metrics.accuracy(SCORES, soft) == metrics.accuracy(SCORES, LABELS)
    for nothing in (jnp.full((1, 3), jnp.nan), jnp.array([[0.0, jnp.nan, 0.0]])):
        assert metrics.top_k_accuracy(nothing, jnp.array([1]), k=2) == 0  # a NaN is never right
    for metric in (metrics.accuracy, metrics.top_k_accuracy):
        with pytest.raises(DataError, match="label 5 at index 1 is no class"):
            metric(SCORES[:2], np.array([0, 5]))
        assert np.isnan(jax.jit(metric)(SCORES[:2], np.array([0, 5], np.int32)))
    with pytest.raises(ConfigError, match="k must be at most the number of classes, 5, got 6"):
        metrics.top_k_accuracy(SCORES, LABELS, k=6)
    with pytest.raises(DTypeError, match="target must be integer labels"):
        metrics.top_k_accuracy(SCORES, soft)


def test_r2_at_its_edges():
    flat = jnp.full(4, 7.0)
    assert metrics.r2(flat, flat) == 1
    assert metrics.r2(flat + 1, flat) == 0
    far = 1e6 + jnp.arange(4.0)  # deviations that a variance as mean of squares would lose
    np.testing.assert_allclose(metrics.r2(far + jnp.array([0.5, 0, 0, 0]), far), 1 - 0.25 / 5, rtol=1e-6)
    half = np.array([[True, False]] * 4)
    two = jnp.stack([far, flat], 1)
    assert metrics.r2(two.at[:, 1].add(1.0), two, weights=half) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits_are_in_float32(dtype):
    scores, labels = jnp.zeros((5000, 2), dtype), jnp.zeros(5000, jnp.int32).at[0].set(1)
    np.testing.assert_allclose(metrics.accuracy(scores, labels), 1 - 1 / 5000, rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_absolute_error(jnp.ones(5000, dtype), jnp.zeros(5000, dtype)), 1, rtol=1e-6)


def test_fit_measures_them():
    x = RANDOM.standard_normal((32, 4)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int32)
    fit = training.fit(
        layers.dense(3), losses.softmax_cross_entropy, optimizers.adam(0.1), (x, labels), epochs=20, batch_size=16,
        validation=(x, labels), progress=False,
        metrics={"accuracy": metrics.accuracy, "top 2": partial(metrics.top_k_accuracy, k=2)},
    )  # fmt: skip
    assert fit.history["validation_accuracy"][-1] > 0.9
    assert fit.history["validation_top 2"][-1] >= fit.history["validation_accuracy"][-1]


def test_r2_far_from_0_whose_first_target_does_not_count():
    target = jnp.asarray(1e7 + np.array([500.0, 1, 2, 3, 4]), jnp.float32)
    prediction = target + jnp.asarray([9.0, 1, 0, 0, 0], jnp.float32)
    found = metrics.r2(prediction, target, weights=jnp.array([0.0, 1, 1, 1, 1]))
    np.testing.assert_allclose(found, 1 - 1 / 5, rtol=1e-6)

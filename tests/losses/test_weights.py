"""Weights and masks of the losses and metrics: means over what counts, and of what does not no trace at all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import losses, metrics
from jaxnet.errors import DataError, DTypeError, ShapeError

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.standard_normal((3, 4, 2)).astype(np.float32)
OTHERS = RANDOM.standard_normal((3, 4, 2)).astype(np.float32)
SCORES = RANDOM.standard_normal((3, 4, 5)).astype(np.float32)
LABELS = RANDOM.integers(5, size=(3, 4)).astype(np.int32)
SOFT = RANDOM.dirichlet(np.ones(5), (3, 4)).astype(np.float32)
MASK = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
WEIGHTS = np.where(MASK, RANDOM.uniform(0.1, 3, MASK.shape), 0).astype(np.float32)

# name: (function, prediction, target, whether one value of the loss is one example's, not one number's)
TABLE = {
    "mse": (losses.mse, VALUES, OTHERS, False),
    "mae": (losses.mae, VALUES, OTHERS, False),
    "huber": (partial(losses.huber, delta=0.5), VALUES, OTHERS, False),
    "sigmoid_cross_entropy": (losses.sigmoid_cross_entropy, VALUES, (OTHERS > 0).astype(np.float32), False),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, SCORES, LABELS, True),
    "smoothed": (partial(losses.softmax_cross_entropy, label_smoothing=0.1), SCORES, LABELS, True),
    "of distributions": (losses.softmax_cross_entropy, SCORES, SOFT, True),
    "cross_entropy": (losses.cross_entropy, np.asarray(jax.nn.softmax(SCORES)), LABELS, True),
    "cross_entropy of distributions": (losses.cross_entropy, np.asarray(jax.nn.softmax(SCORES)), SOFT, True),
    "kl_divergence": (losses.kl_divergence, SCORES, SOFT, True),
    "hinge": (losses.hinge, SCORES, LABELS, True),
    "cosine_distance": (losses.cosine_distance, SCORES, SOFT, True),
    "cosine_similarity": (losses.cosine_similarity, SCORES, SOFT, True),
}
METRICS = {
    "accuracy": (metrics.accuracy, SCORES, LABELS),
    "top_k_accuracy": (partial(metrics.top_k_accuracy, k=2), SCORES, LABELS),
    "mean_absolute_error": (metrics.mean_absolute_error, VALUES, OTHERS),
    "r2": (metrics.r2, VALUES, OTHERS),
}
each = pytest.mark.parametrize("name", TABLE)


def single(loss, prediction, target):
    """The losses of all values alone, from the unweighted loss of batches of one value."""
    if target.ndim == prediction.ndim and prediction.shape[-1] == 2:  # regression: one value after the other
        flat = loss(prediction.reshape(-1, 1), target.reshape(-1, 1), reduction="none")
        return np.asarray(flat, np.float64).reshape(prediction.shape)
    return np.asarray(loss(prediction, target, reduction="none"), np.float64)


@each
@pytest.mark.parametrize("kind", ["mask", "weights"])
def test_it_is_the_weighted_mean(name, kind):
    loss, prediction, target, _ = TABLE[name]
    weights = MASK if kind == "mask" else WEIGHTS
    values = single(loss, prediction, target)
    w = np.broadcast_to(np.float64(weights).reshape(MASK.shape + (1,) * (values.ndim - 2)), values.shape)
    mean = jax.jit(partial(loss, weights=weights))(prediction, target)
    np.testing.assert_allclose(mean, (w * values).sum() / w.sum(), rtol=1e-5)
    of_each = np.asarray(loss(prediction, target, weights=weights, reduction="none"))
    expected = (w * values).mean((1, 2)) if values.ndim == 3 else w * values
    np.testing.assert_allclose(of_each, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss(prediction, target, weights=weights, reduction="sum"), expected.sum(), rtol=1e-5)


@each
@pytest.mark.parametrize("held", [np.nan, np.inf, 7.0])
def test_what_is_masked_changes_nothing_bit_for_bit(name, held):
    """Value and gradient, whatever stands there; labels that are no class too."""
    loss, prediction, target, _ = TABLE[name]
    step = jax.jit(jax.value_and_grad(partial(loss, weights=MASK)))
    value, gradient = step(prediction, target)
    other, bad = prediction.copy(), target.copy()
    other[~MASK] = held
    bad[~MASK] = -7 if target.dtype == np.int32 else held
    for arguments in ((other, target), (other, bad)):
        again, spoiled = step(*arguments)
        assert again == value
        np.testing.assert_array_equal(spoiled, gradient)
        assert loss(*arguments, weights=MASK) == pytest.approx(float(value), rel=1e-6)  # outside of jit, too
    np.testing.assert_array_equal(gradient[~MASK], 0)
    assert np.abs(gradient[MASK]).max(-1).min() > 0


@each
def test_where_nothing_counts_it_is_0(name):
    loss, prediction, target, _ = TABLE[name]
    value, gradient = jax.jit(jax.value_and_grad(partial(loss, weights=np.zeros(3, bool))))(prediction, target)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@each
def test_weights_of_ones_and_of_the_first_axis(name):
    loss, prediction, target, _ = TABLE[name]
    np.testing.assert_allclose(loss(prediction, target, weights=jnp.ones(3)), loss(prediction, target), rtol=1e-6)
    first = loss(prediction, target, weights=np.array([True, False, False]))
    np.testing.assert_allclose(first, loss(prediction[:1], target[:1]), rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_masked_metrics_do_not_see_what_is_masked(name):
    metric, prediction, target = METRICS[name]
    value = metric(prediction, target, weights=MASK)
    other, bad = prediction.copy(), target.copy()
    other[~MASK], bad[~MASK] = np.nan, -7
    assert jax.jit(partial(metric, weights=MASK))(other, bad) == pytest.approx(float(value), rel=1e-6)
    if name != "r2":
        chosen = metric(prediction[MASK], target[MASK])
        np.testing.assert_allclose(value, chosen, rtol=1e-6)


@pytest.mark.parametrize("name", ["mse", "softmax_cross_entropy"])
def test_bad_weights_are_refused(name):
    loss, prediction, target, _ = TABLE[name]
    for weights in (np.ones(4), np.ones((4, 3)), np.ones((3, 4, 5, 1)), np.float32(1)):
        with pytest.raises(ShapeError, match=f"{loss.__name__}: weights must have the shape"):
            loss(prediction, target, weights=np.float32(weights))
    with pytest.raises(DTypeError, match="weights must be floating point"):
        loss(prediction, target, weights=np.ones(3, np.int32))
    with pytest.raises(DataError, match="weights must not be negative"):
        loss(prediction, target, weights=np.float32([1, -1, 0]))


@pytest.mark.peers
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_class_weights_are_pytorchs(smoothing, reduction, soft, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    weights = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
    scores = torch.tensor(np.float64(SCORES), requires_grad=True)
    target = np.float64(SOFT) / np.float64(SOFT).sum(-1, keepdims=True) if soft else LABELS
    given = torch.tensor(target.reshape(-1, 5)) if soft else torch.tensor(LABELS.reshape(-1)).long()
    expected = torch.nn.functional.cross_entropy(
        scores.reshape(-1, 5), given, torch.tensor(weights), label_smoothing=smoothing, reduction=reduction
    )
    expected.backward()
    loss = partial(losses.softmax_cross_entropy, class_weights=weights, label_smoothing=smoothing, reduction=reduction)
    value, gradient = jax.jit(jax.value_and_grad(loss))(np.float64(SCORES), target)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, scores.grad.numpy(), rtol=1e-12, atol=1e-14)
    if not smoothing:
        q = np.asarray(jax.nn.softmax(np.float64(SCORES)))
        value = losses.cross_entropy(q, target, class_weights=weights, reduction=reduction)
        np.testing.assert_allclose(value, expected.item(), rtol=1e-12)


def test_class_weights_of_other_classes_are_refused():
    with pytest.raises(ShapeError, match=r"class_weights must have shape \(5,\), one a class, got \(4,\)"):
        losses.softmax_cross_entropy(SCORES, LABELS, class_weights=jnp.ones(4))


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huber_kl_and_binary_cross_entropy_are_pytorchs(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    functional = torch.nn.functional
    probabilities = 1 / (1 + np.exp(-OTHERS))
    positive = np.array([0.5, 3.0], dtype)

    def binary(y, t):
        return functional.binary_cross_entropy_with_logits(y, t, pos_weight=torch.tensor(positive))

    def divergence(y, t):
        log_q = functional.log_softmax(y.reshape(-1, 5), -1)
        return functional.kl_div(log_q, t.reshape(-1, 5), reduction="batchmean")

    cases = [
        (partial(losses.huber, delta=0.7), lambda y, t: functional.huber_loss(y, t, delta=0.7), VALUES, OTHERS),
        (partial(losses.sigmoid_cross_entropy, positive_weight=positive), binary, VALUES * 20, probabilities),
        (losses.kl_divergence, divergence, SCORES, SOFT),
    ]
    rtol = 1e-5 if dtype == "float32" else 1e-12
    for ours, theirs, prediction, target in cases:
        y = torch.tensor(prediction.astype(dtype), requires_grad=True)
        expected = theirs(y, torch.tensor(target.astype(dtype)))
        expected.backward()
        with jax.enable_x64(dtype == "float64"):
            value, gradient = jax.jit(jax.value_and_grad(ours))(prediction.astype(dtype), target.astype(dtype))
        np.testing.assert_allclose(value, expected.item(), rtol=rtol)
        np.testing.assert_allclose(gradient, y.grad.numpy(), rtol=rtol, atol=rtol / 10)


def test_binary_cross_entropy_keeps_its_digits():
    """The right class nearly certain: value and derivative are both e^-l, to a few units."""
    logits = np.array([[30], [-30], [80]], np.float32)
    target = np.array([[True], [False], [True]])

    @jax.jit
    def both(logits):
        values, pull = jax.vjp(lambda x: losses.sigmoid_cross_entropy(x, target, reduction="none"), logits)
        return values, pull(jnp.ones_like(values))[0][:, 0]

    values, gradient = both(logits)
    np.testing.assert_allclose(values, np.exp([-30, -30, -80.0]), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.exp([-30, -30, -80.0]) * [-1, 1, -1], rtol=1e-6)
    with pytest.raises(DataError, match="target must hold bools, or numbers from 0 to 1"):
        losses.sigmoid_cross_entropy(logits, logits)
    with pytest.raises(DataError, match="got 2 to 2; several classes"):
        losses.sigmoid_cross_entropy(*jnp.array([[0], [2]], jnp.bfloat16))
    with pytest.raises(ShapeError, match="positive_weight must be a number or have shape"):
        losses.sigmoid_cross_entropy(logits, target, positive_weight=jnp.ones(2))
    with pytest.raises(DTypeError, match="kl_divergence: target must be distributions"):
        losses.kl_divergence(jnp.zeros((2, 3)), jnp.array([0, 1]))


def test_binary_cross_entropy_at_the_infinities():
    logits, target = jnp.array([jnp.inf, -jnp.inf, jnp.inf]), jnp.array([True, False, False])
    np.testing.assert_array_equal(
        losses.sigmoid_cross_entropy(logits, target, reduction="none"), np.array([0.0, 0.0, np.inf], np.float32)
    )


SIGNALS = RANDOM.standard_normal((3, 40, 2)).astype(np.float32)
SMALL = ((16, 4, 12), (8, 2, 8))
OF_EXAMPLES = {
    "spectral_mse": (losses.spectral_mse, SIGNALS[:, ::-1]),
    "multi_resolution_stft": (partial(losses.multi_resolution_stft, resolutions=SMALL), SIGNALS[:, ::-1]),
    "ctc": (losses.ctc, np.array([[1, 0], [1, 1], [1, 0]], np.int32)),
}


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_whole_examples_have_weights(name):
    loss, target = OF_EXAMPLES[name]
    weights = np.float32([0.5, 0, 2])
    if name == "ctc":
        loss = partial(loss, label_mask=target > 0)
    masked = np.where(weights[:, None, None] == 0, np.nan, SIGNALS).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(partial(loss, weights=weights)))(masked, target)
    of_each = np.asarray(loss(SIGNALS, target, reduction="none"), np.float64)
    np.testing.assert_allclose(value, (weights * of_each).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[::2]).max() > 0
    with pytest.raises(ShapeError, match=rf"{name}: weights must have the shape \(3,\)"):
        loss(SIGNALS, target, weights=np.ones((3, 40), np.float32))

"""One table of all losses, and the contract that each keeps: design rule 6."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnet import losses
from jaxnet.errors import ShapeError

BATCH, CLASSES = 3, 4


class Case(NamedTuple):
    """A configured loss and the arrays it is tried on: float64 inputs away from any kink."""

    loss: Callable
    prediction: np.ndarray
    target: np.ndarray
    pairs: bool  # whether the target is an array like the prediction, and differentiable


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _pair(loss, *shape):
    prediction = _normal(*shape)
    gap = _normal(*shape, seed=1)
    return Case(loss, prediction, prediction + gap + 0.1 * np.sign(gap), True)


def _labels(loss, *shape, integers=(0, 3, 1), softmax=False):
    scores = 3 * _normal(*shape)
    return Case(loss, _softmax(scores) if softmax else scores, np.asarray(integers, np.int32), False)


def _distributions(loss, *shape, softmax=False):
    scores = _normal(*shape)
    return Case(loss, _softmax(scores) if softmax else scores, _softmax(_normal(*shape, seed=1)), False)


SIGNAL, STEREO = (BATCH, 7), (BATCH, 8, 2)
SCORES = (BATCH, CLASSES)
SEQUENCE = (BATCH, 2, CLASSES)
SEQUENCE_LABELS = ((0, 3), (-9, 1), (2, 2))
RESOLUTIONS = ((6, 3, 5), (4, 2, 4))

CASES = {
    "mse": _pair(losses.mse, *SIGNAL),
    "mse of scalars": _pair(losses.mse, BATCH),
    "mse of sequences": _pair(losses.mse, *STEREO),
    "mae": _pair(losses.mae, *SIGNAL),
    "cosine_similarity": _pair(losses.cosine_similarity, *SIGNAL),
    "cosine_distance over axis 1": _pair(partial(losses.cosine_distance, axis=1), *STEREO),
    "spectral_mse of odd length": _pair(losses.spectral_mse, *SIGNAL),
    "spectral_mse of channels": _pair(losses.spectral_mse, *STEREO),
    "multi_resolution_stft": _pair(partial(losses.multi_resolution_stft, resolutions=RESOLUTIONS), BATCH, 10),
    "multi_resolution_stft of channels": _pair(
        partial(losses.multi_resolution_stft, resolutions=RESOLUTIONS[:1], floor=1e-3), BATCH, 9, 2
    ),
    "softmax_cross_entropy": _labels(losses.softmax_cross_entropy, *SCORES),
    "softmax_cross_entropy smoothed": _labels(partial(losses.softmax_cross_entropy, label_smoothing=0.2), *SCORES),
    "softmax_cross_entropy of sequences, ignoring": _labels(
        partial(losses.softmax_cross_entropy, ignore_label=-9), *SEQUENCE, integers=SEQUENCE_LABELS
    ),
    "softmax_cross_entropy of distributions": _distributions(losses.softmax_cross_entropy, *SCORES),
    "softmax_cross_entropy of distributions, smoothed": _distributions(
        partial(losses.softmax_cross_entropy, label_smoothing=0.2), *SEQUENCE
    ),
    "cross_entropy": _labels(losses.cross_entropy, *SCORES, softmax=True),
    "cross_entropy ignoring": _labels(
        partial(losses.cross_entropy, ignore_label=-9), *SEQUENCE, integers=SEQUENCE_LABELS, softmax=True
    ),
    "cross_entropy of distributions": _distributions(losses.cross_entropy, *SCORES, softmax=True),
    "huber": _pair(partial(losses.huber, delta=0.7), *SIGNAL),
    "kl_divergence": _distributions(losses.kl_divergence, *SCORES),
    "sigmoid_cross_entropy": Case(
        partial(losses.sigmoid_cross_entropy, positive_weight=1.5),
        3 * _normal(*SIGNAL),
        np.random.default_rng(1).uniform(size=SIGNAL),
        False,
    ),
    "ctc": Case(losses.ctc, _normal(BATCH, 5, CLASSES), np.array([[1, 2], [3, 3], [2, 1]], np.int32), False),
    "hinge": _labels(losses.hinge, *SCORES),
    "hinge, crammer_singer": _labels(partial(losses.hinge, variant="crammer_singer", margin=2.5), *SCORES),
}
case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _arrays(case, dtype=jnp.float32):
    target = jnp.asarray(case.target)
    if jnp.issubdtype(target.dtype, jnp.floating):
        target = jnp.asarray(case.target, dtype)
    return jnp.asarray(case.prediction, dtype), target


def _close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_table_holds_every_loss():
    used = {getattr(c.loss, "func", c.loss).__name__ for c in CASES.values()}
    assert used == set(losses.__all__) - {"stft_magnitude"}


@case
def test_jit_equals_eager_and_traces_once(case):
    traces = []

    @jax.jit
    def compiled(prediction, target):
        traces.append(None)
        return case.loss(prediction, target)

    prediction, target = _arrays(case)
    other, other_target = prediction[::-1], target[::-1]
    _close(compiled(prediction, target), case.loss(prediction, target))
    _close(compiled(other, other_target), case.loss(other, other_target))
    assert len(traces) == 1


@case
def test_a_result_is_not_weakly_typed(case):
    prediction, target = _arrays(case)
    assert not jax.eval_shape(case.loss, prediction, target).weak_type  # else a step that carries it recompiles


@case
def test_vmap_equals_a_loop(case):
    prediction, target = _arrays(case)
    prediction = jnp.stack([prediction, prediction[::-1]])
    target = jnp.stack([target, jnp.roll(target, 1, axis=0)])
    expected = [case.loss(p, t) for p, t in zip(prediction, target, strict=True)]
    _close(jax.jit(jax.vmap(case.loss))(prediction, target), expected)


@case
def test_examples_do_not_mix(case):
    prediction, target = _arrays(case)
    values = case.loss(prediction, target, reduction="none")
    order = np.array([1, 1, 2])  # example 1 in place of example 0
    changed = case.loss(prediction[order], target[order], reduction="none")
    _close(changed, values[order])
    assert np.abs(changed[0] - values[0]).max() > 1e-3


@case
def test_reductions_agree(case):
    prediction, target = _arrays(case)
    values = np.asarray(case.loss(prediction, target, reduction="none"), np.float64)
    ignored = getattr(case.loss, "keywords", {}).get("ignore_label")
    keep = np.ones(values.shape, bool) if ignored is None else case.target != ignored
    assert values.shape[0] == BATCH
    assert (values[~keep] == 0).all()
    assert (values[keep] != 0).any()
    _close(case.loss(prediction, target, reduction="sum"), values.sum())
    _close(case.loss(prediction, target, reduction="mean"), values.sum() / keep.sum())
    _close(case.loss(prediction, target), values.sum() / keep.sum())


@case
def test_gradients_match_finite_differences_to_second_order(case, x64):
    prediction, target = _arrays(case, jnp.float64)
    check = partial(check_grads, atol=1e-5, rtol=1e-5, eps=1e-6)
    for mode in ("fwd", "rev"):
        check(jax.jit(lambda p: case.loss(p, target)), (prediction,), order=2, modes=[mode])
    if case.pairs:
        check(jax.jit(lambda t: case.loss(prediction, t)), (target,), order=1, modes=["rev"])


@case
def test_jvp_equals_vjp(case, x64):
    prediction, target = _arrays(case, jnp.float64)

    @jax.jit
    def values(p):
        return case.loss(p, target, reduction="none")

    tangent = jnp.asarray(_normal(*prediction.shape, seed=2))
    _, forward = jax.jvp(values, (prediction,), (tangent,))
    _, pull = jax.vjp(values, prediction)
    cotangent = jnp.asarray(_normal(*forward.shape, seed=3))
    (backward,) = pull(cotangent)
    assert backward.dtype == prediction.dtype
    assert np.abs(forward).max() > 1e-3
    np.testing.assert_allclose(jnp.vdot(cotangent, forward), jnp.vdot(backward, tangent), rtol=1e-11)


@case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_values_are_computed_in_at_least_float32(case, dtype):
    narrow = _arrays(case, dtype)
    widened = tuple(x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in narrow)
    step = jax.jit(jax.value_and_grad(case.loss))
    value, gradient = step(*narrow)
    exact_value, exact = step(*widened)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    _close(value, exact_value)
    limits = jnp.finfo(dtype)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), exact, rtol=float(limits.eps), atol=float(limits.eps * np.abs(exact).max())
    )


@case
def test_float64_stays_float64(case, x64):
    prediction, target = _arrays(case, jnp.float64)
    for reduction in ("none", "sum", "mean"):
        value = jax.eval_shape(partial(case.loss, reduction=reduction), prediction, target)
        assert value.dtype == jnp.float64


@case
@pytest.mark.parametrize(
    "change",
    [lambda t: t[..., None], lambda t: t[:1], lambda t: t[1:]],
    ids=["one axis more", "one example", "one example less"],
)
def test_shapes_are_never_broadcast(case, change):
    prediction, target = _arrays(case)
    target = change(target)
    with pytest.raises(ShapeError, match="shape"):
        case.loss(prediction, target)
    with pytest.raises(ShapeError, match="shape"):
        jax.jit(case.loss)(prediction, target)

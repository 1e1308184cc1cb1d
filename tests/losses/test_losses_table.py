"""One table of all losses, and the contract that each keeps: design rule 6."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def _widened(array):
    return np.asarray(array, np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _flipped(array):
    return jnp.asarray(np.asarray(array)[::-1])  # by NumPy, which needs no program


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
    other, other_target = _flipped(prediction), _flipped(target)
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
    predictions = [prediction, _flipped(prediction)]
    targets = [target, jnp.asarray(np.roll(target, 1, axis=0))]
    expected = [case.loss(p, t) for p, t in zip(predictions, targets, strict=True)]
    _close(jax.jit(jax.vmap(case.loss))(np.stack(predictions), np.stack(targets)), expected)


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
def test_derivatives(case, x64):
    """First and second, forward and reverse, by the prediction and by a target that is like it.

    Against central differences in a random direction; all derivatives of a loss are one program.
    """
    prediction, target = _arrays(case, jnp.float64)
    origin = tuple(map(np.asarray, (prediction, target) if case.pairs else (prediction,)))
    u, v = (tuple(_normal(*a.shape, seed=seed + i) for i, a in enumerate(origin)) for seed in (2, 4))

    def loss(theta, **options):
        return case.loss(*(theta if case.pairs else (*theta, target)), **options)

    def inner(a, b):
        return sum(map(jnp.vdot, a, b))

    @jax.jit
    def measure(theta):
        gradient = jax.grad(loss)
        value, slope = jax.jvp(loss, (theta,), (u,))
        second = {
            "forward over forward": jax.jvp(lambda t: jax.jvp(loss, (t,), (u,))[1], (theta,), (v,))[1],
            "reverse over reverse": inner(v, jax.grad(lambda t: inner(gradient(t), u))(theta)),
        }
        values = partial(loss, reduction="none")
        _, forward = jax.jvp(values, (theta,), (u,))
        cotangent = jnp.asarray(_normal(*forward.shape, seed=3))
        (backward,) = jax.vjp(values, theta)[1](cotangent)
        adjoint = jnp.vdot(cotangent, forward), inner(backward, u)
        return value, slope, inner(gradient(theta), v), second, forward, adjoint

    h = 1e-6
    (_, slope, slope_v, second, forward, adjoint), after, before = (
        measure(tuple(a + step * d for a, d in zip(origin, u, strict=True))) for step in (0, h, -h)
    )
    assert np.abs(forward).max() > 1e-3
    np.testing.assert_allclose(*adjoint, rtol=1e-11)
    np.testing.assert_allclose(slope, (after[0] - before[0]) / (2 * h), rtol=1e-6, atol=1e-7)
    assert slope_v.dtype == jnp.float64
    for how, value in second.items():
        np.testing.assert_allclose(value, (after[2] - before[2]) / (2 * h), rtol=1e-5, atol=1e-6, err_msg=how)


@case
def test_values_are_computed_in_at_least_float32(case):
    step = jax.value_and_grad(case.loss)
    narrow = {dtype: _arrays(case, dtype) for dtype in ("bfloat16", "float16")}
    wide = {dtype: tuple(map(_widened, arrays)) for dtype, arrays in narrow.items()}
    found, exact = jax.jit(lambda *trees: [{name: step(*arrays) for name, arrays in t.items()} for t in trees])(
        narrow, wide
    )
    for dtype, (value, gradient) in found.items():
        limits, (exact_value, exact_gradient) = jnp.finfo(dtype), exact[dtype]
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        _close(value, exact_value)
        np.testing.assert_allclose(
            _widened(gradient), exact_gradient, err_msg=dtype,
            rtol=float(limits.eps), atol=float(limits.eps * np.abs(exact_gradient).max()),
        )  # fmt: skip


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

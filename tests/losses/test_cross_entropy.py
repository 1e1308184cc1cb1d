"""cross_entropy and softmax_cross_entropy (eq. 4.19) against the printed sum and PyTorch, and at their edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import losses

IGNORED = -100
SHAPES = st.sampled_from([(1, 2), (2, 3, 4)])
SMOOTHING = st.sampled_from([0.0, 0.1, 1.0])
SEED = st.integers(0, 99)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _scores(shape, double, seed):
    return (5 * np.random.default_rng(seed).normal(size=shape)).astype(np.float64 if double else np.float32)


def _labels(shape, seed, ignoring=False):
    draw = np.random.default_rng(seed + 1000)
    label = draw.integers(shape[-1], size=shape[:-1])
    if ignoring:
        label.flat[draw.random(label.size) < 0.4] = IGNORED
    return label


def _distribution(shape, double, seed):
    p = np.random.default_rng(seed + 2000).dirichlet(np.full(shape[-1], 0.5), size=shape[:-1])
    return p.astype(np.float64 if double else np.float32)


@partial(jax.jit, static_argnames=("loss", "options"))
def _value_and_gradient(loss, scores, target, options=()):
    values, pull = jax.vjp(lambda s: loss(s, target, **dict(options)), scores)
    return values, pull(jnp.ones_like(values))[0]


def _literal(logits, target, smoothing=0.0):
    """- sum over y of p_y log q_y with q = softmax(logits), row by row, and its derivative q - p for the logits."""
    logits = np.float64(logits)
    values, gradient = np.zeros(logits.shape[:-1]), np.zeros(logits.shape)
    for row in np.ndindex(values.shape):
        s = logits[row]
        p = np.zeros(len(s))
        if target.shape == logits.shape:
            p += target[row]
        elif target[row] == IGNORED:
            continue
        else:
            p[target[row]] = 1
        p = (1 - smoothing) * p + smoothing / len(s)
        log_q = s - s.max() - np.log(np.exp(s - s.max()).sum())
        values[row] = -(p * log_q).sum()
        gradient[row] = p.sum() * np.exp(log_q) - p
    return values, gradient


@given(shape=SHAPES, smoothing=SMOOTHING, ignoring=st.booleans(), double=st.booleans(), seed=SEED)
def test_softmax_of_labels_is_the_printed_sum(shape, smoothing, ignoring, double, seed):
    logits, label = _scores(shape, double, seed), _labels(shape, seed, ignoring)
    expected, expected_gradient = _literal(logits, label, smoothing)
    with jax.enable_x64(double):
        options = ("label_smoothing", smoothing), ("ignore_label", IGNORED if ignoring else None), ("reduction", "none")
        values, gradient = _value_and_gradient(losses.softmax_cross_entropy, logits, label, options)
        tolerance = 1e-12 if double else 1e-5
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance)


@given(shape=SHAPES, smoothing=SMOOTHING, double=st.booleans(), seed=SEED)
def test_softmax_of_distributions_is_the_printed_sum(shape, smoothing, double, seed):
    logits, target = _scores(shape, double, seed), _distribution(shape, double, seed)
    expected, expected_gradient = _literal(logits, target, smoothing)
    with jax.enable_x64(double):
        options = ("label_smoothing", smoothing), ("reduction", "none")
        values, gradient = _value_and_gradient(losses.softmax_cross_entropy, logits, target, options)
        tolerance = 1e-12 if double else 1e-5
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance)


@given(shape=SHAPES, soft=st.booleans(), double=st.booleans(), seed=SEED)
def test_of_probabilities_it_is_the_printed_sum(shape, soft, double, seed):
    dtype = np.float64 if double else np.float32
    q = _softmax(_scores(shape, True, seed)).astype(dtype)
    target = _distribution(shape, double, seed) if soft else _labels(shape, seed)
    p = np.float64(target) if soft else np.eye(shape[-1])[target]
    with jax.enable_x64(double):
        values, gradient = _value_and_gradient(losses.cross_entropy, q, target, (("reduction", "none"),))
        tolerance = 1e-12 if double else 1e-5
        np.testing.assert_allclose(values, -(p * np.log(np.float64(q))).sum(-1), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, -p / np.float64(q), rtol=tolerance, atol=0)


@pytest.mark.peers
@given(
    shape=SHAPES,
    kind=st.sampled_from(["labels", "ignoring", "distributions"]),
    smoothing=SMOOTHING,
    reduction=st.sampled_from(["mean", "sum"]),
    double=st.booleans(),
    seed=SEED,
)
def test_torch_agrees(shape, kind, smoothing, reduction, double, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    logits = _scores(shape, double, seed)
    if kind == "distributions":
        target = _distribution(shape, double, seed)
        flat_target = torch.tensor(target.reshape(-1, shape[-1]))
    else:
        target = _labels(shape, seed, ignoring=kind == "ignoring")
        target.flat[0] = 0  # PyTorch's mean of no examples is NaN, ours 0
        flat_target = torch.tensor(target.reshape(-1))
    s = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        s.reshape(-1, shape[-1]), flat_target, ignore_index=IGNORED, label_smoothing=smoothing, reduction=reduction
    )
    expected.backward()
    with jax.enable_x64(double):
        ignore_label = IGNORED if kind == "ignoring" else None
        options = ("label_smoothing", smoothing), ("ignore_label", ignore_label), ("reduction", reduction)
        value, gradient = _value_and_gradient(losses.softmax_cross_entropy, logits, target, options)
        tolerance = 1e-12 if double else 1e-5
        np.testing.assert_allclose(value, expected.item(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, s.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_logits_of_any_size_are_exact():
    logits = jnp.array([[1e30, 0.0], [-1e4, 1e4], [500.0, 499.0]])
    values, pull = jax.vjp(lambda s: losses.softmax_cross_entropy(s, jnp.array([0, 0, 1]), reduction="none"), logits)
    np.testing.assert_allclose(values, [0, 2e4, 1 + np.log1p(np.exp(-1))], rtol=1e-6)
    e = 1 / (1 + np.exp(1))
    np.testing.assert_allclose(pull(jnp.ones(3))[0], [[0, 0], [-1, 1], [1 - e, e - 1]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e8, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["labels", "distributions"])
def test_what_all_logits_have_in_common_does_not_count(kind, smoothing, offset, dtype):
    """Right is the sum in exact arithmetic of the logits as they are rounded, in float64 after the offset is off."""
    offset = np.clip(offset, -3e4, 3e4) if dtype == "float16" else offset
    with jax.enable_x64(dtype == "float64"):
        step = float(jnp.finfo(dtype).eps) * max(1.0, abs(offset))
        logits = jnp.asarray(float(offset), dtype) + jnp.asarray(
            step * np.array([[0, 1, 2], [2, 2, 2], [-4, 0, 5]]), dtype
        )
        exact = np.float64(logits) - float(logits[1, 1])
        logits = jnp.concatenate([logits, logits[:, ::-1]])
        exact = np.concatenate([exact, exact[:, ::-1]])
        target = np.array([0, 1, 2, 0, 1, 2])
        if kind == "distributions":
            target = np.float32(0.9 * np.eye(3)[target] + 0.1 / 3)
        options = ("label_smoothing", smoothing), ("reduction", "none")
        values, gradient = _value_and_gradient(losses.softmax_cross_entropy, logits, jnp.asarray(target), options)
    expected, expected_gradient = _literal(exact, target, smoothing)
    tolerance = 1e-12 if dtype == "float64" and kind == "labels" else 1e-6
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(gradient), expected_gradient, rtol=eps, atol=max(tolerance, eps / 256))


def test_three_equal_logits_of_1e8_are_three_equal_logits():
    for logits in (jnp.full((1, 3), 1e8), jnp.full((1, 3), -1e8), jnp.full((1, 3), 1e4)):
        for target in (jnp.array([1]), jnp.array([[0.0, 0.5, 0.5]])):
            assert losses.softmax_cross_entropy(logits, target) == pytest.approx(np.log(3), rel=1e-6)


def test_a_logit_of_minus_infinity_masks_its_class():
    logits = jnp.array([[1.0, 2.0, -jnp.inf]])
    log_two = np.log(np.exp(1) + np.exp(2))
    for target in (jnp.array([0]), jnp.array([[1.0, 0.0, 0.0]])):
        value, gradient = jax.jit(jax.value_and_grad(losses.softmax_cross_entropy))(logits, target)
        np.testing.assert_allclose(value, log_two - 1, rtol=1e-6)
        q = np.exp(1 - log_two)
        np.testing.assert_allclose(gradient, [[q - 1, 1 - q, 0]], rtol=1e-6)
    half = jnp.array([[0.5, 0.5, 0.0]])
    value, gradient = jax.value_and_grad(losses.softmax_cross_entropy)(logits, half)
    np.testing.assert_allclose(value, log_two - 1.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[q - 0.5, 0.5 - q, 0]], rtol=1e-5)
    to_target = jax.grad(losses.softmax_cross_entropy, argnums=1)(logits, half)
    np.testing.assert_allclose(to_target, [[log_two - 1, log_two - 2, 0]], rtol=1e-5)
    assert losses.softmax_cross_entropy(logits, jnp.array([2])) == np.inf


def test_a_class_of_target_0_adds_0_whatever_its_probability():
    q = jnp.array([[0.0, 1.0, 0.0]])
    for target in (jnp.array([1]), jnp.array([[0.0, 1.0, 0.0]])):
        value, gradient = jax.value_and_grad(losses.cross_entropy)(q, target)
        assert value == 0
        np.testing.assert_array_equal(gradient, [[0, -1, 0]])
    for target in (jnp.array([0]), jnp.array([[0.5, 0.5, 0.0]])):
        assert losses.cross_entropy(q, target) == np.inf


KINDS = {
    "softmax_cross_entropy": (losses.softmax_cross_entropy, lambda x: x),
    "smoothed": (
        lambda s, y, **options: losses.softmax_cross_entropy(s, y, label_smoothing=0.1, **options),
        lambda x: x,
    ),
    "cross_entropy": (losses.cross_entropy, _softmax),
}
kinds = pytest.mark.parametrize(("loss", "link"), KINDS.values(), ids=KINDS.keys())


@kinds
@pytest.mark.parametrize("ignore_label", [None, IGNORED])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_label_that_is_no_class_gives_nan_inside_jit(loss, link, ignore_label, reduction):
    scores = jnp.asarray(link(np.random.default_rng(0).normal(size=(3, 4))), jnp.float32)

    @jax.jit
    def step(scores, label):
        value, pull = jax.vjp(lambda s: loss(s, label, ignore_label=ignore_label, reduction=reduction), scores)
        return value, jnp.exp(value), pull(jnp.ones_like(value))[0]

    for bad in (4, -1, 2**31 - 1):
        value, perplexity, gradient = step(scores, jnp.array([0, bad, 3]))
        for shown in (value, perplexity):
            np.testing.assert_array_equal(np.isnan(shown), [False, True, False] if reduction == "none" else True)
        np.testing.assert_array_equal(np.isnan(gradient), [[False] * 4, [True] * 4, [False] * 4])
    value, _, gradient = step(scores, jnp.array([0, 2, 3]))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@kinds
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_narrow_labels_of_many_classes_are_never_another_class(loss, link, dtype):
    # 300 classes: a comparison in 8 bits would take class 44 for class 300 - 256, and -1 for class 255.
    scores = link(np.random.default_rng(0).normal(size=(3, 300)))
    label = np.array([0, 44, 255 if dtype == jnp.uint8 else 127])
    narrow = jnp.asarray(label, dtype)
    wide = loss(jnp.asarray(scores, jnp.float32), jnp.asarray(label, jnp.int32), reduction="none")
    for f in (loss, jax.jit(loss, static_argnames="reduction")):
        np.testing.assert_allclose(f(jnp.asarray(scores, jnp.float32), narrow, reduction="none"), wide, rtol=1e-6)
    if dtype == jnp.int8:
        values = jax.jit(loss, static_argnames="reduction")(
            jnp.asarray(scores, jnp.float32), jnp.array([0, -1, -1], dtype), reduction="none"
        )
        np.testing.assert_array_equal(np.isnan(values), [False, True, True])


@kinds
def test_of_ignored_examples_alone_loss_and_gradient_are_0(loss, link):
    scores = jnp.asarray(link(np.ones((2, 3))), jnp.float32)
    for reduction in ("mean", "sum"):
        value, gradient = jax.jit(
            jax.value_and_grad(lambda s, y, r=reduction: loss(s, y, ignore_label=IGNORED, reduction=r))
        )(scores, jnp.full(2, IGNORED))
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@kinds
@pytest.mark.parametrize("ignored", [IGNORED, 1], ids=["no class", "a class"])
@pytest.mark.parametrize("held", [np.nan, np.inf])
def test_what_ignored_examples_hold_does_not_leak(loss, link, ignored, held):
    scores = np.asarray(link(np.random.default_rng(0).normal(size=(3, 4))), np.float32)
    poisoned = scores.copy()
    poisoned[1] = held
    label = jnp.array([0, ignored, 3])

    step = jax.jit(jax.value_and_grad(lambda s, y: loss(s, y, ignore_label=ignored)))
    value, gradient = step(jnp.asarray(poisoned), label)
    expected, expected_gradient = jax.value_and_grad(loss)(jnp.asarray(scores[[0, 2]]), label[np.array([0, 2])])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[np.array([0, 2])], expected_gradient, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gradient[1], np.zeros(4))

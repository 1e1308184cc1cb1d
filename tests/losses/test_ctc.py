"""ctc against PyTorch, optax and the sum over all paths; masks, and labels that cannot be spelled."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import losses
from jaxnet.errors import ConfigError, DataError, DTypeError, ShapeError

RANDOM = np.random.default_rng(0)
TIME, CLASSES, N = 9, 5, 4
LOGITS = 2 * RANDOM.standard_normal((3, TIME, CLASSES))
LABELS = np.array([[1, 2, 2, 4], [3, 3, 3, 1], [4, 1, 0, 0]], np.int32)
LENGTHS, FRAMES = np.array([4, 4, 2]), np.array([9, 8, 5])
MASK, LABEL_MASK = np.arange(TIME) < FRAMES[:, None], np.arange(N) < LENGTHS[:, None]


def value_and_gradient(logits, **options):
    def total(x, mask, labelled):
        return losses.ctc(x, LABELS, mask=mask, label_mask=labelled, **{"reduction": "sum", **options})

    return jax.jit(jax.value_and_grad(total))(logits, MASK, LABEL_MASK)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients_are_pytorchs(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = torch.tensor(LOGITS.astype(dtype), requires_grad=True)
    log_p = torch.nn.functional.log_softmax(x, -1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(
        log_p, torch.tensor(LABELS), torch.tensor(FRAMES), torch.tensor(LENGTHS), reduction="sum"
    )
    expected.backward()
    with jax.enable_x64(dtype == "float64"):
        value, gradient = value_and_gradient(LOGITS.astype(dtype))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=rtol, atol=rtol)


@pytest.mark.peers
def test_values_and_gradients_are_optaxs():
    optax = pytest.importorskip("optax", reason="optax is an oracle")
    x, paddings = LOGITS.astype(np.float32), [1 - np.float32(m) for m in (MASK, LABEL_MASK)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, right = jax.value_and_grad(
            lambda x: optax.losses.ctc_loss(x, paddings[0], LABELS, paddings[1]).sum()
        )(x)
    value, gradient = value_and_gradient(x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[], [1], [1, 1], [2, 1]])
def test_it_is_the_sum_over_all_paths(labels, x64):
    logits = LOGITS[:1, :4, :3]
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        said = [c for c, _ in itertools.groupby(path) if c != 0]
        total += np.prod(p[np.arange(4), path]) if said == labels else 0
    value = losses.ctc(logits, np.array([labels], np.int32).reshape(1, -1))
    np.testing.assert_allclose(value, -np.log(total), rtol=1e-12)


def test_another_blank_is_a_renaming():
    value, gradient = value_and_gradient(LOGITS.astype(np.float32))
    order = np.array([4, 0, 1, 2, 3])  # class 0 becomes the last
    moved = np.roll(LOGITS, -1, -1).astype(np.float32)
    labels = np.where(LABEL_MASK, LABELS - 1, 4).astype(np.int32)
    again, other = jax.value_and_grad(
        lambda x: losses.ctc(x, labels, mask=MASK, label_mask=LABEL_MASK, blank=4, reduction="sum")
    )(moved)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(other)[..., order], gradient, rtol=1e-4, atol=1e-6)


def test_what_is_masked_changes_nothing_bit_for_bit():
    value, gradient = value_and_gradient(LOGITS.astype(np.float32))
    other = LOGITS.astype(np.float32)
    other[~MASK] = np.nan
    again, spoiled = value_and_gradient(other)
    assert again == value
    np.testing.assert_array_equal(spoiled, gradient)
    np.testing.assert_array_equal(gradient[~MASK], 0)


def test_labels_that_the_frames_cannot_spell():
    """1 1 takes three frames. Outside jit an error says so; inside, that one is infinite, with gradient 0."""
    logits = jnp.asarray(LOGITS[:2, :2, :3], jnp.float32)
    labels = jnp.array([[1, 1], [1, 2]])
    with pytest.raises(DataError, match=r"ctc: the labels of example 0 take 3 frames, .*, and there are 2"):
        losses.ctc(logits, labels)
    values, pull = jax.jit(lambda x, y: jax.vjp(lambda x: losses.ctc(x, y, reduction="none"), x))(logits, labels)
    (gradient,) = pull(jnp.ones(2))
    np.testing.assert_array_equal(np.isinf(values), [True, False])
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient[1]).min() > 0


@pytest.mark.parametrize("bad", [0, 5, -1])
def test_a_bad_label_raises_outside_jit_and_gives_nan_inside(bad):
    labels = LABELS.copy()
    labels[1, 1] = bad
    logits = LOGITS.astype(np.float32)
    with pytest.raises(DataError, match=rf"label {bad} at index \(1, 1\) is the blank or no class; there are 5"):
        losses.ctc(logits, labels, label_mask=LABEL_MASK)
    values, pull = jax.jit(
        lambda x, y: jax.vjp(lambda x: losses.ctc(x, y, label_mask=LABEL_MASK, reduction="none"), x)
    )(logits, labels)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    np.testing.assert_array_equal(np.isnan(pull(jnp.ones(3))[0]).all((1, 2)), [False, True, False])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blank": 5}, ConfigError, "the number of classes must be an integer >= 6, got 5"),
        ({"mask": np.ones((3, 9), np.int32)}, DTypeError, "mask must be of bools, True for what is there, got int32"),
        ({"mask": np.ones((3, 8), bool)}, ShapeError, r"mask must have shape \(3, 9\), got \(3, 8\)"),
        ({"label_mask": ~LABEL_MASK}, DataError, "label_mask must be True first and then False"),
        ({"labels": LABELS[:2]}, ShapeError, r"labels must have the shape \(batch, N\) with a batch of 3"),
        ({"labels": LABELS.astype(np.float32)}, DTypeError, "labels must be integers, got float32"),
    ],
)
def test_bad_input(options, error, message):
    options = {"label_mask": LABEL_MASK, "labels": LABELS} | options
    with pytest.raises(error, match=message):
        losses.ctc(LOGITS.astype(np.float32), options.pop("labels"), **options)

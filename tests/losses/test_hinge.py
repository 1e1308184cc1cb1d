"""hinge (eq. 4.21 as it was meant) against the literal sums and PyTorch, and the printed equation against itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import losses

VARIANTS = ["weston_watkins", "crammer_singer"]
draws = given(
    shape=st.sampled_from([(1, 2), (5, 4), (2, 3, 4)]),
    margin=st.sampled_from([0.3, 2.7]),
    double=st.booleans(),
    seed=st.integers(0, 99),
)


def _draw(shape, double, seed):
    draw = np.random.default_rng(seed)
    return draw.normal(size=shape).astype(np.float64 if double else np.float32), draw.integers(
        shape[-1], size=shape[:-1]
    )


@partial(jax.jit, static_argnames=("margin", "variant"))
def _value_and_gradient(scores, label, margin, variant="weston_watkins"):
    values, pull = jax.vjp(lambda s: losses.hinge(s, label, margin=margin, variant=variant, reduction="none"), scores)
    return values, pull(jnp.ones_like(values))[0]


def _literal(scores, label, margin, variant):
    """Value of each example and its derivative, sums written out."""
    values, gradient = np.zeros(label.shape), np.zeros(scores.shape)
    for row in np.ndindex(label.shape):
        s, y = np.float64(scores[row]), label[row]
        shortfalls = {other: s[other] - s[y] + margin for other in range(len(s)) if other != y}
        if variant == "crammer_singer":
            worst = max(shortfalls, key=shortfalls.get)
            shortfalls = {worst: shortfalls[worst]}
        for other, shortfall in shortfalls.items():
            if shortfall > 0:
                values[row] += shortfall
                gradient[*row, other] += 1
                gradient[*row, y] -= 1
    return values, gradient


@pytest.mark.parametrize("variant", VARIANTS)
@draws
def test_it_is_the_literal_sum(variant, shape, margin, double, seed):
    scores, label = _draw(shape, double, seed)
    expected, expected_gradient = _literal(scores, label, margin, variant)
    with jax.enable_x64(double):
        values, gradient = _value_and_gradient(scores, label, margin, variant)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13 if double else 1e-5)
        np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.peers
@draws
def test_torch_agrees_but_divides_by_the_classes(shape, margin, double, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    scores, label = _draw(shape, double, seed)
    s = torch.tensor(scores, requires_grad=True)
    classes = shape[-1]
    expected = classes * torch.nn.functional.multi_margin_loss(
        s.reshape(-1, classes), torch.tensor(label).reshape(-1), margin=margin, reduction="none"
    )
    expected.sum().backward()
    with jax.enable_x64(double):
        values, gradient = _value_and_gradient(scores, label, margin)
        tolerance = 1e-12 if double else 1e-5
        np.testing.assert_allclose(values.ravel(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, s.grad.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_derivative_at_the_kink_is_0(variant):
    scores = jnp.array([[2.0, 1.0, 0.0]])  # a lead of exactly the margin
    value, gradient = jax.value_and_grad(lambda s: losses.hinge(s, jnp.array([0]), variant=variant))(scores)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


def test_rivals_that_tie_share_the_derivative_of_crammer_and_singer():
    scores = jnp.array([[0.0, 1.0, 1.0, -2.0]])
    gradient = jax.grad(lambda s: losses.hinge(s, jnp.array([0]), variant="crammer_singer"))(scores)
    np.testing.assert_array_equal(gradient, [[-1, 0.5, 0.5, 0]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_class_has_no_rival(variant):
    value, gradient = jax.value_and_grad(lambda s: losses.hinge(s, jnp.zeros(2, int), variant=variant))(
        jnp.ones((2, 1))
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 1)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_label_that_is_no_class_gives_nan_inside_jit(variant, scale):
    # At a scale of 100 every margin that label 7 could be given is kept: the loss is flat there.
    scores = scale * jnp.array([[-3.0, -4.0, -5.0], [-3.0, -4.0, -5.0], [-3.0, -4.0, -5.0]])
    loss = jax.jit(lambda s, y: losses.hinge(s, y, variant=variant, reduction="none"))
    gradient = jax.jit(jax.grad(lambda s, y: losses.hinge(s, y, variant=variant, reduction="sum")))
    for bad in (3, -1, 7):
        label = jnp.array([0, bad, 1])
        np.testing.assert_array_equal(np.isnan(loss(scores, label)), [False, True, False])
        np.testing.assert_array_equal(np.isnan(gradient(scores, label)), [[False] * 3, [True] * 3, [False] * 3])
        assert np.isnan(jax.jit(losses.hinge)(scores, label))


def test_uint8_labels_reach_no_class_beyond_255_and_never_another():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 300)), jnp.float32)
    label = np.array([0, 255])
    expected, _ = _literal(np.asarray(scores), label, 1.0, "weston_watkins")
    values = losses.hinge(scores, jnp.asarray(label, jnp.uint8), reduction="none")
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def _printed(scores, label):
    """Eq. 4.21 to the letter: max(0, s_y - sum over y' != y of [s_y'] + margin)."""
    own = scores[np.arange(len(label)), label]
    return jnp.mean(jax.nn.relu(own - (scores.sum(-1) - own) + 1.0))


def test_the_printed_equation_unlearns_what_ours_learns():
    draw = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 30)
    x = jnp.asarray(4 * np.eye(3)[label] + 0.3 * draw.normal(size=(90, 3)), jnp.float32)

    def accuracy_after_training(loss):
        step = jax.jit(jax.grad(lambda w: loss(x @ w, label)))
        w = jnp.zeros((3, 3))
        for _ in range(60):
            w = w - 0.1 * step(w)
        return np.mean(np.argmax(x @ w, -1) == label)

    assert accuracy_after_training(_printed) == 0
    for variant in VARIANTS:
        assert accuracy_after_training(lambda s, y, v=variant: losses.hinge(s, y, variant=v)) == 1

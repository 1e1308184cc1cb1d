"""Spectral losses (eq. 4.17) against the full DFT written out, and against PyTorch's short-time transform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnet import losses


def _dft(x, axis):
    """All N bins of the DFT, by its matrix."""
    n = x.shape[axis]
    matrix = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    return np.moveaxis(np.tensordot(matrix, np.float64(x), axes=(1, axis)), 0, axis)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("n", [1, 5, 8], ids=lambda n: f"{n} samples")
@pytest.mark.parametrize(("channels", "axis"), [(None, 1), (None, -1), (2, 1)])
def test_half_the_spectrum_weighs_as_much_as_the_whole(n, channels, axis, x64):
    shape = (3, n) if channels is None else (3, n, channels)
    prediction, target = _normal(*shape), _normal(*shape, seed=1)
    distance = (np.abs(_dft(prediction, 1)) - np.abs(_dft(target, 1))) ** 2
    expected = distance.reshape(3, -1).mean(1)  # (1 / K) sum over k, K = N, and the mean over channels
    value = losses.spectral_mse(jnp.asarray(prediction), jnp.asarray(target), axis=axis, reduction="none")
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    # float32 too, within its precision
    narrow = losses.spectral_mse(prediction.astype("float32"), target.astype("float32"), axis=axis, reduction="none")
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("n", [5, 8])
def test_torch_agrees_on_the_gradient_of_the_full_spectrum(n, x64):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    prediction, target = _normal(3, n), _normal(3, n, seed=1)
    p = torch.tensor(prediction, requires_grad=True)
    expected = ((torch.fft.fft(p).abs() - torch.fft.fft(torch.tensor(target)).abs()) ** 2).mean()
    expected.backward()
    value, gradient = jax.value_and_grad(losses.spectral_mse)(jnp.asarray(prediction), jnp.asarray(target))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_it_is_blind_to_phase_and_mse_is_not():
    tone = jnp.asarray(np.sin(2 * np.pi * 3 / 32 * np.arange(32))[None], jnp.float32)
    shifted = jnp.roll(tone, 5, axis=1)
    assert losses.spectral_mse(tone, shifted) < 1e-9
    assert losses.mse(tone, shifted) > 0.1


def test_spectral_mse_at_silence_is_finite_with_gradient_0():
    silence, target = jnp.zeros((1, 6)), jnp.asarray(_normal(1, 6), jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(losses.spectral_mse))(silence, target)
    np.testing.assert_allclose(value, 6 * losses.mse(silence, target), rtol=1e-5)  # Parseval
    np.testing.assert_array_equal(gradient, np.zeros((1, 6)))
    assert np.isfinite(jax.jit(jax.hessian(losses.spectral_mse))(silence, target)).all()
    for own, other in ((silence, silence), (target, silence), (target, target)):
        value, gradient = jax.jit(jax.value_and_grad(losses.spectral_mse))(own, other)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_multi_resolution_stft_at_silence_is_finite_with_gradient_0():
    def loss(p, t):
        return losses.multi_resolution_stft(p, t, resolutions=((8, 3, 6),))

    silence, target = jnp.zeros((1, 12)), jnp.asarray(_normal(1, 12), jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(loss))(silence, target)
    assert np.isfinite(value)
    assert value > 1  # |S - 0| / |S| is 1, and the logarithms add to it
    np.testing.assert_array_equal(gradient, np.zeros((1, 12)))
    assert np.isfinite(jax.jit(jax.hessian(loss))(silence, target)).all()
    for own, other in ((silence, silence), (target, silence), (target, target)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(own, other)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert value == 0 or own is not other


def _stft(x, dft, hop, window):
    """Magnitudes by the definition: frame i is the signal around sample i * hop under a periodic Hann window."""
    batch, time = x.shape
    hann = np.zeros(dft)
    offset = (dft - window) // 2
    for i in range(window):
        hann[offset + i] = np.sin(np.pi * i / window) ** 2
    result = np.zeros((batch, 1 + time // hop, dft // 2 + 1))
    for b, frame, k in np.ndindex(result.shape):
        total = 0
        for i in range(dft):
            at = frame * hop - dft // 2 + i
            if 0 <= at < time:
                total += hann[i] * x[b, at] * np.exp(-2j * np.pi * k * i / dft)
        result[b, frame, k] = abs(total)
    return result


@pytest.mark.parametrize(
    ("dft", "hop", "window", "time"), [(8, 3, 6, 13), (8, 8, 8, 3), (7, 2, 5, 12), (4, 6, 3, 13), (1, 1, 1, 3)]
)
def test_stft_magnitude_is_its_definition(dft, hop, window, time, x64):
    x = _normal(2, time)
    actual = losses.stft_magnitude(jnp.asarray(x), dft=dft, hop=hop, window=window)
    np.testing.assert_allclose(actual, _stft(x, dft, hop, window), rtol=1e-12, atol=1e-13)
    both = losses.stft_magnitude(jnp.asarray(np.stack([x, 2 * x], -1)), dft=dft, hop=hop, window=window)
    np.testing.assert_allclose(both, np.stack([actual, 2 * actual], -1), rtol=1e-12, atol=1e-13)


@partial(jax.jit, static_argnames=("dft", "hop", "window"))
def _stft_and_gradient(x, weight, **sizes):
    magnitude, pull = jax.vjp(lambda x: losses.stft_magnitude(x, **sizes), x)
    return magnitude, pull(weight)[0]


@pytest.mark.peers
@given(
    size=st.sampled_from([(16, 5, 12, 50), (16, 4, 16, 9), (12, 16, 7, 50)]),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_torch_agrees_on_stft_magnitude_and_its_gradient(size, double, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    dft, hop, window, time = size
    x = _normal(2, time, seed=seed).astype(np.float64 if double else np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    hann = torch.hann_window(window, periodic=True, dtype=theirs.dtype)
    expected = (
        torch.stft(theirs, dft, hop, window, hann, center=True, pad_mode="constant", return_complex=True)
        .abs()
        .transpose(1, 2)
    )
    weight = np.random.default_rng(seed + 1).normal(size=expected.shape).astype(x.dtype)
    (expected * torch.tensor(weight)).sum().backward()
    with jax.enable_x64(double):
        actual, gradient = _stft_and_gradient(x, weight, dft=dft, hop=hop, window=window)
        tolerance = 1e-11 if double else 1e-4
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("floor", [1e-5, 0.5])
def test_multi_resolution_stft_is_convergence_plus_log_distance(floor, x64):
    sizes = ((8, 3, 6), (4, 2, 4))
    prediction, target = _normal(2, 13), _normal(2, 13, seed=1)
    expected = np.zeros(2)
    for dft, hop, window in sizes:
        s, t = _stft(target, dft, hop, window), _stft(prediction, dft, hop, window)
        for b in range(2):
            convergence = np.sqrt(((s[b] - t[b]) ** 2).sum()) / np.sqrt((s[b] ** 2).sum())
            logs = np.abs(np.log(np.maximum(s[b], floor)) - np.log(np.maximum(t[b], floor)))
            expected[b] += (convergence + logs.mean()) / len(sizes)
    actual = losses.multi_resolution_stft(
        jnp.asarray(prediction), jnp.asarray(target), resolutions=sizes, floor=floor, reduction="none"
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-11)


def test_multi_resolution_stft_divides_by_the_target_not_the_prediction():
    loud, soft = jnp.asarray(_normal(1, 13), jnp.float32), jnp.asarray(0.5 * _normal(1, 13), jnp.float32)
    sizes = ((8, 3, 6),)
    # |S - T| / |S| is 1/2 where the target is twice as loud, 1 where it is half as loud; the logarithms agree.
    difference = losses.multi_resolution_stft(loud, soft, resolutions=sizes) - losses.multi_resolution_stft(
        soft, loud, resolutions=sizes
    )
    np.testing.assert_allclose(difference, 0.5, rtol=1e-4)


def test_the_default_resolutions_take_a_short_signal():
    x = jnp.asarray(_normal(1, 100), jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(losses.multi_resolution_stft))(x, 0.5 * x)
    assert value > 0.5  # |S - T| / |S| is 1 for every resolution, with log 2 added: about 1.69
    np.testing.assert_allclose(value, 1 + np.log(2), rtol=1e-3)
    assert np.isfinite(gradient).all()

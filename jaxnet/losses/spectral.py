"""Losses between spectra: eq. 4.17, and the multi-resolution short-time transform of speech synthesis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnet import _checks as checks
from jaxnet import _words as words
from jaxnet._dtypes import wide
from jaxnet.errors import ConfigError, ShapeError, named
from jaxnet.losses.common import Weights, absolute, loss, norm, pair, per_example, reduce_weighted, weighted


@loss
def spectral_mse(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = 1,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Mean squared error between DFT magnitudes, eq. 4.17: L = (1/K) sum over k of (|Y[k]| - |T[k]|)^2.

    Of a real signal half of the K = N bins mirror the others, so only half are computed and the inner ones weigh twice.
    At silence, where |Y[k]| has no derivative, the gradient is 0.

    Args:
      prediction: real signals, (batch, time) or (batch, time, channels), floating point.
      target: the same shape.
      axis: the axis of time.
      weights: what each signal counts, numbers from 0 or a mask, (batch,): "mean" divides by their sum, and is 0 where
        that is 0. What counts 0 changes nothing, not even a NaN.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, there is no example, or no axis of time beside the batch.
      DTypeError: not floating point.
      DataError: outside ``jit``: a negative weight.
      ConfigError: an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> tone = jnp.sin(jnp.pi / 4 * jnp.arange(8.0))[None]
      >>> losses.spectral_mse(tone, jnp.roll(tone, 3)).round(4)  # blind to phase
      Array(0., dtype=float32)

    Source: chapter 4.3.1.
    """
    prediction, target, counted = _signals(prediction, target, axis, weights)
    n = prediction.shape[axis]
    bins = n // 2 + 1
    weight = np.full(bins, 2.0)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[-1] = 1.0
    weight = jnp.asarray(weight / n, prediction.dtype).reshape(
        [-1 if i == axis % prediction.ndim else 1 for i in range(prediction.ndim)]
    )
    difference = jnp.abs(jnp.fft.rfft(prediction, axis=axis)) - jnp.abs(jnp.fft.rfft(target, axis=axis))
    values = per_example(jnp.sum(weight * lax.square(difference), axis=axis))
    return reduce_weighted(values, counted, reduction)


@loss
def multi_resolution_stft(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    resolutions: Sequence[tuple[int, int, int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
    floor: float = 1e-5,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """Spectral convergence plus log-magnitude distance of short-time spectra, averaged over resolutions.

    With S and T the magnitudes of the target's and the prediction's short-time Fourier transforms, for each
    (dft, hop, window)::

        |S - T|_F / |S|_F  +  mean of |log max(S, floor) - log max(T, floor)|

    One resolution can be fooled by what it cannot resolve; several cannot. Gradients are defined at silence: 0 below
    the floor.

    Args:
      prediction: real signals, (batch, time) or (batch, time, channels); floating point.
      target: the same shape.
      resolutions: (points of the DFT, hop, length of the Hann window), in samples. A signal is padded with zeros by
        half a DFT at both ends, so that every sample counts.
      floor: the magnitude below which two spectra count as equal, and |S|_F at the least.
      weights: as in `spectral_mse`.
      reduction: "mean" over the examples, "sum" of them, or "none" for one value an example.

    Returns:
      A scalar, or (batch,) for "none".

    Raises:
      ShapeError: the shapes differ, the weights' do not fit, or there is no example.
      DTypeError: not floating point.
      DataError: outside ``jit``: a negative weight.
      ConfigError: no resolution, a window longer than its DFT, sizes below 1, or an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> tone = jnp.sin(0.3 * jnp.arange(4000.0))[None]
      >>> bool(losses.multi_resolution_stft(0.9 * tone, tone) < losses.multi_resolution_stft(0.5 * tone, tone))
      True

    Source: Yamamoto et al. 2019, arXiv 1910.11480, eq. 3 to 6.
    """
    prediction, target, counted = _signals(prediction, target, 1, weights)
    floor = checks.number("floor", floor, low=0, open_low=True)
    if not resolutions:
        raise ConfigError("at least one resolution (dft, hop, window) is needed, got none")
    if not all(isinstance(sizes, Sequence) and len(sizes) == 3 for sizes in resolutions):
        raise ConfigError(f"resolutions must be a sequence of (dft, hop, window), got {words.came(resolutions)}")
    total = jnp.zeros(prediction.shape[0], prediction.dtype)
    for dft, hop, length in resolutions:
        s, t = (stft_magnitude(x, dft=dft, hop=hop, window=length) for x in (target, prediction))
        axes = tuple(range(1, s.ndim))
        convergence = norm(s - t, axes) / jnp.maximum(norm(s, axes), floor)
        distance = absolute(jnp.log(_floored(s, floor)) - jnp.log(_floored(t, floor)))
        total = total + convergence + jnp.mean(distance, axes)
    return reduce_weighted(total / len(resolutions), counted, reduction)


@named("stft_magnitude")
def stft_magnitude(x: ArrayLike, *, dft: int, hop: int, window: int) -> jax.Array:
    """Magnitudes of the short-time Fourier transform with a periodic Hann window w::

        S[b, i, k] = | sum over n of  w[n] x[b, i hop + n - dft // 2] exp(-2 pi j k n / dft) |

    The signal is padded with dft // 2 zeros at both ends, so frame i is centred on sample i hop.

    Args:
      x: real signals, (batch, time) or (batch, time, channels); floating point.
      dft: points of the transform, in samples.
      hop: samples between frames.
      window: length of the window in samples, at most ``dft``; it is centred in the transform.

    Returns:
      (batch, 1 + time // hop, dft // 2 + 1), with channels last if x has them.

    Raises:
      ConfigError: sizes below 1, or a window longer than the transform.
      ShapeError: another rank.
      DTypeError: not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnet import losses
      >>> losses.stft_magnitude(jnp.ones((2, 1000)), dft=256, hop=64, window=200).shape
      (2, 16, 129)

    Source: Allen and Rabiner 1977, A unified approach to short-time Fourier analysis and synthesis.
    """
    dft = checks.integer("dft", dft, minimum=1)
    hop = checks.integer("hop", hop, minimum=1)
    window = checks.integer("window", window, minimum=1)
    if window > dft:
        raise ConfigError(f"a window of {window} samples does not fit a DFT of {dft} points")
    x = wide(checks.floating("x", x))
    if x.ndim not in (2, 3):
        raise ShapeError(f"x must have the axes (batch, time) or (batch, time, channels), got shape {x.shape}")
    if x.ndim == 3:
        return jnp.moveaxis(
            jax.vmap(lambda channel: stft_magnitude(channel, dft=dft, hop=hop, window=window), -1)(x), 0, -1
        )
    frames = 1 + x.shape[1] // hop
    # Overlapping frames by shifted blocks of hop samples: slices, whose transpose is a sum, not gathers.
    blocks = -(-dft // hop)
    long = (frames - 1 + blocks) * hop
    padded = jnp.pad(x, ((0, 0), (dft // 2, max(long - dft // 2 - x.shape[1], 0))))[:, :long]
    chopped = padded.reshape(x.shape[0], frames - 1 + blocks, hop)
    framed = jnp.concatenate([chopped[:, i : i + frames] for i in range(blocks)], axis=-1)[..., :dft]
    taper = np.zeros(dft)
    start = (dft - window) // 2
    taper[start : start + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return jnp.abs(jnp.fft.rfft(framed * jnp.asarray(taper, x.dtype)[None, None]))


def _signals(
    prediction: ArrayLike, target: ArrayLike, axis: int, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array, Weights | None]:
    """Both, checked, 0 where a signal counts 0, and what each counts."""
    prediction, target = pair(prediction, target)
    axis = checks.integer("axis", axis, minimum=-prediction.ndim)
    if prediction.ndim < 2 or axis >= prediction.ndim or axis % prediction.ndim == 0:
        raise ShapeError(
            f"signals must have the axes (batch, time) or (batch, time, channels), got {prediction.shape} with "
            f"time on axis {axis}; add a batch axis with x[None]"
        )
    counted = weighted(weights, prediction.shape[:1], prediction.dtype)
    if counted is not None:
        prediction, target = counted.only(prediction), counted.only(target)
    return prediction, target, counted


def _floored(x: jax.Array, floor: float) -> jax.Array:
    return jnp.where(x <= floor, floor, x)  # this way round NaN stays NaN

"""Recordings as waves: any file that FFmpeg reads, mono, at the sample rate that is wanted."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxnet.errors import DataError, DependencyError

SILENT = 1e-3  # peak, -60 dB of full scale


def read(path: Path, sample_rate: int) -> np.ndarray:
    """Returns one recording, mono, float32 in -1..1, at ``sample_rate`` Hz.

    Raises:
      DataError: a file that is no audio, is empty or silent, or holds NaN or Inf.
      DependencyError: PyAV is not installed, or SciPy, which resampling needs.
    """
    wave, rate = decode(str(path), path.read_bytes(), "g722" if path.suffix.lower() == ".g722" else None)
    if not np.isfinite(wave).all():
        raise DataError(f"read: {path} holds {int((~np.isfinite(wave)).sum())} samples that are NaN or Inf; remove it")
    if np.abs(wave).max() < SILENT:
        raise DataError(f"read: {path} is silent, its peak is {np.abs(wave).max():.1e} of full scale; remove it")
    return resample(wave, rate, sample_rate)


def resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Returns a wave at another sample rate, through SciPy's polyphase filter.

    Raises:
      DependencyError: SciPy is not installed.
    """
    if rate == wanted:
        return wave
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise DependencyError(_missing("resample", "scipy", f"from {rate} to {wanted} Hz")) from error
    divisor = np.gcd(rate, wanted)
    return resample_poly(wave, wanted // divisor, rate // divisor).astype(np.float32)


def decode(name: str, data: bytes, container: str | None) -> tuple[np.ndarray, int]:
    """Samples (float32, mono) and sample rate of one audio file."""
    av = av_package()
    try:
        with av.open(io.BytesIO(data), format=container) as file:
            planar = av.AudioResampler(format="fltp")  # of any layout and rate: a change of format alone
            stream = file.streams.audio[0]
            frames = [part for frame in file.decode(stream) for part in planar.resample(frame)]
            frames += planar.resample(None)
            rate = stream.rate
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(
            f"read: {name} ({len(data)} bytes) cannot be decoded as audio: {error}; remove it, or convert it to WAV"
        ) from error
    if not frames:
        raise DataError(f"read: {name} ({len(data)} bytes) holds no sound; remove it")
    wave = np.concatenate([frame.to_ndarray() for frame in frames], axis=-1)
    return (wave[0] if len(wave) == 1 else wave.mean(0, dtype=np.float32)), rate


def av_package() -> Any:
    try:
        import av
    except ImportError as error:
        raise DependencyError(_missing("read", "av", "to decode audio")) from error
    return av


def _missing(who: str, package: str, why: str) -> str:
    return f"{who}: the package {package} is needed {why}; pip install {package}"

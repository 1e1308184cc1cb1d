"""What a vocoder makes, to listen to and to look at."""

import os
import wave as wave_files
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from examples.vocoder import mel
from examples.vocoder.mel import MelConfig


def write_wav(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int) -> Path:
    """Writes a wave in -1..1 as a mono WAV file of 16 bits; what lies outside is clipped.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_wav(f"{folder}/silence.wav", np.zeros(100), 16000).stat().st_size
      244
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave_files.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(wave, -1, 1) * 32767).round().astype("<i2").tobytes())
    return path


def draw_spectrograms(path: Path, config: MelConfig, waves: dict[str, np.ndarray]) -> Path:
    """Draws the spectrograms of several waves, one above the other, in decibels; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(waves)), layout="constrained")
    panels = figure.subplots(len(waves), 1, squeeze=False)[:, 0]
    for axes, (name, wave) in zip(panels, waves.items(), strict=True):
        decibels = 20 * np.log10(np.maximum(np.asarray(mel.magnitude(config, jnp.asarray(wave))), 1e-3))
        extent = (0, len(wave) / config.sample_rate, 0, config.sample_rate / 2000)
        axes.imshow(decibels.T, origin="lower", aspect="auto", extent=extent, vmin=-50, vmax=40, cmap="gray_r")
        axes.set(title=name, ylabel="kHz")
    panels[-1].set_xlabel("s")
    figure.savefig(path, dpi=100)
    return path


def write_samples(config: MelConfig, folder: Path, name: str, made: np.ndarray, recording: np.ndarray) -> None:
    """Writes ``name``.wav and ``name``.png, the picture with the recording below, and recording.wav once."""
    write_wav(folder / f"{name}.wav", made, config.sample_rate)
    if not (folder / "recording.wav").exists():
        write_wav(folder / "recording.wav", recording, config.sample_rate)
    draw_spectrograms(folder / f"{name}.png", config, {name: made, "recording": recording})

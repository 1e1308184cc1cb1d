"""What a vocoder makes, to listen to and to look at."""

import importlib.util
import os
import wave as wave_files
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from examples.vocoder import mel
from examples.vocoder.mel import MelConfig
from jaxnet.errors import DependencyError
from jaxnet.training import History

PICTURED = 2.5  # seconds


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
    """Draws the spectrograms of several waves side by side, the first seconds of each, and returns where they lie.

    Raises:
      DependencyError: matplotlib is not installed.
    """
    if not importlib.util.find_spec("matplotlib"):
        raise DependencyError("draw_spectrograms: the package matplotlib is needed; pip install matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(waves) + 1, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(waves), sharey=True))
    images = []
    for axes, (name, wave) in zip(panels, waves.items(), strict=True):
        wave = wave[: int(PICTURED * config.sample_rate)]
        decibels = 20 * np.log10(np.maximum(np.asarray(mel.magnitude(config, jnp.asarray(wave))), 1e-3))
        extent = (0, len(wave) / config.sample_rate, 0, config.sample_rate / 2000)
        # A colour map whose lightness rises throughout stays readable in print.
        images.append(
            axes.imshow(decibels.T, origin="lower", aspect="auto", extent=extent, vmin=-50, vmax=40, cmap="magma")
        )
        axes.set(title=name, xlabel="time, s")
    panels[0].set_ylabel("frequency, kHz")
    figure.colorbar(images[0], ax=list(panels), label="magnitude, dB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def draw_curves(path: Path, histories: dict[str, dict[str, History]]) -> Path:
    """Draws what was measured on the validation set over the minutes of training, a line a run.

    Args:
      path: of the PNG file.
      histories: run -> phase -> what was measured, in their order; a vertical line shows where the next phase begins.
        What one of them did not measure is left out of its line.

    Returns:
      the path.
    """
    from matplotlib.figure import Figure

    measured = [m for m in ("pesq", "stoi", "mel") if any(f"validation_{m}" in h.names for h in _flat(histories))]
    titles = {"pesq": "PESQ, wide band", "stoi": "STOI", "mel": "mel error"}
    figure = Figure(figsize=(4 * len(measured), 3.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(measured))), measured, strict=True):
        for i, (run, phases) in enumerate(histories.items()):
            minutes, values = [], []
            for j, history in enumerate(phases.values()):
                start = minutes[-1] if minutes else 0.0
                if j:
                    axes.axvline(start, color=f"C{i}", linewidth=0.8, linestyle=":")
                minutes += [*(start + np.cumsum(history["seconds"]) / 60)]
                column = f"validation_{name}"
                values += [*(history[column] if column in history.names else np.full(len(history), np.nan))]
            axes.plot(minutes, values, color=f"C{i}", marker=".", label=run)
        axes.set(title=titles[name], xlabel="training, minutes")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _flat(histories: dict[str, dict[str, History]]) -> list[History]:
    return [history for phases in histories.values() for history in phases.values()]


def write_samples(config: MelConfig, folder: Path, name: str, made: np.ndarray, recording: np.ndarray) -> None:
    """Writes ``name``.wav and ``name``.png, the picture with the recording beside it, and recording.wav once."""
    write_wav(folder / f"{name}.wav", made, config.sample_rate)
    if not (folder / "recording.wav").exists():
        write_wav(folder / "recording.wav", recording, config.sample_rate)
    draw_spectrograms(folder / f"{name}.png", config, {name: made, "recording": recording})

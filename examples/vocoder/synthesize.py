"""Speaks a mel spectrogram with a trained vocoder.

python -m examples.vocoder.synthesize INPUT.wav OUTPUT.wav --run out/vocoder
python -m examples.vocoder.synthesize INPUT.wav OUTPUT.wav --run out/vocoder --polish 32
python -m examples.vocoder.synthesize INPUT.wav OUTPUT.wav --run out/causal --stream 4
python -m examples.vocoder.synthesize INPUT.wav OUTPUT.wav --published generator_v1 --generator hifi-gan-v1

Of a recording it computes the mel spectrogram, throws the recording away, and makes a wave of the spectrogram.
``--stream N`` makes it N frames at a time, as they would come from a microphone, by a causal generator (``train
--generator hifi-gan-v2-causal``): the same wave, and how long after its frames a piece of it is there. ``--published``
takes a PyTorch checkpoint of the authors of HiFi-GAN or MelGAN, or of their code, in place of a run.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import audio, mel, published
from examples.vocoder.griffin_lim import refine
from examples.vocoder.mel import MelConfig
from examples.vocoder.phases import GENERATORS, PHASES
from examples.vocoder.samples import write_wav
from jaxnet import layers, training
from jaxnet.errors import ConfigError, ShapeError

FRAMES = 64
"""Spectrograms are reflected to a multiple of this, so that not every length compiles anew."""


class Vocoder:
    """A trained generator as a function from a log mel spectrogram to a wave.

    Args:
      config: the spectrogram's definition that it was trained with.
      net: the generator; where it is weight-normed, its kernels are computed here, once for all.
      params: its parameters.

    Attributes:
      config: as above.
      can_polish: whether the generator has magnitudes that Griffin-Lim can keep.
    """

    def __init__(self, config: MelConfig, net: Any, params: Any):
        state = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, config.bands), jnp.float32)))[1]
        net, params, state = layers.merged(net, params, state)
        self.config, self._net, self._params, self._state = config, net, jax.device_put(params), state
        frame = jax.ShapeDtypeStruct((1, 32, config.bands), jnp.float32)
        made = jax.eval_shape(lambda params, x: net.apply(params, state, x, train=False)[0], params, frame)
        self.can_polish = not isinstance(made.log_magnitude, tuple)
        self._apply = jax.jit(lambda params, log_mel: net.apply(params, state, log_mel[None], train=False)[0])
        self._wave = jax.jit(lambda params, log_mel: self._apply(params, log_mel).wave[0])
        self._polar = jax.jit(
            lambda made: (
                jnp.exp(made.log_magnitude[0]),
                jax.lax.complex(jnp.cos(made.phase[0]), jnp.sin(made.phase[0])),
            )
        )

    def __call__(self, log_mel: Any, polish: int = 0) -> np.ndarray:
        """Makes a wave.

        Args:
          log_mel: float array (T, bands), as `mel.log_mel` computes it.
          polish: rounds of Griffin-Lim that begin at the generator's phases and keep its magnitudes.

        Returns:
          float32 array (T * hop,).

        Raises:
          ShapeError: a spectrogram of another shape.
          ConfigError: a generator without a magnitude head, which cannot be polished.
        """
        log_mel = self._checked(log_mel)
        count = len(log_mel)
        filled = np.pad(log_mel, ((0, -count % FRAMES), (0, 0)), mode="symmetric")
        if not polish:
            return np.asarray(self._wave(self._params, filled))[: count * self.config.hop]
        if not self.can_polish:
            raise ConfigError("Vocoder: this generator has no magnitudes to keep; use polish=0")
        made = self._apply(self._params, filled)
        magnitude, phase = self._polar(made)
        return np.asarray(refine(self.config, magnitude, phase, polish))[: count * self.config.hop]

    def pieces(self, log_mel: Any, frames: int) -> Iterator[np.ndarray]:
        """Makes a wave as its frames come: the pieces joined are what a call makes.

        Args:
          log_mel: float array (T, bands).
          frames: how many frames a piece is made of.

        Yields:
          float32 arrays (frames * hop,), the last one of what is left.

        Raises:
          ConfigError: a generator that looks ahead.
        """
        log_mel = self._checked(log_mel)
        stream = layers.streaming(self._net)
        filled = np.pad(log_mel, ((0, -len(log_mel) % frames), (0, 0)))
        piece = jax.ShapeDtypeStruct((1, frames, self.config.bands), jnp.float32)
        memory = jax.jit(lambda params: layers.stream_state(stream, params, self._state, piece))(self._params)
        step = jax.jit(lambda params, memory, x: stream.apply(params, memory, x[None], train=False))
        for start in range(0, len(log_mel), frames):
            made, memory = step(self._params, memory, filled[start : start + frames])
            yield np.asarray(made.wave[0])[: (len(log_mel) - start) * self.config.hop]

    def _checked(self, log_mel: Any) -> np.ndarray:
        log_mel = np.asarray(log_mel, np.float32)
        if log_mel.ndim != 2 or log_mel.shape[1] != self.config.bands or not len(log_mel):
            raise ShapeError(
                f"Vocoder: log_mel must be (T, {self.config.bands}), got {log_mel.shape}; for a batch, call it for each"
            )
        return log_mel


def load_generator(run: str | os.PathLike[str], phase: str | None = None) -> Vocoder:
    """Loads the generator of a run of `examples.vocoder.train`, finished or not.

    Args:
      run: its folder.
      phase: "spectral" or "adversarial"; unless given, the one that `best_phase` tells.

    Returns:
      A `Vocoder`.

    Raises:
      ConfigError: no such run or phase.
      CheckpointError: damaged files.
    """
    run = Path(run)
    there = _phases(run)
    if not there or (phase is not None and phase not in there):
        raise ConfigError(
            f"load_generator: {run} holds {', '.join(there) or 'no generator'}, wanted {phase or 'any'}; train one "
            f"with python -m examples.vocoder.train --out {run}"
        )
    path = run / (phase or best_phase(run))
    metadata = training.read_metadata(path)
    config = MelConfig.from_json(json.dumps(metadata["mel"]))
    net = GENERATORS[metadata["generator"]](config)
    example = jax.ShapeDtypeStruct((1, 32, config.bands), jnp.float32)
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), example)[0])
    return Vocoder(config, net, training.load(path, like))


def best_phase(run: str | os.PathLike[str]) -> str:
    """The phase of a run whose latest generator is the better one on the validation set.

    By PESQ, where it was measured after both, or else by the mel error; never by the test set.

    Raises:
      ConfigError: no such run.
    """
    run = Path(run)
    there = _phases(run)
    if not there:
        raise ConfigError(f"best_phase: {run} holds no generator")
    latest = {name: training.History.load(run / f"{name}.jsonl")[-1] for name in there}
    pesq = [record.get("validation_pesq", float("nan")) for record in latest.values()]
    if np.isfinite(pesq).all():
        return there[int(np.argmax(pesq))]
    return min(there, key=lambda name: latest[name]["validation_mel"])


def _phases(run: Path) -> list[str]:
    """The phases after whose epochs a generator was kept and its validation logged."""
    return [name for name in PHASES if (run / name).is_file() and (run / f"{name}.jsonl").exists()]


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="a recording, WAV or FLAC")
    parser.add_argument("output", type=Path, help="the WAV file to write")
    parser.add_argument("--run", type=Path, default=Path("out/vocoder"), help="folder of the training run")
    parser.add_argument("--phase", choices=PHASES, help="after which phase (default: the better one in validation)")
    parser.add_argument("--published", type=Path, metavar="FILE", help="a PyTorch checkpoint, in place of a run")
    parser.add_argument("--generator", choices=published.GENERATORS, help="which network that is of")
    parser.add_argument("--polish", type=int, default=0, metavar="K", help="rounds of Griffin-Lim (default: 0)")
    parser.add_argument("--stream", type=int, metavar="N", help="make the wave N frames at a time")
    args = parser.parse_args(argv)
    if args.stream is not None and (args.polish or args.stream < 1):
        parser.error("--stream takes a number of frames, at least 1, and goes without --polish")
    if (args.published is None) != (args.generator is None) or (args.published and args.phase):
        parser.error("--published and --generator go together, and without --phase")
    if args.published:
        vocoder = Vocoder(*published.load(args.published, args.generator))
    else:
        vocoder = load_generator(args.run, args.phase)
    recording = audio.read(args.input, vocoder.config.sample_rate)
    log_mel = np.asarray(mel.log_mel(vocoder.config, jnp.asarray(recording)))
    vocoder(log_mel, args.polish)  # compiles
    began = time.perf_counter()
    wave = vocoder(log_mel, args.polish)
    seconds = time.perf_counter() - began
    write_wav(args.output, wave, vocoder.config.sample_rate)
    length = len(wave) / vocoder.config.sample_rate
    print(f"{args.output}: {length:.2f} s of speech in {seconds:.3f} s, {seconds / length:.4f} of real time")
    if args.stream:
        print(streamed(vocoder, log_mel, args.stream, wave))


def streamed(vocoder: Vocoder, log_mel: np.ndarray, frames: int, whole: np.ndarray) -> str:
    """Makes the wave again, ``frames`` at a time, and says how far it is from the whole, and how late."""
    config, milliseconds = vocoder.config, []
    made = vocoder.pieces(log_mel, frames)
    pieces = [next(made)]  # compiles
    while True:
        began = time.perf_counter()
        if (piece := next(made, None)) is None:
            break
        milliseconds.append(1000 * (time.perf_counter() - began))
        pieces.append(piece)
    if not milliseconds:
        raise ConfigError(f"streamed: {len(log_mel)} frames are no two pieces of {frames}; give --stream less")
    off = np.abs(np.concatenate(pieces) - whole).max()
    one = 1000 * config.hop / config.sample_rate
    ahead = 1000 * (config.padding + config.hop) / config.sample_rate  # of the recording, that a frame is made of
    median, late = np.percentile(milliseconds, (50, 99))
    waits = ahead + (frames - 1) * one
    return (
        f"{frames} frames at a time ({frames * one:.0f} ms): at most {off:.1e} from the whole; {median:.2f} ms a "
        f"piece, 99 % within {late:.2f} ms. A sound is heard {waits + median:.0f} ms after it was made, {waits:.0f} of "
        f"which are the frames'"
    )


if __name__ == "__main__":
    main()

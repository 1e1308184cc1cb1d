"""What is measured and written after each epoch of a vocoder's training."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import losses, metrics
from examples.vocoder.mel import MelConfig
from examples.vocoder.phases import RECIPE, example
from examples.vocoder.samples import write_samples
from jaxnet import layers
from jaxnet.errors import ConfigError, DataError

MEASURED = 32
"""Pieces of two seconds, spread over the validation set, that are measured after each epoch."""

SCORED = 8
"""Those of them, with most speech, of which PESQ and STOI are computed."""


class Validation:
    """Measures a generator on the validation set, cut into pieces of two seconds, and writes a sample of it.

    Args:
      config: the spectrogram's definition.
      net: the generator.
      waves: name -> wave of the validation set.
      folder: where samples go.
    """

    def __init__(self, config: MelConfig, net: layers.Layer, waves: dict[str, np.ndarray], folder: Path):
        joined = np.concatenate([waves[name] for name in sorted(waves)])
        length = min(2 * config.sample_rate, len(joined)) // config.hop * config.hop
        whole = joined[: len(joined) // length * length].reshape(-1, length)
        self.pieces = whole[np.linspace(0, len(whole) - 1, min(len(whole), MEASURED)).round().astype(int)]
        self.config, self.folder = config, folder
        self.sentence = max(waves.values(), key=len)[: 4 * config.sample_rate]
        self.sentence = self.sentence[: len(self.sentence) // config.hop * config.hop]

        def measure(params, pieces):
            def one(wave):
                target = losses.describe(config, wave[None])
                made, _ = net.apply(params, self.state, target.log_mel, train=False)
                return {
                    "loss": losses.spectral_loss(config, made, target, RECIPE.weights),
                    "mel": losses.mel_error(config)(made, target),
                }

            return jax.tree.map(jnp.mean, jax.lax.map(one, pieces))

        def make(params, wave):
            log_mel = losses.describe(config, wave[None]).log_mel
            return net.apply(params, self.state, log_mel, train=False)[0].wave[0]

        # Predictions of listeners' scores where their packages are, on the pieces with most speech.
        self._scores = {
            name: metrics.METRICS[column]
            for name, column in (("pesq", "PESQ-wb"), ("stoi", "STOI"))
            if importlib.util.find_spec(metrics.NEEDS[column])
        }
        loudest = self.pieces[np.argsort(-np.sum(self.pieces**2, axis=1), kind="stable")[:SCORED]]
        self.spoken = [p for p in loudest if all(np.isfinite(self._scored(s, p, p)) for s in self._scores.values())]
        if not self.spoken:
            self._scores = {}
        self.state = jax.eval_shape(lambda: net.init(jax.random.key(0), example(config)))[1]
        if jax.tree.leaves(self.state):
            raise ConfigError("Validation: a generator with a state (batch norm) is not provided for")
        self._measure, self._make = jax.jit(measure), jax.jit(make)
        self._make_all = jax.jit(lambda params, pieces: jax.lax.map(lambda wave: make(params, wave), pieces))

    def __call__(self, params: Any) -> dict[str, float]:
        """The spectral loss, the mel error, and the mean PESQ and STOI of a few pieces that have a score."""
        measured = {name: float(value) for name, value in self._measure(params, self.pieces).items()}
        if self._scores:
            spoken = np.stack(self.spoken)
            made = np.asarray(self._make_all(params, spoken))
            for name, score in self._scores.items():
                measured[name] = float(np.mean([self._scored(score, *pair) for pair in zip(spoken, made, strict=True)]))
        return measured

    def _scored(self, score: metrics.Metric, wave: np.ndarray, made: np.ndarray) -> float:
        try:
            return score(self.config, wave, made)
        except DataError:  # an untrained generator may make nothing that can be scored
            return float("nan")

    def write(self, params: Any, name: str) -> None:
        """Writes the sentence as the generator makes it, as sound and as a picture beside the recording."""
        made = np.asarray(self._make(params, self.sentence))
        write_samples(self.config, self.folder, name, made, self.sentence)

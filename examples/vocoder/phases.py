"""The two phases of a vocoder's training: which networks, which losses, which steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from examples.vocoder import discriminators, losses, time_generators
from examples.vocoder.frame_generator import SIZES, frame_generator
from examples.vocoder.mel import MelConfig
from jaxnet import layers, optimizers, training
from jaxnet.training.step import Step

GENERATORS: dict[str, Callable[[MelConfig], layers.Layer]] = {
    **{name: lambda config, size=size: frame_generator(config, size) for name, size in SIZES.items()},
    "P1-learned": lambda config: frame_generator(config, learned_inverse=True),
    "melgan": lambda config: time_generators.melgan(),
    "hifi-gan-v1": lambda config: time_generators.hifi_gan(time_generators.V1),
    "hifi-gan-v2": lambda config: time_generators.hifi_gan(time_generators.V2),
    "hifi-gan-v3": lambda config: time_generators.hifi_gan(time_generators.V3),
    "melgan-causal": lambda config: time_generators.melgan(causal=True),
    "hifi-gan-v1-causal": lambda config: time_generators.hifi_gan(time_generators.V1, causal=True),
    "hifi-gan-v2-causal": lambda config: time_generators.hifi_gan(time_generators.V2, causal=True),
    "hifi-gan-v3-causal": lambda config: time_generators.hifi_gan(time_generators.V3, causal=True),
}
"""Name -> what makes the network for a spectrogram's definition."""

DISCRIMINATORS: dict[str, Callable[[MelConfig], layers.Layer]] = {
    "small": lambda config: discriminators.of_wave(
        discriminators.period_discriminator_tiny(), discriminators.spectrogram_discriminator(config)
    ),
    "melgan": lambda config: discriminators.of_wave(discriminators.melgan_discriminator()),
    "hifi-gan": lambda config: discriminators.of_wave(discriminators.multi_period(), discriminators.multi_scale()),
}
"""Name -> what makes the discriminators of the second phase."""

PHASES = ("spectral", "adversarial")


class Recipe(NamedTuple):
    """The numbers of the training, found by runs of 100 s.

    Attributes:
      weights: of the terms of the first phase's loss.
      rate: the peak learning rate of the first phase; it falls to ``last_rate`` of it along a cosine.
      last_rate: a share of the peak rate.
      warm_up: steps until the peak.
      clip: the largest norm of a gradient.
      generator_rate: peak of the second phase.
      discriminator_rate: peak of the discriminators'.
      spectral_weight: of the first phase's loss in the second phase.
      adversarial_weight: of the hinge loss there.
      matching_weight: of feature matching there.
      ema_decay: weight of the old moving average of the generator's parameters there, a step.
    """

    weights: losses.Weights = losses.Weights()
    rate: float = 1e-3
    last_rate: float = 0.02
    warm_up: int = 50
    clip: float = 10.0
    generator_rate: float = 2e-4
    discriminator_rate: float = 1e-4
    spectral_weight: float = 5.0
    adversarial_weight: float = 0.1
    matching_weight: float = 1.0
    ema_decay: float = 0.99


RECIPE = Recipe()


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
      inner: the optimizer's.
      average: of the parameters.
    """

    inner: Any
    average: Any


def ema(optimizer: Any, decay: float) -> optimizers.Optimizer:
    """An optimizer that also keeps an exponential moving average of the parameters, a <- decay a + (1 - decay) p.

    The average starts at the first parameters. It is in the state, so a step that is skipped leaves it alone.

    Source: Yazıcı et al. 2018, arXiv 1806.04498.
    """

    def init(params):
        return EmaState(optimizer.init(params), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None, **extra_args):
        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        after = optimizers.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, after)
        return updates, EmaState(inner, average)

    return optimizers.Optimizer(init, update)


class Phase(NamedTuple):
    """One of the two phases, ready to run.

    Attributes:
      name: of `PHASES`.
      step: ``(train_state, (wave, wave)) -> (train_state, metrics)``.
      start: makes the state to begin with.
      generator_params: ``train_state -> params`` of the generator that is evaluated and kept.
    """

    name: str
    step: Step
    start: Callable[[], Any]
    generator_params: Callable[[Any], Any]


def spectral_phase(config: MelConfig, net: layers.Layer, steps: int, seed: int, recipe: Recipe) -> Phase:
    """The generator alone, on `losses.spectral_loss`."""
    optimizer = _adam(recipe.rate, steps, recipe, b1=0.8, b2=0.99)
    inner = training.make_step(
        net,
        lambda made, target: losses.spectral_loss(config, made, target, recipe.weights),
        optimizer,
        metrics={"mel": losses.mel_error(config)},
    )

    def start():
        return training.init(net, optimizer, example(config), seed)

    return Phase("spectral", _on_waves(config, inner), start, lambda train_state: train_state.params)


def adversarial_phase(
    config: MelConfig,
    net: layers.Layer,
    discriminator: layers.Layer,
    params: Any,
    steps: int,
    seed: int,
    recipe: Recipe,
) -> Phase:
    """The generator, from ``params``, and new discriminators: each step is one update of both."""
    optimizer = ema(_adam(recipe.generator_rate, steps, recipe, b1=0.5, b2=0.9), recipe.ema_decay)
    discriminator_optimizer = _adam(recipe.discriminator_rate, steps, recipe, b1=0.5, b2=0.9)

    inner = training.make_gan_step(
        net,
        discriminator,
        adversarial_loss(config, recipe),
        losses.discriminator_hinge,
        optimizer,
        discriminator_optimizer,
    )

    def start():
        gan_state = training.init_gan(net, discriminator, optimizer, discriminator_optimizer, example(config), seed)
        generator = training.Player(params, gan_state.generator.state, optimizer.init(params))
        return gan_state._replace(generator=generator)

    return Phase(
        "adversarial", _on_waves(config, inner), start, lambda gan_state: gan_state.generator.opt_state.average
    )


def adversarial_loss(config: MelConfig, recipe: Recipe) -> Callable[..., jax.Array]:
    """The generator's loss of the second phase::

        spectral_weight * spectral_loss + adversarial_weight * generator_hinge + matching_weight * feature_matching

    Returns:
      ``(of_made, of_real, made, target) -> scalar``, the first two what the discriminators say of the made and of the
      true wave.
    """

    def adversarial_loss(of_made, of_real, made, target):
        return (
            recipe.spectral_weight * losses.spectral_loss(config, made, target, recipe.weights)
            + recipe.adversarial_weight * losses.generator_hinge(of_made)
            + recipe.matching_weight * losses.feature_matching(of_made, of_real)
        )

    return adversarial_loss


def _adam(rate: float, steps: int, recipe: Recipe, *, b1: float, b2: float) -> optimizers.Optimizer:
    warm_up = min(recipe.warm_up, steps // 2)
    schedule = optimizers.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps, rate * recipe.last_rate)
    return optimizers.chain(
        optimizers.clip_by_global_norm(recipe.clip), optimizers.adam(schedule, b1=b1, b2=b2)
    )  # fmt: skip


def _on_waves(config: MelConfig, inner: Step) -> Step:
    """A step on (mel spectrogram, target) as one on waves: spectra are cheaper to compute than to fetch."""

    def step(train_state, batch):
        target = losses.describe(config, batch[0])
        return inner(train_state, (target.log_mel, target))

    return step


def example(config: MelConfig) -> jax.ShapeDtypeStruct:
    """A log mel spectrogram, as networks are made for it."""
    return jax.ShapeDtypeStruct((1, 32, config.bands), jnp.float32)

"""Trains a vocoder on speech, in the minutes that it is given.

python -m examples.vocoder.train --data DIR --minutes 20 --out out/vocoder

First the spectra of what it makes are drawn to those of the recordings; then, for the last part of the time, a few
discriminators help. How many steps the time allows is measured at the start and written to OUT/run.json, so that the
same command, after Ctrl-C or worse, goes on with the same run. OUT then holds:

    run.json                    the settings and the plan
    spectral/, adversarial/     the generator after the latest epoch of each phase, for `synthesize`
    spectral.jsonl, ...         what was measured, epoch by epoch
    samples/                    a sentence of the validation set as it sounds and looks after each epoch
    checkpoints/                to resume from
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.vocoder import data, discriminators, losses, metrics, time_generators
from examples.vocoder.frame_generator import SIZES, frame_generator
from examples.vocoder.mel import MelConfig
from examples.vocoder.samples import write_samples
from jaxnet import layers, optimizers, training
from jaxnet.errors import ConfigError, DataError
from jaxnet.training.step import Step

GENERATORS: dict[str, Callable[[MelConfig], layers.Layer]] = {
    **{name: lambda config, size=size: frame_generator(config, size) for name, size in SIZES.items()},
    "P1-learned": lambda config: frame_generator(config, learned_inverse=True),
    "melgan": lambda config: time_generators.melgan(),
    "hifi-gan-v1": lambda config: time_generators.hifi_gan(time_generators.V1),
    "hifi-gan-v2": lambda config: time_generators.hifi_gan(time_generators.V2),
    "hifi-gan-v3": lambda config: time_generators.hifi_gan(time_generators.V3),
}
"""Name -> what makes the network for a spectrogram's definition."""

PHASES = ("spectral", "adversarial")

SCORED = 8
"""Pieces of two seconds of which PESQ and STOI are computed after each epoch."""


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
      average: weight of the old average of the generator's parameters there, a step.
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
    average: float = 0.99


RECIPE = Recipe()


class AveragedState(NamedTuple):
    """The state of `averaged`.

    Attributes:
      inner: the optimizer's.
      average: of the parameters.
    """

    inner: Any
    average: Any


def averaged(optimizer: Any, decay: float) -> optimizers.Optimizer:
    """An optimizer that also keeps an exponential moving average of the parameters, a <- decay a + (1 - decay) p.

    The average starts at the first parameters. It is in the state, so a step that is skipped leaves it alone.

    Source: Polyak and Juditsky 1992; Yazıcı et al. 2018, arXiv 1806.04498, for generators.
    """

    def init(params):
        return AveragedState(optimizer.init(params), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None, **extra_args):
        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        after = optimizers.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, after)
        return updates, AveragedState(inner, average)

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
        return training.init(net, optimizer, _example(config), seed)

    return Phase("spectral", _on_waves(config, inner), start, lambda train_state: train_state.params)


def adversarial_phase(
    config: MelConfig, net: layers.Layer, params: Any, steps: int, seed: int, recipe: Recipe
) -> Phase:
    """The generator and small discriminators of periods and of spectrograms, each step one update of both."""
    judges = discriminators.of_wave(
        discriminators.period_discriminator_tiny(), discriminators.spectrogram_discriminator(config)
    )
    optimizer = averaged(_adam(recipe.generator_rate, steps, recipe, b1=0.5, b2=0.9), recipe.average)
    judging_optimizer = _adam(recipe.discriminator_rate, steps, recipe, b1=0.5, b2=0.9)

    def generator_loss(of_made, of_real, made, target):
        return (
            recipe.spectral_weight * losses.spectral_loss(config, made, target, recipe.weights)
            + recipe.adversarial_weight * losses.generator_hinge(of_made)
            + recipe.matching_weight * losses.feature_matching(of_made, of_real)
        )

    inner = training.make_gan_step(
        net, judges, generator_loss, losses.discriminator_hinge, optimizer, judging_optimizer
    )

    def start():
        gan_state = training.init_gan(net, judges, optimizer, judging_optimizer, _example(config), seed)
        generator = training.Player(params, gan_state.generator.state, optimizer.init(params))
        return gan_state._replace(generator=generator)

    return Phase(
        "adversarial", _on_waves(config, inner), start, lambda gan_state: gan_state.generator.opt_state.average
    )


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


def _example(config: MelConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, 32, config.bands), jnp.float32)


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
        count = min(len(joined) // length, 32)
        self.pieces = joined[: count * length].reshape(count, length)
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

        # Scores of listening where their packages are, on the pieces with most speech.
        self.spoken = self.pieces[np.argsort(-np.sum(self.pieces**2, axis=1), kind="stable")[:SCORED]]
        self._scores = {
            name: metrics.METRICS[column]
            for name, column in (("pesq", "PESQ-wb"), ("stoi", "STOI"))
            if importlib.util.find_spec(metrics.NEEDS[column])
        }
        self.state = jax.eval_shape(lambda: net.init(jax.random.key(0), _example(config)))[1]
        if jax.tree.leaves(self.state):
            raise ConfigError("Validation: a generator with a state (batch norm) is not provided for")
        self._measure, self._make = jax.jit(measure), jax.jit(make)
        self._make_all = jax.jit(lambda params, pieces: jax.lax.map(lambda wave: make(params, wave), pieces))

    def __call__(self, params: Any) -> dict[str, float]:
        """The spectral loss, the mel error, and the mean PESQ and STOI of a few pieces."""
        measured = {name: float(value) for name, value in self._measure(params, self.pieces).items()}
        made = np.asarray(self._make_all(params, self.spoken))
        for name, score in self._scores.items():
            values = [self._scored(score, *pair) for pair in zip(self.spoken, made, strict=True)]
            measured[name] = float(np.mean(values))
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


class Plan(NamedTuple):
    """How long a phase is.

    Attributes:
      epochs: after each of which is validated.
      steps_per_epoch: steps of each.
    """

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """In all."""
        return self.epochs * self.steps_per_epoch


def plan_steps(steps: int) -> Plan:
    """A plan of about ``steps`` steps, in epochs of at least 25."""
    epochs = max(1, min(20, steps // 25))
    return Plan(epochs, max(1, steps // epochs))


def plan_seconds(seconds: float, step_seconds: float, epoch_seconds: float) -> Plan:
    """A plan that takes ``seconds``, from the time of a step and of what comes after an epoch."""
    epochs = int(max(1, min(24, seconds / 15)))
    steps = (seconds - epochs * epoch_seconds) / step_seconds
    return Plan(epochs, max(1, int(steps / epochs)))


class Run:
    """A directory that holds a run, and its ``run.json``: what the run is, and the plan as far as it is made.

    Args:
      directory: of the run.
      settings: what the run is. If the directory holds a run already, it must have been the same.

    Raises:
      ConfigError: the directory holds another run.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, self.file = directory, directory / "run.json"
        settings = json.loads(json.dumps(settings))
        if self.file.exists():
            self.content = json.loads(self.file.read_text())
            was = self.content["settings"]
            if was != settings:
                differing = [k for k in {**was, **settings} if was.get(k) != settings.get(k)]
                listed = ", ".join(f"{k} {was.get(k)!r}, now {settings.get(k)!r}" for k in differing)
                raise ConfigError(
                    f"train: the run in {directory} had other settings ({listed}); give the same to go on with it, or "
                    f"another --out"
                )
        else:
            self.content = {"settings": settings, "plan": {}}

    def plan(self, phase: str, make: Callable[[], Plan]) -> Plan:
        """The plan of a phase: as it was made before, or made now, and kept."""
        if phase not in self.content["plan"]:
            self.content["plan"][phase] = make()._asdict()
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.file)
        return Plan(**self.content["plan"][phase])


def seconds_per_step(phase: Phase, batch: Any, count: int = 10) -> float:
    """Compiles a phase's step, as `training.train` will, and times it; the median of a few."""
    program = jax.jit(phase.step, donate_argnums=0)
    train_state = jax.tree.map(jnp.copy, phase.start())  # which is donated, with parameters that may be another phase's
    times = []
    for _ in range(count + 2):
        began = time.perf_counter()
        train_state, metrics = program(train_state, batch)
        jax.block_until_ready((train_state, metrics))
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def main(argv: list[str] | None = None) -> dict[str, training.History]:
    """Runs the example and returns what was measured in each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("out/speech"), help="folder of speech (default: out/speech)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training in all (default: 20)")
    parser.add_argument("--steps", type=int, nargs=2, metavar=PHASES, help="steps of both phases, instead of --minutes")
    parser.add_argument("--adversarial", type=float, default=0.1, help="the second phase's share of the time")
    parser.add_argument("--generator", choices=GENERATORS, default="P1", help="which network (default: P1)")
    parser.add_argument("--batch-size", type=int, default=4, help="excerpts a step (default: 4)")
    parser.add_argument("--length", type=int, default=16384, help="samples of an excerpt (default: 16384)")
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the excerpts (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/vocoder"), help="folder of the run (default: out/vocoder)"
    )
    args = parser.parse_args(argv)

    began = time.perf_counter()
    config = MelConfig()
    speech = data.load(args.data, config)
    minutes = None if args.steps else args.minutes
    run = Run(
        args.out,
        {
            "mel": config._asdict(), "generator": args.generator, "batch_size": args.batch_size, "length": args.length,
            "seed": args.seed, "minutes": minutes, "steps": args.steps, "adversarial": args.adversarial,
            "recipe": RECIPE._asdict(), "samples": sum(map(len, speech.train.values())),
        },
    )  # fmt: skip
    net = GENERATORS[args.generator](config)
    validation = Validation(config, net, speech.validation, args.out / "samples")
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), _example(config))[0])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    seconds = sum(map(len, speech.train.values())) / config.sample_rate
    print(f"{args.generator}: {count:,} parameters; {seconds / 60:.1f} min of speech to train on")

    def batches(name, plan):
        excerpts = data.batches(
            speech.train, length=args.length, batch_size=args.batch_size, steps=plan.steps_per_epoch,
            seed=2 * args.seed + PHASES.index(name),
        )  # fmt: skip
        return lambda epoch: ((wave, wave) for wave in excerpts(epoch))

    def train(make_phase, plan):
        phase = make_phase(plan.steps)

        def after_epoch(record, train_state):
            params = phase.generator_params(train_state)
            metadata = {"mel": config._asdict(), "generator": args.generator, "step": record["step"]}
            training.save(args.out / phase.name, params, metadata=metadata)
            validation.write(params, f"{phase.name}-{int(record['epoch']):03d}")

        print(f"{phase.name} phase: {plan.epochs} epochs of {plan.steps_per_epoch} steps")
        return training.train(
            phase.step, phase.start(), batches(phase.name, plan),
            epochs=plan.epochs, steps_per_epoch=plan.steps_per_epoch,
            evaluate=lambda train_state: validation(phase.generator_params(train_state)),
            callbacks=[after_epoch],
            log=args.out / f"{phase.name}.jsonl",
            checkpoint=training.Checkpoints(args.out / "checkpoints" / phase.name, keep=1, keep_best=False),
            checkpoint_seconds=60.0,
        )  # fmt: skip

    def planned(name, make_phase, share, spent):
        """The phase's plan: what was asked for, or what the time that is left allows, by a measurement."""
        if args.steps:
            return run.plan(name, lambda: plan_steps(args.steps[PHASES.index(name)]))

        def measured():
            phase = make_phase(1000)
            batch = next(iter(batches(name, Plan(1, 1))(0)))
            step_seconds = seconds_per_step(phase, batch)
            params = phase.generator_params(phase.start())
            validation(params)  # compiles
            validation.write(params, "000")
            clock = time.perf_counter()
            validation(params)
            validation.write(params, "000")
            epoch_seconds = time.perf_counter() - clock
            left = 60 * args.minutes - max(spent, time.perf_counter() - began)
            print(f"{name} phase: {1e3 * step_seconds:.1f} ms a step, {epoch_seconds:.2f} s to validate")
            return plan_seconds(left - share * 60 * args.minutes, step_seconds, epoch_seconds)

        return run.plan(name, measured)

    def spectral(steps):
        return spectral_phase(config, net, steps, args.seed, RECIPE)

    plan = planned("spectral", spectral, args.adversarial, 0.0)
    first = train(spectral, plan)
    histories = {"spectral": first.history}
    if args.steps[1] if args.steps else args.adversarial:

        def adversarial(steps):
            return adversarial_phase(config, net, first.train_state.params, steps, args.seed, RECIPE)

        plan = planned("adversarial", adversarial, 0.0, float(np.sum(first.history["seconds"])))
        histories["adversarial"] = train(adversarial, plan).history
    for name, history in histories.items():
        history.plot(args.out / f"{name}.png", f"{args.generator}, {name} phase")
    print(f"{(time.perf_counter() - began) / 60:.1f} min in all; the generator is in {args.out}")
    return histories


if __name__ == "__main__":
    main()

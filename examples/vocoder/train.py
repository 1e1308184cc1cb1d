"""Trains a vocoder on speech, in the minutes that it is given.

python -m examples.vocoder.train --data DIR --minutes 20 --out out/vocoder

First the spectra of what it makes are drawn to those of the recordings; then, for the last part of the time, a few
discriminators help. How many steps the time allows is measured at the start and written to OUT/run.json, so that the
same command, after Ctrl-C or worse, goes on with the same run. OUT then holds:

    run.json                    the settings and the plan
    spectral, adversarial       the generator after the latest epoch of each phase, for `synthesize`
    spectral.jsonl, ...         what was measured, epoch by epoch
    samples/                    a sentence of the validation set as it sounds and looks after each epoch
    checkpoints/                to resume from
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from examples.vocoder import data
from examples.vocoder.mel import MelConfig
from examples.vocoder.phases import (
    DISCRIMINATORS,
    GENERATORS,
    PHASES,
    RECIPE,
    adversarial_phase,
    example,
    spectral_phase,
)
from examples.vocoder.planning import Plan, Run, held_out, plan_seconds, plan_steps, seconds_per_step
from examples.vocoder.validation import Validation
from jaxnet import memory, training
from jaxnet.errors import ConfigError


def main(argv: list[str] | None = None) -> dict[str, training.History]:
    """Runs the example and returns what was measured in each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder of recordings (default: {data.CACHE})")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training in all (default: 20)")
    parser.add_argument("--steps", type=int, nargs=2, metavar=PHASES, help="steps of both phases, instead of --minutes")
    parser.add_argument("--adversarial", type=float, default=0.1, help="the second phase's share of the time")
    parser.add_argument("--generator", choices=GENERATORS, default="P1", help="which network (default: P1)")
    parser.add_argument("--discriminators", choices=DISCRIMINATORS, default="small", help="of the second phase")
    parser.add_argument("--batch-size", type=int, default=4, help="excerpts a step (default: 4)")
    parser.add_argument("--length", type=int, default=16384, help="samples of an excerpt (default: 16384)")
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the excerpts (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/vocoder"), help="folder of the run (default: out/vocoder)"
    )
    args = parser.parse_args(argv)

    began = time.perf_counter()
    config = MelConfig()
    if args.length % config.hop or args.length < config.n_fft:
        raise ConfigError(
            f"train: --length must be a multiple of {config.hop}, the spectrogram's hop, and at least {config.n_fft}, "
            f"got {args.length}; {max(config.n_fft, round(args.length / config.hop) * config.hop)} is the nearest"
        )
    folder = args.data or data.CACHE
    speech = data.load(args.data, config, held_out(args.out, folder))
    minutes = None if args.steps else args.minutes
    run = Run(
        args.out,
        {
            "mel": config._asdict(), "generator": args.generator, "discriminators": args.discriminators,
            "batch_size": args.batch_size, "length": args.length,
            "seed": args.seed, "minutes": minutes, "steps": args.steps, "adversarial": args.adversarial,
            "recipe": RECIPE._asdict(), "samples": sum(map(len, speech.train.values())),
        },
        {"folder": str(folder.resolve()), "validation": [*speech.validation], "test": [*speech.test]},
    )  # fmt: skip
    net = GENERATORS[args.generator](config)
    validation = Validation(config, net, speech.validation, args.out / "samples")
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), example(config))[0])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    seconds = sum(map(len, speech.train.values())) / config.sample_rate
    print(f"{args.generator}: {count:,} parameters; {seconds / 60:.1f} min of speech to train on")

    def batches(name, plan):
        excerpts = data.batches(
            speech.train, length=args.length, batch_size=args.batch_size, steps=plan.steps_per_epoch,
            seed=2 * args.seed + PHASES.index(name),
        )  # fmt: skip
        return lambda epoch: ((wave, wave) for wave in excerpts(epoch))  # what is heard is what is wanted

    def train(make_phase, plan):
        phase = make_phase(plan.steps)

        def after_epoch(record, train_state):
            params = phase.generator_params(train_state)
            metadata = {"mel": config._asdict(), "generator": args.generator, "step": record["step"]}
            training.save(args.out / phase.name, params, metadata=metadata)
            validation.write(params, f"{phase.name}-{int(record['epoch']):03d}")

        print(f"{phase.name} phase: {plan.epochs} epochs of {plan.steps_per_epoch} steps")
        return training.train(
            phase.step, phase.start(), training.stream(batches(phase.name, plan), steps_per_epoch=plan.steps_per_epoch),
            epochs=plan.epochs,
            evaluate=lambda train_state: validation(phase.generator_params(train_state)),
            callbacks=[after_epoch],
            keep=training.keep(
                args.out / "checkpoints" / phase.name, seconds=60.0, last=1, best=False,
                log=args.out / f"{phase.name}.jsonl",
            ),
        )  # fmt: skip

    def planned(name, make_phase, later, least, spent):
        """The phase's plan: what was asked for, or what a measurement says of the time that is left, in seconds.

        ``later`` is kept for the next phase; ``least`` is taken even where the phase before took longer than planned.
        """
        if args.steps:
            return run.plan(name, lambda: plan_steps(args.steps[PHASES.index(name)]))

        def measured():
            phase = make_phase(1000)
            batch = next(iter(batches(name, Plan(1, 1))(0)))
            step_seconds = seconds_per_step(phase, batch)
            params = phase.generator_params(phase.start())
            validation(params)  # compiles
            validation.write(params, f"{name}-000")
            clock = time.perf_counter()
            validation(params)
            validation.write(params, f"{name}-000")
            epoch_seconds = time.perf_counter() - clock
            left = 60 * args.minutes - max(spent, time.perf_counter() - began)
            print(f"{name} phase: {1e3 * step_seconds:.1f} ms a step, {epoch_seconds:.2f} s to validate")
            return plan_seconds(max(left - later, least), step_seconds, epoch_seconds)

        return run.plan(name, measured)

    def spectral(steps):
        return spectral_phase(config, net, steps, args.seed, RECIPE)

    second = 0 if args.steps else 60 * args.minutes * args.adversarial
    plan = planned("spectral", spectral, second, 0.0, 0.0)
    first = train(spectral, plan)
    histories = {"spectral": first.history}
    if args.steps[1] if args.steps else args.adversarial:

        def adversarial(steps):
            discriminator = DISCRIMINATORS[args.discriminators](config)
            return adversarial_phase(config, net, discriminator, first.train_state.params, steps, args.seed, RECIPE)

        plan = planned("adversarial", adversarial, 0.0, second / 2, float(np.sum(first.history["seconds"])))
        histories["adversarial"] = train(adversarial, plan).history
    for name, history in histories.items():
        history.plot(args.out / f"{name}.png", f"{args.generator}, {name} phase")
    print(f"{(time.perf_counter() - began) / 60:.1f} min in all; the generator is in {args.out}")
    return histories


if __name__ == "__main__":
    memory.reuse()  # steps are faster on a CPU: docs/kernels.md
    main()

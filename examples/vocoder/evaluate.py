"""Compares trained vocoders with Griffin-Lim on the test prompts: a table, a JSON file and pictures.

python -m examples.vocoder.evaluate                                 # Griffin-Lim alone
python -m examples.vocoder.evaluate --run out/vocoder --polish 32   # and a trained network, without and with polish
python -m examples.vocoder.evaluate --run out/seed-0 out/seed-1     # and several, in rows named after their folders

Every row is computed by the same code from the same mel spectrograms, in the same run.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from examples.vocoder import data, griffin_lim, mel, synthesize
from examples.vocoder.mel import MelConfig
from examples.vocoder.metrics import METRICS, NEEDS
from examples.vocoder.phases import PHASES
from examples.vocoder.planning import held_out, of_run
from examples.vocoder.samples import draw_curves, draw_spectrograms
from jaxnet.errors import ConfigError, DataError
from jaxnet.training import History

Synthesizer = Callable[[np.ndarray], np.ndarray]
"""A function from a log mel spectrogram (T, bands) to a wave (T hop)."""

REPEATS = 5  # timings, of which the median counts


def synthesizers(
    runs: Sequence[Path] = (), polish: int = 32, phase: str | None = None
) -> tuple[MelConfig, dict[str, Synthesizer]]:
    """Returns the spectrogram's definition and the rows of the table, the trained ones if there are runs.

    Raises:
      ConfigError: no run in a folder, two folders of one name, or runs whose spectrograms are defined differently.
    """

    def lim(config: MelConfig, iterations: int, seed: int) -> Synthesizer:
        return lambda log_mel: np.asarray(griffin_lim.from_log_mel(config, log_mel, iterations, key=seed))

    trained: dict[str, Synthesizer] = {}
    config = MelConfig()
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError("evaluate: the rows are named after the runs' folders, of which two have one name")
    for i, run in enumerate(runs):
        vocoder = synthesize.load_generator(run, phase)
        if i and vocoder.config != config:
            raise ConfigError(f"evaluate: {run} has another spectrogram than {runs[0]}; evaluate them apart")
        config = vocoder.config
        name = "network" if len(runs) == 1 else run.name
        trained[name] = vocoder
        if vocoder.can_polish and polish:
            trained[f"{name}, polish {polish}"] = functools.partial(vocoder, polish=polish)
    return config, {
        "Griffin-Lim 32": lim(config, 32, 0),
        "Griffin-Lim 60": lim(config, 60, 0),
        "Griffin-Lim 60, seed 1": lim(config, 60, 1),
        **trained,
    }


def measure(
    config: MelConfig, rows: dict[str, Synthesizer], prompts: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns every metric whose package is there of every prompt: row -> metric -> prompt -> value.

    The value is NaN where a metric finds no speech in a prompt, or in what was made of it.

    Raises:
      DataError: no prompts, or a synthesizer that returns NaN or Inf.
    """
    if not prompts:
        raise DataError("measure: there are no test prompts; give a folder with more recordings")
    metrics = {name: metric for name, metric in METRICS.items() if _installed(NEEDS.get(name))}
    spectra = {name: np.asarray(mel.log_mel(config, jnp.asarray(wave))) for name, wave in prompts.items()}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row, speak in rows.items():
        table[row] = {metric: {} for metric in metrics}
        for name, wave in prompts.items():
            made = speak(spectra[name])
            if not np.isfinite(made).all():
                raise DataError(f"measure: {row} made NaN or Inf of {name}; its training went wrong")
            for metric, compute in metrics.items():
                try:
                    table[row][metric][name] = compute(config, wave, made)
                except DataError:
                    table[row][metric][name] = float("nan")
    return table


def clock(config: MelConfig, rows: dict[str, Synthesizer], wave: np.ndarray) -> dict[str, float]:
    """Returns every row's real-time factor here: seconds of computing a second of sound, once it is compiled."""
    log_mel = np.asarray(mel.log_mel(config, jnp.asarray(wave)))
    factors = {}
    for row, speak in rows.items():
        seconds = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            speak(log_mel)
            seconds.append(time.perf_counter() - start)
        factors[row] = statistics.median(seconds[1:]) * config.sample_rate / len(wave)
    return factors


def markdown(table: dict, factors: dict[int, dict[str, float]]) -> str:
    """Returns the table of means and standard deviations over the prompts, and of real-time factors by cores.

    A mean of fewer prompts than there are says how many it is of.
    """
    metrics = list(next(iter(table.values())))
    lines = [
        _line(["", *metrics, *(f"RTF, {cores} core{'s' * (cores > 1)}" for cores in factors)]),
        "|---|" + "---|" * (len(metrics) + len(factors)),
    ]
    for row, columns in table.items():
        cells = [_mean(np.array(list(columns[metric].values()))) for metric in metrics]
        lines.append(_line([row, *cells, *(f"{factors[cores][row]:.4f}" for cores in factors)]))
    return "\n".join(lines)


def markdown_by_prompt(table: dict) -> str:
    """Returns one table a row of `markdown`, with a line a prompt."""
    parts = []
    for row, columns in table.items():
        lines = [_line([row, *columns]), "|---|" + "---|" * len(columns)]
        for name in next(iter(columns.values())):
            lines.append(_line([name, *(f"{values[name]:.3f}" for values in columns.values())]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> dict:
    """Prints the table, writes ``evaluation.json``, ``spectrograms.png`` and, of runs, ``curves.png``.

    Returns:
      What the JSON holds: the spectrogram's definition, row -> metric -> prompt -> value (None without a score), the
      real-time factors by cores, and the phase of each run that was evaluated.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, nargs="+", default=[], help="folders of trained vocoders (default: Griffin-Lim alone)"
    )
    parser.add_argument("--phase", choices=PHASES, help="after which phase (default: the better one in validation)")
    parser.add_argument("--polish", type=int, default=32, help="Griffin-Lim iterations behind networks (default: 32)")
    parser.add_argument("--data", type=Path, help=f"folder of recordings (default: the run's, or {data.CACHE})")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"), help="folder (default: out/evaluation)")
    parser.add_argument("--per-prompt", action="store_true", help="also a table of every prompt")
    parser.add_argument("--clock", type=int, metavar="CORES", help=argparse.SUPPRESS)  # what _clock_apart runs
    parser.add_argument("--wave", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.clock and hasattr(os, "sched_setaffinity"):
        # Before the first computation, at which JAX counts the cores it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.clock])
    config, rows = synthesizers(args.run, args.polish, args.phase)
    if args.clock:
        factors = clock(config, rows, np.load(args.wave))
        print(json.dumps(factors))
        return factors

    prompts = _prompts(args, config)
    missing = sorted({package for package in NEEDS.values() if not _installed(package)})
    if missing:
        print(f"not installed, so their columns are left out: {', '.join(missing)}; pip install {' '.join(missing)}")
    table = measure(config, rows, prompts)
    longest = max(prompts.values(), key=len)
    factors = {cores: _clock_apart(cores, args, longest) for cores in _core_counts()}
    print(f"{len(prompts)} prompts, {sum(map(len, prompts.values())) / config.sample_rate:.1f} s; mean ± deviation\n")
    print(markdown(table, factors))
    unscored = {name for columns in table.values() for v in columns.values() for name in v if not np.isfinite(v[name])}
    if unscored:
        print(f"\nin these, or in what was made of them, a metric finds no speech: {', '.join(sorted(unscored))}")
    if args.per_prompt:
        print("\n" + markdown_by_prompt(table))
    name = next(iter(prompts))
    spectrum = np.asarray(mel.log_mel(config, jnp.asarray(prompts[name])))
    shown = ["Griffin-Lim 60", *list(rows)[3:5]]
    waves = {f"{name}: original": prompts[name], **{row: rows[row](spectrum) for row in shown}}
    picture = draw_spectrograms(args.out / "spectrograms.png", config, waves)
    scores = {
        row: {
            metric: {k: v if np.isfinite(v) else None for k, v in values.items()} for metric, values in columns.items()
        }
        for row, columns in table.items()
    }
    phases = {run.name: args.phase or synthesize.best_phase(run) for run in args.run}
    result = {"config": config._asdict(), "prompts": scores, "real_time_factor": factors, "phases": phases}
    (args.out / "evaluation.json").write_text(json.dumps(result, indent=1))
    print(f"\n{picture}, {args.out / 'evaluation.json'}")
    histories = {run.name: _histories(run) for run in args.run}
    if any(histories.values()):
        print(draw_curves(args.out / "curves.png", histories))
    return result


def _core_counts() -> list[int]:
    """One core and all of them; all alone where a process cannot be held to some."""
    if not hasattr(os, "sched_getaffinity"):
        print("this system cannot hold a process to one core: real-time factors are of all cores")
        return [os.cpu_count() or 1]
    return sorted({1, len(os.sched_getaffinity(0))})


def _clock_apart(cores: int, args: argparse.Namespace, wave: np.ndarray) -> dict[str, float]:
    """`clock` in a process of its own, held to so many cores and to the CPU."""
    command = [sys.executable, "-m", "examples.vocoder.evaluate", "--clock", str(cores), "--polish", str(args.polish)]
    command += ["--run", *map(str, args.run)] if args.run else []
    command += ["--phase", args.phase] if args.phase else []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "wave.npy", wave)
        command += ["--wave", str(Path(folder) / "wave.npy")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise DataError(f"evaluate: the timing on {cores} cores failed:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _prompts(args: argparse.Namespace, config: MelConfig) -> dict[str, np.ndarray]:
    """The test set of the folder that was given, or of the runs', as they held it out."""
    if not args.run:
        return data.load(args.data, config).test
    kept = of_run(args.run[0])
    for run in args.run[1:]:
        if of_run(run) != kept:
            raise ConfigError(f"evaluate: {run} and {args.run[0]} hold out different recordings; evaluate them apart")
    folder = args.data or (Path(kept["folder"]) if kept else None)
    return data.load(folder, config, held_out(args.run[0], folder) if folder else None).test


def _histories(run: Path) -> dict[str, History]:
    return {p: History.load(run / f"{p}.jsonl") for p in PHASES if (run / f"{p}.jsonl").exists()}


def _mean(values: np.ndarray) -> str:
    there = values[np.isfinite(values)]
    if not len(there):
        return "-"
    deviation = f" ± {np.std(there):.3f}" if len(there) > 1 else ""
    return f"{np.mean(there):.3f}{deviation}" + (f" (of {len(there)})" if len(there) < len(values) else "")


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

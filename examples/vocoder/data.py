"""Speech to train on: 24 minutes of one professional speaker from a Debian package, or any folder of recordings.

python -m examples.vocoder.data                 # fetch the package with apt-get, check it, decode it to out/speech
python -m examples.vocoder.data --deb FILE      # the same from a package that was downloaded by other means

The recordings are Allison Smith's, CC-BY-SA-3.0: see the NOTICE that is written beside them.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.vocoder.audio import read, resample
from examples.vocoder.debian import fetch, read_cache
from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, DataError

CACHE = Path("out/speech")

NOT_SPEECH = {
    "beep", "beeperr", "ascending-2tone", "descending-2tone", "confbridge-join", "confbridge-leave", "tt-monkeys",
}  # fmt: skip
TEST = {
    "demo-abouttotry", "demo-congrats", "demo-echodone", "demo-echotest", "demo-enterkeywords", "demo-instruct",
    "demo-moreinfo", "demo-nogo", "demo-nomatch", "demo-thanks", "tt-weasels", "tt-allbusy",
}  # fmt: skip
VALIDATION_FAMILIES = ("queue-", "dir-")
TEST_FAMILIES = ("demo-", "tt-")  # none of these is trained on: prompts of a family share spliced words

SUFFIXES = (".wav", ".flac", ".g722")
HELD_OUT_SECONDS = 10.0  # of each prompt that is held out: enough for the metrics, and they stay quick
LEAST_HELD_OUT = 1.0  # seconds; PESQ and STOI are undefined on less than about half of it
LEAST_TRAINING = 5.0  # seconds


class Speech(NamedTuple):
    """Recordings of one sample rate, in three sets that share no file.

    Args:
      sample_rate: samples per second, Hz.
      train: names and waves to train on, float32 (samples,) in -1..1.
      validation: the same to choose a network with, each a whole number of hops and at most 10 s.
      test: the same to report figures of.
    """

    sample_rate: int
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def load(path: str | Path | None = None, config: MelConfig = MelConfig()) -> Speech:  # noqa: B008
    """Loads the fetched prompts, or a folder of recordings, and splits them.

    The prompts are split by family: ``demo-*`` and ``tt-*`` are for the test (12 of them are taken), ``queue-*`` and
    ``dir-*`` for validation, all others for training. In a folder of one's own, a twentieth of the files, 1 to 12, is
    held out for validation and as much again for the test, chosen by a hash of their names: a file stays in its set
    whatever else is there, as far as the sizes allow. Several channels are averaged.

    Args:
      path: a folder with the ``speech.npz`` that ``python -m examples.vocoder.data`` writes, or one with WAV, FLAC
        or G.722 files of any sample rate, in subfolders too (default: ``out/speech``).
      config: sample rate and hop wanted.

    Returns:
      the three sets, at the configuration's sample rate.

    Raises:
      DataError: nothing there, a file that is no audio, is silent or holds NaN, or too little speech.
      DependencyError: PyAV or SciPy is not installed, and needed.
    """
    folder = CACHE if path is None else Path(path)
    if (folder / "speech.npz").is_file():
        rate, waves = read_cache(folder / "speech.npz")
        if rate != config.sample_rate:
            waves = {name: resample(wave, rate, config.sample_rate) for name, wave in waves.items()}
        sets = _split_by_family(waves)
    elif path is None:
        raise DataError(
            f"load: no speech in {folder}; fetch it with python -m examples.vocoder.data, or give a folder of your own "
            f"WAV or FLAC files"
        )
    else:
        sets = _split_by_file(_read_folder(folder, config.sample_rate), folder, config.sample_rate)
    train, validation, test = sets
    return Speech(config.sample_rate, train, _held_out(validation, config), _held_out(test, config))


def batches(
    train_waves: dict[str, np.ndarray], *, length: int, batch_size: int, steps: int, seed: int = 0
) -> Callable[[int], Iterable[np.ndarray]]:
    """Random crops of the concatenated waves, each at a random gain of 0.3 to 1.

    Prompts shorter than a crop are many, so crops may run over the gap between two prompts.

    Args:
      train_waves: names and waves to draw from.
      length: samples a crop.
      batch_size: B, crops a batch.
      steps: batches an epoch.
      seed: integer from 0 to 2**64 - 1.

    Returns:
      a function from the number of an epoch to its batches, float32 arrays (B, length), which depend on the seed and
      on that number alone: an interrupted run that starts its epoch anew sees the same crops.

    Raises:
      ConfigError: sizes below 1, or a bad seed.
      DataError: no waves, or fewer samples in all than a crop.

    Example:
      >>> epoch = batches({"noise": np.ones(1000, np.float32)}, length=16, batch_size=2, steps=3)
      >>> [batch.shape for batch in epoch(0)]
      [(2, 16), (2, 16), (2, 16)]
    """
    who = "batches"
    for name, value, least in (("length", length, 1), ("batch_size", batch_size, 1), ("steps", steps, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{who}: {name} must be an integer >= {least}, got {value!r}")
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ConfigError(f"{who}: seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    # In the order of the names, so that the same seed is the same run however the files were listed.
    whole = np.concatenate([np.zeros(0, np.float32), *(train_waves[name] for name in sorted(train_waves))])
    if len(whole) < length:
        raise DataError(f"{who}: a crop of {length} samples does not fit into {len(whole)} samples of speech")
    crops = np.lib.stride_tricks.sliding_window_view(whole, length)

    def epoch(number: int) -> Iterator[np.ndarray]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(number,))))
        for _ in range(steps):
            starts = generator.integers(len(crops), size=batch_size)
            gains = generator.uniform(0.3, 1.0, (batch_size, 1)).astype(np.float32)
            yield crops[starts] * gains

    return epoch


def _read_folder(folder: Path, sample_rate: int) -> dict[str, np.ndarray]:
    if not folder.is_dir():
        raise DataError(f"load: there is no folder {folder}; give a folder of WAV or FLAC files")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)
    if not paths:
        others = sorted({path.suffix or path.name for path in folder.rglob("*") if path.is_file()})
        raise DataError(
            f"load: no {', '.join(SUFFIXES)} file in {folder}, only {', '.join(others[:5]) or 'nothing at all'}; "
            f"convert recordings with, for example, ffmpeg -i speech.mp3 speech.flac"
        )
    return {path.relative_to(folder).as_posix(): read(path, sample_rate) for path in paths}


def _split_by_family(waves: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], ...]:
    speech = {k: v for k, v in waves.items() if k not in NOT_SPEECH and not k.startswith("silence/")}
    held = VALIDATION_FAMILIES + TEST_FAMILIES
    return (
        {k: v for k, v in speech.items() if not k.startswith(held)},
        {k: v for k, v in speech.items() if k.startswith(VALIDATION_FAMILIES)},
        {k: v for k, v in speech.items() if k in TEST},
    )


def _split_by_file(waves: dict[str, np.ndarray], folder: Path, rate: int) -> tuple[dict[str, np.ndarray], ...]:
    long_enough = [name for name, wave in waves.items() if len(wave) >= LEAST_HELD_OUT * rate]
    order = sorted(long_enough, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = min(12, max(1, len(waves) // 20))
    test, validation = order[:count], order[count : 2 * count]
    train = {name: wave for name, wave in waves.items() if name not in {*test, *validation}}
    seconds = sum(map(len, train.values())) / rate
    if len(validation) < count or seconds < LEAST_TRAINING:
        raise DataError(
            f"load: {len(waves)} files in {folder} leave {seconds:.1f} s to train on, at least {LEAST_TRAINING:g} s "
            f"are wanted after {count} files for validation and {count} for the test, each of {LEAST_HELD_OUT:g} s or "
            f"more; "
            f"record more (ten minutes make a good start), or cut a long file into pieces: "
            f"ffmpeg -i long.wav -f segment -segment_time 10 part%03d.wav"
        )
    return train, {name: waves[name] for name in validation}, {name: waves[name] for name in test}


def _held_out(waves: dict[str, np.ndarray], config: MelConfig) -> dict[str, np.ndarray]:
    longest = int(HELD_OUT_SECONDS * config.sample_rate)
    return {k: wave[: min(len(wave), longest) // config.hop * config.hop] for k, wave in waves.items()}


def main(argv: list[str] | None = None) -> None:
    """Fetches the prompts and says what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CACHE, help=f"folder for the decoded speech (default: {CACHE})")
    parser.add_argument("--deb", type=Path, help="the package, where it was downloaded by other means")
    args = parser.parse_args(argv)
    folder = fetch(args.out, args.deb)
    speech = load(folder)
    for name in ("train", "validation", "test"):
        waves = getattr(speech, name)
        minutes = sum(map(len, waves.values())) / speech.sample_rate / 60
        print(f"{name:10} {len(waves):4d} prompts  {minutes:5.2f} minutes")
    print(f"written to {folder}; the licence is in {folder / 'NOTICE'}")


if __name__ == "__main__":
    main()

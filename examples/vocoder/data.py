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

from examples.vocoder.audio import SILENT, read, resample
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

SUFFIXES = (".wav", ".flac", ".g722", ".mp3", ".m4a", ".ogg", ".opus", ".aif", ".aiff")
PIECE_SECONDS = 10.0  # recordings are cut to at most these, and held-out prompts end there: the metrics stay quick
LEAST_HELD_OUT = 1.0  # seconds; PESQ and STOI are undefined on less than about half of it
LEAST_TRAINING = 5.0  # seconds


class Speech(NamedTuple):
    """Recordings of one sample rate, in three sets that share no sample.

    Of a folder of one's own, pieces of one long recording may be in different sets.

    Args:
      sample_rate: samples per second, Hz.
      train: names and waves to train on, float32 (samples,) in -1..1.
      validation: the same to watch the training and to choose a phase with, each a whole number of hops, at most 10 s.
      test: the same to report figures of.
    """

    sample_rate: int
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def load(
    path: str | Path | None = None,
    config: MelConfig = MelConfig(),  # noqa: B008
    held_out: tuple[list[str], list[str]] | None = None,
) -> Speech:
    """Loads the fetched prompts, or a folder of recordings, and splits them.

    The prompts are split by family: ``demo-*`` and ``tt-*`` are for the test (12 of them are taken), ``queue-*`` and
    ``dir-*`` for validation, all others for training. In a folder of one's own, recordings longer than 10 s are cut
    into pieces of 10 s, and a twentieth of the pieces, 1 to 12, is held out for validation and as much again for the
    test, chosen by a hash of their names. Files that are added later may change who is chosen; a run of
    `examples.vocoder.train` keeps the names of its own. Several channels are averaged.

    Args:
      path: a folder with the ``speech.npz`` that ``python -m examples.vocoder.data`` writes, or one with WAV, FLAC,
        MP3 or other recordings of any sample rate, in subfolders too (default: ``out/speech``). Hidden files are
        left out.
      config: sample rate and hop wanted.
      held_out: the names for validation and for the test, of a folder of one's own, instead of a choice by hash.

    Returns:
      the three sets, at the configuration's sample rate.

    Raises:
      DataError: nothing there, files that are no audio, are silent or hold NaN, or too little speech.
      DependencyError: PyAV or SciPy is not installed, and needed.
    """
    folder = CACHE if path is None else Path(path)
    if (folder / "speech.npz").is_file():
        if beside := _recordings(folder):
            raise DataError(
                f"load: {folder} holds the fetched prompts, speech.npz, and {len(beside)} recordings beside them "
                f"({beside[0].name}); move the recordings to a folder of their own"
            )
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
        sets = _split_pieces(_read_folder(folder, config.sample_rate), folder, config.sample_rate, held_out)
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


def _recordings(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in paths if not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _read_folder(folder: Path, sample_rate: int) -> dict[str, np.ndarray]:
    """Name -> piece of at most 10 s; the name of a piece of a longer file ends with where it begins, as ``@20s``."""
    if not folder.is_dir():
        raise DataError(f"load: there is no folder {folder}; give a folder of WAV or FLAC files")
    paths = _recordings(folder)
    if not paths:
        others = sorted({path.suffix or path.name for path in folder.rglob("*") if path.is_file()})
        raise DataError(
            f"load: no {', '.join(SUFFIXES)} file in {folder}, only {', '.join(others[:5]) or 'nothing at all'}; "
            f"convert recordings with, for example, ffmpeg -i speech.wma speech.flac"
        )
    stems: dict[Path, Path] = {}
    pieces, faults = {}, []
    for path in paths:
        twin = stems.setdefault(path.with_suffix(""), path)
        if twin != path:
            faults.append(f"{twin} and {path} have one name, and would be one recording in two sets; keep one of them")
            continue
        try:
            wave = read(path, sample_rate)
        except DataError as error:
            faults.append(str(error))
            continue
        name, length = path.relative_to(folder).as_posix(), int(PIECE_SECONDS * sample_rate)
        if len(wave) <= length:
            pieces[name] = wave
        else:
            for i in range(0, len(wave), length):
                pieces[f"{name}@{i // sample_rate}s"] = wave[i : i + length]
    if faults:
        raise DataError(
            f"load: {len(faults)} of the {len(paths)} files in {folder} cannot be used:\n" + "\n".join(faults)
        )
    return pieces


def _split_by_family(waves: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], ...]:
    speech = {k: v for k, v in waves.items() if k not in NOT_SPEECH and not k.startswith("silence/")}
    held = VALIDATION_FAMILIES + TEST_FAMILIES
    return (
        {k: v for k, v in speech.items() if not k.startswith(held)},
        {k: v for k, v in speech.items() if k.startswith(VALIDATION_FAMILIES)},
        {k: v for k, v in speech.items() if k in TEST},
    )


def _split_pieces(
    waves: dict[str, np.ndarray], folder: Path, rate: int, held_out: tuple[list[str], list[str]] | None
) -> tuple[dict[str, np.ndarray], ...]:
    if held_out is None:
        audible = [k for k, v in waves.items() if len(v) >= LEAST_HELD_OUT * rate and np.abs(v).max() >= SILENT]
        order = sorted(audible, key=lambda name: hashlib.sha256(name.encode()).digest())
        count = min(12, max(1, len(waves) // 20))
        test, validation = order[:count], order[count : 2 * count]
    else:
        validation, test = held_out
        count = len(test)
        if gone := sorted({*validation, *test} - set(waves)):
            raise DataError(
                f"load: {folder} no longer holds {gone[0]}{f' and {len(gone) - 1} more' if gone[1:] else ''}, which "
                f"the run holds out; restore them, or train again"
            )
    train = {name: wave for name, wave in waves.items() if name not in {*test, *validation}}
    seconds = sum(map(len, train.values())) / rate
    if len(validation) < count or seconds < LEAST_TRAINING:
        raise DataError(
            f"load: {len(waves)} recordings (or pieces of {PIECE_SECONDS:g} s) in {folder} leave {seconds:.1f} s to "
            f"train on, at least {LEAST_TRAINING:g} s are wanted after {count} for validation and {count} for the "
            f"test, each of {LEAST_HELD_OUT:g} s or more; record more: ten minutes make a good start"
        )
    return train, {name: waves[name] for name in validation}, {name: waves[name] for name in test}


def _held_out(waves: dict[str, np.ndarray], config: MelConfig) -> dict[str, np.ndarray]:
    longest = int(PIECE_SECONDS * config.sample_rate)
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

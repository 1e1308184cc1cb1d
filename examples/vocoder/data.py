"""Speech to train on: 24 minutes of one professional speaker from a Debian package, or any folder of recordings.

python -m examples.vocoder.data                 # fetch the package with apt-get, check it, decode it to out/speech
python -m examples.vocoder.data --deb FILE      # the same from a package that was downloaded by other means

The recordings are Allison Smith's, CC-BY-SA-3.0: see the NOTICE that is written beside them.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, DataError, DependencyError

PACKAGE = "asterisk-core-sounds-en-g722"
SHA256 = "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"  # of version 1.6.1-1
URL = "http://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/asterisk-core-sounds-en-g722_1.6.1-1_all.deb"
CACHE = Path("out/speech")

NOTICE = """\
Voice prompts for Asterisk, English: Debian package asterisk-core-sounds-en-g722 1.6.1-1.

Copyright 2003-2010 Allison Smith
Recorded by Allison Smith, http://www.theivrvoice.com
Financial contributions by Digium, Inc., http://www.digium.com

Licence: Creative Commons Attribution-ShareAlike 3.0 (CC-BY-SA-3.0),
https://creativecommons.org/licenses/by-sa/3.0/legalcode

The prompts in speech.npz are the package's, decoded from G.722 to 16-bit samples and changed in no other way. What is
derived from them (synthesized sound, pictures of it) is under the same licence: name the speaker, say that it was
modified, and share it alike. It resynthesizes recordings; please do not make it speak for her.
"""

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
SILENT = 1e-3  # peak, -60 dB of full scale


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
        rate, waves = _read_cache(folder / "speech.npz")
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


def fetch(out: Path = CACHE, deb: Path | None = None) -> Path:
    """Fetches the Debian package (without installing it), checks it, and decodes its prompts.

    Args:
      out: folder for ``speech.npz`` (40 MB), the NOTICE and the package's own copyright file.
      deb: the package, if it is there already.

    Returns:
      the folder.

    Raises:
      DataError: no apt-get, no network, or another package than the one that the figures hold for.
      DependencyError: PyAV is not installed.
    """
    _av()  # before the download, not after it
    if deb is None:
        with tempfile.TemporaryDirectory() as folder:
            content = _download(Path(folder)).read_bytes()
    elif deb.is_file():
        content = deb.read_bytes()
    else:
        raise DataError(f"fetch: there is no file {deb}; {_elsewhere()}")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"fetch: the package has sha256 {found}, wanted {SHA256}: it is damaged, or of another version than "
            f"1.6.1-1, for which split and figures hold; {_elsewhere()}"
        )
    files = unpack(content)
    waves, copyright_text = {}, b""
    for name, data in sorted(files.items()):
        if name.endswith("/copyright"):
            copyright_text = data
        elif name.endswith(".g722"):
            prompt = name.split("/en_US_f_Allison/")[-1].removesuffix(".g722")
            waves[prompt] = np.round(_decode(name, data, "g722")[0] * 32768).astype(np.int16)
    out.mkdir(parents=True, exist_ok=True)
    (out / "NOTICE").write_text(NOTICE)
    (out / "copyright").write_bytes(copyright_text)
    _write_cache(out / "speech.npz", 16000, waves)
    return out


def unpack(deb: bytes) -> dict[str, bytes]:
    """Returns the names and contents of the files in a Debian package: an ar archive around a tar archive.

    Raises:
      DataError: something that is no Debian package.
    """
    if not deb.startswith(b"!<arch>\n"):
        raise DataError(f"unpack: a Debian package begins with '!<arch>', got {deb[:8]!r}")
    start = 8
    while start + 60 <= len(deb):
        header = deb[start : start + 60]
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[start + 60 : start + 60 + size])) as archive:
                return {m.name: stream.read() for m in archive if (stream := archive.extractfile(m))}
        start += 60 + size + size % 2  # members begin at even places
    raise DataError("unpack: the Debian package has no data.tar; download it again")


def read(path: Path, sample_rate: int) -> np.ndarray:
    """Returns one recording, mono, float32 in -1..1, at ``sample_rate`` Hz.

    Raises:
      DataError: a file that is no audio, is empty or silent, or holds NaN or Inf.
      DependencyError: PyAV is not installed, or SciPy, which resampling needs.
    """
    wave, rate = _decode(str(path), path.read_bytes(), "g722" if path.suffix.lower() == ".g722" else None)
    if not np.isfinite(wave).all():
        raise DataError(f"read: {path} holds {int((~np.isfinite(wave)).sum())} samples that are NaN or Inf; remove it")
    if np.abs(wave).max() < SILENT:
        raise DataError(f"read: {path} is silent, its peak is {np.abs(wave).max():.1e} of full scale; remove it")
    return resample(wave, rate, sample_rate)


def resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Returns a wave at another sample rate, through SciPy's polyphase filter.

    Raises:
      DependencyError: SciPy is not installed.
    """
    if rate == wanted:
        return wave
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise DependencyError(_missing("resample", "scipy", f"from {rate} to {wanted} Hz")) from error
    divisor = np.gcd(rate, wanted)
    return resample_poly(wave, wanted // divisor, rate // divisor).astype(np.float32)


def _decode(name: str, data: bytes, container: str | None) -> tuple[np.ndarray, int]:
    """Samples (float32, mono) and sample rate of one audio file."""
    av = _av()
    try:
        with av.open(io.BytesIO(data), format=container) as file:
            planar = av.AudioResampler(format="fltp")  # of any layout and rate: a change of format alone
            stream = file.streams.audio[0]
            frames = [part for frame in file.decode(stream) for part in planar.resample(frame)]
            frames += planar.resample(None)
            rate = stream.rate
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(
            f"read: {name} ({len(data)} bytes) cannot be decoded as audio: {error}; remove it, or convert it to WAV"
        ) from error
    if not frames:
        raise DataError(f"read: {name} ({len(data)} bytes) holds no sound; remove it")
    wave = np.concatenate([frame.to_ndarray() for frame in frames], axis=-1)
    return (wave[0] if len(wave) == 1 else wave.mean(0, dtype=np.float32)), rate


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


def _write_cache(path: Path, rate: int, waves: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        sample_rate=np.int32(rate),
        names=np.array(list(waves)),
        lengths=np.array([len(wave) for wave in waves.values()]),
        samples=np.concatenate(list(waves.values())),
    )
    os.replace(partial, path)  # an interruption leaves no half of a cache


def _read_cache(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            rate, names, lengths, samples = (file[key] for key in ("sample_rate", "names", "lengths", "samples"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"load: {path} is not what python -m examples.vocoder.data writes ({error}); remove it and fetch again"
        ) from error
    waves = np.split(samples.astype(np.float32) / np.float32(32768), np.cumsum(lengths)[:-1])
    return int(rate), dict(zip(names.tolist(), waves, strict=True))


def _download(folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise DataError(f"fetch: there is no apt-get here; {_elsewhere()}")
    # Run as root, apt gives its download to a user of its own, who must be able to write there.
    folder.chmod(0o777)
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True)
    found = list(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        reason = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise DataError(
            f"fetch: apt-get download {PACKAGE} failed:\n{reason}\nWithout a network, or on a system that does not "
            f"know the package (try apt-get update first): {_elsewhere()}"
        )
    return found[0]


def _elsewhere() -> str:
    return (
        f"download {URL} with a browser and pass --deb FILE, or train on a folder of your own WAV or FLAC files with "
        f"--data DIR"
    )


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DependencyError(_missing("read", "av", "to decode audio")) from error
    return av


def _missing(who: str, package: str, why: str) -> str:
    return f"{who}: the package {package} is needed {why}; pip install {package}"


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

"""Debian's package of voice prompts: fetched, checked, unpacked without being installed, and kept as one file."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from examples.vocoder.audio import av_package, decode
from jaxnet.errors import DataError

PACKAGE = "asterisk-core-sounds-en-g722"
SHA256 = "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"  # of version 1.6.1-1
URL = "http://deb.debian.org/debian/pool/main/a/asterisk-core-sounds/asterisk-core-sounds-en-g722_1.6.1-1_all.deb"

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


def fetch(out: Path, deb: Path | None = None) -> Path:
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
    av_package()  # before the download, not after it
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
            waves[prompt] = np.round(decode(name, data, "g722")[0] * 32768).astype(np.int16)
    out.mkdir(parents=True, exist_ok=True)
    (out / "NOTICE").write_text(NOTICE)
    (out / "copyright").write_bytes(copyright_text)
    write_cache(out / "speech.npz", 16000, waves)
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


def write_cache(path: Path, rate: int, waves: dict[str, np.ndarray]) -> None:
    """Keeps 16-bit waves in one file, which is whole or absent."""
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        sample_rate=np.int32(rate),
        names=np.array(list(waves)),
        lengths=np.array([len(wave) for wave in waves.values()]),
        samples=np.concatenate(list(waves.values())),
    )
    os.replace(partial, path)  # an interruption leaves no half of a cache


def read_cache(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The sample rate and the waves that `write_cache` wrote, float32 in -1..1.

    Raises:
      DataError: another file, or a damaged one.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            rate, names, lengths, samples = (file[key] for key in ("sample_rate", "names", "lengths", "samples"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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

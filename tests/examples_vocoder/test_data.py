"""Fetching without a network, reading folders, splitting and cropping."""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile

from examples.vocoder import audio, data, debian
from examples.vocoder.mel import MelConfig
from jaxnet.errors import ConfigError, DataError, DependencyError

SPEECH = Path(__file__).parent / "speech"


@pytest.fixture(autouse=True)
def _needs_av():
    pytest.importorskip("av", reason="PyAV, which decodes audio, is not installed")


def tone(seconds, rate=16000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write(path, wave, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(path, rate, wave)


def package(files):
    """A Debian package with these files, as dpkg-deb lays one out."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar.getvalue()}
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


@pytest.fixture
def deb(monkeypatch):
    """A small package whose checksum is the wanted one."""
    names = {
        "demo-echodone": "demo-echodone", "queue-holdtime": "call-fwd-unconditional", "beep": "call-fwd-unconditional",
        "vm-goodbye": "something-terribly-wrong", "demo-other": "cannot-complete-as-dialed",
        "silence/1": "call-fwd-unconditional", "digits/1": "cannot-complete-as-dialed",
    }  # fmt: skip
    root = "./usr/share/asterisk/sounds/en_US_f_Allison/"
    files = {f"{root}{name}.g722": (SPEECH / f"{file}.g722").read_bytes() for name, file in names.items()}
    content = package({**files, "./usr/share/doc/x/copyright": b"CC-BY-SA-3.0"})
    monkeypatch.setattr(debian, "SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_package_is_unpacked_decoded_cached_and_split_by_family(deb, tmp_path, capsys):
    (tmp_path / "a.deb").write_bytes(deb)
    data.main(["--deb", str(tmp_path / "a.deb"), "--out", str(tmp_path / "speech")])
    printed = capsys.readouterr().out
    assert "train         2 prompts   0.09 minutes" in printed
    assert "validation    1 prompts   0.04 minutes" in printed
    notice = (tmp_path / "speech" / "NOTICE").read_text()
    for name in ("CC-BY-SA-3.0", "Allison Smith", "theivrvoice.com", "Digium"):
        assert name in notice
    assert (tmp_path / "speech" / "copyright").read_bytes() == b"CC-BY-SA-3.0"
    speech = data.load(tmp_path / "speech")
    assert set(speech.train) == {"vm-goodbye", "digits/1"}
    assert set(speech.validation) == {"queue-holdtime"}
    assert set(speech.test) == {"demo-echodone"}
    np.testing.assert_array_equal(
        speech.train["vm-goodbye"], audio.read(SPEECH / "something-terribly-wrong.g722", 16000)
    )
    slower = data.load(tmp_path / "speech", MelConfig(sample_rate=8000, high=4000.0))
    assert slower.sample_rate == 8000
    assert len(slower.train["digits/1"]) == (len(speech.train["digits/1"]) + 1) // 2


def test_g722_has_two_samples_a_byte(speech):
    wave = speech.train["something-terribly-wrong.g722"]
    assert wave.dtype == np.float32
    assert len(wave) == 2 * (SPEECH / "something-terribly-wrong.g722").stat().st_size
    assert 0.2 < np.abs(wave).max() <= 1


def test_bundle_is_split_by_file_and_small(speech):
    assert set(speech.test) == {"demo-echodone.g722"}
    assert set(speech.validation) == {"call-fwd-unconditional.g722"}
    assert len(speech.train) == 2
    assert all(len(wave) % 256 == 0 for wave in (*speech.test.values(), *speech.validation.values()))
    assert sum(file.stat().st_size for file in SPEECH.iterdir()) < 90_000
    notice = (SPEECH / "NOTICE").read_text()
    assert "unmodified excerpts" in notice
    for name in ("CC-BY-SA-3.0", "Allison Smith", "theivrvoice.com", "Digium"):
        assert name in notice


def test_any_wav_is_read(tmp_path):
    rng = np.random.default_rng(0)
    stereo = rng.integers(-9000, 9000, (16000, 2)).astype(np.int16)
    write(tmp_path / "stereo.wav", stereo)
    np.testing.assert_allclose(audio.read(tmp_path / "stereo.wav", 16000), stereo.mean(1) / 32768, atol=1e-7)
    write(tmp_path / "float.wav", tone(0.5))
    np.testing.assert_array_equal(audio.read(tmp_path / "float.wav", 16000), tone(0.5))
    write(tmp_path / "int32.wav", (tone(0.5).astype(np.float64) * 2**31).astype(np.int32))
    np.testing.assert_allclose(audio.read(tmp_path / "int32.wav", 16000), tone(0.5), atol=1e-6)
    write(tmp_path / "fast.wav", tone(0.5, 44100), 44100)
    resampled = audio.read(tmp_path / "fast.wav", 16000)
    assert resampled.shape == (8000,)
    np.testing.assert_allclose(resampled[500:-500], tone(0.5)[500:-500], atol=2e-3)


def test_folder_is_split_and_a_run_keeps_what_it_held_out(tmp_path):
    for i in range(39):
        write(tmp_path / f"sub{i % 3}" / f"{i}.WAV", tone(1.1, hertz=200.0 + i))
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / "._0.wav").write_bytes(b"what another system keeps beside a file")
    first = data.load(tmp_path)
    assert (len(first.train), len(first.validation), len(first.test)) == (37, 1, 1)
    assert list(data.load(tmp_path).test) == list(first.test)
    for i in range(39, 100):
        write(tmp_path / f"{i}.wav", tone(1.1, hertz=200.0 + i))
    assert len(data.load(tmp_path).test) == 5
    later = data.load(tmp_path, held_out=([*first.validation], [*first.test]))
    assert (list(later.validation), list(later.test)) == (list(first.validation), list(first.test))
    assert len(later.train) == 98
    (tmp_path / next(iter(first.test))).unlink()
    with pytest.raises(DataError, match=r"no longer holds sub\d/.*WAV, which the run holds out"):
        data.load(tmp_path, held_out=([*first.validation], [*first.test]))


def test_long_recordings_are_cut_so_that_all_of_them_is_used(tmp_path):
    rng = np.random.default_rng(0)
    waves = {
        name: rng.uniform(-0.5, 0.5, seconds * 16000).astype(np.float32) for name, seconds in (("a", 35), ("b", 8))
    }
    for name, wave in waves.items():
        write(tmp_path / f"{name}.wav", wave)
    speech = data.load(tmp_path)
    everything = {**speech.train, **speech.validation, **speech.test}
    assert set(everything) == {"a.wav@0s", "a.wav@10s", "a.wav@20s", "a.wav@30s", "b.wav"}
    assert (len(speech.validation), len(speech.test)) == (1, 1)
    for name, wave in speech.train.items():
        file, _, start = name.partition("@")
        begin = 16000 * int(start.removesuffix("s") or 0)
        np.testing.assert_array_equal(wave, waves[file.removesuffix(".wav")][begin : begin + 160000])


def test_all_faults_of_a_folder_are_told_at_once(tmp_path):
    write(tmp_path / "a.wav", tone(3))
    write(tmp_path / "silent.wav", np.zeros(16000, np.int16))
    (tmp_path / "broken.flac").write_bytes(b"no flac")
    (tmp_path / "a.mp3").write_bytes((tmp_path / "a.wav").read_bytes())
    with pytest.raises(DataError) as caught:
        data.load(tmp_path)
    message = str(caught.value)
    assert "3 of the 4 files" in message
    assert "a.mp3 and" in message
    assert "have one name" in message
    assert "broken.flac (7 bytes) cannot be decoded" in message
    assert "silent.wav is silent" in message


def test_folders_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*absent; give a folder of WAV or FLAC files"):
        data.load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no .wav, .flac, .*.aiff file in .*, only nothing at all"):
        data.load(tmp_path)
    (tmp_path / "speech.wma").write_bytes(b"x")
    with pytest.raises(DataError, match=r"only .wma; convert recordings with, for example, ffmpeg"):
        data.load(tmp_path)
    write(tmp_path / "short.wav", tone(3))
    with pytest.raises(DataError, match=r"load: 1 recordings .* leave 0.0 s to train on, at least 5 s are wanted"):
        data.load(tmp_path)
    write(tmp_path / "a.wav", tone(3))
    write(tmp_path / "b.wav", tone(3))
    with pytest.raises(DataError, match=r"load: 3 recordings .* leave 3.0 s to train on"):
        data.load(tmp_path)


def test_default_cache_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"fetch it with python -m examples.vocoder.data, or give a folder of your own"):
        data.load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad.wav \(0 bytes\) cannot be decoded as audio"),
        (b"RIFF what is this", "cannot be decoded as audio: .*; remove it, or convert it to WAV"),
        (np.zeros(16000, np.int16), "bad.wav is silent, its peak is 0.0e"),
        (np.full(16000, np.nan, np.float32), "bad.wav holds 16000 samples that are NaN or Inf"),
        (np.zeros(0, np.int16), "bad.wav .* holds no sound; remove it"),
    ],
)
def test_files_refused(content, message, tmp_path):
    path = tmp_path / "bad.wav"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(DataError, match=message):
        data.load(tmp_path)


def test_damaged_packages_and_caches_refused(tmp_path, deb):
    (tmp_path / "a.deb").write_bytes(deb[:-1])
    with pytest.raises(DataError, match=r"has sha256 .*, wanted .*: it is damaged, or of another version than 1.6.1-1"):
        debian.fetch(tmp_path, tmp_path / "a.deb")
    with pytest.raises(DataError, match=r"there is no file .*b.deb; download http"):
        debian.fetch(tmp_path, tmp_path / "b.deb")
    with pytest.raises(DataError, match="begins with '!<arch>', got b'PK"):
        debian.unpack(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"has no data.tar"):
        debian.unpack(b"!<arch>\n")
    debian.write_cache(tmp_path / "whole.npz", 16000, {"a": np.ones(16000, np.int16)})
    whole = (tmp_path / "whole.npz").read_bytes()
    for half in (b"half", whole[: len(whole) // 2]):
        (tmp_path / "speech.npz").write_bytes(half)
        with pytest.raises(DataError, match=r"is not what python -m examples.vocoder.data writes .*; remove it"):
            data.load(tmp_path)
    write(tmp_path / "mine.wav", tone(3))
    with pytest.raises(DataError, match=r"and 1 recordings beside them \(mine.wav\); move the recordings"):
        data.load(tmp_path)


def test_no_apt_no_network_no_av(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(
        DataError, match=r"there is no apt-get here; download http.* and pass --deb FILE, or train on a"
    ):
        debian.fetch(tmp_path)
    monkeypatch.setattr(debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    failed = subprocess.CompletedProcess(
        [], 100, "", "E: Failed to fetch: Temporary failure resolving 'deb.debian.org'"
    )
    monkeypatch.setattr(debian.subprocess, "run", lambda *args, **more: failed)
    with pytest.raises(DataError, match=r"(?s)failed:\nE: Failed to fetch.*Without a network.*with --data DIR"):
        debian.fetch(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match=r"the package av is needed to decode audio; pip install av"):
        debian.fetch(tmp_path)


def test_batches_are_crops_at_random_gains():
    ramp = {"b": np.arange(100, 200, dtype=np.float32), "a": np.arange(100, dtype=np.float32)}
    epoch = data.batches(ramp, length=16, batch_size=64, steps=5, seed=3)
    batches = list(epoch(0))
    assert len(batches) == 5
    together = np.concatenate(batches)
    assert together.shape == (320, 16)
    assert together.dtype == np.float32
    gains = np.diff(together, axis=1)  # a ramp of slope 1 has the gain as its slope
    np.testing.assert_allclose(gains, gains[:, :1].repeat(15, 1), atol=1e-4)
    assert 0.299 < gains.min() < 0.35
    assert 0.95 < gains.max() < 1.001
    starts = np.round(together[:, 0] / gains.mean(1))
    assert starts.min() < 10
    assert 175 < starts.max() <= 184
    assert len(set(starts.tolist())) > 100


def test_batches_depend_on_seed_and_epoch_alone():
    waves = {"a": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    epoch = data.batches(waves, length=8, batch_size=4, steps=2, seed=3)
    list(epoch(0))
    once, again = np.stack(list(epoch(7))), np.stack(list(epoch(7)))
    np.testing.assert_array_equal(once, again)
    other = data.batches(dict(reversed(waves.items())), length=8, batch_size=4, steps=2, seed=3)
    np.testing.assert_array_equal(once, np.stack(list(other(7))))
    assert np.any(once != np.stack(list(epoch(8))))
    assert np.any(once != np.stack(list(data.batches(waves, length=8, batch_size=4, steps=2, seed=4)(7))))


def test_batches_refused():
    waves = {"a": np.ones(100, np.float32)}
    with pytest.raises(DataError, match="a crop of 101 samples does not fit into 100 samples of speech"):
        data.batches(waves, length=101, batch_size=1, steps=1)
    with pytest.raises(DataError, match="a crop of 1 samples does not fit into 0 samples"):
        data.batches({}, length=1, batch_size=1, steps=1)
    with pytest.raises(ConfigError, match="batch_size must be an integer >= 1, got 0"):
        data.batches(waves, length=1, batch_size=0, steps=1)
    with pytest.raises(ConfigError, match="seed must be an integer from 0 to"):
        data.batches(waves, length=1, batch_size=1, steps=1, seed=-1)

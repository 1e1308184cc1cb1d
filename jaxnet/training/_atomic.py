"""Directories that are whole or absent, whenever the process or the machine stops.

A new directory is filled under a temporary name beside its place, every file of it is forced to disk, and then it is
renamed: the one step that either happened or did not. Where a directory of that name exists already, the two are
exchanged (Linux's ``renameat2``); a file system that cannot do it renames the old one aside first, and readers look
there (`current`) should the process die between the two renames.

The process that fills a temporary directory holds a lock on it, which the kernel takes back however the process ends.
So a temporary without a lock is a dead process's, and the next `replacing` beside it removes it; process numbers
could not tell, in containers or after a restart. A run holds its directory by a lock in the same way (`held`).
"""

import contextlib
import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.jaxnet-(?P<kind>new|old)", re.DOTALL)

LOCK = ".lock"
# What network file systems answer that need not, or cannot, force a directory's entries to disk.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty directory to fill, which takes the place of ``path`` unless the block raises.

    Raises:
      OSError: the file system refused; ``path`` is whole or as it was, and nothing is left beside it.
    """
    with _room(path) as new:
        yield new
        for folder, _, files in os.walk(new, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            _sync_directory(Path(folder))
        _put(new, path)
        _sync_directory(path.parent)


@contextlib.contextmanager
def _room(path: Path) -> Iterator[Path]:
    """A locked temporary directory beside ``path``; it is removed with what is in it then."""
    _make(path.parent)
    _clean(path.parent)
    new, lock = _locked_directory(path)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)  # what was in its place, or what could not be finished
        os.close(lock)


def write(path: Path, data: bytes) -> None:
    """Writes a file beside and renames it, so that ``path`` never holds a part; pipes and devices are written to.

    Raises:
      OSError: the file system refused; it names ``path``, which is as it was.
    """
    with _naming(path):
        if _is_special(path):
            with open(path, "ab") as opened:
                opened.write(data)
            return
        place = Path(os.path.realpath(path))
        with _room(place) as new:
            (new / "file").write_bytes(data)
            if place.exists():
                shutil.copymode(place, new / "file")
            _sync(new / "file")
            os.replace(new / "file", place)
            _sync_directory(place.parent)


def try_file(path: Path) -> None:
    """Tries what `write` will do, and leaves what is at ``path`` as it is; raises the same."""
    with _naming(path):
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))
        if not _is_special(path):
            with _room(Path(os.path.realpath(path))) as new:
                (new / "file").write_bytes(b"\n")


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, or leads to what a process has open, which must not be replaced by a file."""
    if str(path.absolute()).startswith(("/dev/", "/proc/")):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes a directory, and holds it for one run while entered; where files cannot be locked, for as many as come.

    However the process ends, the lock ends with it. What `replacing` will do in the directory is tried at once.

    Raises:
      BlockingIOError: another run holds it; ``strerror`` says which process it is.
      OSError: nothing can be written there.
    """
    _make(directory)
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _lock(lock) is False:
            raise BlockingIOError(errno.EWOULDBLOCK, os.read(lock, 500).decode(errors="replace") or "another process")
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
        with replacing(directory / ".tried") as tried:
            (tried / "file").write_bytes(b"\n")
        remove(directory / ".tried")
        yield
    finally:
        _unlock(lock)
        os.close(lock)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Has an OSError name the path that the caller gave."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def remove(path: Path) -> None:
    """Removes a directory at once under its name; a stop in between leaves a temporary for `replacing` to clean."""
    old = _beside(path, "new")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)


def current(path: Path) -> Path:
    """``path``, or where the old one lies if the process that was replacing it died between two renames."""
    if not os.path.lexists(path):
        for aside in path.parent.glob(".*.jaxnet-old"):
            found = _TEMPORARY.fullmatch(aside.name)
            if found and found["name"] == path.name:
                return aside
    return path


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.jaxnet-{kind}")


def _make(directory: Path) -> None:
    if not directory.is_dir():
        _make(directory.parent)
        try:
            directory.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, f"{directory} is a file, no directory") from None
        _sync_directory(directory.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    """Forces a directory's entries to disk, where the file system can."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _locked_directory(path: Path) -> tuple[Path, int]:
    while True:
        new = _beside(path, "new")
        new.mkdir()
        try:
            lock = os.open(new, os.O_RDONLY)
        except FileNotFoundError:  # cleaned before it was locked
            continue
        except OSError:
            new.rmdir()
            raise
        if _lock(lock) is not False and new.exists():
            return new, lock
        os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Whether this process now holds the lock; None on a file system (some of NFS) that locks no directories."""
    import fcntl  # absent on Windows, where `import jaxnet` must still work

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _unlock(descriptor: int) -> None:
    """Gives the lock back at once, also when a forked child still has the file open."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _clean(parent: Path) -> None:
    """Removes the temporaries of dead processes, and puts back what one of them had moved aside."""
    for entry in parent.iterdir():
        found = _TEMPORARY.fullmatch(entry.name)
        if not found:
            continue
        try:
            lock = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone by now, or not ours
            continue
        try:
            if _lock(lock):
                place = parent / found["name"]
                if found["kind"] == "old" and not os.path.lexists(place):
                    with contextlib.suppress(OSError):
                        os.rename(entry, place)
                else:
                    shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(lock)


def _put(new: Path, path: Path) -> None:
    while True:
        try:
            os.rename(new, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with contextlib.suppress(FileNotFoundError):  # another process moved it: begin again
            if _exchange(new, path):
                return
            old = _beside(path, "old")
            os.rename(path, old)
            try:
                os.rename(new, path)
                shutil.rmtree(old, ignore_errors=True)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    os.rename(old, path)
                    raise
                shutil.rmtree(old, ignore_errors=True)  # another process put a whole one there in between


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename is None:
        return False
    if rename(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(exchange)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))

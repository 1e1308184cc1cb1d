"""Files that are whole or absent, whenever the process or the machine stops: the one way in which a run writes.

A file is written under a temporary name beside its place, forced to disk, and moved there by `os.replace`: the one step
that either happened or did not.

The process that writes a temporary file holds a lock on it, which the kernel takes back however the process ends.
So a temporary without a lock is a dead process's, and the next to write beside it removes it; process numbers
could not tell, in containers or after a restart. A run holds its directory by a lock in the same way (`held`).
"""

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.jaxnet-new", re.DOTALL)
# What network file systems answer that need not, or cannot, force a directory's entries to disk.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write with `write_all`, which takes the place of ``path`` unless the block raises.

    Raises:
      OSError: the file system refused; ``path`` is whole or as it was, and nothing is left beside it.
    """
    with _temporary(path) as (new, file):
        yield file
        if path.exists():
            shutil.copymode(path, new)
        os.fsync(file.fileno())
        os.replace(new, path)
        _sync_directory(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A locked temporary file beside ``path``, which is removed then unless it was moved."""
    _make(path.parent)
    _clean(path.parent)
    new, file = _locked(path)
    try:
        yield new, file
    finally:
        new.unlink(missing_ok=True)
        file.close()


def write_all(file: IO[bytes], data: Any) -> None:
    """Writes bytes to an unbuffered file: a disk that becomes full takes a part, and only the next call says so."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write(path: Path, data: bytes) -> None:
    """Writes a file in one step, so that ``path`` never holds a part; pipes and devices are written to.

    Raises:
      OSError: the file system refused; it names ``path``, which is as it was.
    """
    with _naming(path):
        if _is_special(path):
            with open(path, "ab") as opened:
                opened.write(data)
            return
        with replacing(Path(os.path.realpath(path))) as file:
            write_all(file, data)


def try_file(path: Path) -> None:
    """Tries what `write` will do, and leaves what is at ``path`` as it is; raises the same."""
    with _naming(path):
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))
        if not _is_special(path):
            with _temporary(Path(os.path.realpath(path))) as (_, file):
                file.write(b"\n")


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, or leads to what a process has open, which must not be replaced by a file."""
    if str(path.absolute()).startswith(("/dev/", "/proc/")):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes a directory, and holds it for one run while entered; where files cannot be locked, for as many as come.

    However the process ends, the lock ends with it. What `write` will do in the directory is tried at once.

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
        try_file(directory / ".tried")
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


def _make(directory: Path) -> None:
    if not directory.is_dir():
        _make(directory.parent)
        try:
            directory.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, f"{directory} is a file, no directory") from None
        _sync_directory(directory.parent)


def _sync_directory(path: Path) -> None:
    """Forces a directory's entries to disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _locked(path: Path) -> tuple[Path, IO[bytes]]:
    while True:
        new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.jaxnet-new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if _lock(descriptor) is not False and new.exists():
            return new, os.fdopen(descriptor, "wb", 0)
        os.close(descriptor)  # it was cleaned before it was locked


def _lock(descriptor: int) -> bool | None:
    """Whether this process now holds the lock; None on a file system (some of NFS) that has no locks."""
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


def _clean(directory: Path) -> None:
    """Removes the temporaries of dead processes."""
    for entry in directory.iterdir():
        if _TEMPORARY.fullmatch(entry.name):
            with contextlib.suppress(OSError):  # gone by now, or not ours
                descriptor = os.open(entry, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _lock(descriptor):
                        entry.unlink()
                finally:
                    os.close(descriptor)

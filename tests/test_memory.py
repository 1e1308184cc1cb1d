"""Memory that is kept: counted in pages, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from jaxnet import memory

BLOCKS = """
import ctypes, resource, sys
if sys.argv[1] == "reused":
    from jaxnet import memory
    assert memory.reuse()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
faults = []
for step in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def faults(way: str) -> int:
    """Pages that the system has to map for a block of 64 MB that was there, and freed, before.

    By malloc alone: which thread of XLA allocates, and when another frees, depends on what else the machine does.
    """
    return int(subprocess.run([sys.executable, "-c", BLOCKS, way], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_what_is_freed_is_used_again():
    assert faults("reused") < 0.1 * faults("as it is")


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)  # which must not be asked
    assert memory.reuse() is False

"""The memory of programs on a CPU: kept from one step to the next, not asked of the system anew."""

import ctypes
import platform

__all__ = ["reuse"]

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of malloc.h

TUNABLES = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**64 - 1}:glibc.malloc.arena_max=1"
"""What says the same in the environment variable ``GLIBC_TUNABLES``, before a process starts."""


def reuse() -> bool:
    """Keeps memory that is freed with this process, so that the next step of training finds it there.

    XLA allocates the temporary arrays of a compiled program at every call, and frees them after it. glibc hands blocks
    of more than 32 MB back to the system each time, which then has to find, to clear and to map their pages again, a
    page of 4 kB at a time. This call tells glibc to keep them. One line at the start of a program, before it computes;
    what it gains: docs/kernels.md.

    A thread that had a heap of its own before the call keeps it, and blocks of more than 64 MB that it allocates are
    still given back; so call it first. `TUNABLES` in the environment is for all threads.

    The price: the process stays as large as it ever was, for all that it still does, and libraries beside JAX are
    under the same rule, for there is one allocator a process. Memory of a GPU is not concerned.

    Returns:
      Whether it was done: False where the C library is not glibc (macOS, Windows, Alpine), and nothing has changed.

    Example:
      >>> from jaxnet import memory
      >>> memory.reuse()  # doctest: +SKIP
      True

    Source: ``man 3 mallopt``.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block for itself, none given back at the end of the heap, and one heap for the threads too, of which those of
    # their own are limited to 64 MB.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])

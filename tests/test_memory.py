"""Memory that is kept: counted in pages, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from jaxnet import memory

STEPS = """
import resource, sys
import jax, jax.numpy as jnp
from jaxnet import memory
assert sys.argv[1] == "as it is" or memory.reuse()
@jax.jit
def program(x):
    kept = [x]
    for _ in range(10):
        kept.append(jax.lax.optimization_barrier(kept[-1] + 1))
    return sum(jnp.sum(one) for one in kept)


x = jnp.ones((1024, 2048))
program = program.lower(x).compile()
assert program.memory_analysis().temp_size_in_bytes > 2**26, program.memory_analysis()
faults = []
for step in range(15):  # the first ones make room for what several steps hold at a time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults[5:])[5])
"""


def faults(way: str) -> int:
    """Pages that the system has to map in a step, the median of ten."""
    return int(subprocess.run([sys.executable, "-c", STEPS, way], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_steps_find_the_memory_of_those_before():
    assert faults("reused") < 0.1 * faults("as it is")


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)  # which must not be asked
    assert memory.reuse() is False

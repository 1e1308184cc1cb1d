"""Fixtures that many tests share."""

import os
import signal

import jax
import pytest


def pytest_configure():
    """In the background of a shell script, SIGINT is ignored, and what a test raises would be too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def on_the_cpu():
    """For what is said of XLA's program for a CPU: another backend's has other instructions, and memory of its own."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles with few optimizations: these programs run once, so that compiling is nearly all they cost.

    It changes what XLA does to a program, not which program the library writes. With
    ``JAX_DISABLE_MOST_OPTIMIZATIONS=0`` in the environment, tests run as users do.
    """
    asked = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS")
    if asked is None:
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    if asked is None:
        jax.config.update("jax_disable_most_optimizations", False)

"""Fixtures that many tests share."""

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

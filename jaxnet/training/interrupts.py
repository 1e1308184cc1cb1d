"""Ctrl-C and SIGTERM as a wish to stop, to be granted between two steps."""

import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

ENDED = {"SIGINT": 130, "SIGTERM": 143}
"""The status with which a shell reports a process that the signal ended."""


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is only remembered; a second one acts at once, as it would without.

    Args:
      sigterm: whether to take SIGTERM too, for which there must be something to save.

    Attributes:
      received: the name of the signal that came, or None.
    """

    def __init__(self, *, sigterm: bool) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM) if sigterm else (signal.SIGINT,)
        self._at_once = False
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        # Handlers may be set in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background leave it
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def at_once(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """A function that may take any time and leaves nothing half done, and that a signal may thus end at once."""
        if jax.process_count() > 1:  # the others would wait for what this one no longer sends
            return f

        @functools.wraps(f)
        def interruptible(*args, **kwargs):
            self._at_once = True
            try:
                return f(*args, **kwargs)
            finally:
                self._at_once = False

        return interruptible

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
        self._restore()
        if self._at_once:
            raise ending(self.received, "")

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def ending(signal_name: str, text: str) -> BaseException:
    """What a signal ends the program with, if nobody catches it: status 130 for SIGINT, 143 for SIGTERM."""
    error = KeyboardInterrupt(text) if signal_name == "SIGINT" else SystemExit(ENDED[signal_name])
    error.signal_name = signal_name  # type: ignore[attr-defined]  # which tells it from a second press
    return error

"""Ctrl-C and SIGTERM as a wish to stop, to be granted between two steps."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is only remembered; a second one acts at once, as it would without.

    Args:
      enabled: whether to do so at all.

    Attributes:
      received: the name of the signal that came, or None.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        # Handlers may be set in the main thread alone.
        if self._enabled and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background leave it
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
        self._restore()

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

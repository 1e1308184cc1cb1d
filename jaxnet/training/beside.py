"""One call at a time in a thread beside the training: what is slow, and needs nothing of a device."""

import threading
from collections.abc import Callable
from typing import Any


class Beside:
    """Makes a call in a thread, and says later how it ended."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a call has raised what `wait` has not raised yet."""
        return self._error is not None

    def start(self, do: Callable[[], Any]) -> None:
        """Begins a call; the one before must have been waited for."""

        def call() -> None:
            try:
                do()
            except BaseException as error:  # it belongs to the thread that waits
                self._error = error

        # It ends with the process, as what it does may be ended at any moment.
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        self._thread = thread  # one that could not be started cannot be waited for

    def end(self) -> None:
        """Waits for the end of the call, whatever it was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Waits for the end of the call, and raises what it raised."""
        self.end()
        error, self._error = self._error, None
        if error is not None:
            raise error

"""Ctrl-C in a training: the step in progress is ended first, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stopping:
    """Hold the first Ctrl-C back until `check`; a second one stops at once.

    Only in the main thread, and only where Python's own handler is in force; elsewhere nothing is
    held back.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._told)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Stop here if it was asked for; raises KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

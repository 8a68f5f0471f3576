"""Signals that end a run."""

import os
import signal
import sys
import threading
from types import FrameType


class StopSignals:
    """The first SIGINT or SIGTERM asks for an orderly end, a second one ends at once.

    `event` is set by the first, and `exit_code` is then what a shell expects of a program that
    such a signal ended; 0 before.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.exit_code = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.event.is_set():
            os._exit(128 + number)
        self.exit_code = 128 + number
        self.event.set()
        print("finishing the current batch; press Ctrl-C again to stop at once", file=sys.stderr)

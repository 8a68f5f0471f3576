"""The one wait loop."""

import time
from collections.abc import Callable
from typing import Final

_SHORTEST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.25


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as the condition holds; AssertionError after so many seconds.

    The longer it takes, the less often it is looked at: looking costs time, too.
    """
    deadline = time.monotonic() + seconds
    pause = _SHORTEST_PAUSE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
        pause = min(pause * 1.2, _LONGEST_PAUSE)

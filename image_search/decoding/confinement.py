"""What a decoding process does to itself first, and its limit of memory."""

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

# Whoever waits for something else comes first: searches, above all.
_NICENESS: Final = 10


def confine() -> None:
    """Give way to others, and end with its parent alone."""
    os.nice(_NICENESS)
    # Who stops the service stops it, and with it the socket; Ctrl-C reaches all of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):  # only Linux has it: where memory ends, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The decoders' libraries write what they like.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def limit_memory(limit: int | None) -> None:
    """Bound the address space, in bytes; None does nothing."""
    if limit is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def address_space() -> int | None:
    """Bytes of address space that the process has now; None where no limit can be set on it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()

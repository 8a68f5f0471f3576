"""Memory that is given back to the system."""

import ctypes
from contextlib import suppress
from typing import Final

# Of glibc's malloc.h; the first is what it begins with, and then learns to raise.
_MMAP_THRESHOLD: Final = (-3, 128 * 1024)
_TRIM_THRESHOLD: Final = (-1, 4 * 1024 * 1024)


def give_back() -> None:
    """Let large blocks go back to the system when they are freed, where the C library is glibc.

    By default it learns to keep them once it has seen some: up to 64 MiB for each thread.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(*option)

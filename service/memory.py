"""Memory that is given back to the system."""

import ctypes
from contextlib import suppress
from typing import Final

from PIL import Image

# Of glibc's malloc.h. Below the first are the parts in which uploads are received and copied, some
# 256 KB: to get each anew from the system takes longer than to fill it.
_MMAP_THRESHOLD: Final = (-3, 1024 * 1024)
_TRIM_THRESHOLD: Final = (-1, 4 * 1024 * 1024)
# Pillow keeps so many blocks for the next pictures; by default, it keeps none, and a picture is one
# of up to 16 MiB.
_BLOCKS: Final = 8
_BLOCK_BYTES: Final = 1024 * 1024


def give_back() -> None:
    """Let large blocks go back to the system when they are freed, where the C library is glibc.

    By default it learns to keep them once it has seen some: up to 64 MiB for each thread.
    """
    pillow = Image.core  # type: ignore[attr-defined]  # documented, but not in its types
    pillow.set_block_size(_BLOCK_BYTES)
    pillow.set_blocks_max(_BLOCKS)
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(*option)

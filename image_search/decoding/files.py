"""The file in memory through which images and pixels go: a socket takes long for large ones."""

import os
import sys
import tempfile


def open_memory() -> int:
    """The descriptor of a file that is in memory where the system has such files."""
    if sys.platform == "linux":
        return os.memfd_create("image")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_whole(file: int, content: bytes) -> None:
    """Write all of `content` at the start of `file`, a descriptor; raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.pwrite(file, left, len(content) - len(left)) :]


def read_and_empty(file: int, size: int) -> bytes:
    """The first `size` bytes of `file`, which is empty afterwards: they are not held twice."""
    content = os.pread(file, size, 0)
    os.truncate(file, 0)
    return content

"""The lock between those who write and those who remove files that no version has."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_NO_LOCK: Final = {errno.EWOULDBLOCK, errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
# How long upkeep waits for a moment in which no other process writes; it is tried again anyway.
_SECONDS_FOR_OTHERS: Final = 0.2
_SECONDS_BETWEEN_TRIES: Final = 0.01
_SECONDS_OF_DOUBT: Final = 3600.0


@contextmanager
def writing(lock: Path) -> Iterator[None]:
    """While rows or indexes are written: files that no version has yet are not removed.

    Any number of processes and threads may be writing.
    """
    with _locked(lock, fcntl.LOCK_SH):
        yield


@contextmanager
def nobody_writing(lock: Path) -> Iterator[bool]:
    """Whether no process is `writing`; if so, those that want to write wait.

    LanceDB takes files of no version for left over when they are seven days old by the clock,
    which can be wrong.
    """
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS
    while True:
        with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) as locked:
            if locked or time.monotonic() > deadline:
                yield locked
                return
        time.sleep(_SECONDS_BETWEEN_TRIES)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """While a file is read and replaced: other processes and threads wait."""
    with _locked(lock, fcntl.LOCK_EX):
        yield


def clock_is_right(lock: Path) -> bool:
    """Whether this process and the file system agree on the time, by and large.

    Where they do, no file that is written from now on looks seven days old to this process.
    """
    try:
        os.utime(lock)
        return abs(lock.stat().st_mtime - time.time()) < _SECONDS_OF_DOUBT
    except OSError:
        return False


@contextmanager
def _locked(lock: Path, operation: int) -> Iterator[bool]:
    """Whether the lock was free; of a process that is killed, the system releases it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's: what locks need on local file systems is only that it is open.
        descriptor = os.open(lock, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except OSError as exc:
            # Held by another, or a file system without locks: write, but remove nothing.
            if exc.errno not in _NO_LOCK:
                raise
            yield False
            return
        try:
            yield True
        finally:
            # Not only closed: a child process may have inherited it.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)

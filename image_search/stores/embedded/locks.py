"""Locks between processes that share a folder: who writes, who reads, and who removes files."""

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
def if_unused(lock: Path) -> Iterator[bool]:
    """Whether nobody holds this lock in any way; if so, nobody does until the end."""
    with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) as locked:
        yield locked


class Reading:
    """While a table is open, its files are not removed: until it is closed or collected.

    Where that cannot be locked, as in a folder that is read-only, it is not.
    """

    def __init__(self, lock: Path) -> None:
        self.close: Callable[[], object] = lambda: None
        try:
            descriptor = _open(lock)
        except OSError:
            return
        self.close = weakref.finalize(self, _unlock, descriptor)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextmanager
def _locked(lock: Path, operation: int) -> Iterator[bool]:
    """Whether the lock was free; of a process that is killed, the system releases it."""
    descriptor = _open(lock)
    try:
        fcntl.flock(descriptor, operation)
    except OSError as exc:
        os.close(descriptor)
        # Held by another, or a file system without locks: write, but remove nothing.
        if exc.errno not in _NO_LOCK:
            raise
        yield False
        return
    try:
        yield True
    finally:
        _unlock(descriptor)


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's: what locks need on local file systems is only that it is open.
        return os.open(lock, os.O_RDONLY)


def _unlock(descriptor: int) -> None:
    # Not only closed: a child process may have inherited it.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)

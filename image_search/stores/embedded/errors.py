"""What LanceDB and the file system raise, as errors of the store."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from image_search.errors import StoreError

# Each try takes LanceDB up to half a minute.
_SECONDS_FOR_OTHERS: Final = 120.0
_MOST_SECONDS_BETWEEN_TRIES: Final = 0.5

_log = logging.getLogger(__name__)


@contextmanager
def errors_of_the_store(folder: Path) -> Iterator[None]:
    """Raise StoreError, which says what to do, for what goes wrong in `folder`."""
    try:
        yield
    # LanceDB raises its Rust errors as these three, and has no types of its own.
    except (OSError, RuntimeError, ValueError) as exc:
        text = str(exc).lower()
        if "no space left" in text or "file too large" in text:
            reason = "the disk is full: make room and run it again; what was acknowledged is safe"
        elif "read-only" in text or "permission denied" in text:
            reason = "the folder cannot be written: check its permissions, or set another folder"
        else:
            reason = "a file of it is missing or damaged"
        # What LanceDB says has folders in it.
        details = f"{folder}: {str(exc).splitlines()[0]}" if str(exc) else folder
        raise StoreError(f"the index failed: {reason}", details=details) from exc


def until_no_conflict(commit: Callable[[], object]) -> None:
    """Commit, and do it again where others came first more often than LanceDB itself tries."""
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS
    while True:
        try:
            commit()
        except (OSError, RuntimeError, ValueError) as exc:
            if not _is_conflict(exc) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0, _MOST_SECONDS_BETWEEN_TRIES))
        else:
            return


@contextmanager
def put_off_by_conflict(what: str) -> Iterator[None]:
    """Another process has done the same in the meantime, or committed: the next time will do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as exc:
        if not _is_conflict(exc):
            raise
        _log.debug("%s was postponed: %s", what, exc)


def _is_conflict(exc: Exception) -> bool:
    text = str(exc).lower()
    return "conflict" in text or "concurrent writers" in text

"""Following a folder: what has changed in it, once it is at rest."""

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from watchfiles import Change, watch

from image_search.errors import SettingsError
from worker.sources import Source
from worker.sources.files import is_hidden

_log = logging.getLogger(__name__)

# A file that has not changed for so long is not being written any more.
_SECONDS_OF_REST: Final = 1.0
_TICK_MILLISECONDS: Final = 500
_SECONDS_BETWEEN_LOOKS: Final = 1.0

_Signature = tuple[int, int, int] | None


def check_watch(path: str) -> Path:
    """The folder to follow; raises SettingsError for anything else."""
    if not os.path.isdir(path):
        raise SettingsError("--watch follows a folder: give the path of one, or leave it out")
    return Path(path).resolve()


def changes(folder: Path, without: Path, stop: threading.Event) -> Iterator[set[str] | None]:
    """Paths in the folder that have changed and are at rest; None where all may have changed.

    The first is None, when the folder is being watched, and so is that after a time without the
    folder. Where there is nothing to tell, an empty set comes twice a second. What lies in
    `without` does not count. Ends when `stop` is set.
    """
    is_told = False
    while not stop.is_set():
        identity = _identity(folder)
        if identity is None:
            if not is_told:
                _log.warning("%s is gone: waiting until it is back; nothing is removed", folder)
            is_told = True
            stop.wait(_SECONDS_BETWEEN_LOOKS)
            continue
        if is_told:
            _log.warning("%s is back", folder)
        is_told = False
        try:
            yield from _changes_while_there(folder, identity, without, stop)
        except (OSError, RuntimeError) as exc:  # the latter is what watchfiles raises of its own
            if _identity(folder) == identity:
                raise SettingsError(
                    f"{folder} cannot be followed: {exc}. If the system allows too few watches: "
                    "WATCHFILES_FORCE_POLLING=true looks at all files again and again instead"
                ) from exc


def _changes_while_there(
    folder: Path, identity: object, without: Path, stop: threading.Event
) -> Iterator[set[str] | None]:
    def counts(_: Change, path: str) -> bool:
        if Path(path).is_relative_to(without):
            return False
        return not any(map(is_hidden, PurePosixPath(os.path.relpath(path, folder)).parts))

    restless = _Restless(folder)
    is_first = True
    for found in watch(
        folder,
        watch_filter=counts,
        step=50,
        rust_timeout=_TICK_MILLISECONDS,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
        ignore_permission_denied=True,
    ):
        # Another folder in its place may have the same number.
        if _identity(folder) != identity or (Change.deleted, str(folder)) in found:
            return
        restless.add(os.path.relpath(path, folder) for _, path in found)
        if is_first:
            is_first = False
            yield None
        else:
            yield restless.take()


class _Restless:
    """Files that have just changed, and how they were when they were looked at last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[_Signature, float]] = {}

    def add(self, paths: Iterator[str]) -> None:
        """They have changed."""
        for path in paths:
            self._seen[path] = _signature(self._folder / path), time.monotonic()

    def take(self) -> set[str]:
        """Those that have come to rest; they are forgotten here."""
        now = time.monotonic()
        at_rest = set()
        for path, (before, since) in list(self._seen.items()):
            signature = _signature(self._folder / path)
            if signature != before:
                self._seen[path] = signature, now
            elif now - since >= _SECONDS_OF_REST:
                at_rest.add(path)
                del self._seen[path]
        return at_rest


def _signature(path: Path) -> _Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def changed_part(source: Source, before: Source, changed: Collection[str]) -> Source:
    """The images of a folder at these paths, or below them.

    All of them, where a folder tells another label than `before`, as one of its neighbours changed.
    """
    listing, earlier = source.listing, before.listing
    if listing is None or earlier is None:
        return source
    if any(listing.places.get(name, place) != place for name, place in earlier.places.items()):
        return source
    positions = {number for number, path in enumerate(listing.paths) if _is_among(path, changed)}
    return replace(source, total=len(positions), items=lambda: source.pick(positions), some=None)


def _is_among(path: str, changed: Collection[str]) -> bool:
    if path in changed:
        return True
    end = path.rfind("/")
    while end > 0:
        if path[:end] in changed:
            return True
        end = path.rfind("/", 0, end)
    return False

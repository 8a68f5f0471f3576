"""The files of an index in a folder, which processes of one machine share."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final, Self

from image_search.settings import Settings
from image_search.stores.embedded.errors import errors_of_the_store
from image_search.stores.embedded.files import TABLE_SUFFIX, IndexFiles, lines_of, sync_folder
from image_search.stores.embedded.locks import (
    Reading,
    alone,
    clock_is_right,
    if_unused,
    nobody_writing,
    writing,
)

_log = logging.getLogger(__name__)

# A larger file of deletions is shortened to those that are remembered.
_MOST_BYTES_OF_DELETIONS: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class LocalFiles(IndexFiles):
    """Files in `folder`, and locks beside them."""

    folder: Path

    clocks_differ: ClassVar[timedelta] = timedelta(0)
    is_remote: ClassVar[bool] = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The files in use of the index that the settings name; raises StoreError if damaged."""
        folder = settings.local_dir / "indexes" / settings.index
        return cls(folder=folder, namespace=settings.namespace).in_use()

    @property
    def uri(self) -> str:
        return str(self.folder)

    @property
    def options(self) -> None:
        return None

    @property
    def table(self) -> Path:
        """The folder of the table."""
        return self.folder / f"{self.name}{TABLE_SUFFIX}"

    @property
    def lock(self) -> Path:
        """The file whose lock writers share; see locks.py."""
        return self.folder / f"{self.name}.lock"

    @property
    def versions(self) -> Path:
        """The folder of the table's versions."""
        return self.table / "_versions"

    @property
    def snapshots(self) -> Path:
        return self.folder / f"{self.name}.snapshots"

    @property
    def snapshots_lock(self) -> Path:
        return self.folder / f"{self.name}.snapshots.lock"

    @property
    def _data(self) -> Path:
        """The folder of the table's rows; a table that never had any has none."""
        return self.table / "data"

    @property
    def _readers(self) -> Path:
        """The file whose lock all share that have the table open."""
        return self.folder / f"{self.name}.readers"

    @property
    def _refit(self) -> Path:
        """The file whose lock the one has that makes the next generation."""
        return self.folder / f"{self.namespace}.refit"

    @property
    def _facts_lock(self) -> Path:
        """The file whose lock is held while a small file beside the table is read and replaced."""
        return self.folder / f"{self.namespace}.facts.lock"

    def errors(self) -> AbstractContextManager[None]:
        return errors_of_the_store(self.table)

    def make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def namespaces(self) -> Iterator[Self]:
        tables = self.folder.glob(f"*{TABLE_SUFFIX}")
        for namespace in sorted({path.name.partition(".")[0] for path in tables}):
            files = replace(self, namespace=namespace).in_use()
            if files.has_table():
                yield files

    def has_table(self) -> bool:
        return any(self.versions.glob("*"))

    def prepare(self) -> None:
        """A power failure can leave the newest version empty, and LanceDB then opens none."""
        for path in self.versions.glob("*.manifest"):
            if path.stat().st_size == 0:
                _log.warning("removing the empty version %s, left by a crash", path)
                path.unlink()

    def versions_before(self, seconds: float) -> int:
        return sum(path.stat().st_mtime < seconds for path in self.versions.glob("*.manifest"))

    def state(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return _state_of(self.versions), _state_of(self._data)

    def former(self) -> Iterator[Self]:
        for number in range(self.generation):
            files = replace(self, generation=number)
            if files.table.exists():
                yield files

    def reading(self) -> Reading:
        return Reading(self._readers)

    def if_unread(self) -> AbstractContextManager[bool]:
        return if_unused(self._readers)

    def writing(self) -> AbstractContextManager[None]:
        return writing(self.lock)

    def nobody_writing(self) -> AbstractContextManager[bool]:
        return nobody_writing(self.lock)

    @contextmanager
    def cleaning(self) -> Iterator[bool]:
        """It begins while nobody writes, so that what is left over is old, and what is written
        meanwhile is new: others need to wait for the end only where the clock cannot be trusted.
        """
        with ExitStack() as held:
            if not held.enter_context(nobody_writing(self.lock)):
                yield False
                return
            if clock_is_right(self.lock):
                held.close()
                held.enter_context(writing(self.lock))
            yield True

    @contextmanager
    def if_not_refitting(self) -> Iterator[bool]:
        if not self.folder.exists():  # then there is no index, either
            yield True
            return
        with if_unused(self._refit) as is_alone:
            yield is_alone

    def add_deletions(self, deletions: Mapping[str, str]) -> None:
        path = self.folder / self._deletions
        with alone(self._facts_lock):
            if path.exists() and path.stat().st_size > _MOST_BYTES_OF_DELETIONS:
                self._write(self._deletions, lines_of(self.read_deletions()))
            with path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # cut off by a crash
                        file.write(b"\n")
                file.write(lines_of(deletions))
                file.flush()
                os.fsync(file.fileno())

    def remove(self) -> None:
        """The table, which shows that it is there, comes last."""
        self.remove_facts()
        self.lock.unlink(missing_ok=True)
        self._readers.unlink(missing_ok=True)
        if self.table.exists():
            shutil.rmtree(self.table)

    def sync(self) -> None:
        """LanceDB leaves it to the kernel."""
        sync_folder(self.folder)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        with alone(self._facts_lock):
            self._write(name, change(self._read(name)))

    def _delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _version(self, name: str) -> str:
        path = self.folder / name
        return str(path.stat().st_mtime_ns) if path.exists() else ""


def _state_of(folder: Path) -> tuple[int, int]:
    """That of none is (0, 0)."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns

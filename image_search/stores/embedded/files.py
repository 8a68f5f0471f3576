"""What an index consists of: its table, and what is beside it. Where that is, subclasses know."""

import ctypes
import functools
import logging
import os
import shutil
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from image_search.calibration import Calibration
from image_search.errors import StoreError
from image_search.provenance import MOST_DELETIONS, KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.stores.embedded.locks import Reading

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SOURCES = TypeAdapter(dict[str, KnownSource])

# A line of the file of deletions: id and digest.
_DELETION = TypeAdapter(tuple[str, str])

TABLE_SUFFIX: Final = ".lance"  # LanceDB's own


@dataclass(frozen=True, kw_only=True)
class IndexFiles(ABC):
    """The files of one namespace: its table, and what is beside it; recipes are of all.

    An index that is fitted again gets a table of its own, with calibration and sample: the next
    generation. A file with the number of the generation in use makes all of them take the place of
    the former at once. Where images came from, and which were deleted, is the same for both.
    """

    namespace: str
    generation: int = 0

    # How far the clocks of two that write may be apart.
    clocks_differ: ClassVar[timedelta]
    # Whether a look at the table takes long, and each machine has snapshots of its own.
    is_remote: ClassVar[bool]

    @property
    def name(self) -> str:
        """The name of the table; no namespace has a dot."""
        return f"{self.namespace}.{self.generation}" if self.generation else self.namespace

    @property
    @abstractmethod
    def uri(self) -> str:
        """The folder of all tables, for LanceDB."""

    @property
    @abstractmethod
    def options(self) -> dict[str, str] | None:
        """What LanceDB needs to know of where it is."""

    @property
    def address(self) -> str:
        """Where the table is."""
        return f"{self.uri}/{self.name}{TABLE_SUFFIX}"

    @property
    @abstractmethod
    def snapshots(self) -> Path:
        """The folder of snapshots of the table, on this machine; see snapshot.py."""

    @property
    @abstractmethod
    def snapshots_lock(self) -> Path:
        """The file whose lock the one has that writes a snapshot."""

    @abstractmethod
    def errors(self) -> AbstractContextManager[None]:
        """Raise StoreError, which says what to do, for what goes wrong with these files."""

    # --- the table -------------------------------------------------------------------------------

    @abstractmethod
    def make_folder(self) -> None:
        """Make the folder of all tables, where there are folders."""

    @abstractmethod
    def namespaces(self) -> Iterator[Self]:
        """Those of the index that have a table, each in the generation in use."""

    @abstractmethod
    def has_table(self) -> bool:
        """Whether it has a version; a creation that was cut off leaves none."""

    @abstractmethod
    def prepare(self) -> None:
        """What has to be done before the table is opened."""

    @abstractmethod
    def versions_before(self, seconds: float) -> int:
        """How many versions were written before a time, in seconds since the epoch."""

    @abstractmethod
    def state(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the folders of versions and of rows; another one when a file of it came or went.

        Where it is remote, it is always the same.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove all of this generation."""

    @abstractmethod
    def sync(self) -> None:
        """Make what was committed safe against a power failure."""

    # --- generations -----------------------------------------------------------------------------

    def in_use(self) -> Self:
        """The files of the generation in use; raises StoreError if its number is damaged."""
        try:
            content = self._read(self._generation)
            number = 0 if content is None else int(content)
        except (OSError, ValueError) as exc:
            raise StoreError(
                "the index failed: a file of it is missing or damaged",
                details=f"{self.uri}/{self._generation}",
            ) from exc
        return replace(self, generation=number)

    def next(self) -> Self:
        """The files of the generation after this one."""
        return replace(self, generation=self.generation + 1)

    @abstractmethod
    def former(self) -> Iterator[Self]:
        """The generations before this one that have a table, or are left of one."""

    def put_in_use(self) -> None:
        """Let this generation take the place of the one in use, and wait until that is durable."""
        self._write(self._generation, str(self.generation).encode())
        self.sync()

    # --- who reads and writes; see locks.py ------------------------------------------------------

    @abstractmethod
    def reading(self) -> Reading | None:
        """While it is held, `if_unread` is not true; None where that cannot be known."""

    @abstractmethod
    def if_unread(self) -> AbstractContextManager[bool]:
        """Whether nobody has the table open; if so, nobody does until the end."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """While rows or indexes are written: files that no version has yet are not removed."""

    @abstractmethod
    def nobody_writing(self) -> AbstractContextManager[bool]:
        """Whether no process is `writing`; if so, those that want to write wait."""

    @abstractmethod
    def cleaning(self) -> AbstractContextManager[bool]:
        """Whether old versions, and files of none, may be removed until the end."""

    @abstractmethod
    def if_not_refitting(self) -> AbstractContextManager[bool]:
        """Whether nobody makes the next generation; if so, nobody else does until the end."""

    # --- what is beside the table ----------------------------------------------------------------

    def read_calibration(self) -> Calibration | None:
        """The calibration; None if there is none, or it is damaged, which is told in the log."""
        return self._parsed(
            self._calibration,
            Calibration.model_validate_json,
            "matches have no confidence until the next ingest",
        )

    def write_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration."""
        self._write(self._calibration, calibration.model_dump_json().encode())

    def read_sample(self) -> ImageSample:
        """The sample; empty if there is none, or it is damaged, which is told in the log."""
        return self._sample_of(self._read(self._sample))

    def write_sample(self, sample: ImageSample) -> None:
        """Replace the sample."""
        self._write(self._sample, sample.to_bytes())

    def update_sample(self, change: Callable[[ImageSample], ImageSample]) -> None:
        """Replace the sample by what is made of it; what others do meanwhile is not lost."""
        self._update(self._sample, lambda content: change(self._sample_of(content)).to_bytes())

    def sample_version(self) -> str:
        """Another one for another sample; empty if there is none."""
        return self._version(self._sample)

    def read_sources(self) -> dict[str, KnownSource]:
        """The sources by name; empty if the file is damaged, which is told in the log."""
        return self._sources_of(self._read(self._sources))

    def add_source(self, name: str, source: KnownSource) -> None:
        """Add to what `read_sources` gives; what others do meanwhile is not lost."""
        self._update(
            self._sources,
            lambda content: _SOURCES.dump_json({**self._sources_of(content), name: source}),
        )

    def read_deletions(self) -> dict[str, str]:
        """Digests of deleted images by id; a line that a crash has cut off is left out."""
        return _deletions_of(self._read(self._deletions))

    def add_deletions(self, deletions: Mapping[str, str]) -> None:
        """Add to what `read_deletions` gives; what others do meanwhile is not lost."""
        self._update(
            self._deletions,
            lambda content: lines_of({**_deletions_of(content), **deletions}),
        )

    def forget_deletions(self, ids: Collection[str]) -> None:
        """Take these ids out of what `read_deletions` gives."""

        def without(content: bytes | None) -> bytes:
            known = _deletions_of(content)
            return lines_of({id_: digest for id_, digest in known.items() if id_ not in ids})

        self._update(self._deletions, without)

    def read_recipe(self, fingerprint: str) -> Recipe:
        """The recipe; raises OSError if it is missing, ValueError if it is damaged."""
        name = _recipe(fingerprint)
        content = self._read(name)
        if content is None:
            raise FileNotFoundError(f"there is no {self.uri}/{name}")
        return Recipe.from_bytes(content)

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe, under its fingerprint."""
        self._write(_recipe(recipe.fingerprint), recipe.to_bytes())

    def remove_recipe(self, fingerprint: str) -> None:
        """Remove the recipe, if there is one."""
        self._delete(_recipe(fingerprint))

    def remove_facts(self) -> None:
        """Remove what this generation alone has beside its table."""
        self._delete(self._calibration)
        self._delete(self._sample)
        self.snapshots_lock.unlink(missing_ok=True)
        if self.snapshots.exists():  # who has one mapped keeps it
            shutil.rmtree(self.snapshots)

    def remove_shared_facts(self) -> None:
        """Remove what all generations share."""
        self._delete(self._sources)
        self._delete(self._deletions)

    @property
    def _generation(self) -> str:
        return f"{self.namespace}.generation"

    @property
    def _calibration(self) -> str:
        return f"{self.name}.calibration.json"

    @property
    def _sources(self) -> str:
        return f"{self.namespace}.sources.json"

    @property
    def _deletions(self) -> str:
        return f"{self.namespace}.deletions.jsonl"

    @property
    def _sample(self) -> str:
        return f"{self.name}.sample.npz"

    def _sample_of(self, content: bytes | None) -> ImageSample:
        without = "the sample starts again with the next images"
        return self._parse(self._sample, content, ImageSample.from_bytes, without) or ImageSample()

    def _sources_of(self, content: bytes | None) -> dict[str, KnownSource]:
        without = "sources are known by their images in its place"
        return self._parse(self._sources, content, _SOURCES.validate_json, without) or {}

    def _parsed(self, name: str, parse: Callable[[bytes], T], without: str) -> T | None:
        return self._parse(name, self._read(name), parse, without)

    def _parse(
        self, name: str, content: bytes | None, parse: Callable[[bytes], T], without: str
    ) -> T | None:
        """What is in a file that the index can do without; None if there is none, or damaged.

        `without` says, in the log, what follows if it is damaged.
        """
        if content is None:
            return None
        try:
            return parse(content)
        except ValueError:
            _tell_damaged(f"{self.uri}/{name}", zlib.crc32(content), without)
            return None

    # --- files by name ---------------------------------------------------------------------------

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """The content of a file in the folder of tables; None where there is none."""

    @abstractmethod
    def _write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole, and wait until that is durable."""

    @abstractmethod
    def _update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a file by what is made of it; what others do meanwhile is not lost."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def _version(self, name: str) -> str:
        """Another one for another content; empty where there is no such file."""


def sync_folder(folder: Path) -> None:
    """Make what was written to the folder's file system safe against a power failure."""
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def lines_of(deletions: Mapping[str, str]) -> bytes:
    """What `read_deletions` reads."""
    return b"".join(_DELETION.dump_json(deletion) + b"\n" for deletion in deletions.items())


def _deletions_of(content: bytes | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (content or b"").splitlines()[-MOST_DELETIONS:]:
        with suppress(ValidationError):
            id_, digest = _DELETION.validate_json(line)
            found[id_] = digest
    return found


def _recipe(fingerprint: str) -> str:
    return f"recipe-{fingerprint}.npz"


@functools.lru_cache(maxsize=16)
def _tell_damaged(place: str, _checksum: int, without: str) -> None:
    """Once for each content, as the service reads files every second."""
    _log.warning("%s is damaged: %s", place, without)

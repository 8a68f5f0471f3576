"""The files of an index: their names, and how they are read and written."""

import ctypes
import functools
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from image_search.calibration import Calibration
from image_search.errors import StoreError
from image_search.provenance import MOST_DELETIONS, KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.settings import Settings

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SOURCES = TypeAdapter(dict[str, KnownSource])

# A line of the file of deletions: id and digest.
_DELETION = TypeAdapter(tuple[str, str])
# Such a file is shortened to the last `MOST_DELETIONS` lines.
_MOST_BYTES_OF_DELETIONS: Final = 64 << 20

_TABLE_SUFFIX: Final = ".lance"  # LanceDB's own


@dataclass(frozen=True)
class IndexFiles:
    """The files of one namespace: its table, and what is beside it; recipes are of all.

    An index that is fitted again gets a table of its own, with calibration and sample: the next
    generation. A file with the number of the generation in use makes all of them take the place of
    the former at once. Where images came from, and which were deleted, is the same for both.
    """

    folder: Path
    namespace: str
    generation: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The files in use of the index that the settings name; raises StoreError if damaged."""
        return cls(settings.data_dir / "indexes" / settings.index, settings.namespace).in_use()

    def in_use(self) -> Self:
        """The files of the generation in use; raises StoreError if its number is damaged."""
        try:
            number = int(self._generation.read_text())
        except (FileNotFoundError, NotADirectoryError):
            number = 0
        except (OSError, ValueError) as exc:
            raise StoreError(
                "the index failed: a file of it is missing or damaged", details=self._generation
            ) from exc
        return replace(self, generation=number)

    def next(self) -> Self:
        """The files of the generation after this one."""
        return replace(self, generation=self.generation + 1)

    def former(self) -> Iterator[Self]:
        """The generations before this one that have a table, or are left of one."""
        for number in range(self.generation):
            files = replace(self, generation=number)
            if files.table.exists():
                yield files

    def put_in_use(self) -> None:
        """Let this generation take the place of the one in use, and wait until that is durable."""
        _write(self._generation, str(self.generation).encode())
        self.sync()

    @property
    def name(self) -> str:
        """The name of the table; no namespace has a dot."""
        return f"{self.namespace}.{self.generation}" if self.generation else self.namespace

    @property
    def table(self) -> Path:
        """The folder of the table."""
        return self.folder / f"{self.name}{_TABLE_SUFFIX}"

    @property
    def lock(self) -> Path:
        """The file whose lock writers share; see locks.py."""
        return self.folder / f"{self.name}.lock"

    @property
    def readers(self) -> Path:
        """The file whose lock all share that have the table open; see locks.py."""
        return self.folder / f"{self.name}.readers"

    @property
    def refit(self) -> Path:
        """The file whose lock the one has that makes the next generation."""
        return self.folder / f"{self.namespace}.refit"

    @property
    def _generation(self) -> Path:
        return self.folder / f"{self.namespace}.generation"

    @property
    def facts_lock(self) -> Path:
        """The file whose lock is held while a small file beside the table is read and replaced."""
        return self.folder / f"{self.namespace}.facts.lock"

    @property
    def versions(self) -> Path:
        """The folder of the table's versions."""
        return self.table / "_versions"

    @property
    def data(self) -> Path:
        """The folder of the table's rows; a table that never had any has none."""
        return self.table / "data"

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots of the table; see snapshot.py."""
        return self.folder / f"{self.name}.snapshots"

    @property
    def snapshots_lock(self) -> Path:
        """The file whose lock the one has that writes a snapshot."""
        return self.folder / f"{self.name}.snapshots.lock"

    @property
    def _calibration(self) -> Path:
        return self.folder / f"{self.name}.calibration.json"

    @property
    def _sources(self) -> Path:
        return self.folder / f"{self.namespace}.sources.json"

    @property
    def _deletions(self) -> Path:
        return self.folder / f"{self.namespace}.deletions.jsonl"

    @property
    def _sample(self) -> Path:
        return self.folder / f"{self.name}.sample.npz"

    def _recipe(self, fingerprint: str) -> Path:
        return self.folder / f"recipe-{fingerprint}.npz"

    def namespaces(self) -> Iterator[Self]:
        """Those of the index that have a table, each in the generation in use."""
        tables = self.folder.glob(f"*{_TABLE_SUFFIX}")
        for namespace in sorted({path.name.partition(".")[0] for path in tables}):
            files = replace(self, namespace=namespace).in_use()
            if files.has_table():
                yield files

    def has_table(self) -> bool:
        """Whether it has a version; a creation that was cut off leaves a folder without any."""
        return any(self.versions.glob("*"))

    def remove_empty_versions(self) -> None:
        """A power failure can leave the newest version empty, and LanceDB then opens none."""
        for path in self.versions.glob("*.manifest"):
            if path.stat().st_size == 0:
                _log.warning("removing the empty version %s, left by a crash", path)
                path.unlink()

    def versions_before(self, seconds: float) -> int:
        """How many versions were written before a time, in seconds since the epoch."""
        return sum(path.stat().st_mtime < seconds for path in self.versions.glob("*.manifest"))

    def read_calibration(self) -> Calibration | None:
        """The calibration; None if there is none, or it is damaged, which is told in the log."""
        return _read(
            self._calibration,
            Calibration.model_validate_json,
            "matches have no confidence until the next ingest",
        )

    def write_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration."""
        _write(self._calibration, calibration.model_dump_json().encode())

    def remove_calibration(self) -> None:
        """Remove the calibration, if there is one."""
        self._calibration.unlink(missing_ok=True)

    def read_sample(self) -> ImageSample:
        """The sample; empty if there is none, or it is damaged, which is told in the log."""
        sample = _read(
            self._sample, ImageSample.from_bytes, "the sample starts again with the next images"
        )
        return sample or ImageSample()

    def write_sample(self, sample: ImageSample) -> None:
        """Replace the sample."""
        _write(self._sample, sample.to_bytes())

    def sample_version(self) -> str:
        """Another one for another sample; empty if there is none."""
        path = self._sample
        return str(path.stat().st_mtime_ns) if path.exists() else ""

    def remove_sample(self) -> None:
        """Remove the sample, if there is one."""
        self._sample.unlink(missing_ok=True)

    def remove_snapshots(self) -> None:
        """Remove the snapshots, if there are any; who has one mapped keeps it."""
        self.snapshots_lock.unlink(missing_ok=True)
        if self.snapshots.exists():
            shutil.rmtree(self.snapshots)

    def read_sources(self) -> dict[str, KnownSource]:
        """The sources by name; empty if the file is damaged, which is told in the log."""
        sources = _read(
            self._sources, _SOURCES.validate_json, "sources are known by their images in its place"
        )
        return sources or {}

    def write_sources(self, sources: Mapping[str, KnownSource]) -> None:
        """Replace what `read_sources` gives."""
        _write(self._sources, _SOURCES.dump_json(dict(sources)))

    def remove_sources(self) -> None:
        """Forget them."""
        self._sources.unlink(missing_ok=True)

    def read_deletions(self) -> dict[str, str]:
        """Digests of deleted images by id; a line that a crash has cut off is left out."""
        try:
            lines = self._deletions.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        found: dict[str, str] = {}
        for line in lines[-MOST_DELETIONS:]:
            with suppress(ValidationError):
                id_, digest = _DELETION.validate_json(line)
                found[id_] = digest
        return found

    def add_deletions(self, deletions: Mapping[str, str]) -> None:
        """Add to what `read_deletions` gives."""
        path = self._deletions
        if path.exists() and path.stat().st_size > _MOST_BYTES_OF_DELETIONS:
            self.write_deletions(self.read_deletions())
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # cut off by a crash
                    file.write(b"\n")
            file.writelines(map(_line_of, deletions.items()))
            file.flush()
            os.fsync(file.fileno())

    def write_deletions(self, deletions: Mapping[str, str]) -> None:
        """Replace what `read_deletions` gives."""
        _write(self._deletions, b"".join(map(_line_of, deletions.items())))

    def remove_deletions(self) -> None:
        """Forget them."""
        self._deletions.unlink(missing_ok=True)

    def read_recipe(self, fingerprint: str) -> Recipe:
        """The recipe; raises OSError if it is missing, ValueError if it is damaged."""
        return Recipe.from_bytes(self._recipe(fingerprint).read_bytes())

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe, under its fingerprint."""
        _write(self._recipe(recipe.fingerprint), recipe.to_bytes())

    def remove_recipe(self, fingerprint: str) -> None:
        """Remove the recipe, if there is one."""
        self._recipe(fingerprint).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of this generation; the table, which shows that it is there, comes last."""
        self.remove_calibration()
        self.remove_sample()
        self.remove_snapshots()
        self.lock.unlink(missing_ok=True)
        self.readers.unlink(missing_ok=True)
        if self.table.exists():
            shutil.rmtree(self.table)

    def sync(self) -> None:
        """Make what was committed safe against a power failure; LanceDB leaves it to the kernel."""
        if sys.platform != "linux":
            os.sync()
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            os.close(descriptor)


def _line_of(deletion: tuple[str, str]) -> bytes:
    return _DELETION.dump_json(deletion) + b"\n"


def _read(path: Path, parse: Callable[[bytes], T], without: str) -> T | None:
    """The content of a file that the index can do without; None if it is not there or damaged.

    `without` says, in the log, what follows if it is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return parse(content)
    except ValueError:
        _tell_damaged(path, zlib.crc32(content), without)
        return None


@functools.lru_cache(maxsize=16)
def _tell_damaged(path: Path, _checksum: int, without: str) -> None:
    """Once for each content, as the service reads files every second."""
    _log.warning("%s is damaged: %s", path, without)


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, and wait until it is safe against a power failure."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

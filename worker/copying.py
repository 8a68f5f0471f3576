"""Copying an index to another, or to a file and back, without embedding again."""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np

from image_search.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    IndexReplacedError,
    SettingsError,
    StoreError,
)
from image_search.index import Record, VectorIndex
from image_search.progress import Progress
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.values import MetadataValue, Store
from worker.backup import BackupFile, Facts

_log = logging.getLogger(__name__)

SUFFIX: Final = ".parquet"
_END: Final = re.compile(r"(?:(?P<store>[a-z]+):)?(?P<index>[^/:]+)(?:/(?P<namespace>[^/:]+))?")
_RECORDS_AT_ONCE: Final = 1024
# Pinecone's counts lag behind.
_SECONDS_FOR_COUNT: Final = 120.0
_SECONDS_BETWEEN_COUNTS: Final = 1.0
# What seven decimals, in which vectors travel to Pinecone, may differ by.
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Copied:
    """What a copy did: records that were written, and those that were there already."""

    written: int
    unchanged: int
    interrupted: bool = False


def parse_end(text: str) -> Settings | Path:
    """The index or the file that FROM or TO names; raises SettingsError.

    `[STORE:]INDEX[/NAMESPACE]`, or the path of a file that ends with .parquet.
    """
    if text.lower().endswith(SUFFIX):
        return Path(text)
    match = _END.fullmatch(text)
    if match is None or match["store"] not in {None, *get_args(Store)}:
        raise SettingsError(
            f"{text!r} names no index: write images, images/namespace, pinecone:images, "
            f"embedded:images, or the path of a file that ends with {SUFFIX}"
        )
    given = {name: value for name, value in match.groupdict().items() if value is not None}
    return load_settings(**{"namespace": "__default__", **given})


def copy(source: Settings | Path, target: Settings | Path, stop: threading.Event) -> Copied:
    """Copy all of `source` to `target`, and compare the two afterwards.

    Goes on where another copy stopped. Raises SettingsError where both are the same,
    IndexNotFoundError, IndexMismatchError where `target` was built with something else, or becomes
    that meanwhile, and StoreError where it holds other images, or is not the same in the end.
    """
    if _identity(source) == _identity(target):
        raise SettingsError("FROM and TO are the same")
    with ExitStack() as opened:
        reader = _reader(source, opened)
        if isinstance(target, Path):
            copied = _to_file(reader, BackupFile(target), stop)
        else:
            try:
                copied = _to_index(reader, target, opened, stop)
            except IndexReplacedError as exc:
                raise IndexMismatchError(
                    f"the index {target.index} was replaced meanwhile, as refit does, and has "
                    "another model than FROM now: copy to another index or namespace"
                ) from exc
        try:
            reader.check_in_use()
        except IndexReplacedError:
            _log.warning(
                "FROM was replaced meanwhile, as refit does: this is a copy of the former index"
            )
        return copied


def _identity(end: Settings | Path) -> object:
    if isinstance(end, Path):
        return end.resolve()
    return end.store, end.index, end.namespace


# --- reading --------------------------------------------------------------------------------------


class _IndexReader:
    """An index, read as a file is."""

    def __init__(self, index: VectorIndex) -> None:
        self._index = index

    def read_facts(self) -> Facts:
        index = self._index
        recipe = index.load_recipe()
        return Facts(
            manifest=index.manifest,
            calibration=index.calibration,
            recipe=recipe.to_bytes() if recipe else None,
            sample=index.load_sample().to_bytes(),
            sources=index.load_sources(),
            deletions=index.load_deletions(),
        )

    def check_in_use(self) -> None:
        self._index.check_in_use()

    def ids(self) -> list[str]:
        return sorted(self._index.ids())

    def batches(self) -> Iterator[list[Record]]:
        yield from self.batches_of(self.ids())

    def batches_of(self, ids: Sequence[str]) -> Iterator[list[Record]]:
        for part in _parts(ids):
            found = self._index.fetch(part)
            yield [found[id_] for id_ in part if id_ in found]


class _FileReader(BackupFile):
    """A file, of which some records may be asked for."""

    def check_in_use(self) -> None:
        """It stays as it was opened."""

    def batches_of(self, ids: Sequence[str]) -> Iterator[list[Record]]:
        wanted = set(ids)
        for batch in self.batches():
            if kept := [record for record in batch if record.id in wanted]:
                yield kept


_Reader = _IndexReader | _FileReader


def _reader(source: Settings | Path, opened: ExitStack) -> _Reader:
    if isinstance(source, Path):
        return _FileReader(source)
    return _IndexReader(opened.enter_context(open_index(source)))


# --- writing --------------------------------------------------------------------------------------


def _to_file(reader: _Reader, target: BackupFile, stop: threading.Event) -> Copied:
    facts, ids = reader.read_facts(), reader.ids()
    written = target.written_ids(facts.manifest)
    if written is None or written != ids[: len(written)]:
        _log.warning("FROM has changed since the copy was started: starting again")
        target.forget_parts()
        written = []
    with Progress("copying", len(ids), "images", done=len(written)) as progress:
        for batch in reader.batches_of(ids[len(written) :]):
            target.write_part(batch, facts.manifest)
            progress.update(len(batch))
            if stop.is_set():
                return Copied(0, 0, interrupted=True)
    target.finish(facts)
    _verify(reader, BackupFile(target.path).batches(), exact=True)
    return Copied(len(ids) - len(written), len(written))


def _to_index(
    reader: _Reader, settings: Settings, opened: ExitStack, stop: threading.Event
) -> Copied:
    facts, ids = reader.read_facts(), reader.ids()
    index = opened.enter_context(_target(facts, settings))
    others = set(index.ids()) - set(ids)
    if others:
        raise StoreError(
            f"the index {settings.index} holds {len(others):,} images that FROM does not have, "
            f"such as {min(others)}: copy to another index or namespace"
        )
    exact = settings.store != "pinecone"
    written = 0
    with Progress("copying", len(ids), "images") as progress:
        for batch in reader.batches_of(ids):
            there = index.fetch([record.id for record in batch])
            new = [one for one in batch if not _are_same(one, there.get(one.id), exact=exact)]
            index.upsert(new)
            written += len(new)
            progress.update(len(batch))
            if stop.is_set():
                return Copied(written, 0, interrupted=True)
    index.save_sample(facts.load_sample())
    for name, known in facts.sources.items():
        index.save_source(name, known)
    index.save_deletions(facts.deletions)
    if facts.calibration is not None:
        index.save_calibration(facts.calibration)
    index.flush()
    _verify(reader, _IndexReader(index).batches_of(ids), exact=exact)
    wait_until = time.monotonic() + _SECONDS_FOR_COUNT
    while (count := index.count()) != len(ids):
        if time.monotonic() > wait_until:
            raise StoreError(f"the copy has {count:,} images, and FROM {len(ids):,}: copy again")
        time.sleep(_SECONDS_BETWEEN_COUNTS)
    return Copied(written, len(ids) - written)


def _target(facts: Facts, settings: Settings) -> VectorIndex:
    """The index to copy to, made with the manifest of the other, under its own namespace."""
    manifest = facts.manifest.model_copy(update={"namespace": settings.namespace})
    try:
        index = open_index(settings)
    except IndexNotFoundError:
        return create_index(settings, manifest, facts.load_recipe())
    there = index.manifest
    if (there.model, there.metric) == (manifest.model, manifest.metric):
        return index
    index.close()
    raise IndexMismatchError(
        f"the index {settings.index} was built with {there.model} and the metric {there.metric}, "
        f"and FROM with {manifest.model} and {manifest.metric}: copy to another index or namespace"
    )


# --- comparing ------------------------------------------------------------------------------------


def _verify(reader: _Reader, copied: Iterator[list[Record]], *, exact: bool) -> None:
    """Compare record by record, in the order of ids; raises StoreError where one differs."""
    originals = (record for batch in reader.batches() for record in batch)
    copies = (record for batch in copied for record in batch)
    for original in originals:
        other = next(copies, None)
        if not _are_same(original, other, exact=exact):
            raise StoreError(
                f"the copy is not the same: it lacks or differs in {original.id}; if FROM is being "
                "changed, copy again"
            )
    if (other := next(copies, None)) is not None:
        raise StoreError(
            f"the copy has one more image, {other.id}: if FROM is being changed, copy again"
        )


def _are_same(one: Record, other: Record | None, *, exact: bool) -> bool:
    """Whether a record is the same as another, at Pinecone within what it keeps of it."""
    if other is None or (one.id, one.label) != (other.id, other.label):
        return False
    if not _same_metadata(one.metadata, other.metadata):
        return False
    if exact:
        return one.thumbnail == other.thumbnail and bool((one.embedding == other.embedding).all())
    # It may have had to make a thumbnail smaller.
    scale = float(np.abs(one.embedding).max())
    close = np.allclose(one.embedding, other.embedding, rtol=0, atol=_TOLERANCE * max(1.0, scale))
    return bool(one.thumbnail) == bool(other.thumbnail) and bool(close)


def _same_metadata(one: Mapping[str, MetadataValue], other: Mapping[str, MetadataValue]) -> bool:
    # Pinecone has no whole numbers: 2.0 for 2. True is no number.
    return one == other and all(
        isinstance(value, bool) == isinstance(other[name], bool) for name, value in one.items()
    )


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _RECORDS_AT_ONCE):
        yield ids[start : start + _RECORDS_AT_ONCE]

"""The rows of one version of the table in files that all processes map, and FAISS's index of them.

A row is known by its address in the table: what is there never changes, as updates and compaction
write rows anew elsewhere. So a snapshot is right for all rows whose addresses the table still has.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from image_search.stores.embedded.scores import Lengths, lengths_of
from image_search.stores.embedded.search_library import faiss
from image_search.stores.embedded.table import embeddings_of
from image_search.values import DIMENSION, Embeddings, Metric

Addresses = NDArray[np.int64]
# Positions of rows in a part of the index.
Positions = NDArray[np.intp]
Mask = NDArray[np.bool_]

# The second has the lengths of the vectors.
_FORMAT: Final = 2
COLUMNS: Final = ["id", "label", "metadata", "thumbnail"]
_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("thumbnail", pa.binary()),
    ]
)
_NO_FIELDS: Final = memoryview(b"{}")
_ROWS_OF_A_BATCH: Final = 2048
_ROWS_ADDED_AT_ONCE: Final = 16_384

# 4-bit codes of 256 parts of two numbers each, of what is left after the nearest of the partitions'
# centres.
_CODES: Final = "PQ256x4fsr"
_PARTITIONS_PER_ROOT: Final = 1.15
_TRAINING_ROWS_PER_PARTITION: Final = 64
_MIN_TRAINING_ROWS: Final = 4096
_ITERATIONS: Final = 10
# Each part has 16 codes of two numbers, which are found sooner.
_ITERATIONS_OF_CODES: Final = 5
# FAISS scans a partition for all queries at once. Query by query takes a fifth less, as long as the
# codes fit into the processor's cache: as much among 200,000 rows, a fifth more among 1,000,000.
_SCAN_BY_QUERY: Final = 11
_MOST_ROWS_SCANNED_BY_QUERY: Final = 100_000
# Code, number in FAISS, address and length.
BYTES_A_ROW: Final = 128 + 8 + 8 + 4


class DamagedSnapshotError(Exception):
    """The files of a snapshot are not whole, or of another table."""


class Cells:
    """A column of texts or bytes, each read at a few tenths of what Arrow's objects take."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, values = column.buffers()
        self._offsets = memoryview(offsets or b"").cast("i")[column.offset :]
        self._values = memoryview(values or b"")
        self._given = None
        if column.null_count:
            self._given = column.is_valid().to_numpy(zero_copy_only=False)

    def __getitem__(self, row: int) -> memoryview | None:
        if self._given is not None and not self._given[row]:
            return None
        return self._values[self._offsets[row] : self._offsets[row + 1]]


@dataclass(frozen=True)
class Rows:
    """What is shown of rows, by position: batches with `size` rows each, but for the last."""

    batches: Sequence[tuple[Cells, ...]]
    size: int

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """The rows of a table in memory."""
        return cls([tuple(Cells(_column(rows, name)) for name in COLUMNS)], max(1, len(rows)))

    def read(
        self, position: int, *, thumbnails: bool = False
    ) -> tuple[str, str | None, memoryview, bytes]:
        """Id, label, metadata in JSON and thumbnail; it is empty unless asked for."""
        batch, row = divmod(position, self.size)
        id_, label, metadata, thumbnail = self.batches[batch]
        name = label[row]
        return (
            str(id_[row] or b"", "utf-8"),
            None if name is None else str(name, "utf-8"),
            metadata[row] or _NO_FIELDS,
            bytes((thumbnail[row] if thumbnails else None) or b""),
        )


@dataclass(frozen=True)
class Snapshot:
    """All rows that a version of the table had, by position, and FAISS's index of them.

    `lengths` are those of the vectors.
    """

    version: int
    addresses: Addresses
    vectors: Embeddings
    lengths: Lengths
    rows: Rows
    codes: Any

    def __len__(self) -> int:
        return len(self.addresses)

    def one_of_each_fragment(self, alive: Mask) -> Positions:
        """A row of each of the table's fragments, whose number is in the address."""
        positions = np.flatnonzero(alive)
        fragments = self.addresses[positions] >> 32
        return positions[np.unique(fragments, return_index=True)[1]]


def are_among(addresses: Addresses, others: Addresses) -> Mask:
    """Which of the addresses are among others, which are in order."""
    if len(others) == 0:
        return np.zeros(len(addresses), np.bool_)
    places = np.minimum(np.searchsorted(others, addresses), len(others) - 1)
    return np.asarray(others[places] == addresses)


def normalised(vectors: Embeddings, metric: Metric) -> Embeddings:
    """What FAISS compares: for cosine, all have length 1."""
    if metric != "cosine":
        return np.ascontiguousarray(vectors)
    return np.asarray(vectors / lengths_of(vectors)[:, np.newaxis], np.float32)


def flat_index(vectors: Embeddings, metric: Metric) -> Any:
    """FAISS's index that compares all vectors."""
    index = faiss.IndexFlat(DIMENSION, _faiss_metric(metric))
    index.add(normalised(vectors, metric))
    return index


def versions_in(folder: Path) -> list[int]:
    """The versions that there are snapshots of, newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def open_snapshot(folder: Path, version: int, identity: bytes) -> Snapshot:
    """Map the files of a snapshot of the table whose manifest is `identity`.

    Raises DamagedSnapshotError, and OSError where it was removed meanwhile.
    """
    place = folder / str(version)
    try:
        facts = json.loads((place / "facts.json").read_bytes())
        if facts["format"] != _FORMAT or facts["table"] != _digest(identity):
            raise DamagedSnapshotError("it is of another table or version")
        for name, size in facts["sizes"].items():
            if (place / name).stat().st_size != size:
                raise DamagedSnapshotError(f"{name} is not whole")
        for name, checksum in facts["checksums"].items():
            if zlib.crc32((place / name).read_bytes()) != checksum:
                raise DamagedSnapshotError(f"{name} is damaged")
        addresses = np.load(place / "addresses.npy")
        vectors = np.load(place / "vectors.npy", mmap_mode="r")
        lengths = np.load(place / "lengths.npy")
        codes = faiss.read_index(str(place / "codes.faiss"))
        if codes.ntotal <= _MOST_ROWS_SCANNED_BY_QUERY:
            codes.implem = _SCAN_BY_QUERY
        with pa.memory_map(str(place / "rows.arrow")) as file:
            reader = pa.ipc.open_file(file)
            batches = [
                tuple(map(Cells, reader.get_batch(number).columns))
                for number in range(reader.num_record_batches)
            ]
    except (ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException) as exc:
        raise DamagedSnapshotError(f"it cannot be read: {exc}") from exc
    rows = Rows(batches, _ROWS_OF_A_BATCH)
    return Snapshot(version, addresses, np.asarray(vectors), lengths, rows, codes)


def write_snapshot(
    table: Any,
    folder: Path,
    identity: bytes,
    metric: Metric,
    former: Snapshot | None,
    sync: Callable[[], None],
    go_on: Callable[[], bool],
) -> bool:
    """Write the rows of a table, which stays at its version, in place of what is in the folder.

    Only one process may do it at a time. The partitions and codes of `former` are used again where
    it has half as many rows or more. `sync` makes files durable. Returns False where `go_on` did
    and nothing was written. Raises OSError.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not path.name.isdecimal():  # left by a process that was killed
            shutil.rmtree(path)
    version = int(table.version)
    place = folder / f"{version}.tmp"
    place.mkdir()
    try:
        if not _write_files(table, place, identity, metric, former, go_on):
            return False
        sync()
        target = folder / str(version)
        if target.exists():  # damaged
            shutil.rmtree(target)
        place.rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for other in versions_in(folder):
        if other != version:
            shutil.rmtree(folder / str(other))
    return True


def _write_files(
    table: Any,
    place: Path,
    identity: bytes,
    metric: Metric,
    former: Snapshot | None,
    go_on: Callable[[], bool],
) -> bool:
    count = table.count_rows()
    addresses = np.empty(count, np.int64)
    lengths = np.empty(count, np.float32)
    written = 0
    # Written, not mapped: on a full disk, the system ends who writes to a map.
    with (
        (place / "vectors.npy").open("wb") as vectors_file,
        pa.OSFile(str(place / "rows.arrow"), "wb") as rows_file,
        pa.ipc.new_file(rows_file, _SCHEMA) as rows,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, DIMENSION)}
        np.lib.format.write_array_header_1_0(vectors_file, header)
        for batch in _in_batches(table):
            if not go_on():
                return False
            addresses[written : written + len(batch)] = batch["_rowid"].to_numpy()
            embeddings = embeddings_of(batch)
            lengths[written : written + len(batch)] = lengths_of(embeddings)
            vectors_file.write(embeddings.tobytes())
            columns = [_column(batch, name) for name in COLUMNS]
            rows.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            written += len(batch)
    if written != count:
        raise OSError("the table does not have all of its rows")
    vectors = np.load(place / "vectors.npy", mmap_mode="r")
    # Several threads wait actively for each other: where others need the cores, too, two took 25
    # times as long to train as one.
    faiss.omp_set_num_threads(1)
    if former is not None and 2 * len(former) >= count:
        codes = faiss.clone_index(former.codes)
        codes.reset()
    else:
        codes = _untrained(count, metric)
        size = max(_MIN_TRAINING_ROWS, _TRAINING_ROWS_PER_PARTITION * codes.nlist)
        chosen = np.random.default_rng(0).choice(count, min(size, count), replace=False)
        codes.train(normalised(vectors[np.sort(chosen)], metric))
    for start in range(0, count, _ROWS_ADDED_AT_ONCE):
        if not go_on():
            return False
        codes.add(normalised(vectors[start : start + _ROWS_ADDED_AT_ONCE], metric))
    faiss.write_index(codes, str(place / "codes.faiss"))
    np.save(place / "addresses.npy", addresses)
    np.save(place / "lengths.npy", lengths)
    facts = {
        "format": _FORMAT,
        "table": _digest(identity),
        "sizes": {path.name: path.stat().st_size for path in place.iterdir()},
        "checksums": {
            name: zlib.crc32((place / name).read_bytes())
            for name in ("addresses.npy", "codes.faiss", "lengths.npy")
        },
    }
    (place / "facts.json").write_text(json.dumps(facts))
    return True


def _in_batches(table: Any) -> Iterator[pa.Table]:
    """All rows in batches of one size, but for the last."""
    query = table.search().with_row_id(with_row_id=True).select([*COLUMNS, "embedding", "_rowid"])
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in query.limit(None).to_batches():
        waiting.append(batch)
        rows += len(batch)
        if rows >= _ROWS_OF_A_BATCH:
            joined = pa.Table.from_batches(waiting)
            whole = rows - rows % _ROWS_OF_A_BATCH
            for start in range(0, whole, _ROWS_OF_A_BATCH):
                yield joined.slice(start, _ROWS_OF_A_BATCH)
            waiting = joined.slice(whole).to_batches()
            rows -= whole
    if rows:
        yield pa.Table.from_batches(waiting)


def _untrained(count: int, metric: Metric) -> Any:
    partitions = max(1, round(_PARTITIONS_PER_ROOT * math.sqrt(count)))
    codes = faiss.index_factory(DIMENSION, f"IVF{partitions},{_CODES}", _faiss_metric(metric))
    codes.cp.niter, codes.pq.cp.niter = _ITERATIONS, _ITERATIONS_OF_CODES
    codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1
    return codes


def _faiss_metric(metric: Metric) -> Any:
    return faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT


def _column(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name].combine_chunks()
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _digest(identity: bytes) -> str:
    return hashlib.sha256(identity).hexdigest()

"""The embedded store: LanceDB tables in a folder, one table a namespace.

Any number of processes may read and write the folder at once. The manifest is part of the table's
schema, so it is there from the first moment on.
"""

import ctypes
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import Bitmap, BTree, IvfSq
from lancedb.query import ColumnOrdering
from numpy.typing import NDArray
from pydantic import ValidationError

from image_search.calibration import Calibration
from image_search.errors import IndexMismatchError, IndexNotFoundError, StoreError
from image_search.filters import Condition, Filter, Group
from image_search.index import IdPage, Match, Record, best_first, check_query, check_records
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.values import DIMENSION, LABEL_FIELD, Embeddings, Metric, Scalar

_log = logging.getLogger(__name__)

_MANIFEST_KEY: Final = b"image-search-manifest"
# Without a primary key in the schema, two processes that insert one id make two rows.
_PRIMARY_KEY: Final = {b"lance-schema:unenforced-primary-key:position": b"1"}
_FIELDS: Final = [
    pa.field("id", pa.string(), nullable=False, metadata=_PRIMARY_KEY),
    pa.field("embedding", pa.list_(pa.float32(), DIMENSION), nullable=False),
    pa.field("label", pa.string()),
    pa.field("metadata", pa.json_()),
    pa.field("thumbnail", pa.binary()),
]
_BY_ID: Final = ColumnOrdering(column_name="id")
_DISTANCE: Final[dict[Metric, str]] = {"cosine": "cosine", "euclidean": "l2", "dotproduct": "dot"}

# LanceDB's default caches take up to 7 GiB. The vector index of 500,000 rows fits into this one; a
# query of 1,000,000 takes 1.5 times as long as if all of it did, and with 64 MiB 2.7 times.
_INDEX_CACHE_BYTES: Final = 256 << 20
_METADATA_CACHE_BYTES: Final = 16 << 20
_COMMITS_BETWEEN_COMPACTIONS: Final = 25
# Readers fail when the version that they read is deleted; no query takes this long.
_KEEP_VERSIONS: Final = timedelta(minutes=10)

# Below this many rows a scan of them all is as fast as an index, and exact.
_ROWS_FOR_VECTOR_INDEX: Final = 10_000
_VECTOR_INDEX: Final = "embedding_"
# Measured on 50,000 CIFAR-10 embeddings: recall@10 and recall@100 of 0.99 and more; and with
# 1,000,000, copies that have noise, recall@10 of 0.98 and more, 0.98 among the images of one class
# of ten, too. By dot product, partitions tell less of what is in them.
_PROBES: Final[dict[Metric, int]] = {"cosine": 40, "euclidean": 40, "dotproduct": 64}
_PROBES_WITH_FILTER: Final = 160
_MAX_TOP_K_OF_PROBES: Final = 100
_ALL: Final = 0
# So many of the nearest by 8-bit codes are compared exactly.
_CANDIDATES_PER_MATCH: Final = 1.5
# Half the time of LanceDB's defaults, at the same recall on those embeddings.
_KMEANS_ITERATIONS: Final = 10
_KMEANS_SAMPLES: Final = 64


def open_index(settings: Settings) -> "EmbeddedIndex":
    """Open the index; raises IndexNotFoundError when there is none, StoreError if it is broken."""
    folder = _folder(settings)
    table_folder = folder / f"{settings.namespace}.lance"
    missing = IndexNotFoundError(
        f"there is no index {settings.index!r} with namespace {settings.namespace!r} in "
        f"{settings.data_dir} yet: ingest images first, python -m worker ingest SOURCE"
    )
    with _errors_of_the_store(folder):
        if not _is_complete(table_folder):
            raise missing
        _remove_empty_versions(table_folder)
        return EmbeddedIndex(_connect(folder).open_table(settings.namespace), table_folder)


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> "EmbeddedIndex":
    """Create the index, or open the one that another process created in the meantime.

    Raises IndexMismatchError when its other namespaces have another metric.
    """
    with suppress(IndexNotFoundError):
        return open_index(settings)
    folder = _folder(settings)
    schema = pa.schema(_FIELDS, metadata={_MANIFEST_KEY: manifest.model_dump_json()})
    with _errors_of_the_store(folder):
        folder.mkdir(parents=True, exist_ok=True)
        connection = _connect(folder)
        for other in folder.glob("*.lance"):
            if _is_complete(other):
                sibling = EmbeddedIndex(connection.open_table(other.stem), other)
                sibling.manifest.require_metric(manifest.metric)
        if recipe is not None:
            # Before the table, so that no manifest is seen without its recipe.
            _write(_recipe_file(folder, recipe.fingerprint), recipe.to_bytes())
        try:
            table = connection.create_table(settings.namespace, schema=schema)
        except ValueError as exc:
            if "already exists" not in str(exc):
                raise
            table = connection.open_table(settings.namespace)
        else:
            # What an index of this name that was removed has left.
            _calibration_file(Path(f"{folder / settings.namespace}.lance")).unlink(missing_ok=True)
        index = EmbeddedIndex(table, folder / f"{settings.namespace}.lance")
        index.sync()
        return index


class EmbeddedIndex:
    """VectorIndex over one LanceDB table."""

    def __init__(self, table: Any, folder: Path) -> None:
        self._table = table
        self._folder = folder
        self._commits = 0
        try:
            self._manifest_json = table.schema.metadata[_MANIFEST_KEY]
            self._manifest = Manifest.model_validate_json(self._manifest_json)
        except (KeyError, TypeError, ValidationError) as exc:
            raise IndexMismatchError(
                f"{folder} holds a table without a manifest that this version reads: "
                "it was made by another program or version; use another IMAGE_SEARCH_DATA_DIR"
            ) from exc
        with _errors_of_the_store(folder):
            self._calibration = _read_calibration(folder)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def calibration(self) -> Calibration | None:
        return self._calibration

    def save_calibration(self, calibration: Calibration) -> None:
        with _errors_of_the_store(self._folder):
            _write(_calibration_file(self._folder), calibration.model_dump_json().encode())
        self._calibration = calibration

    def load_recipe(self) -> Recipe | None:
        fingerprint = self._manifest.model.recipe_fingerprint
        if not fingerprint:
            return None
        path = _recipe_file(self._folder.parent, fingerprint)
        with _errors_of_the_store(self._folder):
            return Recipe.from_bytes(path.read_bytes())

    @property
    def retries(self) -> int:
        return 0

    def upsert(self, records: Sequence[Record]) -> None:
        check_records(records)
        # LanceDB would insert both of two rows with the same id.
        unique = list({record.id: record for record in records}.values())
        if not unique:
            return
        rows = pa.table(
            [
                [record.id for record in unique],
                pa.FixedSizeListArray.from_arrays(
                    np.concatenate([record.embedding for record in unique]), DIMENSION
                ),
                pa.array([record.label for record in unique], pa.string()),
                pa.array([json.dumps(dict(record.metadata)) for record in unique], pa.json_()),
                pa.array([record.thumbnail for record in unique], pa.binary()),
            ],
            schema=pa.schema(_FIELDS),
        )
        with _errors_of_the_store(self._folder):
            self._check_not_replaced()
            (
                self._table.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute(rows)
            )
            self.sync()
            self._commits += 1
            if self._commits % _COMMITS_BETWEEN_COMPACTIONS == 0:
                self._compact()
                with _put_off_by_conflict("indexing"):
                    self._build_vector_index(growth=4)

    def query(
        self,
        embedding: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[Match]:
        [matches] = self.query_many(embedding[np.newaxis], top_k, filter)
        return matches

    def query_many(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[list[Match]]:
        for embedding in embeddings:
            check_query(embedding, top_k)
        matches: list[list[Match]] = [[] for _ in embeddings]
        if top_k == 0 or not matches:
            return matches
        probes = _PROBES_WITH_FILTER if filter else _PROBES[self._manifest.metric]
        with _errors_of_the_store(self._folder):
            if top_k <= _MAX_TOP_K_OF_PROBES:
                matches = self._search(embeddings, top_k, filter, (probes, probes))
            # Too few where the filter or deletions left little near the query: go on probing.
            short = [number for number, found in enumerate(matches) if len(found) < top_k]
            if short:
                again = self._search(embeddings[short], top_k, filter, (probes, _ALL))
                for number, found in zip(short, again, strict=True):
                    matches[number] = found
            self._check_not_replaced()
        return matches

    def _search(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter_: Filter | None,
        probes: tuple[int, int],
    ) -> list[list[Match]]:
        """Scan the first number of partitions, and until there are enough the second number."""
        # Where the two differ, LanceDB mostly scans all partitions at once. Where they do not, and
        # comparing exactly is left to us, it scans each partition once for all queries.
        metric = self._manifest.metric
        search = (
            self._table.search(
                list(embeddings) if len(embeddings) > 1 else embeddings[0],
                vector_column_name="embedding",
            )
            .distance_type(_DISTANCE[metric])
            .minimum_nprobes(probes[0])
            .maximum_nprobes(probes[1])
            .select(["id", "label", "metadata", "thumbnail", "embedding", "_distance"])
            .limit(math.ceil(_CANDIDATES_PER_MATCH * top_k))
        )
        if filter_ is not None:
            search = search.where(_sql(filter_))
        rows = search.to_arrow()
        # LanceDB numbers the queries only where there are several.
        several = "query_index" in rows.column_names
        numbers = rows["query_index"].to_numpy() if several else np.zeros(len(rows), np.int32)
        scores = _scores(metric, embeddings[numbers], _embeddings(rows))
        columns = (rows[name].to_pylist() for name in ("id", "label", "metadata", "thumbnail"))
        matches: list[list[Match]] = [[] for _ in embeddings]
        for number, score, id_, label, metadata, thumbnail in zip(
            numbers.tolist(), scores.tolist(), *columns, strict=True
        ):
            match = Match(id_, score, label, json.loads(metadata), thumbnail)
            matches[number].append(match)
        return [best_first(found, metric)[:top_k] for found in matches]

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        with _errors_of_the_store(self._folder):
            rows = self._table.search().where(_ids_sql(ids)).limit(len(ids)).to_arrow()
        return {
            row["id"]: Record(
                id=row["id"],
                embedding=embedding,
                label=row["label"],
                metadata=json.loads(row["metadata"]),
                thumbnail=row["thumbnail"],
            )
            for row, embedding in zip(
                rows.drop_columns("embedding").to_pylist(), _embeddings(rows), strict=True
            )
        }

    def delete(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        with _errors_of_the_store(self._folder):
            self._table.delete(_ids_sql(ids))
            self.sync()

    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        # Ids are printable ASCII, so the next character after all of them bounds the prefix.
        where = (
            f"id > {_literal(cursor)} AND id >= {_literal(prefix)} "
            f"AND id < {_literal(prefix + chr(0x7F))}"
        )
        query = self._table.search().where(where).select(["id"]).order_by([_BY_ID])
        with _errors_of_the_store(self._folder):
            ids = query.limit(limit + 1).to_arrow()["id"].to_pylist()
        return IdPage(ids[:limit], ids[limit - 1] if len(ids) > limit else "")

    def labels(self) -> dict[str, int | None]:
        with _errors_of_the_store(self._folder):
            rows = self._table.search().select(["label"]).limit(None).to_arrow()
        counts = {
            pair["values"]: pair["counts"] for pair in rows["label"].value_counts().to_pylist()
        }
        counts.pop(None, None)
        return dict(sorted(counts.items()))

    def count(self) -> int:
        with _errors_of_the_store(self._folder):
            return int(self._table.count_rows())

    def flush(self) -> None:
        with _errors_of_the_store(self._folder):
            if self._commits:
                self._compact()
            # Compaction joins the index's partitions, until a query scans all: build it again then.
            with _put_off_by_conflict("indexing"):
                self._build_vector_index(growth=1 if self._commits else 2)
            self.sync()
        self._commits = 0

    def close(self) -> None:
        del self._table

    def sync(self) -> None:
        """Make what was committed safe against a power failure; LanceDB leaves it to the kernel."""
        if sys.platform != "linux":
            os.sync()
            return
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            os.close(descriptor)

    def _check_not_replaced(self) -> None:
        """An open table goes on with another one that takes its place, and maybe its model's."""
        if self._table.schema.metadata.get(_MANIFEST_KEY) != self._manifest_json:
            raise StoreError(f"the index in {self._folder} was replaced by another: open it again")

    def _compact(self) -> None:
        with _put_off_by_conflict("compaction"):
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def _build_vector_index(self, growth: int) -> None:
        """Build it for the first time, or again if the rows are `growth` times those then."""
        rows = self._table.count_rows()
        if rows < _ROWS_FOR_VECTOR_INDEX:
            return
        names = {index.columns[0]: index.name for index in self._table.list_indices()}
        if "id" not in names:
            self._table.create_index("id", config=BTree())
            self._table.create_index("label", config=Bitmap())
        old = names.get("embedding")
        # Compaction adds new rows to the index, so its name keeps how many it was made for.
        if old is None or rows >= growth * int(old.removeprefix(_VECTOR_INDEX)):
            config = IvfSq(
                distance_type=_DISTANCE[self._manifest.metric],
                # 100 of 50,000 rows, 600 of 1,000,000: so the probes scan little, and the index is
                # built in seconds.
                num_partitions=round(rows**0.6 / 6.6),
                max_iterations=_KMEANS_ITERATIONS,
                sample_rate=_KMEANS_SAMPLES,
            )
            new = f"{_VECTOR_INDEX}{rows}"
            self._table.create_index("embedding", config=config, name=new)
            if old not in {None, new}:
                self._table.drop_index(old)


@contextmanager
def _put_off_by_conflict(what: str) -> Iterator[None]:
    """Another process has done the same in the meantime, or committed: the next time will do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as exc:
        if "conflict" not in str(exc).lower():
            raise
        _log.debug("%s was put off: %s", what, exc)


def _embeddings(rows: pa.Table) -> Embeddings:
    flat = rows["embedding"].combine_chunks().flatten().to_numpy()
    return np.asarray(flat.reshape(-1, DIMENSION), np.float32)


def _scores(metric: Metric, queries: Embeddings, rows: Embeddings) -> NDArray[np.float32]:
    """The score of each row for the query beside it; the same wherever a row stands."""
    if metric == "euclidean":
        differences = queries - rows
        return _products(differences, differences)
    products = _products(queries, rows)
    if metric == "dotproduct":
        return products
    for vectors in (queries, rows):
        products /= np.sqrt(_products(vectors, vectors))
    return products


def _products(left: Embeddings, right: Embeddings) -> NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", left, right), np.float32)


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "indexes" / settings.index


def _calibration_file(table_folder: Path) -> Path:
    return table_folder.with_suffix(".calibration.json")


def _read_calibration(table_folder: Path) -> Calibration | None:
    path = _calibration_file(table_folder)
    return Calibration.model_validate_json(path.read_bytes()) if path.exists() else None


def _recipe_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"recipe-{fingerprint}.npz"


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, and wait until it is safe against a power failure."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _connect(folder: Path) -> Any:
    session = lancedb.Session(
        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
    )
    return lancedb.connect(folder, read_consistency_interval=timedelta(0), session=session)


def _is_complete(table_folder: Path) -> bool:
    """Whether it has a version; a creation that was cut off leaves a folder without any."""
    return any((table_folder / "_versions").glob("*"))


def _remove_empty_versions(table_folder: Path) -> None:
    """A power failure can leave the newest version empty, and LanceDB then opens none."""
    for path in (table_folder / "_versions").glob("*.manifest"):
        if path.stat().st_size == 0:
            _log.warning("removing the empty version %s, left by a crash", path)
            path.unlink()


@contextmanager
def _errors_of_the_store(folder: Path) -> Iterator[None]:
    try:
        yield
    # LanceDB raises its Rust errors as these three, and has no types of its own.
    except (OSError, RuntimeError, ValueError) as exc:
        text = str(exc).lower()
        if "no space left" in text or "file too large" in text:
            reason = "the disk is full: make room and start again; what was acknowledged is safe"
        elif "read-only" in text or "permission denied" in text:
            reason = "the folder cannot be written: check its permissions, or set another folder"
        else:
            reason = str(exc).splitlines()[0]
        raise StoreError(f"the index in {folder} failed: {reason}") from exc


def _sql(filter_: Filter) -> str:
    """The filter in the SQL of LanceDB."""
    if isinstance(filter_, Group):
        joint = " AND " if filter_.operator == "$and" else " OR "
        return "(" + joint.join(_sql(part) for part in filter_.filters) + ")"
    return _condition_sql(filter_)


def _condition_sql(condition: Condition) -> str:
    field, operand = condition.field, condition.operand
    values = operand if isinstance(operand, tuple) else (operand,)
    match condition.operator:
        case "$eq" | "$in":
            return _any_equal_sql(field, values)
        case "$ne" | "$nin":
            return f"({_any_equal_sql(field, values)}) IS NOT TRUE"
        case "$exists":
            exists = "label IS NOT NULL" if field == LABEL_FIELD else f"{_json(field)} IS NOT NULL"
            return exists if operand else f"({exists}) IS NOT TRUE"
        case "$gt":
            symbol = ">"
        case "$gte":
            symbol = ">="
        case "$lt":
            symbol = "<"
        case "$lte":
            symbol = "<="
    # A label is a string, and no string is more or less than a number.
    return "false" if field == LABEL_FIELD else f"{_number(field)} {symbol} {operand!r}"


def _any_equal_sql(field: str, values: Sequence[Scalar]) -> str:
    strings = [value for value in values if isinstance(value, str)]
    booleans = [value for value in values if isinstance(value, bool)]
    numbers = [value for value in values if not isinstance(value, str | bool)]
    if field == LABEL_FIELD:
        return f"label IN ({', '.join(map(_literal, strings))})" if strings else "false"
    parts = [f"json_array_contains(metadata, {_path(field)}, {_literal(s)})" for s in strings]
    texts = [json.dumps(value, ensure_ascii=False) for value in [*strings, *booleans]]
    if texts:
        parts.append(f"{_json(field)} IN ({', '.join(map(_literal, texts))})")
    if numbers:
        parts.append(f"{_number(field)} IN ({', '.join(repr(float(n)) for n in numbers)})")
    return "(" + " OR ".join(parts) + ")"


def _json(field: str) -> str:
    """SQL for the JSON text of a field: strings in quotes; NULL when there is no such field."""
    return f"json_extract(metadata, {_path(field)})"


def _number(field: str) -> str:
    """SQL for a field's number; NULL for anything else, whose JSON text is no number."""
    return f"TRY_CAST({_json(field)} AS DOUBLE)"


def _path(field: str) -> str:
    return _literal(f"$[{json.dumps(field, ensure_ascii=False)}]")


def _ids_sql(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(map(_literal, ids))})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

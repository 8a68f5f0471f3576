"""The table: its schema, which holds the manifest, and its rows."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from image_search.errors import IndexMismatchError
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.stores.embedded.files import IndexFiles
from image_search.stores.embedded.lance import lancedb
from image_search.stores.embedded.sql import WORDS
from image_search.values import DIMENSION, Embeddings, Metric
from image_search.words import searchable

_MANIFEST_KEY: Final = b"image-search-manifest"
# Without a primary key in the schema, two processes that insert one id make two rows.
_PRIMARY_KEY: Final = {b"lance-schema:unenforced-primary-key:position": b"1"}
WORDS_FIELD: Final = pa.field(WORDS, pa.string())
_FIELDS: Final = [
    pa.field("id", pa.string(), nullable=False, metadata=_PRIMARY_KEY),
    pa.field("embedding", pa.list_(pa.float32(), DIMENSION), nullable=False),
    pa.field("label", pa.string()),
    pa.field("metadata", pa.json_()),
    pa.field("thumbnail", pa.binary()),
    WORDS_FIELD,
]

# LanceDB's names of the metrics.
DISTANCE: Final[dict[Metric, str]] = {"cosine": "cosine", "euclidean": "l2", "dotproduct": "dot"}

# LanceDB's default caches take up to 7 GiB. The vector index of 500,000 rows fits into this one; a
# query of 1,000,000 takes 1.5 times as long as if all of it did, and with 64 MiB 2.7 times.
_INDEX_CACHE_BYTES: Final = 256 << 20
_METADATA_CACHE_BYTES: Final = 16 << 20


def connect(files: IndexFiles) -> Any:
    """LanceDB's connection to the folder of tables, where every read sees the newest version."""
    session = lancedb.Session(
        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
    )
    return lancedb.connect(
        files.uri,
        read_consistency_interval=timedelta(0),
        session=session,
        storage_options=files.options,
    )


def schema(manifest: Manifest) -> pa.Schema:
    """The schema of a new table."""
    return pa.schema(_FIELDS, metadata={_MANIFEST_KEY: manifest.model_dump_json()})


def manifest_json(table: Any) -> bytes | None:
    """The manifest as it was written, or None if there is none."""
    json_: bytes | None = (table.schema.metadata or {}).get(_MANIFEST_KEY)
    return json_


def parse_manifest(manifest_json: bytes | None, files: IndexFiles) -> Manifest:
    """The manifest; raises IndexMismatchError if this version cannot read it, or there is none."""
    try:
        return Manifest.model_validate_json(manifest_json or b"")
    except ValidationError as exc:
        raise IndexMismatchError(
            "the index has no manifest that this version reads: it was made by another program "
            "or version; use another IMAGE_SEARCH_DATA_DIR",
            details=files.address,
        ) from exc


def rows_of(records: Sequence[Record]) -> pa.Table:
    """The records as rows, with all columns."""
    return pa.table(
        [
            [record.id for record in records],
            pa.FixedSizeListArray.from_arrays(
                np.concatenate([record.embedding for record in records]), DIMENSION
            ),
            pa.array([record.label for record in records], pa.string()),
            pa.array([json.dumps(dict(record.metadata)) for record in records], pa.json_()),
            pa.array([record.thumbnail for record in records], pa.binary()),
            pa.array(
                [searchable(record.id, record.label, record.metadata) for record in records],
                pa.string(),
            ),
        ],
        schema=pa.schema(_FIELDS),
    )


def words_of(rows: pa.Table) -> pa.Table:
    """Ids and the words of rows that have no words."""
    columns = (rows[name].to_pylist() for name in ("id", "label", "metadata"))
    words = [
        searchable(id_, label, json.loads(metadata))
        for id_, label, metadata in zip(*columns, strict=True)
    ]
    return pa.table([rows["id"], words], schema=pa.schema([_FIELDS[0], WORDS_FIELD]))


def records_of(rows: pa.Table) -> list[Record]:
    """The records of rows with all columns, or all but the thumbnail."""
    columns = (rows[name].to_pylist() for name in ("id", "label", "metadata"))
    return [
        Record(id_, embedding, label, json.loads(metadata), thumbnail)
        for embedding, id_, label, metadata, thumbnail in zip(
            embeddings_of(rows), *columns, thumbnails_of(rows), strict=True
        )
    ]


def thumbnails_of(rows: pa.Table) -> list[bytes]:
    """The thumbnails of rows; empty where the column was not read."""
    if "thumbnail" not in rows.column_names:
        return [b""] * len(rows)
    thumbnails: list[bytes] = rows["thumbnail"].to_pylist()
    return thumbnails


def columns(*, thumbnails: bool) -> list[str]:
    """What is read of a record."""
    return ["id", "label", "metadata", "embedding", *(["thumbnail"] if thumbnails else [])]


def embeddings_of(rows: pa.Table) -> Embeddings:
    """float32 [n, 512] of rows."""
    flat = rows["embedding"].combine_chunks().flatten().to_numpy()
    return np.asarray(flat.reshape(-1, DIMENSION), np.float32)

"""An index as one parquet file: its records in the order of their ids, and all that is beside them.

While it is written, it consists of parts in a folder of its own, so that a copy goes on where
another stopped.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from image_search.calibration import Calibration
from image_search.errors import IndexNotFoundError, SettingsError, StoreError
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.values import DIMENSION

_KEY: Final = b"image-search"
_CHECKSUM: Final = b"image-search-sha256"
# In a part: what the index that it is of was built with.
_MANIFEST: Final = b"image-search-manifest"
_ROWS_AT_ONCE: Final = 1024
_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), DIMENSION), nullable=False),
        pa.field("label", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("thumbnail", pa.binary(), nullable=False),
    ]
)


class Facts(BaseModel):
    """What is known of an index besides its records. `recipe` and `sample` are .npz files."""

    model_config = ConfigDict(frozen=True)

    manifest: Manifest
    calibration: Calibration | None
    recipe: bytes | None
    sample: bytes
    sources: dict[str, KnownSource]
    deletions: dict[str, str]

    def as_json(self) -> bytes:
        """For `of_json`; bytes are base64."""
        values = self.model_dump(mode="json", exclude={"recipe", "sample"})
        values["recipe"] = base64.b64encode(self.recipe).decode() if self.recipe else None
        values["sample"] = base64.b64encode(self.sample).decode()
        return json.dumps(values).encode()

    @classmethod
    def of_json(cls, content: bytes) -> Self:
        """Raises ValueError for what `as_json` has not made."""
        values = json.loads(content)
        values["recipe"] = base64.b64decode(values["recipe"]) if values["recipe"] else None
        values["sample"] = base64.b64decode(values["sample"])
        return cls.model_validate(values)

    def load_recipe(self) -> Recipe | None:
        """What the embeddings were made with; None for plain ones."""
        return Recipe.from_bytes(self.recipe) if self.recipe else None

    def load_sample(self) -> ImageSample:
        """The sample of the index's images."""
        return ImageSample.from_bytes(self.sample)


class BackupFile:
    """Such a file; `path` ends with .parquet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = path.with_name(f"{path.name}.parts")

    def read_facts(self) -> Facts:
        """Raises IndexNotFoundError, or SettingsError or StoreError for what is no such file."""
        if not self.path.exists():
            raise IndexNotFoundError(f"there is no file {self.path}")
        with _errors(self.path), self._open() as file:
            content = (file.schema_arrow.metadata or {}).get(_KEY)
            checksum = (file.schema_arrow.metadata or {}).get(_CHECKSUM)
        if content is None:
            raise SettingsError(
                f"{self.path} is not a copy of an index; images in parquet files are for ingest"
            )
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            raise StoreError(f"{self.path} is damaged: its checksum does not match")
        try:
            return Facts.of_json(content)
        except (ValidationError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(f"{self.path} was made by another version, or is damaged") from exc

    def count(self) -> int:
        """How many records it has."""
        with _errors(self.path), self._open() as file:
            return int(file.metadata.num_rows)

    def ids(self) -> list[str]:
        """All ids, in order."""
        with _errors(self.path), self._open() as file:
            ids: list[str] = file.read(columns=["id"])["id"].to_pylist()
        return ids

    def batches(self) -> Iterator[list[Record]]:
        """All records, in the order of their ids."""
        with _errors(self.path), self._open() as file:
            for rows in file.iter_batches(_ROWS_AT_ONCE):
                yield _records_of(rows)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, page_checksum_verification=True)

    # --- writing ---

    def written_ids(self, manifest: Manifest) -> list[str] | None:
        """The ids that an earlier run has written, in order; it goes on after them.

        None where they are of an index with another manifest.
        """
        ids: list[str] = []
        with _errors(self._parts):
            for part in self._written():
                table = pq.read_table(part, columns=["id"])
                if table.schema.metadata != {_MANIFEST: _as_bytes(manifest)}:
                    return None
                ids += table["id"].to_pylist()
        return ids

    def write_part(self, records: Sequence[Record], manifest: Manifest) -> None:
        """Add records whose ids follow those that were written, of the same index."""
        with _errors(self._parts):
            self._parts.mkdir(parents=True, exist_ok=True)
            number = len(self._written())
            whole = self._parts / f"{number:08d}.parquet"
            temporary = whole.with_suffix(".unfinished")
            rows = _rows_of(records).replace_schema_metadata({_MANIFEST: _as_bytes(manifest)})
            pq.write_table(rows, temporary, write_page_checksum=True)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(whole)

    def forget_parts(self) -> None:
        """Begin anew the next time."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def finish(self, facts: Facts) -> None:
        """Make one file of the parts, in place of one that was there before."""
        temporary = self.path.with_name(f"{self.path.name}.unfinished")
        content = facts.as_json()
        checksum = hashlib.sha256(content).hexdigest()
        schema = _SCHEMA.with_metadata({_KEY: content, _CHECKSUM: checksum})
        with _errors(self.path):
            with pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
                for part in self._written():
                    table = pq.read_table(part, page_checksum_verification=True)
                    writer.write_table(table.cast(schema))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.path)
        self.forget_parts()

    def _written(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))


def _as_bytes(manifest: Manifest) -> bytes:
    return manifest.model_dump_json().encode()


def _rows_of(records: Sequence[Record]) -> pa.Table:
    vectors = np.concatenate([record.embedding for record in records])
    return pa.table(
        [
            [record.id for record in records],
            pa.FixedSizeListArray.from_arrays(vectors, DIMENSION),
            pa.array([record.label for record in records], pa.string()),
            [json.dumps(dict(record.metadata), ensure_ascii=False) for record in records],
            pa.array([record.thumbnail for record in records], pa.binary()),
        ],
        schema=_SCHEMA,
    )


def _records_of(rows: pa.RecordBatch) -> list[Record]:
    vectors = rows.column("embedding").flatten().to_numpy().reshape(-1, DIMENSION)
    columns = (rows.column(name).to_pylist() for name in ("id", "label", "metadata", "thumbnail"))
    return [
        Record(id_, vector, label, json.loads(metadata), thumbnail)
        for vector, id_, label, metadata, thumbnail in zip(vectors, *columns, strict=True)
    ]


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise StoreError(f"{path} cannot be read or written: {reason}") from exc
